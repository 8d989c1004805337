"""The hidden commands: what a measuring process does that `child.run_child` starts.

Each measures one thing in a process of its own and answers with one JSON file: a peak never falls, and a provider
that crashes takes only its own process along.
"""

from __future__ import annotations

import argparse
import signal
from pathlib import Path
from typing import Any

from qslm_edge.bundle.reader import open_bundle
from qslm_edge.errors import EnvironmentFault, QslmError
from qslm_edge.runner.checks import check_golden, score_bundle
from qslm_edge.runner.child import MEMORY_HINT, report_progress, write_answer
from qslm_edge.runner.decode import measure_latency, measure_prefill
from qslm_edge.runner.decode_energy import measure_decode_energy
from qslm_edge.runner.decode_memory import measure_memory
from qslm_edge.runner.power import PowerPlan
from qslm_edge.runner.probe import probe_provider
from qslm_edge.runner.sessions import open_session
from qslm_edge.runner.sessions.base import SessionOptions
from qslm_edge.runner.speed import measure_prefill_chunks, measure_speed
from qslm_edge.runner.stream import DecodeOptions
from qslm_edge.runner.survey import prove_memory

__all__ = ["add_processes", "positive", "run_process"]

_MEASURES = {
    "_memory": measure_memory,
    "_latency": measure_latency,
    "_prefill": measure_prefill,
    "_energy": measure_decode_energy,
    "_speed": measure_speed,
}
_OTHERS = ("_golden", "_chunks", "_probe", "_allocation")


def positive(text: str) -> int:
    """A number of 1 or more, for argparse."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("must be 1 or more")
    return value


def add_processes(commands: Any) -> None:
    """Add the hidden commands to the sub-parsers of the runner."""
    for name in ("_score", *_MEASURES):
        hidden = commands.add_parser(name)
        hidden.add_argument("bundle", type=Path)
        SessionOptions.add_arguments(hidden)
        hidden.add_argument("--steps", type=positive)
        hidden.add_argument("--power", default="smoke")
        hidden.add_argument("--power-source")
        hidden.add_argument("--memory-budget-bytes", type=positive)
        for flag in ("--is-board", "--only-power-source", "--power-marker"):
            hidden.add_argument(flag, action="store_true")
        hidden.add_argument("--root", type=Path, default=Path("/"))
    golden = commands.add_parser("_golden")
    golden.add_argument("bundle", type=Path)
    SessionOptions.add_arguments(golden)
    chunks = commands.add_parser("_chunks")
    chunks.add_argument("bundle", type=Path)
    chunks.add_argument("sizes", type=positive, nargs="+")
    SessionOptions.add_arguments(chunks)
    commands.add_parser("_probe").add_argument("provider")
    commands.add_parser("_allocation")
    for name in ("_score", *_MEASURES, *_OTHERS):
        commands.choices[name].add_argument("--answer", type=Path, required=True)


def run_process(options: argparse.Namespace) -> int:
    """Do what a hidden command says, write its answer, and return the exit code."""
    # Ctrl-C reaches the whole process group; the parent decides and ends this process
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        answer = _answer(options)
    except QslmError as error:
        write_answer(options.answer, error)
        return error.exit_code
    except MemoryError:
        where = getattr(options, "bundle", None) or getattr(options, "provider", None)
        fault = EnvironmentFault("out of memory while measuring", where=where, hint=MEMORY_HINT)
        write_answer(options.answer, fault)
        return fault.exit_code
    write_answer(options.answer, answer)
    return 0


def _answer(options: argparse.Namespace) -> dict[str, Any]:
    if options.command == "_allocation":
        return prove_memory().to_dict()
    if options.command == "_probe":
        return probe_provider(options.provider, note=report_progress).to_dict()
    bundle = open_bundle(options.bundle, check=False)
    if options.command == "_golden":
        session = open_session(bundle, SessionOptions.from_arguments(options))
        return {"session": session.describe(), "golden": check_golden(session, bundle)}
    if options.command == "_chunks":
        chosen = DecodeOptions(session=SessionOptions.from_arguments(options))
        return measure_prefill_chunks(bundle, bundle.items("search"), chosen, options.sizes)
    if options.command == "_score":
        splits: list[Any] = [split for split in ("search", "report") if split in bundle.manifest["items"]]
        return score_bundle(
            bundle,
            options=SessionOptions.from_arguments(options),
            splits=splits,
            memory_budget_bytes=options.memory_budget_bytes,
            note=report_progress,
        )
    decode = DecodeOptions(
        session=SessionOptions.from_arguments(options),
        steps=options.steps,
        power=options.power,
        power_source=options.power_source,
        power_plan=PowerPlan.from_mapping(bundle.manifest["profile"]["power"]),
        power_marker=options.power_marker,
        only_source=options.only_power_source,
        is_board=options.is_board,
        root=options.root,
    )
    measure = _MEASURES[options.command]
    return measure(bundle, bundle.items("search"), decode, lambda title: report_progress(title, 0.0))
