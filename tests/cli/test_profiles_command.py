"""``qslm-edge profiles``: what it prints, as text and as JSON, and its exit codes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from qslm_edge import device_profiles
from qslm_edge.cli.app import app
from qslm_edge.profiles import load_profile


def profiles(*words: str) -> Result:
    return CliRunner().invoke(app, ["profiles", *words])


def parsed(result: Result) -> Any:
    return json.loads(result.stdout)


@pytest.fixture
def bad(tmp_path: Path) -> Path:
    path = tmp_path / "bad.toml"
    text = device_profiles.path("h100").read_text(encoding="utf-8")
    path.write_text(text.replace("visible_mib", "visible_mb", 1), encoding="utf-8")
    return path


def test_list_has_a_row_a_board() -> None:
    result = profiles("list")
    assert result.exit_code == 0
    head, *lines = [line.split() for line in result.stdout.splitlines()]
    assert head == ["board", "budget", "bits", "power", "open", "also"]
    rows = [line for line in lines if line and line[0] in device_profiles.names()]
    assert sorted(row[0] for row in rows) == device_profiles.names()
    assert rows[3] == ["jetson-orin-nano", "2861", "MiB", "32", "16", "8", "4", "ina3221", "4", "jetson-orin"]
    assert lines[7] == []  # a blank line between families
    assert lines[8][0] == "raspberry-pi-4"


def test_list_fits_a_terminal_of_80_columns() -> None:
    table = profiles("list").stdout.split("\nlegacy:")[0]
    assert max(len(line.rstrip()) for line in table.splitlines()) <= 80


def test_list_ends_with_what_the_columns_do_not_say() -> None:
    assert profiles("list").stdout.splitlines()[-4:] == [
        "legacy: jetson-nano, jetson-xavier-nx",
        "to develop on, not to ship to: apple-m",
        (
            "runs a bundle only after something is installed (`show` says what): "
            "apple-m, imx8mp, imx95, jetson-nano, jetson-xavier-nx"
        ),
        "open: facts that nobody has confirmed; `show` names them, and every other name of a board",
    ]


def test_list_as_json() -> None:
    result = profiles("list", "--json")
    boards = {board["id"]: board for board in parsed(result)["profiles"]}
    assert result.exit_code == 0
    assert list(boards) == device_profiles.names()
    assert boards["x86-laptop"]["usable_bits"] == [32, 16, 8, 4, 2]
    assert boards["jetson-orin-nano"]["refused"][0]["bits"] == 2
    assert boards["h100"]["digest"] == load_profile("h100").digest
    assert (boards["rk3588"]["family"], boards["rk3588"]["install_first"]) == ("arm-board", None)
    assert boards["jetson-nano"]["install_first"].startswith("an own Python 3.11 or newer")
    assert boards["jetson-nano"]["unconfirmed"] == ["match"]
    assert boards["raspberry-pi-5-8gb"]["aliases"][0] == "pi5"


def test_show_gives_grade_source_and_refusal() -> None:
    result = profiles("show", "jetson-orin")
    assert result.exit_code == 0
    lines = [" ".join(line.split()) for line in result.stdout.splitlines()]
    assert lines[0] == "jetson-orin-nano: NVIDIA Jetson Orin Nano 8GB (Super)"
    assert lines[2] == "also called jetson-orin, jetson-orin-nano-8gb, jetson-orin-nano-super, orin-nano"
    assert lines[3].startswith("supported, digest ")
    assert "memory.visible_mib 7486 sourced 3" in lines
    assert (
        "unconfirmed, check on the board: widths.CUDAExecutionProvider.8, widths.CUDAExecutionProvider.4, match"
        in lines
    )
    assert "[3] output of free published by users" in lines
    assert "match.device_tree_model Jetson Orin Nano unconfirmed -" in lines
    assert "weight widths with CPUExecutionProvider: 32, 16, 8, 4 bits" in lines
    assert any(
        line.startswith("not 2 bits: CPUExecutionProvider runs it from onnxruntime 1.28.0") for line in lines
    )
    assert any(line.startswith("note: CUDA needs an onnxruntime build with sm_87 code") for line in lines)


@pytest.mark.parametrize(
    ("name", "stock"),
    [
        (
            "jetson-nano",
            "as delivered: JetPack 4.6 (L4T 32.7) with Python 3.6 gets onnxruntime 1.10.0, which runs no width",
        ),
        (
            "xavier-nx",
            "as delivered: JetPack 5.1 (L4T 35) with Python 3.8 gets onnxruntime 1.19.2, which runs 32, 16 bits",
        ),
        ("imx95", "as delivered: Yocto (NXP BSP), whose onnxruntime is not known here"),
    ],
)
def test_show_says_what_must_be_installed_first_and_why(name: str, stock: str) -> None:
    lines = profiles("show", name).stdout.splitlines()
    assert f"install first: {load_profile(name).runtime.install}" in lines
    assert stock in lines


@pytest.mark.parametrize("name", device_profiles.names())
def test_show_of_every_board(name: str) -> None:
    result = profiles("show", name)
    profile = load_profile(name)
    assert (result.exit_code, result.stderr) == (0, "")
    assert [line for line in result.stdout.splitlines() if line.startswith("note: ")] == [
        f"note: {note}" for note in profile.all_notes()
    ]
    assert ("install first: " in result.stdout) == (profile.runtime.install is not None)


def test_show_as_json_has_every_fact() -> None:
    shown = parsed(profiles("show", "h100", "--json"))
    profile = load_profile("h100")
    assert [fact["path"] for fact in shown["facts"]] == [fact.path for fact in profile.facts()]
    first = shown["facts"][0]
    assert first == {
        "path": "memory.kind",
        "value": "vram",
        "grade": "measured",
        "sources": ["read on one card with nvidia-smi and NVML, driver 580"],
    }
    assert [width["bits"] for width in shown["usable_widths"]] == [32, 16, 8, 4, 2]
    assert shown["stock_bits"] == [32, 16, 8, 4, 2]


def test_show_takes_a_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    text = device_profiles.path("h100").read_text(encoding="utf-8")
    path.write_text(text.replace('id = "h100"', 'id = "mine"'), encoding="utf-8")
    result = profiles("show", str(path))
    assert result.exit_code == 0
    assert result.stdout.startswith("mine: NVIDIA H100")


def test_show_of_an_unknown_board() -> None:
    result = profiles("show", "jetson-orni", "--json")
    assert result.exit_code == 2
    assert result.stderr.startswith("error: unknown board; found 'jetson-orni'. Did you mean 'jetson-orin'?")
    assert parsed(result)["error"]["type"] == "ProfileError"


def test_validate_says_ok() -> None:
    files = [str(device_profiles.path(name)) for name in device_profiles.names()]
    result = profiles("validate", *files)
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.splitlines() == [
        f"ok {file} ({name})" for file, name in zip(files, device_profiles.names(), strict=True)
    ]


def test_validate_checks_every_file_and_ends_with_2(bad: Path) -> None:
    good = str(device_profiles.path("h100"))
    result = profiles("validate", str(bad), good, str(bad.parent / "none.toml"))
    assert result.exit_code == 2
    assert result.stdout == f"ok {good} (h100)\n"
    first, second = result.stderr.splitlines()
    assert first.startswith(f"error: {bad}: memory.visible_mb: unknown key. Did you mean 'visible_mib'")
    assert second.startswith(f"error: {bad.parent}/none.toml: no such profile file")


def test_validate_as_json(bad: Path) -> None:
    good = str(device_profiles.path("h100"))
    result = profiles("validate", good, str(bad), "--json")
    assert result.exit_code == 2
    fine, wrong = parsed(result)["files"]
    assert fine == {
        "file": good,
        "ok": True,
        "id": "h100",
        "digest": load_profile("h100").digest,
        "error": None,
    }
    assert (wrong["ok"], wrong["digest"]) == (False, None)
    assert "memory.visible_mb: unknown key" in wrong["error"]


def test_validate_without_a_file() -> None:
    result = profiles("validate")
    assert (result.exit_code, result.stderr) == (
        2,
        "error: missing argument 'FILE...'. See `qslm-edge profiles validate --help`\n",
    )


@pytest.mark.parametrize("name", ["list", "show", "validate"])
def test_every_command_has_examples(name: str) -> None:
    result = profiles(name, "--help")
    assert result.exit_code == 0
    assert f"qslm-edge profiles {name}" in result.stdout.split("Examples")[1]
