"""Sources that run a tool: parsers of every generation, damaged output, and a tool that dies or is silent."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qslm_edge.runner.observe import Observed
from qslm_edge.runner.power import nvidia_smi, tegrastats
from qslm_edge.runner.power.base import PowerPlan, PowerSource, Unavailable
from qslm_edge.runner.power.nvidia_smi import open_nvidia_smi, parse_query, power_of
from qslm_edge.runner.power.nvml import AVERAGE_LAG_S
from qslm_edge.runner.power.plan import Estimate
from qslm_edge.runner.power.rpi_pmic import open_rpi_pmic, parse_pmic
from qslm_edge.runner.power.tegrastats import open_tegrastats, parse_tegrastats
from qslm_edge.runner.power.tool_stream import LineTool, start_tool

FIXTURES = Path(__file__).resolve().parents[2] / "fixtures" / "power"
PMIC = (FIXTURES / "pmic_read_adc_pi5.txt").read_text("utf-8")
LINE = (FIXTURES / "tegrastats_two_value.txt").read_text("utf-8").strip()


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine may take seconds to start a program: no clock decides here."""
    monkeypatch.setattr(tegrastats, "WAIT_S", 60.0)
    monkeypatch.setattr(nvidia_smi, "WAIT_S", 60.0)


def printing(*lines: str, then: str = "time.sleep(60)") -> list[str]:
    """A program that prints lines, then does something."""
    code = f"import time, sys\nfor line in {lines!r}:\n    print(line, flush=True)\n{then}"
    return [sys.executable, "-c", code]


# ---- tegrastats


@pytest.mark.parametrize(
    ("name", "rails"),
    [
        ("tegrastats_bare_mw.txt", {"POM_5V_IN": 4.870, "POM_5V_GPU": 0.040, "POM_5V_CPU": 2.410}),
        ("tegrastats_two_value.txt", {"VDD_IN": 8.123, "VDD_CPU_GPU_CV": 3.301, "VDD_SOC": 1.876}),
        ("tegrastats_three_value.txt", {"VDD_IN": 8.123, "VDD_CPU_GPU_CV": 3.301, "VDD_SOC": 1.876}),
    ],
)
def test_only_the_first_value_is_now(name: str, rails: dict[str, float]) -> None:
    text = (FIXTURES / name).read_text("utf-8")
    assert parse_tegrastats(text) == rails
    assert parse_tegrastats(text.strip() + " ") == rails  # real lines may end in a blank


@pytest.mark.parametrize(
    ("line", "rails"),
    [
        ("", {}),
        ("RAM 700/3964MB IRAM 0/252kB SWAP 0/198", {}),
        ("VDD_IN 8123mW/77", {}),
        ("VDD_IN 8123mW/7788m", {}),
        ("VDD_IN 8123mW", {}),
        ("VDD_IN 8123", {}),
        ("VDD_IN [N/A]/[N/A]", {}),
        ("VDD_IN 9999999999999mW/1mW", {}),
        ("VDD_IN 99999999mW/1mW", {}),
        ("VDD_IN -99999mW/1mW", {}),
        ("VDD_GPU 0mW/0mW NC 0mW/0mW", {"VDD_GPU": 0.0}),
        ("VDD_SOC -8mW/0mW", {"VDD_SOC": -0.008}),
        ("\ufffd\ufffd VDD_IN 5000mW/5000mW", {"VDD_IN": 5.0}),
    ],
)
def test_lines_that_are_cut_or_absurd(line: str, rails: dict[str, float]) -> None:
    assert parse_tegrastats(line) == rails


@given(st.text(max_size=300))
def test_any_text_is_parsed_without_an_error(text: str) -> None:
    parse_tegrastats(text)
    pmic = parse_pmic(text)
    assert bool(pmic.powers_w) == (pmic.reason is None)
    parse_query(text)
    power_of(text)


@given(st.integers(0, len(LINE)))
def test_a_line_cut_anywhere_gives_no_wrong_value(length: int) -> None:
    whole = parse_tegrastats(LINE)
    assert parse_tegrastats(LINE[:length]).items() <= whole.items()


def test_the_running_tool_is_read_and_ended() -> None:
    plan = PowerPlan("ina3221", ("VDD_IN",), ("VDD_SOC",), scope="module rails")
    source = open_tegrastats(plan=plan, argv=printing(LINE, then="while True: print(line, flush=True)"))
    assert isinstance(source, PowerSource)
    assert (source.rails, source.scope) == (("VDD_IN",), "module rails")
    source.close()
    later = LINE.replace("8123mW", "9000mW")
    again = open_tegrastats(
        plan=plan, argv=printing(LINE, then=f"while True: print({later!r}, flush=True); time.sleep(0.01)")
    )
    assert isinstance(again, PowerSource)
    reading = next(found for found in (again.read() for _ in range(100)) if found.power_w == 9.0)
    assert reading.extra_w == {"VDD_SOC": 1.876}
    again.close()


def test_a_tool_that_dies_in_the_middle_is_a_reason() -> None:
    source = open_tegrastats(argv=printing(LINE, then="sys.exit(3)"))
    assert isinstance(source, PowerSource)
    reading = source.read()
    assert reading.power_w is None
    assert "ended with status 3" in str(reading.reason)
    source.close()


@pytest.mark.parametrize(
    ("lines", "then", "words"),
    [
        ((), "sys.exit(1)", "ended with status 1"),
        ((), "time.sleep(60)", "printed nothing within 0.5 s"),
        (("RAM 1/2MB",), "time.sleep(60)", "no rail here is known to hold the whole board"),
        (("must be run as root",), "sys.exit(1)", "must be run as root"),
    ],
)
def test_a_tool_without_rails(
    lines: Sequence[str], then: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tegrastats, "WAIT_S", 0.5 if "sleep" in then and not lines else 20.0)
    source = open_tegrastats(argv=printing(*lines, then=then))
    assert isinstance(source, Unavailable)
    assert words in source.reason


def test_a_rail_that_vanishes_is_a_reason() -> None:
    gate = f"time.sleep(0.2); print({LINE.replace('VDD_IN', 'VDD_XX')!r}, flush=True); time.sleep(60)"
    source = open_tegrastats(plan=PowerPlan(total=("VDD_IN",)), argv=printing(LINE, then=gate))
    assert isinstance(source, PowerSource)
    reading = source.read()
    assert reading.power_w is None
    assert str(reading.reason).startswith("no VDD_IN in: ")
    source.close()


def test_no_tool_is_absent(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    for opener in (open_tegrastats, open_nvidia_smi, open_rpi_pmic):
        source = opener()
        assert isinstance(source, Unavailable)
        assert source.absent
        assert source.reason.endswith(" is not installed")


def test_a_tool_that_cannot_be_run(tmp_path: Path) -> None:
    broken = tmp_path / "tool"
    broken.write_text("not a program")
    broken.chmod(0o755)
    source = start_tool("tegrastats", [str(broken)])
    assert isinstance(source, Unavailable)
    assert "does not start: exec format error" in source.reason


def test_a_tool_that_ignores_the_end_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qslm_edge.runner.power.tool_stream.GRACE_S", 0.1)
    stubborn = (
        "import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nprint('x', flush=True)\ntime.sleep(60)"
    )
    tool = LineTool(printing(then=stubborn))
    assert not isinstance(tool.next_line(20.0), str)
    tool.close()
    assert tool.next_line(0.0) == f"{Path(sys.executable).name} ended with status -9"


# ---- the power chip of a Raspberry Pi 5


def answer(text: str | None, reason: str | None = None) -> Observed[str]:
    return Observed(text, "vcgencmd pmic_read_adc", reason)


def test_rails_are_paired_by_name() -> None:
    pmic = parse_pmic(PMIC)
    assert pmic.reason is None
    assert set(pmic.powers_w) == {"3V7_WL_SW", "3V3_SYS", "VDD_CORE", "0V8_AON"}
    assert sum(pmic.powers_w.values()) == pytest.approx(2.533)
    assert parse_pmic("\n".join(reversed(PMIC.splitlines()))).powers_w == pytest.approx(pmic.powers_w)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no rail with current and voltage"),
        ("EXT5V_V volt(24)=5.1V", "no rail with current and voltage"),
        ("error=1 error_msg=Command not registered", "line not understood: error=1"),
        (PMIC[:60], "line not understood"),
        (PMIC.replace("VDD_CORE_V volt(15)=0.85000000V\n", ""), "VDD_CORE has a current and no voltage"),
        (PMIC.replace("2.50000000A", "2.50000000"), "line not understood: VDD_CORE_A"),
        (PMIC.replace("2.50000000A", "2.5V"), "line not understood: VDD_CORE_A"),
        (PMIC.replace("2.50000000A", "-2.5A"), "VDD_CORE_A: implausible value -2.5"),
        (PMIC.replace("2.50000000A", "99999A"), "VDD_CORE_A: implausible value 99999"),
        (PMIC.replace("0.85000000V", "999999V"), "VDD_CORE_V: implausible value"),
        (PMIC.replace("2.50000000A", "nanA"), "line not understood"),
        (PMIC + "VDD_CORE_A current(7)=1.0A", "VDD_CORE_A stands twice"),
        ("\ufffd" + PMIC, "line not understood"),
    ],
)
def test_output_that_cannot_be_trusted(text: str, words: str) -> None:
    pmic = parse_pmic(text)
    assert pmic.powers_w == {}
    assert words in str(pmic.reason)
    source = open_rpi_pmic(run=lambda _: answer(text))
    assert isinstance(source, Unavailable)
    assert words in source.reason


def test_the_estimate_of_the_board_stands_apart() -> None:
    estimate = Estimate(1.1451, 0.5879)
    plan = PowerPlan("rpi-pmic", ("*",), ("VDD_CORE", "DDR_VDD2"), estimate=estimate)
    source = open_rpi_pmic(plan=plan, run=lambda _: answer(PMIC))
    assert isinstance(source, PowerSource)
    reading = source.read()
    assert reading.power_w == pytest.approx(2.533)
    assert reading.extra_w == pytest.approx(
        {"VDD_CORE": 2.125, "board (calibrated-estimate)": 1.1451 * 2.533 + 0.5879}
    )
    assert source.to_dict()["estimate"] == {"slope": 1.1451, "offset_w": 0.5879, "tag": "calibrated-estimate"}
    assert 1 <= source.rate_hz <= 5
    assert any("no verdict rests on it" in note for note in source.notes)


def test_rails_of_the_chip_that_vanish_or_are_chosen() -> None:
    texts = [PMIC, PMIC, PMIC.replace("0V8_AON", "0V9_AON")]
    source = open_rpi_pmic(run=lambda _: answer(texts.pop(0)))
    assert isinstance(source, PowerSource)
    assert "rail 0V8_AON is missing" in str(source.read().reason)
    chosen = open_rpi_pmic(plan=PowerPlan(total=("VDD_CORE",)), run=lambda _: answer(PMIC))
    assert isinstance(chosen, PowerSource)
    assert chosen.read().power_w == pytest.approx(2.125)
    assert isinstance(open_rpi_pmic(plan=PowerPlan(total=("X",)), run=lambda _: answer(PMIC)), Unavailable)


def test_a_refused_right_names_the_group() -> None:
    reason = "exit status 255: Can't open device file: /dev/vcio"
    source = open_rpi_pmic(run=lambda _: answer(None, reason))
    assert isinstance(source, Unavailable)
    assert not source.absent
    assert reason in source.reason
    assert (
        "the right to use /dev/vcio, which the group video has: sudo usermod -aG video $USER" in source.reason
    )


def test_a_command_that_fails_in_the_middle_is_a_reason() -> None:
    answers = [answer(PMIC), answer(PMIC), answer(None, "no answer within 5 s"), answer(PMIC)]
    source = open_rpi_pmic(run=lambda _: answers.pop(0))
    assert isinstance(source, PowerSource)
    assert "no answer within 5 s" in str(source.read().reason)
    assert source.read().power_w == pytest.approx(2.533)


# ---- nvidia-smi


def test_cells_without_a_value_are_none() -> None:
    rows = parse_query((FIXTURES / "nvidia_smi_query.csv").read_text("utf-8"))
    assert [power_of(row["power.draw"]) for row in rows] == [90.0, None]
    assert [power_of(row["power.draw.instant"]) for row in rows] == [92.5, None]
    assert [row["temperature.gpu"] for row in rows] == ["55", None]
    (h100,) = parse_query((FIXTURES / "nvidia_smi_h100.csv").read_text("utf-8"))
    assert (h100["name"], power_of(h100["power.draw.instant"])) == ("NVIDIA H100 80GB HBM3", 123.36)
    assert (h100["memory.used"], h100["clocks.current.sm"]) == ("0 MiB", "1980 MHz")


@pytest.mark.parametrize(
    "cell",
    ["", "[N/A]", "90.00", "90.00 mW", "-5 W", "0.00 W", "nan W", "1e9 W", "999999 W", "90.00 W x", None],
)
def test_a_cell_that_is_no_power(cell: str | None) -> None:
    assert power_of(cell) is None


def test_rows_that_are_cut_short() -> None:
    assert parse_query("") == []
    assert parse_query("name, power.draw [W]\n") == []
    assert parse_query("name, power.draw [W]\nA6000\n") == [{"name": "A6000", "power.draw": None}]


def fake_smi(tmp_path: Path, body: str) -> list[str]:
    script = tmp_path / "smi.py"
    script.write_text(f"import sys, time\nargs = sys.argv[1:]\n{body}\n")
    return [sys.executable, str(script)]


def test_instant_power_is_preferred(tmp_path: Path) -> None:
    program = fake_smi(tmp_path, "for _ in range(2): print('92.50 W', flush=True)\ntime.sleep(60)")
    source = open_nvidia_smi(program=program)
    assert isinstance(source, PowerSource)
    assert (source.lag_s, source.rails) == (0.0, ("GPU 0",))
    source.close()


def test_an_old_driver_gives_the_average_with_its_lag(tmp_path: Path) -> None:
    body = (
        "if any('instant' in a for a in args):\n"
        "    print('Field \"power.draw.instant\" is not a valid field to query.\\n', flush=True); sys.exit(2)\n"
        "print('90.00 W', flush=True); time.sleep(0.3); print('[N/A]', flush=True); time.sleep(60)"
    )
    source = open_nvidia_smi(program=fake_smi(tmp_path, body))
    assert isinstance(source, PowerSource)
    assert source.lag_s == AVERAGE_LAG_S
    assert any("not a valid field" in note for note in source.notes)
    reading = source.read()
    assert reading.power_w is None
    assert "no power in: [N/A]" in str(reading.reason)
    source.close()


def test_a_gpu_without_power(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvidia_smi, "WAIT_S", 20.0)
    source = open_nvidia_smi(program=fake_smi(tmp_path, "print('[N/A]', flush=True)"))
    assert isinstance(source, Unavailable)
    assert "power.draw.instant: no power in: [N/A]; power.draw: no power in: [N/A]" in source.reason
