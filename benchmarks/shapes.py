"""The models that the benchmarks of speed and memory run: checkpoints of three shapes, and bundles of them.

Each is made once, below the directory of the benchmark, by the commands that a user has; delete a directory to make it
anew. All but the reference model have random weights: they tell speed and memory, and nothing about quality.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import onnx

from qslm_edge.reference import model_path

ROOT = Path(__file__).resolve().parent.parent
PROFILE = "x86-cpu"
SETTINGS = ("8g64", "4g64", "2g64", "mixed")
FLOAT = "32"


def exit_with(main: Callable[[], int]) -> None:
    """Run a benchmark that can be stopped and started again, and end with its exit code."""
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.stderr.write("interrupted; the same command goes on\n")
        sys.exit(130)


@dataclass(frozen=True)
class Shape:
    """A model.

    Attributes:
        name: of its directory.
        layers, channels: None for the embedded reference model.
    """

    name: str
    layers: int | None = None
    channels: int | None = None


SHAPES = {
    shape.name: shape for shape in (Shape("reference"), Shape("216m", 18, 768), Shape("large", 24, 1024))
}


def checkpoint(shape: Shape, place: Path) -> Path:
    """The checkpoint of a shape, made where it is not there."""
    if shape.layers is None:
        return model_path()
    path = place / shape.name / "model.pth"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        making = path.with_name("making.pth")
        sizes = ["--layers", str(shape.layers), "--channels", str(shape.channels)]
        _run([str(ROOT / "benchmarks" / "make_spikegpt_216m.py"), str(making), "--half", *sizes])
        making.rename(path)
    return path


def bundle(shape: Shape, setting: str, place: Path) -> Path:
    """The bundle of a shape at a setting, exported where it is not there."""
    run = place / shape.name / setting
    target, stamp = run / "bundle", run / "exporter"
    if not stamp.is_file() or stamp.read_text("utf-8") != exporter_digest():
        run.mkdir(parents=True, exist_ok=True)
        given = setting if setting != "mixed" else str(_mixed(shape, run))
        words = [
            "-m",
            "qslm_edge",
            "export",
            "-p",
            PROFILE,
            "--setting",
            given,
            "--quantiser",
            "rtn",
            "-o",
            str(run),
        ]
        words += ["--search-windows", "2", "--report-windows", "2", "--window", "16"]
        if shape.layers is not None:
            words += ["--model", str(checkpoint(shape, place)), "--embedding", "dense"]
        _run(words)
        stamp.write_text(exporter_digest(), "utf-8")
    _as_deployed(target / "model.bin")
    return target


def _as_deployed(weights: Path) -> None:
    """Read the weights from the disk once, as after a copy and a start of the board.

    What was just written lies in the page cache in pages of 4 KiB; what is read into an empty one may lie in larger
    ones, which a mapping then has, and that alone makes a step up to a third faster.
    """
    if not hasattr(os, "posix_fadvise"):
        return
    with weights.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        while file.read(2**22):
            pass


@cache
def exporter_digest() -> str:
    """sha256 of the code that writes bundles: one that another version wrote is exported anew."""
    files = sorted([*(ROOT / "exporters").glob("*.py"), *(ROOT / "qslm_edge" / "bundle").glob("*.py")])
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def bytes_a_token(target: Path) -> int:
    """Bytes of weights that a decoded token reads: all but the embedding table, of which it reads a row."""
    graph = onnx.load(str(target / "model.onnx"), load_external_data=False).graph
    total = 0
    for tensor in graph.initializer:
        sizes = {entry.key: int(entry.value) for entry in tensor.external_data if entry.key == "length"}
        rows = tensor.dims[0] if tensor.name == "emb" or tensor.name.startswith("emb.") else 1
        total += sizes.get("length", 0) // rows
    return total


def _mixed(shape: Shape, run: Path) -> Path:
    """Embedding, head, outputs and receptances of ffn at 8 bits, its keys at 2, the rest at 4."""
    layers = shape.layers or json.loads((model_path() / "config.json").read_text("utf-8"))["n_layer"]
    levels = {"emb": "8g64", "head": "8g64"}
    parts = {"att.key": 4, "att.value": 4, "att.receptance": 4, "att.output": 8}
    parts |= {"ffn.key": 2, "ffn.receptance": 8, "ffn.value": 4}
    for layer in range(layers):
        levels |= {f"blocks.{layer}.{part}": f"{bits}g64" for part, bits in parts.items()}
    path = run / "setting.json"
    path.write_text(json.dumps(levels, indent=1) + "\n", "utf-8")
    return path


def _run(words: list[str]) -> None:
    done = subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        said = done.stderr.strip().splitlines()[-1:] or [f"exit status {done.returncode}"]
        raise SystemExit(f"{' '.join(words)}\n{said[0]}")
