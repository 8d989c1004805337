"""Reading, checking and asking device profiles."""

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
from qslm_edge.errors import ProfileError, UsageError
from qslm_edge.profiles import Profile, list_profiles, load_profile, loading, read_profile
from qslm_edge.profiles.facts import longest_path
from qslm_edge.profiles.kernels import CPU_CLASSES, version_key

PI = device_profiles.path("raspberry-pi-5-8gb").read_text(encoding="utf-8")
H100 = device_profiles.path("h100").read_text(encoding="utf-8")


def write(folder: Path, text: str) -> Path:
    path = folder / "my-board.toml"
    path.write_text(text, encoding="utf-8")
    return path


def changed(folder: Path, old: str, new: str, text: str = PI) -> Path:
    """Write a shipped profile with one change."""
    assert old in text
    return write(folder, text.replace(old, new, 1))


def line_of(path: Path) -> str:
    """Return the error line of a file, without the folder."""
    with pytest.raises(ProfileError) as caught:
        read_profile(path)
    line = str(caught.value)
    assert "\n" not in line
    return line.replace(f"{path.parent}/", "")


# names and paths


def test_a_name_is_a_board_and_a_path_is_a_file(tmp_path: Path) -> None:
    path = write(tmp_path, PI)
    assert load_profile(str(path)) == load_profile("raspberry-pi-5-8gb")


def test_a_toml_name_without_a_folder_is_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, PI)
    monkeypatch.chdir(tmp_path)
    assert load_profile("my-board.toml").id == "raspberry-pi-5-8gb"


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("raspbery-pi-5", "raspberry-pi-5"),
        ("H100", "h100"),
        ("jetson-orinn", "jetson-orin"),
        ("x86_laptop", "x86-laptop"),
    ],
)
def test_an_unknown_name_suggests_the_nearest(name: str, near: str) -> None:
    with pytest.raises(ProfileError) as caught:
        load_profile(name)
    assert f"did you mean '{near}'" in str(caught.value).lower()
    assert "`qslm-edge profiles list`" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("orin-nx", "'orin-nx-8gb' or 'orin-nx-16gb'"),
        ("Jetson_Orin_NX", "'jetson-orin-nx-8gb' or 'jetson-orin-nx-16gb'"),
        ("rpi5", None),
    ],
)
def test_a_board_without_its_memory_is_asked_back(name: str, sizes: str | None) -> None:
    if sizes is None:
        assert load_profile(name).id == "raspberry-pi-5-8gb"
        return
    with pytest.raises(ProfileError) as caught:
        load_profile(name)
    assert f"did you mean {sizes}?" in str(caught.value).lower()


@pytest.mark.parametrize("name", ["", "zzzz", "\x1b[31m"])
def test_a_hopeless_name_suggests_nothing(name: str) -> None:
    with pytest.raises(ProfileError) as caught:
        load_profile(name)
    assert "did you mean" not in str(caught.value).lower()
    assert "\x1b" not in str(caught.value)


def test_missing_file_folder_and_bad_bytes(tmp_path: Path) -> None:
    with pytest.raises(ProfileError, match="no such profile file"):
        load_profile(str(tmp_path / "none.toml"))
    with pytest.raises(ProfileError, match="cannot read the profile"):
        load_profile(f"{tmp_path}/")
    with pytest.raises(ProfileError, match="cannot read the profile"):
        load_profile("a\0b.toml")
    bad = tmp_path / "bad.toml"
    bad.write_bytes(b"name = \xff")
    with pytest.raises(ProfileError, match="not UTF-8 text; found byte 0xff at 7"):
        load_profile(str(bad))


def test_a_file_above_the_limit_is_not_parsed(tmp_path: Path) -> None:
    assert "too large for a profile" in line_of(write(tmp_path, PI + "#" * loading.MAX_FILE_BYTES))


# one line for each fault


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        (
            "visible_mib = 8060",
            "visible_mb = 8060",
            (
                "my-board.toml: memory.visible_mb: unknown key. Did you mean 'visible_mib' "
                "(memory that the system shows, in MiB (2^20 bytes))?"
            ),
        ),
        (
            "visible_mib = 8060",
            'visible_mib = "8 GB"',
            (
                "my-board.toml: memory.visible_mib: wrong type; found '8 GB'; allowed: a whole number: "
                "memory that the system shows, in MiB (2^20 bytes)"
            ),
        ),
        (
            "visible_mib = 8060",
            "visible_mib = 8589934592",
            (
                "my-board.toml: memory.visible_mib: not an allowed value; found 8589934592; allowed: "
                "memory that the system shows, in MiB (2^20 bytes) (up to 16777216)"
            ),
        ),
        (
            "visible_mib = 8060",
            "",
            (
                "my-board.toml: memory.visible_mib: missing key; allowed: "
                "memory that the system shows, in MiB (2^20 bytes)"
            ),
        ),
        (
            "budget_mib = 3814",
            "budget_mib = 9000",
            (
                "my-board.toml: memory.budget_mib: more than the board has; found 9000; "
                "allowed: at most visible_mib, 8060"
            ),
        ),
        (
            'kind = "dram"',
            'kind = "ram"',
            (
                "my-board.toml: memory.kind: not an allowed value; found 'ram'; "
                "allowed: 'unified', 'dram' or 'vram'"
            ),
        ),
        (
            "max_ghz = 2.4",
            "max_mhz = 2400",
            (
                "my-board.toml: cpu.cores[1].max_mhz: unknown key. "
                "Did you mean 'max_ghz' (highest clock in GHz)?"
            ),
        ),
        (
            'min_onnxruntime = "1.28.0"',
            'min_onnxruntime = "1.24.4"',
            (
                "my-board.toml: widths[5].min_onnxruntime: too old for 2 bits; found '1.24.4'; "
                "allowed: 1.28.0 or newer"
            ),
        ),
        (
            "accuracy_level = 4",
            "accuracy_level = 0",
            (
                "my-board.toml: widths[3].accuracy_level: no kernel at this level; found 0; "
                "allowed: 4 for 8 bits on arm64-dotprod"
            ),
        ),
        (
            "accuracy_level = 4",
            "",
            "my-board.toml: widths[3].accuracy_level: missing at 8 bits; allowed: 4",
        ),
        (
            "bits = 8",
            "bits = 3",
            "my-board.toml: widths[3].bits: not an allowed value; found 3; allowed: 32, 16, 8, 4 or 2",
        ),
        (
            "bits = 8",
            "bits = 4",
            (
                "my-board.toml: widths[4].bits: stands twice; found '4 bits on CPUExecutionProvider'; "
                "allowed: one entry a width and provider"
            ),
        ),
        (
            "block_sizes = [32, 64, 128]",
            "block_sizes = [48]",
            (
                "my-board.toml: widths[3].block_sizes: impossible block; found 48; "
                "allowed: powers of two from 16 on"
            ),
        ),
        (
            'block_sizes = [32, 64, 128]\nmin_onnxruntime = "1.28.0"',
            'block_sizes = [32, 256]\nmin_onnxruntime = "1.28.0"',
            (
                "my-board.toml: widths[5].block_sizes: no kernel for this block; found 256; "
                "allowed: 32, 64 or 128 for 2 bits on arm64-dotprod"
            ),
        ),
        (
            'onnxruntime = "1.31.1"',
            'onnxruntime = "1.31"',
            (
                "my-board.toml: runtime.onnxruntime: not an allowed value; found '1.31'; allowed: "
                "release that the system gets, three numbers such as '1.23.2'; the stock system unless "
                "install says otherwise"
            ),
        ),
        (
            'source = "rpi-pmic"',
            'source = "csv"',
            (
                "my-board.toml: power.source: not an allowed value; found 'csv'; allowed: 'ina3221', "
                "'ina3221x', "
                "'ina238', 'tegrastats', 'nvml', 'rapl', 'rpi-pmic', 'hwmon', 'battery', 'powermetrics' or 'none'"
            ),
        ),
        (
            '"idle_w" = "unconfirmed"',
            '"idle" = "unconfirmed"',
            "my-board.toml: grades.idle: names no fact of this profile; allowed: e.g. 'idle_w'",
        ),
    ],
)
def test_a_fault_names_file_key_finding_and_limit(tmp_path: Path, old: str, new: str, line: str) -> None:
    assert line_of(changed(tmp_path, old, new)) == line


@pytest.mark.parametrize(
    ("old", "new", "part"),
    [
        ('id = "raspberry-pi-5-8gb"', 'id = "Pi 5"', "lower-case letters, digits and dashes"),
        ('id = "raspberry-pi-5-8gb"', "id = 2026-11-21", "wrong type; found 2026-11-21"),
        ("profile/1", "profile/2", "schema: not an allowed value; found 'qslm-edge/profile/2'"),
        ('name = "Rasp', 'name = "\\u001b[31mRasp', "found '\\x1b[31mRaspberry"),
        ("default = 17.1", "default = 17100.0e6", "memory.bandwidth_gb_s.default"),
        ("default = 17.1", "default = nan", "memory.bandwidth_gb_s.default"),
        ("default = 17.1", "fast = 17.1", "no default; found 'fast'"),
        ('"arm64-dotprod"', '"arm64-nodotprod"', "cpu.features: does not fit kernel_class arm64-nodotprod"),
        ('"arm64-dotprod"', '"x86-avx2"', "cpu.kernel_class: does not fit the architecture"),
        ('arch = "aarch64"', 'arch = "host"', "a card has no CPU class"),
        ('["CPUExecutionProvider"]', '["CUDAExecutionProvider"]', "CUDA without a CUDA accelerator"),
        ('["CPUExecutionProvider"]', "[]", "(at least 1)"),
        ('["CPUExecutionProvider"]', '"CPUExecutionProvider"', "wrong type"),
        ('onnxruntime = "1.31.1"', 'onnxruntime = "1.10.0"', "widths: nothing can run"),
        ("opset = 21", "opset = 23", "allowed: 21"),
        ("bits = 32\n", "bits = 32\naccuracy_level = 4\n", "means nothing at 32 bits"),
        ("bits = 32\n", "bits = 32\nblock_sizes = [32]\n", "means nothing at 32 bits"),
        ("block_sizes = [32, 64, 128]", "block_sizes = [32, 32]", "an entry stands twice"),
        ("block_sizes = [32, 64, 128]", "block_sizes = []", "impossible block"),
        ('total = ["*"]', "", "no rail to measure"),
        ('source = "rpi-pmic"', 'source = "none"', "rails without a power source"),
        ("scope =", "note =", "TOML"),
        ('total = ["*"]', 'total = ["*"]\nskip = ["*"]', "a rail of the total is skipped"),
        ("[match]", '[match]\narch = "aarch64"', "arch and features go together"),
        ("w = 2.7", "w = -2.7", "idle_w[1].w"),
        ('"*" = "sourced"', "", "no grade for the rest"),
        ('"*" = ["https://picockpit', '"cpu" = ["https://picockpit', "no source for memory.kind"),
        ('aliases = ["pi5"', 'aliases = ["raspberry-pi-5-8gb"', "repeats the id"),
        ('family = "raspberry-pi"', 'family = "pi"', "'jetson', 'raspberry-pi', 'arm-board'"),
        (
            'python = "3.11"',
            'python = "3.9"',
            "runtime.python: too old to run a bundle; found '3.9'; allowed: 3.10",
        ),
        ('python = "3.11"', 'python = "3.11"\ninstall = "a Python"', "runtime.stock: missing beside install"),
        (
            "[[widths]]",
            '[runtime.stock]\nsystem = "a"\n\n[[widths]]',
            "runtime.install: missing beside [runtime.stock]",
        ),
        (
            'parts = ["VDD_CORE", "DDR_VDD2", "DDR_VDDQ"]',
            'parts_source = "hwmon"',
            "power.parts: missing beside parts_source",
        ),
        ("[memory]", "[memory]\nbudget_mib = 1", "not valid TOML"),
    ],
)
def test_impossible_values_are_refused(tmp_path: Path, old: str, new: str, part: str) -> None:
    assert part in line_of(changed(tmp_path, old, new))


def test_tegrastats_is_a_power_source(tmp_path: Path) -> None:
    path = changed(tmp_path, 'source = "rpi-pmic"', 'source = "tegrastats"')
    assert read_profile(path).power.source == "tegrastats"


def test_two_power_modes_of_one_name(tmp_path: Path) -> None:
    mode = '[[power_modes]]\nname = "power limit"\ntool = "nvidia-smi"\n\n'
    assert "a name stands twice" in line_of(
        changed(tmp_path, "[[power_modes]]", f"{mode}[[power_modes]]", H100)
    )


def test_power_without_a_scope(tmp_path: Path) -> None:
    path = changed(tmp_path, 'scope = "GPU board; the host is not included"\n', "", H100)
    assert "power.scope: missing; allowed: what the figure covers" in line_of(path)


def test_powermetrics_has_no_total(tmp_path: Path) -> None:
    path = changed(tmp_path, 'source = "nvml"\ntotal = ["energy counter"]', 'source = "powermetrics"', H100)
    assert read_profile(path).power.total == ()


def test_two_bit_cuda_below_the_release_that_knows_it(tmp_path: Path) -> None:
    path = changed(tmp_path, 'min_onnxruntime = "1.31.0"', 'min_onnxruntime = "1.30.0"', H100)
    assert "too old for 2 bits; found '1.30.0'; allowed: 1.31.0 or newer" in line_of(path)


@given(st.text(max_size=200))
def test_any_text_is_a_profile_error(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    path = tmp_path_factory.getbasetemp() / "any.toml"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(ProfileError) as caught:
        read_profile(path)
    assert len(str(caught.value).splitlines()) == 1


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@given(st.sampled_from(sorted(Profile.model_fields)), json_values)
def test_any_value_in_any_section_is_a_profile_or_one_line(key: str, value: object) -> None:
    data = json.loads(load_profile("raspberry-pi-5-8gb").model_dump_json(by_alias=True))
    data["schema" if key == "schema_id" else key] = value
    line = "any.toml: "
    try:
        loading.check_profile(data, Path("any.toml"))
    except ProfileError as error:
        line = str(error)
    assert line.startswith("any.toml: ")
    assert line.isprintable()


@pytest.mark.parametrize("text", ["a = " + "[" * 50_000, "a = " + "9" * 5_000, "a = 2026-13-45", 'a = "'])
def test_toml_that_breaks_parsers(tmp_path: Path, text: str) -> None:
    line = line_of(write(tmp_path, text))
    assert "not valid TOML" in line or "nested too deeply" in line


# the shipped set


def test_two_shipped_profiles_must_not_share_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ship(
        tmp_path,
        monkeypatch,
        {
            "raspberry-pi-5-8gb": PI,
            "h100": H100.replace('"h100-sxm"', '"raspberry-pi-5-8gb"', 1),
        },
    )
    with pytest.raises(ProfileError, match="two shipped profiles share a name"):
        list_profiles()


def test_a_shipped_id_is_the_name_of_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ship(tmp_path, monkeypatch, {"another": PI})
    with pytest.raises(ProfileError, match="the id is not the name of the file"):
        list_profiles()


def ship(folder: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, str]) -> None:
    """Make these files the shipped set."""
    for name, text in files.items():
        (folder / f"{name}.toml").write_text(text, encoding="utf-8")
    monkeypatch.setattr(device_profiles, "names", lambda: sorted(files))
    monkeypatch.setattr(device_profiles, "path", lambda name: folder / f"{name}.toml")


# questions


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


# the documentation


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
