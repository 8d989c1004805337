"""Versions with their sources, or reasons."""

from __future__ import annotations

import json
import platform
from pathlib import Path

import numpy as np
import pytest

from qslm_edge.runner.power.fake import FakeNvml
from qslm_edge.runner.versions import read_versions


def test_this_host() -> None:
    found = read_versions("1.31.1")
    assert json.loads(json.dumps(found)) == found
    assert found["python"]["value"] == platform.python_version()
    assert found["numpy"]["value"] == np.__version__
    assert found["onnxruntime"]["value"] == "1.31.1"
    assert all(entry["value"] is not None or entry["reason"] for entry in found.values())


@pytest.mark.parametrize("driver", ["570.1", b"570.1"])
def test_a_board_and_its_driver(tmp_path: Path, driver: object) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/nv_tegra_release").write_text("# R36 (release), REVISION: 4.3\nsecond line\n")
    found = read_versions("1.23.2", tmp_path, FakeNvml(nvmlSystemGetDriverVersion=driver))
    assert found["l4t"]["value"] == "# R36 (release), REVISION: 4.3"
    assert found["nvidia_driver"]["value"] == "570.1"


def test_a_container_without_proc_says_why(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/nv_tegra_release").write_text("")
    found = read_versions("1.23.2", tmp_path)
    assert (found["kernel"]["value"], found["kernel"]["reason"]) == (None, "no such file")
    assert found["l4t"]["reason"] == "is empty"
    assert found["nvidia_driver"]["reason"] == "a tree of files has no driver"
