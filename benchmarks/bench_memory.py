"""How much memory bundles take: peak above the bare runtime over the packed file, against fp32 and torch.

Each contender loads, runs a prompt of 16 tokens and some steps in a fresh process, which reads its own memory after the
imports, after loading, and at the end (`VmHWM` for the peak); then a prompt of 512 tokens in chunks of 128 for the peak
of prefill. Every figure is bytes above the bare process over the bytes of model.bin, or over those of the float32
weights for torch: it does not depend on the speed of the machine, and barely on its load. Beside it stands what the
exporting host predicted of the whole process. bench_memory_agreement tells how far the readings can be trusted.

    make bench BENCH=memory
    python benchmarks/bench_memory.py --rows 216m --markdown
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # started as a script: siblings are a package

from benchmarks.bench_speed import Entry, Row, entries, run
from benchmarks.shapes import SETTINGS, SHAPES, bundle, checkpoint, exit_with
from qslm_edge.bundle.reader import open_bundle
from qslm_edge.runner.machine import identify
from qslm_edge.runner.runtime import import_onnxruntime
from qslm_edge.steps.find import write_json

SCHEMA = "qslm-edge/bench-memory/1"
ROWS = (Row("reference", 1), Row("216m", 1))
HEAD = (
    *("contender", "packed", "bare", "loaded / packed", "peak / packed", "steady / packed"),
    *("prefill peak / packed", "peak / predicted"),
)
MIB = 2**20


def measure(row: Row, rounds: int, out: Path) -> dict[str, Any]:
    """All contenders of a shape; torch.compile needs what its compiler needs, so it is left out."""
    shape = SHAPES[row.shape]
    found = []
    for entry in entries(row):
        if entry.kind == "torch-compile":
            continue
        is_torch = entry.kind.startswith("torch")
        path = checkpoint(shape, out) if is_torch else bundle(shape, entry.setting, out)
        sys.stderr.write(f"{row.shape}: {entry.name}\n")
        read = [run(entry, path, row, ["--seconds", "0.2", "--prompts", "512"], out) for _ in range(rounds)]
        manifest = open_bundle(bundle(shape, "32", out) if is_torch else path, check=False).manifest
        found.append(_entry(entry, read, manifest, is_torch))
    return {"shape": row.shape, "entries": found}


def _entry(
    entry: Entry, read: list[dict[str, Any]], manifest: dict[str, Any], is_torch: bool
) -> dict[str, Any]:
    head: dict[str, Any] = {"name": entry.name, "kind": entry.kind, "setting": entry.setting}
    if failed := [one["reason"] for one in read if "reason" in one]:
        return {**head, "reason": failed[0]}
    packed = next(file["bytes"] for file in manifest["files"] if file["path"] == "model.bin")
    packed = manifest["weights"]["float32_bytes"] if is_torch else packed
    above = {
        key: statistics.median([one["memory"][key] - one["memory"]["bare"] for one in read])
        for key in ("loaded", "peak", "steady", "prefill_peak")
    }
    predicted = None if entry.kind != "onnxruntime" else manifest["weights"]["predicted_peak_rss_bytes"]
    return {
        **head,
        "reason": None,
        "packed_bytes": packed,
        "bare_bytes": statistics.median([one["memory"]["bare"] for one in read]),
        **{f"{key}_over_packed": value / packed for key, value in above.items()},
        "predicted_peak_rss_bytes": predicted,
        "peak_over_predicted": None
        if predicted is None
        else statistics.median([one["memory"]["peak"] for one in read]) / predicted,
        "rounds": [one["memory"] for one in read],
    }


def lines(found: dict[str, Any]) -> list[tuple[str, ...]]:
    """The rows of a table."""
    table = []
    for entry in found["entries"]:
        if entry["reason"] is None:
            ratios = [entry[f"{key}_over_packed"] for key in ("loaded", "peak", "steady", "prefill_peak")]
            predicted = entry["peak_over_predicted"]
            table.append(
                (
                    entry["name"],
                    f"{entry['packed_bytes'] / MIB:.1f} MiB",
                    f"{entry['bare_bytes'] / MIB:.0f} MiB",
                    *(f"{ratio:.2f}" for ratio in ratios),
                    "–" if predicted is None else f"{predicted:.2f}",
                )
            )
    return table


def show(result: dict[str, Any], markdown: bool) -> str:
    """The tables, as text or as docs/performance.md holds them."""
    parts = [f"{result['machine']['label']}; onnxruntime {result['onnxruntime']}", ""]
    for found in result["rows"]:
        table = [HEAD, *lines(found)]
        widths = [max(len(line[at]) for line in table) for at in range(len(HEAD))]
        if markdown:
            parts += [f"**{found['shape']}**", "", "| " + " | ".join(HEAD) + " |", "|" + "---|" * len(HEAD)]
            parts += ["| " + " | ".join(line) + " |" for line in table[1:]]
        else:
            parts.append(found["shape"])
            parts += ["  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)) for line in table]
        parts += [f"skipped: {e['name']}: {e['reason']}" for e in found["entries"] if e["reason"]]
        parts.append("")
    return "\n".join(parts) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description="Memory of bundles, in ratios.")
    parser.add_argument("--rows", default="", help="only shapes whose name holds this")
    parser.add_argument(
        "--settings", nargs="+", choices=SETTINGS, default=SETTINGS, help="bundles to weigh; all"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="the reference model alone, one round")
    parser.add_argument("--out", type=Path, default=Path("runs/bench-speed"), help="shared with bench_speed")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--markdown", action="store_true", help="the tables of docs/performance.md")
    options = parser.parse_args()
    rounds = 1 if options.quick else options.rounds
    wanted = [
        row for row in ROWS if options.rows in row.shape and (row.shape == "reference" or not options.quick)
    ]
    rows = [replace(row, settings=tuple(options.settings)) for row in wanted]
    result = {
        "schema": SCHEMA,
        "machine": identify().to_dict(),
        "onnxruntime": import_onnxruntime().__version__,
        "rows": [measure(row, rounds, options.out) for row in rows],
    }
    write_json(options.out / "memory.json", result)
    text = json.dumps(result, indent=1) + "\n" if options.json else show(result, options.markdown)
    sys.stdout.write(text)
    return 0


if __name__ == "__main__":
    exit_with(main)
