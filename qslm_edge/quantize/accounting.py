"""Bytes of a setting: what the weights file will hold, and what the process will need on the device.

Weight bytes are exact and count packed codes, scales, zero points and every float tensor. The process peak is a
prediction by a rule fitted to measurements of ONNX Runtime 1.31.1 on x86-64 (to about 3 MiB, above the bare process).
"""

from __future__ import annotations

from dataclasses import dataclass

from qslm_edge.quantize.levels import Level, Setting
from qslm_edge.spikegpt.hierarchy import Block, Hierarchy, Module

__all__ = [
    "ProcessMemory",
    "block_bytes",
    "matrix_bytes",
    "predict_memory",
    "predict_peak_rss_bytes",
    "weight_bytes",
]

MIB = 2**20
BARE_PROCESS_BYTES = 73 * MIB
"""Python, numpy and onnxruntime before a session: 44 to 73 MiB measured; the upper end, to stay on the safe side."""
SESSION_BYTES, WORKING_BYTES = 18 * MIB, 5 * MIB
FLOAT16_BYTES = 4.5
"""Per weight stored in float16: it is folded to float32 at load, and up to 2.25 times the file was measured."""


def matrix_bytes(module: Module, level: Level) -> int:
    """Bytes of one matrix at one level, as `PackedMatrix.nbytes` will count them."""
    module = module.with_hidden(level.units)
    if level.simulated:
        return (module.n_params * level.bits + 7) // 8
    if not level.is_packed:
        return module.n_params * level.bits // 8
    groups = module.columns // (level.group_size or 1)
    codes = module.rows * module.columns * level.bits // 8
    zeros = 0 if level.midrise else (groups * level.bits + 7) // 8
    return codes + module.rows * (module.scale_bits // 8 * groups + zeros)


def block_bytes(block: Block, setting: Setting) -> int:
    """Bytes of one block: its matrices at their levels and its float tensors."""
    return 4 * block.n_float_params + sum(matrix_bytes(m, setting[m.name]) for m in block.modules)


def weight_bytes(hierarchy: Hierarchy, setting: Setting) -> int:
    """Bytes of all weights of a setting (the paper's memory constraint; `--weights-budget`)."""
    return sum(block_bytes(block, setting) for block in hierarchy.blocks)


def _resident(module: Module, level: Level) -> int:
    module = module.with_hidden(level.units)
    if module.kind == "embedding":
        return 0  # stays in the mapped file; a token touches one row
    if not level.is_packed:
        return int((FLOAT16_BYTES if level.bits == 16 else 4) * module.n_params)
    group = level.group_size or 1
    groups = module.columns // group
    # float16 scales become float32 ones when the model loads, and the pages of the file stay touched
    extra = 2 * groups if module.scale_bits == 16 else 0
    if level.midrise:  # the scales once more, transposed and prepacked, for the product with the block sums
        extra += 8 * groups
    if level.accuracy_level == 0:
        return module.rows * (groups * (group * level.bits // 8) + extra)
    # codes, a prepacked scale and a block sum for every group, which 2 bits pad to multiples of four; and the
    # original scales
    padded = -(-groups // 4) * 4 if level.bits == 2 else groups
    return module.rows * (padded * (level.bits * group // 8 + 8) + groups * 4 + extra)


def _code_bytes(module: Module, level: Level) -> int:
    module = module.with_hidden(level.units)
    return module.n_params * level.bits // 8 if level.is_packed else 4 * module.n_params


def _running_scale_bytes(module: Module, level: Level) -> int:
    """With float activations the kernel reads the float32 scales while it runs."""
    if not level.is_packed or level.accuracy_level:
        return 0
    module = module.with_hidden(level.units)
    return 4 * module.rows * (module.columns // (level.group_size or 1))


@dataclass(frozen=True)
class ProcessMemory:
    """Predicted resident memory of a decoding process on the CPU execution provider, part by part.

    Attributes:
        bare_bytes: Python, numpy and onnxruntime before a session.
        matrices_bytes: matrices as the session keeps them, prepacked; the embedding stays in the mapped file.
        session_bytes: what a session takes besides.
        loading_bytes: the codes of the largest matrix once more, while it is prepacked.
        running_bytes: what a step touches, the state of one stream included.
    """

    bare_bytes: int
    matrices_bytes: int
    session_bytes: int
    loading_bytes: int
    running_bytes: int

    @property
    def after_load_bytes(self) -> int:
        return self.bare_bytes + self.matrices_bytes + self.session_bytes

    @property
    def load_peak_bytes(self) -> int:
        return self.after_load_bytes + self.loading_bytes

    @property
    def steady_bytes(self) -> int:
        return self.after_load_bytes + self.running_bytes

    @property
    def peak_bytes(self) -> int:
        """The more of loading and running."""
        return max(self.load_peak_bytes, self.steady_bytes)


def predict_memory(hierarchy: Hierarchy, setting: Setting) -> ProcessMemory:
    """Predicted memory of a decoding process on a runtime that has a kernel for every level.

    An estimate: reports label it so, and `verify` measures the real one.
    """
    linear = [(m, setting[m.name]) for m in hierarchy.modules if m.kind == "linear"]
    return ProcessMemory(
        bare_bytes=BARE_PROCESS_BYTES,
        matrices_bytes=sum(_resident(module, level) for module, level in linear),
        session_bytes=SESSION_BYTES,
        loading_bytes=max((_code_bytes(module, level) for module, level in linear), default=0),
        running_bytes=WORKING_BYTES + sum(_running_scale_bytes(module, level) for module, level in linear),
    )


def predict_peak_rss_bytes(hierarchy: Hierarchy, setting: Setting) -> int:
    """Predicted peak RSS of a decoding process on the CPU execution provider, from `predict_memory`."""
    return predict_memory(hierarchy, setting).peak_bytes
