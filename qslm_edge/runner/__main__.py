"""The runner's own command line: what `python3 run.pyz` starts. Standard library, numpy, onnxruntime only."""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import NoReturn

from qslm_edge import __version__
from qslm_edge.bundle.reader import open_bundle
from qslm_edge.errors import EXIT_INTERRUPTED, EnvironmentFault, OutputError, QslmError, UsageError
from qslm_edge.runner.doctor import examine
from qslm_edge.runner.findings import finding_lines
from qslm_edge.runner.limits import Limits, parse_joules, parse_seconds, parse_speed
from qslm_edge.runner.native.command import add_build_command, run_build
from qslm_edge.runner.power import SOURCES
from qslm_edge.runner.power.external import check_power_flags
from qslm_edge.runner.power.meter import import_log, meter_lines
from qslm_edge.runner.power.meter_command import add_meter_command, meter_options
from qslm_edge.runner.processes import add_processes, positive, run_process
from qslm_edge.runner.run_settings import RUN_SETTINGS
from qslm_edge.runner.runtime import bundle_path_of
from qslm_edge.runner.sessions import ENGINES
from qslm_edge.runner.sessions.base import ONNXRUNTIME
from qslm_edge.runner.text import summary_lines
from qslm_edge.runner.verify import VerifyOptions, verify_bundle

__all__ = ["main"]


class _Parser(argparse.ArgumentParser):
    """Says in one line what is wrong, and names no command that only the runner itself starts."""

    def error(self, message: str) -> NoReturn:
        message = re.sub(r", '?_[a-z]+'?", "", message)
        self.exit(UsageError.exit_code, f"error: {message}. See `{self.prog} --help`\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="run.pyz",
        description="Verify a qslm-edge bundle on this machine, with numpy and onnxruntime alone.",
        epilog="Exit codes: 0 pass, 1 fail, 2 bad bundle or usage, 3 inconclusive, 4 environment, "
        "130 interrupted.",
    )
    parser.add_argument("--version", action="version", version=f"qslm-edge runner {__version__}")
    commands = parser.add_subparsers(
        dest="command", required=True, metavar="verify|meter|doctor|info|build-native"
    )
    verify = commands.add_parser(
        "verify", help="check files, metric, memory, latency and power; give a verdict"
    )
    verify.add_argument("bundle", nargs="?", type=Path, help="bundle directory (default: where run.pyz lies)")
    verify.add_argument("--json", action="store_true", help="print the whole result as JSON")
    verify.add_argument("--output", type=Path, help="write the result as JSON to this file")
    verify.add_argument(
        "--provider", help="execution provider (default: the profile's first choice that is here)"
    )
    verify.add_argument(
        "--engine",
        metavar="NAME",
        help=f"what runs it: {', '.join(ENGINES)} (default: that of {RUN_SETTINGS}, else {ONNXRUNTIME})",
    )
    verify.add_argument(
        "--allow-fallback", action="store_true", help="accept that the provider leaves nodes to the CPU"
    )
    verify.add_argument(
        "--spinning",
        action=argparse.BooleanOptionalAction,
        help=f"let waiting threads spin (default: {RUN_SETTINGS}, else not)",
    )
    verify.add_argument(
        "--threads", type=positive, help=f"threads for decoding (default: {RUN_SETTINGS}, else 1)"
    )
    verify.add_argument(
        "--tune",
        action="store_true",
        help=f"first measure which settings run fastest here, and keep them in {RUN_SETTINGS}",
    )
    verify.add_argument(
        "--steps", type=positive, help="decode steps to time (default: at least 512, and some seconds)"
    )
    verify.add_argument(
        "--power",
        choices=("smoke", "release", "off"),
        default="smoke",
        help="power measurement (default smoke)",
    )
    verify.add_argument(
        "--power-source",
        choices=sorted(SOURCES),
        metavar="NAME",
        help="read power by this interface and no other (default: the profile's): "
        f"{', '.join(sorted(SOURCES))}; csv for an external meter",
    )
    verify.add_argument(
        "--power-marker",
        action="store_true",
        help="make three bursts of load first, to align the log of an external meter",
    )
    verify.add_argument("--root", type=Path, default=Path("/"), help=argparse.SUPPRESS)  # simulated board
    verify.add_argument(
        "--max-latency", metavar="TIME", help="limit of the 95th percentile a token, e.g. 20ms"
    )
    verify.add_argument(
        "--min-decode-speed", metavar="SPEED", help="least decoding speed in tokens/s, e.g. 50"
    )
    verify.add_argument(
        "--max-energy", metavar="ENERGY", help="limit of the energy a token, idle part included, e.g. 5mJ"
    )
    add_meter_command(commands)
    doctor = commands.add_parser("doctor", help="try what this machine can run and measure, and the bundle")
    doctor.add_argument("bundle", nargs="?", type=Path, help="bundle directory (default: where run.pyz lies)")
    doctor.add_argument("--json", action="store_true", help="print the whole result as JSON")
    doctor.add_argument("--root", type=Path, default=Path("/"), help=argparse.SUPPRESS)
    info = commands.add_parser("info", help="print what the bundle holds")
    info.add_argument("bundle", nargs="?", type=Path)
    add_build_command(commands)
    add_processes(commands)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    options = _parser().parse_args(arguments)
    if options.command.startswith("_"):
        return run_process(options)
    try:
        with _sigterm_as_interrupt():
            if options.command == "meter":
                return _meter(options)
            if options.command == "doctor":
                return _doctor(options)
            if options.command == "build-native":
                _out(run_build(options.cuda, options.json))
                return 0
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
    check_power_flags(options.power, options.power_source, options.power_marker)
    if options.output is not None:
        _check_output(options.output)
    chosen = VerifyOptions(
        options.provider,
        options.threads,
        options.steps,
        options.power,
        _limits(options),
        power_source=options.power_source,
        power_marker=options.power_marker,
        engine=options.engine,
        spinning=options.spinning,
        allow_fallback=options.allow_fallback,
        tune=options.tune,
        root=options.root,
    )
    result = verify_bundle(path, chosen, _each_title_once())
    text = json.dumps(result, indent=1, allow_nan=False)
    if options.output is not None:
        _write(options.output, text + "\n")
    _out(text if options.json else "\n".join(summary_lines(result)))
    return int(result["exit_code"])


def _doctor(options: argparse.Namespace) -> int:
    bundle = options.bundle or bundle_path_of(sys.argv[0])
    document = examine(bundle, root=options.root, on_progress=_each_title_once())
    _out(
        json.dumps(document, indent=1, allow_nan=False)
        if options.json
        else "\n".join(finding_lines(document))
    )
    return int(document["exit_code"])


def _each_title_once() -> Callable[[str, float], None]:
    seen: list[str] = []

    def progress(title: str, _share: float) -> None:
        if title not in seen:
            seen.append(title)
            sys.stderr.write(f"{title} ...\n")

    return progress


def _meter(options: argparse.Namespace) -> int:
    if options.output is not None:
        _check_output(options.output)
    result = import_log(options.result, options.log, meter_options(options))
    text = json.dumps(result, indent=1, allow_nan=False)
    if options.output is not None:
        _write(options.output, text + "\n")
    _out(text if options.json else "\n".join(meter_lines(result)))
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


if __name__ == "__main__":
    sys.exit(main())
