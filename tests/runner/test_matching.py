"""Whether a host is the board of a profile."""

from __future__ import annotations

import dataclasses

import pytest

from qslm_edge.runner.machine import Machine
from qslm_edge.runner.matching import matches

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


@pytest.mark.parametrize(
    ("limits", "memory_mib", "hit", "words"),
    [
        ({"min_memory_mib": 6000}, 7486, True, "at least 6000 MiB of memory (it has 7486)"),
        ({"min_memory_mib": 6000}, 3620, False, "at least 6000 MiB of memory (it has 3620)"),
        ({"max_memory_mib": 6000}, 3620, True, "at most 6000 MiB of memory (it has 3620)"),
        ({"max_memory_mib": 6000}, 7486, False, "at most 6000 MiB of memory (it has 7486)"),
        ({"min_memory_mib": 6000, "max_memory_mib": 12000}, 6000, True, "6000 to 12000 MiB"),
        ({"min_memory_mib": 6000, "max_memory_mib": 12000}, 12001, False, "6000 to 12000 MiB"),
        ({"min_memory_mib": None, "max_memory_mib": None}, 1, True, "containing 'Raspberry Pi 5'"),
    ],
)
def test_memory_tells_sizes_of_one_board_apart(
    limits: dict[str, object], memory_mib: int, hit: bool, words: str
) -> None:
    host = dataclasses.replace(PI, total_memory_bytes=memory_mib * 2**20)
    decision, why = matches({"device_tree_model": ["Raspberry Pi 5"], **limits}, host)
    assert decision is hit
    assert words in why
    assert ("not a board with" in why) is not hit


def test_where_memory_cannot_be_read_the_name_decides_and_the_reason_is_said() -> None:
    reasons = {"total_memory_bytes": "/proc/meminfo: permission denied"}
    host = dataclasses.replace(PI, total_memory_bytes=None, reasons=reasons)
    decision, why = matches({"device_tree_model": ["Raspberry Pi 5"], "min_memory_mib": 6000}, host)
    assert decision is True
    assert why.endswith(
        "and memory that could not be compared with at least 6000 MiB (/proc/meminfo: permission denied)"
    )
    assert matches({"device_tree_model": ["Jetson"], "min_memory_mib": 6000}, host)[0] is False


@pytest.mark.parametrize("limit", ["6000", 6000.0, True, [6000]])
def test_a_limit_of_memory_that_is_no_number_matches_nothing(limit: object) -> None:
    decision, why = matches({"device_tree_model": ["Raspberry Pi 5"], "min_memory_mib": limit}, PI)
    assert decision is False
    assert f"min_memory_mib {limit!r}, which this version cannot check" in why


def test_memory_alone_knows_no_board() -> None:
    decision, why = matches({"min_memory_mib": 1, "max_memory_mib": 10**6}, PI)
    assert decision is False
    assert "says nothing by which to know its board" in why
