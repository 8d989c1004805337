"""``qslm-edge verify``: checks and figures, exit codes, the file it writes, and what it refuses."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import Result

Invoke = Callable[..., Result]
QUICK = ("--power", "off", "--steps", "30")


@pytest.fixture
def copied(bundle: Path, tmp_path: Path) -> Path:
    """A bundle that a test may change."""
    return shutil.copytree(bundle, tmp_path / "bundle")


def change_manifest(bundle: Path, change: Callable[[dict[str, Any]], None]) -> None:
    path = bundle / "manifest.json"
    manifest = json.loads(path.read_text("utf-8"))
    change(manifest)
    path.write_text(json.dumps(manifest), "utf-8")


def test_a_good_bundle_passes(run: Invoke, bundle: Path, tmp_path: Path) -> None:
    output = tmp_path / "verify.json"
    result = run("verify", bundle, *QUICK, "--output", output)
    assert result.exit_code == 0, result.output
    lines = [line.rstrip() for line in result.stdout.splitlines()]
    assert lines[0].startswith("Rehearsal: ")
    assert lines[-1].startswith("Verdict: pass")
    for name in ("golden vectors", "agreement with the search", "perplexity increase", "peak RSS "):
        row = next(line for line in lines if line.startswith(name))
        assert " pass " in row
    assert any(line.startswith("perplexity, report items") for line in lines)
    assert any(
        line.startswith("latency a token, median") and line.endswith("this host, not the board")
        for line in lines
    )
    assert any(line.startswith("energy a token") and "switched off" in line for line in lines)
    assert "verify: search items" in result.stderr
    written = json.loads(output.read_text("utf-8"))
    assert (written["verdict"], written["exit_code"]) == ("pass", 0)
    assert len(written["decode"]["latency_samples_s"]) == 30
    assert [path.name for path in tmp_path.iterdir()] == ["verify.json"]


def test_json_is_the_whole_result_and_nothing_else(run: Invoke, classifier: Path) -> None:
    result = run("verify", classifier, *QUICK, "--json")
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert found["schema"] == "qslm-edge/verify/1"
    assert {check["name"] for check in found["checks"]} >= {"golden vectors", "accuracy drop"}
    assert found["decode"]["energy"]["status"] == "unavailable"


def test_a_tighter_memory_budget_fails(run: Invoke, bundle: Path) -> None:
    result = run("verify", bundle, *QUICK, "--memory-budget", "1MB", "--json")
    checks = {check["name"]: check for check in json.loads(result.stdout)["checks"]}
    assert result.exit_code == 1
    assert (checks["peak RSS"]["verdict"], checks["peak RSS"]["limit"]) == ("fail", 1e6)
    assert {check["verdict"] for name, check in checks.items() if name != "peak RSS"} == {"pass"}


def test_a_limit_of_the_metric_overrides_that_of_the_bundle(run: Invoke, copied: Path) -> None:
    change_manifest(copied, lambda manifest: manifest["constraints"].update(max_degradation=-300.0))
    failed = run("verify", copied, *QUICK)
    assert (failed.exit_code, failed.stdout.splitlines()[-1].split(",")[0]) == (1, "Verdict: fail")
    assert run("verify", copied, *QUICK, "--max-ppl-increase", "300").exit_code == 0


def test_limits_of_speed_and_energy_are_inconclusive_on_another_host(run: Invoke, bundle: Path) -> None:
    words = ["--max-latency", "100s", "--min-decode-speed", "0.001", "--max-energy", "1000J"]
    result = run("verify", bundle, *QUICK, *words)
    assert result.exit_code == 3
    rows = {
        name: line
        for line in result.stdout.splitlines()
        for name in ("latency ", "decode speed ", "energy a token ")
        if line.startswith(name) and " inconclusive " in line
    }
    assert set(rows) == {"latency ", "decode speed ", "energy a token "}
    assert all("this host is not the board" in line for line in rows.values())
    assert result.stdout.splitlines()[-1].startswith("Verdict: inconclusive")


def test_it_runs_without_torch_and_onnx(root: Path, bundle: Path) -> None:
    code = (
        "import sys\nfor name in ('torch', 'onnx', 'filelock', 'tomli_w', 'platformdirs'):\n"
        "    sys.modules[name] = None\n"
        "sys.argv = ['qslm-edge', *sys.argv[1:]]\n"
        "from qslm_edge.cli.app import main\nmain()"
    )
    command = [sys.executable, "-c", code, "verify", str(bundle), *QUICK]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout.splitlines()[-1].split(",")[0]) == (0, "Verdict: pass"), done.stderr


# what is refused


def flip_a_byte(bundle: Path) -> None:
    content = bytearray((bundle / "model.bin").read_bytes())
    content[100] ^= 1
    (bundle / "model.bin").write_bytes(content)


def test_a_tampered_bundle_is_2_before_anything_runs(run: Invoke, copied: Path) -> None:
    flip_a_byte(copied)
    result = run("verify", copied, *QUICK, "--json")
    assert result.exit_code == 2
    assert f"{copied / 'model.bin'}: tampered or damaged bundle: wrong sha256" in result.stderr
    assert json.loads(result.stdout)["error"]["type"] == "BundleError"


def test_a_truncated_file_is_2(run: Invoke, copied: Path) -> None:
    path = copied / "eval" / "report.npz"
    path.write_bytes(path.read_bytes()[:-10])
    result = run("verify", copied, *QUICK)
    assert result.exit_code == 2
    assert "report.npz: tampered or damaged bundle: wrong size" in result.stderr


@pytest.mark.parametrize("name", ["model.onnx", "golden.npz", "tokenizer.json", "run.pyz"])
def test_an_incomplete_bundle_is_2(run: Invoke, copied: Path, name: str) -> None:
    (copied / name).unlink()
    result = run("verify", copied, *QUICK)
    assert result.exit_code == 2
    assert f"{copied / name}: incomplete bundle: a file is missing" in result.stderr
    assert result.stderr.splitlines()[-1].startswith("error: ")


def test_a_directory_that_is_no_bundle_is_2(run: Invoke, tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none"):
        result = run("verify", path)
        assert (result.exit_code, result.stdout) == (2, "")
        assert result.stderr.startswith(f"error: {path}: not a bundle: manifest.json is missing")


def test_a_bundle_of_a_newer_schema_is_2(run: Invoke, copied: Path) -> None:
    change_manifest(copied, lambda manifest: manifest.update(schema="qslm-edge/bundle/9"))
    result = run("verify", copied)
    assert result.exit_code == 2
    assert "bundle of another schema; found qslm-edge/bundle/9; allowed: qslm-edge/bundle/1" in result.stderr


def test_a_runtime_that_is_too_old_is_4(run: Invoke, copied: Path) -> None:
    change_manifest(copied, lambda manifest: manifest["runtime"].update(onnxruntime_min="99.1"))
    result = run("verify", copied)
    assert result.exit_code == 4
    assert "onnxruntime is too old for this bundle" in result.stderr
    assert "allowed: 99.1 or newer" in result.stderr


def test_a_provider_that_is_not_in_this_build_is_4(run: Invoke, bundle: Path) -> None:
    result = run("verify", bundle, "--provider", "CoreMLExecutionProvider")
    assert result.exit_code == 4
    assert "onnxruntime lacks the execution provider" in result.stderr


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--provider", "Abacus"], "--provider: unknown execution provider; found Abacus"),
        (["--power", "lots"], "--power: unknown power measurement; found lots; allowed: smoke"),
        (["--memory-budget", "much"], "--memory-budget: not a size"),
        (["--max-accuracy-drop", "1"], "--max-accuracy-drop: the limit does not belong to the task"),
        (["--threads", "0"], "invalid value for '--threads'"),
        (
            ["--max-latency", "20"],
            "--max-latency: not a quantity of this kind; found '20'; allowed: a positive time",
        ),
        (["--max-energy", "5W"], "--max-energy: not a quantity of this kind; found '5W'"),
        (["--min-decode-speed", "fast"], "--min-decode-speed: not a quantity of this kind"),
    ],
)
def test_bad_flags_are_2(run: Invoke, bundle: Path, words: list[str], says: str) -> None:
    result = run("verify", bundle, *words)
    assert (result.exit_code, result.stdout) == (2, "")
    assert says in result.stderr.splitlines()[-1]


def test_a_place_for_the_result_is_checked_first(run: Invoke, bundle: Path, tmp_path: Path) -> None:
    missing = run("verify", bundle, "--output", tmp_path / "none" / "verify.json")
    assert missing.exit_code == 4
    assert missing.stderr == f"error: {tmp_path / 'none'}: no such directory. Make it first\n"
    assert "a directory is in the way" in run("verify", bundle, "--output", tmp_path).stderr


def test_ctrl_c_ends_the_measuring_process_too(
    run: Invoke, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[subprocess.Popen[str]] = []

    class Watched(subprocess.Popen):  # type: ignore[type-arg]
        def __init__(self, *words: Any, **options: Any) -> None:
            super().__init__(*words, **options)
            started.append(self)

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("qslm_edge.runner.child.subprocess.Popen", Watched)
    monkeypatch.setattr("qslm_edge.cli.console.RichProgress.advance", interrupt)
    result = run("verify", bundle, *QUICK, "--output", tmp_path / "verify.json")
    assert result.exit_code == 130
    assert result.stderr.splitlines()[-1] == "interrupted: stopped by the keyboard"
    assert [process.poll() is not None for process in started] == [True]
    assert list(tmp_path.iterdir()) == []
