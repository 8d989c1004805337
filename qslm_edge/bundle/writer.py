"""Writing a bundle: everything a board needs to run and to judge a model, each file with its digest.

The bundle is built in a hidden directory beside its place and renamed at the end, so that an interrupted
export leaves no half bundle. The manifest holds no times, hosts, paths or measured speeds: equal inputs give
equal bytes.
"""

from __future__ import annotations

import json
import os
import shutil
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qslm_edge import __version__
from qslm_edge.bundle.pyz import write_pyz
from qslm_edge.bundle.reader import MANIFEST, SCHEMA, Bundle, file_digest, open_bundle
from qslm_edge.errors import OutputError
from qslm_edge.items import Items
from qslm_edge.metrics import Scores

__all__ = ["check_place", "finish_bundle", "save_arrays", "save_scores", "staging"]

_DATE = (1980, 1, 1, 0, 0, 0)


def check_place(target: Path) -> None:
    """Raise unless a bundle may be written at `target`: nothing is there, or a bundle.

    Raises:
        OutputError: something else is there, which is never replaced.
    """
    if (target.exists() or target.is_symlink()) and not (target / MANIFEST).is_file():
        raise OutputError(
            "refusing to replace something that is not a bundle", where=target, hint="use another --out"
        )


@contextmanager
def staging(target: Path) -> Iterator[Path]:
    """A hidden directory beside `target`; replaces it when the block ends well, is removed when it does not.

    Raises:
        OutputError: the place is read-only, full, or taken by something that is no bundle.
    """
    check_place(target)
    work = target.with_name(f".{target.name}.partial-{os.getpid()}")
    try:
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        yield work
        _replace(work, target)
    except OSError as error:
        raise OutputError(
            "the bundle cannot be written", where=error.filename or target, found=error.strerror or error
        ) from None
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _replace(work: Path, target: Path) -> None:
    """Put `work` in the place of `target`; if that fails or is interrupted, the old bundle is back."""
    old = target.with_name(f".{target.name}.old-{os.getpid()}")
    try:
        if target.exists():
            os.replace(target, old)
        os.replace(work, target)
    except BaseException:
        if old.exists() and not target.exists():
            os.replace(old, target)
        raise
    if old.is_symlink():
        old.unlink()
    shutil.rmtree(old, ignore_errors=True)


def save_arrays(path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write arrays as .npz with fixed dates and no compression."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, array in arrays.items():
            info = zipfile.ZipInfo(f"{name}.npy", _DATE)
            info.create_system = 3
            with archive.open(info, "w") as file:
                np.lib.format.write_array(
                    file, np.ascontiguousarray(array), version=(1, 0), allow_pickle=False
                )


def save_scores(path: Path, scores: Scores, top: NDArray[np.int32] | None = None) -> None:
    """Write per-item scores; token ids take two bytes where they fit."""
    arrays: dict[str, NDArray[Any]] = {
        "index": scores.index.astype(np.int32),
        "loss": scores.loss,
        "count": scores.count.astype(np.int32),
        "correct": scores.correct.astype(np.int32),
    }
    if top is not None:
        arrays["top"] = top.astype(np.uint16) if top.size and int(top.max()) < 2**16 else top
    save_arrays(path, arrays)


def save_split(
    directory: Path, items: Items, scores: Scores, top: NDArray[np.int32] | None
) -> dict[str, Any]:
    """Write the items of a split with the float model's scores, and return their manifest entry."""
    folder = directory / "eval"
    folder.mkdir(exist_ok=True)
    items.save(folder / f"{items.split}.npz")
    save_scores(folder / f"{items.split}-float.npz", scores, top)
    return {
        "file": f"eval/{items.split}.npz",
        "float": f"eval/{items.split}-float.npz",
        "digest": items.digest,
        "n_items": items.n_items,
        "n_tokens": items.n_tokens,
        "source": items.source,
    }


def finish_bundle(directory: Path, manifest: Mapping[str, Any]) -> Bundle:
    """Add run.pyz, the list of files and the manifest, and read the result back.

    Args:
        directory: the staging directory with all other files.
        manifest: everything but `schema`, `tool` and `files`.
    """
    write_pyz(directory / "run.pyz")
    names = sorted(path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file())
    entries = [
        {"path": name, "bytes": (directory / name).stat().st_size, "sha256": file_digest(directory / name)}
        for name in names
    ]
    full = {
        "schema": SCHEMA,
        "tool": {"name": "qslm-edge", "version": __version__},
        **manifest,
        "files": entries,
    }
    (directory / MANIFEST).write_text(json.dumps(full, indent=1, ensure_ascii=False) + "\n", "utf-8")
    return open_bundle(directory)
