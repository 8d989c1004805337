"""The lanes of 64-bit ARM, cross-compiled and emulated: the same bits as the portable ones of this machine.

On an ARM machine the usual tests run them.
"""

from __future__ import annotations

import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from qslm_edge.runner.native import build as module
from tests.helpers.native import library, needs_compiler

COMPILER = shutil.which("aarch64-linux-gnu-g++")
EMULATOR = shutil.which("qemu-aarch64") or shutil.which("qemu-aarch64-static")
HERE, SOURCE = Path(__file__).parent, Path(module.__file__).parent
MODELS = HERE / "random_models.cpp"
FLAGS = {"neon-dotprod": module.DOTPROD_FLAGS, "neon": module.NEON_FLAGS}

pytestmark = [
    needs_compiler,
    pytest.mark.skipif(
        COMPILER is None or EMULATOR is None,
        reason="no aarch64-linux-gnu-g++ or no qemu-aarch64 (Debian: g++-aarch64-linux-gnu, qemu-user)",
    ),
]


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The program that runs random models, for each set of instructions of ARM."""
    folder = tmp_path_factory.mktemp("aarch64")

    def compiled(name: str) -> Path:
        flags = [flag for flag in module.COMMON_FLAGS if flag not in ("-shared", "-fPIC")]
        units = [str(path) for path in sorted(SOURCE.glob("*.cpp"))]
        words = [*flags, *FLAGS[name], "-static", f"-I{SOURCE}", *units, str(MODELS), "-o", name]
        subprocess.run([str(COMPILER), *words], cwd=folder, check=True)
        return folder / name

    with ThreadPoolExecutor(2) as pool:
        return dict(zip(FLAGS, pool.map(compiled, FLAGS), strict=True))


@pytest.fixture(scope="module")
def portable(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """What the same program says of the portable lanes on this machine."""
    program = tmp_path_factory.mktemp("portable") / "models"
    engine = library("portable")
    words = ["-std=c++17", f"-I{SOURCE}", str(MODELS), str(engine), f"-Wl,-rpath,{engine.parent}", "-pthread"]
    compiler = next(path for name in ("c++", "g++", "clang++") if (path := shutil.which(name)))
    subprocess.run([compiler, *words, "-o", str(program)], check=True)
    return subprocess.run([program], capture_output=True, text=True, check=True).stdout.splitlines()


def emulated(program: Path, core: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(EMULATOR), "-cpu", core, str(program)], capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize(("name", "core"), [("neon-dotprod", "cortex-a76"), ("neon", "cortex-a72")])
def test_the_bits_are_those_of_the_portable_lanes(
    name: str, core: str, programs: dict[str, Path], portable: list[str]
) -> None:
    lines = emulated(programs[name], core).stdout.splitlines()
    assert (lines[0], portable[0]) == (f"cpu {name}", "cpu portable")
    assert lines[1:] == portable[1:]
    assert len(lines) == 22


def test_a_core_without_the_instructions_is_refused(programs: dict[str, Path]) -> None:
    done = emulated(programs["neon-dotprod"], "cortex-a72")
    assert done.returncode == 1
    assert done.stdout.endswith(
        "error 3: this processor lacks instructions that the library was compiled to\n"
    )
