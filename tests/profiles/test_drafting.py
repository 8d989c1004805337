"""From what was found to a valid profile: what is written, what is left out, and how each fact is graded."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qslm_edge.errors import EnvironmentFault, ProfileError, RuntimeFault
from qslm_edge.profiles import Profile
from qslm_edge.profiles.detect import draft_and_check
from qslm_edge.profiles.drafting import draft_profile, kernel_class
from qslm_edge.profiles.survey import Gpu, PowerFacts, Survey
from qslm_edge.runner.bandwidth import Bandwidth
from qslm_edge.runner.cores import CoreKind
from qslm_edge.runner.observe import Observed
from qslm_edge.runner.probe import FORMS, ProviderProbe, judge
from qslm_edge.runner.probe_model import Form
from qslm_edge.runner.runtime import CPU
from qslm_edge.runner.simulated import LABEL
from qslm_edge.runner.survey import RuntimeFacts
from tests.helpers.surveys import make_survey

CUDA = "CUDAExecutionProvider"
MIB = 2**20


def profile_of(survey: Survey, **options: Any) -> Profile:
    return draft_and_check(survey, Path("x.toml"), **options).profile


def widths_of(profile: Profile) -> dict[tuple[str, int], tuple[int | None, tuple[int, ...]]]:
    return {(w.provider, w.bits): (w.accuracy_level, w.block_sizes) for w in profile.widths}


def on(provider: str) -> ProviderProbe:
    """A provider that runs every form with float activations."""
    forms = tuple(judge(form, 2e-7, 0.5, 1.0) for form in FORMS)
    return ProviderProbe(provider, judge(Form(32), 2e-7, 1.0, None), forms)


# ---- a board


def test_a_board_that_runs_everything() -> None:
    found = draft_and_check(make_survey(), Path("x.toml"))
    profile = found.profile
    assert (profile.id, profile.name) == (
        "raspberry-pi-5-model-b-rev-1-0",
        "Raspberry Pi 5 Model B Rev 1.0",
    )
    assert (profile.cpu.arch, profile.cpu.kernel_class) == ("aarch64", "arm64-dotprod")
    assert profile.cpu.features == ("asimd", "asimdhp", "asimddp")
    assert [(c.count, c.model, c.max_ghz) for c in profile.cpu.cores] == [(4, "Cortex-A76", 2.4)]
    assert (profile.memory.kind, profile.memory.visible_mib, profile.memory.budget_mib) == (
        "dram",
        8060,
        4030,
    )
    assert profile.memory.bandwidth_gb_s == {"default": 11.5, "one_thread": 9.04}
    assert (profile.runtime.onnxruntime, profile.runtime.python) == ("1.31.1", "3.11")
    assert profile.runtime.providers == (CPU,)
    every = (32, 64, 128)
    assert widths_of(profile) == {
        (CPU, 32): (None, ()),
        (CPU, 16): (None, ()),
        (CPU, 8): (4, every),
        (CPU, 4): (4, every),
        (CPU, 2): (4, every),
    }
    assert {width.min_onnxruntime for width in profile.widths} == {"1.31.1"}  # the one that was tried
    assert (profile.power.source, profile.power.total) == ("rapl", ("package-0",))
    assert profile.match.device_tree_model == ("Raspberry Pi 5 Model B Rev 1.0",)
    assert (profile.match.min_memory_mib, profile.match.max_memory_mib) == (6045, 12090)  # no 4 or 16 GB
    assert found.draft.left_out == ()


def test_every_fact_is_measured_or_chosen_and_says_how() -> None:
    profile = profile_of(make_survey())
    grades = {fact.path: fact.grade for fact in profile.facts()}
    chosen = {"memory.budget_mib", "runtime.providers", "runtime.opset", "runtime.ir_version"}
    assert {path for path, grade in grades.items() if grade == "chosen"} == {
        *chosen,
        "match.device_tree_model",
        "match.min_memory_mib",
        "match.max_memory_mib",
    }
    assert set(grades.values()) == {"measured", "chosen"}
    for fact in profile.facts():
        if fact.grade == "measured":
            assert fact.sources, fact.path
            assert all(source.startswith("profiles detect: ") for source in fact.sources)


def test_the_same_survey_gives_the_same_profile() -> None:
    assert draft_profile(make_survey()) == draft_profile(make_survey())


def test_a_simulated_board_has_measured_nothing() -> None:
    profile = profile_of(make_survey(simulated=True))
    assert {fact.grade for fact in profile.facts()} == {"unconfirmed", "chosen"}
    assert profile.description.startswith(LABEL)
    assert all(LABEL in text for texts in profile.sources.values() for text in texts)


# ---- widths


def test_a_slow_width_stays_with_advice_and_faster_levels_go_first() -> None:
    probe = on(CPU)
    forms = tuple(replace(o, status="slow", float_ratio=40.0) if o.form.bits == 2 else o for o in probe.forms)
    profile = profile_of(make_survey(probes={CPU: replace(probe, forms=forms)}))
    two = profile.width(2)
    assert two.condition == "slow here: 40 times the time of float32, as if dequantised on every call"
    assert profile.width(4).condition == "float activations"  # its error is not that of int8


def test_only_the_blocks_that_are_right_and_fast_are_written() -> None:
    def change(probe: ProviderProbe) -> ProviderProbe:
        forms = []
        for o in probe.forms:
            if o.form == Form(4, 4, 128):
                o = replace(o, status="wrong", reason="relative error 0.9")
            if o.form == Form(4, 4, 64):
                o = replace(o, status="slow", float_ratio=9.0)
            forms.append(o)
        return replace(probe, forms=tuple(forms))

    profile = profile_of(make_survey(probes={CPU: change(on(CPU))}))
    assert widths_of(profile)[CPU, 4] == (4, (32,))


def test_without_dot_products_only_4_bits_at_level_0_is_written() -> None:
    found = draft_and_check(
        make_survey(machine={"features": ("asimd", "fp"), "cpu_model": "4x Cortex-A72"}), Path("x.toml")
    )
    assert widths_of(found.profile) == {
        (CPU, 32): (None, ()),
        (CPU, 16): (None, ()),
        (CPU, 4): (0, (32, 64, 128)),
    }
    assert found.draft.left_out == tuple(
        f"{bits} bits on {CPU}: no release has a kernel for it on arm64-nodotprod" for bits in (8, 2)
    )


def test_an_older_runtime_lacks_what_its_release_is_not_known_for() -> None:
    runtime = RuntimeFacts("1.23.2+vendor", (CPU,), ())
    found = draft_and_check(make_survey(runtime=runtime), Path("x.toml"))
    assert [width.bits for width in found.profile.usable_widths()] == [32, 16, 8, 4]
    assert found.draft.left_out == (f"2 bits on {CPU}: needs onnxruntime 1.28.0, here is 1.23.2",)
    assert found.profile.runtime.note is not None
    assert found.profile.runtime.note.startswith("installed: an own build, 1.23.2+vendor")


def test_a_refused_width_is_left_out_with_the_reason() -> None:
    probe = on(CPU)
    forms = tuple(
        replace(o, status="refused", reason="Only 4b and 8b") if o.form.bits in (2, 16) else o
        for o in probe.forms
    )
    found = draft_and_check(make_survey(probes={CPU: replace(probe, forms=forms)}), Path("x.toml"))
    assert [width.bits for width in found.profile.usable_widths()] == [32, 8, 4]
    assert found.draft.left_out == (f"16 bits on {CPU}: Only 4b and 8b", f"2 bits on {CPU}: Only 4b and 8b")


# ---- providers and memory


def test_a_card_that_runs_nodes_goes_first_and_its_memory_counts() -> None:
    survey = make_survey(
        machine={"device_tree_model": None, "arch": "x86_64", "features": ("avx2", "fma")},
        runtime=RuntimeFacts("1.31.1", (CUDA, CPU), ("onnxruntime-gpu 1.31.1",)),
        probes={CPU: on(CPU), CUDA: on(CUDA)},
        gpu=Gpu("NVIDIA L4", "8.9", 23034 * MIB),
        power=PowerFacts("nvml", "GPU board, without the host", ("NVIDIA L4 (GPU 0)",)),
    )
    profile = profile_of(survey)
    assert (profile.provider, profile.runtime.providers) == (CUDA, (CUDA, CPU))
    assert profile.accelerator is not None
    assert profile.accelerator.model_dump() == {
        "kind": "cuda",
        "name": "NVIDIA L4",
        "cuda_compute_capability": "8.9",
    }
    assert (profile.memory.kind, profile.memory.visible_mib, profile.memory.budget_mib) == (
        "vram",
        23034,
        16123,
    )
    assert profile.match.gpu_name == ("NVIDIA L4",)
    assert profile.power.total == ("NVIDIA L4",)


def test_a_gpu_without_memory_of_its_own_shares_it() -> None:
    model = "NVIDIA Jetson Orin Nano Developer Kit"
    survey = make_survey(
        machine={"device_tree_model": model, "total_memory_bytes": 7486 * MIB},
        probes={CUDA: on(CUDA), CPU: on(CPU)},
        gpu=Gpu("Orin (nvgpu)", None, None),
    )
    profile = profile_of(survey)
    assert (profile.memory.kind, profile.memory.budget_mib) == ("unified", 2994)
    assert profile.match.device_tree_model == (model,)
    without = profile_of(replace(survey, probes={CPU: on(CPU)}, gpu=None))
    assert (without.memory.kind, without.accelerator) == ("unified", None)  # the board shares it all the same


def test_a_provider_that_is_listed_and_runs_nothing_is_not_written() -> None:
    probes = {CUDA: ProviderProbe.failed(CUDA, "no kernel image"), CPU: on(CPU)}
    found = draft_and_check(make_survey(probes=probes), Path("x.toml"))
    assert found.profile.runtime.providers == (CPU,)
    assert found.draft.left_out == (f"{CUDA}: listed, but no node runs on it: no kernel image",)


def test_a_provider_that_profiles_do_not_know_is_told() -> None:
    name = "OpenVINOExecutionProvider"
    found = draft_and_check(make_survey(probes={name: on(name), CPU: on(CPU)}), Path("x.toml"))
    assert found.profile.runtime.providers == (CPU,)
    assert found.draft.left_out == (f"{name}: runs a node, but profiles of this version do not know it",)


@pytest.mark.parametrize(
    ("total_mib", "limit_mib", "screen", "visible", "budget"),
    [
        (8060, None, False, 8060, 4030),
        (8060, None, True, 8060, 3224),
        (32000, None, True, 32000, 16000),
        (8060, 512, False, 512, 256),
        (8060, 9000, False, 8060, 4030),
    ],
)
def test_the_budget_follows_the_rule(
    total_mib: int, limit_mib: int | None, screen: bool, visible: int, budget: int
) -> None:
    limit: Observed[int] = Observed(None if limit_mib is None else limit_mib * MIB, "memory.max")
    survey = make_survey(machine={"total_memory_bytes": total_mib * MIB}, memory_limit=limit, screen=screen)
    profile = profile_of(survey)
    assert (profile.memory.visible_mib, profile.memory.budget_mib) == (visible, budget)
    assert profile_of(survey, budget_bytes=300 * MIB).memory.budget_mib == 300
    with pytest.raises(ProfileError, match="more than the board has"):
        profile_of(survey, budget_bytes=2**40)


# ---- what is absent


def test_what_cannot_be_read_is_absent() -> None:
    survey = make_survey(
        machine={"device_tree_model": None, "cpu_model": None},
        cores=(CoreKind(4, "Cortex-A76", None),),
        bandwidth=Bandwidth(None, None, 4, None, "none", "too little free memory"),
        power=PowerFacts(None, None, (), "no zones\x1b[31m" + "x" * 500),
    )
    profile = profile_of(survey)
    assert (profile.cpu.cores, profile.memory.bandwidth_gb_s) == ((), {})
    assert profile.name == "this machine"
    assert (profile.power.source, profile.power.total) == ("none", ())
    assert profile.power.note is not None
    assert (len(profile.power.note), "\x1b" in profile.power.note) == (400, False)
    assert (profile.match.arch, profile.match.features) == ("aarch64", ("asimd", "asimdhp", "asimddp"))


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        (
            {"runtime": RuntimeFacts(None, (), (), "cannot be imported: no such module")},
            "python3 -m pip install onnxruntime",
        ),
        ({"probes": {CPU: ProviderProbe.failed(CPU, "refused")}}, "no execution provider runs a node here"),
        ({"probes": {}}, "no execution provider runs a node here"),
    ],
)
def test_a_machine_without_a_runtime_says_what_to_install(changes: dict[str, Any], text: str) -> None:
    with pytest.raises(RuntimeFault) as caught:
        draft_profile(make_survey(**changes))
    assert text in caught.value.line()
    assert caught.value.exit_code == 4


@pytest.mark.parametrize(
    ("machine", "text"),
    [
        ({"arch": "riscv64"}, "no kernels for packed weights"),
        ({"arch": "x86_64", "features": ("sse4_2",)}, "no kernels for packed weights"),
        ({"total_memory_bytes": None}, "the memory of this machine cannot be read"),
    ],
)
def test_a_machine_that_no_profile_can_describe(machine: dict[str, Any], text: str) -> None:
    with pytest.raises(EnvironmentFault, match=text):
        draft_profile(make_survey(machine=machine))


@pytest.mark.parametrize(
    ("arch", "features", "expected"),
    [
        ("aarch64", ["asimd"], "arm64-nodotprod"),
        ("aarch64", ["asimd", "asimddp"], "arm64-dotprod"),
        ("x86_64", ["avx2"], "x86-avx2"),
        ("x86_64", ["avx2", "avx512f"], "x86-avx512"),
        ("x86_64", ["sse4_2"], None),
        ("riscv64", [], None),
    ],
)
def test_the_class_follows_the_flags(arch: str, features: list[str], expected: str | None) -> None:
    assert kernel_class(arch, features) == expected


@settings(max_examples=60)
@given(name=st.text(max_size=500))
def test_any_name_gives_a_valid_profile(name: str) -> None:
    profile = profile_of(make_survey(), name=name)
    assert 1 <= len(profile.name) <= 400
