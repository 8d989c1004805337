"""The task registry."""

from __future__ import annotations

import subprocess
import sys

import pytest

from qslm_edge.errors import UsageError
from qslm_edge.tasks import TASKS, get_task


@pytest.mark.parametrize("name", sorted(TASKS))
def test_every_registered_task_carries_its_name(name: str) -> None:
    task = get_task(name)
    assert task.name == name
    assert task.head == {"language_model": "lm", "classification": "classifier"}[task.kind]


def test_default_limits() -> None:
    perplexity, accuracy = get_task("wikitext2"), get_task("sst2")
    assert (perplexity.metric, perplexity.default_limit, perplexity.larger_is_better) == (
        "perplexity",
        1.0,
        False,
    )
    assert (accuracy.metric, accuracy.default_limit, accuracy.larger_is_better) == ("accuracy", 2.0, True)


@pytest.mark.parametrize(("name", "near"), [("wikitext", "wikitext2"), ("SST-2", "sst2")])
def test_unknown_name_proposes_the_nearest(name: str, near: str) -> None:
    with pytest.raises(UsageError, match=f"Did you mean '{near}'"):
        get_task(name)


def test_unknown_name_without_neighbour_lists_all() -> None:
    with pytest.raises(UsageError, match=r"allowed: sst2, wikitext2$"):
        get_task("imagenet")


def test_importing_the_registry_loads_nothing_heavy() -> None:
    code = "import sys, qslm_edge.tasks.wikitext2, qslm_edge.tasks.sst2\n"
    code += "print([m for m in ('torch', 'onnx', 'onnxruntime', 'tokenizers') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
