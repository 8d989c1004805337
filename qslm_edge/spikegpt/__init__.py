"""SpikeGPT: configuration, torch model, checkpoints, block and module hierarchy."""

from qslm_edge.spikegpt.checkpoint import load_checkpoint
from qslm_edge.spikegpt.config import SpikeGPTConfig
from qslm_edge.spikegpt.hierarchy import Block, Hierarchy, Module, build_hierarchy
from qslm_edge.spikegpt.model import SpikeGPT

__all__ = ["Block", "Hierarchy", "Module", "SpikeGPT", "SpikeGPTConfig", "build_hierarchy", "load_checkpoint"]
