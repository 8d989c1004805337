"""Text ↔ token ids by a tokenizer.json, and text out of a stream of ids.

The `tokenizers` library loads when the first tokenizer does. Truncation and padding that a file may carry
are switched off, and special tokens are never added: perplexity is defined on the text alone.

This file needs numpy, errors and reading only, so that a board's runner can carry it for `generate`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from qslm_edge.errors import DependencyError, TokenizerError
from qslm_edge.tasks.reading import read_bytes

if TYPE_CHECKING:
    from tokenizers import Encoding
    from tokenizers import Tokenizer as Backend

__all__ = ["MAX_TOKENIZER_BYTES", "StreamDecoder", "Tokenizer", "check_vocabulary", "load_tokenizer"]

MAX_TOKENIZER_BYTES = 128_000_000
_SMALLEST_SHARE = 0.9
_CONTEXT_IDS = 32


class Tokenizer:
    """A tokenizer together with the file that it came from.

    Attributes:
        raw: the tokenizer.json, byte for byte, for the bundle.
        where: file name for messages.
    """

    def __init__(self, backend: Backend, raw: bytes, where: str) -> None:
        self._backend = backend
        self.raw = raw
        self.where = where

    @cached_property
    def size(self) -> int:
        """Number of entries, added tokens included."""
        return self._backend.get_vocab_size(with_added_tokens=True)

    @cached_property
    def max_id(self) -> int:
        """The largest id that it can emit."""
        return max(self._backend.get_vocab(with_added_tokens=True).values())

    @cached_property
    def digest(self) -> str:
        """sha256 of the file."""
        return sha256(self.raw).hexdigest()

    def token_id(self, token: str) -> int | None:
        """The id of an entry such as "<|endoftext|>", or None."""
        return self._backend.token_to_id(token)

    def encode(self, text: str) -> NDArray[np.int32]:
        """Ids of a text, int32 [n], without special tokens.

        Raises:
            TokenizerError: the tokenizer has no token for some part of the text.
        """
        return np.array(self._encoding(text).ids, np.int32)

    def encode_with_ends(self, text: str) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        """Ids, int32 [n], and the character of the text at which each ends, int64 [n]."""
        encoding = self._encoding(text)
        return np.array(encoding.ids, np.int32), np.array([end for _, end in encoding.offsets], np.int64)

    def decode(self, ids: Iterable[int], *, skip_special: bool = False) -> str:
        """Text of some ids; bytes that are no UTF-8 become U+FFFD.

        Raises:
            TokenizerError: a negative id.
        """
        numbers = [int(i) for i in ids]
        if numbers and min(numbers) < 0:
            raise TokenizerError("a token id is negative", where=self.where, found=min(numbers))
        return self._backend.decode(numbers, skip_special_tokens=skip_special)

    def _encoding(self, text: str) -> Encoding:
        try:
            return self._backend.encode(text, add_special_tokens=False)
        except Exception as error:  # the library raises no class of its own
            raise TokenizerError(
                "cannot encode the text", where=self.where, found=str(error)[:120]
            ) from error


class StreamDecoder:
    """Text of ids that come one by one; never half a character.

    A character may be spread over several tokens. Until it is complete it decodes to one U+FFFD at the very
    end, which is held back; everything before is final.
    """

    def __init__(self, tokenizer: Tokenizer, *, skip_special: bool = False) -> None:
        self._tokenizer = tokenizer
        self._skip_special = skip_special
        self._ids: list[int] = []
        self._shown = 0

    def push(self, token_id: int) -> str:
        """The text that this id completes; often one word, sometimes nothing."""
        self._ids.append(token_id)
        text = self._decode()
        end = max(self._shown, len(text) - text.endswith("\ufffd"))
        new, self._shown = text[self._shown : end], end
        if end == len(text) and len(self._ids) > _CONTEXT_IDS:
            # Forget what is final, so that a step costs the same however long the text. One id stays, since
            # some decoders drop a space at the start of a text.
            self._ids = self._ids[-1:]
            self._shown = len(self._decode())
        return new

    def finish(self) -> str:
        """What is still held back: U+FFFD if the stream broke off inside a character, else nothing."""
        rest = self._decode()[self._shown :]
        self._ids, self._shown = [], 0
        return rest

    def _decode(self) -> str:
        return self._tokenizer.decode(self._ids, skip_special=self._skip_special)


def load_tokenizer(source: str | os.PathLike[str] | bytes) -> Tokenizer:
    """Read a tokenizer.json.

    Args:
        source: the file, also compressed as .xz; a model directory that holds tokenizer.json; or the content.

    Raises:
        TokenizerError: missing, too large, no JSON, or JSON that is no tokenizer.
        DependencyError: the `tokenizers` library is not installed.
    """
    try:
        from tokenizers import Tokenizer as Backend
    except ImportError as error:
        raise DependencyError(
            "the package 'tokenizers' is not installed",
            hint="install the extra 'text' (qslm-edge[text]); the extra 'export' includes it",
        ) from error

    if isinstance(source, bytes):
        where, raw = "tokenizer.json", source
        if len(raw) > MAX_TOKENIZER_BYTES:
            raise TokenizerError("tokenizer too large", where=where, allowed=f"{MAX_TOKENIZER_BYTES} bytes")
    else:
        path = Path(source)
        path = path / "tokenizer.json" if path.is_dir() else path
        where, raw = str(path), read_bytes(path, MAX_TOKENIZER_BYTES, TokenizerError)
    try:
        text = raw.decode("utf-8")
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise TokenizerError("not a JSON file", where=where, found=str(error)[:80]) from error
    if not isinstance(content, dict) or not isinstance(content.get("model"), dict):
        hint = "give the file tokenizer.json, not a list of words or a configuration"
        raise TokenizerError("not a tokenizer: it has no 'model'", where=where, hint=hint)
    try:
        backend = Backend.from_str(text)
    except Exception as error:  # the library raises no class of its own
        raise TokenizerError("not a tokenizer", where=where, found=str(error)[:120]) from error
    backend.no_truncation()
    backend.no_padding()
    tokenizer = Tokenizer(backend, raw, where)
    if not tokenizer.size:
        raise TokenizerError("the tokenizer is empty", where=where)
    return tokenizer


def check_vocabulary(tokenizer: Tokenizer, vocab_size: int) -> None:
    """Raise unless tokenizer and model can belong together.

    Every id must lie below the model's vocabulary. Models round their vocabulary up a little, so a few rows
    without an entry are right; a tokenizer with less than 90 % of the rows is that of another model.

    Raises:
        TokenizerError: the two disagree.
    """
    hint = "give the tokenizer that the model was trained with"
    if tokenizer.max_id >= vocab_size:
        raise TokenizerError(
            "the tokenizer has ids that the model lacks",
            where=tokenizer.where,
            found=f"id {tokenizer.max_id}",
            allowed=f"0 to {vocab_size - 1}",
            hint=hint,
        )
    if tokenizer.size < _SMALLEST_SHARE * vocab_size:
        raise TokenizerError(
            "the tokenizer is much smaller than the model's vocabulary",
            where=tokenizer.where,
            found=f"{tokenizer.size} entries for {vocab_size} rows",
            hint=hint,
        )
