"""Reading a bundle and proving that it is whole.

A bundle is a directory with manifest.json, which names every other file with its size and sha256. Nothing of
it is used before its digest was checked, and a path in the manifest can never leave the directory. Imports
numpy only, since run.pyz packs it.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qslm_edge.errors import BundleError
from qslm_edge.items import Items, Split
from qslm_edge.metrics import Kind, Scores

__all__ = ["MANIFEST", "SCHEMA", "Bundle", "file_digest", "open_bundle"]

MANIFEST, SCHEMA = "manifest.json", "qslm-edge/bundle/1"
MAX_MANIFEST_BYTES = 16 * 2**20
MAX_STATES = 64
_HINT = "copy the bundle again from the run that made it"
_NUMBER = (int, float)
_OPTIONAL_NUMBER = (int, float, type(None))
_ITEMS = {"file": str, "float": str, "digest": str, "n_items": int, "n_tokens": int, "source": str}
# What the runner reads, with its type: a manifest that lacks any of it is refused before any work.
_REQUIRED: dict[str, Any] = {
    "schema": str,
    "tool": {"name": str, "version": str},
    "model": {"name": str, "vocab_size": int, "n_embd": int, "n_layer": int},
    "task": {"name": str, "kind": str, "metric": str, "unit": str, "direction": str},
    "profile": {"id": str, "name": str, "match": dict, "power": dict},
    "constraints": {
        "max_degradation": _NUMBER,
        "weights_budget_bytes": _OPTIONAL_NUMBER,
        "memory_budget_bytes": _OPTIONAL_NUMBER,
    },
    "setting": dict,
    "weights": {"bytes": int, "float32_bytes": int},
    "state": {"n_layer": int, "n_embd": int, "p_init": _NUMBER},
    "runtime": {"onnxruntime_min": str, "providers": list},
    "expected": {"scores": str, "tolerance": _NUMBER},
    "golden": {"file": str, "tolerance": _NUMBER},
    "items": {"search": _ITEMS, "report": _ITEMS},
    "files": list,
}
_KINDS = ("language_model", "classification")
# What a damaged archive, or an array in place of one, raises.
_DAMAGE = (OSError, ValueError, KeyError, EOFError, TypeError, AttributeError, zipfile.BadZipFile)
# The runner allocates by these: a damaged file must not make it do so at will. Limits as for checkpoints.
_SIZES = (("model", "vocab_size", 2**20), ("state", "n_layer", 256), ("state", "n_embd", 2**14))


@dataclass(frozen=True)
class Bundle:
    """A bundle whose manifest was read; `check_files` proves the rest.

    Attributes:
        path: its directory.
        manifest: the parsed manifest.
    """

    path: Path
    manifest: dict[str, Any]

    @property
    def kind(self) -> Kind:
        value: Kind = self.manifest["task"]["kind"]
        return value

    @property
    def digest(self) -> str:
        """sha256 of the manifest, which names all other digests: one number for the whole bundle."""
        return hashlib.sha256((self.path / MANIFEST).read_bytes()).hexdigest()

    def file(self, name: str) -> Path:
        """Path of a file of the bundle."""
        return self.path / name

    @property
    def file_bytes(self) -> dict[str, int]:
        """Size of every file by name."""
        return {entry["path"]: entry["bytes"] for entry in self.manifest["files"]}

    def check_files(self) -> None:
        """Compare every file with the manifest.

        Raises:
            BundleError: a file is missing, cannot be read, or has another size or digest. Files that the
                manifest does not name are never used, so they do no harm.
        """
        for entry in self.manifest["files"]:
            path = self.path / entry["path"]
            if not path.is_file():
                raise BundleError("incomplete bundle: a file is missing", where=path, hint=_HINT)
            size = path.stat().st_size
            if size != entry["bytes"]:
                raise BundleError(
                    "tampered or damaged bundle: wrong size",
                    where=path,
                    found=f"{size} bytes",
                    allowed=f"{entry['bytes']} bytes",
                    hint=_HINT,
                )
            try:
                found = file_digest(path)
            except OSError as error:
                raise BundleError("cannot be read", where=path, found=error.strerror, hint=_HINT) from None
            if found != entry["sha256"]:
                raise BundleError(
                    "tampered or damaged bundle: wrong sha256",
                    where=path,
                    found=found[:16],
                    allowed=entry["sha256"][:16],
                    hint=_HINT,
                )

    def items(self, split: Split) -> Items:
        """Evaluation items of a split."""
        entry = self.manifest["items"].get(split)
        if entry is None:
            raise BundleError("bundle has no such items", where=self.path / MANIFEST, found=split)
        items = Items.load(self.file(entry["file"]))
        if items.digest != entry["digest"]:
            raise BundleError(
                "items are not those of the manifest", where=self.file(entry["file"]), hint=_HINT
            )
        model = self.manifest["model"]
        items.check(int(model["vocab_size"]), int(model.get("num_labels") or 2))
        return items

    def float_scores(self, split: Split) -> tuple[Scores, NDArray[np.int32] | None]:
        """Scores of the float model on a split, and its most likely next tokens (language models)."""
        arrays = self._arrays(self.manifest["items"][split]["float"], ("index", "loss", "count", "correct"))
        top = arrays.get("top")
        return self._scores(arrays), None if top is None else top.astype(np.int32)

    def expected_scores(self) -> Scores:
        """Scores of the chosen setting on the search items, as the search measured them."""
        return self._scores(
            self._arrays(self.manifest["expected"]["scores"], ("index", "loss", "count", "correct"))
        )

    def golden(self) -> dict[str, NDArray[Any]]:
        """Golden vectors: tokens, mask, and the expected output."""
        arrays = self._arrays(self.manifest["golden"]["file"], ("tokens", "mask", "expected"))
        if arrays["tokens"].ndim != 2 or not arrays["tokens"].size:
            raise BundleError(
                "golden tokens must be [T, B]",
                where=self.file(self.manifest["golden"]["file"]),
                found=list(arrays["tokens"].shape),
                hint=_HINT,
            )
        return arrays

    def classifier_weight(self) -> NDArray[np.float32]:
        """The classifier's matrix [labels, C], float32."""
        path = self.file("classifier.npy")
        try:
            weight: NDArray[np.float32] = np.load(path, allow_pickle=False)
        except (OSError, ValueError) as error:
            raise BundleError("cannot be read", where=path, found=error, hint=_HINT) from None
        columns = int(self.manifest["model"]["n_embd"])
        if weight.ndim != 2 or weight.shape[1] != columns or weight.dtype != np.float32:
            raise BundleError(
                "not the matrix of this classifier",
                where=path,
                found=f"{weight.dtype} {list(weight.shape)}",
                allowed=f"float32 [labels, {columns}]",
                hint=_HINT,
            )
        return weight

    def _scores(self, arrays: dict[str, NDArray[Any]]) -> Scores:
        return Scores(
            self.kind,
            arrays["index"].astype(np.int64),
            arrays["loss"].astype(np.float64),
            arrays["count"].astype(np.int64),
            arrays["correct"].astype(np.int64),
        )

    def _arrays(self, name: str, required: tuple[str, ...]) -> dict[str, NDArray[Any]]:
        path = self.file(name)
        try:
            # numpy leaves a file of its own open when the archive is damaged
            with path.open("rb") as handle, np.load(handle, allow_pickle=False) as file:
                arrays = {key: file[key] for key in file.files}
        except _DAMAGE as error:
            raise BundleError("cannot be read", where=path, found=error, hint=_HINT) from None
        if missing := [key for key in required if key not in arrays]:
            raise BundleError("arrays are missing", where=path, found=", ".join(missing), hint=_HINT)
        return arrays


def file_digest(path: Path) -> str:
    """SHA-256 of a file, read piece by piece."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(2**20):
            digest.update(chunk)
    return digest.hexdigest()


def open_bundle(path: Path, check: bool = True) -> Bundle:
    """Open a bundle directory.

    Args:
        path: the directory, or its manifest.json.
        check: compare every file with the manifest (a measuring child process may rely on its parent).

    Raises:
        BundleError: no bundle, not readable, of another schema, incomplete or tampered with.
    """
    path = path.parent if path.name == MANIFEST else path
    manifest_path = path / MANIFEST
    if not manifest_path.is_file():
        raise BundleError(
            "not a bundle: manifest.json is missing",
            where=path,
            hint="give the bundle directory that deploy or export wrote",
        )
    try:
        if manifest_path.stat().st_size > MAX_MANIFEST_BYTES:
            raise BundleError(
                "manifest is too large", where=manifest_path, allowed=f"{MAX_MANIFEST_BYTES} bytes"
            )
        manifest = json.loads(manifest_path.read_text("utf-8"), parse_constant=_refuse_constant)
    except (OSError, ValueError, RecursionError) as error:
        raise BundleError("cannot be read", where=manifest_path, found=error, hint=_HINT) from None
    _check_manifest(manifest, manifest_path)
    bundle = Bundle(path, manifest)
    if check:
        bundle.check_files()
    return bundle


def _refuse_constant(text: str) -> None:
    raise ValueError(f"{text} is no JSON number")


def _check_manifest(manifest: Any, where: Path) -> None:
    if not isinstance(manifest, dict):
        raise BundleError("must hold a JSON object", where=where, found=type(manifest).__name__, hint=_HINT)
    schema = manifest.get("schema")
    if schema != SCHEMA:
        raise BundleError(
            "bundle of another schema",
            where=where,
            found="no schema" if schema is None else schema,
            allowed=SCHEMA,
            hint="verify it with the run.pyz inside it",
        )
    if problem := _problem(manifest, _REQUIRED):
        key, allowed, found = problem
        raise BundleError(
            "key is missing or of the wrong type",
            where=f"{where}: {key}",
            found=found,
            allowed=allowed,
            hint=_HINT,
        )
    if manifest["task"]["kind"] not in _KINDS:
        raise BundleError(
            "unknown kind of task",
            where=where,
            found=manifest["task"]["kind"],
            allowed=", ".join(_KINDS),
            hint="verify it with the run.pyz inside it",
        )
    if not manifest["runtime"]["providers"]:
        raise BundleError("no execution provider is named", where=where, hint=_HINT)
    for part, key, limit in _SIZES:
        if not 1 <= manifest[part][key] <= limit:
            raise BundleError(
                "impossible size",
                where=f"{where}: {part}.{key}",
                found=manifest[part][key],
                allowed=f"1 to {limit}",
                hint=_HINT,
            )
    cuda = manifest.get("cuda")
    if cuda is not None and not _is_cuda_part(cuda):
        raise BundleError(
            "does not describe a step graph",
            where=f"{where}: cuda",
            allowed="graph, a file; state, initial numbers by name",
            hint=_HINT,
        )
    names = _file_names(manifest["files"], where)
    wanted = {"model.onnx", "model.bin", manifest["golden"]["file"], manifest["expected"]["scores"]}
    for entry in manifest["items"].values():
        wanted |= {entry["file"], entry["float"]}
    if manifest["task"]["kind"] == "classification":
        wanted.add("classifier.npy")
    if cuda is not None:
        wanted.add(cuda["graph"])
    if unlisted := sorted(wanted - names):
        raise BundleError(
            "manifest names files that it has no digest for", where=where, found=unlisted[0], hint=_HINT
        )


def _is_cuda_part(part: Any) -> bool:
    """Whether `cuda` of a manifest names a graph and the initial value of each of its state tensors."""
    if _problem(part, {"graph": str, "onnxruntime_min": str, "state": dict}) is not None:
        return False
    return 0 < len(part["state"]) <= MAX_STATES and all(
        isinstance(value, _NUMBER) and not isinstance(value, bool) for value in part["state"].values()
    )


def _problem(value: Any, wanted: Any, path: str = "") -> tuple[str, str, str] | None:
    """The first key that is missing or of the wrong type: its path, what is allowed, what was found."""
    if isinstance(wanted, dict):
        if not isinstance(value, dict):
            return path, "an object", _type_name(value)
        for key, inner in wanted.items():
            if key not in value:
                return f"{path}{'.' if path else ''}{key}", _allowed(inner), "nothing"
            problem = _problem(value[key], inner, f"{path}{'.' if path else ''}{key}")
            if problem is not None:
                return problem
        return None
    # a bool is an int to Python, not to us
    if isinstance(value, bool) or not isinstance(value, wanted):
        return path, _allowed(wanted), _type_name(value)
    return None


def _allowed(wanted: Any) -> str:
    if isinstance(wanted, tuple):
        return "a number or null" if type(None) in wanted else "a number"
    return _TYPES["object" if isinstance(wanted, dict) else wanted.__name__]


_TYPES = {
    "str": "a string",
    "int": "a whole number",
    "list": "a list",
    "dict": "an object",
    "object": "an object",
}


def _type_name(value: Any) -> str:
    return "null" if value is None else type(value).__name__


def _file_names(entries: list[Any], where: Path) -> set[str]:
    """Paths of the listed files; none of them may leave the bundle or come twice."""
    names: set[str] = set()
    for entry in entries:
        if _problem(entry, {"path": str, "bytes": int, "sha256": str}):
            raise BundleError("damaged list of files", where=where, found=str(entry)[:80], hint=_HINT)
        name = entry["path"]
        relative = PurePosixPath(name)
        if (
            relative.is_absolute()
            or PureWindowsPath(name).anchor
            or ".." in relative.parts
            or "\\" in name
            or "\0" in name
        ):
            raise BundleError("a path leaves the bundle", where=where, found=repr(name), hint=_HINT)
        if name != str(relative) or name in names:
            raise BundleError("damaged list of files", where=where, found=repr(name), hint=_HINT)
        names.add(name)
    return names
