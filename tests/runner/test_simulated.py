"""A recorded tree plays the board: every result says so, and none is a pass."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from qslm_edge.bundle.reader import Bundle
from qslm_edge.runner.decode_energy import _power_source
from qslm_edge.runner.power import PowerSource
from qslm_edge.runner.simulated import LABEL, mark_result
from qslm_edge.runner.stream import DecodeOptions
from qslm_edge.runner.verify import VerifyOptions, verify_bundle
from tests.helpers.bundle_fixtures import CopyBundle
from tests.helpers.bundles import edit_manifest

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures" / "power"


@pytest.mark.parametrize(
    ("verdict", "code", "marked", "marked_code"),
    [
        ("pass", 0, "simulated", 3),
        ("fail", 1, "fail", 1),
        ("inconclusive", 3, "inconclusive", 3),
    ],
)
def test_a_simulated_result_is_never_a_pass(verdict: str, code: int, marked: str, marked_code: int) -> None:
    result: dict[str, Any] = {
        "verdict": verdict,
        "exit_code": code,
        "rehearsal": False,
        "host": {"machine": {}, "is_board": True, "why": "a Jetson"},
        "conditions": {"flags": [], "scope": "the edges of the run"},
        "checks": [],
    }
    before = repr(result)
    found = mark_result(result)
    assert (found["verdict"], found["exit_code"], found["rehearsal"]) == (marked, marked_code, True)
    assert found["host"] == {
        "machine": {},
        "is_board": False,
        "simulated": True,
        "why": f"{LABEL}: a Jetson",
    }
    assert found["conditions"]["scope"] == f"{LABEL}; the edges of the run"
    assert repr(result) == before


def test_a_bundle_on_a_recorded_board(lm_bundle: Bundle, copy_bundle: CopyBundle) -> None:
    copy = copy_bundle(lm_bundle)
    match = {"device_tree_model": ["Jetson Orin Nano"]}
    edit_manifest(copy, lambda manifest: manifest["profile"].update(match=match))
    options = VerifyOptions(power="off", steps=12, root=FIXTURES / "jetson_orin_nano")
    result = verify_bundle(copy, options)
    assert (result["verdict"], result["exit_code"]) == ("simulated", 3)
    assert result["host"]["machine"]["arch"] == "aarch64"
    assert "Jetson Orin Nano" in result["host"]["why"]
    assert result["host"]["is_board"] is False
    before = result["conditions"]["before"]
    assert before["cpu.cpu0.max_clock_hz"]["value"] == 1_344_000_000
    assert result["conditions"]["scope"].startswith(LABEL)


def test_power_is_read_from_the_tree_alone_and_labelled() -> None:
    here = DecodeOptions(power_source="rapl", root=FIXTURES / "amd_rapl")
    source = _power_source(here)
    assert isinstance(source, PowerSource)
    assert source.scope.startswith(f"{LABEL}: processor packages")
    other = _power_source(DecodeOptions(power_source="ina3221", root=FIXTURES / "amd_rapl"))
    assert not isinstance(other, PowerSource)  # nothing stands in for the board's own interface
