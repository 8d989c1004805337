"""onnxruntime as a library: importing it, its version, the names of its execution providers."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from qslm_edge.errors import RuntimeFault

__all__ = [
    "CPU",
    "NATIVE",
    "NATIVE_CUDA",
    "RUNTIME_PACKAGES",
    "bundle_path_of",
    "first_line",
    "import_onnxruntime",
    "uses_gpu",
    "version_tuple",
]

RUNTIME_PACKAGES = "onnxruntime (or the board vendor's build of it)"
CPU = "CPUExecutionProvider"
NATIVE, NATIVE_CUDA = "native", "native-cuda"
"""The runner's own engines, in places where else a provider of onnxruntime stands."""
NVIDIA = ("CUDAExecutionProvider", "TensorrtExecutionProvider", "NvTensorRTRTXExecutionProvider", NATIVE_CUDA)


def uses_gpu(provider: str) -> bool:
    """Whether a provider or engine works on an NVIDIA GPU, whose power NVML then tells."""
    return provider in NVIDIA


def version_tuple(text: str) -> tuple[int, ...]:
    """Leading numbers of a version, for comparison."""
    return tuple(int(part) for part in re.findall(r"\d+", text)[:3])


def import_onnxruntime(minimum: str | None = None) -> Any:
    """The onnxruntime module, with its telemetry off.

    Official builds from 1.31 on send usage data by default, which costs a thread and 2 MB and would disturb
    what is measured here; ORT_DISABLE_TELEMETRY=0 in the environment leaves it on.

    Raises:
        RuntimeFault: not installed, broken, or older than the bundle needs.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # read once, while the library loads
    try:
        import onnxruntime

        version = str(onnxruntime.__version__)
    except Exception as error:  # noqa: BLE001 - a broken build raises whatever it likes while it loads
        raise RuntimeFault(
            "onnxruntime cannot be imported",
            found=first_line(error),
            hint=f"install {RUNTIME_PACKAGES}" + (f", {minimum} or newer" if minimum else ""),
        ) from None
    if minimum is not None and version_tuple(version) < version_tuple(minimum):
        raise RuntimeFault(
            "onnxruntime is too old for this bundle",
            found=version,
            allowed=f"{minimum} or newer",
            hint="update it, or export again for a profile with this runtime",
        )
    return onnxruntime


def first_line(error: Exception) -> str:
    """What an error of a library says, cut to one line."""
    text = str(error).strip().splitlines()
    return (text[0] if text else type(error).__name__)[:300]


def bundle_path_of(script: str) -> Path | None:
    """The bundle that a run.pyz lies in, None when it was not started as one."""
    path = Path(script).resolve()
    return path.parent if path.suffix == ".pyz" else None
