"""Versions of what took part in a measurement: kernel, driver, L4T, Python, numpy, onnxruntime."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

import numpy as np

from qslm_edge import __version__
from qslm_edge.runner.observe import Observed, is_live, read_text
from qslm_edge.runner.power.base import Unavailable
from qslm_edge.runner.power.nvml import ask_nvml, start_nvml

__all__ = ["read_versions"]


def read_versions(
    onnxruntime: str, root: Path = Path("/"), nvml: Any | None = None
) -> dict[str, dict[str, object]]:
    """Every version with its source, or the reason why it is absent; ready for JSON.

    Args:
        onnxruntime: version of the loaded runtime.
        root: "/" on a host, a folder with the same tree in a test.
        nvml: a module with the functions of pynvml, for tests.
    """
    found: dict[str, Observed[str]] = {
        "qslm_edge": Observed(__version__, "this runner"),
        "python": Observed(platform.python_version(), "platform.python_version()"),
        "numpy": Observed(np.__version__, "numpy.__version__"),
        "onnxruntime": Observed(onnxruntime, "onnxruntime.__version__"),
        "kernel": read_text(root, "proc/sys/kernel/osrelease", strict=False),
        "kernel_build": read_text(root, "proc/sys/kernel/version", strict=False),
        "l4t": read_text(root, "etc/nv_tegra_release", strict=False).map(_first_line),
        "nvidia_driver": _driver(is_live(root), nvml),
    }
    return {name: item.to_dict() for name, item in found.items()}


def _first_line(text: str) -> str:
    if not text:
        raise ValueError("is empty")
    return text.splitlines()[0]


def _driver(live: bool, nvml: Any | None) -> Observed[str]:
    function = "nvmlSystemGetDriverVersion"
    if nvml is None and not live:
        return Observed(None, function, "a tree of files has no driver")
    module = start_nvml(nvml)
    if isinstance(module, Unavailable):
        return Observed(None, function, module.reason)
    version = ask_nvml(module, function)
    ask_nvml(module, "nvmlShutdown")
    return version.map(lambda text: text.decode("ascii", "replace") if isinstance(text, bytes) else str(text))
