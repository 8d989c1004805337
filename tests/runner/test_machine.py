"""What a host is."""

from __future__ import annotations

import json
import platform
from pathlib import Path

import pytest

from qslm_edge.runner import machine as module
from qslm_edge.runner.machine import identify
from qslm_edge.runner.observe import Observed
from qslm_edge.runner.power.fake import FakeNvml

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures" / "power"


def write(root: Path, name: str, content: str | bytes) -> None:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    data = content if isinstance(content, bytes) else content.encode()
    (root / name).write_bytes(data)


def test_board_name_is_read_without_its_nul() -> None:
    found = identify(FIXTURES / "jetson_orin_nano")
    assert found.device_tree_model == "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super"
    assert found.gpu_names == ()
    assert found.reasons["gpu_names"] == "NVML: a tree of files has no GPU"


def test_empty_root_has_a_reason_for_everything(tmp_path: Path) -> None:
    found = identify(tmp_path)
    absent = {name for name, value in found.to_dict().items() if value in (None, ())} - {"container"}
    assert absent == {
        "cpu_model",
        "features",
        "device_tree_model",
        "os_name",
        "kernel",
        "total_memory_bytes",
        "gpu_names",
    }
    assert absent == set(found.reasons)


def test_this_host_is_described_in_json() -> None:
    found = identify()
    assert found.python_version == platform.python_version()
    assert found.cores_usable is not None
    assert json.loads(json.dumps(found.to_dict()))["label"] == found.label
    assert platform.node() not in found.label or not platform.node()


def test_x86_cpuinfo(tmp_path: Path) -> None:
    core = "processor : 0\nmodel name\t: Intel(R) N100\nflags\t\t: fpu avx2 {}\n\n"
    write(tmp_path, "proc/cpuinfo", core.format("avx_vnni") + core.format("odd"))
    write(tmp_path, "proc/meminfo", "MemTotal:       16000000 kB\n")
    write(tmp_path, "proc/sys/kernel/osrelease", "6.8.0\n")
    write(tmp_path, "etc/os-release", 'NAME="X"\nPRETTY_NAME="Ubuntu 24.04 LTS"\n')
    found = identify(tmp_path)
    assert found.cpu_model == "Intel(R) N100"
    assert found.features == ("avx2", "fpu")  # only what every core has
    assert found.total_memory_bytes == 16_000_000 * 1024
    assert (found.kernel, found.os_name) == ("6.8.0", "Ubuntu 24.04 LTS")


def test_arm_cores_are_named_and_counted(tmp_path: Path) -> None:
    core = "processor: 0\nFeatures : fp asimd asimddp\nCPU implementer : 0x41\nCPU part\t: {}\n\n"
    parts = ["0xd05"] * 4 + ["0xd0b"] * 2 + ["0xfff", "oops"]
    write(tmp_path, "proc/cpuinfo", "".join(core.format(part) for part in parts))
    expected = " + ".join(
        ["4x Cortex-A55", "2x Cortex-A76", *(f"1x ARM implementer 0x41 part {part}" for part in parts[-2:])]
    )
    assert identify(tmp_path).cpu_model == expected


@pytest.mark.parametrize(
    ("name", "content"), [("proc/cpuinfo", b"\xff\xff"), ("proc/device-tree/model", b"\xff")]
)
def test_damaged_files_are_reasons(tmp_path: Path, name: str, content: bytes) -> None:
    write(tmp_path, name, content)
    found = identify(tmp_path)
    assert found.cpu_model is None
    assert found.device_tree_model is None


def test_gpus_are_named_by_nvml(tmp_path: Path) -> None:
    nvml = FakeNvml(names=("NVIDIA L4", "NVIDIA L4"))
    assert identify(tmp_path, nvml).gpu_names == ("NVIDIA L4", "NVIDIA L4")
    assert nvml.open_count == 0


def test_gpus_are_named_by_nvidia_smi_without_nvml(monkeypatch: pytest.MonkeyPatch) -> None:
    answer = Observed("NVIDIA RTX A6000\n NVIDIA RTX A6000 \n", "nvidia-smi")
    monkeypatch.setattr(module, "run_command", lambda _: answer)
    assert identify(nvml=FakeNvml(start_error="no driver")).gpu_names == ("NVIDIA RTX A6000",) * 2
    monkeypatch.setattr(module, "run_command", lambda _: Observed(None, "nvidia-smi", "not installed"))
    found = identify(nvml=FakeNvml(start_error="no driver"))
    assert found.gpu_names == ()
    assert found.reasons["gpu_names"].endswith("no driver; not installed")


@pytest.mark.parametrize(
    ("name", "content", "hint"),
    [
        (".dockerenv", "", "/.dockerenv"),
        ("proc/1/cgroup", "0::/kubepods/besteffort/x\n", "kubepods in /proc/1/cgroup"),
        ("proc/1/cgroup", "0::/init.scope\n", None),
    ],
)
def test_container_hints(tmp_path: Path, name: str, content: str, hint: str | None) -> None:
    write(tmp_path, name, content)
    assert identify(tmp_path).container == hint
