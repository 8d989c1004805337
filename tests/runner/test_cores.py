"""Kinds of core: names from cpuinfo, clocks from cpufreq, and what is absent stays absent."""

from __future__ import annotations

from pathlib import Path

from qslm_edge.runner.cores import CoreKind, read_cores

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures" / "power"


def test_cores_of_recorded_boards() -> None:
    assert read_cores(FIXTURES / "raspberry_pi5") == (CoreKind(4, "Cortex-A76", 2_400_000_000),)
    assert read_cores(FIXTURES / "jetson_orin_nano") == (CoreKind(6, "Cortex-A78AE", None),)


def test_kinds_are_told_apart_by_name_and_clock(tmp_path: Path) -> None:
    parts = ["0xd05"] * 4 + ["0xd0b"] * 2 + ["0xabc", "odd"]
    sections = [
        f"processor\t: {number}\nCPU implementer\t: 0x41\nCPU part\t: {part}\n"
        for number, part in enumerate(parts)
    ]
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/cpuinfo").write_text("\n".join(sections) + "\nRevision\t: d04170\n", "utf-8")
    for number in range(5):
        folder = tmp_path / f"sys/devices/system/cpu/cpu{number}/cpufreq"
        folder.mkdir(parents=True)
        (folder / "cpuinfo_max_freq").write_text("1800000\n", "utf-8")
    assert read_cores(tmp_path) == (
        CoreKind(4, "Cortex-A55", 1_800_000_000),
        CoreKind(1, "Cortex-A76", 1_800_000_000),
        CoreKind(1, "Cortex-A76", None),
        CoreKind(1, "ARM implementer 0x41 part 0xabc", None),
        CoreKind(1, "ARM implementer 0x41 part odd", None),
    )


def test_an_x86_processor_has_one_kind(tmp_path: Path) -> None:
    (tmp_path / "proc").mkdir()
    core = "processor\t: {}\nmodel name\t: Intel(R) N100\nflags\t\t: fpu avx2\n\n"
    (tmp_path / "proc/cpuinfo").write_text(core.format(0) + core.format(1), "utf-8")
    assert read_cores(tmp_path) == (CoreKind(2, "Intel(R) N100", None),)
    assert CoreKind(2, "Intel(R) N100", None).to_dict() == {
        "count": 2,
        "model": "Intel(R) N100",
        "max_hz": None,
    }


def test_nothing_to_read_is_no_core(tmp_path: Path) -> None:
    assert read_cores(tmp_path) == ()
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/cpuinfo").write_bytes(b"\xff\xfe nothing of the kind")
    assert read_cores(tmp_path) == ()
