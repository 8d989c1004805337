"""Asking a profile: widths, providers, grades, what goes into a bundle; and that every key is documented."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from qslm_edge import device_profiles
from qslm_edge.errors import UsageError
from qslm_edge.profiles import Profile, load_profile, loading, read_profile
from qslm_edge.profiles.facts import longest_path
from qslm_edge.profiles.kernels import CPU_CLASSES, version_key
from tests.helpers.profiles import H100, PI, changed, line_of, write


def test_the_digest_ignores_comments_and_layout_but_no_fact(tmp_path: Path) -> None:
    bare = "\n".join(line for line in PI.splitlines() if line and not line.startswith("#"))
    digest = load_profile("raspberry-pi-5-8gb").digest
    assert len(digest) == 64
    assert read_profile(write(tmp_path, bare)).digest == digest
    assert read_profile(changed(tmp_path, "w = 2.7", "w = 2.8")).digest != digest


def test_a_whole_number_and_the_same_float_have_one_digest(tmp_path: Path) -> None:
    path = changed(tmp_path, "default = 3350.0", "default = 3350", H100)
    assert read_profile(path).digest == load_profile("h100").digest


def test_the_longest_path_gives_the_grade() -> None:
    profile = load_profile("h100")
    assert profile.grade("memory.visible_mib") == "measured"
    assert profile.grade("memory.bandwidth_gb_s.default") == "unconfirmed"
    assert profile.grade("widths.CUDAExecutionProvider.8") == "unconfirmed"
    assert profile.grade("widths.CUDAExecutionProvider.2") == "measured"
    assert profile.lowest_grade() == "unconfirmed"


def test_a_path_covers_whole_words_only() -> None:
    assert longest_path("memory.visible_mib", ["*", "memory", "mem", "memory.visible"]) == "memory"
    assert longest_path("memory", ["memory.visible_mib"]) is None


def test_a_width_that_the_board_runs() -> None:
    width = load_profile("jetson-orin").width(4)
    assert (width.bits, width.provider, width.accuracy_level) == (4, "CPUExecutionProvider", 4)


def test_a_refused_width_says_which_release_or_provider_would_run_it() -> None:
    profile = load_profile("jetson-orin")
    reason = (
        "CPUExecutionProvider runs it from onnxruntime 1.28.0, the board has 1.23.2; CUDAExecutionProvider, "
        "which the stock runtime lacks, runs it from 1.31.0 (a build with sm_87 code)"
    )
    assert profile.refused_widths() == [(2, reason)]
    with pytest.raises(UsageError) as caught:
        profile.width(2)
    assert reason in str(caught.value)
    assert str(caught.value).endswith("allowed: 32, 16, 8 or 4 bits")


def test_a_width_without_a_kernel_anywhere() -> None:
    with pytest.raises(UsageError, match="cannot use 3-bit weights: no runtime has kernels for this width"):
        load_profile("raspberry-pi-5-8gb").width(3)


def test_a_cpu_without_dot_product_runs_4_bits_at_level_0_only(tmp_path: Path) -> None:
    head, _, tail = PI.partition("[[widths]]\nbits = 8")
    rest = tail[tail.index("# `vcgencmd") :]
    width = (
        '[[widths]]\nbits = 4\nprovider = "CPUExecutionProvider"\naccuracy_level = LEVEL\n'
        "block_sizes = [32]\n"
        'min_onnxruntime = "1.21.1"\n\n'
    )
    text = head.replace("arm64-dotprod", "arm64-nodotprod").replace(', "asimddp"', "") + width + rest
    profile = read_profile(write(tmp_path, text.replace("LEVEL", "0")))
    assert [found.bits for found in profile.usable_widths()] == [32, 16, 4]
    assert [bits for bits, _ in profile.refused_widths()] == [8, 2]
    assert profile.refused_widths()[0][1] == "no release has a kernel for it on arm64-nodotprod"
    assert "no kernel at this level; found 4" in line_of(write(tmp_path, text.replace("LEVEL", "4")))
    eight = text.replace("LEVEL", "0").replace("bits = 4", "bits = 8")
    assert "no release has a kernel; found '8 bits on arm64-nodotprod'" in line_of(write(tmp_path, eight))


INSTALL = 'install = "an own Python 3.11"\n'


@pytest.mark.parametrize(
    ("stock", "bits"),
    [
        ('python = "3.8"\nonnxruntime = "1.19.2"\n', [32, 16, 4]),
        ('python = "3.6"\nonnxruntime = "1.10.0"\n', []),
        ("", []),
    ],
)
def test_a_board_that_needs_another_runtime_says_what_its_own_would_give(
    tmp_path: Path, stock: str, bits: list[int]
) -> None:
    text = PI.replace("providers =", f"{INSTALL}providers =", 1)
    text = text.replace("[[widths]]", f'[runtime.stock]\nsystem = "an old one"\n{stock}\n[[widths]]', 1)
    profile = read_profile(write(tmp_path, text))
    assert [width.bits for width in profile.usable_widths()] == [32, 16, 8, 4, 2]
    assert [width.bits for width in profile.stock_widths()] == bits
    assert profile.grade("runtime.stock.system") == "sourced"
    paths = [fact.path for fact in profile.facts()]
    assert "runtime.stock.system" in paths
    assert not any(path.endswith((".install", ".note")) for path in paths)  # advice is no fact


def test_a_board_that_runs_as_delivered_has_one_answer() -> None:
    profile = load_profile("raspberry-pi-5-8gb")
    assert profile.stock_widths() == profile.usable_widths()


@pytest.mark.parametrize(
    ("limits", "line"),
    [
        (
            "min_memory_mib = 9000",
            "min_memory_mib: leaves out the board itself; found 9000; allowed: at most memory.visible_mib, 8060",
        ),
        (
            "min_memory_mib = 1\nmax_memory_mib = 8000",
            "max_memory_mib: leaves out the board itself; found 8000; allowed: at least memory.visible_mib, 8060",
        ),
        (
            "min_memory_mib = 0",
            "min_memory_mib: not an allowed value; found 0; allowed: least memory that the ",
        ),
    ],
)
def test_a_range_of_memory_holds_the_board_itself(limits: str, line: str, tmp_path: Path) -> None:
    own = re.sub(r"min_memory_mib = .*\nmax_memory_mib = .*", limits, PI)
    assert line_of(write(tmp_path, own)).startswith(f"my-board.toml: match.{line}")


def test_a_range_of_memory_needs_a_name_beside_it_and_no_card(tmp_path: Path) -> None:
    alone = PI.replace('device_tree_model = ["Raspberry Pi 5 Model B"]\n', "")
    assert line_of(write(tmp_path, alone)).startswith(
        "my-board.toml: match.min_memory_mib: memory alone knows no board"
    )
    card = H100.replace("[match]\n", "[match]\nmax_memory_mib = 90000\n")
    assert line_of(write(tmp_path, card)).startswith(
        "my-board.toml: match.max_memory_mib: memory of a card is not asked; found 90000"
    )


def test_all_notes_are_those_of_board_runtime_and_power(tmp_path: Path) -> None:
    path = changed(tmp_path, 'status = "supported"', 'status = "supported"\nnotes = ["mind the fan"]')
    assert read_profile(path).all_notes() == (
        "mind the fan",
        "64-bit systems only: there are no wheels for a 32-bit one",
        "needs the group video; 1 to 5 readings a second",
    )


def test_the_first_provider_with_a_usable_width_is_planned(tmp_path: Path) -> None:
    cpu = '[[widths]]\nbits = 32\nprovider = "CPUExecutionProvider"\nmin_onnxruntime = "1.18.0"\n\n[power]'
    text = H100.replace("\n[power]", f"\n{cpu}", 1)
    assert read_profile(write(tmp_path, text)).provider == "CUDAExecutionProvider"
    old = text.replace('onnxruntime = "1.31.1"', 'onnxruntime = "1.19.2"', 1)
    profile = read_profile(write(tmp_path, old))
    assert [width.bits for width in profile.usable_widths()] == [32, 16, 4]
    assert [bits for bits, _ in profile.refused_widths()] == [8, 2]


@pytest.mark.parametrize("bits", [8, 4, 2])
def test_cuda_never_rounds_activations(bits: int, tmp_path: Path) -> None:
    card = load_profile("h100")
    assert card.width(bits).accuracy_level == 0
    head = f'bits = {bits}\nprovider = "CUDAExecutionProvider"\n'
    line = line_of(changed(tmp_path, f"{head}accuracy_level = 0", f"{head}accuracy_level = 4", H100))
    assert line.endswith(
        f"no kernel at this level; found 4; allowed: 0 for {bits} bits on CUDAExecutionProvider"
    )
    missing = line_of(changed(tmp_path, f"{head}accuracy_level = 0\n", head, H100))
    assert missing.endswith(f"missing at {bits} bits; allowed: 0")


def test_a_width_that_only_the_second_choice_runs(tmp_path: Path) -> None:
    text = device_profiles.path("jetson-orin-nano").read_text(encoding="utf-8")
    both = text.replace('["CPUExecutionProvider"]', '["CUDAExecutionProvider", "CPUExecutionProvider"]', 1)
    profile = read_profile(write(tmp_path, both))
    assert profile.provider == "CUDAExecutionProvider"
    assert [width.bits for width in profile.usable_widths()] == [8, 4]
    with pytest.raises(
        UsageError, match="the board has 1.23.2; CUDAExecutionProvider runs it from onnxruntime"
    ):
        profile.width(2)
    no_eight = both.replace('min_onnxruntime = "1.22.0"', 'min_onnxruntime = "1.28.0"', 1)
    reason = dict(read_profile(write(tmp_path, no_eight)).refused_widths())[8]
    assert reason.startswith("CPUExecutionProvider runs it, but CUDAExecutionProvider is preferred; ")


def test_the_manifest_is_plain_json() -> None:
    profile = load_profile("raspberry-pi-5-8gb")
    manifest = profile.to_manifest()
    assert json.loads(json.dumps(manifest)) == manifest
    assert manifest["budget_mib"] == 3814
    assert manifest["digest"] == profile.digest
    assert manifest["match"] == {
        "device_tree_model": ["Raspberry Pi 5 Model B"],
        "gpu_name": [],
        "cpu_model": [],
        "arch": None,
        "features": [],
        "min_memory_mib": 6000,
        "max_memory_mib": 12000,
    }
    assert manifest["power"]["source"] == "rpi-pmic"
    assert manifest["providers"] == ["CPUExecutionProvider"]
    assert manifest["onnxruntime"] == "1.31.1"


def test_every_key_has_a_help_text() -> None:
    models = models_of_a_profile()
    assert len(models) == 13
    for model in models:
        for name, field in model.model_fields.items():
            assert field.description, f"{model.__name__}.{name}"


@given(st.tuples(*[st.integers(0, 99)] * 3), st.tuples(*[st.integers(0, 99)] * 3))
def test_versions_compare_by_number(one: tuple[int, ...], other: tuple[int, ...]) -> None:
    text_one, text_other = (".".join(map(str, version)) for version in (one, other))
    assert (version_key(text_one) < version_key(text_other)) == (one < other)


def test_every_key_and_allowed_word_is_documented(root: Path) -> None:
    text = (root / "docs" / "profile.md").read_text(encoding="utf-8")
    missing = []
    for model in models_of_a_profile():
        for name, field in model.model_fields.items():
            key = field.alias or name
            if not re.search(rf"[`{{.\[ ]{key}[`}}\], =]", text):
                missing.append(f"{model.__name__}.{key}")
            missing += [f"{key} = {word}" for word in words_of(field.annotation) if word not in text]
    assert missing == []


def test_the_documented_kernel_table_is_the_checked_one(root: Path) -> None:
    text = (root / "docs" / "profile.md").read_text(encoding="utf-8")
    for name, widths in CPU_CLASSES.items():
        row = next(line for line in text.splitlines() if line.startswith(f"| `{name}`"))
        cells = [cell.strip() for cell in row.strip("|").split("|")][2:]
        for bits, cell in zip((8, 4, 2), cells, strict=True):
            assert cell.split(",")[0] == (widths[bits].min_onnxruntime if bits in widths else "never")


def words_of(annotation: object) -> list[str]:
    """Return the words that a field allows, if it allows only some."""
    found = [part for part in get_args(annotation) if isinstance(part, str)]
    return found + [word for part in get_args(annotation) for word in words_of(part)]


def models_of_a_profile() -> list[type[BaseModel]]:
    found: list[type[BaseModel]] = [Profile]
    for model in found:  # grows while it is read
        below = [loading.submodel(field.annotation) for field in model.model_fields.values()]
        found += [section for section in below if section is not None and section not in found]
    return found
