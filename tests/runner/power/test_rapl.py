"""RAPL zones: one level only, no twin twice, wraps, restarts and refused rights."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import pytest

from qslm_edge.runner.power.base import PowerPlan, PowerSource, Unavailable
from qslm_edge.runner.power.rapl import choose_zones, find_zones, open_rapl

FIXTURES = Path(__file__).resolve().parents[2] / "fixtures" / "power"
POWERCAP = Path("sys/class/powercap")


class Ticks:
    """A clock that a test sets by hand."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Ticks:
    return Ticks()


@pytest.fixture
def laptop(tmp_path: Path) -> Path:
    return Path(shutil.copytree(FIXTURES / "intel_laptop_rapl", tmp_path / "laptop"))


def zone(root: Path, folder: str, name: str, energy_uj: object, range_uj: object = 262143328850) -> None:
    path = root / POWERCAP / folder
    path.mkdir(parents=True, exist_ok=True)
    for file, value in (("name", name), ("energy_uj", energy_uj), ("max_energy_range_uj", range_uj)):
        if value is not None:
            (path / file).write_text(f"{value}\n")


def set_energy(root: Path, folder: str, energy_uj: object) -> None:
    (root / POWERCAP / folder / "energy_uj").write_text(f"{energy_uj}\n")


def opened(root: Path, clock: Ticks) -> PowerSource:
    source = open_rapl(root, clock=clock)
    assert isinstance(source, PowerSource), source
    return source


def refused(root: Path) -> str:
    source = open_rapl(root)
    assert isinstance(source, Unavailable)
    return source.reason


def test_psys_is_taken_before_the_packages_and_alone(laptop: Path, clock: Ticks) -> None:
    source = opened(laptop, clock)
    assert source.rails == ("psys (intel-rapl:1)",)
    assert "psys" in source.scope
    reading = source.read()
    assert reading.energy_j == 95000.0
    assert reading.time_s == 100.0


def test_without_psys_the_package_counts_once_by_mmio(laptop: Path, clock: Ticks) -> None:
    shutil.rmtree(laptop / POWERCAP / "intel-rapl:1")
    source = opened(laptop, clock)
    assert source.rails == ("package-0 (intel-rapl-mmio:0)",)
    assert source.read().energy_j == pytest.approx(41000.0001)


def test_unreadable_twin_is_replaced_by_the_other(laptop: Path, clock: Ticks) -> None:
    shutil.rmtree(laptop / POWERCAP / "intel-rapl:1")
    (laptop / POWERCAP / "intel-rapl-mmio:0/energy_uj").unlink()
    assert opened(laptop, clock).rails == ("package-0 (intel-rapl:0)",)


def test_core_is_used_only_without_package(laptop: Path, clock: Ticks) -> None:
    for folder in ("intel-rapl:0", "intel-rapl:1", "intel-rapl-mmio:0"):
        shutil.rmtree(laptop / POWERCAP / folder)
    source = opened(laptop, clock)
    assert source.rails == ("core (intel-rapl:0:0)",)
    assert source.scope == "processor cores only (RAPL core)"


@pytest.mark.parametrize(
    ("total", "rails"),
    [
        (("psys", "package-0"), ("psys (intel-rapl:1)",)),
        (("package-0", "psys"), ("package-0 (intel-rapl-mmio:0)",)),
        (("core",), ("core (intel-rapl:0:0)",)),
    ],
)
def test_the_profile_orders_the_zones(
    laptop: Path, clock: Ticks, total: tuple[str, ...], rails: tuple[str, ...]
) -> None:
    source = open_rapl(laptop, PowerPlan("rapl", total), clock=clock)
    assert isinstance(source, PowerSource)
    assert source.rails == rails


def test_a_zone_that_the_profile_does_not_name_is_not_taken(laptop: Path, clock: Ticks) -> None:
    """Its scope would be another one than the profile states."""
    shutil.rmtree(laptop / POWERCAP / "intel-rapl:1")
    source = open_rapl(laptop, PowerPlan("rapl", ("psys",)), clock=clock)
    assert isinstance(source, Unavailable)
    assert not source.absent
    assert source.reason.startswith(
        "no RAPL zone psys, as the profile asks for; zones: package-0 (intel-rapl-mmio:0)"
    )


def test_a_package_stands_for_every_package_and_memory_only_if_named(tmp_path: Path, clock: Ticks) -> None:
    for number in (0, 1):
        zone(tmp_path, f"intel-rapl:{number}", f"package-{number}", 5_000_000)
        zone(tmp_path, f"intel-rapl:{number}:0", "dram", 2_000_000)
    for total, energy_j in ((("package-0",), 10.0), (("package-0+dram",), 14.0)):
        source = open_rapl(tmp_path, PowerPlan("rapl", total), clock=clock)
        assert isinstance(source, PowerSource)
        assert source.read().energy_j == energy_j


def test_amd_package_without_its_core(clock: Ticks) -> None:
    source = opened(FIXTURES / "amd_rapl", clock)
    assert source.rails == ("package-0 (intel-rapl:0)",)
    assert source.read().energy_j == 60000.0


def test_packages_and_their_memory_add_up(tmp_path: Path, clock: Ticks) -> None:
    for number in (0, 1):
        zone(tmp_path, f"intel-rapl:{number}", f"package-{number}", 5_000_000)
        zone(tmp_path, f"intel-rapl:{number}:0", "core", 1_000_000)
        zone(tmp_path, f"intel-rapl:{number}:1", "dram", 2_000_000)
    source = opened(tmp_path, clock)
    assert len(source.rails) == 4
    assert source.read().energy_j == 14.0
    assert "memory" in source.scope


def test_memory_that_may_not_be_read_is_left_out_of_the_scope(tmp_path: Path, clock: Ticks) -> None:
    zone(tmp_path, "intel-rapl:0", "package-0", 5_000_000)
    zone(tmp_path, "intel-rapl:0:0", "dram", None)
    source = opened(tmp_path, clock)
    assert source.scope.startswith("processor packages, without memory")
    assert source.notes == ("passed over: /sys/class/powercap/intel-rapl:0:0/energy_uj: no such file",)


def test_twins_are_known_by_the_names_of_their_parents(tmp_path: Path) -> None:
    """MSR and MMIO number their zones apart; two cores of two packages are no twins."""
    zone(tmp_path, "intel-rapl:0", "package-1", 1)
    zone(tmp_path, "intel-rapl:1", "package-0", 1)
    zone(tmp_path, "intel-rapl:0:0", "core", 1)
    zone(tmp_path, "intel-rapl:1:0", "core", 1)
    zone(tmp_path, "intel-rapl-mmio:0", "package-0", 1)
    levels = dict(choose_zones(find_zones(tmp_path)))
    packages = levels["processor packages, without memory and board (RAPL package)"]
    assert sorted([item.label for item in group] for group in packages) == [
        ["package-0 (intel-rapl-mmio:0)", "package-0 (intel-rapl:1)"],
        ["package-1 (intel-rapl:0)"],
    ]
    assert len(levels["processor cores only (RAPL core)"]) == 2


def test_wrap_is_added_per_zone(tmp_path: Path, clock: Ticks) -> None:
    zone(tmp_path, "intel-rapl:0", "package-0", 262_143_000_000)
    zone(tmp_path, "intel-rapl:1", "package-1", 10_000_000)
    source = opened(tmp_path, clock)
    clock.now_s += 0.1
    set_energy(tmp_path, "intel-rapl:0", 1_171_150)  # 1.5 J later, 262143328850 uJ is the range
    set_energy(tmp_path, "intel-rapl:1", 11_000_000)
    reading = source.read()
    assert reading.energy_j == pytest.approx(262_143.0 + 10.0 + 1.5 + 1.0)
    assert reading.fault is False


@pytest.mark.parametrize(
    ("later", "range_uj", "words"),
    [
        (0, 262143328850, "fell without a wrap"),
        (100, None, "fell without a wrap"),
        (90_000_000_000, 262143328850, "jumped by 80000 J"),
    ],
)
def test_restart_and_jump_are_faults(
    tmp_path: Path, clock: Ticks, later: int, range_uj: int | None, words: str
) -> None:
    zone(tmp_path, "intel-rapl:0", "package-0", 10_000_000_000, range_uj)
    source = opened(tmp_path, clock)
    clock.now_s += 0.1
    set_energy(tmp_path, "intel-rapl:0", later)
    reading = source.read()
    assert (reading.energy_j, reading.fault) == (None, True)
    assert words in str(reading.reason)
    clock.now_s += 0.1
    set_energy(tmp_path, "intel-rapl:0", later + 1_000_000)
    assert source.read().fault is False


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("-7", "implausible value -7"),
        ("262143328851", "above the range"),
        ("9" * 40, "not an integer"),
        ("", "not an integer"),
    ],
)
def test_damaged_counter_is_a_reason_and_no_energy(
    laptop: Path, clock: Ticks, content: str, words: str
) -> None:
    source = opened(laptop, clock)
    set_energy(laptop, "intel-rapl:1", content)
    reading = source.read()
    assert (reading.energy_j, reading.fault) == (None, False)
    assert words in str(reading.reason)
    set_energy(laptop, "intel-rapl:1", 95_000_000_001)
    assert source.read().energy_j == pytest.approx(95000.000001)


def test_counter_that_stands_at_zero_proves_nothing(tmp_path: Path, clock: Ticks) -> None:
    zone(tmp_path, "intel-rapl:0", "package-0", 5_000_000)
    zone(tmp_path, "intel-rapl:1", "psys", 0)
    source = opened(tmp_path, clock)
    assert source.rails == ("package-0 (intel-rapl:0)",)
    assert source.notes == ("passed over: /sys/class/powercap/intel-rapl:1/energy_uj: implausible value 0",)


def test_one_unreadable_package_of_two_is_not_half_a_sum(tmp_path: Path) -> None:
    zone(tmp_path, "intel-rapl:0", "package-0", 5_000_000)
    zone(tmp_path, "intel-rapl:1", "package-1", None)
    assert refused(tmp_path) == "/sys/class/powercap/intel-rapl:1/energy_uj: no such file"


def test_refused_right_names_file_right_and_remedy(laptop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.open

    def deny(path: Path, flags: int) -> int:
        if path.name == "energy_uj":
            raise PermissionError(errno.EACCES, "Permission denied")
        return real(path, flags)

    monkeypatch.setattr(os, "open", deny)
    reason = refused(laptop)
    assert "/sys/class/powercap/intel-rapl:1/energy_uj: permission denied" in reason
    assert "the right to read, which only root has" in reason
    assert "sudo chmod a+r /sys/class/powercap/intel-rapl*/energy_uj" in reason


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
def test_refused_right_for_real(laptop: Path) -> None:
    for path in (laptop / POWERCAP).glob("*/energy_uj"):
        path.chmod(0)
    assert "permission denied" in refused(laptop)


def test_no_zones(tmp_path: Path) -> None:
    assert "no RAPL zones" in refused(tmp_path)
    (tmp_path / POWERCAP / "intel-rapl:0").mkdir(parents=True)
    (tmp_path / POWERCAP / "intel-rapl:0/name").write_bytes(b"\xff")
    assert "no RAPL zones" in refused(tmp_path)
