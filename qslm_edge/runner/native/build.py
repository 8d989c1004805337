"""Compiling the native engine on the machine that runs it, once, into the user's cache.

The source travels in the package and in run.pyz. A library is kept under a digest of all that decides what it is:
source, flags (which name the GPU), compiler and processor; it is written aside and renamed, so that there is never half
a library.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
import time
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from qslm_edge.errors import RuntimeFault, UsageError
from qslm_edge.runner.observe import read_text

__all__ = ["ISAS", "ISA_VARIABLE", "LIBRARY_VARIABLE", "Built", "build", "cpu_identity", "gpu_flag"]

ISA_VARIABLE, LIBRARY_VARIABLE = "QSLM_EDGE_NATIVE_ISA", "QSLM_EDGE_NATIVE_LIBRARY"
ISAS = ("native", "avx2", "neon", "portable")
"""native: the best that this processor has; the others leave out newer instructions than they name."""
LIBRARY, RECORD = "libqslm.so", "build.json"
TIMEOUT_S = 600
COMMON_FLAGS = (
    *("-std=c++17", "-O3", "-ffp-contract=off", "-fno-math-errno", "-fPIC", "-shared", "-pthread"),
    *("-fvisibility=hidden", "-Wno-psabi"),
)
NEON_FLAGS, DOTPROD_FLAGS = ("-march=armv8-a",), ("-march=armv8.2-a+dotprod",)
_CUDA_FLAGS = (
    *("-std=c++17", "-O3", "-shared", "--cudart=static"),
    *("-Xcompiler", "-fPIC", "-Xcompiler", "-fvisibility=hidden"),
)


@dataclass(frozen=True)
class Built:
    """A library that is there.

    Attributes:
        path: the library.
        compiler: first line of what the compiler says of itself.
        flags: of the compiler.
        cpu: what the library was made for.
        seconds: that compiling took; None when it was there already.
    """

    path: Path
    compiler: str
    flags: tuple[str, ...]
    cpu: str
    seconds: float | None

    def to_dict(self) -> dict[str, object]:
        """All fields, ready for JSON."""
        return {
            "library": str(self.path),
            "compiler": self.compiler,
            "flags": list(self.flags),
            "cpu": self.cpu,
            "seconds": self.seconds,
        }


def build(cuda: bool = False, isa: str | None = None) -> Built:
    """The library for this machine, compiled if it is not in the cache.

    Args:
        cuda: the GPU engine, by nvcc.
        isa: one of ISAS; None takes $QSLM_EDGE_NATIVE_ISA, else the processor's own.

    Raises:
        RuntimeFault: no compiler, it fails, or the cache cannot be written.
        UsageError: an instruction set that does not exist.
    """
    named = os.environ.get(LIBRARY_VARIABLE + ("_CUDA" if cuda else ""))
    if named:
        return _given(Path(named))
    sources = _sources(cuda)
    compiler = _nvcc() if cuda else _compiler()
    flags = (
        (*_CUDA_FLAGS, gpu_flag())
        if cuda
        else (*COMMON_FLAGS, *_isa_flags(isa or os.environ.get(ISA_VARIABLE) or ISAS[0]))
    )
    version, cpu = _version(compiler), cpu_identity()
    facts = json.dumps([compiler, version, flags, cpu, sorted((n, d.decode()) for n, d in sources.items())])
    key = hashlib.sha256(facts.encode()).hexdigest()[:24]
    place = _cache() / key
    if (place / LIBRARY).is_file():
        return Built(place / LIBRARY, version, flags, cpu, None)
    begun = time.monotonic()
    try:
        place.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with tempfile.TemporaryDirectory(prefix=f".{key}-", dir=place.parent) as work:
            _compile(Path(work), sources, [*compiler, *flags], cuda)
            (Path(work) / RECORD).write_text(
                json.dumps({"cpu": cpu, "compiler": version, "flags": flags}), "utf-8"
            )
            _install(Path(work), place)
    except OSError as error:
        raise RuntimeFault(
            "the native engine cannot be kept",
            where=error.filename or place,
            found=error.strerror or error,
            hint="let XDG_CACHE_HOME name a folder that is writable",
        ) from None
    return Built(place / LIBRARY, version, flags, cpu, time.monotonic() - begun)


def _given(path: Path) -> Built:
    """A library that the user names, made elsewhere; its build.json says for what."""
    record = path.with_name(RECORD)
    try:
        facts = json.loads(record.read_text("utf-8"))
        compiler, flags, cpu = str(facts["compiler"]), tuple(map(str, facts["flags"])), str(facts["cpu"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RuntimeFault(
            "a library without a record of its making",
            where=f"{LIBRARY_VARIABLE}={path}",
            found=f"{record}: {error}",
            hint=f"copy {RECORD} along with it",
        ) from None
    if not path.is_file():
        raise RuntimeFault("no such library", where=f"{LIBRARY_VARIABLE}={path}")
    if cpu != cpu_identity():
        raise RuntimeFault(
            "the library was built for another processor",
            where=path,
            found=cpu,
            allowed=cpu_identity(),
            hint="run build-native on this machine",
        )
    return Built(path, compiler, flags, cpu, None)


@lru_cache(maxsize=1)
def cpu_identity() -> str:
    """Architecture, name and a digest of the features of the processor: what -march=native goes by."""
    found = _cpuinfo()
    name = found.get("model name") or found.get("CPU part") or platform.processor() or "unknown processor"
    digest = hashlib.sha256(" ".join(sorted(_features(found))).encode()).hexdigest()[:8]
    return f"{platform.machine()} {name} features {digest}"


def _cpuinfo() -> dict[str, str]:
    """What /proc/cpuinfo says of the first core; empty where there is none."""
    text = read_text(Path("/"), "proc/cpuinfo", strict=False).value or ""
    fields = dict(
        reversed([part for part in (line.partition(":")[::2] for line in text.splitlines()) if part[1]])
    )
    return {key.strip(): value.strip() for key, value in fields.items()}


def _features(cpuinfo: dict[str, str]) -> list[str]:
    """Instructions that a core has, as Linux calls them."""
    return (cpuinfo.get("flags") or cpuinfo.get("Features") or "").split()


_CAPABILITY_MAJOR, _CAPABILITY_MINOR = 75, 76  # attributes of cuda.h


def gpu_flag(library: Any | None = None) -> str:
    """What tells nvcc the GPU that CUDA counts first: its compute capability, or to look for one itself.

    Args:
        library: stands in for libcuda in tests.
    """
    device, major, minor = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    try:
        library = library or ctypes.CDLL("libcuda.so.1")
    except OSError:
        return "-arch=native"
    failed = (
        library.cuInit(0)
        or library.cuDeviceGet(ctypes.byref(device), 0)
        or library.cuDeviceGetAttribute(ctypes.byref(major), _CAPABILITY_MAJOR, device)
        or library.cuDeviceGetAttribute(ctypes.byref(minor), _CAPABILITY_MINOR, device)
    )
    return "-arch=native" if failed else f"-arch=sm_{major.value}{minor.value}"


def _sources(cuda: bool) -> dict[str, bytes]:
    """Source files by name; one folder, whether from files or from inside run.pyz."""
    folder = files("qslm_edge.runner.native")
    found = _files_of(folder, (".h",) if cuda else (".h", ".cpp"))
    if cuda:
        found |= _files_of(folder.joinpath("cuda"), (".h", ".cuh", ".cu"))
    if not any(name.endswith((".cpp", ".cu")) for name in found):
        raise RuntimeFault(
            "the source of this engine is not in this program", where="--cuda" if cuda else None
        )
    return found


def _files_of(folder: Any, endings: tuple[str, ...]) -> dict[str, bytes]:
    if not folder.is_dir():
        return {}
    return {item.name: item.read_bytes() for item in folder.iterdir() if item.name.endswith(endings)}


def _compiler() -> list[str]:
    """The C++ compiler: $CXX with its arguments, else the first that is there."""
    named = shlex.split(os.environ.get("CXX", ""))
    for words in [named] if named else [["c++"], ["g++"], ["clang++"]]:
        if path := shutil.which(words[0]):
            return [path, *words[1:]]
    raise RuntimeFault(
        "no C++ compiler",
        where=f"CXX={named[0]}" if named else None,
        found="nothing" if named else "no c++, g++ or clang++",
        hint="install one (Debian, Ubuntu: apt install g++), or leave --engine native out",
    )


def _nvcc() -> list[str]:
    for name in (os.environ.get("NVCC") or "nvcc", "/usr/local/cuda/bin/nvcc"):
        if path := shutil.which(name):
            return [path]
    raise RuntimeFault(
        "no CUDA compiler", found="no nvcc", hint="install the CUDA toolkit, or let NVCC name it"
    )


def _isa_flags(isa: str) -> tuple[str, ...]:
    if isa not in ISAS:
        raise UsageError("unknown instruction set", where=ISA_VARIABLE, found=isa, allowed=", ".join(ISAS))
    machine = platform.machine().lower()
    is_x86, is_arm = machine in ("x86_64", "amd64"), machine in ("aarch64", "arm64")
    if isa == "avx2":
        if not is_x86:
            raise UsageError("AVX2 is of x86-64", where=ISA_VARIABLE, found=platform.machine())
        return ("-march=x86-64-v3",)
    if isa == "neon":
        if not is_arm:
            raise UsageError("NEON is of 64-bit ARM", where=ISA_VARIABLE, found=platform.machine())
        return NEON_FLAGS
    if is_arm and "asimddp" in _features(_cpuinfo()):
        native = DOTPROD_FLAGS  # a compiler older than the core takes -mcpu=native for plain ARMv8.0
    else:
        native = ("-march=native",) if is_x86 else ("-mcpu=native",)
    return (*native, "-DQSLM_PORTABLE") if isa == "portable" else native


@lru_cache(maxsize=4)
def _version_of(program: str) -> str:
    done = subprocess.run(
        [program, "--version"], capture_output=True, text=True, check=False, timeout=TIMEOUT_S
    )
    lines = [line for line in done.stdout.splitlines() if line.strip()]
    # nvcc names itself first and its version in the last lines
    return " ".join(lines[-2:]) if lines and "nvcc" in lines[0] else (lines or ["unknown"])[0]


def _version(compiler: list[str]) -> str:
    try:
        return _version_of(compiler[0])
    except (OSError, subprocess.SubprocessError) as error:
        raise RuntimeFault("the compiler does not start", where=compiler[0], found=error) from None


def _compile(work: Path, sources: dict[str, bytes], command: list[str], cuda: bool) -> None:
    for name, data in sources.items():
        (work / name).write_bytes(data)
    units = sorted(name for name in sources if name.endswith(".cu" if cuda else ".cpp"))
    try:
        done = subprocess.run(
            [*command, *units, "-o", LIBRARY],
            cwd=work,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            timeout=TIMEOUT_S,
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise RuntimeFault("the compiler does not start", where=command[0], found=error) from None
    if done.returncode:
        said = (done.stderr + done.stdout).splitlines()
        first = next((line for line in said if "error" in line.lower()), said[0] if said else "nothing")
        raise RuntimeFault(
            "the native engine does not compile",
            where=command[0],
            found=first.strip()[:300],
            hint=("build where the GPU is, let NVCC" if cuda else "let CXX")
            + " name another compiler, or choose another --engine",
        )


def _install(work: Path, place: Path) -> None:
    """Move the library and its record to their place; another process may have been faster."""
    ready = work / "ready"
    ready.mkdir()
    for name in (LIBRARY, RECORD):
        os.replace(work / name, ready / name)
    try:
        os.replace(ready, place)
    except OSError:
        if not (place / LIBRARY).is_file():
            raise


def _cache() -> Path:
    override = os.environ.get("QSLM_EDGE_CACHE")
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return (Path(override) if override else base / "qslm-edge") / "native"
