"""A whole verification on this machine: provider, checks, verdict, and what stops it early."""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qslm_edge.bundle.reader import Bundle
from qslm_edge.bundle.writer import save_arrays, save_scores
from qslm_edge.errors import BundleError, EnvironmentFault, RuntimeFault, UsageError
from qslm_edge.metrics import Scores
from qslm_edge.runner import verify
from qslm_edge.runner.child import run_child
from qslm_edge.runner.decode_energy import no_energy
from qslm_edge.runner.limits import Limits
from qslm_edge.runner.runtime import CPU
from qslm_edge.runner.sessions.base import DEFAULT
from qslm_edge.runner.verify import VerifyOptions, choose_provider, verify_bundle
from tests.helpers.bundle_fixtures import CopyBundle
from tests.helpers.bundles import edit_manifest, make_bundle, resign
from tests.helpers.settings import DEFAULT_SETTINGS

CUDA, TENSORRT = "CUDAExecutionProvider", "TensorrtExecutionProvider"
KNOWN = [TENSORRT, CUDA, "OpenVINOExecutionProvider", CPU]
QUICK = VerifyOptions(power="off", steps=12)
Result = dict[str, Any]


@pytest.fixture(scope="module")
def lm_result(lm_bundle: Bundle) -> Result:
    return verify_bundle(lm_bundle.path, QUICK)


def checks_of(result: Result) -> dict[str, Result]:
    return {check["name"]: check for check in result["checks"]}


# ---- which provider


def choose(planned: list[str], available: list[str], asked: str | None = None) -> tuple[str, Result]:
    return choose_provider(planned, available=available, known=KNOWN, asked=asked)


def test_the_first_choice_of_the_profile_runs() -> None:
    assert choose([CUDA, CPU], [CUDA, CPU]) == (
        CUDA,
        {
            "planned": [CUDA, CPU],
            "available": [CUDA, CPU],
            "provider": CUDA,
            "as_planned": True,
            "note": "first choice of the profile",
        },
    )
    chosen, placement = choose([CPU], ["AzureExecutionProvider", CPU])
    assert (chosen, placement["as_planned"]) == (CPU, True)


@pytest.mark.parametrize("planned", [[CUDA, CPU], [CUDA], [TENSORRT, CUDA, CPU]])
def test_a_missing_provider_is_rehearsed_on_the_cpu_and_said_so(planned: list[str]) -> None:
    chosen, placement = choose(planned, [CPU])
    assert chosen == placement["provider"] == CPU
    assert placement["note"] == f"{planned[0]} is not in this onnxruntime: rehearsed on the CPU"
    assert placement["as_planned"] is False


def test_the_next_accelerator_of_the_profile_is_in_the_plan() -> None:
    chosen, placement = choose([TENSORRT, CUDA, CPU], [CUDA, CPU])
    assert (chosen, placement["as_planned"]) == (CUDA, True)
    assert placement["note"] == f"{TENSORRT} is not in this onnxruntime: {CUDA} is the profile's next choice"


def test_a_provider_that_was_asked_for_runs() -> None:
    chosen, placement = choose([CUDA, CPU], [CUDA, CPU], CPU)
    assert (chosen, placement["note"], placement["as_planned"]) == (CPU, "asked for by the user", False)
    chosen, placement = choose([CPU], [CUDA, CPU], CUDA)
    assert (chosen, placement["as_planned"]) == (CUDA, False)


def test_a_provider_that_was_asked_for_and_is_missing_is_an_error() -> None:
    with pytest.raises(RuntimeFault, match=f"lacks the .*provider; found {CPU}; allowed: {CUDA}") as caught:
        choose([CPU], [CPU], CUDA)
    assert caught.value.exit_code == 4
    with pytest.raises(UsageError, match=f"--provider: unknown .*; found cuda; allowed: {CPU}") as wrong:
        choose([CPU], [CPU], "cuda")
    assert wrong.value.exit_code == 2


def test_the_real_runtime_is_asked(lm_bundle: Bundle) -> None:
    with pytest.raises(RuntimeFault, match=f"lacks the execution provider; .*allowed: {CUDA}"):
        verify_bundle(lm_bundle.path, VerifyOptions(provider=CUDA))
    with pytest.raises(UsageError, match="unknown execution provider; found GPU"):
        verify_bundle(lm_bundle.path, VerifyOptions(provider="GPU"))


# ---- the result


def test_a_whole_verification_passes(lm_result: Result, lm_bundle: Bundle) -> None:
    assert json.loads(json.dumps(lm_result, allow_nan=False)) == lm_result
    assert lm_result.keys() == {
        *("schema", "tool_version", "verdict", "exit_code", "bundle", "task", "profile", "limits", "host"),
        *("versions", "rehearsal", "placement", "run_settings", "checks", "scoring", "decode", "conditions"),
    }
    assert lm_result["run_settings"] == DEFAULT_SETTINGS
    assert (lm_result["verdict"], lm_result["exit_code"]) == ("pass", 0)
    assert checks_of(lm_result).keys() == {
        *("golden vectors", "agreement with the search", "perplexity increase", "peak RSS"),
    }
    assert {check["verdict"] for check in lm_result["checks"]} == {"pass"}
    assert lm_result["bundle"] == {
        "digest": lm_bundle.digest,
        "files": lm_bundle.file_bytes,
        "bytes": sum(lm_bundle.file_bytes.values()),
        "weights_bytes": lm_bundle.manifest["weights"]["bytes"],
    }
    assert lm_result["versions"]["onnxruntime"]["value"] == lm_result["decode"]["session"]["onnxruntime"]
    assert lm_result["limits"]["max_degradation"] == 1e5
    decode = lm_result["decode"]
    assert decode.keys() == {
        *("session", "load_s", "memory", "first_token", "latency", "latency_samples_s", "prefill"),
        "energy",
    }
    assert decode["memory"]["prefill_peak_rss_bytes"] == decode["memory"]["prefill"]["peak_rss_bytes"]
    assert decode["energy"]["reason"] == "switched off (--power off)"
    assert lm_result["scoring"]["splits"].keys() == {"search", "report"}
    assert lm_result["decode"]["latency"]["n"] == 12
    assert lm_result["decode"]["session"]["threads"] == 1


def test_a_classifier_is_verified_by_its_accuracy(classifier_bundle: Bundle) -> None:
    result = verify_bundle(classifier_bundle.path, QUICK)
    check = checks_of(result)["accuracy drop"]
    assert (check["limit"], check["unit"]) == (100.0, "points")
    assert result["verdict"] == "pass"
    assert result["scoring"]["golden"]["measure"] == "largest difference of a class probability"


def test_the_gate_sees_what_was_measured(lm_result: Result, lm_bundle: Bundle) -> None:
    checks, scoring = checks_of(lm_result), lm_result["scoring"]
    report = scoring["splits"]["report"]["comparison"]
    assert checks["perplexity increase"]["value"] == report["degradation"]
    assert checks["perplexity increase"]["limit"] == 1e5
    against = scoring["splits"]["search"]["against_search"]
    assert checks["agreement with the search"]["value"] == against["value"]
    assert checks["agreement with the search"]["limit"] == against["allowed"]
    assert checks["golden vectors"]["value"] == scoring["golden"]["value"]
    assert checks["peak RSS"]["value"] == lm_result["decode"]["memory"]["decode_peak_rss_bytes"]
    assert checks["peak RSS"]["limit"] == lm_bundle.manifest["constraints"]["memory_budget_bytes"]


def test_scoring_and_decoding_are_processes_of_their_own(lm_result: Result) -> None:
    """This process holds torch; theirs hold the runtime alone."""
    scoring, decoding = lm_result["scoring"]["memory"], lm_result["decode"]["memory"]["steady"]
    assert scoring["peak_rss_bytes"] != decoding["peak_rss_bytes"]
    assert decoding["peak_rss_bytes"] < 150 * 10**6


def test_conditions_come_from_the_process_that_decodes(lm_result: Result) -> None:
    conditions = lm_result["conditions"]
    assert "conditions" not in lm_result["decode"]
    assert "timed decode run" in conditions["scope"]
    assert conditions["before"]["time_s"]["value"] < conditions["after"]["time_s"]["value"]
    assert isinstance(conditions["flags"], list)


# ---- constraints


def test_memory_below_the_measured_peak_fails(lm_bundle: Bundle) -> None:
    result = verify_bundle(
        lm_bundle.path, VerifyOptions(power="off", steps=4, limits=Limits(memory_budget_bytes=10**6))
    )
    check = checks_of(result)["peak RSS"]
    assert (check["verdict"], check["limit"]) == ("fail", 10**6)
    assert check["value"] > 10**7
    assert (result["verdict"], result["exit_code"]) == ("fail", 1)


def test_a_limit_of_the_user_replaces_that_of_the_bundle(lm_bundle: Bundle) -> None:
    result = verify_bundle(
        lm_bundle.path, VerifyOptions(power="off", steps=4, limits=Limits(max_degradation=-1e4))
    )
    check = checks_of(result)["perplexity increase"]
    assert (check["limit"], check["verdict"], result["exit_code"]) == (-1e4, "fail", 1)


# ---- what stops it


def no_child(*_arguments: Any) -> Any:
    pytest.fail("must not run anything")


def test_a_golden_mismatch_fails_and_nothing_more_is_measured(
    lm_bundle: Bundle, copy_bundle: CopyBundle
) -> None:
    copy = copy_bundle(lm_bundle)
    golden = lm_bundle.golden()
    save_arrays(copy / "golden.npz", {**golden, "expected": golden["expected"][..., ::-1] * np.float32(9)})
    resign(copy)
    titles: list[str] = []
    result = verify_bundle(copy, QUICK, lambda title, _share: titles.append(title))
    assert set(titles) == {"checking files"}
    assert (result["verdict"], result["exit_code"]) == ("fail", 1)
    assert [(c["name"], c["verdict"]) for c in result["checks"]] == [("golden vectors", "fail")]
    assert result["scoring"]["splits"] == {}
    assert result["decode"] is None
    assert result["conditions"]["before"]["time_s"]["value"] > 0
    assert "decoding did not run" in result["conditions"]["scope"]


def test_scores_of_another_search_fail(lm_bundle: Bundle, copy_bundle: CopyBundle) -> None:
    copy = copy_bundle(lm_bundle)
    scores = lm_bundle.expected_scores()
    moved = Scores(scores.kind, scores.index, scores.loss + scores.count * 0.05, scores.count, scores.correct)
    save_scores(copy / "eval" / "search-expected.npz", moved)
    resign(copy)
    result = verify_bundle(copy, QUICK)
    check = checks_of(result)["agreement with the search"]
    assert check["verdict"] == "fail"
    assert check["value"] == pytest.approx(-0.0488, abs=2e-3)  # where they part, and by how much
    assert "same items" in check["detail"]
    assert (result["verdict"], result["exit_code"]) == ("fail", 1)


def test_a_tampered_bundle_runs_nothing(
    lm_bundle: Bundle, copy_bundle: CopyBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = copy_bundle(lm_bundle)
    (copy / "model.bin").write_bytes(b"")
    monkeypatch.setattr(verify, "run_child", no_child)
    with pytest.raises(BundleError, match="model.bin: tampered or damaged bundle"):
        verify_bundle(copy, QUICK)


def test_an_old_or_missing_runtime_runs_nothing(lm_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify, "run_child", no_child)
    old = types.ModuleType("onnxruntime")
    old.__version__ = "1.16.3"  # type: ignore[attr-defined]
    for runtime, match in ((old, "too old for this bundle; found 1.16.3"), (None, "cannot be imported")):
        monkeypatch.setitem(sys.modules, "onnxruntime", runtime)
        with pytest.raises(RuntimeFault, match=match) as caught:
            verify_bundle(lm_bundle.path, QUICK)
        assert caught.value.exit_code == 4


def test_a_measuring_process_that_dies_ends_the_verification(
    lm_bundle: Bundle, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    script = tmp_path / "killed.py"
    script.write_text("import os; os.kill(os.getpid(), 9)", "utf-8")
    monkeypatch.setattr("qslm_edge.runner.child._command", lambda: ([sys.executable, str(script)], {}))
    with pytest.raises(EnvironmentFault, match="found killed by signal 9.*Memory was probably short"):
        verify_bundle(lm_bundle.path, QUICK)


# ---- on the board


def on_the_board(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify, "matches", lambda _match, _machine: (True, "this host is the board"))


def test_on_the_board_it_is_no_rehearsal(lm_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    on_the_board(monkeypatch)
    called: list[list[str]] = []

    def remember(arguments: list[str], on_progress: Any) -> Result:
        called.append(arguments)
        return run_child(arguments, on_progress)

    monkeypatch.setattr(verify, "run_child", remember)
    result = verify_bundle(lm_bundle.path, VerifyOptions(power="off", steps=4, threads=2))
    assert (result["rehearsal"], result["host"]["is_board"]) == (False, True)
    assert [call[0] for call in called] == ["_score", "_memory", "_latency", "_prefill"]
    assert all(call[1] == str(lm_bundle.path) and f"--provider={CPU}" in call for call in called)
    assert all("--threads=2" in call for call in called[1:])
    assert [call for call in called if "--steps=4" in call] == [called[2]]
    assert result["decode"]["session"]["threads"] == 2
    assert not {"--only-power-source", "--power-marker"} & set(called[1])


def test_a_source_that_the_user_names_goes_before_the_profiles(
    lm_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    called: list[list[str]] = []

    def remember(arguments: list[str], on_progress: Any) -> Result:
        called.append(arguments)
        return no_energy("not here") if arguments[0] == "_energy" else run_child(arguments, on_progress)

    monkeypatch.setattr(verify, "run_child", remember)
    options = VerifyOptions(power="smoke", steps=4, power_source="csv", power_marker=True)
    verify_bundle(lm_bundle.path, options)
    (asked,) = [set(words) for words in called if words[0] == "_energy"]
    assert {"--power-source=csv", "--only-power-source", "--power-marker"} < asked


def test_the_cpu_in_place_of_the_boards_gpu_is_a_rehearsal(
    lm_bundle: Bundle, copy_bundle: CopyBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = copy_bundle(lm_bundle)
    edit_manifest(copy, lambda m: m["runtime"].update(providers=[CUDA, CPU]))
    for prepare in (lambda _: None, on_the_board):
        prepare(monkeypatch)
        result = verify_bundle(copy, VerifyOptions(power="off", steps=4))
        assert result["rehearsal"] is True
        assert result["placement"]["note"] == f"{CUDA} is not in this onnxruntime: rehearsed on the CPU"
    assert result["host"]["is_board"] is True


# ---- odd places


def test_a_bundle_named_like_an_option_and_given_relatively(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_bundle(tmp_path, "sst2", name="-bundle with spaces")
    monkeypatch.chdir(tmp_path)
    assert verify_bundle(Path("-bundle with spaces"), QUICK)["verdict"] == "pass"


def test_one_window_has_no_error_and_is_inconclusive(cache: Path, tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path, report_windows=1, search_windows=2)
    result = verify_bundle(bundle.path, QUICK)
    assert json.dumps(result, allow_nan=False)
    assert checks_of(result)["perplexity increase"]["verdict"] == "inconclusive"
    assert (result["verdict"], result["exit_code"]) == ("inconclusive", 3)
    assert result["scoring"]["splits"]["report"]["bundle"]["standard_error"] is None


def test_the_energy_process_is_told_source_and_board(
    lm_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    called: list[list[str]] = []

    def answer(arguments: list[str], _on_progress: Any) -> Result:
        called.append(arguments)
        return {}

    monkeypatch.setattr(verify, "run_child", answer)
    run = verify._Runs(lm_bundle, VerifyOptions(power="release"), DEFAULT, True, lambda *_: None)
    run._measure("_energy", *run._power)
    assert {"--power=release", "--power-source=rapl", "--is-board", "--threads=1"} < set(called[0])


def test_a_bundle_that_changes_while_it_is_verified_gives_no_verdict(
    lm_bundle: Bundle, copy_bundle: CopyBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = copy_bundle(lm_bundle)
    real = verify._Runs.score

    def change(self: Any, budget: int | None) -> Result:
        found = real(self, budget)
        found["golden"]["ok"] = False  # nothing more is measured
        edit_manifest(copy, lambda m: m["model"].update(name="another"))
        return found

    monkeypatch.setattr(verify._Runs, "score", change)
    with pytest.raises(BundleError, match="the bundle changed while it was verified"):
        verify_bundle(copy, QUICK)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("max_latency_s", value) for value in ("fast", 0, -1.0, True, [1])),
        *(("min_decode_tokens_per_s", {}), ("max_energy_j_per_token", 0.0)),
    ],
)
def test_a_manifest_with_a_limit_that_is_none_is_refused_before_any_work(
    key: str, value: object, lm_bundle: Bundle, copy_bundle: CopyBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = copy_bundle(lm_bundle)
    edit_manifest(copy, lambda m: m["constraints"].update({key: value}))
    monkeypatch.setattr(verify, "run_child", no_child)
    with pytest.raises(BundleError, match=f"constraints.{key}: not a limit; found"):
        verify_bundle(copy, QUICK)
