"""`verify --engine native`: the same verdict from the same items, and what the result says of the engine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from qslm_edge.bundle.reader import Bundle
from qslm_edge.runner.__main__ import main
from qslm_edge.runner.native.build import LIBRARY_VARIABLE
from tests.helpers.native import library, needs_compiler

QUICK = ("--power", "off", "--steps", "20", "--json", "--engine", "native")


def verified(path: Path, capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, dict[str, Any]]:
    code = main(["verify", str(path), *QUICK, *words])
    result: dict[str, Any] = json.loads(capsys.readouterr().out)
    return code, result


@needs_compiler
def test_both_tasks_pass_as_the_search_measured_them(
    lm_bundle: Bundle,
    classifier_bundle: Bundle,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(LIBRARY_VARIABLE, str(library()))
    for bundle in (lm_bundle, classifier_bundle):
        code, result = verified(bundle.path, capsys, "--threads", "2")
        assert (code, result["verdict"]) == (0, "pass"), result
        for part in (result["scoring"], result["decode"]):
            session = part["session"]
            assert (session["engine"], session["provider"], session["onnxruntime"]) == (
                "native",
                "native",
                None,
            )
            assert session["native"].startswith("cpu ")
        assert result["decode"]["session"]["threads"] == 2
        assert result["decode"]["latency"]["n"] == 20


def test_without_a_compiler_it_is_4_before_anything_runs(
    lm_bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QSLM_EDGE_CACHE", str(tmp_path))
    monkeypatch.setenv("CXX", "absent-c++")
    monkeypatch.delenv(LIBRARY_VARIABLE, raising=False)
    code, result = verified(lm_bundle.path, capsys)
    assert code == 4
    assert "no C++ compiler" in result["error"]["message"]


def test_a_provider_is_not_for_it(
    lm_bundle: Bundle, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qslm_edge.runner.sessions.native.NativeSession.load_library", lambda: None)
    code, result = verified(lm_bundle.path, capsys, "--provider", "CPUExecutionProvider")
    assert code == 2
    assert "a provider belongs to onnxruntime" in result["error"]["message"]
