"""How fast bundles decode and prefill: against the same model in ONNX Runtime fp32 and torch, and against the memory.

One row is a shape, a number of threads and an idle or busy machine. All contenders of a row run in fresh processes, in
turns, round after round, so that what else the machine does falls on all alike; read bandwidth is measured in every
round beside them. So ratios are the result: of times in one row, and of a time to the floor, which is the bytes of
weights that a token reads over the read bandwidth. The reference model lies in the caches: it has no floor.

Contenders: bundles at 8, 4, 2 and mixed bits through onnxruntime and, where this runner has it, the engine `native`;
our own export at 32 bits through onnxruntime; torch eager and torch.compile at fp32. One that cannot run is skipped
with the reason. A busy row times each contender with the machine as it is, then, in the same process, beside one that
computes without pause and is pinned nowhere, and as it is again.

Bundles and results are kept below --out: stopped and started again, it goes on where it was. The first run exports ten
bundles, which takes some minutes.

    make bench BENCH=speed
    python benchmarks/bench_speed.py --rows 216m-1 --markdown
    python benchmarks/bench_speed.py --quick --json
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # started as a script: siblings are a package

from benchmarks.shapes import (
    FLOAT,
    ROOT,
    SETTINGS,
    SHAPES,
    bundle,
    bytes_a_token,
    checkpoint,
    exit_with,
    exporter_digest,
)
from benchmarks.speed_tables import markdown, text
from qslm_edge import __version__
from qslm_edge.runner.bandwidth import last_cache_bytes, measure_bandwidth
from qslm_edge.runner.machine import identify
from qslm_edge.runner.runtime import import_onnxruntime
from qslm_edge.runner.sessions import ENGINES
from qslm_edge.search.journal import fingerprint
from qslm_edge.steps.find import write_json

SCHEMA = "qslm-edge/bench-speed/1"
PROMPTS = (16, 128, 1024)
CONTEXT = 8192
LIMIT_S = 600


@dataclass(frozen=True)
class Row:
    """Contenders that are timed together.

    Attributes:
        shape: of shapes.SHAPES.
        threads: of every contender.
        busy: also beside a process that keeps a core busy.
        settings: of the bundles.
    """

    shape: str
    threads: int
    busy: bool = False
    settings: tuple[str, ...] = SETTINGS

    @property
    def name(self) -> str:
        return f"{self.shape}-{self.threads}{'-busy' if self.busy else ''}"


@dataclass(frozen=True)
class Entry:
    """One contender of a row.

    Attributes:
        kind: of contender.KINDS.
        setting: of the bundle; fp32 where there is none.
    """

    kind: str
    setting: str

    @property
    def name(self) -> str:
        return f"{self.kind} {'fp32' if self.setting == FLOAT else self.setting}"


ROWS = (
    *(Row("reference", threads) for threads in (1, 2)),
    *(Row("216m", threads) for threads in (1, 2)),
    *(Row("216m", threads, busy=True, settings=("4g64",)) for threads in (1, 2)),
    Row("large", 1, settings=("4g64", "mixed")),
)


def entries(row: Row) -> list[Entry]:
    """The contenders of a row."""
    engines = [engine for engine in ("onnxruntime", "native") if engine in ENGINES]
    ours = [Entry(engine, setting) for setting in row.settings for engine in engines]
    peers = [Entry("onnxruntime", FLOAT), Entry("torch-eager", FLOAT)]
    return [*ours, *peers] if row.busy else [*ours, *peers, Entry("torch-compile", FLOAT)]


def run(entry: Entry, path: Path, row: Row, words: Sequence[str], out: Path) -> dict[str, Any]:
    """One process of a contender; a failure is its reason."""
    command = [sys.executable, "-m", "benchmarks.contender", entry.kind, str(path.resolve())]
    environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str((out / "inductor").resolve())}
    try:
        done = subprocess.run(
            [*command, "--threads", str(row.threads), *words],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=LIMIT_S,
        )
        found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    except subprocess.TimeoutExpired:
        return {"reason": f"not done after {LIMIT_S} s"}
    except (IndexError, ValueError):
        last = done.stderr.strip().splitlines()[-1:] or [f"exit status {done.returncode}"]
        return {"reason": last[0][:200]}
    return found


def measure(row: Row, options: argparse.Namespace) -> dict[str, Any]:
    """All rounds of one row."""
    shape, out = SHAPES[row.shape], options.out
    wanted = entries(row)
    paths = {
        entry: checkpoint(shape, out) if entry.kind.startswith("torch") else bundle(shape, entry.setting, out)
        for entry in wanted
    }
    rounds: dict[Entry, list[dict[str, Any]]] = {entry: [] for entry in wanted}
    read: list[dict[str, Any]] = []
    for turn in range(options.rounds):
        read.append(measure_bandwidth().to_dict())
        for entry in wanted[turn % len(wanted) :] + wanted[: turn % len(wanted)]:
            if any("reason" in found for found in rounds[entry]):
                continue  # it cannot run: once is enough
            sys.stderr.write(f"{row.name}, round {turn + 1} of {options.rounds}: {entry.name}\n")
            words = ["--seconds", str(options.seconds)]
            words += ["--busy"] if row.busy else ["--prompts", *map(str, options.prompts)]
            if turn == 0 and not row.busy and _shows_context(row, entry, options.quick):
                words += ["--context", str(CONTEXT)]
            rounds[entry].append(run(entry, paths[entry], row, words, out))
    return {
        **asdict(row),
        "name": row.name,
        "bandwidth": read,
        "entries": [_entry(entry, paths[entry], rounds[entry], row, read) for entry in wanted],
    }


def _shows_context(row: Row, entry: Entry, quick: bool) -> bool:
    """Whether a contender also decodes far into a stream: feeding that takes long, so few do."""
    return entry.setting == "4g64" and row.threads == 1 and (row.shape == "reference" or not quick)


def _entry(
    entry: Entry,
    path: Path,
    rounds: list[dict[str, Any]],
    row: Row,
    read: list[dict[str, Any]],
) -> dict[str, Any]:
    """Medians of a contender over the rounds, and the raw rounds."""
    head: dict[str, Any] = {"name": entry.name, **asdict(entry)}
    if failed := [found["reason"] for found in rounds if "reason" in found]:
        return {**head, "reason": failed[0]}
    token_s = [found["token_s"] for found in rounds]
    size = None if entry.kind.startswith("torch") else bytes_a_token(path)
    first, cache = rounds[0], last_cache_bytes()
    share: float | None = None
    reason: str | None = "torch reads what onnxruntime fp32 reads: see there"
    if size is not None:
        key = "one_thread_bytes_per_s" if row.threads == 1 else "all_threads_bytes_per_s"
        rates = [found[key] for found in read if found[key] is not None]
        if cache is not None and size < cache:
            reason = "the weights fit into the caches"
        elif rates:
            share, reason = size / statistics.median(rates) / statistics.median(token_s), None
        else:
            reason = read[0]["reason"]
    busy = [found["busy_token_s"] / found["token_s"] for found in rounds if "busy_token_s" in found]
    context = first.get("context")
    return {
        **head,
        "reason": None,
        "token_s": statistics.median(token_s),
        "first_token_s": statistics.median([found["first_token_s"] for found in rounds]),
        "prefill_token_s": {
            length: statistics.median([found["prefill"][length] for found in rounds])
            for length in first["prefill"]
        },
        "bytes_a_token": size,
        "share_of_floor": share,
        "share_reason": reason,
        "busy_over_idle": statistics.median(busy) if busy else None,
        "late_over_early": None if context is None else context["late_s"] / context["early_s"],
        "rounds": rounds,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description="Decoding and prefill speed, in ratios.")
    parser.add_argument("--rows", default="", help="only rows whose name holds this, e.g. 216m-1")
    parser.add_argument(
        "--settings", nargs="+", choices=SETTINGS, default=SETTINGS, help="bundles to time; all"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=0.7, help="of decoding that a process times")
    parser.add_argument("--quick", action="store_true", help="the reference model alone, one round")
    parser.add_argument("--out", type=Path, default=Path("runs/bench-speed"))
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--markdown", action="store_true", help="the tables of docs/performance.md")
    options = parser.parse_args()
    options.prompts = PROMPTS
    if options.quick:
        options.rounds, options.prompts = 1, PROMPTS[:2]
    machine = identify().to_dict()
    versions = {"qslm_edge": __version__, "onnxruntime": import_onnxruntime().__version__}
    described = {
        "machine": machine,
        "versions": versions,
        "rounds": options.rounds,
        "seconds": options.seconds,
    }
    rows = []
    for whole in ROWS:
        kept = tuple(setting for setting in whole.settings if setting in options.settings)
        row = replace(whole, settings=kept)
        if options.rows not in row.name or (options.quick and row.shape != "reference"):
            continue
        identity = fingerprint(
            {
                **described,
                "row": asdict(row),
                "quick": options.quick,
                "entries": [entry.name for entry in entries(row)],
                "exporter": exporter_digest(),
            }
        )
        path = options.out / "rows" / f"{row.name}.json"
        known = json.loads(path.read_text("utf-8")) if path.is_file() else {}
        if known.get("identity") != identity:
            known = {"identity": identity, **measure(row, options)}
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path, known)
        rows.append(known)
    result = {"schema": SCHEMA, **described, "load_average": os.getloadavg(), "rows": rows}
    write_json(options.out / "result.json", result)
    if options.json:
        sys.stdout.write(json.dumps(result, indent=1) + "\n")
    else:
        sys.stdout.write((markdown if options.markdown else text)(result))
    return 0


if __name__ == "__main__":
    exit_with(main)
