"""Every error a user can meet, each with the exit code that it ends the program with.

QslmError
├── InputError           2   what the user gave is wrong
│   ├── UsageError           flags that contradict each other, values out of range
│   ├── CheckpointError      missing, truncated, wrong keys or shapes, not finite, not safe to load
│   ├── TokenizerError       missing, unreadable, or of another vocabulary than the model
│   ├── DataError            evaluation data that is empty or in the wrong format
│   ├── ProfileError         unknown board, unknown key, impossible value
│   ├── RunError             a run directory that cannot be used (other recipe, damaged journal)
│   └── BundleError          incomplete, tampered with, or of a newer schema
├── GateError            1   the work was done and the answer is no
│   ├── InfeasibleError      no setting meets the constraints
│   └── DisagreementError    search, export and bundle do not measure the same
└── EnvironmentFault     4   this machine or the target cannot do it
    ├── OutputError          read-only or full output
    ├── RuntimeFault         onnxruntime missing, too old, or without the provider
    └── DependencyError      an optional package is not installed

Other exit codes: 0 pass, 3 inconclusive, 130 interrupted. This module imports nothing, since run.pyz packs it.
"""

from __future__ import annotations

__all__ = [
    "EXIT_FAIL",
    "EXIT_INCONCLUSIVE",
    "EXIT_INTERRUPTED",
    "EXIT_PASS",
    "BundleError",
    "CheckpointError",
    "DataError",
    "DependencyError",
    "DisagreementError",
    "EnvironmentFault",
    "GateError",
    "InfeasibleError",
    "InputError",
    "OutputError",
    "ProfileError",
    "QslmError",
    "RunError",
    "RuntimeFault",
    "TokenizerError",
    "UsageError",
]

EXIT_PASS = 0
EXIT_FAIL = 1
EXIT_INCONCLUSIVE = 3
EXIT_INTERRUPTED = 130


class QslmError(Exception):
    """One readable line: what happened, where, what was found, what is allowed, what to do next.

    Args:
        what: the problem in a few words, e.g. "unknown key".
        where: file, key or module concerned.
        found: the offending value.
        allowed: what would have been accepted.
        hint: the next step for the user.
    """

    exit_code = 2

    def __init__(
        self,
        what: str,
        *,
        where: object = None,
        found: object = None,
        allowed: object = None,
        hint: str | None = None,
    ) -> None:
        self.what, self.where, self.found, self.allowed, self.hint = what, where, found, allowed, hint
        super().__init__(self.line())

    def line(self) -> str:
        """The whole message as one line; control characters, which a hostile file may hold, become `?`."""
        text = self.what if self.where is None else f"{self.where}: {self.what}"
        if self.found is not None:
            text += f"; found {self.found}"
        if self.allowed is not None:
            text += f"; allowed: {self.allowed}"
        if self.hint is not None:
            text += f". {self.hint[:1].upper()}{self.hint[1:]}"
        return "".join(c if c.isprintable() else "?" for c in " ".join(text.split()))


class InputError(QslmError):
    """What the user gave is wrong."""

    exit_code = 2


class UsageError(InputError):
    """Flags that contradict each other or are out of range."""


class CheckpointError(InputError):
    """A checkpoint that cannot be used as a SpikeGPT."""


class TokenizerError(InputError):
    """A tokenizer that is missing, unreadable, or belongs to another model."""


class DataError(InputError):
    """Evaluation data that is empty or wrongly formatted."""


class ProfileError(InputError):
    """A device profile that is unknown or not valid."""


class RunError(InputError):
    """A run directory that cannot be used or resumed."""


class BundleError(InputError):
    """A bundle that is incomplete, tampered with, or of a newer schema."""


class GateError(QslmError):
    """The work was done and the answer is no."""

    exit_code = EXIT_FAIL


class InfeasibleError(GateError):
    """No setting meets every constraint."""


class DisagreementError(GateError):
    """Two places that must measure the same do not."""


class EnvironmentFault(QslmError):
    """This machine, or the target, cannot do what was asked."""

    exit_code = 4


class OutputError(EnvironmentFault):
    """An output place that is read-only, full, or in the way."""


class RuntimeFault(EnvironmentFault):
    """ONNX Runtime is missing, too old, or lacks the provider."""


class DependencyError(EnvironmentFault):
    """An optional package is not installed."""
