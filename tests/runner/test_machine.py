"""What a host is, and whether it is the board of a profile."""

from __future__ import annotations

import dataclasses
import json
import platform
from pathlib import Path

import pytest

from qslm_edge.runner import machine as module
from qslm_edge.runner.machine import Machine, identify, matches
from qslm_edge.runner.observe import Observed
from qslm_edge.runner.power.fake import FakeNvml

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures" / "power"

PI = Machine(
    arch="aarch64",
    cpu_model="4x Cortex-A76",
    features=("asimd", "asimddp", "fp"),
    cores_usable=4,
    device_tree_model="Raspberry Pi 5 Model B Rev 1.0",
    os_name="Debian GNU/Linux 12 (bookworm)",
    kernel="6.12.0",
    total_memory_bytes=8 * 2**30,
    python_version="3.11.2",
    gpu_names=(),
    container=None,
)
SERVER = dataclasses.replace(
    PI,
    arch="x86_64",
    cpu_model="Some Processor",
    device_tree_model=None,
    features=("avx2",),
    gpu_names=("NVIDIA H100 80GB HBM3",) * 2,
)


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


@pytest.mark.parametrize(
    "match",
    [
        {"device_tree_model": ["Raspberry Pi 5"]},
        {"device_tree_model": ["Jetson", "raspberry pi 5"]},
        {"device_tree_model": "Raspberry Pi 5", "arch": "arm64"},
        {"arch": "aarch64", "features": ["asimd", "asimddp"]},
        {"device_tree_model": ["Raspberry Pi 5 Model B"], "gpu_name": [], "arch": None, "features": []},
    ],
)
def test_the_board_is_recognised(match: dict[str, object]) -> None:
    decision, why = matches(match, PI)
    assert decision is True
    assert why.startswith("this host is Raspberry Pi 5 Model B Rev 1.0 (aarch64), with ")


@pytest.mark.parametrize(
    ("match", "words"),
    [
        ({}, "says nothing by which to know its board"),
        ({"arch": "x86_64"}, "not a board with arch x86_64"),
        ({"arch": "aarch64", "features": ["asimd", "i8mm", "sve2"]}, "not a board with features i8mm sve2"),
        ({"gpu_name": ["Orin"]}, "not a board with gpu_name containing 'Orin'"),
        (
            {"device_tree_model": ["Jetson", "BeagleY"], "arch": "riscv64"},
            "not a board with device_tree_model containing 'Jetson' or 'BeagleY' and arch riscv64",
        ),
        ({"arch": "aarch64", "serial": "1"}, "serial '1', which this version cannot check"),
        ({"features": [], "gpu_name": (), "arch": None}, "says nothing by which to know its board"),
        ({"arch": ["aarch64"], "features": 5}, "features 5, which this version cannot check"),
        ({"device_tree_model": [""]}, "cannot check"),
        ({"device_tree_model": [5]}, "cannot check"),
    ],
)
def test_another_host_is_a_rehearsal(match: dict[str, object], words: str) -> None:
    decision, why = matches(match, PI)
    assert decision is False
    assert why.startswith("this host is Raspberry Pi 5 Model B Rev 1.0 (aarch64)")
    assert words in why


@pytest.mark.parametrize(
    ("key", "wanted", "name", "hit"),
    [
        ("gpu_name", "NVIDIA L4", "NVIDIA L4", True),
        ("gpu_name", "NVIDIA L4", "NVIDIA L40S", False),
        ("gpu_name", "NVIDIA H200", "NVIDIA GH200 480GB", False),
        ("device_tree_model", "Raspberry Pi 5", "Raspberry Pi 500 Rev 1.0", False),
        ("device_tree_model", "i.MX8MPlus", "NXP i.MX8MPlus EVK board", True),
        ("device_tree_model", "i.MX95", "NXP iXMX95", False),
        ("cpu_model", "N100", "Intel(R) N100", True),
        ("cpu_model", "N100", "Intel(R) N1000", False),
        ("cpu_model", "apple m1", "Apple M1 Pro", True),
    ],
)
def test_a_name_is_told_by_whole_words(key: str, wanted: str, name: str, hit: bool) -> None:
    names = {"gpu_names": (name,)} if key == "gpu_name" else {key: name}
    empty = dataclasses.replace(PI, device_tree_model=None, cpu_model=None)
    assert matches({key: [wanted]}, dataclasses.replace(empty, **names))[0] is hit
    assert matches({key: [wanted]}, empty)[0] is False


def test_gpu_host() -> None:
    assert matches({"gpu_name": ["H100"]}, SERVER)[0] is True
    assert matches({"device_tree_model": ["H100"]}, SERVER)[0] is False
    assert SERVER.label == "Some Processor (x86_64), NVIDIA H100 80GB HBM3"
