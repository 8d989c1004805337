"""A whole bundle of a tiny model, made by the steps of a deployment without the search."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from qslm_edge.bundle.reader import Bundle
from qslm_edge.progress import Silent
from qslm_edge.quantize.levels import parse_level
from qslm_edge.recipe import Recipe, make_recipe
from qslm_edge.search.space import LevelMap
from qslm_edge.spikegpt import load_checkpoint
from qslm_edge.steps.export import export_bundle
from qslm_edge.steps.plan import Plan
from qslm_edge.steps.prepare import prepare
from qslm_edge.tasks.tokenizer import load_tokenizer
from tests.helpers.directory import make_text, write_model, write_sentences

__all__ = [
    "Edit",
    "MakePlan",
    "cache",
    "edit_manifest",
    "fit_head",
    "make_bundle",
    "make_plan",
    "resign",
    "tiny_recipe",
]

Edit = Callable[[dict[str, Any]], object]
MakePlan = Callable[..., Plan]


def tiny_recipe(folder: Path, task: str = "wikitext2", **choices: Any) -> Recipe:
    """A recipe with a tiny model and data of its own, all of it written into `folder`."""
    model = folder / "model"
    if not model.exists():
        write_model(model)
        (folder / "search.txt").write_text(make_text(700, seed=1), "utf-8")
        (folder / "report.txt").write_text(make_text(500, seed=2), "utf-8")
        write_sentences(folder / "search.tsv", 40, seed=3)
        write_sentences(folder / "report.tsv", 24, seed=4)
    ending = "txt" if task == "wikitext2" else "tsv"
    values: dict[str, Any] = {
        "profile": "x86-laptop",
        "task": task,
        "model": str(model),
        "search_data": str(folder / f"search.{ending}"),
        "report_data": str(folder / f"report.{ending}"),
        "max_degradation": 1e5 if task == "wikitext2" else 100.0,
        "window": 24 if task == "wikitext2" else None,
    }
    return make_recipe(**(values | choices))


def make_plan(folder: Path, task: str = "wikitext2", **choices: Any) -> Plan:
    """The plan of `tiny_recipe`."""
    return prepare(tiny_recipe(folder, task, **choices), device="cpu")


def make_bundle(
    folder: Path, task: str = "wikitext2", level: str = "8g64", name: str = "bundle", **choices: Any
) -> Bundle:
    """Export a bundle with one level everywhere."""
    plan = make_plan(folder, task, **choices)
    setting = LevelMap(plan.model.config).setting(plan.hierarchy, parse_level(level))
    bundle, _, _ = export_bundle(plan, setting, plan.items("search"), None, folder / name, Silent())
    return bundle


def edit_manifest(directory: Path, edit: Edit) -> None:
    """Change the manifest in place."""
    path = directory / "manifest.json"
    data = json.loads(path.read_text("utf-8"))
    edit(data)
    path.write_text(json.dumps(data), "utf-8")


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Float scores go into a folder of the tests."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.setenv("QSLM_EDGE_CACHE", str(folder))
        yield folder


def resign(directory: Path) -> None:
    """Write the digests of the files as they are now into the manifest."""

    def edit(manifest: dict[str, Any]) -> None:
        for entry in manifest["files"]:
            data = (directory / entry["path"]).read_bytes()
            entry.update(bytes=len(data), sha256=hashlib.sha256(data).hexdigest())

    edit_manifest(directory, edit)


def fit_head(model: Path) -> None:
    """Train the LM head of a model directory on the features of the random body: then bits do count."""
    found = load_checkpoint(model)
    tokenizer = load_tokenizer(model)
    ids = torch.from_numpy(tokenizer.encode(make_text(1500, seed=5)).astype(np.int64))
    rows = ids[: len(ids) // 24 * 24].reshape(-1, 24)
    features = found.features(rows.t().contiguous())[:-1].clone()
    head = found.tensors["head.weight"].clone().requires_grad_()
    optimiser = torch.optim.Adam([head], lr=0.02)
    for _ in range(60):
        optimiser.zero_grad()
        loss = F.cross_entropy(F.linear(features, head).flatten(0, 1), rows.t()[1:].flatten())
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    tensors = {**found.tensors, "head.weight": head.detach()}
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, model / "model.safetensors")
