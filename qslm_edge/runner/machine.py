"""What this host is, read from the host itself: /proc/cpuinfo, the device tree, os-release, the affinity mask, NVML."""

from __future__ import annotations

import dataclasses
import os
import platform
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qslm_edge.runner.observe import Observed, is_live, read_text, run_command
from qslm_edge.runner.power.base import Unavailable
from qslm_edge.runner.power.nvml import ask_nvml, gpu_handles, start_nvml

__all__ = ["ARCHES", "Machine", "identify"]

ARCHES = {"amd64": "x86_64", "x64": "x86_64", "arm64": "aarch64"}
"""Spellings of other systems, and Linux's."""

# /proc/cpuinfo of ARM names cores by number only: (implementer, part), as in the kernel's cputype.h.
ARM_CORES = {
    (0x41, 0xD03): "Cortex-A53",
    (0x41, 0xD05): "Cortex-A55",
    (0x41, 0xD07): "Cortex-A57",
    (0x41, 0xD08): "Cortex-A72",
    (0x41, 0xD0B): "Cortex-A76",
    (0x41, 0xD0C): "Neoverse-N1",
    (0x41, 0xD40): "Neoverse-V1",
    (0x41, 0xD41): "Cortex-A78",
    (0x41, 0xD42): "Cortex-A78AE",
    (0x41, 0xD49): "Neoverse-N2",
    (0x41, 0xD4B): "Cortex-A78C",
    (0x41, 0xD4F): "Neoverse-V2",
    (0x41, 0xD83): "Neoverse-V3AE",
    (0x41, 0xD84): "Neoverse-V3",
    (0x4E, 0x004): "Carmel",
}


@dataclass(frozen=True)
class Machine:
    """One host; what it does not tell is None or empty, with the reason under the name of the field.

    Args:
        arch: "x86_64", "aarch64", ... in the spelling of Linux.
        cpu_model: name of the processor, or of its kinds of core with their number.
        features: instruction-set flags that every core has, as in /proc/cpuinfo.
        cores_usable: cores that this process may run on.
        device_tree_model: name of the board as its firmware gives it.
        os_name: pretty name of the operating system (of the image, in a container).
        kernel: release of the kernel.
        total_memory_bytes: memory that the kernel manages.
        python_version: version of this interpreter.
        gpu_names: names of the GPUs.
        container: what says that this is a container; None if nothing does.
        reasons: name of each field without a value, and why.
    """

    arch: str
    cpu_model: str | None
    features: tuple[str, ...]
    cores_usable: int | None
    device_tree_model: str | None
    os_name: str | None
    kernel: str | None
    total_memory_bytes: int | None
    python_version: str
    gpu_names: tuple[str, ...]
    container: str | None
    reasons: Mapping[str, str] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """The host in a few words: board or processor, architecture, GPU."""
        name = self.device_tree_model or self.cpu_model or "an unnamed processor"
        return ", ".join([f"{name} ({self.arch})", *dict.fromkeys(self.gpu_names)])

    def to_dict(self) -> dict[str, object]:
        """All fields, ready for JSON."""
        return {**dataclasses.asdict(self), "label": self.label}


def _first(*found: Observed[str]) -> Observed[str]:
    """The first value that is there and not empty, else the first failure."""
    return next((item for item in found if item.value), dataclasses.replace(found[0], value=None))


def _fields(cpuinfo: str, name: str) -> list[str]:
    return [text.strip() for text in re.findall(rf"^{name}[ \t]*:(.*)$", cpuinfo, re.MULTILINE)]


def _arch(cpuinfo: Observed[str], live: bool) -> str:
    if not live and _fields(cpuinfo.value or "", "CPU implementer"):
        return "aarch64"
    if not live and _fields(cpuinfo.value or "", "vendor_id"):
        return "x86_64"
    raw = platform.machine().lower()
    return ARCHES.get(raw, raw)


def _cpu_model(cpuinfo: Observed[str], live: bool) -> Observed[str]:
    def convert(text: str) -> str:
        named = [name for name in _fields(text, "model name") if name]
        if named and not _fields(text, "CPU part"):
            return named[0]
        parts = zip(_fields(text, "CPU implementer"), _fields(text, "CPU part"), strict=False)
        numbers = Counter((maker, part) for maker, part in parts)
        if not numbers:
            raise ValueError("names no processor")
        names = []
        for (maker, part), count in numbers.items():
            try:
                name = ARM_CORES.get((int(maker, 16), int(part, 16)))
            except ValueError:
                name = None
            names.append(f"{count}x {name or f'ARM implementer {maker} part {part}'}")
        return " + ".join(names)

    model = cpuinfo.map(convert)
    if model.value is None and live:
        processor = platform.processor() or None
        return _first(
            model,
            run_command(["sysctl", "-n", "machdep.cpu.brand_string"]),
            Observed(processor, "platform.processor()"),
        )
    return model


def _features(cpuinfo: Observed[str]) -> Observed[tuple[str, ...]]:
    def convert(text: str) -> tuple[str, ...]:
        cores = [set(line.split()) for line in _fields(text, "(?:flags|Features)")]
        if not cores:
            raise ValueError("has no flags or Features line")
        return tuple(sorted(set.intersection(*cores)))

    return cpuinfo.map(convert)


def _cores_usable() -> Observed[int]:
    affinity = getattr(os, "sched_getaffinity", None)  # Linux only
    if affinity is not None:
        return Observed(len(affinity(0)), "sched_getaffinity")
    return Observed(os.cpu_count(), "os.cpu_count()", None if os.cpu_count() else "not known to Python")


def _total_memory(root: Path) -> Observed[int]:
    text = read_text(root, "proc/meminfo")
    match = re.search(r"^MemTotal:[ \t]*([0-9]{1,15}) kB", text.value or "", re.MULTILINE)
    if match is not None:
        return Observed(int(match.group(1)) * 1024, text.source)
    if is_live(root) and hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        return Observed(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"), "sysconf")
    return Observed(None, text.source, text.reason or "no MemTotal line")


def _os_name(root: Path) -> Observed[str]:
    def convert(text: str) -> str:
        match = re.search(r"^PRETTY_NAME=(.*)$", text, re.MULTILINE)
        name = match.group(1).strip().strip("\"'") if match else ""
        if not name:
            raise ValueError("has no PRETTY_NAME")
        return name

    files = [
        read_text(root, path, strict=False).map(convert) for path in ("etc/os-release", "usr/lib/os-release")
    ]
    if is_live(root):
        files.append(Observed(platform.platform(aliased=True), "platform.platform()"))
    return _first(*files)


def _gpu_names(live: bool, nvml: Any | None) -> Observed[tuple[str, ...]]:
    if nvml is None and not live:
        return Observed(None, "NVML", "a tree of files has no GPU")
    module = start_nvml(nvml)
    if not isinstance(module, Unavailable):
        names = tuple(name for _, name, _ in gpu_handles(module))
        ask_nvml(module, "nvmlShutdown")
        if names:
            return Observed(names, "nvmlDeviceGetName")
    why = module.reason if isinstance(module, Unavailable) else "NVML shows no GPU"
    if not live:
        return Observed(None, "NVML", why)
    listed = run_command(["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"])
    found = tuple(line.strip() for line in (listed.value or "").splitlines() if line.strip())
    return Observed(
        found or None, listed.source, None if found else f"{why}; {listed.reason or 'no GPU listed'}"
    )


def _container(root: Path) -> str | None:
    """What gives a container away; the absence of a hint proves nothing."""
    for name in (".dockerenv", "run/.containerenv", "run/systemd/container"):
        if (root / name).exists():
            return f"/{name}"
    groups = read_text(root, "proc/1/cgroup", strict=False).value or ""
    match = re.search(r"docker|kubepods|libpod|lxc|containerd", groups)
    if match is not None:
        return f"{match.group(0)} in /proc/1/cgroup"
    if is_live(root) and os.environ.get("container"):  # noqa: SIM112 - systemd and podman spell it so
        return f"environment variable container={os.environ['container'][:40]}"  # noqa: SIM112
    return None


def identify(root: Path = Path("/"), nvml: Any | None = None) -> Machine:
    """Read what this host is.

    Args:
        root: "/" on a host, a folder with the same tree in a test: then no command and no library is asked,
            while usable cores and Python remain those of this process, and its architecture where the tree
            has no /proc/cpuinfo.
        nvml: a module with the functions of pynvml, for tests.

    Returns:
        The machine, with a reason for each thing that it does not tell. Nothing in it names the owner.
    """
    live = is_live(root)
    cpuinfo = read_text(root, "proc/cpuinfo", strict=False)
    kernel = read_text(root, "proc/sys/kernel/osrelease", strict=False)
    board = _first(
        read_text(root, "proc/device-tree/model"), read_text(root, "sys/firmware/devicetree/base/model")
    )
    cpu_model, features = _cpu_model(cpuinfo, live), _features(cpuinfo)
    gpu_names = _gpu_names(live, nvml)
    found: dict[str, Observed[Any]] = {
        "cpu_model": cpu_model,
        "features": features,
        "cores_usable": _cores_usable(),
        "device_tree_model": board,
        "os_name": _os_name(root),
        "kernel": _first(kernel, Observed(platform.release(), "platform.release()")) if live else kernel,
        "total_memory_bytes": _total_memory(root),
        "gpu_names": gpu_names,
    }
    return Machine(
        arch=_arch(cpuinfo, live),
        cpu_model=cpu_model.value,
        features=features.value or (),
        cores_usable=found["cores_usable"].value,
        device_tree_model=board.value,
        os_name=found["os_name"].value,
        kernel=found["kernel"].value,
        total_memory_bytes=found["total_memory_bytes"].value,
        python_version=platform.python_version(),
        gpu_names=gpu_names.value or (),
        container=_container(root),
        reasons={
            name: f"{item.source}: {item.reason or 'empty'}"
            for name, item in found.items()
            if item.value is None
        },
    )
