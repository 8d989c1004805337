"""The runner's own command line: what `python3 run.pyz` starts. Standard library, numpy, onnxruntime only."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from qslm_edge import __version__
from qslm_edge.bundle.reader import open_bundle
from qslm_edge.errors import EXIT_INTERRUPTED, EnvironmentFault, OutputError, QslmError
from qslm_edge.runner.checks import score_bundle
from qslm_edge.runner.child import MEMORY_HINT, report_progress, write_answer
from qslm_edge.runner.decode import measure_latency, measure_prefill
from qslm_edge.runner.decode_energy import measure_decode_energy
from qslm_edge.runner.decode_memory import measure_memory
from qslm_edge.runner.limits import Limits, parse_joules, parse_seconds, parse_speed
from qslm_edge.runner.session import CPU, bundle_path_of
from qslm_edge.runner.stream import DecodeOptions
from qslm_edge.runner.text import summary_lines
from qslm_edge.runner.verify import VerifyOptions, verify_bundle

__all__ = ["main"]

_MEASURES = {
    "_memory": measure_memory,
    "_latency": measure_latency,
    "_prefill": measure_prefill,
    "_energy": measure_decode_energy,
}
"""Hidden commands that each measure one thing in a fresh process."""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="run.pyz",
        description="Verify a qslm-edge bundle on this machine, with numpy and onnxruntime alone.",
        epilog="Exit codes: 0 pass, 1 fail, 2 bad bundle or usage, 3 inconclusive, 4 environment, "
        "130 interrupted.",
    )
    parser.add_argument("--version", action="version", version=f"qslm-edge runner {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="verify|info")
    verify = commands.add_parser(
        "verify", help="check files, metric, memory, latency and power; give a verdict"
    )
    verify.add_argument("bundle", nargs="?", type=Path, help="bundle directory (default: where run.pyz lies)")
    verify.add_argument("--json", action="store_true", help="print the whole result as JSON")
    verify.add_argument("--output", type=Path, help="write the result as JSON to this file")
    verify.add_argument(
        "--provider", help="execution provider (default: the profile's first choice that is here)"
    )
    verify.add_argument("--threads", type=_positive, default=1, help="threads for decoding (default 1)")
    verify.add_argument(
        "--steps", type=_positive, help="decode steps to time (default: at least 512, and some seconds)"
    )
    verify.add_argument(
        "--power",
        choices=("smoke", "release", "off"),
        default="smoke",
        help="power measurement (default smoke)",
    )
    verify.add_argument(
        "--max-latency", metavar="TIME", help="limit of the 95th percentile a token, e.g. 20ms"
    )
    verify.add_argument(
        "--min-decode-speed", metavar="SPEED", help="least decoding speed in tokens/s, e.g. 50"
    )
    verify.add_argument(
        "--max-energy", metavar="ENERGY", help="limit of the energy a token, idle part included, e.g. 5mJ"
    )
    info = commands.add_parser("info", help="print what the bundle holds")
    info.add_argument("bundle", nargs="?", type=Path)
    for name in ("_score", *_MEASURES):
        hidden = commands.add_parser(name)
        hidden.add_argument("bundle", type=Path)
        hidden.add_argument("--answer", type=Path, required=True)
        hidden.add_argument("--provider", default=CPU)
        hidden.add_argument("--threads", type=_positive, default=1)
        hidden.add_argument("--steps", type=_positive)
        hidden.add_argument("--power", default="smoke")
        hidden.add_argument("--power-source")
        hidden.add_argument("--memory-budget-bytes", type=_positive)
        hidden.add_argument("--is-board", action="store_true")
    return parser


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("must be 1 or more")
    return value


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    options = _parser().parse_args(arguments)
    if options.command == "_score" or options.command in _MEASURES:
        return _child(options)
    try:
        with _sigterm_as_interrupt():
            path = options.bundle or bundle_path_of(sys.argv[0]) or Path()
            if options.command == "info":
                _out(json.dumps(open_bundle(path).manifest, indent=1))
                return 0
            return _verify(path, options)
    except QslmError as error:
        return _fail(error, options)
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        return EXIT_INTERRUPTED
    except OSError as error:
        found = error.strerror or str(error)
        return _fail(EnvironmentFault("the system refused", where=error.filename, found=found), options)


def _fail(error: QslmError, options: argparse.Namespace) -> int:
    sys.stderr.write(f"error: {error.line()}\n")
    if getattr(options, "json", False):
        _out(json.dumps({"error": {"message": error.line(), "exit_code": error.exit_code}}))
    return error.exit_code


@contextmanager
def _sigterm_as_interrupt() -> Iterator[None]:
    """Treat SIGTERM like Ctrl-C, so that the measuring process is ended and its files are removed."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(_number: int, _frame: FrameType | None) -> NoReturn:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a second one must not cut the cleaning short
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def _out(text: str) -> None:
    sys.stdout.write(text + "\n")


def _verify(path: Path, options: argparse.Namespace) -> int:
    if options.output is not None:
        _check_output(options.output)
    limits = _limits(options)
    seen: list[str] = []

    def progress(title: str, _share: float) -> None:
        if title not in seen:
            seen.append(title)
            sys.stderr.write(f"{title} ...\n")

    asked = VerifyOptions(options.provider, options.threads, options.steps, options.power, limits)
    result = verify_bundle(path, asked, progress)
    text = json.dumps(result, indent=1, allow_nan=False)
    if options.output is not None:
        _write(options.output, text + "\n")
    _out(text if options.json else "\n".join(summary_lines(result)))
    return int(result["exit_code"])


def _limits(options: argparse.Namespace) -> Limits:
    latency, speed, energy = options.max_latency, options.min_decode_speed, options.max_energy
    return Limits(
        max_latency_s=None if latency is None else parse_seconds(latency, "--max-latency"),
        min_decode_tokens_per_s=None if speed is None else parse_speed(speed, "--min-decode-speed"),
        max_energy_j_per_token=None if energy is None else parse_joules(energy, "--max-energy"),
    )


def _check_output(path: Path) -> None:
    """Refuse a place that cannot be written before minutes are spent, not after."""
    if path.is_dir() or not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        raise OutputError(
            "the result cannot be written there", where=path, allowed="a file in a directory that is writable"
        )


def _write(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_text(text, "utf-8")
        os.replace(temporary, path)
    except OSError as error:
        raise OutputError("the result cannot be written", where=path, found=error.strerror) from None
    finally:
        with suppress(OSError):
            temporary.unlink()


def _child(options: argparse.Namespace) -> int:
    # Ctrl-C reaches the whole process group; the parent decides and ends this process
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        bundle = open_bundle(options.bundle, check=False)
        answer: dict[str, Any]
        if options.command == "_score":
            splits: list[Any] = [split for split in ("search", "report") if split in bundle.manifest["items"]]
            answer = score_bundle(
                bundle,
                provider=options.provider,
                threads=options.threads,
                splits=splits,
                memory_budget_bytes=options.memory_budget_bytes,
                note=report_progress,
            )
        else:
            decode = DecodeOptions(
                threads=options.threads,
                provider=options.provider,
                steps=options.steps,
                power=options.power,
                power_source=options.power_source,
                is_board=options.is_board,
            )
            measure = _MEASURES[options.command]
            answer = measure(
                bundle, bundle.items("search"), decode, lambda title: report_progress(title, 0.0)
            )
    except QslmError as error:
        write_answer(options.answer, error)
        return error.exit_code
    except MemoryError:
        fault = EnvironmentFault("out of memory while measuring", where=options.bundle, hint=MEMORY_HINT)
        write_answer(options.answer, fault)
        return fault.exit_code
    write_answer(options.answer, answer)
    return 0


if __name__ == "__main__":
    sys.exit(main())
