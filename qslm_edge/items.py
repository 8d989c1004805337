"""Evaluation items: token ids ready to run, what is expected of them, and the file that carries them.

A language model's item is one window of tokens with the next token of each; a classifier's item is one
sentence with its label. All items lie in one array, cut by `offsets`, so that a board without a tokenizer
runs what the host measured, and `digest` proves that both saw the same.

File: a .npz whose bytes depend on the content alone. Its entries are stored without compression, since the
output of deflate changes with the zlib build; instead ids take two bytes where they fit, and targets shrink
to one per item where they are the tokens moved up by one. numpy.load reads it. Imports: numpy and errors.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import zipfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from qslm_edge.errors import BundleError, DataError, OutputError, UsageError

__all__ = ["MAX_FILE_BYTES", "SCHEMA_VERSION", "Items", "Split"]

Split = Literal["search", "report", "train"]

SCHEMA = "qslm-edge items"
SCHEMA_VERSION = 1
MAX_FILE_BYTES = 1 << 30

_MAX_HEADER_BYTES = 1 << 16
_KINDS = {"tokens": np.int32, "offsets": np.int64, "targets": np.int32, "labels": np.int8}
_FIELDS = ("task", "split", "n_words", "n_bytes", "source")
_ENTRIES = ("header", "tokens", "offsets", "targets", "last_targets", "labels")
_NPY = re.compile(
    rb"\x93NUMPY\x01\x00..\{'descr': '(<u2|<i4|<i8|\|i1|\|u1)', 'fortran_order': False, "
    rb"'shape': \((\d{1,12}),\), \} *\n",
    re.DOTALL,
)
# What a broken zip, npy or JSON raises.
_DAMAGE = (zipfile.BadZipFile, OSError, EOFError, ValueError, LookupError, TypeError, RuntimeError, DataError)


@dataclass(frozen=True, eq=False)
class Items:
    """The items of one task and split, in the order in which they are evaluated.

    The arrays are read-only copies. `digest` tells whether two of them hold the same.

    Attributes:
        task: name of the task, "wikitext2" or "sst2".
        split: "search" steers the search, "report" gives the verdict, "train" calibrates and tunes and judges nothing.
        tokens: int32 [n_tokens], all items one after the other.
        offsets: int64 [n_items + 1], item i is tokens[offsets[i]:offsets[i + 1]].
        targets: int32 [n_tokens], the token that follows each input token (language model), else None.
        labels: int8 [n_items] (classification), else None.
        n_words: words of the predicted text, one end of line per line included. None for classification, for
            a part of other items, and where the tokenizer does not say which text a token stands for.
        n_bytes: UTF-8 bytes of the predicted text; None in the same cases.
        source: data set, split and selection, for people.
    """

    task: str
    split: Split
    tokens: NDArray[np.int32]
    offsets: NDArray[np.int64]
    targets: NDArray[np.int32] | None = None
    labels: NDArray[np.int8] | None = None
    n_words: int | None = None
    n_bytes: int | None = None
    source: str = ""

    def __post_init__(self) -> None:
        for name, kind in _KINDS.items():
            if (value := getattr(self, name)) is not None:
                object.__setattr__(self, name, _vector(name, value, np.dtype(kind)))

    @property
    def n_items(self) -> int:
        """Number of windows or sentences."""
        return max(len(self.offsets) - 1, 0)

    @property
    def n_tokens(self) -> int:
        """Number of input tokens of all items; of a language model as many are predicted."""
        return len(self.tokens)

    @cached_property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each item, int64 [n_items]."""
        return np.diff(self.offsets)

    @cached_property
    def digest(self) -> str:
        """sha256 over the arrays, task, split and counts; the text in `source` does not enter."""
        given = {name: getattr(self, name) for name in _KINDS}
        arrays: dict[str, NDArray[Any]] = {name: a for name, a in given.items() if a is not None}
        head = {
            "schema": [SCHEMA, SCHEMA_VERSION],
            "fields": [self.task, self.split, self.n_words, self.n_bytes],
            "arrays": [[name, len(array)] for name, array in arrays.items()],
        }
        digest = hashlib.sha256(json.dumps(head, separators=(",", ":")).encode())
        for array in arrays.values():
            digest.update(array.astype(array.dtype.newbyteorder("<")).tobytes())
        return digest.hexdigest()

    def check(self, vocab_size: int, n_classes: int = 2) -> None:
        """Raise unless a model with this vocabulary can be judged on the items.

        Args:
            vocab_size: ids must be below it.
            n_classes: labels must be below it.

        Raises:
            DataError: no items, arrays that contradict each other, ids or labels out of range.
        """
        where = f"{self.task} {self.split} items"
        if problem := self._problem():
            raise DataError(problem, where=where)
        for name, ids, limit in (
            ("token ids", self.tokens, vocab_size),
            ("target ids", self.targets, vocab_size),
            ("labels", self.labels, n_classes),
        ):
            if ids is not None and (ids.min() < 0 or ids.max() >= limit):
                found, allowed = f"{ids.min()} to {ids.max()}", f"0 to {limit - 1}"
                raise DataError(f"{name} out of range", where=where, found=found, allowed=allowed)

    def subset(self, indices: Sequence[int] | NDArray[np.integer[Any]]) -> Items:
        """These items in this order.

        `n_words` and `n_bytes` belong to the whole and are kept only if every item is taken once.

        Raises:
            UsageError: an item number out of range, or none given.
        """
        index = np.asarray(indices, dtype=np.int64)
        if index.ndim != 1 or not len(index) or index.min() < 0 or index.max() >= self.n_items:
            raise UsageError("item numbers out of range", allowed=f"0 to {self.n_items - 1}, at least one")
        offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(self.lengths[index])])
        pick = np.arange(offsets[-1]) + np.repeat(self.offsets[index] - offsets[:-1], self.lengths[index])
        whole = len(index) == self.n_items and len(np.unique(index)) == self.n_items
        return Items(
            task=self.task,
            split=self.split,
            tokens=self.tokens[pick],
            offsets=offsets,
            targets=None if self.targets is None else self.targets[pick],
            labels=None if self.labels is None else self.labels[index],
            n_words=self.n_words if whole else None,
            n_bytes=self.n_bytes if whole else None,
            source=self.source if whole else f"{self.source}; {len(index)} of these {self.n_items} items",
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the items as .npz; equal items give equal bytes on every machine.

        Raises:
            DataError: arrays that contradict each other.
            OutputError: the place cannot be written.
        """
        if problem := self._problem():
            raise DataError(problem, where=f"{self.task} {self.split} items")
        target = Path(path)
        partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
        try:
            partial.write_bytes(self._to_bytes())
            partial.replace(target)
        except OSError as error:
            with suppress(OSError):
                partial.unlink()
            raise OutputError("cannot write the items", where=target, found=error.strerror) from error

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Items:
        """Read what `save` wrote, and prove by its digest that nothing changed.

        Raises:
            BundleError: missing, too large, damaged, or written by a newer version.
        """
        where = Path(path)
        try:
            if where.stat().st_size > MAX_FILE_BYTES:
                raise BundleError("items file too large", where=where, allowed=f"{MAX_FILE_BYTES} bytes")
            entries = _read_entries(where)
            head = json.loads(entries.pop("header").tobytes())
            if head["schema"] != SCHEMA:
                raise ValueError("no items")
            if head["schema_version"] > SCHEMA_VERSION:
                found, hint = head["schema_version"], "update qslm-edge or its runner"
                raise BundleError("items of a newer schema", where=where, found=found, hint=hint)
            tokens, offsets = entries["tokens"], entries["offsets"]
            if "last_targets" in entries:
                entries["targets"] = _moved_up(tokens, offsets, entries.pop("last_targets"))
            content: dict[str, Any] = {name: head[name] for name in _FIELDS} | entries
            items = cls(**content)
            if problem := items._problem():
                raise ValueError(problem)
            if items.digest != head["digest"]:
                raise ValueError("the digest differs")
        except FileNotFoundError as error:
            raise BundleError("items file missing", where=where) from error
        except _DAMAGE as error:
            raise BundleError("items file damaged", where=where, found=str(error) or None) from error
        return items

    def _problem(self) -> str | None:
        """What is wrong with the arrays, whatever the vocabulary; None if nothing is."""
        if self.n_items == 0 or self.n_tokens == 0:
            return "no items"
        if not isinstance(self.task, str) or not self.task or self.split not in get_args(Split):
            return f"task or split unknown: {self.task!r}, {self.split!r}"
        if self.offsets[0] != 0 or self.offsets[-1] != self.n_tokens:
            return "the offsets do not cover the tokens"
        if self.lengths.min() < 1:
            return f"item {int(self.lengths.argmin())} has no tokens"
        if (self.targets is None) == (self.labels is None):
            return "items need either targets or labels"
        if self.targets is not None and len(self.targets) != self.n_tokens:
            return "targets and tokens differ in number"
        if self.labels is not None and len(self.labels) != self.n_items:
            return "labels and items differ in number"
        for name, count in (("n_words", self.n_words), ("n_bytes", self.n_bytes)):
            if count is not None and (type(count) is not int or count < 1):
                return f"{name} must be a positive integer or None"
        return None

    def _to_bytes(self) -> bytes:
        head = {"schema": SCHEMA, "schema_version": SCHEMA_VERSION, "digest": self.digest}
        head |= {name: getattr(self, name) for name in _FIELDS}
        text = json.dumps(head, indent=1).encode()
        entries: dict[str, NDArray[Any]] = {
            "header": np.frombuffer(text, np.uint8),
            "tokens": _small(self.tokens),
            "offsets": self.offsets,
        }
        if self.targets is not None:
            last = self.targets[self.offsets[1:] - 1]
            if np.array_equal(self.targets, _moved_up(self.tokens, self.offsets, last)):
                entries["last_targets"] = _small(last)
            else:
                entries["targets"] = _small(self.targets)
        if self.labels is not None:
            entries["labels"] = self.labels
        out = io.BytesIO()
        with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:
            for name, array in entries.items():
                info = zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0))
                info.create_system = 3  # the same on every system
                info.external_attr = 0o644 << 16
                archive.writestr(info, _npy(array))
        return out.getvalue()


def _vector(name: str, value: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    array = np.asarray(value)
    limits = np.iinfo(dtype)
    if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
        raise DataError(f"{name} must be a vector of integers", found=f"{array.dtype} {array.shape}")
    if array.size and (int(array.min()) < limits.min or int(array.max()) > limits.max):
        raise DataError(f"{name} out of range", found=f"{array.min()} to {array.max()}", allowed=dtype.name)
    copy = np.array(array, dtype=dtype)
    copy.setflags(write=False)
    return copy


def _small(ids: NDArray[np.int32]) -> NDArray[Any]:
    fits = ids.min() >= 0 and ids.max() <= np.iinfo(np.uint16).max
    return ids.astype(np.uint16) if fits else ids


def _moved_up(tokens: NDArray[Any], offsets: NDArray[Any], last: NDArray[Any]) -> NDArray[np.int32]:
    """Targets of windows: the next token of the same item, and for the last of each the one given."""
    if len(last) != len(offsets) - 1:
        raise ValueError("last targets and items differ in number")
    targets = np.zeros(len(tokens), np.int32)
    targets[:-1] = tokens[1:]
    targets[offsets[1:] - 1] = last
    return targets


def _npy(array: NDArray[Any]) -> bytes:
    """The .npy form, version 1.0; numpy's own writer pads the header differently from version to version."""
    little = array.astype(array.dtype.newbyteorder("<"))
    text = f"{{'descr': '{little.dtype.str}', 'fortran_order': False, 'shape': ({len(array)},), }}"
    text += " " * (-(len(text) + 11) % 64) + "\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode() + little.tobytes()


def _read_entries(path: Path) -> dict[str, NDArray[Any]]:
    entries: dict[str, NDArray[Any]] = {}
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            name = info.filename.removesuffix(".npy")
            if name in entries or name not in _ENTRIES or info.compress_type != zipfile.ZIP_STORED:
                raise ValueError(f"unexpected entry {info.filename!r}")
            if info.file_size > (_MAX_HEADER_BYTES if name == "header" else MAX_FILE_BYTES):
                raise ValueError(f"entry {name!r} too large")
            data = archive.read(info)
            match = _NPY.match(data)
            if match is None or int.from_bytes(data[8:10], "little") != match.end() - 10:
                raise ValueError(f"entry {name!r} is no .npy of one dimension")
            array = np.frombuffer(data, np.dtype(match[1].decode()), offset=match.end())
            if len(array) != int(match[2]):
                raise ValueError(f"entry {name!r} is cut short")
            entries[name] = array
    return entries
