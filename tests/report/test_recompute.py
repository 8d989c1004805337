"""A result derived again from its raw samples: equal as it is, and parted wherever anything was changed."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from qslm_edge.cli.app import app
from qslm_edge.errors import RunError
from qslm_edge.report.recompute import Recomputation, read_result, recompute
from qslm_edge.report.replay import replay_energy
from qslm_edge.report.summary import summary_rows
from qslm_edge.runner.power import EnergyResult, Reading, energy_dict, measure_energy
from qslm_edge.runner.power.fake import FakeSource, VirtualTime
from qslm_edge.runner.verify import VerifyOptions, verify_bundle
from tests.helpers.bundles import cache, make_bundle

__all__ = ["cache"]

Result = dict[str, Any]
Change = Callable[[Result], object]


@pytest.fixture(scope="module", params=["wikitext2", "sst2"])
def verified(request: pytest.FixtureRequest, cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Result:
    """A verification with all of its raw samples."""
    bundle = make_bundle(tmp_path_factory.mktemp("recompute"), str(request.param))
    return verify_bundle(bundle.path, VerifyOptions(power="off", steps=60))


def energy_run(kind: Any = "counter", **how: Any) -> EnergyResult:
    """A run of the protocol on a clock of its own: 3 W idle, 12 W from the warm-up on."""
    time = VirtualTime()
    source = FakeSource(time.clock, lambda now_s: 12.0 if 1008 <= now_s < 1023 else 3.0, kind=kind, **how)
    return measure_energy(
        source,
        time.run(100.0),
        settle_s=2,
        idle_s=6,
        warmup_s=5,
        run_s=10,
        idle_after_s=4,
        clock=time.clock,
        sleep=time.sleep,
        recorder=time.recorder,
    )


def stored(results: list[EnergyResult]) -> Result:
    """As a file holds it."""
    found: Result = json.loads(json.dumps(energy_dict(results)))
    return found


@pytest.fixture
def result(verified: Result) -> Result:
    """The same with three measured energy runs, on the board, under limits; not flagged."""
    found = copy.deepcopy(verified)
    found["decode"]["energy"] = {**stored([energy_run(), energy_run(), energy_run()]), "conditions": None}
    return found


def paths(found: Recomputation) -> set[str]:
    return {part.path for part in found.differences}


def test_a_verification_follows_from_its_raw_samples(verified: Result) -> None:
    found = recompute(verified)
    assert (found.equal, found.differences) == (True, ())
    assert found.compared > 120


def test_measured_energy_follows_from_its_readings(result: Result) -> None:
    assert paths(recompute(result)) == set()


@pytest.mark.parametrize("kind", ["counter", "power"])
def test_the_protocol_fed_with_what_was_stored_gives_the_same(kind: Any) -> None:
    before = stored([energy_run(kind), energy_run(kind)])
    assert before["status"] == "measured"
    assert before["gross_j_per_token"] == pytest.approx(0.12, rel=0.01)
    assert json.loads(json.dumps(replay_energy(before["runs"]))) == before


def test_a_rejected_window_is_rejected_again() -> None:
    def lose(reading: Reading) -> Reading:
        return Reading(reading.time_s, reason="the sensor slept") if reading.time_s > 1014 else reading

    before = stored([energy_run(edit=lose)])
    assert before["status"] == "rejected"
    assert json.loads(json.dumps(replay_energy(before["runs"]))) == before


def change_sample(result: Result) -> None:
    result["decode"]["latency_samples_s"][7] *= 50


def change_score(result: Result) -> None:
    scores = result["scoring"]["splits"]["report"]["scores"]
    scores["loss"][0] += 1.0
    scores["correct"][0] = 1 - min(1, scores["correct"][0])


def change_float(result: Result) -> None:
    scores = result["scoring"]["splits"]["report"]["float_scores"]
    scores["loss"][0] += 1.0
    scores["correct"][0] = 1 - min(1, scores["correct"][0])


def change_reading(result: Result) -> None:
    for sample in result["decode"]["energy"]["runs"][1]["samples"][150:]:
        sample["energy_j"] += 5.0


def change_verdict(result: Result) -> None:
    result["checks"][-1]["verdict"] = "fail"


def change_clocks(result: Result) -> None:
    low = {"cpu.policy0.clock_hz": 10**9, "cpu.policy0.max_clock_hz": 2 * 10**9}
    result["conditions"]["clocks"] = [[low] * 3]


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        (change_sample, ["decode.latency.total_s", "decode.latency.mean_s"]),
        (change_score, ["scoring.splits.report.bundle.", "scoring.splits.report.comparison.delta_nll"]),
        (change_float, ["scoring.splits.report.float.", "scoring.splits.report.comparison.delta_nll"]),
        (change_reading, ["decode.energy.runs[1].energy_j", "decode.energy.gross_j_per_token"]),
        (change_verdict, ["checks["]),
        (change_clocks, ["conditions.flags"]),
        (
            lambda r: r["conditions"]["flags"].clear() or r["conditions"]["flags"].append("x"),
            ["conditions.flags"],
        ),
        (lambda r: r.update(verdict="fail", exit_code=1), ["verdict", "exit_code"]),
        (lambda r: r.update(rehearsal=not r["rehearsal"]), ["rehearsal"]),
        (lambda r: r["decode"]["memory"].update(decode_peak_rss_bytes=1), ["decode.memory.decode_peak_rss"]),
        (lambda r: r["decode"]["latency"].update(p95_s=0.0), ["decode.latency.p95_s"]),
        (lambda r: r["decode"]["prefill"].update(tokens_per_s=1.0), ["decode.prefill.tokens_per_s"]),
        (lambda r: r["limits"].update(memory_budget_bytes=1), ["checks["]),
        (lambda r: r["scoring"]["golden"].update(value=9.0), ["scoring.golden.ok", "checks["]),
    ],
)
def test_whatever_was_changed_parts(change: Change, parts: list[str], result: Result) -> None:
    change(result)
    found = paths(recompute(result))
    for part in parts:
        assert any(path.startswith(part) for path in found), (part, found)


@pytest.mark.parametrize(
    "remove",
    [
        lambda r: r["decode"].pop("latency_samples_s"),
        lambda r: r["scoring"]["splits"]["report"].pop("float_scores"),
        lambda r: r["scoring"]["splits"]["report"].update(scores=None),
        lambda r: r["scoring"]["splits"]["report"]["scores"]["loss"].pop(),
        lambda r: r["scoring"]["splits"]["report"]["float_scores"].update(index=[10**6]),
        lambda r: r["decode"]["energy"]["runs"][0]["phases"].pop("run"),
        lambda r: r["decode"]["energy"]["runs"][0].update(samples=[{"when": 1.0}]),
        lambda r: r.pop("limits"),
        lambda r: r["limits"].update(unknown=1),
        lambda r: r["decode"].update(latency_samples_s=[-1.0]),
        lambda r: r["conditions"].update(before=None),
    ],
)
def test_what_is_missing_or_damaged_is_one_line(remove: Change, result: Result) -> None:
    remove(result)
    with pytest.raises(RunError, match="raw samples are") as caught:
        recompute(result, "verify.json")
    assert "\n" not in caught.value.line()
    assert caught.value.exit_code == 2


def test_a_report_is_recomputed_with_its_table(small: Result, verified: Result) -> None:
    """The stored report with a verification whose raw lists are whole."""
    if verified["task"]["name"] != "wikitext2":
        return
    report = {**small, "verification": verified, "verdict": verified["verdict"]}
    report |= {"exit_code": verified["exit_code"], "rehearsal": verified["rehearsal"]}
    report["summary"] = summary_rows(report)
    assert paths(recompute(report)) == set()
    report["summary"][0]["after"] = "1.00"
    report["verdict"] = "inconclusive"
    assert paths(recompute(report)) == {"verdict", "summary[0].after"}


def test_a_report_cut_short_parts_or_is_refused(any_report: Result) -> None:
    """The stored samples of the tests hold three items of more."""
    assert "verification.scoring.splits.report.n_items" in paths(recompute(any_report))


# ---- the command


def run(*words: str | Path) -> Any:
    return CliRunner().invoke(app, ["report", *(str(word) for word in words)])


def test_the_command_says_equal_or_where_they_part(verified: Result, tmp_path: Path) -> None:
    file = tmp_path / "verify.json"
    file.write_text(json.dumps(verified), "utf-8")
    equal = run(file, "--recompute")
    assert (equal.exit_code, equal.stderr) == (0, "")
    assert equal.stdout.splitlines()[-1].startswith("Equal: ")
    assert "Not recomputed: golden vectors" in equal.stdout
    file.write_text(json.dumps({**verified, "verdict": "fail"}), "utf-8")
    parted = run(file, "--recompute")
    assert parted.exit_code == 1
    assert parted.stdout.splitlines()[0] == f"verdict: stored 'fail', recomputed '{verified['verdict']}'"
    document = json.loads(run(file, "--recompute", "--json").stdout)
    assert document["equal"] is False
    assert [part["path"] for part in document["differences"]] == ["verdict"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no result here"),
        ("{", "the result cannot be read"),
        ("[]", "not a result of this version; found list"),
        ('{"schema": "qslm-edge/verify/9"}', "found qslm-edge/verify/9"),
        ('{"schema": "qslm-edge/verify/1"}', "raw samples are missing or damaged; found KeyError"),
    ],
)
def test_what_is_no_result_is_2(content: str | None, message: str, tmp_path: Path) -> None:
    file = tmp_path / "verify.json"
    if content is not None:
        file.write_text(content, "utf-8")
    done = run(file, "--recompute")
    assert done.exit_code == 2
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_comparison_is_no_view(fixtures: Path, tmp_path: Path) -> None:
    for words in (["--format", "html"], ["--output", str(tmp_path / "x")]):
        done = run(fixtures / "small.json", "--recompute", *words)
        assert done.exit_code == 2
        assert "a comparison is no view of the report" in done.stderr


def test_a_run_directory_means_its_report(small: Result, tmp_path: Path) -> None:
    (tmp_path / "report.json").write_text(json.dumps(small), "utf-8")
    assert read_result(tmp_path) == small
