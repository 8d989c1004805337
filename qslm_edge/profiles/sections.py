"""The sections of a device profile as they stand in the TOML file: each key with its help, unit and range.

Each model is strict (no text where a number belongs), closed (an unknown key is an error) and frozen. What
one key says about another is checked here when both stand in one section, and in ``profile.py`` otherwise.
The help texts end up in error lines, so they are written to follow "allowed: ".
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from qslm_edge.profiles.kernels import CUDA_PROVIDER
from qslm_edge.profiles.values import (
    PowerSource,
    Provider,
    Python,
    Text,
    Texts,
    Version,
    as_tuple,
    distinct,
    problem,
)

__all__ = [
    "Accelerator",
    "Core",
    "Cpu",
    "Estimate",
    "IdlePower",
    "Match",
    "Memory",
    "Power",
    "PowerMode",
    "Runtime",
    "Section",
    "Stock",
    "Width",
]

MIB = 2**20


RUNNER_PYTHON = (3, 10)
"""Oldest Python that the runner of a bundle works with: what is older cannot verify a bundle."""


class Section(BaseModel):
    """Base of every section: strict, closed, frozen."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)


class Memory(Section):
    """[memory]: what the model may use."""

    kind: Literal["unified", "dram", "vram"] = Field(
        description="'unified' (CPU and GPU share it), 'dram' (CPU only) or 'vram' (of a graphics card)"
    )
    visible_mib: int = Field(ge=32, le=2**24, description="memory that the system shows, in MiB (2^20 bytes)")
    budget_mib: int = Field(
        ge=16, le=2**24, description="peak memory the process may use, in MiB (2^20 bytes)"
    )
    bandwidth_gb_s: dict[
        Annotated[str, Field(pattern=r"^[a-z0-9_]{1,40}$")], Annotated[float, Field(gt=0, le=20000)]
    ] = Field(
        default_factory=dict,
        description="theoretical peak in GB/s (10^9 bytes) by condition, 0 to 20000, 'default' first; "
        "empty: read it from the machine",
    )

    @property
    def visible_bytes(self) -> int:
        return self.visible_mib * MIB

    @property
    def budget_bytes(self) -> int:
        return self.budget_mib * MIB

    @model_validator(mode="after")
    def _check(self) -> Memory:
        if self.budget_mib > self.visible_mib:
            allowed = f"at most visible_mib, {self.visible_mib}"
            raise problem("budget_mib", "more than the board has", found=self.budget_mib, allowed=allowed)
        if self.bandwidth_gb_s and "default" not in self.bandwidth_gb_s:
            found = ", ".join(self.bandwidth_gb_s)
            raise problem(
                "bandwidth_gb_s", "no default", found=found, allowed="a key 'default' beside the others"
            )
        return self


class Core(Section):
    """One entry of cpu.cores."""

    count: int = Field(ge=1, le=1024, description="number of cores of this kind, 1 to 1024")
    model: Text = Field(description="name of the core, e.g. 'Cortex-A76'")
    max_ghz: float = Field(ge=0.05, le=10, description="highest clock in GHz")


class Cpu(Section):
    """[cpu]: what decides which kernels run."""

    arch: Literal["aarch64", "x86_64", "host"] = Field(
        description="as `uname -m` says it; 'host' for a graphics card, whose host may be any"
    )
    kernel_class: Literal["arm64-nodotprod", "arm64-dotprod", "x86-avx2", "x86-avx512"] | None = Field(
        default=None,
        description="arm64-nodotprod, arm64-dotprod, x86-avx2 or x86-avx512; absent with arch 'host'",
    )
    cores: Annotated[tuple[Core, ...], BeforeValidator(as_tuple)] = Field(
        default=(),
        max_length=16,
        description="list of {count, model, max_ghz}; empty: read it from the machine",
    )
    features: Texts = Field(
        default=(), description="flags that must stand in /proc/cpuinfo, e.g. 'asimddp', 'avx2'"
    )

    @model_validator(mode="after")
    def _check(self) -> Cpu:
        kind = self.kernel_class
        if self.arch == "host":
            if kind is not None:
                raise problem(
                    "kernel_class", "a card has no CPU class", found=kind, allowed="none with arch 'host'"
                )
            return self
        prefix = "arm64" if self.arch == "aarch64" else "x86"
        if kind is None or not kind.startswith(prefix):
            allowed = f"{prefix}-... with arch '{self.arch}'"
            raise problem(
                "kernel_class", "does not fit the architecture", found=kind or "none", allowed=allowed
            )
        flags = {
            "arm64-nodotprod": (set(), {"asimddp"}),
            "arm64-dotprod": ({"asimddp"}, set()),
            "x86-avx2": ({"avx2"}, {"avx512f"}),
            "x86-avx512": ({"avx512f"}, set()),
        }
        needed, barred = flags[kind]
        if not needed <= set(self.features) or barred & set(self.features):
            allowed = " and ".join(
                [f"with {flag}" for flag in needed] + [f"without {flag}" for flag in barred]
            )
            found = ", ".join(self.features) or "no features"
            raise problem("features", f"does not fit kernel_class {kind}", found=found, allowed=allowed)
        return self


class Accelerator(Section):
    """[accelerator]: optional."""

    kind: Literal["cuda", "gpu", "npu"] = Field(description="'cuda', 'gpu' or 'npu'")
    name: Text = Field(description="name of the part")
    cuda_compute_capability: str | None = Field(
        default=None,
        pattern=r"^[0-9]{1,2}\.[0-9]$",
        description="e.g. '8.7'; decides which CUDA builds can run",
    )


class Stock(Section):
    """[runtime.stock]: what the board brings along, where that cannot run a bundle."""

    system: Text = Field(description="the system as it is installed, e.g. 'JetPack 5.1 (L4T 35)'")
    python: Python | None = Field(
        default=None, description="its Python, such as '3.8'; absent: not known, or none"
    )
    onnxruntime: Version | None = Field(
        default=None, description="newest release for that Python, such as '1.19.2'; absent: not known"
    )


class Runtime(Section):
    """[runtime]: what the board runs a bundle with: its stock system, or what stands in for it."""

    system: Text | None = Field(
        default=None, description="the system that the figures are for, e.g. 'JetPack 6.2 (L4T 36.4)'"
    )
    onnxruntime: Version = Field(
        description="release that the system gets, three numbers such as '1.23.2'; the stock system unless "
        "install says otherwise"
    )
    python: Python = Field(
        description="Python that gets this release, 3.10 or newer; the stock system's unless install says "
        "otherwise"
    )
    install: Text | None = Field(
        default=None,
        description="one line: what the owner must install first, since the stock system cannot run a bundle",
    )
    stock: Stock | None = Field(
        default=None, description="the section [runtime.stock]: what the board brings along instead"
    )
    providers: Annotated[tuple[Provider, ...], BeforeValidator(as_tuple), AfterValidator(distinct)] = Field(
        min_length=1, description="what this runtime really runs, in order of preference"
    )
    opset: Literal[21] = Field(default=21, description="21: every release from 1.18 on loads it")
    ir_version: Literal[10] = Field(default=10, description="10: every release from 1.18 on loads it")
    note: Text | None = Field(default=None, description="one line, e.g. how another provider can be had")

    @model_validator(mode="after")
    def _check(self) -> Runtime:
        if tuple(int(part) for part in self.python.split(".")) < RUNNER_PYTHON:
            oldest = ".".join(str(part) for part in RUNNER_PYTHON)
            raise problem(
                "python",
                "too old to run a bundle",
                found=self.python,
                allowed=f"{oldest} or newer, which install names; the stock one stands in [runtime.stock]",
            )
        if self.stock is not None and self.install is None:
            raise problem(
                "install",
                "missing beside [runtime.stock]",
                allowed="one line: what the owner must install first",
            )
        if self.install is not None and self.stock is None:
            raise problem(
                "stock",
                "missing beside install",
                allowed="a table [runtime.stock] that says what the board brings along",
            )
        return self


class Width(Section):
    """One entry of [[widths]]: a weight width that a provider runs, and from which release on."""

    bits: Literal[32, 16, 8, 4, 2] = Field(description="32, 16, 8, 4 or 2 bits a weight")
    provider: Provider = Field(description="the execution provider that runs it")
    accuracy_level: Literal[0, 4] | None = Field(
        default=None,
        description="0 on CUDA; on a CPU 0 or 4 at 4 bits, 4 at 8 and 2 bits; absent at 32 and 16 bits",
    )
    block_sizes: Annotated[tuple[int, ...], BeforeValidator(as_tuple), AfterValidator(distinct)] = Field(
        default=(),
        description="weights that share a scale: powers of two from 16 on, for 8, 4 and 2 bits only",
    )
    min_onnxruntime: Version = Field(
        description="first release with the kernel, three numbers such as '1.28.0'"
    )
    condition: Text | None = Field(default=None, description="one line: what else must hold")

    @property
    def is_packed(self) -> bool:
        """Whether the weights are stored as integers with block scales."""
        return self.bits <= 8

    @model_validator(mode="after")
    def _check(self) -> Width:
        if not self.is_packed:
            if self.accuracy_level is not None:
                raise problem(
                    "accuracy_level", f"means nothing at {self.bits} bits", found=self.accuracy_level
                )
            if self.block_sizes:
                raise problem(
                    "block_sizes", f"means nothing at {self.bits} bits", found=list(self.block_sizes)
                )
            return self
        if self.accuracy_level is None:
            allowed = "0" if self.provider == CUDA_PROVIDER else "0 or 4" if self.bits == 4 else "4"
            raise problem("accuracy_level", f"missing at {self.bits} bits", allowed=allowed)
        wrong = [size for size in self.block_sizes if size < 16 or size & (size - 1)]
        if wrong or not self.block_sizes:
            found = wrong[0] if wrong else "none"
            raise problem("block_sizes", "impossible block", found=found, allowed="powers of two from 16 on")
        return self


class Estimate(Section):
    """power.estimate: whole-board power as slope x rails + offset; it never decides a verdict."""

    slope: float = Field(ge=0.5, le=3, description="W of the board per W of the rails, 0.5 to 3")
    offset_w: float = Field(ge=0, le=50, description="W that the rails do not show, 0 to 50")
    tag: Literal["calibrated-estimate"] = Field(
        description="'calibrated-estimate', shown beside every such figure"
    )


class Power(Section):
    """[power]: how the board measures itself."""

    source: PowerSource = Field(description="how power is read; 'none' when only an external meter can")
    total: Texts = Field(
        default=(), description="rails to add, or RAPL zones in order of preference; '*': all rails"
    )
    parts: Texts = Field(default=(), description="rails reported beside the total, never added to it")
    parts_source: PowerSource | None = Field(
        default=None, description="how the parts are read; absent: as the total is"
    )
    scope: Text | None = Field(default=None, description="what the figure covers, in words")
    skip: Texts = Field(default=(), description="channels that are never read")
    estimate: Estimate | None = Field(default=None, description="calibration from rails to the whole board")
    note: Text | None = Field(default=None, description="one line, e.g. which permission is needed")

    @model_validator(mode="after")
    def _check(self) -> Power:
        if self.source == "none":
            if self.total or self.parts or self.estimate:
                raise problem("total", "rails without a power source", allowed="no total, parts or estimate")
            return self
        if self.parts_source is not None and not self.parts:
            raise problem("parts", "missing beside parts_source", allowed="at least one rail")
        if self.source != "powermetrics" and not self.total:
            raise problem("total", "no rail to measure", allowed="at least one rail, zone or counter")
        if self.scope is None:
            raise problem("scope", "missing", allowed="what the figure covers, e.g. 'module rails'")
        both = sorted(set(self.total) & set(self.skip))
        if both:
            raise problem(
                "skip", "a rail of the total is skipped", found=both[0], allowed="rails outside the total"
            )
        return self


class PowerMode(Section):
    """One entry of [[power_modes]]."""

    id: int | None = Field(
        default=None, ge=0, le=255, description="number in the tool, 0 to 255; absent: none"
    )
    name: Text = Field(
        description="name in the tool; modes are resolved by it, since numbers differ by board"
    )
    note: Text | None = Field(default=None, description="one line on clocks or limits")
    tool: Literal["nvpmodel", "nvidia-smi", "rapl"] = Field(description="'nvpmodel', 'nvidia-smi' or 'rapl'")


class IdlePower(Section):
    """One entry of [[idle_w]]."""

    w: float = Field(gt=0, le=2000, description="power at rest in W, up to 2000")
    condition: Text = Field(description="system, mode and load of the reading")


class Match(Section):
    """[match]: how a runner knows the board. All that is given must hold; an empty match never matches."""

    device_tree_model: Texts = Field(
        default=(), description="whole words of /proc/device-tree/model, any entry of the list"
    )
    gpu_name: Texts = Field(
        default=(), description="whole words of the name that nvidia-smi shows, any entry of the list"
    )
    cpu_model: Texts = Field(
        default=(),
        description="whole words of the processor's name, any entry; for boards without a device tree",
    )
    arch: Literal["aarch64", "x86_64"] | None = Field(
        default=None, description="as `uname -m` says it; for generic records, together with features"
    )
    features: Texts = Field(
        default=(), description="flags that must all stand in /proc/cpuinfo, together with arch"
    )
    min_memory_mib: int | None = Field(
        default=None,
        ge=1,
        le=2**24,
        description="least memory that the system shows, in MiB (2^20 bytes); tells sizes of one board apart",
    )
    max_memory_mib: int | None = Field(
        default=None, ge=1, le=2**24, description="most memory that the system shows, in MiB (2^20 bytes)"
    )

    @model_validator(mode="after")
    def _check(self) -> Match:
        if (self.arch is None) != (not self.features):
            raise problem("arch", "arch and features go together", allowed="both or neither")
        limits = (self.min_memory_mib, self.max_memory_mib)
        if limits != (None, None) and not (
            self.device_tree_model or self.gpu_name or self.cpu_model or self.arch
        ):
            key = "max_memory_mib" if self.min_memory_mib is None else "min_memory_mib"
            raise problem(
                key, "memory alone knows no board", allowed="a name beside it, e.g. device_tree_model"
            )
        return self
