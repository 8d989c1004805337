"""What a task is: a name, a metric with its default limit, and the way from data to items.

The model kind follows from it: a language-model task ships the head over the vocabulary, a classification
task the classifier, and neither ships the other.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import ClassVar, Literal

from qslm_edge.errors import UsageError
from qslm_edge.items import Items, Split
from qslm_edge.tasks.tokenizer import Tokenizer

__all__ = ["Task", "check_request", "evenly_spread", "fixed_order"]


class Task(ABC):
    """One way to judge a model.

    Attributes:
        name: registered name, as given to `--task`.
        title: name of the data set for people.
        kind: what the model has to do.
        head: the head that a deployment for this task ships.
        metric: name of the metric.
        unit: unit of metric and limit, empty for a pure number.
        larger_is_better: direction of the metric.
        default_limit: how much worse than the float model is allowed, in `unit`.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    kind: ClassVar[Literal["language_model", "classification"]]
    head: ClassVar[Literal["lm", "classifier"]]
    metric: ClassVar[Literal["perplexity", "accuracy"]]
    unit: ClassVar[str]
    larger_is_better: ClassVar[bool]
    default_limit: ClassVar[float]

    @abstractmethod
    def items(
        self,
        split: Split,
        tokenizer: Tokenizer,
        window: int,
        limit: int | None = None,
        data_path: Path | None = None,
    ) -> Items:
        """The items of a split.

        Args:
            split: "search" may steer a search, "report" may only judge its result, "train" may calibrate and tune.
            tokenizer: the tokenizer of the model.
            window: tokens per window of a language model; sentences are never cut.
            limit: at most this many items; None for all.
            data_path: a user's own data in place of the embedded set, for whichever split is asked.

        Raises:
            UsageError: window or limit below 1.
            DataError: data that is missing, empty or in the wrong format, with its line.
        """


def check_request(window: int, limit: int | None) -> None:
    """Raise UsageError for a window or a limit below 1."""
    for what, value in (("window", window), ("limit", limit)):
        if value is not None and value < 1:
            raise UsageError(f"the {what} must be 1 or more", found=value)


def evenly_spread(total: int, count: int | None) -> list[int]:
    """`count` of the numbers 0 to total - 1, at equal distances, each from the middle of its part."""
    if count is None or count >= total:
        return list(range(total))
    return [(2 * part + 1) * total // (2 * count) for part in range(count)]


def fixed_order(numbers: Sequence[int]) -> list[int]:
    """The numbers in an order that looks random and is the same on every machine and version.

    A search stops an evaluation as soon as a sequential test is sure. The test supposes that what it has
    seen is a random sample of the rest; file order would show it one article, or one kind of sentence, after
    the other. The numbers are sorted by their sha256, since the streams of random generators may change.
    """
    return sorted(numbers, key=lambda number: sha256(b"qslm-edge search order 1: %d" % number).digest())
