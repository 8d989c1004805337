"""One contender in a process of its own: loads, decodes, and prints what it took as one line of JSON.

Started by bench_speed and bench_memory, once for each round, so that rounds of all contenders can be put in turns and a
peak of memory is that of this contender alone. The bare process is read after the imports and before the model.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from qslm_edge.errors import QslmError
from qslm_edge.runner.memory import read_memory

KINDS = ("onnxruntime", "native", "torch-eager", "torch-compile")
PROMPT, WARM_UP, MIN_STEPS, CHUNK = 16, 8, 24, 128


class Contender(ABC):
    """One stream of tokens through something that runs the model."""

    @abstractmethod
    def restart(self) -> None:
        """Begin a new stream."""

    @abstractmethod
    def prompt(self, tokens: list[int]) -> None:
        """Run many tokens, with the logits of the last."""

    @abstractmethod
    def step(self, token: int) -> None:
        """Run one token, with its logits."""


class Bundled(Contender):
    """A bundle through a session of the runner."""

    def __init__(self, path: Path, engine: str, threads: int) -> None:
        from qslm_edge.bundle.reader import open_bundle
        from qslm_edge.runner.sessions import open_session
        from qslm_edge.runner.sessions.base import SessionOptions

        self.session = open_session(
            open_bundle(path, check=False), SessionOptions(engine=engine, threads=threads)
        )
        self.restart()

    def restart(self) -> None:
        self.state = self.session.initial_state(1)

    def prompt(self, tokens: list[int]) -> None:
        column = np.array(tokens, np.int64)[:, None]
        for start in range(0, len(column), CHUNK):
            _, self.state = self.session.logits(column[start : start + CHUNK], self.state, 1)

    def step(self, token: int) -> None:
        _, self.state = self.session.logits(np.array([[token]], np.int64), self.state, 1)


class Torch(Contender):
    """The float checkpoint in torch."""

    def __init__(self, path: Path, threads: int, compiled: bool) -> None:
        from benchmarks.torch_step import TorchPeer

        self.peer = TorchPeer(path, threads, compiled)
        self.start = self.peer.state.clone()

    def restart(self) -> None:
        self.peer.state = self.start.clone()

    def prompt(self, tokens: list[int]) -> None:
        self.peer.prompt(tokens)

    def step(self, token: int) -> None:
        self.peer.step(token)


def load(kind: str, path: Path, threads: int) -> Contender:
    """The contender of a kind."""
    if kind in ("onnxruntime", "native"):
        return Bundled(path, kind, threads)
    return Torch(path, threads, kind == "torch-compile")


def import_libraries(kind: str) -> None:
    """What the kind stands on, so that it is not taken for loading a model."""
    if kind.startswith("torch"):
        import benchmarks.torch_step  # noqa: F401
    else:
        from qslm_edge.runner.sessions import load_library
        from qslm_edge.runner.sessions.base import SessionOptions

        load_library(SessionOptions(engine=kind))


def decode_s(runner: Contender, seconds: float) -> list[float]:
    """Seconds of each step of a stream, after some that do not count."""
    samples: list[float] = []
    for at in range(WARM_UP):
        runner.step(at + 1)
    while len(samples) < MIN_STEPS or sum(samples) < seconds:
        begun = time.perf_counter()
        runner.step(len(samples) % 200 + 1)
        samples.append(time.perf_counter() - begun)
    return samples


@contextmanager
def busy_core() -> Iterator[None]:
    """A process that computes without pause."""
    with subprocess.Popen([sys.executable, "-S", "-c", "while True: pass"]) as process:
        try:
            yield
        finally:
            process.kill()


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Everything that was asked for."""
    import_libraries(options.kind)
    draw = np.random.default_rng(0)
    bare = read_memory()
    begun = time.perf_counter()
    runner = load(options.kind, options.path, options.threads)
    load_s = time.perf_counter() - begun
    loaded = read_memory()
    begun = time.perf_counter()
    runner.prompt(draw.integers(0, 200, PROMPT).tolist())
    first_s = time.perf_counter() - begun
    samples = decode_s(runner, options.seconds)
    busy_s: float | None = None
    if options.busy:
        with busy_core():
            busy_s = statistics.median(decode_s(runner, options.seconds))
        samples += decode_s(runner, options.seconds)
    found: dict[str, Any] = {
        "load_s": load_s,
        "first_token_s": load_s + first_s,
        "token_s": statistics.median(samples),
        "steps": len(samples),
    }
    if busy_s is not None:
        found["busy_token_s"] = busy_s
    steady = read_memory()
    found["memory"] = {"bare": bare.rss_bytes, "loaded": loaded.rss_bytes, "steady": steady.rss_bytes}
    found["memory"]["peak"] = steady.peak_rss_bytes
    if options.context:
        runner.prompt(draw.integers(0, 200, options.context - PROMPT).tolist())
        late = statistics.median(decode_s(runner, options.seconds))
        runner.restart()
        runner.prompt(draw.integers(0, 200, PROMPT).tolist())
        early = statistics.median(decode_s(runner, options.seconds))
        found["context"] = {"tokens": options.context, "late_s": late, "early_s": early}
    found["prefill"] = {}
    for length in options.prompts:
        runner.restart()
        tokens = draw.integers(0, 200, length).tolist()
        begun = time.perf_counter()
        runner.prompt(tokens)
        found["prefill"][str(length)] = (time.perf_counter() - begun) / length
    found["memory"]["prefill_peak"] = read_memory().peak_rss_bytes
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description="Time one contender; see bench_speed.py.")
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("path", type=Path, help="bundle, or checkpoint for torch")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=0.7, help="of decoding that are timed")
    parser.add_argument("--prompts", type=int, nargs="*", default=[], help="lengths of prompts to time")
    parser.add_argument("--busy", action="store_true", help="also time decoding beside a busy process")
    parser.add_argument("--context", type=int, default=0, help="also time decoding after so many tokens")
    try:
        sys.stdout.write(json.dumps(measure(parser.parse_args())) + "\n")
    except QslmError as error:
        sys.stdout.write(json.dumps({"reason": error.line()}) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
