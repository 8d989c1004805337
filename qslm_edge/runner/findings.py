"""One line of `doctor`: what was looked at, whether it works, why not, and what to do."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

__all__ = ["Area", "Finding", "Status", "finding_lines"]

Area = Literal["runtime", "machine", "memory", "power", "conditions", "bundle"]
Status = Literal["ok", "warning", "problem"]


@dataclass(frozen=True)
class Finding:
    """One thing that was tried.

    Attributes:
        area: what it belongs to; a problem of "bundle" is one of what that bundle needs.
        name: what was tried, in a few words.
        status: "ok"; "warning" when something cannot be had that a run can do without; "problem" else.
        detail: what was seen, or the reason.
        next_step: what the user can do; None with "ok", and where nothing can be done.
        simulated: it was read from a recorded tree of files and says nothing of this machine.
    """

    area: Area
    name: str
    status: Status
    detail: str
    next_step: str | None = None
    simulated: bool = False

    def to_dict(self) -> dict[str, Any]:
        """All fields, ready for JSON."""
        return asdict(self)

    def line(self) -> str:
        """The finding in one line, without its status."""
        label = "simulated: " if self.simulated else ""
        step = "" if self.next_step is None else f". Next: {self.next_step}"
        return f"{self.name}: {label}{self.detail}{step}"


def finding_lines(document: dict[str, Any]) -> list[str]:
    """The document of `doctor` as lines: a heading for each area, then the closing line.

    Args:
        document: as `runner.doctor.examine` gives it.
    """
    lines: list[str] = []
    area = None
    for data in document["findings"]:
        finding = Finding(**data)
        if finding.area != area:
            area = finding.area
            lines.append(f"{area}:")
        text = "".join(mark if mark.isprintable() else "?" for mark in " ".join(finding.line().split()))
        lines.append(f"  {finding.status:8} {text}")
    return [*lines, document["summary"]]
