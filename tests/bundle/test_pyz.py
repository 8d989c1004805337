"""run.pyz: the same bytes everywhere, only the runner inside; numpy and onnxruntime are enough to run it."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

from qslm_edge.bundle.pyz import runner_modules, write_pyz
from qslm_edge.bundle.reader import Bundle

ALLOWED = {"numpy", "onnxruntime"}
# Read by every interpreter that has it on its path, the measuring processes included.
SITECUSTOMIZE = """
import atexit, importlib.abc, os, sys

class Block(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        if top == os.environ.get("INTERRUPT_AT"):
            raise KeyboardInterrupt
        if top in sys.stdlib_module_names or top in {"__main__", "numpy", "onnxruntime", "qslm_edge"}:
            return None
        raise ModuleNotFoundError(f"blocked: {name}", name=name)

sys.meta_path.insert(0, Block())

@atexit.register
def tell():
    package = sys.modules.get("qslm_edge")
    with open(os.environ["SEEN"], "a") as file:
        third = sorted({name.partition(".")[0] for name in sys.modules} - sys.stdlib_module_names)
        where = getattr(package, "__file__", None)
        names = ",".join(name for name in third if not name.startswith("_"))
        print(sys.argv[1:2], where, names, sep="|", file=file)
"""


@pytest.fixture
def run_pyz(lm_bundle: Bundle, tmp_path: Path) -> Any:
    """Runs a bundle's run.pyz where only numpy and onnxruntime can be imported."""
    site, elsewhere = tmp_path / "site", tmp_path / "elsewhere"
    site.mkdir()
    elsewhere.mkdir()
    (site / "sitecustomize.py").write_text(SITECUSTOMIZE, "utf-8")
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "COV_", "QSLM_"))}
    temporary = tmp_path / "tmp"
    temporary.mkdir()

    def run(*words: str, cwd: Path = elsewhere, **extra: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, *words],
            cwd=cwd,
            env={
                **kept,
                "PYTHONPATH": str(site),
                "SEEN": str(tmp_path / "seen"),
                "TMPDIR": str(temporary),
                **extra,
            },
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )

    return run


def test_the_archive_is_equal_every_time(tmp_path: Path, lm_bundle: Bundle) -> None:
    write_pyz(tmp_path / "a.pyz")
    os.utime(tmp_path / "a.pyz", (0, 0))
    write_pyz(tmp_path / "b.pyz")
    data = (tmp_path / "a.pyz").read_bytes()
    assert data == (tmp_path / "b.pyz").read_bytes()
    assert data == (lm_bundle.path / "run.pyz").read_bytes()
    assert data.startswith(b"#!/usr/bin/env python3\nPK")
    assert os.access(tmp_path / "a.pyz", os.X_OK)


def test_the_archive_holds_the_runner_and_what_it_imports(lm_bundle: Bundle) -> None:
    with zipfile.ZipFile(lm_bundle.path / "run.pyz") as archive:
        assert archive.testzip() is None
        names = archive.namelist()
        sources = {name: archive.read(name).decode("utf-8") for name in names}
        assert {i.date_time for i in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}
    assert names[0] == "__main__.py"
    assert names[1:] == sorted(names[1:])
    outside = {name for name in names if not name.startswith("qslm_edge/runner/")}
    assert outside == {
        "__main__.py",
        *(f"qslm_edge/{name}.py" for name in ("__init__", "batches", "errors", "items", "metrics")),
        *(f"qslm_edge/bundle/{name}.py" for name in ("__init__", "reader", "tensors")),
    }
    # whatever one of them imports of the package is in it
    assert {"qslm_edge/runner/native/qslm.h", "qslm_edge/runner/native/api.cpp"} <= sources.keys()
    for name, source in sources.items():
        if not name.endswith(".py"):
            continue  # the source of the native engine
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("qslm_edge"):
                base = (node.module or "").replace(".", "/")
                wanted = {f"{base}.py", f"{base}/__init__.py"}
                inner = {f"{base}/{alias.name}.py" for alias in node.names}
                assert (wanted | inner) & sources.keys(), f"{name} imports {node.module}"


def test_modules_are_those_of_the_package() -> None:
    modules = runner_modules()
    assert list(modules) == sorted(modules)
    assert modules["qslm_edge/errors.py"] == Path(sys.modules["qslm_edge.errors"].__file__ or "").read_bytes()
    assert not any("__pycache__" in name for name in modules)


def test_it_verifies_with_numpy_and_onnxruntime_alone(
    lm_bundle: Bundle, run_pyz: Any, tmp_path: Path
) -> None:
    before = {path: path.stat().st_mtime_ns for path in lm_bundle.path.rglob("*")}
    for path in before:
        path.chmod(0o555 if path.is_dir() else 0o444)
    try:
        done = run_pyz(
            *(str(lm_bundle.path / "run.pyz"), "verify", "--json", "--power", "off", "--steps", "20")
        )
    finally:
        for path in before:
            path.chmod(0o755 if path.is_dir() else 0o644)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["verdict"] == "pass"
    assert result["exit_code"] == 0
    assert result["bundle"]["digest"] == lm_bundle.digest
    assert result["decode"]["latency"]["n"] == 20
    assert "Traceback" not in done.stderr
    # every process ran from the archive, with nothing else imported
    seen = [line.split("|") for line in (tmp_path / "seen").read_text("utf-8").splitlines()]
    assert sorted(line[0] for line in seen) == [
        *("['_latency']", "['_memory']", "['_prefill']", "['_score']", "['verify']")
    ]
    for _, where, third in seen:
        assert Path(where).parent.parent == lm_bundle.path / "run.pyz"
        assert set(third.split(",")) - ALLOWED <= {"qslm_edge", "sitecustomize"}
    # nothing was written beside the bundle, and no temporary file is left
    assert {path: path.stat().st_mtime_ns for path in lm_bundle.path.rglob("*")} == before
    assert list((tmp_path / "tmp").iterdir()) == []


def test_it_finds_its_bundle_from_a_link_and_from_its_own_folder(
    lm_bundle: Bundle, run_pyz: Any, tmp_path: Path
) -> None:
    link = tmp_path / "elsewhere" / "verify-me.pyz"
    link.symlink_to(lm_bundle.path / "run.pyz")
    for done in (run_pyz(str(link), "info"), run_pyz("run.pyz", "info", cwd=lm_bundle.path)):
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout) == lm_bundle.manifest


@pytest.mark.parametrize("moment", ["numpy", "onnxruntime"])
def test_an_interrupt_while_libraries_load_is_one_word(moment: str, lm_bundle: Bundle, run_pyz: Any) -> None:
    done = run_pyz(str(lm_bundle.path / "run.pyz"), "verify", INTERRUPT_AT=moment)
    assert done.returncode == 130
    assert done.stderr.splitlines()[-1] == "interrupted"
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_a_tampered_bundle_is_one_line_and_2(lm_bundle: Bundle, run_pyz: Any, copy_bundle: Any) -> None:
    copy = copy_bundle(lm_bundle)
    (copy / "model.bin").write_bytes(b"\0" + (copy / "model.bin").read_bytes()[1:])
    done = run_pyz(str(copy / "run.pyz"), "verify", "--json")
    assert done.returncode == 2
    lines = done.stderr.splitlines()
    assert lines[-1].startswith(f"error: {copy / 'model.bin'}: tampered or damaged bundle: wrong sha256")
    assert "Traceback" not in done.stderr
    assert json.loads(done.stdout)["error"]["exit_code"] == 2
    missing = run_pyz(str(copy / "run.pyz"), "verify", "absent")
    assert missing.returncode == 2
    assert "absent: not a bundle" in missing.stderr


def test_the_doctor_needs_numpy_and_onnxruntime_alone(
    lm_bundle: Bundle, run_pyz: Any, tmp_path: Path
) -> None:
    done = run_pyz(str(lm_bundle.path / "run.pyz"), "doctor", "--json")
    assert done.returncode == 0, done.stdout
    document = json.loads(done.stdout)
    assert document["bundle"] == {"digest": lm_bundle.digest}
    status = {(found["area"], found["name"]): found["status"] for found in document["findings"]}
    assert status["runtime", "CPUExecutionProvider"] == "ok"
    assert status["bundle", "golden vectors"] == "ok"
    assert status["memory", "read-out"] == "ok"
    assert "Traceback" not in done.stderr
    seen = [line.split("|") for line in (tmp_path / "seen").read_text("utf-8").splitlines()]
    assert sorted(line[0] for line in seen) == ["['_allocation']", "['_golden']", "['_probe']", "['doctor']"]
    for _, _, third in seen:  # cython_runtime is part of numpy.random
        assert set(third.split(",")) - ALLOWED <= {"qslm_edge", "sitecustomize", "cython_runtime"}


def test_without_numpy_it_says_what_to_install(lm_bundle: Bundle, run_pyz: Any) -> None:
    done = run_pyz("-S", str(lm_bundle.path / "run.pyz"), "doctor")  # -S: no installed packages
    assert done.returncode == 4
    assert done.stderr == ("error: numpy is not installed. Next: python3 -m pip install numpy onnxruntime\n")
