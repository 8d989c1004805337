"""Stand-ins for time, a power source and NVML, for tests that need no hardware and take no time.

`VirtualTime` is clock, sleep and recorder in one: while code sleeps on it, its recorders read their sources
at the nominal rate, so that a protocol of two minutes runs at once and gives the same readings every time.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

from qslm_edge.runner.power.base import Kind, PowerSource, Reading

__all__ = ["FakeNvml", "FakeSource", "VirtualRecorder", "VirtualTime"]

COUNTER_STEP_S = 0.001


class VirtualTime:
    """A clock that moves only when somebody sleeps on it.

    Args:
        start_s: first value of the clock in seconds.
    """

    def __init__(self, start_s: float = 1000.0) -> None:
        self._start_s, self._passed_ns = start_s, 0
        self._recorders: list[VirtualRecorder] = []

    def clock(self) -> float:
        """Now, in seconds."""
        return self._start_s + self._passed_ns / 1e9

    def sleep(self, seconds: float) -> None:
        """Let time pass; readings that fall due are taken at their time."""
        end_ns = self._passed_ns + round(seconds * 1e9)
        while True:
            due = [item for item in self._recorders if item.due_ns <= end_ns]
            if not due:
                break
            first = min(due, key=lambda item: item.due_ns)
            self._passed_ns = max(self._passed_ns, first.due_ns)
            first.take(self._passed_ns)
        self._passed_ns = end_ns

    def run(self, tokens_per_s: float) -> Callable[[float], int]:
        """A workload for `measure_energy` that takes the seconds it is given."""

        def work(seconds: float) -> int:
            self.sleep(seconds)
            return round(tokens_per_s * seconds)

        return work

    def recorder(self, source: PowerSource, rate_hz: float) -> VirtualRecorder:
        """Make a recorder that reads on this clock."""
        return VirtualRecorder(self, source, rate_hz)

    def attach(self, recorder: VirtualRecorder) -> int:
        """Let a recorder take part; gives the present time in nanoseconds."""
        self._recorders.append(recorder)
        return self._passed_ns

    def detach(self, recorder: VirtualRecorder) -> None:
        """Leave a recorder out from now on."""
        self._recorders.remove(recorder)


class VirtualRecorder:
    """Reads a source on a virtual clock; see `Recorder` of the protocol."""

    def __init__(self, time: VirtualTime, source: PowerSource, rate_hz: float) -> None:
        self._time, self._source, self._period_ns = time, source, round(1e9 / rate_hz)
        self._readings: list[Reading] = []
        self.due_ns = 0

    def take(self, now_ns: int) -> None:
        """Read once and fall due one period later."""
        self._readings.append(self._source.read())
        self.due_ns = now_ns + self._period_ns

    def start(self) -> None:
        """Read now and begin."""
        self.take(self._time.attach(self))

    def stop(self) -> tuple[Reading, ...]:
        """Read a last time and end."""
        self._time.detach(self)
        self._readings.append(self._source.read())
        return tuple(self._readings)


class FakeSource(PowerSource):
    """A source whose true power is a function of time.

    Args:
        clock: monotonic clock in seconds.
        power_w: true power in watts at a time of that clock.
        kind: "counter" integrates the power, "power" gives it as it is.
        range_j: value at which the counter wraps.
        edit: changes each reading before it is given, to simulate faults.
    """

    name = "fake"
    scope = "nothing real"
    rails = ("fake rail",)
    update_s: float | None = 0.001

    def __init__(
        self,
        clock: Callable[[], float],
        power_w: Callable[[float], float],
        *,
        kind: Kind = "counter",
        range_j: float | None = None,
        edit: Callable[[Reading], Reading] = lambda reading: reading,
    ) -> None:
        self.kind, self.range_j = kind, range_j
        self._clock, self._power_w, self._edit = clock, power_w, edit
        self._time_s, self._energy_j = clock(), 0.0

    def read(self) -> Reading:
        """The present reading, after `edit`."""
        now_s = self._clock()
        if self.kind == "power":
            return self._edit(Reading(now_s, power_w=self._power_w(now_s)))
        steps = max(1, round((now_s - self._time_s) / COUNTER_STEP_S))
        width_s = (now_s - self._time_s) / steps
        middle = (self._time_s + (step + 0.5) * width_s for step in range(steps))
        self._energy_j += sum(self._power_w(time_s) * width_s for time_s in middle)
        self._time_s = now_s
        shown = self._energy_j % self.range_j if self.range_j else self._energy_j
        return self._edit(Reading(now_s, energy_j=shown))


class FakeNvml:
    """A module with the functions of pynvml that are used, for GPUs that do not exist.

    Args:
        names: one per GPU.
        answers: value of each function by its name, the field values by "field185" and "field186"; a
            callable is called; what has no answer raises NVMLError("Not Supported").
        start_error: text of the error that nvmlInit raises.
    """

    class NVMLError(Exception):
        """As in pynvml."""

    def __init__(
        self, names: tuple[str, ...] = ("Fake GPU",), start_error: str | None = None, **answers: object
    ) -> None:
        self._names, self._answers, self._start_error = names, answers, start_error
        self.open_count = 0

    def _answer(self, name: str) -> object:
        if name not in self._answers:
            raise self.NVMLError("Not Supported")
        value = self._answers[name]
        return value() if callable(value) else value

    def __getattr__(self, name: str) -> Callable[..., object]:
        if not name.startswith("nvml"):
            raise AttributeError(name)
        return lambda *_: self._answer(name)

    def nvmlInit(self) -> None:  # noqa: N802 - the name is pynvml's
        """Count the openings, or fail."""
        if self._start_error is not None:
            raise self.NVMLError(self._start_error)
        self.open_count += 1

    def nvmlShutdown(self) -> None:  # noqa: N802
        """Count back."""
        self.open_count -= 1

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        """Number of GPUs."""
        return len(self._names)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:  # noqa: N802
        """The index is the handle."""
        return index

    def nvmlDeviceGetName(self, handle: int) -> str:  # noqa: N802
        """Name of a GPU."""
        return self._names[handle]

    def nvmlDeviceGetFieldValues(self, _handle: int, fields: list[int]) -> list[SimpleNamespace]:  # noqa: N802
        """Field values, with nvmlReturn 3 (not supported) for those without an answer."""
        found = []
        for number in fields:
            known = f"field{number}" in self._answers
            value = self._answer(f"field{number}") if known else 0
            found.append(SimpleNamespace(nvmlReturn=0 if known else 3, value=SimpleNamespace(uiVal=value)))
        return found
