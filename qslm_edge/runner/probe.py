"""Whether an execution provider runs a form of weights: one node is run, compared and timed.

That a build lists a provider proves nothing (onnxruntime-gpu lists CUDA on machines where it cannot run), and
that a packed node gives right values does not prove a kernel: without one onnxruntime dequantises the whole
matrix on every call, 25 to 100 times slower and without a warning. So each form is run on the provider alone,
its output is compared with the product in double precision, and its time with that of the float32 product of
the same process. Speed is advice: it never turns a right value into a wrong one.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from qslm_edge.runner.native_stderr import library_fault, native_stderr
from qslm_edge.runner.probe_model import COLUMNS, Form, Probe, build_probe
from qslm_edge.runner.runtime import CPU, import_onnxruntime

__all__ = ["FORMS", "SLOW_RATIO", "Outcome", "ProviderProbe", "judge", "probe_provider"]

Status = Literal["fast", "slow", "wrong", "refused"]

FORMS = (
    Form(16),
    *(Form(bits, level, size) for bits in (8, 4, 2) for level in (0, 4) for size in (32, 64, 128)),
)
SLOW_RATIO = 4.0
"""A packed product with a kernel took 0.3 to 2.4 times the float32 product (releases 1.20 to 1.31); without one 26
times and more."""

# Relative root mean square error of the product. Rounding activations to int8 costs 4e-3 to 9e-3; float32
# arithmetic 1e-7 to 1e-6; TF32 of a GPU keeps 10 bits, so about 1e-3. Codes read wrongly are off by 0.1 and more.
FLOAT_ERROR, INT8_ERROR = 5e-3, 2e-2
INT8_FLOOR = 1e-3
_ROWS = (1, 5)  # one token, and several: the kernels differ
_WARM_UPS, _RUNS, _RUNS_S = 2, 15, 0.08


@dataclass(frozen=True)
class Outcome:
    """One form on one provider.

    Attributes:
        form: of the matrix.
        status: "fast" or "slow" with right values; "wrong" values; "refused" at load or run.
        relative_error: root mean square over that of the right product, the worse of one and of several
            tokens; None when it did not run.
        seconds: shortest time of a product with one token, one thread; None when it did not run.
        float_ratio: that time over the time of the float32 product; None when one of them is not known.
        int8_activations: whether the error is that of activations rounded to int8; None without an error.
        reason: why it is wrong or refused, else None.
    """

    form: Form
    status: Status
    relative_error: float | None
    seconds: float | None
    float_ratio: float | None
    int8_activations: bool | None
    reason: str | None = None

    @property
    def runs(self) -> bool:
        """Whether the values are right."""
        return self.status in ("fast", "slow")

    def to_dict(self) -> dict[str, Any]:
        """All fields, those of the form among them, ready for JSON."""
        return {**asdict(self.form), **{key: value for key, value in asdict(self).items() if key != "form"}}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Outcome:
        """The outcome that `to_dict` described."""
        form = Form(data["bits"], data["accuracy_level"], data["block_size"])
        keys = ("status", "relative_error", "seconds", "float_ratio", "int8_activations", "reason")
        return cls(form, **{key: data[key] for key in keys})


@dataclass(frozen=True)
class ProviderProbe:
    """What one execution provider really runs.

    Attributes:
        provider: its name.
        float32: the float32 product; the provider runs when its values are right.
        forms: the other forms; empty when the provider does not run.
    """

    provider: str
    float32: Outcome
    forms: tuple[Outcome, ...]

    @property
    def runs(self) -> bool:
        """Whether a node really ran there with the right result."""
        return self.float32.runs

    def to_dict(self) -> dict[str, Any]:
        """All fields, ready for JSON."""
        return {
            "provider": self.provider,
            "runs": self.runs,
            "float32": self.float32.to_dict(),
            "forms": [form.to_dict() for form in self.forms],
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> ProviderProbe:
        """The probe that `to_dict` described."""
        forms = tuple(Outcome.from_dict(form) for form in data["forms"])
        return cls(data["provider"], Outcome.from_dict(data["float32"]), forms)

    @classmethod
    def failed(cls, provider: str, reason: str) -> ProviderProbe:
        """A provider that did not get as far as a result."""
        return cls(provider, _refused(Form(32), reason), ())


def _refused(form: Form, reason: str) -> Outcome:
    return Outcome(form, "refused", None, None, None, None, reason)


def judge(form: Form, relative_error: float, seconds: float, float_seconds: float | None) -> Outcome:
    """Turn what was measured into an outcome.

    Args:
        form: of the matrix.
        relative_error: of the product.
        seconds: of one product.
        float_seconds: of the float32 product in the same process; None for that product itself.
    """
    allowed = INT8_ERROR if form.accuracy_level else FLOAT_ERROR
    if not (math.isfinite(relative_error) and relative_error <= allowed):
        error = relative_error if math.isfinite(relative_error) else None
        reason = f"relative error {relative_error:.2g}, allowed {allowed:g}"
        return Outcome(form, "wrong", error, seconds, None, None, reason)
    ratio = None if float_seconds is None else seconds / float_seconds
    status: Status = "slow" if ratio is not None and ratio > SLOW_RATIO else "fast"
    rounded = bool(form.accuracy_level) and relative_error > INT8_FLOOR
    return Outcome(form, status, relative_error, seconds, ratio, rounded)


def probe_provider(
    provider: str,
    forms: Sequence[Form] = FORMS,
    *,
    note: Callable[[str, float], None] = lambda _title, _share: None,
) -> ProviderProbe:
    """Run every form on a provider, in this process.

    Args:
        provider: execution provider.
        forms: beside float32, which is always run first.
        note: told (title, share) of each form.

    Raises:
        RuntimeFault: onnxruntime cannot be imported.
    """
    runtime = import_onnxruntime()
    if provider not in runtime.get_available_providers():
        return ProviderProbe.failed(provider, "not in this build of onnxruntime")
    float32 = _run(runtime, provider, build_probe(Form(32)), None)
    if not float32.runs:
        return ProviderProbe(provider, float32, ())
    outcomes = []
    for form in forms:
        outcomes.append(_run(runtime, provider, build_probe(form), float32.seconds))
        note(f"running nodes on {provider}", 1 / len(forms))
    return ProviderProbe(provider, float32, tuple(outcomes))


def _run(runtime: Any, provider: str, probe: Probe, float_seconds: float | None) -> Outcome:
    told: list[str] = []
    try:
        with native_stderr(told):
            session = _session(runtime, provider, probe.model)
        if provider not in session.get_providers():
            return _refused(probe.form, _why(f"fell back to {', '.join(session.get_providers())}", told))
        errors = []
        for rows in _ROWS:
            x = np.random.default_rng(rows).standard_normal((rows, COLUMNS), np.float32)
            errors.append(_relative_error(session.run(["y"], {"x": x})[0], probe.expected(x)))
        seconds = _shortest(lambda: session.run(["y"], {"x": x[:1]}))
    except Exception as error:  # noqa: BLE001 - the binding's own classes have no public base
        text = " ".join(str(error).split()) or type(error).__name__
        return _refused(probe.form, _why(text, told))
    return judge(probe.form, max(errors), seconds, float_seconds)


def _session(runtime: Any, provider: str, model: bytes) -> Any:
    options = runtime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    if provider != CPU:  # else a node that the provider does not take would run on the CPU in its place
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    return runtime.InferenceSession(model, options, providers=[provider])


def _why(text: str, told: Sequence[str]) -> str:
    """The reason of a refusal, by what the error says and what the library wrote beside it."""
    missing = library_fault(told)
    if missing is not None:
        return f"its library does not load: {missing}"
    if "fallback to the CPU EP" in text or "fallback to CPU EP" in text:
        return "the node would have run on the CPU in its place"
    sentence = re.search(r"was false\. (.+)", text)  # behind the place in the source and its template
    return (sentence.group(1) if sentence is not None else text)[:300]


def _relative_error(found: NDArray[np.float32], right: NDArray[np.float64]) -> float:
    difference = np.sqrt(np.mean((found.astype(np.float64) - right) ** 2))
    return float(difference / np.sqrt(np.mean(right**2)))


def _shortest(run: Callable[[], Any]) -> float:
    """Shortest of some runs: what other processes do can only lengthen one."""
    for _ in range(_WARM_UPS):
        run()
    shortest, spent = math.inf, 0.0
    for _ in range(_RUNS):
        begun = time.perf_counter()
        run()
        taken = time.perf_counter() - begun
        shortest, spent = min(shortest, taken), spent + taken
        if spent > _RUNS_S:
            break
    return shortest
