"""Power and energy: one file per source, one integrator, one protocol. A new source adds one line below."""

from qslm_edge.runner.power.base import (
    KNOWN_SOURCES,
    SOURCES,
    PowerSource,
    Reading,
    Unavailable,
    open_source,
)
from qslm_edge.runner.power.nvml import open_nvml
from qslm_edge.runner.power.protocol import (
    PRESETS,
    EnergyResult,
    Phases,
    RepeatSummary,
    Sampler,
    measure_energy,
    summarise_repeats,
)
from qslm_edge.runner.power.rapl import open_rapl

__all__ = [
    "KNOWN_SOURCES",
    "PRESETS",
    "SOURCES",
    "EnergyResult",
    "Phases",
    "PowerSource",
    "Reading",
    "RepeatSummary",
    "Sampler",
    "Unavailable",
    "measure_energy",
    "open_source",
    "summarise_repeats",
]

SOURCES.update(nvml=open_nvml, rapl=open_rapl)
