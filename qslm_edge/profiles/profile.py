"""A whole device profile: what its sections must agree on, and the questions the pipeline asks of it.

The planned provider is the first of ``runtime.providers`` with a usable width. A width is usable when its
first onnxruntime release is not newer than the one of the board's runtime: the stock system, or what
``runtime.install`` asks for where that cannot run a bundle. Rows of a provider outside
``runtime.providers`` are kept too: they say what another runtime on the same board would give.
"""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from qslm_edge.errors import UsageError
from qslm_edge.profiles import sections
from qslm_edge.profiles.facts import Fact, Grade, check_paths, fact_values, longest_path, worst
from qslm_edge.profiles.kernels import CUDA_PROVIDER, FLOAT_MINIMUM, kernels, version_key
from qslm_edge.profiles.sections import Section, Width
from qslm_edge.profiles.values import Family, Text, Texts, as_tuple, problem

__all__ = ["PACKED_BITS", "Profile"]

PACKED_BITS = (8, 4, 2)


class Profile(Section):
    """A device profile, checked. Attributes follow the keys of the file; docs/profile.md explains each."""

    schema_id: Literal["qslm-edge/profile/1"] = Field(alias="schema", description="'qslm-edge/profile/1'")
    id: str = Field(pattern=r"^[a-z0-9][a-z0-9-]{0,63}$", description="lower-case letters, digits and dashes")
    name: Text = Field(description="name for people")
    aliases: Texts = Field(default=(), description="other names that users type")
    description: Text = Field(description="one line")
    family: Family = Field(
        default="other",
        description="'jetson', 'raspberry-pi', 'arm-board', 'x86', 'nvidia-gpu', 'apple' or 'other'",
    )
    status: Literal["supported", "legacy", "development-host"] = Field(
        description="'supported', 'legacy' or 'development-host'"
    )
    memory: sections.Memory = Field(description="the section [memory]")
    cpu: sections.Cpu = Field(description="the section [cpu]")
    accelerator: sections.Accelerator | None = Field(default=None, description="the section [accelerator]")
    runtime: sections.Runtime = Field(description="the section [runtime]")
    widths: Annotated[tuple[Width, ...], BeforeValidator(as_tuple)] = Field(
        min_length=1, max_length=32, description="one [[widths]] a width and provider"
    )
    power: sections.Power = Field(description="the section [power]")
    power_modes: Annotated[tuple[sections.PowerMode, ...], BeforeValidator(as_tuple)] = Field(
        default=(), max_length=64, description="one [[power_modes]] a mode"
    )
    idle_w: Annotated[tuple[sections.IdlePower, ...], BeforeValidator(as_tuple)] = Field(
        default=(), max_length=16, description="one [[idle_w]] a condition"
    )
    match: sections.Match = Field(default=sections.Match(), description="the section [match]")
    notes: Texts = Field(default=(), description="list of lines that a user of the board should read")
    grades: dict[str, Grade] = Field(
        description="dotted key = 'chosen', 'measured', 'sourced' or 'unconfirmed'; '*' is the rest"
    )
    sources: dict[str, Texts] = Field(
        default_factory=dict, description="dotted key = list of addresses or descriptions; the longest wins"
    )

    @model_validator(mode="after")
    def _check(self) -> Profile:
        self._check_accelerator()
        self._check_widths()
        self._check_match()
        names = [mode.name for mode in self.power_modes]
        if len(set(names)) != len(names):
            raise problem(
                "power_modes", "a name stands twice", found=", ".join(names), allowed="each name once"
            )
        if self.id in self.aliases:
            raise problem("aliases", "repeats the id", found=self.id, allowed="names other than the id")
        check_paths(fact_values(self), self.grades, self.sources)
        return self

    def _check_accelerator(self) -> None:
        providers = {*self.runtime.providers, *(width.provider for width in self.widths)}
        if CUDA_PROVIDER in providers and (self.accelerator is None or self.accelerator.kind != "cuda"):
            key = "runtime.providers" if CUDA_PROVIDER in self.runtime.providers else "widths"
            raise problem(
                key, "CUDA without a CUDA accelerator", found=CUDA_PROVIDER, allowed="accelerator.kind 'cuda'"
            )

    def _check_match(self) -> None:
        least, most = self.match.min_memory_mib, self.match.max_memory_mib
        key = "match.max_memory_mib" if least is None else "match.min_memory_mib"
        if (least, most) != (None, None) and self.memory.kind == "vram":
            raise problem(
                key,
                "memory of a card is not asked",
                found=least or most,
                allowed="memory.kind other than 'vram'",
            )
        if least is not None and least > self.memory.visible_mib:
            allowed = f"at most memory.visible_mib, {self.memory.visible_mib}"
            raise problem(key, "leaves out the board itself", found=least, allowed=allowed)
        if most is not None and most < self.memory.visible_mib:
            allowed = f"at least memory.visible_mib, {self.memory.visible_mib}"
            raise problem("match.max_memory_mib", "leaves out the board itself", found=most, allowed=allowed)

    def _check_widths(self) -> None:
        seen: set[tuple[str, int]] = set()
        for number, width in enumerate(self.widths, start=1):
            where = f"widths[{number}]"
            if (width.provider, width.bits) in seen:
                found = f"{width.bits} bits on {width.provider}"
                raise problem(
                    f"{where}.bits", "stands twice", found=found, allowed="one entry a width and provider"
                )
            seen.add((width.provider, width.bits))
            self._check_kernel(where, width)
        if not self.usable_widths():
            found = f"onnxruntime {self.runtime.onnxruntime}, {', '.join(self.runtime.providers)}"
            raise problem(
                "widths", "nothing can run", found=found, allowed="at least one width of these providers"
            )

    def _check_kernel(self, where: str, width: Width) -> None:
        minimum = FLOAT_MINIMUM
        if width.is_packed:
            kernel = kernels(width.provider, self.cpu.kernel_class).get(width.bits)
            place = (
                width.provider if width.provider == CUDA_PROVIDER else self.cpu.kernel_class or "arch 'host'"
            )
            if kernel is None:
                raise problem(
                    f"{where}.bits", "no release has a kernel", found=f"{width.bits} bits on {place}"
                )
            minimum = kernel.min_onnxruntime
            if width.accuracy_level not in kernel.accuracy_levels:
                allowed = f"{_either(kernel.accuracy_levels)} for {width.bits} bits on {place}"
                raise problem(
                    f"{where}.accuracy_level",
                    "no kernel at this level",
                    found=width.accuracy_level,
                    allowed=allowed,
                )
            wrong = [size for size in width.block_sizes if size not in kernel.block_sizes]
            if wrong:
                allowed = f"{_either(kernel.block_sizes)} for {width.bits} bits on {place}"
                raise problem(
                    f"{where}.block_sizes", "no kernel for this block", found=wrong[0], allowed=allowed
                )
        if version_key(width.min_onnxruntime) < version_key(minimum):
            raise problem(
                f"{where}.min_onnxruntime",
                f"too old for {width.bits} bits",
                found=width.min_onnxruntime,
                allowed=f"{minimum} or newer",
            )

    @property
    def digest(self) -> str:
        """SHA-256 of the profile as canonical JSON: equal for equal facts, whatever the comments."""
        data = self.model_dump(mode="json", by_alias=True)
        text = json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
        return hashlib.sha256(text.encode("ascii")).hexdigest()

    @property
    def provider(self) -> str:
        """The planned execution provider: that of ``usable_widths``."""
        return self.usable_widths()[0].provider

    def usable_widths(self) -> tuple[Width, ...]:
        """Return the widths the board runs with the runtime it plans for, widest first, all of one provider."""
        return self._usable_with(self.runtime.onnxruntime)

    def stock_widths(self) -> tuple[Width, ...]:
        """Return what the onnxruntime of the system as delivered would run; empty: nothing, or not known.

        Equal to ``usable_widths`` unless ``runtime.install`` asks for another runtime. Then it is what the
        release alone could do: whether the Python beside it can run a bundle is another question.
        """
        if self.runtime.stock is None:
            return self.usable_widths()
        release = self.runtime.stock.onnxruntime
        return () if release is None else self._usable_with(release)

    def refused_widths(self) -> list[tuple[int, str]]:
        """Return (bits, reason) of each packed width not usable: which release or provider would run it."""
        usable = {width.bits for width in self.usable_widths()}
        return [(bits, self._why_not(bits)) for bits in PACKED_BITS if bits not in usable]

    def width(self, bits: int) -> Width:
        """Return the usable width of so many bits.

        Raises:
            UsageError: the board does not run it; the line says which release or provider would.
        """
        usable = self.usable_widths()
        for width in usable:
            if width.bits == bits:
                return width
        allowed = f"{_either(tuple(width.bits for width in usable))} bits"
        reason = self._why_not(bits) if bits in PACKED_BITS else "no runtime has kernels for this width"
        raise UsageError(
            f"cannot use {bits}-bit weights: {reason}", where=f"profile {self.id}", allowed=allowed
        )

    def facts(self) -> tuple[Fact, ...]:
        """Return every fact of the profile with its grade and its sources, in the order of the file."""
        return tuple(
            Fact(path, value, self.grade(path), self._source(path))
            for path, value in fact_values(self).items()
        )

    def grade(self, dotted: str) -> Grade:
        """Return how well a fact is known: the grade of the longest key that covers the dotted path."""
        return self.grades[longest_path(dotted, self.grades) or "*"]

    def lowest_grade(self) -> Grade:
        """Return the worst grade of all facts."""
        return worst(fact.grade for fact in self.facts())

    def all_notes(self) -> tuple[str, ...]:
        """Return what a user should read beside the facts: of the board, its runtime and its power read-out."""
        return (*self.notes, *(note for note in (self.runtime.note, self.power.note) if note is not None))

    def to_manifest(self) -> dict[str, Any]:
        """Return what the board itself needs of the profile, as plain JSON data for the bundle's manifest."""
        return {
            "id": self.id,
            "name": self.name,
            "digest": self.digest,
            "memory_kind": self.memory.kind,
            "visible_mib": self.memory.visible_mib,
            "budget_mib": self.memory.budget_mib,
            "onnxruntime": self.runtime.onnxruntime,
            "providers": list(self.runtime.providers),
            "match": self.match.model_dump(mode="json"),
            "power": self.power.model_dump(mode="json"),
            "power_modes": [mode.model_dump(mode="json") for mode in self.power_modes],
        }

    def _usable_with(self, release: str) -> tuple[Width, ...]:
        for provider in self.runtime.providers:
            found = [
                width for width in self.widths if width.provider == provider and _has_kernel(width, release)
            ]
            if found:
                return tuple(sorted(found, key=lambda width: -width.bits))
        return ()

    def _why_not(self, bits: int) -> str:
        ways = []
        for width in self.widths:
            if width.bits != bits:
                continue
            if width.provider not in self.runtime.providers:
                extra = f" ({width.condition})" if width.condition else ""
                ways.append(
                    f"{width.provider}, which the stock runtime lacks, runs it from "
                    f"{width.min_onnxruntime}{extra}"
                )
            elif not _has_kernel(width, self.runtime.onnxruntime):
                ways.append(
                    f"{width.provider} runs it from onnxruntime {width.min_onnxruntime}, "
                    f"the board has {self.runtime.onnxruntime}"
                )
            else:
                ways.append(f"{width.provider} runs it, but {self.provider} is preferred")
        if ways:
            return "; ".join(ways)
        return f"no release has a kernel for it on {self.cpu.kernel_class or self.provider}"

    def _source(self, path: str) -> tuple[str, ...]:
        key = longest_path(path, self.sources)
        if key is None and self.grade(path) in ("measured", "sourced"):
            key = "*"
        return self.sources.get(key, ()) if key is not None else ()


def _has_kernel(width: Width, release: str) -> bool:
    return version_key(release) >= version_key(width.min_onnxruntime)


def _either(values: tuple[int, ...]) -> str:
    words = [str(value) for value in values]
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"
