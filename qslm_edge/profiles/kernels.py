"""Which onnxruntime release first runs which packed width, by CPU class and by provider.

A profile may ask for more than these minima, never for less: below them onnxruntime either refuses the
model or dequantises the whole matrix on every call (25 to 100 times slower, without a warning), and CUDA
below 1.31 is not known to read 2 bits rightly. The CPU releases were found by running the published wheels,
ARM and AVX2 under instruction-set emulation; so they say which path runs and with what error, never how
fast. Of CUDA's, 2 bits was read out of the wheels and the others are unconfirmed.
``accuracy_level`` 4 means activations rounded to int8; at 0 they stay float, for which CPUs have a kernel at 4 bits
only. CUDA ignores the level and never rounds: naming 0 there makes the search compute what the GPU does.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = [
    "CPU_CLASSES",
    "CPU_PROVIDER",
    "CUDA_PROVIDER",
    "FLOAT_MINIMUM",
    "Kernel",
    "kernels",
    "version_key",
]

CPU_PROVIDER = "CPUExecutionProvider"
CUDA_PROVIDER = "CUDAExecutionProvider"

FLOAT_MINIMUM = "1.18.0"
"""First release that loads opset 21 with IR 10: what 32- and 16-bit weights need, and nothing else."""

_FAST_BLOCKS = (32, 64, 128)
_ALL_BLOCKS = (16, 32, 64, 128, 256)


@dataclass(frozen=True)
class Kernel:
    """One packed width that runs well: from which release, at which accuracy levels, in which blocks."""

    min_onnxruntime: str
    accuracy_levels: tuple[int, ...]
    block_sizes: tuple[int, ...]


CPU_CLASSES: dict[str, dict[int, Kernel]] = {
    "arm64-nodotprod": {
        4: Kernel("1.21.1", (0,), _ALL_BLOCKS),  # level 4 is accepted and ignored, as on CUDA
    },
    "arm64-dotprod": {
        8: Kernel("1.23.2", (4,), _ALL_BLOCKS),  # 1.22.1 loads the model, then fails at run
        4: Kernel("1.19.2", (0, 4), _ALL_BLOCKS),
        2: Kernel("1.28.0", (4,), _FAST_BLOCKS),
    },
    "x86-avx2": {
        8: Kernel("1.22.1", (4,), _ALL_BLOCKS),
        4: Kernel("1.22.1", (0, 4), _ALL_BLOCKS),
        2: Kernel("1.29.0", (4,), _FAST_BLOCKS),
    },
    "x86-avx512": {
        8: Kernel("1.22.1", (4,), _ALL_BLOCKS),
        4: Kernel("1.19.2", (0, 4), _ALL_BLOCKS),
        2: Kernel("1.28.0", (4,), _FAST_BLOCKS),
    },
}

_CUDA: dict[int, Kernel] = {
    8: Kernel("1.22.0", (0,), _ALL_BLOCKS),
    4: Kernel("1.18.0", (0,), _ALL_BLOCKS),
    2: Kernel("1.31.0", (0,), _FAST_BLOCKS),
}


def kernels(provider: str, kernel_class: str | None) -> dict[int, Kernel]:
    """Return the packed widths that a provider runs well.

    Args:
        provider: an onnxruntime execution provider.
        kernel_class: key of ``CPU_CLASSES``; None where the host's CPU is not part of the board.
    """
    if provider == CUDA_PROVIDER:
        return _CUDA
    return CPU_CLASSES[kernel_class] if kernel_class is not None else {}


def version_key(version: str) -> tuple[int, ...]:
    """Turn "1.23.2" into (1, 23, 2), which compares as versions do."""
    return tuple(int(part) for part in version.split("."))
