"""Reading clocks once a second while something runs.

A thread in the process that runs: clocks fall within milliseconds after a load ends, so that readings before
and after tell little of the time between. One reading is a handful of small files, well below a millisecond of
processor time on the boards that have them, and no command is run.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any

from qslm_edge.runner.condition_readers import Conditions, read_clocks
from qslm_edge.runner.observe import Observed
from qslm_edge.runner.power.base import Unavailable
from qslm_edge.runner.power.nvml import ask_nvml, start_nvml

__all__ = ["ClockWatch", "stored_samples", "to_samples"]

PERIOD_S = 1.0


class ClockWatch:
    """Reads clocks in the background between `with` and its end.

    Args:
        use_gpu: read the GPU's clocks too; NVML is started once, before the run.
        read: takes one reading, for tests; None reads this host.
        period_s: seconds between two readings; the first one is taken after the first period.

    Attributes:
        samples: what was read so far.
    """

    def __init__(
        self,
        *,
        use_gpu: bool = False,
        read: Callable[[], Conditions] | None = None,
        period_s: float = PERIOD_S,
    ) -> None:
        self.samples: list[Conditions] = []
        nvml = start_nvml() if use_gpu and read is None else None
        self._nvml: Any | None = None if isinstance(nvml, Unavailable) else nvml
        self._read = read or (lambda: read_clocks(nvml=self._nvml))
        self._period_s = period_s
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._work, name="clock-watch", daemon=True)

    def _work(self) -> None:
        due = time.monotonic() + self._period_s
        while not self._end.wait(max(0.0, due - time.monotonic())):
            self.samples.append(self._read())
            due = max(due + self._period_s, time.monotonic())

    def __enter__(self) -> ClockWatch:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end.set()
        self._thread.join()
        if self._nvml is not None:
            ask_nvml(self._nvml, "nvmlShutdown")


def stored_samples(samples: Sequence[Conditions]) -> list[dict[str, Any]]:
    """Readings as JSON: values by name; the sources are those of the conditions before the run."""
    return [{name: item.value for name, item in sample.values.items()} for sample in samples]


def to_samples(stored: Sequence[dict[str, Any]]) -> list[Conditions]:
    """What `stored_samples` gave, without its sources."""
    return [
        Conditions({name: Observed(value, "stored") for name, value in sample.items()}) for sample in stored
    ]
