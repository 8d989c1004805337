"""Logs of external meters: every format, every unit, and one clear line for what is not known."""

from __future__ import annotations

import re
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qslm_edge.errors import InputError
from qslm_edge.runner.power import meter_log
from qslm_edge.runner.power.meter_columns import FORMATS
from qslm_edge.runner.power.meter_log import MeterLog, read_log

FIXTURES = Path(__file__).resolve().parents[2] / "fixtures" / "power"
FNB = "timestamp sample_in_packet voltage_V current_A dp_V dn_V temp_C_ema energy_Ws capacity_As"


def energy_j(log: MeterLog) -> float:
    return float(np.sum(np.diff(log.time_s) * (log.power_w[1:] + log.power_w[:-1]) / 2))


def log_of(tmp_path: Path, text: str | bytes, form: str = "auto", supply_v: float | None = None) -> MeterLog:
    path = tmp_path / "log"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return read_log(path, form, supply_v)


def test_the_plain_form() -> None:
    log = read_log(FIXTURES / "generic_power.csv")
    assert (log.form, log.is_epoch, log.n_left_out, log.notes) == ("generic", True, 0, ())
    assert energy_j(log) == pytest.approx(0.812, abs=1e-5)  # stamps since 1970 hold 0.2 us in a double


def test_ppk2_needs_the_supply() -> None:
    path = FIXTURES / "ppk2_export.csv"
    with pytest.raises(InputError, match="a current and no voltage. Give the voltage set by --supply-v"):
        read_log(path)
    log = read_log(path, supply_v=5.0)
    assert (log.form, log.is_epoch) == ("ppk2", False)
    assert log.power_w.mean() / 5.0 == pytest.approx(0.4)
    assert log.period_s == pytest.approx(1e-5)
    assert log.notes == ("power is current x 5 V, as given: the supply was not measured",)


@pytest.mark.parametrize("digital", ["Bits", "D0,D1,D2,D3,D4,D5,D6,D7", "D0-D7"])
def test_every_export_of_ppk2(digital: str, tmp_path: Path) -> None:
    zeros = ",0" * len(digital.split(","))
    text = f"Timestamp(ms),Current(uA),{digital}\n0,400000{zeros}\n1,400000{zeros}\n"
    assert log_of(tmp_path, text, supply_v=5.0).power_w.tolist() == pytest.approx([2.0, 2.0])


def test_joulescope() -> None:
    log = read_log(FIXTURES / "joulescope_downsampled.csv")
    assert log.form == "joulescope"
    assert energy_j(log) == pytest.approx(1.4699, abs=1e-4)


def test_fnb58_with_stamps_out_of_order(tmp_path: Path) -> None:
    rows = ("1700000000.02 1 5.0 0.4", "1700000000.03 2 5.0 0.6", "1700000000.01 0 5.0 0.2")
    text = "\n" + "\n".join([FNB, *(f"{row} 1.1 1.0 30.5 0.0 0.0" for row in rows)])
    log = log_of(tmp_path, text)
    assert (log.form, log.is_epoch) == ("fnb58", True)
    assert log.power_w.tolist() == pytest.approx([1.0, 2.0, 3.0])
    assert log.notes == ("stamps out of order by up to 0.02 s were sorted",)
    iso = text.replace("1700000000.0", "2027-01-02T03:04:05.00")
    assert log_of(tmp_path, iso).power_w.tolist() == pytest.approx([1.0, 2.0, 3.0])


def test_ptdaemon(tmp_path: Path) -> None:
    rows = [
        f"Time,01-02-2027 03:04:0{second}.500,Watts,{second + 1}.5,Volts,230.1,Amps,0.1,PF,0.9,Mark,notset"
        for second in range(3)
    ]
    log = log_of(tmp_path, "\n".join(rows))
    assert (log.form, log.period_s) == ("ptdaemon", 1.0)
    assert log.power_w.tolist() == [1.5, 2.5, 3.5]
    assert log.time_s[0] == datetime(2027, 1, 2, 3, 4, 0, 500_000).timestamp()  # noqa: DTZ001 - local time
    assert log.is_epoch


@pytest.mark.parametrize(
    ("header", "row", "power_w"),
    [
        ("timestamp_s,power_w", "0,2", 2.0),
        ("time_ms,power_mw", "0,2", 2e-3),
        ("Time (us),Power [uW]", "0,2", 2e-6),
        ("t_s;voltage_mV;current_mA", "0;5000;2", 1e-2),
        ("t_s;power_w", "0;0,5", 0.5),
        ("t_s\tpower_w", "0\t2", 2.0),
        ('"timestamp_s","power_w"', '"0","2"', 2.0),
        ("\ufefftimestamp_s,power_w", "0,2", 2.0),
    ],
)
def test_units_are_read_from_the_header(header: str, row: str, power_w: float, tmp_path: Path) -> None:
    log = log_of(tmp_path, f"{header}\n{row}\n{row.replace('0', '1', 1)}\n")
    assert log.power_w[0] == pytest.approx(power_w)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "the log is empty"),
        ("\n\n", "the log is empty"),
        ("timestamp_s,power_w\n", "the log holds no power over time; found 0 readings"),
        ("timestamp_s,power_w\n1,2\n", "found 1 readings, 0 lines"),
        ("timestamp_s,power_w\nx,y\nx,y\n", "found 0 readings, 2 lines"),
        ("timestamp_s,power_hp\n1,2\n", "line 1: unknown column; found power_hp"),
        ("timestamp_s,power_kw\n1,2\n", "unknown column; found power_kw"),
        ("timestamp_s,power\n1,2\n", "unknown unit; found power; allowed: W, mW or uW"),
        ("timestamp,power_w\n1,2\n", "unknown unit; found timestamp; allowed: s, ms or us"),
        ("timestamp_s,power_a\n1,2\n", "unknown unit; found power_a"),
        ("timestamp_s,power_w,mood\n1,2,3\n", "unknown column; found mood"),
        ("timestamp_s,power_w,\n1,2,3\n", "unknown column; found an empty name"),
        ("timestamp_s,power_w,power_mw\n1,2,3\n", "two columns of power; found power_mw"),
        ("power_w,current_a\n1,2\n", "no column of time"),
        ("timestamp_s,voltage_v\n1,2\n", "no column of power, nor one of current"),
        ("timestamp_s,current_a\n1,2\n", "a current and no voltage"),
        (b"\xff\xfe1\x002\x00", "the log is not UTF-8 text; found other bytes after line 0"),
        (b"timestamp_s,power_w\n1,\xff\n", "the log is not UTF-8 text"),
        (
            "timestamp_s,power_w\n1,2\n9,2\n3,2\n4,2\n",
            "the clock of the log goes back; found 6 s before reading 3",
        ),
    ],
)
def test_what_cannot_be_used_is_one_line(text: str | bytes, words: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=re.escape(words)) as caught:
        log_of(tmp_path, text)
    assert caught.value.exit_code == 2
    assert "\n" not in caught.value.line()


def test_a_supply_beside_a_voltage_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--supply-v is for a log without voltage"):
        log_of(tmp_path, "timestamp_s,power_w\n1,2\n2,2\n", supply_v=5.0)


def test_files_that_are_not_there_or_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for path in (tmp_path / "none.csv", tmp_path):
        with pytest.raises(InputError, match="the log cannot be read"):
            read_log(path)
    monkeypatch.setattr(meter_log, "MAX_LOG_BYTES", 10)
    with pytest.raises(
        InputError, match="the log is too large; .*export it at a lower rate".replace("export", "Export")
    ):
        log_of(tmp_path, "timestamp_s,power_w\n1,2\n")


@pytest.mark.parametrize(
    "bad", ["2", "2,x", "2,nan", "2,inf", "2,1e9", "2,-1e9", "1e99,2", ",", "2,2,2", "2," + "9" * 5000]
)
def test_a_row_that_cannot_be_read_is_left_out_and_told(bad: str, tmp_path: Path) -> None:
    log = log_of(tmp_path, f"timestamp_s,power_w\n1,5\n{bad}\n3,5\n# a comment\n\n4,5\n")
    assert log.time_s.tolist() == [1.0, 3.0, 4.0]
    assert log.notes == ("1 lines cannot be read and are left out, the first is line 3",)
    cut = log_of(tmp_path, f"timestamp_s,power_w\n1,5\n2,5\n{bad}")
    assert cut.notes == ("line 4, the last, is cut short and left out",)


def test_a_header_that_comes_again_is_no_row(tmp_path: Path) -> None:
    log = log_of(tmp_path, "timestamp_s,power_w\n1,5\n\ntimestamp_s,power_w\n2,5\n")
    assert (log.n_left_out, log.time_s.tolist()) == (0, [1.0, 2.0])


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=200) | st.text("tsepowr_,;.0123456789\n -", max_size=200).map(str.encode))
@pytest.mark.parametrize("form", ["auto", *FORMATS])
def test_any_file_is_a_log_or_one_line(form: str, data: bytes, tmp_path: Path) -> None:
    try:
        log = log_of(tmp_path, data, form, 5.0 if form == "ppk2" else None)
    except InputError:
        return
    assert len(log.time_s) == len(log.power_w) >= 2
    assert np.isfinite(log.power_w).all()
    assert (np.diff(log.time_s) >= 0).all()
