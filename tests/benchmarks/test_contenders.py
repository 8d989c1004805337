"""Every path that the benchmarks time computes the model, and their tables come from what was measured."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import bench_memory, bench_speed, contender, shapes
from benchmarks.bench_speed import Entry, Row
from benchmarks.speed_tables import markdown, text
from benchmarks.torch_step import TorchPeer
from qslm_edge.bundle.reader import Bundle
from qslm_edge.runner.sessions.base import ONNXRUNTIME, Session
from qslm_edge.spikegpt.config import Embedding
from tests.helpers.tiny import VOCABULARY, make_model

TOKENS = np.random.default_rng(3).integers(0, VOCABULARY, 20).tolist()


@pytest.mark.parametrize("embedding", ["dense", "binary"])
def test_the_torch_step_computes_the_model(embedding: Embedding) -> None:
    model = make_model(embedding)
    expected = model(torch.tensor(TOKENS)[None])[0]
    peer = TorchPeer(model)
    steps = torch.stack([peer.step(token) for token in TOKENS])
    torch.testing.assert_close(steps, expected, atol=1e-4, rtol=1e-3)
    peer = TorchPeer(model)
    torch.testing.assert_close(peer.prompt(TOKENS[:9]), expected[8], atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(peer.step(TOKENS[9]), expected[9], atol=1e-4, rtol=1e-3)


def test_prompts_in_chunks_and_steps_of_a_bundle_agree(
    lm_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Long prompts, short ones and single steps end in the same logits: each path that is timed computes the same.
    tests/runner/sessions holds the engine native to that, and to the graph."""
    monkeypatch.setattr(contender, "CHUNK", 7)
    runner = contender.Bundled(lm_bundle.path, ONNXRUNTIME, 2)
    session: Session = runner.session
    whole, _ = session.logits(np.array(TOKENS)[:, None], session.initial_state(1), 1)
    kept: list[Any] = []
    logits = session.logits

    def keep(tokens: Any, state: Any, last: int) -> Any:
        found, state = logits(tokens, state, last)
        kept.append(found[-1])
        return found, state

    monkeypatch.setattr(session, "logits", keep)
    runner.prompt(TOKENS)
    np.testing.assert_allclose(kept[-1], whole[-1], atol=1e-3)
    runner.restart()
    for token in TOKENS:
        runner.step(token)
    np.testing.assert_allclose(kept[-1], whole[-1], atol=1e-3)


def test_a_contender_tells_all_that_was_asked(lm_bundle: Bundle) -> None:
    options = argparse.Namespace(
        kind="onnxruntime",
        path=lm_bundle.path,
        threads=1,
        seconds=0.0,
        prompts=[16, 40],
        context=64,
        busy=True,
    )
    found = contender.measure(options)
    assert found["steps"] == 2 * contender.MIN_STEPS  # before and after the busy part
    assert found["busy_token_s"] > 0
    assert found["prefill"].keys() == {"16", "40"}
    assert found["context"]["tokens"] == 64
    assert found["first_token_s"] > found["load_s"] > 0
    assert found["memory"]["peak"] >= found["memory"]["bare"]
    assert json.loads(json.dumps(found)) == found


def test_what_cannot_run_is_a_reason(tmp_path: Path) -> None:
    found = bench_speed.run(Entry("onnxruntime", "4g64"), tmp_path, Row("reference", 1), [], tmp_path)
    assert found.keys() == {"reason"}
    assert "not a bundle" in found["reason"]


def test_a_token_reads_all_but_the_table(lm_bundle: Bundle) -> None:
    size = lm_bundle.file_bytes["model.bin"]
    read = shapes.bytes_a_token(lm_bundle.path)
    table = VOCABULARY * 64 + VOCABULARY * (64 // 64) * 3  # codes; scales of 16 bits, zero points
    assert size - table - 64 * 200 < read < size - table + 600


def made(token_s: float, **more: Any) -> dict[str, Any]:
    """A round of a contender."""
    memory = {"bare": 50, "loaded": 150, "peak": 200, "steady": 160, "prefill_peak": 250}
    prefill = {"16": 1e-3, "1024": 5e-4}
    return {"token_s": token_s, "first_token_s": 0.2, "prefill": prefill, "memory": memory, **more}


@pytest.mark.parametrize("busy", [False, True])
def test_ratios_come_from_the_same_row(busy: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    times = {"onnxruntime 4g64": 0.002, "onnxruntime fp32": 0.01, "torch-eager fp32": 0.02}

    def answer(entry: Entry, *_: Any) -> dict[str, Any]:
        if entry.name not in times:
            return {"reason": "no compiler"}
        return made(times[entry.name], **({"busy_token_s": 1.25 * times[entry.name]} if busy else {}))

    rate = {"one_thread_bytes_per_s": 1e9, "all_threads_bytes_per_s": 2e9, "reason": None}
    monkeypatch.setattr(bench_speed, "run", answer)
    monkeypatch.setattr(bench_speed, "checkpoint", lambda *_: tmp_path)
    monkeypatch.setattr(bench_speed, "bundle", lambda *_: tmp_path)
    monkeypatch.setattr(bench_speed, "bytes_a_token", lambda _: 10**6)
    monkeypatch.setattr(bench_speed, "last_cache_bytes", lambda: 1)
    monkeypatch.setattr(bench_speed, "measure_bandwidth", lambda: argparse.Namespace(to_dict=lambda: rate))
    options = argparse.Namespace(rounds=2, seconds=0.1, quick=False, prompts=(16, 1024), out=tmp_path)
    row = bench_speed.measure(Row("216m", 1, busy, ("4g64",)), options)
    entry = next(entry for entry in row["entries"] if entry["name"] == "onnxruntime 4g64")
    assert entry["share_of_floor"] == pytest.approx(0.5)
    assert entry["busy_over_idle"] == (pytest.approx(1.25) if busy else None)
    result = {"machine": {"label": "desk", "cores_usable": 2}, "versions": {"onnxruntime": "1"}, "rounds": 2}
    result |= {"load_average": [0.5], "rows": [row]}
    for table in (text(result), markdown(result)):
        line = next(line for line in table.splitlines() if "onnxruntime 4g64" in line)
        cells = [cell for cell in line.replace("|", " ").split("  ") if cell.strip()]
        assert [cell.strip() for cell in cells[1:5]] == ["2.00", "5.00", "10.00", "0.50"]
    if not busy:
        assert "skipped: torch-compile fp32: no compiler" in text(result)


def test_memory_is_told_above_the_bare_process(lm_bundle: Bundle) -> None:
    manifest = json.loads(json.dumps(lm_bundle.manifest))
    for file in manifest["files"]:
        file["bytes"] = 100 if file["path"] == "model.bin" else file["bytes"]
    manifest["weights"]["predicted_peak_rss_bytes"] = 400
    found = bench_memory._entry(Entry("onnxruntime", "4g64"), [made(1.0)], manifest, is_torch=False)
    assert (found["loaded_over_packed"], found["peak_over_packed"]) == (1.0, 1.5)
    assert found["peak_over_predicted"] == 0.5
    assert bench_memory.lines({"entries": [found]})[0][3:] == ("1.00", "1.50", "1.10", "2.00", "0.50")
    failed = bench_memory._entry(
        Entry("native", "4g64"), [{"reason": "no compiler"}], manifest, is_torch=False
    )
    assert failed["reason"] == "no compiler"
