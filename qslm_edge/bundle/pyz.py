"""run.pyz: the runner as one file: `python3 run.pyz verify` needs nothing but numpy and onnxruntime.

The archive holds what runner needs and nothing else, in a fixed order with a fixed date, so that it is equal
byte by byte wherever it was made.
"""

from __future__ import annotations

import zipfile
from importlib.resources import files
from pathlib import Path

__all__ = ["runner_modules", "write_pyz"]

_MAIN = """import sys
try:
    from qslm_edge.runner.__main__ import main
    code = main()
except KeyboardInterrupt:  # while numpy was loading, say
    sys.stderr.write("interrupted\\n")
    code = 130
except ModuleNotFoundError as error:
    if error.name != "numpy":
        raise
    sys.stderr.write("error: numpy is not installed. Next: python3 -m pip install numpy onnxruntime\\n")
    code = 4
except (ImportError, MemoryError) as error:
    if isinstance(error, ImportError) and "failed to map" not in str(error):
        raise
    sys.stderr.write("error: too little memory to load Python's own libraries. Next: raise the limit (ulimit -v, "
                     "container) or free memory\\n")
    code = 4
sys.exit(code)
"""
_BASE = ("__init__.py", "batches.py", "errors.py", "items.py", "metrics.py", "bundle/__init__.py")
_READERS = ("bundle/reader.py", "bundle/tensors.py")
_SOURCES = ("*.py", "native/*.h", "native/*.cpp", "native/cuda/*.cu", "native/cuda/*.cuh")
"""Of the runner: the native engine is compiled where it runs."""
_DATE = (1980, 1, 1, 0, 0, 0)


def runner_modules() -> dict[str, bytes]:
    """Source files of the archive by their path inside it, sorted."""
    package = Path(str(files("qslm_edge")))
    runner = [path for pattern in _SOURCES for path in (package / "runner").rglob(pattern)]
    names = [*_BASE, *_READERS, *(path.relative_to(package).as_posix() for path in runner)]
    return {f"qslm_edge/{name}": (package / name).read_bytes() for name in sorted(names)}


def write_pyz(path: Path) -> None:
    """Write the archive.

    Raises:
        OSError: the place cannot be written.
    """
    entries = {"__main__.py": _MAIN.encode(), **runner_modules()}
    with path.open("wb") as file:
        file.write(b"#!/usr/bin/env python3\n")
        with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
            for name, data in entries.items():
                info = zipfile.ZipInfo(name, _DATE)
                info.create_system = 3
                info.external_attr = 0o644 << 16
                archive.writestr(info, data)
    path.chmod(0o755)
