"""The report of a run as one JSON object; every view is made from it and from nothing else.

docs/report.md describes it field by field. A figure carries its status: measured, estimated, or unavailable
with a reason; on a rehearsal, figures of speed and power are this host's.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qslm_edge import __version__
from qslm_edge.errors import RunError
from qslm_edge.report.summary import summary_rows
from qslm_edge.runner.text import json_ready
from qslm_edge.steps.documents import read_document

if TYPE_CHECKING:  # a report is read and shown where torch is not installed
    from qslm_edge.bundle.reader import Bundle
    from qslm_edge.steps.plan import Plan

__all__ = ["SCHEMA", "build_report", "read_report", "write_report"]

SCHEMA = "qslm-edge/report/1"


def build_report(
    plan: Plan,
    model: dict[str, Any],
    bundle: Bundle,
    verification: dict[str, Any],
    *,
    export: dict[str, Any] | None,
    search: dict[str, Any] | None,
    seconds: dict[str, float],
) -> dict[str, Any]:
    """Join what the steps found.

    Args:
        plan: recipe, profile, task, constraints.
        model: network analysis.
        bundle: the exported bundle.
        verification: result of the runner.
        export: facts of the export, with parity.
        search: result of the search; None when a setting was given.
        seconds: time of each step on this host.
    """
    report: dict[str, Any] = {
        "schema": SCHEMA,
        "tool_version": __version__,
        "verdict": verification["verdict"],
        "exit_code": verification["exit_code"],
        "rehearsal": verification["rehearsal"],
        "tuning": bundle.manifest["tuning"],
        "recipe": plan.recipe.model_dump(mode="json", by_alias=True, exclude_none=True),
        "model": model,
        "profile": plan.profile.to_manifest(),
        "task": {"name": plan.task.name, "title": plan.task.title, **bundle.manifest["task"]},
        "constraints": asdict(plan.constraints),
        "setting": bundle.manifest["setting"],
        "quantiser": bundle.manifest["quantiser"],
        "cuts": bundle.manifest["cuts"],
        "weights": bundle.manifest["weights"],
        "search": search,
        "export": export,
        "bundle": {"path": str(bundle.path), "digest": bundle.digest},
        "verification": verification,
        "seconds": seconds,
    }
    ready: dict[str, Any] = json_ready(report)  # the error of a single item is infinite: null
    ready["summary"] = summary_rows(ready)
    return ready


def write_report(report: dict[str, Any], out: Path) -> None:
    """Write report.json and its Markdown and HTML views.

    Raises:
        OutputError: the place cannot be written.
    """
    from qslm_edge.report.html import render_html
    from qslm_edge.report.markdown import render_markdown
    from qslm_edge.report.text import write_text

    write_text(out / "report.json", json.dumps(report, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    write_text(out / "report.md", render_markdown(report))
    write_text(out / "report.html", render_html(report))


def read_report(path: Path) -> dict[str, Any]:
    """Read the report of a run directory, or a report.json.

    Raises:
        RunError: there is none, or it is not a report of this schema.
    """
    file = path / "report.json" if path.is_dir() else path
    if not file.exists():
        hint = "give the run directory of a finished deployment, or a report.json"
        raise RunError("no report here", where=file, hint=hint)
    return read_document(file, "report", SCHEMA)
