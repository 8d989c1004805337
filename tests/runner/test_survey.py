"""Runtime packages, providers in processes of their own, and whether the peak of memory is believed."""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from qslm_edge.errors import EnvironmentFault, RuntimeFault
from qslm_edge.runner import survey as module
from qslm_edge.runner.memory import MemoryReading
from qslm_edge.runner.survey import (
    MemoryProof,
    RuntimeFacts,
    has_screen,
    prove_memory,
    prove_memory_in_child,
    prove_provider,
    runtime_facts,
)

MIB = 2**20


def with_packages(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    def distributions() -> Iterator[Any]:
        for name in names:
            yield SimpleNamespace(metadata={"Name": name}, version="1.31.1")

    monkeypatch.setattr(importlib.metadata, "distributions", distributions)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["onnxruntime"], ("onnxruntime 1.31.1",)),
        (["onnxruntime_gpu", "ONNXRuntime"], ("onnxruntime 1.31.1", "onnxruntime-gpu 1.31.1")),
        (["onnxruntime-qnn", "onnxruntime-qnn"], ("onnxruntime-qnn 1.31.1",)),
        (["ort-nightly"], ("ort-nightly 1.31.1",)),
        (["onnx", "onnxruntime-extensions", "onnxruntime-genai", "optimum-onnxruntime"], ()),
    ],
)
def test_packages_that_own_the_import_name(
    names: list[str], expected: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    with_packages(monkeypatch, *names)
    assert runtime_facts().packages == expected


def test_the_runtime_here() -> None:
    found = runtime_facts()
    assert found.reason is None
    assert found.release is not None
    assert found.version is not None
    assert found.version.startswith(found.release)
    assert "CPUExecutionProvider" in found.providers
    assert "AzureExecutionProvider" not in found.providers  # it calls a service
    assert json.loads(json.dumps(found.to_dict()))["release"] == found.release


def test_no_runtime_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> Any:
        raise RuntimeFault("onnxruntime cannot be imported", found="No module named 'onnxruntime'")

    monkeypatch.setattr(module, "import_onnxruntime", fail)
    found = runtime_facts()
    assert (found.version, found.release, found.providers) == (None, None, ())
    assert found.reason == "cannot be imported: No module named 'onnxruntime'"


@pytest.mark.parametrize(
    ("version", "release"),
    [
        ("1.23.2", "1.23.2"),
        ("1.23.0+cu126", "1.23.0"),
        ("1.24", "1.24.0"),
        ("1.32.0.dev20261101", "1.32.0"),
        (None, None),
    ],
)
def test_a_release_has_three_numbers(version: str | None, release: str | None) -> None:
    assert RuntimeFacts(version, (), ()).release == release


def test_a_process_that_crashes_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(arguments: list[str], _progress: Any) -> Any:
        assert arguments in (["_probe", "CUDAExecutionProvider"], ["_allocation"])
        raise EnvironmentFault("the measuring process ended without a result", found="killed by signal 4")

    monkeypatch.setattr(module, "run_child", crash)
    probe = prove_provider("CUDAExecutionProvider")
    assert not probe.runs
    assert probe.float32.reason is not None
    assert "killed by signal 4" in probe.float32.reason
    proof = prove_memory_in_child()
    assert not proof.ok
    assert "killed by signal 4" in str(proof.reason)


def test_the_peak_of_this_system_moves_in_a_process_of_its_own() -> None:
    proof = prove_memory_in_child()
    assert proof == MemoryProof(True, proof.taken_bytes, proof.moved_bytes, proof.source)
    assert proof.moved_bytes == pytest.approx(64 * MIB, abs=8 * MIB)


@pytest.mark.parametrize(
    ("moved_mib", "ok"), [(64, True), (60, True), (0, False), (20, False), (200, False), (None, False)]
)
def test_a_peak_that_does_not_move_as_it_should_is_not_believed(
    moved_mib: int | None, ok: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = MemoryReading(50 * MIB, 51 * MIB, None, None, None, "a fake")
    peak = None if moved_mib is None else (51 + moved_mib) * MIB
    readings = iter([first, replace(first, peak_rss_bytes=peak)])
    monkeypatch.setattr(module, "read_memory", lambda: next(readings))
    proof = prove_memory()
    assert (proof.ok, proof.taken_bytes) == (ok, 65 * MIB)
    assert proof.moved_bytes == (None if moved_mib is None else moved_mib * MIB)
    if moved_mib == 20:
        assert proof.reason == "the peak moved by 20 MiB where 64 were taken"


def test_without_a_peak_nothing_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    none = MemoryReading(None, None, None, None, None, "none", "no /proc")
    monkeypatch.setattr(module, "read_memory", lambda: none)
    assert prove_memory() == MemoryProof(False, 0, None, "none", "no /proc")


def test_a_connected_screen_is_seen(tmp_path: Path) -> None:
    for name, status in (("card0-HDMI-A-1", "disconnected"), ("card0-HDMI-A-2", "disconnected")):
        (tmp_path / "sys/class/drm" / name).mkdir(parents=True)
        (tmp_path / "sys/class/drm" / name / "status").write_text(f"{status}\n", "utf-8")
    assert not has_screen(tmp_path)
    (tmp_path / "sys/class/drm/card0-HDMI-A-2/status").write_text("connected\n", "utf-8")
    assert has_screen(tmp_path)
