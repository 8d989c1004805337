"""Compiling the engine: found again, told apart, and every way it fails is one line with exit code 4."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from qslm_edge.errors import RuntimeFault, UsageError
from qslm_edge.runner.__main__ import main
from qslm_edge.runner.native import build as module
from qslm_edge.runner.native.build import ISA_VARIABLE, LIBRARY_VARIABLE, build, cpu_identity
from qslm_edge.runner.native.interface import Library
from tests.helpers.native import library, needs_compiler


@pytest.fixture(autouse=True)
def _apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A cache of the test's own, and nothing of the user's choices."""
    monkeypatch.setenv("QSLM_EDGE_CACHE", str(tmp_path / "cache"))
    for name in (ISA_VARIABLE, LIBRARY_VARIABLE, "CXX"):
        monkeypatch.delenv(name, raising=False)
    yield
    cpu_identity.cache_clear()


@pytest.fixture
def compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A compiler that counts its runs and writes a file in place of a library."""
    program = tmp_path / "fake-c++"
    program.write_text(
        '#!/bin/sh\nif [ "$1" = --version ]; then echo "fake ${FAKE_VERSION:-1}"; exit; fi\n'
        f'echo "$@" >> {tmp_path / "runs"}\nfor last; do :; done\ncat *.cpp > "$last"\n',
        "utf-8",
    )
    program.chmod(0o755)
    monkeypatch.setenv("CXX", str(program))
    module._version_of.cache_clear()
    return program


def runs(tmp_path: Path) -> list[str]:
    return (tmp_path / "runs").read_text("utf-8").splitlines()


def test_it_is_compiled_once_for_equal_choices(
    compiler: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = build(), build()
    assert first.path == second.path
    assert (first.seconds is None, second.seconds is None) == (False, True)
    assert first.path.read_bytes().count(b"qslm_run(") == 1
    assert first.compiler == "fake 1"
    assert len(runs(tmp_path)) == 1
    assert "-ffp-contract=off" in runs(tmp_path)[0]
    other = build(isa="portable")
    assert "-DQSLM_PORTABLE" in runs(tmp_path)[1]
    monkeypatch.setenv("FAKE_VERSION", "2")
    module._version_of.cache_clear()
    newer = build()
    monkeypatch.setattr(module, "cpu_identity", lambda: "another processor")
    moved = build()
    assert len({first.path, other.path, newer.path, moved.path}) == 4
    assert sorted(p.name for p in (tmp_path / "cache" / "native").iterdir()) == sorted(
        p.path.parent.name for p in (first, other, newer, moved)
    )  # nothing else is left there


def test_no_compiler_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("PATH", "")
    assert main(["build-native"]) == 4
    assert capsys.readouterr().err == (
        "error: no C++ compiler; found no c++, g++ or clang++. Install one (Debian, Ubuntu: apt install g++), or leave "
        "--engine native out\n"
    )
    assert main(["build-native", "--json"]) == 4
    assert json.loads(capsys.readouterr().out)["error"]["exit_code"] == 4
    monkeypatch.setenv("CXX", "absent-c++")
    assert main(["build-native"]) == 4
    assert "CXX=absent-c++: no C++ compiler" in capsys.readouterr().err


def test_a_compiler_that_fails_is_quoted(compiler: Path, capsys: pytest.CaptureFixture[str]) -> None:
    compiler.write_text(
        "#!/bin/sh\necho some warning >&2; echo 'api.cpp:3: error: no such thing' >&2; exit 1\n"
    )
    assert main(["build-native"]) == 4
    said = capsys.readouterr().err
    assert "the native engine does not compile; found api.cpp:3: error: no such thing" in said
    assert said.count("\n") == 1


def test_a_cache_that_cannot_be_written_is_one_line(
    compiler: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("", "utf-8")
    monkeypatch.setenv("QSLM_EDGE_CACHE", str(tmp_path / "file"))
    with pytest.raises(RuntimeFault, match="the native engine cannot be kept"):
        build()


def test_the_cache_follows_the_desktop_rules(
    compiler: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("QSLM_EDGE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert build().path.is_relative_to(tmp_path / "xdg" / "qslm-edge" / "native")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert build().path.is_relative_to(tmp_path / "home" / ".cache" / "qslm-edge" / "native")


def test_instruction_sets_that_do_not_exist(compiler: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ISA_VARIABLE, "mmx")
    with pytest.raises(UsageError, match="QSLM_EDGE_NATIVE_ISA: unknown instruction set; found mmx"):
        build()
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    with pytest.raises(UsageError, match="NEON is of 64-bit ARM"):
        build(isa="neon")
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    with pytest.raises(UsageError, match="AVX2 is of x86-64"):
        build(isa="avx2")


@pytest.mark.parametrize(
    ("features", "native"),
    [("fp asimd crc32 atomics asimddp", module.DOTPROD_FLAGS), ("fp asimd crc32", ("-mcpu=native",))],
)
def test_on_arm_the_features_of_the_core_decide(
    features: str, native: tuple[str, ...], compiler: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    monkeypatch.setattr(module, "_cpuinfo", lambda: {"CPU part": "0xd42", "Features": features})
    cpu_identity.cache_clear()
    built = build(isa="native")
    assert built.cpu.startswith("aarch64 0xd42 features ")
    assert built.flags[-len(native) :] == native
    assert build(isa="portable").flags[-len(native) - 1 :] == (*native, "-DQSLM_PORTABLE")
    assert build(isa="neon").flags[-1:] == module.NEON_FLAGS


@needs_compiler
def test_a_library_made_elsewhere_can_be_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "copied"
    shutil.copytree(library().parent, folder)
    monkeypatch.setenv(LIBRARY_VARIABLE, str(folder / "libqslm.so"))
    built = build()
    assert (built.path, built.seconds, built.cpu) == (folder / "libqslm.so", None, cpu_identity())
    assert Library(built.path).describe().startswith("cpu ")
    record = folder / "build.json"
    facts = json.loads(record.read_text("utf-8"))
    record.write_text(json.dumps({**facts, "cpu": "arm64 Cortex"}), "utf-8")
    with pytest.raises(RuntimeFault, match="built for another processor; found arm64 Cortex; allowed: "):
        build()
    record.write_text("[]", "utf-8")
    with pytest.raises(RuntimeFault, match="without a record"):
        build()
    record.write_text(json.dumps(facts), "utf-8")
    (folder / "libqslm.so").unlink()
    with pytest.raises(RuntimeFault, match="no such library"):
        build()


@needs_compiler
def test_what_is_no_library_or_another_version_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "libqslm.so"
    path.write_bytes(b"no library")
    with pytest.raises(RuntimeFault, match="does not load") as caught:
        Library(path)
    assert caught.value.exit_code == 4
    with pytest.raises(RuntimeFault, match="does not load"):
        Library(Path(os.devnull))
    monkeypatch.setattr("qslm_edge.runner.native.interface.ABI", 99)
    with pytest.raises(RuntimeFault, match="has another interface; found version 1; allowed: version 99"):
        Library(library())


@needs_compiler
def test_the_command_says_what_it_made(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(LIBRARY_VARIABLE, str(library("portable")))
    assert main(["build-native"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "engine    cpu portable"
    assert lines[-1] == "built     already there"
    assert main(["build-native", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["engine"] == "cpu portable"
