"""run-settings.json: used on the machine that it was measured on, ignored elsewhere, refused where damaged."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qslm_edge.bundle.reader import Bundle, open_bundle
from qslm_edge.errors import BundleError, OutputError, QslmError
from qslm_edge.runner.machine import identify
from qslm_edge.runner.run_settings import (
    RUN_SETTINGS,
    Asked,
    Circumstances,
    RunSettings,
    check_writable,
    settings_in_force,
    settings_words,
    write_run_settings,
)
from tests.helpers.bundle_fixtures import CopyBundle

TUNED = RunSettings(threads=4, spinning=True, prefill_chunk=64)
MACHINE = {
    "arch": "aarch64",
    "cpu_model": "4x Cortex-A76",
    "cores_usable": 4,
    "device_tree_model": "Raspberry Pi 5",
    "gpu_names": [],
}


@pytest.fixture
def bundle(lm_bundle: Bundle, copy_bundle: CopyBundle) -> Bundle:
    return open_bundle(copy_bundle(lm_bundle))


@pytest.fixture
def now(bundle: Bundle) -> Circumstances:
    return Circumstances(bundle.digest, "1.31.1", "CPUExecutionProvider", MACHINE)


@pytest.fixture
def kept(bundle: Bundle, now: Circumstances) -> Path:
    """Settings that were tuned on `MACHINE`."""
    write_run_settings(bundle, now, TUNED, {"decode": []}, "0.1.0")
    return bundle.file(RUN_SETTINGS)


def change(path: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    document = json.loads(path.read_text("utf-8"))
    edit(document)
    path.write_text(json.dumps(document), "utf-8")


def test_without_a_file_the_defaults_hold(bundle: Bundle, now: Circumstances) -> None:
    found = settings_in_force(bundle, now, Asked())
    assert (found.settings, found.note, found.tuning) == (RunSettings(), None, None)
    assert set(found.sources.values()) == {"default"}
    text = settings_words(found.to_dict())
    assert text == "onnxruntime, 1 thread, prompts in chunks of 128 (defaults)"


def test_what_was_written_is_used_and_no_file_of_the_bundle_changes(
    bundle: Bundle, now: Circumstances, kept: Path
) -> None:
    found = settings_in_force(bundle, now, Asked())
    assert (found.settings, found.note) == (TUNED, None)
    assert set(found.sources.values()) == {RUN_SETTINGS}
    assert found.tuning == json.loads(kept.read_text("utf-8"))
    assert settings_words(found.to_dict()).endswith(
        f"4 threads, spinning, prompts in chunks of 64 ({RUN_SETTINGS})"
    )
    bundle.check_files()
    assert bundle.digest == now.bundle
    assert [path.name for path in bundle.path.glob(".run*")] == []
    session = found.settings.session("CPUExecutionProvider")
    assert (session.threads, session.spinning, session.prefill_chunk) == (4, True, 64)


def test_flags_go_before_the_file(bundle: Bundle, now: Circumstances, kept: Path) -> None:
    found = settings_in_force(bundle, now, Asked(threads=1, spinning=False))
    assert found.settings == RunSettings(prefill_chunk=64)
    assert (found.sources["threads"], found.sources["prefill_chunk"]) == ("flag", RUN_SETTINGS)
    assert settings_words(found.to_dict()).endswith(f"({RUN_SETTINGS} and flags)")


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"bundle": "0" * 64}, "another bundle ({digest})"),
        ({"onnxruntime": "1.30.0"}, "another onnxruntime (1.31.1)"),
        ({"provider": "CUDAExecutionProvider"}, "another provider (CPUExecutionProvider)"),
        ({"machine": MACHINE | {"cores_usable": 2}}, "another machine (cores_usable 4)"),
        ({"machine": MACHINE | {"cpu_model": "x"}}, "another machine (cpu_model 4x Cortex-A76)"),
    ],
)
def test_settings_of_elsewhere_are_ignored_and_that_is_told(
    other: dict[str, Any], said: str, bundle: Bundle, now: Circumstances, kept: Path
) -> None:
    found = settings_in_force(bundle, replace(now, **other), Asked())
    assert (found.settings, found.tuning) == (RunSettings(), None)
    assert found.note == (
        f"run-settings.json is ignored: measured with {said.format(digest=now.bundle[:40])}"
    )
    assert settings_words(found.to_dict()).endswith(found.note)


def test_an_engine_of_another_runner_or_not_asked_for_is_ignored(
    bundle: Bundle, now: Circumstances, kept: Path
) -> None:
    found = settings_in_force(bundle, now, Asked(engine="other"))
    assert found.settings == RunSettings(engine="other")
    assert found.note is not None
    assert "measured for the engine onnxruntime" in found.note
    change(kept, lambda d: d["chosen"].update(engine="turbo"))
    found = settings_in_force(bundle, now, Asked())
    assert found.settings == RunSettings()
    assert found.note is not None
    assert "engine turbo is not in this runner" in found.note


def test_an_engine_in_the_file_gives_way_to_a_provider_by_flag(
    bundle: Bundle, now: Circumstances, kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qslm_edge.runner.run_settings.ENGINES", ("onnxruntime", "turbo"))
    change(kept, lambda d: d["chosen"].update(engine="turbo"))
    assert settings_in_force(bundle, now, Asked()).settings.engine == "turbo"
    found = settings_in_force(bundle, now, Asked(provider="CPUExecutionProvider"))
    assert found.settings == RunSettings()
    assert found.note is not None
    assert "--provider is given" in found.note


@pytest.mark.parametrize(
    "edit",
    [
        *(lambda d, key=key: d.pop(key) for key in ("schema", "bundle", "machine", "chosen", "measurements")),
        lambda d: d.update(schema="qslm-edge/run-settings/2"),
        lambda d: d["chosen"].update(threads=0),
        lambda d: d["chosen"].update(threads=True),
        lambda d: d["chosen"].update(threads=10**9),
        lambda d: d["chosen"].update(threads="4"),
        lambda d: d["chosen"].update(spinning=1),
        lambda d: d["chosen"].update(engine=None),
        lambda d: d["chosen"].update(prefill_chunk=10**6),
        lambda d: d["chosen"].update(more=1),
        lambda d: d["chosen"].pop("spinning"),
        lambda d: d.update(machine=[]),
    ],
)
def test_a_damaged_document_is_one_line(
    edit: Callable[[dict[str, Any]], object], bundle: Bundle, now: Circumstances, kept: Path
) -> None:
    change(kept, edit)
    with pytest.raises(BundleError, match="damaged run settings") as caught:
        settings_in_force(bundle, now, Asked())
    assert "\n" not in caught.value.line()
    assert "verify --tune" in caught.value.line()


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "[" * 100_000, '{"schema": NaN}', "x" * (2**20 + 1)])
def test_what_is_no_document_is_one_line(text: str, bundle: Bundle, now: Circumstances) -> None:
    bundle.file(RUN_SETTINGS).write_text(text, "utf-8")
    with pytest.raises(BundleError, match="damaged run settings"):
        settings_in_force(bundle, now, Asked())


def test_a_link_into_nowhere_and_a_directory_are_refused(bundle: Bundle, now: Circumstances) -> None:
    bundle.file(RUN_SETTINGS).symlink_to("/dev/zero")
    with pytest.raises(BundleError, match="not a file of up to"):
        settings_in_force(bundle, now, Asked())
    bundle.file(RUN_SETTINGS).unlink()
    bundle.file(RUN_SETTINGS).mkdir()
    with pytest.raises(BundleError, match="not a file of up to"):
        settings_in_force(bundle, now, Asked())
    with pytest.raises(OutputError, match="run settings cannot be kept; found Is a directory") as caught:
        write_run_settings(bundle, now, TUNED, {}, "0.1.0")
    assert caught.value.exit_code == 4
    assert [path.name for path in bundle.path.glob(".run*")] == []


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(key=st.sampled_from(["schema", "bundle", "machine", "chosen", "measurements", "threads"]), value=JSON)
def test_no_content_does_more_than_choose_or_fail(
    key: str, value: Any, bundle: Bundle, now: Circumstances
) -> None:
    write_run_settings(bundle, now, TUNED, {}, "0.1.0")
    change(bundle.file(RUN_SETTINGS), lambda d: (d["chosen"] if key == "threads" else d).update({key: value}))
    try:
        found = settings_in_force(bundle, now, Asked())
    except QslmError:
        return
    assert found.settings.engine == "onnxruntime"
    assert 1 <= found.settings.threads <= 1024


def test_a_directory_that_cannot_be_written_is_told_before_any_work(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_writable(bundle)
    monkeypatch.setattr("os.access", lambda *_: False)
    with pytest.raises(OutputError, match="run settings cannot be kept") as caught:
        check_writable(bundle)
    assert caught.value.exit_code == 4


def test_the_circumstances_of_this_host_survive_json(bundle: Bundle) -> None:
    here = Circumstances.of(bundle, "1.31.1", "CPUExecutionProvider", identify())
    assert here.difference(json.loads(json.dumps(asdict(here)))) is None
