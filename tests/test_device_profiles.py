"""The shipped boards say what is known of them, and every one of them is a valid profile."""

from __future__ import annotations

import pytest

from qslm_edge import device_profiles
from qslm_edge.profiles import Profile, list_profiles, load_profile
from qslm_edge.profiles.kernels import CPU_PROVIDER, CUDA_PROVIDER

BOARDS = ["h100", "jetson-agx-orin-64gb", "jetson-orin-nano", "raspberry-pi-5-8gb", "x86-laptop"]
BUDGETS_MB = {
    "h100": 56000,
    "jetson-agx-orin-64gb": 32000,
    "jetson-orin-nano": 3000,
    "raspberry-pi-5-8gb": 4000,
    "x86-laptop": 6000,
}
VISIBLE_MIB = {
    "h100": 81559,
    "jetson-agx-orin-64gb": 62878,
    "jetson-orin-nano": 7486,
    "raspberry-pi-5-8gb": 8060,
    "x86-laptop": 15600,
}


@pytest.fixture(params=BOARDS)
def board(request: pytest.FixtureRequest) -> Profile:
    return load_profile(str(request.param))


def test_the_folder_lists_the_boards() -> None:
    assert device_profiles.names() == BOARDS
    assert [profile.id for profile in list_profiles()] == BOARDS


def test_a_path_leads_to_the_file() -> None:
    path = device_profiles.path("h100")
    assert path.name == "h100.toml"
    assert path.read_text(encoding="utf-8").startswith("#")


def test_an_unknown_path_is_refused() -> None:
    with pytest.raises(KeyError):
        device_profiles.path("../pyproject")


def test_budgets_are_whole_mib_below_the_rule_in_mb(board: Profile) -> None:
    assert board.memory.budget_mib == BUDGETS_MB[board.id] * 10**6 // 2**20
    assert board.memory.visible_mib == VISIBLE_MIB[board.id]


def test_aliases_resolve_to_the_documented_boards() -> None:
    assert load_profile("jetson-orin").id == "jetson-orin-nano"
    assert load_profile("x86-cpu").id == "x86-laptop"


@pytest.mark.parametrize(
    ("name", "bits"),
    [
        ("h100", [32, 16, 8, 4, 2]),
        ("jetson-agx-orin-64gb", [32, 16, 8, 4]),
        ("jetson-orin-nano", [32, 16, 8, 4]),
        ("raspberry-pi-5-8gb", [32, 16, 8, 4, 2]),
        ("x86-laptop", [32, 16, 8, 4, 2]),
    ],
)
def test_the_stock_runtime_decides_the_widths(name: str, bits: list[int]) -> None:
    assert [width.bits for width in load_profile(name).usable_widths()] == bits


@pytest.mark.parametrize(
    ("name", "onnxruntime", "providers"),
    [
        ("jetson-orin-nano", "1.23.2", (CPU_PROVIDER,)),
        ("jetson-agx-orin-64gb", "1.23.2", (CPU_PROVIDER,)),
        ("raspberry-pi-5-8gb", "1.31.1", (CPU_PROVIDER,)),
        ("x86-laptop", "1.31.1", (CPU_PROVIDER,)),
        ("h100", "1.31.1", (CUDA_PROVIDER, CPU_PROVIDER)),
    ],
)
def test_the_stock_runtime(name: str, onnxruntime: str, providers: tuple[str, ...]) -> None:
    profile = load_profile(name)
    assert profile.runtime.onnxruntime == onnxruntime
    assert profile.runtime.providers == providers
    assert profile.provider == providers[0]
    assert (profile.runtime.opset, profile.runtime.ir_version) == (21, 10)


def test_packed_widths_are_written_at_level_4_in_blocks_every_kernel_takes(board: Profile) -> None:
    packed = [width for width in board.usable_widths() if width.bits <= 8]
    assert packed
    assert {width.accuracy_level for width in packed} == {4}
    assert {width.block_sizes for width in packed} == {(32, 64, 128)}


@pytest.mark.parametrize(
    ("name", "bits", "minimum"),
    [
        ("raspberry-pi-5-8gb", 8, "1.23.2"),
        ("raspberry-pi-5-8gb", 4, "1.19.2"),
        ("raspberry-pi-5-8gb", 2, "1.28.0"),
        ("x86-laptop", 8, "1.22.1"),
        ("x86-laptop", 4, "1.22.1"),
        ("x86-laptop", 2, "1.29.0"),
        ("h100", 2, "1.31.0"),
    ],
)
def test_the_first_release_with_the_kernel(name: str, bits: int, minimum: str) -> None:
    assert load_profile(name).width(bits).min_onnxruntime == minimum


def test_agx_orin_never_adds_the_rail_fed_from_another() -> None:
    power = load_profile("jetson-agx-orin-64gb").power
    assert power.total == ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0")
    assert "VDDQ_VDD2_1V8AO" in power.skip


def test_the_pi_estimate_is_tagged() -> None:
    estimate = load_profile("raspberry-pi-5-8gb").power.estimate
    assert estimate is not None
    assert (estimate.slope, estimate.offset_w, estimate.tag) == (1.1451, 0.5879, "calibrated-estimate")


def test_no_board_can_be_recognised_as_another() -> None:
    seen = {
        "jetson-orin-nano": "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super",
        "jetson-agx-orin-64gb": "NVIDIA Jetson AGX Orin Developer Kit",
        "raspberry-pi-5-8gb": "Raspberry Pi 5 Model B Rev 1.0",
        "another": "Raspberry Pi 500 Rev 1.0",
    }
    for name, model in seen.items():
        matching = [p.id for p in list_profiles() if any(part in model for part in p.match.device_tree_model)]
        assert matching == ([name] if name != "another" else [])


def test_every_board_can_be_recognised(board: Profile) -> None:
    match = board.match
    assert match.device_tree_model or match.gpu_name or (match.arch and match.features)


def test_what_is_measured_or_sourced_names_its_source(board: Profile) -> None:
    for fact in board.facts():
        assert fact.sources or fact.grade in ("chosen", "unconfirmed"), fact.path


def test_the_budget_is_a_choice_and_no_fact(board: Profile) -> None:
    assert board.grade("memory.budget_mib") == "chosen"
