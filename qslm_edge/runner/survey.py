"""What a machine proves it can do: runtime packages, providers, packed widths, the read-out of memory.

Each proof runs in a process of its own, as the measurements of `verify` do: a build that crashes at an
instruction the processor lacks ends that process, and becomes a reason.
"""

from __future__ import annotations

import importlib.metadata
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from qslm_edge.errors import QslmError, RuntimeFault
from qslm_edge.runner.child import run_child
from qslm_edge.runner.memory import read_memory
from qslm_edge.runner.observe import list_paths, read_text
from qslm_edge.runner.probe import ProviderProbe
from qslm_edge.runner.runtime import import_onnxruntime

__all__ = [
    "REMOTE",
    "MemoryProof",
    "RuntimeFacts",
    "has_screen",
    "prove_memory",
    "prove_memory_in_child",
    "prove_provider",
    "runtime_facts",
]

REMOTE = ("AzureExecutionProvider",)
"""Providers that run no node on this machine, whatever it is: they call a service."""

MIB = 2**20
STEP_BYTES = 64 * MIB
SLACK_BYTES = 8 * MIB  # the kernel counts pages per processor in batches
Progress = Callable[[str, float], None]


@dataclass(frozen=True)
class RuntimeFacts:
    """The runtime that `import onnxruntime` gives here.

    Attributes:
        version: as the module says, None when it cannot be imported.
        providers: execution providers that the build lists, without those that call a service.
        packages: installed distributions that own the import name, as "name version".
        reason: why it cannot be imported, else None.
    """

    version: str | None
    providers: tuple[str, ...]
    packages: tuple[str, ...]
    reason: str | None = None

    @property
    def release(self) -> str | None:
        """The version as three numbers, without what a vendor's build adds."""
        numbers = re.findall(r"[0-9]+", (self.version or "").partition("+")[0])[:3]
        return ".".join([*numbers, "0", "0"][:3]) if numbers else None

    def to_dict(self) -> dict[str, Any]:
        """All fields, ready for JSON."""
        return {**asdict(self), "release": self.release}


def runtime_facts() -> RuntimeFacts:
    """Import onnxruntime and ask it and the package records."""
    packages = _packages()
    try:
        runtime = import_onnxruntime()
    except RuntimeFault as fault:
        return RuntimeFacts(None, (), packages, f"cannot be imported: {fault.found or fault.what}")
    listed = tuple(str(name) for name in runtime.get_available_providers() if name not in REMOTE)
    return RuntimeFacts(str(runtime.__version__), listed, packages)


def _packages() -> tuple[str, ...]:
    """Distributions whose name says that they bring the import name `onnxruntime`.

    By name, not by their lists of files: a vendor's wheel need not have one, and reading all takes seconds
    on a board.
    """
    found = set()
    for distribution in importlib.metadata.distributions():
        name = str(distribution.metadata["Name"] or "").lower().replace("_", "-")
        if re.fullmatch(r"(ort-nightly|onnxruntime)(-(?!extensions|genai|tools)[a-z0-9-]+)?", name):
            found.add(f"{name} {distribution.version}")
    return tuple(sorted(found))


def prove_provider(provider: str, on_progress: Progress = lambda _title, _share: None) -> ProviderProbe:
    """Run every form on a provider in a process of its own; whatever goes wrong there is the reason."""
    try:
        return ProviderProbe.from_dict(run_child(["_probe", provider], on_progress))
    except QslmError as error:
        return ProviderProbe.failed(provider, error.line())


@dataclass(frozen=True)
class MemoryProof:
    """Whether the peak that the system tells moves with what a process takes.

    Attributes:
        ok: it moved by the known allocation.
        taken_bytes: the allocation.
        moved_bytes: by how much the peak grew; None when it cannot be read.
        source: what was read.
        reason: why it is not believed, else None.
    """

    ok: bool
    taken_bytes: int
    moved_bytes: int | None
    source: str
    reason: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """All fields, ready for JSON."""
        return asdict(self)


def prove_memory() -> MemoryProof:
    """Take a known amount of memory in this process and compare what the peak says. Best in a fresh process."""
    before = read_memory()
    if before.peak_rss_bytes is None or before.rss_bytes is None:
        return MemoryProof(False, 0, None, before.source, before.reason or "no peak is told")
    # what lies below an earlier peak would not move it
    taken = STEP_BYTES + max(0, before.peak_rss_bytes - before.rss_bytes)
    block = bytearray(taken)
    block[:: 2**12] = b"\1" * len(range(0, taken, 2**12))  # touches every page
    after = read_memory()
    del block
    if after.peak_rss_bytes is None:
        return MemoryProof(False, taken, None, after.source, after.reason)
    moved = after.peak_rss_bytes - before.peak_rss_bytes
    ok = abs(moved - STEP_BYTES) <= SLACK_BYTES
    why = None if ok else f"the peak moved by {moved / MIB:.0f} MiB where {STEP_BYTES / MIB:.0f} were taken"
    return MemoryProof(ok, taken, moved, after.source, why)


def prove_memory_in_child() -> MemoryProof:
    """The same in a process of its own, whose peak nothing has raised yet."""
    try:
        return MemoryProof(**run_child(["_allocation"], lambda _title, _share: None))
    except QslmError as error:
        return MemoryProof(False, 0, None, "a process of its own", error.line())


def has_screen(root: Path = Path("/")) -> bool:
    """Whether a screen is connected, and so a desktop likely takes its share of the memory."""
    return any(
        read_text(root, path).value == "connected"
        for path in list_paths(root, "sys/class/drm/card*-*/status")
    )
