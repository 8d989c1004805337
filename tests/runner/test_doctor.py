"""doctor: what is ok, a warning or a problem, and the exit code that follows; proofs are stood in for here."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from qslm_edge.bundle.reader import Bundle
from qslm_edge.errors import BundleError, EnvironmentFault
from qslm_edge.runner import doctor as module
from qslm_edge.runner import doctor_bundle, doctor_machine
from qslm_edge.runner.doctor import examine
from qslm_edge.runner.findings import Finding, finding_lines
from qslm_edge.runner.memory import CgroupMemory
from qslm_edge.runner.observe import Observed
from qslm_edge.runner.power import Unavailable
from qslm_edge.runner.power.fake import FakeSource
from qslm_edge.runner.probe import FORMS, Outcome, ProviderProbe, judge
from qslm_edge.runner.probe_model import Form
from qslm_edge.runner.runtime import CPU
from qslm_edge.runner.survey import MemoryProof, RuntimeFacts
from tests.helpers.bundle_fixtures import CopyBundle
from tests.helpers.bundles import edit_manifest

CUDA = "CUDAExecutionProvider"
FIXTURES = Path(__file__).resolve().parents[1] / "fixtures" / "power"
FACTS = RuntimeFacts("1.31.1", (CPU,), ("onnxruntime 1.31.1",))
PROOF = MemoryProof(True, 64 * 2**20, 64 * 2**20, "/proc/self/status")
Document = dict[str, Any]


def working(provider: str = CPU, ratio: float = 0.5) -> ProviderProbe:
    """A provider on which every form runs, at a share of the time of float32."""
    forms = tuple(judge(form, 5e-3 if form.accuracy_level else 2e-7, ratio, 1.0) for form in FORMS)
    return ProviderProbe(provider, judge(Form(32), 2e-7, 1.0, None), forms)


def with_form(probe: ProviderProbe, form: Form, change: Callable[[Outcome], Outcome]) -> ProviderProbe:
    forms = tuple(change(o) if o.form == form else o for o in probe.forms)
    return replace(probe, forms=forms)


class Stage:
    """What the machine of a test shows."""

    def __init__(self) -> None:
        self.facts, self.proof = FACTS, PROOF
        self.probes = {CPU: working()}
        self.golden: Any = {"ok": True, "value": 1e-9, "tolerance": 0.15, "n_tokens": 64, "measure": "KL"}
        self.source: Any = None


@pytest.fixture
def stage(monkeypatch: pytest.MonkeyPatch) -> Stage:
    shown = Stage()

    def child(arguments: list[str], _progress: Any) -> Any:
        assert arguments[0] == "_golden"
        if isinstance(shown.golden, Exception):
            raise shown.golden
        return {"golden": shown.golden}

    def power(preferred: str | None, *_: Any, **__: Any) -> Any:
        return shown.source or Unavailable(preferred or "any", "no zones")

    monkeypatch.setattr(module, "runtime_facts", lambda: shown.facts)
    monkeypatch.setattr(module, "prove_provider", lambda name, _progress: shown.probes[name])
    monkeypatch.setattr(module, "prove_memory_in_child", lambda: shown.proof)
    monkeypatch.setattr(doctor_bundle, "run_child", child)
    monkeypatch.setattr(doctor_bundle, "open_source", power)
    monkeypatch.setattr(doctor_machine, "open_source", power)
    return shown


def finding(document: Document, name: str, area: str | None = None) -> Finding:
    """The one finding of a name."""
    (found,) = (f for f in document["findings"] if f["name"] == name and area in (None, f["area"]))
    return Finding(**found)


# ---- the machine


def test_a_machine_that_works_is_0_whatever_it_cannot_measure(stage: Stage) -> None:
    document = examine()
    assert document["exit_code"] == 0
    assert document["summary"].startswith("Everything needed works: bundles can run and be measured here")
    assert finding(document, CPU).detail == "ran a node, relative error 2.0e-07 against numpy"
    for bits in (8, 4, 2):
        assert finding(document, f"{bits} bits, CPU").status == "ok"
    power = finding(document, "power source")
    assert (power.status, power.detail) == ("warning", "no zones")
    assert json.loads(json.dumps(document, allow_nan=False)) == document
    assert document["probes"][0]["provider"] == CPU


def test_no_runtime_is_4_and_says_what_to_install(stage: Stage) -> None:
    stage.facts = RuntimeFacts(None, (), (), "cannot be imported: no such module")
    document = examine()
    assert document["exit_code"] == 4
    assert document["summary"].startswith("This machine lacks what a run needs: onnxruntime")
    found = finding(document, "onnxruntime")
    assert found.status == "problem"
    assert found.next_step is not None
    assert found.next_step.endswith("python3 -m pip install onnxruntime")


def test_two_packages_of_one_import_name_are_told(stage: Stage) -> None:
    stage.facts = replace(FACTS, packages=("onnxruntime 1.31.1", "onnxruntime-gpu 1.30.0"))
    document = examine()
    found = finding(document, "packages")
    assert (found.status, document["exit_code"]) == ("warning", 0)
    assert "onnxruntime 1.31.1 and onnxruntime-gpu 1.30.0 share one import name" in found.detail


def test_a_listed_provider_that_runs_nothing_is_a_warning_and_the_cpu_a_problem(stage: Stage) -> None:
    stage.facts = replace(FACTS, providers=(CUDA, CPU))
    stage.probes[CUDA] = ProviderProbe.failed(CUDA, "no kernel image")
    document = examine()
    found = finding(document, CUDA)
    assert (found.status, document["exit_code"]) == ("warning", 0)
    assert found.detail == "listed, but no node runs on it: no kernel image"
    stage.probes[CPU] = ProviderProbe.failed(CPU, "killed by signal 4")
    assert examine()["exit_code"] == 4


def test_widths_without_a_kernel_are_told_as_slow(stage: Stage) -> None:
    stage.probes[CPU] = working(ratio=40.0)
    document = examine()
    found = finding(document, "2 bits, CPU")
    assert (found.status, document["exit_code"]) == ("warning", 0)
    assert found.detail == "right values, but 40 times the time of float32: dequantised on every call"
    stage.probes[CPU] = replace(
        working(),
        forms=tuple(replace(o, status="refused", reason="Only 4b is supported") for o in working().forms),
    )
    found = finding(examine(), "2 bits, CPU")
    assert (found.status, found.detail) == ("warning", "Only 4b is supported")


def test_a_level_that_falls_back_is_named_beside_the_one_that_does_not(stage: Stage) -> None:
    probe = working()
    for size in (32, 64, 128):
        probe = with_form(probe, Form(8, 0, size), lambda o: replace(o, status="slow", float_ratio=60.0))
    stage.probes[CPU] = probe
    detail = finding(examine(), "8 bits, CPU").detail
    assert detail == (
        "level 4 in blocks of 32, 64, 128 at 0.5 to 0.5 times the time of float32, error 5e-03; "
        "level 0 has no kernel (dequantised on every call)"
    )


def test_a_memory_read_out_that_does_not_move_is_a_problem(stage: Stage) -> None:
    stage.proof = MemoryProof(False, 64 * 2**20, 0, "/proc/self/status", "the peak moved by 0 MiB")
    assert examine()["exit_code"] == 4
    stage.proof = MemoryProof(False, 0, None, "none", "no /proc")
    document = examine()
    assert (finding(document, "read-out").status, document["exit_code"]) == ("warning", 0)


def test_a_power_source_counts_when_it_gave_a_reading(stage: Stage) -> None:
    stage.source = FakeSource(lambda: 0.0, lambda _t: 5.0)
    found = finding(examine(), "power source")
    assert (found.status, found.detail) == ("ok", "fake gave a reading: nothing real")


def test_limits_and_ended_processes_of_the_group_are_told(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    def group(_root: Path) -> CgroupMemory:
        none: Observed[int] = Observed(None, "x", "not read")
        return CgroupMemory(2, Observed(4 * 10**8, "memory.max"), none, none, Observed(3, "memory.events"))

    monkeypatch.setattr(doctor_machine, "cgroup_memory", group)
    document = examine()
    assert finding(document, "limit of the control group").detail == "400 MB"
    assert "ended 3 processes" in finding(document, "ended processes").detail


def test_a_recorded_tree_is_simulated_and_never_0(stage: Stage) -> None:
    document = examine(root=FIXTURES / "jetson_orin_nano")
    assert (document["simulated"], document["exit_code"]) == (True, 3)
    assert document["summary"].startswith("Simulated: ")
    host = finding(document, "host")
    assert host.simulated
    assert host.line().startswith("host: simulated: NVIDIA Jetson Orin Nano")
    assert finding(document, "throttle counters").detail == "counter.oc1, counter.oc2, counter.oc3"
    assert not finding(document, "onnxruntime").simulated  # tried on this host
    assert not finding(document, "read-out").simulated


def test_a_container_without_sysfs_is_told(stage: Stage, tmp_path: Path) -> None:
    (tmp_path / ".dockerenv").touch()
    found = finding(examine(root=tmp_path), "sysfs")
    assert found.status == "warning"
    assert found.detail.startswith("/sys is not there (/.dockerenv)")


# ---- the bundle


def test_a_bundle_whose_needs_are_met_is_0(stage: Stage, lm_bundle: Bundle) -> None:
    document = examine(lm_bundle.path)
    assert document["exit_code"] == 0, document["summary"]
    assert "this bundle can be verified here" in document["summary"]
    assert finding(document, "files").detail.endswith("every digest is right")
    assert finding(document, "8 bits, block 64, accuracy level 4").status == "ok"
    assert finding(document, "golden vectors").detail == (
        f"every operator runs; KL 1e-09, allowed 0.15, 64 tokens on {CPU}"
    )
    assert document["bundle"] == {"digest": lm_bundle.digest}


def test_a_damaged_file_is_1_and_nothing_of_it_is_run(
    stage: Stage, lm_bundle: Bundle, copy_bundle: CopyBundle
) -> None:
    copy = copy_bundle(lm_bundle)
    (copy / "model.bin").write_bytes(b"\0" + (copy / "model.bin").read_bytes()[1:])
    stage.golden = AssertionError("must not be run")
    document = examine(copy)
    assert document["exit_code"] == 1
    assert "wrong sha256" in finding(document, "files").detail
    assert finding(document, "golden vectors").status == "warning"
    assert document["summary"].startswith("This machine does not meet what the bundle needs: files")


def test_no_bundle_at_all_is_2(stage: Stage, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="not a bundle"):
        examine(tmp_path)


def test_an_old_runtime_is_1(stage: Stage, lm_bundle: Bundle, copy_bundle: CopyBundle) -> None:
    copy = copy_bundle(lm_bundle)
    edit_manifest(copy, lambda manifest: manifest["runtime"].update(onnxruntime_min="1.99.0"))
    document = examine(copy)
    found = finding(document, "runtime", "bundle")
    assert (document["exit_code"], found.status) == (1, "problem")
    assert found.detail == "needs onnxruntime 1.99.0, here is 1.31.1"


@pytest.mark.parametrize(
    ("planned", "step"),
    [
        ([CPU], "update onnxruntime, or export without this form"),
        ([CUDA, CPU], "verify gives a rehearsal here; for the verdict of the board run it there"),
    ],
)
def test_a_form_that_is_slow_here_is_the_boards_matter_only_where_its_provider_runs(
    planned: list[str], step: str, stage: Stage, lm_bundle: Bundle, copy_bundle: CopyBundle
) -> None:
    copy = copy_bundle(lm_bundle)

    def edit(manifest: dict[str, Any]) -> None:
        manifest["runtime"]["providers"] = planned
        manifest["setting"]["head"] = "8g64f"

    edit_manifest(copy, edit)
    slow = with_form(working(), Form(8, 0, 64), lambda o: replace(o, status="slow", float_ratio=19.0))
    stage.probes[CPU] = slow
    found = finding(examine(copy), "8 bits, block 64, accuracy level 0")
    assert (found.status, found.next_step) == ("warning", step)
    assert found.detail == "19 times the time of float32: dequantised on every call"


@pytest.mark.parametrize(
    ("match", "status", "code"), [({}, "warning", 0), ({"arch": "host-arch"}, "problem", 1)]
)
def test_a_promised_provider_that_is_not_there(
    match: dict[str, str],
    status: str,
    code: int,
    stage: Stage,
    lm_bundle: Bundle,
    copy_bundle: CopyBundle,
) -> None:
    """On the board it is a problem; elsewhere the CPU stands in for a rehearsal."""
    import platform

    copy = copy_bundle(lm_bundle)

    def edit(manifest: dict[str, Any]) -> None:
        manifest["runtime"]["providers"] = [CUDA, CPU]
        manifest["profile"]["match"] = {key: platform.machine() for key in match}

    edit_manifest(copy, edit)
    document = examine(copy)
    found = finding(document, "provider")
    assert (found.status, document["exit_code"]) == (status, code)
    assert f"the profile promises {CUDA}, which does not run here" in found.detail


@pytest.mark.parametrize(
    "golden",
    [
        {"ok": False, "value": 3.0, "tolerance": 0.15, "n_tokens": 64, "measure": "KL"},
        EnvironmentFault("the measuring process ended without a result", hint="free some memory"),
    ],
)
def test_golden_vectors_that_differ_are_1(golden: Any, stage: Stage, lm_bundle: Bundle) -> None:
    stage.golden = golden
    document = examine(lm_bundle.path)
    assert (document["exit_code"], finding(document, "golden vectors").status) == (1, "problem")


def test_a_form_of_the_setting_that_is_wrong_here_is_1_and_a_slow_one_a_warning(
    stage: Stage, lm_bundle: Bundle
) -> None:
    form, name = Form(8, 4, 64), "8 bits, block 64, accuracy level 4"
    stage.probes[CPU] = with_form(
        working(), form, lambda o: replace(o, status="wrong", reason="relative error 0.9")
    )
    document = examine(lm_bundle.path)
    assert (document["exit_code"], finding(document, name).detail) == (1, "relative error 0.9")
    stage.probes[CPU] = with_form(
        working(), form, lambda o: replace(o, status="slow", float_ratio=30.0, reason=None)
    )
    document = examine(lm_bundle.path)
    assert (document["exit_code"], finding(document, name).status) == (0, "warning")


def test_without_a_runtime_the_machine_is_told_first(stage: Stage, lm_bundle: Bundle) -> None:
    stage.facts = RuntimeFacts(None, (), (), "cannot be imported: no such module")
    document = examine(lm_bundle.path)
    assert document["exit_code"] == 4
    assert finding(document, "files").status == "ok"
    assert finding(document, "runtime", "bundle").status == "problem"


# ---- lines


def test_lines_have_a_heading_an_area_and_no_control_characters() -> None:
    findings = [
        Finding("runtime", "onnxruntime", "ok", "1.31.1"),
        Finding("bundle", "files", "problem", "bad\x1b[31m name", "copy it again", simulated=True),
    ]
    document = {"findings": [f.to_dict() for f in findings], "summary": "That is all."}
    assert finding_lines(document) == [
        "runtime:",
        "  ok       onnxruntime: 1.31.1",
        "bundle:",
        "  problem  files: simulated: bad?[31m name. Next: copy it again",
        "That is all.",
    ]
