"""From a checkpoint to a verified bundle: prepare, find, export, verify, report."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from qslm_edge.bundle.writer import check_place
from qslm_edge.errors import OutputError, RunError, UsageError
from qslm_edge.progress import Progress, runner_stages
from qslm_edge.recipe import Recipe, write_recipe
from qslm_edge.report.model import build_report, write_report
from qslm_edge.runner.text import json_ready
from qslm_edge.runner.verify import VerifyOptions
from qslm_edge.steps.export import export_bundle
from qslm_edge.steps.find import analyse, find_setting
from qslm_edge.steps.prepare import prepare
from qslm_edge.steps.statistics import setting_statistics
from qslm_edge.targets import get_target

__all__ = ["deploy", "open_run"]


def deploy(
    recipe: Recipe,
    out: Path,
    progress: Progress,
    *,
    target: str = "local",
    verify: VerifyOptions | None = None,
) -> dict[str, Any]:
    """Search a setting under the limits of a board, export it, verify the bundle, and report.

    Args:
        recipe: every choice.
        out: run directory; the same one again resumes.
        progress: shown to the user.
        target: where the bundle is verified.
        verify: how.

    Returns:
        The report (docs/report.md); it is also in `out` as report.json and report.md.

    Raises:
        QslmError: of the kind that went wrong; InfeasibleError when nothing meets the constraints.
    """
    if recipe.method == "qslm":
        raise UsageError(
            "the paper's scheme is a simulation and cannot be deployed",
            where="--method qslm",
            hint="compare with `qslm-edge search --method qslm`; deploy uses packed widths",
        )
    place = get_target(target)
    with open_run(out):
        clock = _Clock()
        check_place(out / "bundle")  # now, not after the search
        plan = prepare(recipe)
        write_recipe(recipe, out / "recipe.toml")
        items = plan.items("search")
        clock.lap("prepare")
        search, evaluator, tuned = find_setting(plan, items, out, progress)
        clock.lap("search")
        statistics = setting_statistics(plan, items, evaluator.store, search.chosen.setting, progress, tuned)
        clock.lap("statistics")
        bundle, _, export = export_bundle(
            plan, search.chosen.setting, items, search.chosen_scores, out / "bundle", progress, tuned
        )
        clock.lap("export")
        result = place.verify(bundle.path, verify or VerifyOptions(), runner_stages(progress))
        clock.lap("verify")
        found = search.to_dict(plan.hierarchy.float32_bytes, plan.options, evaluator.kind)
        found["statistics"] = statistics
        report: dict[str, Any] = json_ready(
            build_report(plan, analyse(plan), bundle, result, export=export, search=found, seconds=clock.laps)
        )
        write_report(report, out)
        progress.done()
    return report


class _Clock:
    """Seconds of each step."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._last = time.monotonic()

    def lap(self, name: str) -> None:
        now = time.monotonic()
        self.laps[name], self._last = now - self._last, now


class open_run:  # noqa: N801 - used like a function
    """Make a run directory and hold it: one search per directory.

    Raises:
        OutputError: the place cannot be made or written.
        RunError: another process works in it.
    """

    def __init__(self, out: Path) -> None:
        self.out = out

    def __enter__(self) -> Path:
        try:
            self.out.mkdir(parents=True, exist_ok=True)
            self._lock = FileLock(self.out / ".lock")
            self._lock.acquire(timeout=0)
        except Timeout:
            raise RunError(
                "another process works in this run directory", where=self.out, hint="use another --out"
            ) from None
        except OSError as error:
            raise OutputError(
                "the run directory cannot be used",
                where=self.out,
                found=error.strerror,
                hint="choose a place that can be written with --out",
            ) from None
        return self.out

    def __exit__(self, *_: object) -> None:
        self._lock.release()
