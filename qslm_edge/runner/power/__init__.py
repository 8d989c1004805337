"""Power and energy: one file per source, one integrator, one protocol. A new source adds one line below."""

from qslm_edge.runner.power.base import (
    KNOWN_SOURCES,
    SOURCES,
    PowerPlan,
    PowerSource,
    Reading,
    Unavailable,
    open_source,
)
from qslm_edge.runner.power.battery import open_battery
from qslm_edge.runner.power.external import ExternalMeter, open_csv
from qslm_edge.runner.power.hwmon import open_hwmon
from qslm_edge.runner.power.ina238 import open_ina238
from qslm_edge.runner.power.ina3221 import open_ina3221
from qslm_edge.runner.power.ina3221x import open_ina3221x
from qslm_edge.runner.power.nvidia_smi import open_nvidia_smi
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
from qslm_edge.runner.power.result import energy_dict
from qslm_edge.runner.power.rpi_pmic import open_rpi_pmic
from qslm_edge.runner.power.tegrastats import open_tegrastats

__all__ = [
    "KNOWN_SOURCES",
    "PRESETS",
    "SOURCES",
    "EnergyResult",
    "ExternalMeter",
    "Phases",
    "PowerPlan",
    "PowerSource",
    "Reading",
    "RepeatSummary",
    "Sampler",
    "Unavailable",
    "energy_dict",
    "measure_energy",
    "open_source",
    "summarise_repeats",
]

# In the order in which they are tried when nothing is preferred: the whole board before a part of it.
SOURCES.update(
    {
        "nvml": open_nvml,
        "nvidia-smi": open_nvidia_smi,
        "ina238": open_ina238,
        "ina3221": open_ina3221,
        "ina3221x": open_ina3221x,
        "tegrastats": open_tegrastats,
        "rapl": open_rapl,
        "rpi-pmic": open_rpi_pmic,
        "hwmon": open_hwmon,
        "battery": open_battery,
        "csv": open_csv,
    }
)
