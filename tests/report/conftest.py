"""Two small stored reports, one a task, each a real run with its lists cut short."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Report = dict[str, Any]
FIXTURES = Path(__file__).parent.parent / "fixtures" / "report"


@pytest.fixture
def load() -> Callable[[str], Report]:
    """Reads a stored report by its name."""

    def read(name: str) -> Report:
        report: Report = json.loads((FIXTURES / f"{name}.json").read_text("utf-8"))
        return report

    return read


@pytest.fixture
def small(load: Callable[[str], Report]) -> Report:
    """A language model, searched, exported and rehearsed."""
    return load("small")


@pytest.fixture(params=["small", "sst2"])
def any_report(request: pytest.FixtureRequest, load: Callable[[str], Report]) -> Report:
    """A report of either task."""
    return load(str(request.param))


@pytest.fixture
def fixtures() -> Path:
    """Folder of the stored reports and golden files."""
    return FIXTURES


@pytest.fixture
def measured_energy(small: Report) -> Report:
    """The language model with an energy figure over three runs."""
    energy = small["verification"]["decode"]["energy"]
    energy.update(
        status="measured",
        reason=None,
        source={
            "name": "rapl",
            "kind": "counter",
            "scope": "processor packages with dram",
            "rails": ["package-0", "dram"],
            "update_s": 0.001,
            "lag_s": 0.0,
            "notes": [],
            "skipped": [{"name": "ina3221", "reason": "not supported by this version"}],
        },
        method="counter",
        rate_hz=10.0,
        n_samples=300,
        duration_s=30.0,
        tokens=30_000,
        energy_j=330.0,
        gross_j_per_token=0.011,
        net_energy_j=30.0,
        net_j_per_token=None,
        net_reason="below resolution: 3 noise x time is 40 J",
        mean_w=11.0,
        peak_w=12.0,
        peak_method="highest mean of 1 s",
        idle_w=10.0,
        idle_noise_w=0.1,
        idle_after_w=10.1,
        drift=False,
        edge_error_j=0.02,
        n_runs=3,
    )
    energy["repeats"]["gross_j_per_token"].update(n=3, mean=0.011, ci95_low=0.0108, ci95_high=0.0112)
    return small
