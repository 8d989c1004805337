"""What `profiles detect` finds out about the machine it runs on, before it is put into the words of a profile.

Runs on the base install: numpy and onnxruntime, neither torch nor onnx. Everything is read or tried, and what
cannot be had is absent with a reason.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from qslm_edge.runner.bandwidth import Bandwidth, measure_bandwidth
from qslm_edge.runner.cores import CoreKind, read_cores
from qslm_edge.runner.machine import Machine, identify
from qslm_edge.runner.memory import cgroup_memory
from qslm_edge.runner.observe import Observed, is_live
from qslm_edge.runner.power import PowerSource, Unavailable, open_source
from qslm_edge.runner.power.nvml import ask_nvml, gpu_handles, start_nvml
from qslm_edge.runner.probe import ProviderProbe
from qslm_edge.runner.runtime import uses_gpu
from qslm_edge.runner.survey import RuntimeFacts, has_screen, prove_provider, runtime_facts

__all__ = ["Gpu", "PowerFacts", "Survey", "take_survey"]

Progress = Callable[[str, float], None]


@dataclass(frozen=True)
class Gpu:
    """The first GPU that NVML shows.

    Attributes:
        name: as NVML says it.
        compute_capability: such as "8.7", None when it is not told.
        memory_bytes: its own memory; None for a GPU that shares the processor's.
    """

    name: str
    compute_capability: str | None
    memory_bytes: int | None


@dataclass(frozen=True)
class PowerFacts:
    """The interface that gave a reading; without one only the reason.

    Attributes:
        source: its name in a profile, None without one.
        scope: what it covers.
        rails: what it adds.
        reason: why there is none.
    """

    source: str | None
    scope: str | None
    rails: tuple[str, ...]
    reason: str | None = None


@dataclass(frozen=True)
class Survey:
    """One machine, as it was found.

    Attributes:
        simulated: identity, memory, cores and power come from a recorded tree of files.
        machine: processor, board, system.
        cores: kinds of core.
        memory_limit: lowest limit of the control group.
        screen: a screen is connected.
        bandwidth: of reading memory.
        runtime: onnxruntime.
        probes: what each listed provider runs.
        gpu: None where NVML shows none.
        power: how it measures itself.
    """

    simulated: bool
    machine: Machine
    cores: tuple[CoreKind, ...]
    memory_limit: Observed[int]
    screen: bool
    bandwidth: Bandwidth
    runtime: RuntimeFacts
    probes: dict[str, ProviderProbe]
    gpu: Gpu | None
    power: PowerFacts

    def to_dict(self) -> dict[str, Any]:
        """Everything found, ready for JSON."""
        return {
            "simulated": self.simulated,
            "machine": self.machine.to_dict(),
            "cores": [kind.to_dict() for kind in self.cores],
            "memory_limit": self.memory_limit.to_dict(),
            "screen": self.screen,
            "bandwidth": self.bandwidth.to_dict(),
            "runtime": self.runtime.to_dict(),
            "probes": [probe.to_dict() for probe in self.probes.values()],
            "gpu": None if self.gpu is None else asdict(self.gpu),
            "power": asdict(self.power),
        }


def take_survey(
    root: Path = Path("/"), on_progress: Progress = lambda _title, _share: None, nvml: Any | None = None
) -> Survey:
    """Look at this machine; takes some seconds.

    Args:
        root: "/"; a folder with a recorded tree plays the board in a test, while onnxruntime and bandwidth
            are still those of this host.
        on_progress: told (title, share) of each step.
        nvml: a module with the functions of pynvml, for tests.
    """
    on_progress("reading the machine", 0.0)
    machine, runtime = identify(root, nvml), runtime_facts()
    gpu = _first_gpu(nvml) if is_live(root) or nvml is not None else None
    probes = {}
    for provider in runtime.providers:
        on_progress(f"running nodes on {provider}", 0.0)
        probes[provider] = prove_provider(provider, on_progress)
    on_progress("measuring memory bandwidth", 0.0)
    bandwidth = measure_bandwidth()
    on_progress("looking for a power source", 0.0)
    on_gpu = any(uses_gpu(provider) and probe.runs for provider, probe in probes.items())
    return Survey(
        simulated=not is_live(root),
        machine=machine,
        cores=read_cores(root),
        memory_limit=cgroup_memory(root).limit,
        screen=has_screen(root),
        bandwidth=bandwidth,
        runtime=runtime,
        probes=probes,
        gpu=gpu,
        power=_power(open_source(None, root, use_gpu=on_gpu)),
    )


def _power(source: PowerSource | Unavailable) -> PowerFacts:
    if not isinstance(source, PowerSource):
        return PowerFacts(None, None, (), source.reason)
    source.close()
    return PowerFacts(source.name, source.scope, source.rails)


def _first_gpu(nvml: Any | None) -> Gpu | None:
    module = start_nvml(nvml)
    if isinstance(module, Unavailable):
        return None
    try:
        for _, name, handle in gpu_handles(module):
            capability = ask_nvml(module, "nvmlDeviceGetCudaComputeCapability", handle).value
            memory = ask_nvml(module, "nvmlDeviceGetMemoryInfo", handle).value
            return Gpu(
                name,
                None if capability is None else ".".join(str(part) for part in capability),
                None if memory is None else int(memory.total),
            )
        return None
    finally:
        ask_nvml(module, "nvmlShutdown")
