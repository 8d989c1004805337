"""Reading the host: every failure is a reason, never a value."""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path

import pytest

from qslm_edge.runner import observe
from qslm_edge.runner.observe import Observed, list_paths, read_int, read_text, run_command


def test_text_is_stripped_of_blanks_and_nul(tmp_path: Path) -> None:
    (tmp_path / "model").write_bytes(b"Raspberry Pi 5\0")
    assert read_text(tmp_path, "model") == Observed("Raspberry Pi 5", "/model")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "not an integer: ''"),
        (b"12 34", "not an integer: '12 34'"),
        (b"1e3", "not an integer: '1e3'"),
        (b"\xff\xfe", "not UTF-8 text"),
        (b"9" * 30, "not an integer: '" + "9" * 30 + "'"),
        ("١٢".encode(), "not an integer: '١٢'"),  # digits, but no kernel writes them
        (b"-5", "implausible value -5"),
        (b"101", "implausible value 101"),
    ],
)
def test_what_is_no_plausible_integer_is_a_reason(tmp_path: Path, content: bytes, reason: str) -> None:
    (tmp_path / "value").write_bytes(content)
    assert read_int(tmp_path, "value", low=0, high=100) == Observed(None, "/value", reason)


def test_missing_file_and_folder_are_reasons(tmp_path: Path) -> None:
    assert read_text(tmp_path, "gone/value").reason == "no such file"
    (tmp_path / "folder").mkdir()
    assert read_text(tmp_path, "folder").reason == "is a directory"


def test_too_large_a_file_is_not_read_to_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(observe, "MAX_BYTES", 100_000)
    (tmp_path / "value").write_bytes(b"1" * 300_000)
    assert read_text(tmp_path, "value").reason == "larger than 100000 bytes"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_real_eagain_is_a_reason(tmp_path: Path) -> None:
    """A pipe with a writer and no data answers EAGAIN, as a gated thermal zone does."""
    os.mkfifo(tmp_path / "temp")
    writer = os.open(tmp_path / "temp", os.O_RDWR)
    try:
        observed = read_int(tmp_path, "temp")
    finally:
        os.close(writer)
    assert observed == Observed(None, "/temp", "temporarily unavailable (EAGAIN) at two attempts")


def test_eagain_is_tried_once_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "temp").write_text("50250\n")
    calls: list[int] = []
    read = os.read

    def first_fails(handle: int, size: int) -> bytes:
        calls.append(handle)
        if len(calls) == 1:
            raise BlockingIOError(errno.EAGAIN, "unavailable")
        return read(handle, size)

    monkeypatch.setattr(os, "read", first_fails)
    assert read_int(tmp_path, "temp").value == 50250


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
def test_a_refused_file_is_a_reason(tmp_path: Path) -> None:
    (tmp_path / "energy_uj").write_text("1")
    (tmp_path / "energy_uj").chmod(0)
    assert read_int(tmp_path, "energy_uj").reason == "permission denied"


def test_paths_are_in_order_of_their_numbers(tmp_path: Path) -> None:
    for number in (10, 9, 1):
        (tmp_path / f"zone{number}").mkdir()
    assert list_paths(tmp_path, "zone*") == ["zone1", "zone9", "zone10"]
    assert list_paths(tmp_path / "gone", "zone*") == []


def test_conversion_errors_keep_the_source() -> None:
    assert Observed("x", "/here").map(int).reason is not None
    assert Observed("7", "/here").map(int) == Observed(7, "/here")
    assert Observed[str](None, "/here", "gone").map(int) == Observed(None, "/here", "gone")


def test_commands_give_output_or_a_reason() -> None:
    assert run_command([sys.executable, "-c", "print(' 1 ')"]).value == "1"
    assert run_command(["no-such-tool-qslm"]).reason == "no-such-tool-qslm is not installed"
    failed = run_command([sys.executable, "-c", "import sys; sys.exit('bad\\nluck')"])
    assert failed.reason == "exit status 1: bad luck"
    slow = run_command([sys.executable, "-c", "import time; time.sleep(60)"], timeout_s=0.05)
    assert slow.reason == "no answer within 0.05 s"
