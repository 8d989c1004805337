"""Looking at a machine: a recorded tree, and a GPU that does not exist; nodes are stood in for here."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from qslm_edge.profiles import survey as module
from qslm_edge.profiles.drafting import draft_profile
from qslm_edge.profiles.survey import Gpu, take_survey
from qslm_edge.runner.bandwidth import Bandwidth
from qslm_edge.runner.power.fake import FakeNvml
from qslm_edge.runner.runtime import CPU
from qslm_edge.runner.survey import RuntimeFacts
from tests.helpers.surveys import working

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures" / "power"
CUDA = "CUDAExecutionProvider"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "runtime_facts", lambda: RuntimeFacts("1.31.1", (CUDA, CPU), ()))
    monkeypatch.setattr(module, "prove_provider", lambda name, _progress: working(name))
    monkeypatch.setattr(module, "measure_bandwidth", lambda: Bandwidth(1e10, 2e10, 2, 2**26, "a fake"))


def test_a_recorded_board() -> None:
    titles: list[str] = []
    found = take_survey(FIXTURES / "jetson_orin_nano", lambda title, _share: titles.append(title))
    assert found.simulated
    assert found.machine.arch == "aarch64"
    assert found.machine.total_memory_bytes == 7802848 * 1024
    assert [kind.model for kind in found.cores] == ["Cortex-A78AE"]
    assert found.gpu is None  # a tree of files has none, and this host's is not the board's
    assert list(found.probes) == [CUDA, CPU]
    assert titles[0] == "reading the machine"
    assert json.loads(json.dumps(found.to_dict(), allow_nan=False))["simulated"] is True
    profile = draft_profile(found).data
    assert profile["cpu"]["kernel_class"] == "arm64-dotprod"
    assert profile["grades"]["*"] == "unconfirmed"


def test_a_processor_read_from_its_counters(tmp_path: Path) -> None:
    found = take_survey(FIXTURES / "amd_rapl")
    assert found.power.source == "rapl"
    assert found.power.rails == ("package-0 (intel-rapl:0)",)
    empty = take_survey(tmp_path)
    assert (empty.power.source, empty.machine.total_memory_bytes) == (None, None)
    assert empty.power.reason


def test_the_first_gpu_and_its_memory() -> None:
    nvml = FakeNvml(
        names=("NVIDIA L4", "NVIDIA A2"),
        nvmlDeviceGetCudaComputeCapability=(8, 9),
        nvmlDeviceGetMemoryInfo=SimpleNamespace(total=24 * 2**30),
    )
    assert take_survey(FIXTURES / "amd_rapl", nvml=nvml).gpu == Gpu("NVIDIA L4", "8.9", 24 * 2**30)
    assert nvml.open_count == 0
    bare = FakeNvml(names=("Orin (nvgpu)",))
    assert take_survey(FIXTURES / "amd_rapl", nvml=bare).gpu == Gpu("Orin (nvgpu)", None, None)
    for absent in (FakeNvml(names=()), FakeNvml(start_error="no driver")):
        assert take_survey(FIXTURES / "amd_rapl", nvml=absent).gpu is None
