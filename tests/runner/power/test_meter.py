"""External meters after the fact: the right joules by clock and by marker, and a reason for everything else."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qslm_edge.errors import InputError, UsageError
from qslm_edge.runner.power.meter import MeterOptions, import_log, meter_lines
from qslm_edge.runner.power.meter_align import align_by_marker
from qslm_edge.runner.power.meter_command import parse_start
from qslm_edge.runner.power.meter_log import MeterLog
from tests.helpers.meter_logs import (
    IDLE_W,
    MARKER,
    PHASES,
    RUN_W,
    START_S,
    TOKENS,
    WALL_S,
    Edit,
    readings,
    write_generic,
    write_result,
)

RUN_S = 10.0


def imported(folder: Path, log: Path, edit: Edit = lambda _run: None, marker: bool = True, **how: Any) -> Any:
    result = import_log(write_result(folder, edit, marker=marker), log, MeterOptions(**how))
    return json.loads(json.dumps(result, allow_nan=False))


def refused(folder: Path, log: Path, edit: Edit = lambda _run: None, marker: bool = True, **how: Any) -> str:
    with pytest.raises(InputError) as caught:
        imported(folder, log, edit, marker, **how)
    return caught.value.line()


@pytest.mark.parametrize("clock_error_s", [0.0, 0.7, -123.4])
def test_the_marker_finds_the_run_whatever_the_clock_says(clock_error_s: float, tmp_path: Path) -> None:
    found = imported(tmp_path, write_generic(tmp_path, clock_error_s))
    energy, alignment = found["energy"], found["alignment"]
    assert (found["exit_code"], energy["status"]) == (0, "measured")
    assert alignment["method"] == "marker"
    assert alignment["score"] > 0.95
    assert alignment["offset_s"] == pytest.approx(WALL_S + clock_error_s, abs=alignment["error_s"])
    gross, net = RUN_W * RUN_S / TOKENS, (RUN_W - IDLE_W) * RUN_S / TOKENS
    assert abs(energy["gross_j_per_token"] - gross) < energy["gross_uncertainty_j_per_token"] < 0.01 * gross
    assert abs(energy["net_j_per_token"] - net) < energy["net_uncertainty_j_per_token"] < 0.02 * net
    assert energy["source"]["scope"].startswith("external meter")
    assert len(energy["runs"][0]["samples"]) > 1000


def test_clocks_that_agree_give_the_figure_with_the_cost_of_their_error(tmp_path: Path) -> None:
    found = imported(tmp_path, write_generic(tmp_path), marker=False, clock_error_s=0.5)
    energy = found["energy"]
    assert found["alignment"]["method"] == "wall clock"
    assert energy["gross_j_per_token"] == pytest.approx(RUN_W * RUN_S / TOKENS, rel=0.01)
    # half a second of idle comes in at one end while as much load goes out at the other
    assert energy["alignment_error_j"] == pytest.approx(0.5 * (RUN_W - IDLE_W), rel=0.1)
    assert energy["gross_uncertainty_j_per_token"] * TOKENS > energy["alignment_error_j"]


@pytest.mark.parametrize("clock_error_s", [-0.4, 0.4])
def test_a_clock_that_is_off_stays_within_the_uncertainty(clock_error_s: float, tmp_path: Path) -> None:
    """The idle phases give up what may belong to their neighbours, so that net holds too."""
    energy = imported(tmp_path, write_generic(tmp_path, clock_error_s), marker=False, clock_error_s=0.5)[
        "energy"
    ]
    for kind, watts in (("gross", RUN_W), ("net", RUN_W - IDLE_W)):
        off = abs(energy[f"{kind}_j_per_token"] - watts * RUN_S / TOKENS)
        assert off < energy[f"{kind}_uncertainty_j_per_token"]
    assert energy["idle_w"] == pytest.approx(IDLE_W, rel=0.01)


def write_ppk2(folder: Path, rate_hz: float) -> Path:
    path = folder / "ppk2.csv"
    rows = [
        f"{1000 * (time_s - START_S):.3f},{1e6 * watts / 5:.3f},00000000"
        for time_s, watts in readings(rate_hz, before_s=2.0)
    ]
    path.write_text("\n".join(["Timestamp(ms),Current(uA),D0-D7", *rows]), "utf-8")
    return path


def test_a_log_from_its_own_start_needs_marker_or_start(tmp_path: Path) -> None:
    log = write_ppk2(tmp_path, 200.0)
    by_marker = imported(tmp_path, log, supply_v=5.0)
    by_start = imported(tmp_path, log, marker=False, supply_v=5.0, log_start_s=WALL_S + START_S)
    for found in (by_marker, by_start):
        assert found["energy"]["gross_j_per_token"] == pytest.approx(RUN_W * RUN_S / TOKENS, rel=0.01)
    reason = refused(tmp_path, log, marker=False, supply_v=5.0)
    assert "count from its start" in reason
    assert "--log-start" in reason
    assert "wall-clock stamps of its own" in refused(
        tmp_path, write_generic(tmp_path), marker=False, log_start_s=0.0
    )


def test_a_fast_log_is_reduced_without_losing_energy(tmp_path: Path) -> None:
    found = imported(tmp_path, write_ppk2(tmp_path, 1000.0), supply_v=5.0)
    run = found["energy"]["runs"][0]
    assert run["rate_hz"] == 100.0
    assert "means over 10 ms" in run["source"]["notes"]
    assert found["log"]["n_readings"] == 45_000
    assert len(run["samples"]) < 5000
    assert run["gross_j_per_token"] == pytest.approx(RUN_W * RUN_S / TOKENS, rel=0.005)


def test_the_result_names_its_sources(tmp_path: Path) -> None:
    found = imported(tmp_path, write_generic(tmp_path))
    assert found["schema"] == "qslm-edge/meter/1"
    assert found["verify"] == {"file": "verify.json", "bundle_digest": "ab"}
    log = found["log"]
    assert (log["file"], log["format"], log["n_left_out"]) == ("log.csv", "generic", 0)
    assert re.fullmatch("[0-9a-f]{64}", log["sha256"])
    lines = meter_lines(found)
    assert any(line.startswith("alignment: marker, within 0.02 s, correlation ") for line in lines)
    assert any(line.startswith("energy a token, gross: 16") and "± " in line for line in lines)
    assert any(line.startswith("a shift of the clocks by 0.02 s: ") for line in lines)
    assert lines[-1] == "scope: external meter: all that hangs on its output"


def test_a_report_that_holds_the_verification_is_taken_too(tmp_path: Path) -> None:
    path = write_result(tmp_path)
    path.write_text(json.dumps({"verification": json.loads(path.read_text())}))
    assert import_log(path, write_generic(tmp_path), MeterOptions())["exit_code"] == 0


# ---- no figure


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"rate_hz": 1.0}, "samples in the window, 20 are needed"),
        ({"after_s": -10.0}, "samples cover"),
        ({"after_s": -30.0}, "0 samples in the window"),
    ],
)
def test_a_log_that_does_not_hold_the_window_gives_no_figure(
    how: dict[str, float], words: str, tmp_path: Path
) -> None:
    found = imported(tmp_path, write_generic(tmp_path, **how), marker=False)
    assert (found["exit_code"], found["energy"]["status"]) == (3, "rejected")
    assert words in found["energy"]["reason"]
    assert found["energy"]["gross_j_per_token"] is None
    assert meter_lines(found)[-1].startswith("energy: rejected: ")


def test_a_gap_in_the_log_gives_no_figure(tmp_path: Path) -> None:
    path = write_generic(tmp_path)
    begin_s = WALL_S + PHASES["run"][0] + 4
    lines = path.read_text().splitlines()
    kept = [line for line in lines[1:] if not begin_s < float(line.split(",")[0]) < begin_s + 0.2]
    path.write_text("\n".join([lines[0], *kept]))
    assert "a gap of" in imported(tmp_path, path)["energy"]["reason"]


def test_leads_that_are_swapped_are_told(tmp_path: Path) -> None:
    path = write_generic(tmp_path)
    path.write_text("\n".join(re.sub(r",([0-9])", r",-\1", line) for line in path.read_text().splitlines()))
    found = imported(tmp_path, path, marker=False)
    assert found["energy"]["reason"].endswith("the leads of the meter are probably swapped")


def test_a_log_without_the_marker_is_refused(tmp_path: Path) -> None:
    late = write_generic(tmp_path, before_s=-12.0)
    assert "the marker is not found in the log" in refused(tmp_path, late)
    assert "Log from before the start of verify" in refused(tmp_path, late)
    short = write_generic(tmp_path, before_s=-30.0)
    assert "the log is shorter than the marker" in refused(tmp_path, short)
    assert "the result has no marker" in refused(tmp_path, late, marker=False, align="marker")
    by_clock = imported(tmp_path, late, align="clock")  # never in silence
    assert by_clock["alignment"]["method"] == "wall clock"


def test_a_flat_log_has_no_marker(tmp_path: Path) -> None:
    path = tmp_path / "flat.csv"
    path.write_text("\n".join(["timestamp_s,power_w", *(f"{i / 20},5.0" for i in range(1000))]))
    assert "best correlation 0.00" in refused(tmp_path, path)


def test_a_marker_at_two_places_is_ambiguous() -> None:
    time_s = np.arange(0, 60, 0.02)
    power_w = np.full(len(time_s), IDLE_W)
    for begin_s in (5.0, 35.0):
        for start_s, end_s in MARKER:
            inside = (time_s >= begin_s + start_s - START_S) & (time_s < begin_s + end_s - START_S)
            power_w[inside] = RUN_W
    log = MeterLog("log", "", "generic", time_s, power_w, False, 0, ())
    with pytest.raises(InputError, match=r"best correlation 1\.00, another place 1\.00"):
        align_by_marker(MARKER, log)


def test_a_wall_clock_that_was_set_is_refused(tmp_path: Path) -> None:
    def jump(run: dict[str, Any]) -> None:
        run["wall_phases"]["idle_after"] = [edge + 2 for edge in run["wall_phases"]["idle_after"]]

    reason = refused(tmp_path, write_generic(tmp_path), jump, marker=False)
    assert "the wall clock of the board was set during the run; found a step of 2 s" in reason
    assert "has no wall-clock stamps" in refused(
        tmp_path, write_generic(tmp_path), lambda run: run.pop("wall_phases"), marker=False
    )


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda run: run["phases"].pop("run"), "damaged"),
        (lambda run: run["phases"].update(run=[5, 1]), "damaged"),
        (lambda run: run["phases"].update(run=["a", 1]), "damaged"),
        (lambda run: run["phases"].update(run=3), "damaged"),
        (lambda run: run["phases"].update(run=[0, 1e300]), "damaged"),
        (lambda run: run["phases"].update(run=[0, 10**400]), "damaged"),
        (lambda run: run["phases"].update(run=[math.inf, math.inf]), "damaged"),
        (lambda run: run.update(tokens=0), "damaged"),
        (lambda run: run.update(tokens=None), "damaged"),
        (lambda run: run.update(marker=[1]), "damaged"),
        (lambda run: run.update(wall_phases=[1]), "damaged"),
        (lambda run: run.pop("phases"), "the result has no power run; found why"),
    ],
)
def test_a_damaged_run_is_one_line(edit: Edit, words: str, tmp_path: Path) -> None:
    assert words in refused(tmp_path, write_generic(tmp_path), edit)


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "3", "null", '{"decode": null}', '{"decode": {"energy": {}}}', "[" * 100_000, "\x00"],
)
def test_what_is_no_result(text: str, tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(InputError, match="not a result of verify"):
        import_log(path, write_generic(tmp_path), MeterOptions())
    with pytest.raises(InputError, match="the result cannot be read"):
        import_log(tmp_path / "none.json", write_generic(tmp_path), MeterOptions())


@pytest.mark.parametrize(
    "options",
    [{"supply_v": 0.0}, {"supply_v": math.nan}, {"clock_error_s": -1.0}, {"clock_error_s": math.inf}],
)
def test_impossible_options(options: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="out of range"):
        import_log(write_result(tmp_path), write_generic(tmp_path), MeterOptions(**options))


def test_times_of_the_start() -> None:
    assert parse_start(None) is None
    assert parse_start("1700000000.5") == 1700000000.5
    assert parse_start("2027-01-02T03:04:05Z") == parse_start("2027-01-02T04:04:05+01:00")
    with pytest.raises(UsageError, match="--log-start: not a time; found noon"):
        parse_start("noon")
