"""The program ``qslm-edge``: its table of commands, and where each error becomes a line and an exit code.

A command is a module of this package, imported only when it is called or listed; it must import torch, onnx
and numpy inside its function, so that ``--help`` stays fast. Exit codes: 0 pass, 1 the answer is no, 2 bad
input or usage, 3 inconclusive, 4 target or environment, 70 a fault of the program, 130 interrupted, 141 the
reader of a pipe went away. Under ``--json`` an error is printed on stdout as well, as {"error": {...}}.
"""

from __future__ import annotations

import errno
import io
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from difflib import get_close_matches
from importlib import import_module
from types import FrameType
from typing import Annotated, Any, NoReturn

import typer
import typer.core
import typer.main
import typer.rich_utils

from qslm_edge import __version__
from qslm_edge.cli import console
from qslm_edge.errors import EXIT_INTERRUPTED, EXIT_PASS, EnvironmentFault, QslmError, UsageError

__all__ = ["COMMANDS", "EXIT_BROKEN_PIPE", "EXIT_INTERNAL", "TRACEBACK_VARIABLE", "app", "main"]

EXIT_INTERNAL = 70
EXIT_BROKEN_PIPE = 141
TRACEBACK_VARIABLE = "QSLM_EDGE_TRACEBACK"

COMMANDS: dict[str, str] = {
    "deploy": "qslm_edge.cli.deploy",
    "inspect": "qslm_edge.cli.inspect",
    "fit": "qslm_edge.cli.fit",
    "search": "qslm_edge.cli.search",
    "export": "qslm_edge.cli.export",
    "verify": "qslm_edge.cli.verify",
    "meter": "qslm_edge.cli.meter",
    "generate": "qslm_edge.cli.generate",
    "profiles": "qslm_edge.cli.profiles",
    "doctor": "qslm_edge.cli.doctor",
    "build-native": "qslm_edge.cli.build_native",
    "report": "qslm_edge.cli.report",
}
"""Command and module, in the order of the help. A module has a function ``command`` or a typer ``app``."""

_EXAMPLES = """
[bold]Examples[/bold]

  [cyan]qslm-edge deploy --profile jetson-orin[/cyan]            all steps in one: search, export, verify
  [cyan]qslm-edge inspect my.pth --embedding dense[/cyan]        what a checkpoint consists of
  [cyan]qslm-edge fit my.pth -p jetson-orin[/cyan]               will it fit the board, and if not, what would
  [cyan]qslm-edge search -p jetson-orin --out runs/a[/cyan]      find a setting
  [cyan]qslm-edge export runs/a[/cyan]                           write its bundle
  [cyan]qslm-edge verify runs/a/bundle[/cyan]                    give a verdict on this machine
  [cyan]qslm-edge meter verify.json log.csv[/cyan]               energy a token by an external meter
  [cyan]qslm-edge generate runs/a/bundle --prompt "The"[/cyan]   text from it
  [cyan]qslm-edge report runs/a[/cyan]                           what a deployment found, again
  [cyan]qslm-edge profiles list[/cyan]                           boards, memory, weight widths
  [cyan]qslm-edge doctor[/cyan]                                  what this machine can run and measure
  [cyan]qslm-edge build-native[/cyan]                            compile the native engine for this machine
"""

_ENVIRONMENT_ERRORS = (errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EDQUOT)

# Some versions of typer carry their own click, others import it; this is the base of its errors in both.
_ClickError: type[Exception] = typer.BadParameter.__mro__[2]


class _Commands(typer.core.TyperGroup):
    """The group of commands: loads them late and ends every run with an exit code."""

    def list_commands(self, ctx: Any) -> list[str]:  # noqa: ARG002  (signature of the base class)
        """Return the names in the order of the table."""
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:  # noqa: ARG002
        """Import a command's module and return the command; None if there is no such command."""
        if cmd_name not in COMMANDS:
            return None
        module = import_module(COMMANDS[cmd_name])
        if hasattr(module, "app"):
            loaded: Any = typer.main.get_command(module.app)
        else:
            single = typer.Typer(add_completion=False, rich_markup_mode="rich")
            single.command(cmd_name, epilog=getattr(module, "EXAMPLES", None))(module.command)
            loaded = typer.main.get_command(single)
        loaded.name = cmd_name
        return loaded

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Find the command, or suggest the nearest name."""
        name = args[0]
        if name not in COMMANDS and not name.startswith("-"):
            near = get_close_matches(name, COMMANDS, n=1)
            guess = f", did you mean '{near[0]}'?" if near else ""
            raise UsageError(
                f"no such command '{name}'{guess}",
                allowed=", ".join(COMMANDS),
                hint=f"see `{ctx.command_path} --help`",
            )
        return super().resolve_command(ctx, args)

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> NoReturn:
        """Run a command line and exit with its code; no exception gets out but ``SystemExit``."""
        del complete_var, standalone_mode, windows_expand_args  # of the base class; every run ends in an exit
        words = list(sys.argv[1:] if args is None else args)
        sys.exit(_Run(self, words, prog_name or "qslm-edge", extra).exit_code())


class _Run:
    """One run of the program, from its words to its exit code."""

    def __init__(self, group: _Commands, words: list[str], prog_name: str, extra: dict[str, Any]) -> None:
        self._group, self._words, self._prog_name, self._extra = group, words, prog_name, extra
        self._meta: dict[str, Any] = {}

    def exit_code(self) -> int:
        """Run, turn whatever is raised into one line, and return the exit code."""
        try:
            try:
                code = self._invoke()
                sys.stdout.flush()
            except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001  (no traceback gets out)
                code = self._explain(error)
        except BrokenPipeError:
            _drop_stdout()
            return EXIT_BROKEN_PIPE
        try:
            sys.stdout.flush()
        except OSError:  # told above already
            _drop_stdout()
        return code

    def _invoke(self) -> int:
        try:
            with self._group.make_context(self._prog_name, list(self._words), **self._extra) as context:
                self._meta = context.meta
                self._group.invoke(context)
        except typer.Exit as end:
            return int(end.exit_code)
        except SystemExit as end:  # typer's help prints through rich, which turns a broken pipe into this
            if isinstance(end.__context__, BrokenPipeError):
                return EXIT_BROKEN_PIPE
            raise
        return EXIT_PASS

    def _explain(self, error: BaseException) -> int:
        if isinstance(error, BrokenPipeError):
            raise error
        if os.environ.get(TRACEBACK_VARIABLE) == "1" and not isinstance(error, _ClickError):
            console.RichProgress.take_down()
            traceback.print_exception(type(error), error, error.__traceback__, file=sys.stderr)
        if isinstance(error, (KeyboardInterrupt, typer.Abort)):
            return self._fail(
                error, str(error) or "stopped by the keyboard", EXIT_INTERRUPTED, label="interrupted"
            )
        if isinstance(error, QslmError):
            return self._fail(error, error.line(), error.exit_code)
        if isinstance(error, _ClickError):
            return self._explain_usage(error)
        if isinstance(error, MemoryError):
            return self._fail(error, "out of memory", EnvironmentFault.exit_code)
        if isinstance(error, OSError) and error.errno in _ENVIRONMENT_ERRORS:
            place = error.filename if error.filename is not None else "standard output or an open file"
            return self._fail(error, f"{place}: {error.strerror}", EnvironmentFault.exit_code)
        text = f"{type(error).__name__}: {error}"
        hint = f"run again with {TRACEBACK_VARIABLE}=1 for the traceback and report it"
        return self._fail(error, f"{text}; {hint}", EXIT_INTERNAL, label="internal error")

    def _explain_usage(self, error: Exception) -> int:
        code = UsageError.exit_code
        if type(error).__name__ == "NoArgsIsHelpError":  # the help is printed already
            return code
        context = getattr(error, "ctx", None)
        self._meta.setdefault(console.JSON_KEY, _has_json(context) and "--json" in self._words)
        text = str(getattr(error, "format_message", error.__str__)())
        path = context.command_path if context is not None else self._prog_name
        return self._fail(error, f"{text[:1].lower()}{text[1:].rstrip('.')}. See `{path} --help`", code)

    def _fail(self, error: BaseException, text: str, code: int, *, label: str = "error") -> int:
        console.print_error(text, label=label)
        if self._meta.get(console.JSON_KEY, False):
            body: dict[str, Any] = {"type": type(error).__name__, "message": console.visible(text)}
            if isinstance(error, QslmError):
                parts = {
                    "what": error.what,
                    "where": error.where,
                    "found": error.found,
                    "allowed": error.allowed,
                }
                body.update({key: None if part is None else str(part) for key, part in parts.items()})
                body["hint"] = error.hint
            try:
                console.print_json({"error": {**body, "exit_code": code}})
            except OSError:  # stdout is full or gone; the line on stderr has said it
                _drop_stdout()
        return code


def _has_json(context: Any) -> bool:
    return context is not None and any("--json" in option.opts for option in context.command.params)


def _drop_stdout() -> None:
    """Point stdout at nothing, so that the interpreter's last flush cannot fail a second time."""
    try:
        number = sys.stdout.fileno()
    except (OSError, ValueError):  # a test's stand-in without a file
        return
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, number)
    os.close(null)


def _show_version(value: bool) -> None:
    if value:
        console.print_line(f"qslm-edge {__version__}")
        raise typer.Exit


app = typer.Typer(
    name="qslm-edge",
    cls=_Commands,
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode="rich",
    epilog=_EXAMPLES,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def _program(
    version: Annotated[
        bool,
        typer.Option("--version", is_eager=True, callback=_show_version, help="Print the version and exit."),
    ] = False,
) -> None:
    """Deploy a quantised spike-driven language model to a board, and prove that it runs there."""


def _on_sigterm(_number: int, _frame: FrameType | None) -> NoReturn:
    """Treat SIGTERM like Ctrl-C: ``finally`` blocks run, and a second SIGTERM cannot cut them short."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise KeyboardInterrupt("stopped by SIGTERM")


def main() -> None:
    """Entry point of ``qslm-edge``."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by the caller, as in `2>&-`
            setattr(sys, name, io.StringIO())
        stream = getattr(sys, name)
        if isinstance(stream, io.TextIOWrapper):  # a locale without ± must not end a run
            stream.reconfigure(errors="replace")
    signal.signal(signal.SIGTERM, _on_sigterm)
    # typer's help would turn colour on in a pipe when the environment looks like some CI systems
    typer.rich_utils.FORCE_TERMINAL = sys.stdout.isatty()
    typer.main.get_command(app).main()
