"""A survey of a board that does not exist."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from qslm_edge.profiles.survey import PowerFacts, Survey
from qslm_edge.runner.bandwidth import Bandwidth
from qslm_edge.runner.cores import CoreKind
from qslm_edge.runner.machine import Machine
from qslm_edge.runner.observe import Observed
from qslm_edge.runner.probe import FORMS, ProviderProbe, judge
from qslm_edge.runner.probe_model import Form
from qslm_edge.runner.runtime import CPU
from qslm_edge.runner.survey import RuntimeFacts

__all__ = ["make_survey", "working"]


def working(provider: str = CPU, slow: tuple[int, ...] = ()) -> ProviderProbe:
    """A provider that runs every form, but 8 and 2 bits at level 0, and the widths in `slow`, without a kernel."""
    forms = []
    for form in FORMS:
        fallback = form.bits in slow or (form.accuracy_level == 0 and form.bits in (8, 2))
        error = 5e-3 if form.accuracy_level and not fallback else 2e-7
        forms.append(judge(form, error, 40.0 if fallback else 0.5, 1.0))
    return ProviderProbe(provider, judge(Form(32), 2e-7, 1.0, None), tuple(forms))


def make_survey(machine: dict[str, Any] | None = None, **changes: Any) -> Survey:
    """A Raspberry Pi 5 with the newest runtime; fields of the survey, or of its machine, can be replaced."""
    board = Machine(
        arch="aarch64",
        cpu_model="4x Cortex-A76",
        features=("asimd", "asimddp", "asimdhp", "fp"),
        cores_usable=4,
        device_tree_model="Raspberry Pi 5 Model B Rev 1.0",
        os_name="Debian GNU/Linux 12 (bookworm)",
        kernel="6.12.0",
        total_memory_bytes=8060 * 2**20,
        python_version="3.11.2",
        gpu_names=(),
        container=None,
    )
    survey = Survey(
        simulated=False,
        machine=replace(board, **(machine or {})),
        cores=(CoreKind(4, "Cortex-A76", 2_400_000_000),),
        memory_limit=Observed(None, "/sys/fs/cgroup/**/memory.max", "no limit is set"),
        screen=False,
        bandwidth=Bandwidth(9.04e9, 11.5e9, 4, 64 * 2**20, "best of 5 passes"),
        runtime=RuntimeFacts("1.31.1", (CPU,), ("onnxruntime 1.31.1",)),
        probes={CPU: working()},
        gpu=None,
        power=PowerFacts("rapl", "processor packages", ("package-0 (intel-rapl:0)",)),
    )
    return replace(survey, **changes)
