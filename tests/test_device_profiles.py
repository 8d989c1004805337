"""The shipped boards say what is known of them, and every one of them is a valid profile.

The tables repeat, from the sources and not from the files, what a slip of the pen would spoil unseen.
"""

from __future__ import annotations

import dataclasses

import pytest

from qslm_edge import device_profiles
from qslm_edge.profiles import Profile, list_profiles, load_profile
from qslm_edge.profiles.kernels import CPU_CLASSES, CPU_PROVIDER, CUDA_PROVIDER, version_key
from qslm_edge.runner.machine import ARM_CORES, Machine
from qslm_edge.runner.matching import matches
from qslm_edge.steps.levels import default_levels

# id: (visible MiB, budget MB, peak GB/s, CPU class, onnxruntime, power source)
FACTS: dict[str, tuple[int, int, float | None, str | None, str, str]] = {
    "apple-m": (16384, 8000, 68.25, "arm64-dotprod", "1.31.1", "powermetrics"),
    "beagley-ai": (3700, 1500, 12.8, "arm64-nodotprod", "1.31.1", "none"),
    "h100": (81559, 56000, 3350, None, "1.31.1", "nvml"),
    "h200": (143771, 98700, 4800, None, "1.31.1", "nvml"),
    "imx8mp": (1900, 700, 16, "arm64-nodotprod", "1.31.1", "none"),
    "imx95": (7600, 3000, 25.6, "arm64-dotprod", "1.31.1", "none"),
    "intel-n100": (15600, 6000, 25.6, "x86-avx2", "1.31.1", "rapl"),
    "jetson-agx-orin-32gb": (30698, 16000, 204.8, "arm64-dotprod", "1.23.2", "ina3221"),
    "jetson-agx-orin-64gb": (62878, 32000, 204.8, "arm64-dotprod", "1.23.2", "ina3221"),
    "jetson-agx-thor": (125700, 64000, 273, "arm64-dotprod", "1.31.1", "ina238"),
    "jetson-nano": (3964, 1200, 25.6, "arm64-nodotprod", "1.28.0", "ina3221x"),
    "jetson-orin-nano": (7486, 3000, 68, "arm64-dotprod", "1.23.2", "ina3221"),
    "jetson-orin-nano-4gb": (3620, 1200, 34, "arm64-dotprod", "1.23.2", "ina3221"),
    "jetson-orin-nx-16gb": (15598, 8000, 102.4, "arm64-dotprod", "1.23.2", "ina3221"),
    "jetson-orin-nx-8gb": (7400, 3000, 102.4, "arm64-dotprod", "1.23.2", "ina3221"),
    "jetson-xavier-nx": (7765, 3000, 59.7, "arm64-nodotprod", "1.31.1", "ina3221"),
    "l4": (24000, 16800, 300, None, "1.31.1", "nvml"),
    "qcs6490": (5400, 2500, 25.6, "arm64-dotprod", "1.31.1", "none"),
    "raspberry-pi-4": (3790, 1500, 12.8, "arm64-nodotprod", "1.31.1", "none"),
    "raspberry-pi-5-16gb": (16200, 8000, 17.1, "arm64-dotprod", "1.31.1", "rpi-pmic"),
    "raspberry-pi-5-4gb": (4040, 1500, 17.1, "arm64-dotprod", "1.31.1", "rpi-pmic"),
    "raspberry-pi-5-8gb": (8060, 4000, 17.1, "arm64-dotprod", "1.31.1", "rpi-pmic"),
    "raspberry-pi-zero-2w": (416, 210, 3.6, "arm64-nodotprod", "1.31.1", "none"),
    "rk3588": (7700, 4000, 34.1, "arm64-dotprod", "1.31.1", "none"),
    "rtx-4090": (24000, 16800, 1008, None, "1.31.1", "nvml"),
    "rtx-a6000": (48000, 33600, 768, None, "1.31.1", "nvml"),
    "x86-laptop": (15600, 6000, None, "x86-avx2", "1.31.1", "rapl"),
}
CARDS = ["h100", "h200", "l4", "rtx-4090", "rtx-a6000"]
HOST = Machine(
    arch="aarch64",
    cpu_model=None,
    features=(),
    cores_usable=4,
    device_tree_model=None,
    os_name=None,
    kernel=None,
    total_memory_bytes=None,
    python_version="3.11.2",
    gpu_names=(),
    container=None,
)


@pytest.fixture(params=sorted(FACTS))
def board(request: pytest.FixtureRequest) -> Profile:
    return load_profile(str(request.param))


def test_the_folder_lists_the_boards() -> None:
    assert device_profiles.names() == sorted(FACTS)
    assert [profile.id for profile in list_profiles()] == sorted(FACTS)


def test_a_path_leads_to_the_file() -> None:
    path = device_profiles.path("h100")
    assert path.name == "h100.toml"
    assert path.read_text(encoding="utf-8").startswith("#")


def test_an_unknown_path_is_refused() -> None:
    with pytest.raises(KeyError):
        device_profiles.path("../pyproject")


def test_memory_class_runtime_and_power_source(board: Profile) -> None:
    visible_mib, budget_mb, peak, kind, onnxruntime, source = FACTS[board.id]
    assert board.memory.visible_mib == visible_mib
    assert board.memory.budget_mib == budget_mb * 10**6 // 2**20
    assert board.memory.bandwidth_gb_s.get("default") == peak
    assert board.cpu.kernel_class == kind
    assert (board.runtime.onnxruntime, board.power.source) == (onnxruntime, source)
    assert (board.runtime.opset, board.runtime.ir_version) == (21, 10)


@pytest.mark.parametrize(
    ("name", "condition", "peak"),
    [
        ("jetson-orin-nano-4gb", "super", 51),
        ("jetson-orin-nano", "super", 102),
        ("rk3588", "lpddr5_5500", 44),
        ("intel-n100", "ddr5_4800", 38.4),
        ("apple-m", "m2_m3", 100),
        ("apple-m", "m4", 120),
    ],
)
def test_bandwidth_by_condition(name: str, condition: str, peak: float) -> None:
    assert load_profile(name).memory.bandwidth_gb_s[condition] == peak


def test_status_and_family() -> None:
    profiles = {profile.id: profile for profile in list_profiles()}
    odd = {name: profile.status for name, profile in profiles.items() if profile.status != "supported"}
    assert odd == {"jetson-nano": "legacy", "jetson-xavier-nx": "legacy", "apple-m": "development-host"}
    assert [name for name, profile in profiles.items() if profile.family == "nvidia-gpu"] == CARDS
    assert all(profile.family == "jetson" for name, profile in profiles.items() if name.startswith("jetson"))
    assert all(profile.family != "other" for profile in profiles.values())


@pytest.mark.parametrize(
    ("alias", "name"),
    [
        ("jetson-orin", "jetson-orin-nano"),
        ("orin-nano", "jetson-orin-nano"),
        ("orin-nano-4gb", "jetson-orin-nano-4gb"),
        ("orin-nx-16gb", "jetson-orin-nx-16gb"),
        ("agx-orin", "jetson-agx-orin-64gb"),
        ("agx-orin-32gb", "jetson-agx-orin-32gb"),
        ("thor", "jetson-agx-thor"),
        ("xavier-nx", "jetson-xavier-nx"),
        ("pi4", "raspberry-pi-4"),
        ("pi5", "raspberry-pi-5-8gb"),
        ("pi5-4gb", "raspberry-pi-5-4gb"),
        ("zero-2w", "raspberry-pi-zero-2w"),
        ("orange-pi-5", "rk3588"),
        ("rb3gen2", "qcs6490"),
        ("n100", "intel-n100"),
        ("x86-cpu", "x86-laptop"),
        ("rtx4090", "rtx-4090"),
        ("apple-silicon", "apple-m"),
    ],
)
def test_aliases(alias: str, name: str) -> None:
    assert load_profile(alias).id == name


# widths and levels


def test_widths_follow_from_class_and_release(board: Profile) -> None:
    bits = [width.bits for width in board.usable_widths()]
    if board.cpu.kernel_class == "arm64-nodotprod":
        assert bits == [32, 16, 4]
    elif board.runtime.onnxruntime == "1.23.2":
        assert bits == [32, 16, 8, 4]
    else:
        assert bits == [32, 16, 8, 4, 2]
    assert board.provider == (CUDA_PROVIDER if board.id in CARDS else CPU_PROVIDER)
    assert {width.block_sizes for width in board.usable_widths() if width.bits <= 8} == {(32, 64, 128)}


def test_minima_are_those_at_which_the_kernels_were_found(board: Profile) -> None:
    for width in board.widths:
        if width.is_packed and width.provider == CPU_PROVIDER and board.cpu.kernel_class is not None:
            assert width.min_onnxruntime == CPU_CLASSES[board.cpu.kernel_class][width.bits].min_onnxruntime
        if width.bits == 2 and width.provider == CUDA_PROVIDER:
            assert width.min_onnxruntime == "1.31.0"


def test_default_levels_are_what_a_class_runs_well(board: Profile) -> None:
    levels = [str(level) for level in default_levels(board)]
    if board.cpu.kernel_class == "arm64-nodotprod":
        assert levels == ["16", "4g32f", "4g64f", "4g128f"]  # f: float activations, accuracy level 0
    elif board.id in CARDS:
        assert levels == ["16", "8g64f", "4g32f", "4g64f", "4g128f", "2g64mf"]
    elif board.runtime.onnxruntime == "1.23.2":
        assert levels == ["16", "8g64", "4g32", "4g64", "4g128"]
    else:
        assert levels == ["16", "8g64", "4g32", "4g64", "4g128", "2g64m"]


# runtimes


@pytest.mark.parametrize(
    ("name", "python", "onnxruntime", "bits"),
    [
        ("jetson-nano", "3.6", "1.10.0", []),
        ("jetson-xavier-nx", "3.8", "1.19.2", [32, 16]),
        ("imx8mp", None, None, []),
        ("imx95", None, None, []),
        ("apple-m", None, None, []),
    ],
)
def test_a_board_whose_own_system_cannot_run_a_bundle_says_what_to_install(
    name: str, python: str | None, onnxruntime: str | None, bits: list[int]
) -> None:
    profile = load_profile(name)
    assert profile.runtime.install is not None
    assert "Python 3.11" in profile.runtime.install
    assert profile.runtime.stock is not None
    assert (profile.runtime.stock.python, profile.runtime.stock.onnxruntime) == (python, onnxruntime)
    assert [width.bits for width in profile.stock_widths()] == bits


def test_no_other_board_needs_an_install() -> None:
    needy = [profile.id for profile in list_profiles() if profile.runtime.install is not None]
    assert needy == ["apple-m", "imx8mp", "imx95", "jetson-nano", "jetson-xavier-nx"]


def test_glibc_of_jetpack_4_sets_its_ceiling() -> None:
    profile = load_profile("jetson-nano")
    assert profile.runtime.onnxruntime == "1.28.0"
    assert profile.runtime.install is not None
    assert "onnxruntime 1.28.0" in profile.runtime.install


def test_a_python_gets_the_release_that_its_wheels_allow(board: Profile) -> None:
    python, release = version_key(board.runtime.python), version_key(board.runtime.onnxruntime)
    assert board.runtime.system is not None
    assert (python >= (3, 11)) or release <= (1, 23, 2)


# power


@pytest.mark.parametrize(
    ("name", "total", "parts"),
    [
        ("jetson-orin-nx-8gb", ["VDD_IN"], ["VDD_CPU_GPU_CV", "VDD_SOC"]),
        ("jetson-xavier-nx", ["VDD_IN"], ["VDD_CPU_GPU_CV", "VDD_SOC"]),
        ("jetson-agx-orin-32gb", ["VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"], []),
        ("jetson-agx-orin-64gb", ["VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"], []),
        ("jetson-agx-thor", ["power1_input"], ["VDD_GPU", "VDD_CPU_SOC_MSS", "VIN_SYS_5V0"]),
        ("jetson-nano", ["POM_5V_IN"], ["POM_5V_GPU", "POM_5V_CPU"]),
        ("raspberry-pi-5-4gb", ["*"], ["VDD_CORE", "DDR_VDD2", "DDR_VDDQ"]),
        ("intel-n100", ["package-0"], ["core", "uncore"]),
        ("x86-laptop", ["psys", "package-0"], ["core", "uncore"]),
        ("l4", ["energy counter"], []),
        ("apple-m", [], ["CPU", "GPU", "ANE"]),
        ("rk3588", [], []),
    ],
)
def test_rails(name: str, total: list[str], parts: list[str]) -> None:
    power = load_profile(name).power
    assert (list(power.total), list(power.parts)) == (total, parts)


def test_agx_orin_never_adds_the_rail_fed_from_another() -> None:
    for name in ("jetson-agx-orin-32gb", "jetson-agx-orin-64gb"):
        assert "VDDQ_VDD2_1V8AO" in load_profile(name).power.skip


def test_thor_reads_its_parts_from_another_monitor() -> None:
    assert load_profile("jetson-agx-thor").power.parts_source == "ina3221"


def test_the_pi_estimate_is_tagged() -> None:
    for memory in ("4gb", "8gb", "16gb"):
        estimate = load_profile(f"raspberry-pi-5-{memory}").power.estimate
        assert estimate is not None
        assert (estimate.slope, estimate.offset_w, estimate.tag) == (1.1451, 0.5879, "calibrated-estimate")


@pytest.mark.parametrize(
    ("name", "modes"),
    [
        ("jetson-orin-nano", {"15W": 0, "25W": 1, "MAXN_SUPER": 2, "7W": 3}),
        ("jetson-agx-orin-32gb", {"MAXN": 0, "15W": 1, "30W": 2, "40W": 3}),
        ("jetson-agx-orin-64gb", {"MAXN": 0, "MODE_15W": 1, "MODE_30W": 2, "MODE_50W": 3}),
        ("jetson-agx-thor", {"MAXN": 0, "120W": 1, "90W": 2, "70W": 3}),
        ("jetson-nano", {"MAXN": 0, "5W": 1}),
        ("jetson-xavier-nx", {"10W": None, "15W": None, "20W": None}),
        ("jetson-orin-nano-4gb", {"7W": None, "10W": None, "25W": None, "MAXN_SUPER": None}),
    ],
)
def test_power_modes(name: str, modes: dict[str, int | None]) -> None:
    assert {mode.name: mode.id for mode in load_profile(name).power_modes} == modes


# recognition

NAMES = {
    "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super": [
        "jetson-orin-nano",
        "jetson-orin-nano-4gb",
    ],
    "NVIDIA Jetson Orin NX Engineering Reference Developer Kit": [
        "jetson-orin-nx-16gb",
        "jetson-orin-nx-8gb",
    ],
    "NVIDIA Jetson AGX Orin Developer Kit": ["jetson-agx-orin-32gb", "jetson-agx-orin-64gb"],
    "NVIDIA Jetson AGX Thor Developer Kit": ["jetson-agx-thor"],
    "NVIDIA Jetson Xavier NX Developer Kit": ["jetson-xavier-nx"],
    "NVIDIA Jetson Nano Developer Kit": ["jetson-nano"],
    "Raspberry Pi 4 Model B Rev 1.4": ["raspberry-pi-4"],
    "Raspberry Pi 5 Model B Rev 1.0": ["raspberry-pi-5-16gb", "raspberry-pi-5-4gb", "raspberry-pi-5-8gb"],
    "Raspberry Pi 500 Rev 1.0": [],
    "Raspberry Pi 400 Rev 1.0": [],
    "Raspberry Pi Zero 2 W Rev 1.0": ["raspberry-pi-zero-2w"],
    "Raspberry Pi Zero W Rev 1.1": [],
    "Radxa ROCK 5B": ["rk3588"],
    "BeagleBoard.org BeagleY-AI": ["beagley-ai"],
    "NXP i.MX8MPlus EVK board": ["imx8mp"],
    "NXP i.MX95 19X19 board": ["imx95"],
    "Qualcomm Technologies, Inc. Robotics RB3gen2": ["qcs6490"],
}
GPUS = {
    "NVIDIA H100 80GB HBM3": ["h100"],
    "NVIDIA H100 PCIe": [],
    "NVIDIA H200": ["h200"],
    "NVIDIA GH200 480GB": [],
    "NVIDIA L4": ["l4"],
    "NVIDIA L40S": [],
    "NVIDIA GeForce RTX 4090": ["rtx-4090"],
    "NVIDIA RTX A6000": ["rtx-a6000"],
    "NVIDIA RTX 6000 Ada Generation": [],
}
SIZES = {
    ("NVIDIA Jetson Orin Nano Developer Kit", 3620): "jetson-orin-nano-4gb",
    ("NVIDIA Jetson Orin Nano Developer Kit", 7486): "jetson-orin-nano",
    ("NVIDIA Jetson Orin Nano Developer Kit", 7620): "jetson-orin-nano",
    ("NVIDIA Jetson Orin NX Developer Kit", 7400): "jetson-orin-nx-8gb",
    ("NVIDIA Jetson Orin NX Developer Kit", 15598): "jetson-orin-nx-16gb",
    ("NVIDIA Jetson AGX Orin Developer Kit", 30698): "jetson-agx-orin-32gb",
    ("NVIDIA Jetson AGX Orin Developer Kit", 62878): "jetson-agx-orin-64gb",
    ("NVIDIA Jetson Xavier NX Developer Kit", 7765): "jetson-xavier-nx",
    ("NVIDIA Jetson Xavier NX Developer Kit", 15500): None,
    ("NVIDIA Jetson Nano 2GB Developer Kit", 1980): None,
    ("NVIDIA Jetson Nano Developer Kit", 3964): "jetson-nano",
    ("Raspberry Pi 4 Model B Rev 1.4", 1850): None,
    ("Raspberry Pi 4 Model B Rev 1.4", 3790): "raspberry-pi-4",
    ("Raspberry Pi 4 Model B Rev 1.4", 7800): None,
    ("Raspberry Pi 5 Model B Rev 1.0", 2010): None,
    ("Raspberry Pi 5 Model B Rev 1.0", 4040): "raspberry-pi-5-4gb",
    ("Raspberry Pi 5 Model B Rev 1.0", 8060): "raspberry-pi-5-8gb",
    ("Raspberry Pi 5 Model B Rev 1.0", 16200): "raspberry-pi-5-16gb",
    ("Radxa ROCK 5B", 3700): None,
    ("Radxa ROCK 5B", 7700): "rk3588",
    ("Radxa ROCK 5B", 15700): None,
}
"""Boards that are sold in several sizes under one name, by the MiB that they show."""
CPUS = {"Intel(R) N100": ["intel-n100"], "Apple M3 Pro": ["apple-m"], "Intel(R) Core(TM) i7-1360P": []}


def recognised(machine: Machine) -> list[str]:
    """Return the boards that the runner takes this host for."""
    return [p.id for p in list_profiles() if matches(p.match.model_dump(mode="json"), machine)[0]]


@pytest.mark.parametrize(("name", "boards"), NAMES.items())
def test_a_board_is_known_by_its_device_tree(name: str, boards: list[str]) -> None:
    assert recognised(dataclasses.replace(HOST, device_tree_model=name)) == boards


@pytest.mark.parametrize(("shown", "board_id"), SIZES.items())
def test_sizes_of_one_name_are_told_apart_by_their_memory(
    shown: tuple[str, int], board_id: str | None
) -> None:
    name, memory_mib = shown
    host = dataclasses.replace(HOST, device_tree_model=name, total_memory_bytes=memory_mib * 2**20)
    assert recognised(host) == ([] if board_id is None else [board_id])


@pytest.mark.parametrize(("name", "boards"), GPUS.items())
def test_a_card_is_known_by_its_name(name: str, boards: list[str]) -> None:
    assert recognised(dataclasses.replace(HOST, arch="x86_64", gpu_names=(name,))) == boards


@pytest.mark.parametrize(("name", "boards"), CPUS.items())
def test_a_machine_without_device_tree_is_known_by_its_processor(name: str, boards: list[str]) -> None:
    assert recognised(dataclasses.replace(HOST, cpu_model=name)) == boards


def test_any_x86_machine_with_avx2_is_the_generic_record() -> None:
    assert recognised(dataclasses.replace(HOST, arch="x86_64", features=("avx2", "fma"))) == ["x86-laptop"]
    assert recognised(dataclasses.replace(HOST, arch="x86_64", features=("avx",))) == []


def test_every_board_can_be_recognised(board: Profile) -> None:
    match = board.match
    assert match.device_tree_model or match.gpu_name or match.cpu_model or (match.arch and match.features)


def test_the_runner_can_name_every_arm_core(board: Profile) -> None:
    if board.cpu.arch == "aarch64":
        assert {core.model for core in board.cpu.cores} <= set(ARM_CORES.values())


# grades


def test_what_is_measured_or_sourced_names_its_source(board: Profile) -> None:
    for fact in board.facts():
        assert fact.sources or fact.grade in ("chosen", "unconfirmed"), fact.path


def test_the_budget_is_a_choice_and_no_fact(board: Profile) -> None:
    assert board.grade("memory.budget_mib") == "chosen"


def test_only_what_was_on_a_desk_is_measured(board: Profile) -> None:
    measured = {fact.path.split(".")[0] for fact in board.facts() if fact.grade == "measured"}
    assert board.id in ("h100", "h200") or measured <= {"runtime", "widths"}


@pytest.mark.parametrize(
    ("name", "path", "grade"),
    [
        ("jetson-orin-nano-4gb", "memory.visible_mib", "unconfirmed"),
        ("jetson-orin-nano-4gb", "memory.bandwidth_gb_s.default", "sourced"),
        ("jetson-orin-nano-4gb", "memory.bandwidth_gb_s.super", "unconfirmed"),
        ("jetson-orin-nx-8gb", "memory.visible_mib", "unconfirmed"),
        ("jetson-orin-nx-16gb", "memory.visible_mib", "sourced"),
        ("jetson-orin-nx-16gb", "power_modes.25W", "unconfirmed"),
        ("jetson-agx-orin-32gb", "power_modes.40W", "sourced"),
        ("jetson-agx-thor", "idle_w.1", "unconfirmed"),
        ("jetson-xavier-nx", "cpu.kernel_class", "unconfirmed"),
        ("jetson-nano", "cpu.kernel_class", "sourced"),
        ("raspberry-pi-4", "memory.bandwidth_gb_s.default", "unconfirmed"),
        ("raspberry-pi-zero-2w", "memory.visible_mib", "unconfirmed"),
        ("raspberry-pi-zero-2w", "widths.CPUExecutionProvider.4", "measured"),
        ("imx95", "cpu.features", "unconfirmed"),
        ("imx95", "cpu.cores", "sourced"),
        ("qcs6490", "memory.bandwidth_gb_s.default", "sourced"),
        ("qcs6490", "cpu.kernel_class", "unconfirmed"),
        ("intel-n100", "widths.CPUExecutionProvider.2", "sourced"),
        ("rtx-a6000", "memory.bandwidth_gb_s.default", "sourced"),
        ("rtx-4090", "memory.bandwidth_gb_s.default", "unconfirmed"),
        ("l4", "power.source", "unconfirmed"),
        ("apple-m", "power.source", "sourced"),
        ("apple-m", "widths.CPUExecutionProvider.4", "unconfirmed"),
        ("h200", "memory.visible_mib", "measured"),
        ("h200", "memory.bandwidth_gb_s.default", "unconfirmed"),
    ],
)
def test_grades(name: str, path: str, grade: str) -> None:
    assert load_profile(name).grade(path) == grade
