"""What is wrong with a profile: one line that names file, key, finding and limit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qslm_edge.errors import ProfileError
from qslm_edge.profiles import Profile, load_profile, loading, read_profile
from tests.helpers.profiles import H100, changed, line_of, write


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
