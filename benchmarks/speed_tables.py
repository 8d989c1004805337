"""The result of bench_speed as tables, for a terminal and for docs/performance.md."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

__all__ = ["markdown", "text"]

Cells = tuple[str, ...]
BASE = "onnxruntime fp32"
_HEAD = (
    *("contender", "ms/token", "× ORT fp32", "× torch eager", "of floor"),
    *("prefill 16", "128", "1024", "× ORT fp32", "first token", "8192/16", "busy/idle"),
)


def text(result: dict[str, Any]) -> str:
    """Aligned columns."""
    parts = []
    for row in result["rows"]:
        lines = [_HEAD, *_lines(row)]
        widths = [max(len(line[at]) for line in lines) for at in range(len(_HEAD))]
        parts.append(_title(row))
        parts += [
            "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in lines
        ]
        parts += [*_skipped(row), ""]
    return "\n".join(parts) + "\n"


def markdown(result: dict[str, Any]) -> str:
    """The tables of docs/performance.md."""
    machine, versions = result["machine"], result["versions"]
    parts = [
        (
            f"{machine['label']}, {machine['cores_usable']} usable cores; onnxruntime {versions['onnxruntime']}; "
            f"{result['rounds']} rounds; load average {result['load_average'][0]:.1f} at the end."
        ),
        "",
    ]
    for row in result["rows"]:
        parts += [f"**{_title(row)}**", "", "| " + " | ".join(_HEAD) + " |", "|" + "---|" * len(_HEAD)]
        parts += ["| " + " | ".join(line) + " |" for line in _lines(row)]
        parts += ["", *_skipped(row), ""]
    return "\n".join(parts)


def _title(row: dict[str, Any]) -> str:
    rates = []
    for key in ("one_thread_bytes_per_s", "all_threads_bytes_per_s"):
        known = [found[key] for found in row["bandwidth"] if found[key] is not None]
        rates.append(f"{statistics.median(known) / 1e9:.1f}" if known else "unknown")
    busy = ", idle and beside one busy process (not pinned)" if row["busy"] else ""
    threads = f"{row['threads']} thread{'s' if row['threads'] > 1 else ''}"
    return f"{row['shape']}, {threads}{busy}; read bandwidth {rates[0]} GB/s by one thread, {rates[1]} by all"


def _lines(row: dict[str, Any]) -> list[Cells]:
    entries = {entry["name"]: entry for entry in row["entries"] if entry["reason"] is None}
    base, eager = entries.get(BASE), entries.get("torch-eager fp32")
    return [_line(entry, base, eager) for entry in entries.values()]


def _line(entry: dict[str, Any], base: dict[str, Any] | None, eager: dict[str, Any] | None) -> Cells:
    prefill = entry["prefill_token_s"]
    longest = max(prefill, key=int, default=None)
    gain = None if base is None or longest is None else base["prefill_token_s"].get(longest)
    share = entry["share_of_floor"]
    return (
        entry["name"],
        f"{1e3 * entry['token_s']:.2f}",
        _ratio(None if base is None else base["token_s"], entry["token_s"]),
        _ratio(None if eager is None else eager["token_s"], entry["token_s"]),
        "–" if share is None else f"{share:.2f}",
        *(f"{1 / prefill[key]:.0f}/s" if key in prefill else "–" for key in ("16", "128", "1024")),
        _ratio(gain, None if longest is None else prefill[longest]),
        f"{1e3 * entry['first_token_s']:.0f} ms",
        _ratio(entry["late_over_early"], 1.0, ".3f"),
        _ratio(entry["busy_over_idle"], 1.0, ".2f"),
    )


def _ratio(above: float | None, below: float | None, form: str = ".2f") -> str:
    return "–" if above is None or not below else format(above / below, form)


def _skipped(row: dict[str, Any]) -> Sequence[str]:
    return [f"skipped: {entry['name']}: {entry['reason']}" for entry in row["entries"] if entry["reason"]]
