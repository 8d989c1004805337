"""Targets: this machine, and a clear answer for what this version does not know."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qslm_edge.bundle.reader import Bundle
from qslm_edge.errors import BundleError, UsageError
from qslm_edge.runner.verify import VerifyOptions
from qslm_edge.targets import TARGETS, Target, get_target, local
from qslm_edge.targets.local import LocalTarget


def test_the_local_target_is_this_machine() -> None:
    assert isinstance(get_target("local"), LocalTarget)
    assert list(TARGETS) == ["local"]
    assert issubclass(LocalTarget, Target)


@pytest.mark.parametrize("name", ["ssh://me@board", "Local", "", "nowhere"])
def test_an_unknown_target_is_one_line_with_the_next_step(name: str) -> None:
    with pytest.raises(UsageError, match="--target: unknown target; found .*allowed: local") as caught:
        get_target(name)
    assert "copy the bundle there and run `python3 run.pyz verify`" in caught.value.line()
    assert caught.value.exit_code == 2


def test_the_local_target_hands_everything_to_the_runner(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    given: list[Any] = []

    def verify(path: Path, options: VerifyOptions, progress: Callable[[str, float], None]) -> dict[str, Any]:
        given.extend([path, options])
        progress("loading", 0.5)
        return {"verdict": "pass"}

    monkeypatch.setattr(local, "verify_bundle", verify)
    told: list[tuple[str, float]] = []
    options = VerifyOptions(threads=2)
    result = LocalTarget().verify(tmp_path, options, lambda title, share: told.append((title, share)))
    assert result == {"verdict": "pass"}
    assert given == [tmp_path, options]
    assert told == [("loading", 0.5)]


def test_the_local_target_verifies_a_bundle(classifier_bundle: Bundle, tmp_path: Path) -> None:
    options = VerifyOptions(power="off", steps=4)
    assert LocalTarget().verify(classifier_bundle.path, options, lambda *_: None)["verdict"] == "pass"
    with pytest.raises(BundleError, match="not a bundle"):
        LocalTarget().verify(tmp_path, options, lambda *_: None)
