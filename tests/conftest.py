"""Fixtures that look at the project as a whole; those of one package stand in its own test folder."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# Tiny models gain nothing from a second thread, and waiting threads of two runs would starve each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# A shell starts background jobs with Ctrl-C ignored, which every process below them inherits: tests that press it
# would wait for ever.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# The same examples each time, and no clock decides: a busy machine must not fail a test.
settings.register_profile(
    "project", deadline=None, derandomize=True, database=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("project")

ROOT = Path(__file__).resolve().parent.parent
NOT_OURS = frozenset({"runs", "build", "dist", "htmlcov", "__pycache__"})


@pytest.fixture(scope="session")
def root() -> Path:
    """The top folder of the project."""
    return ROOT


@pytest.fixture(scope="session")
def project_files() -> list[Path]:
    """Every file that is or would be committed; links are left out, since their targets are there."""
    listed = _files_by_git() or _files_by_walk()
    return [path for path in listed if path.is_file() and not path.is_symlink()]


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Float scores of tests stay out of the user's cache, and are there for every test of a session."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("QSLM_EDGE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model directory with config.json, model.safetensors and a tokenizer; do not change it."""
    from tests.helpers.directory import write_model  # torch loads for the tests that need it

    return write_model(tmp_path_factory.mktemp("models") / "tiny")


def _files_by_git() -> list[Path]:
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    if not (ROOT / ".git").exists():  # an unpacked archive inside some other repository
        return []
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return []
    return [ROOT / os.fsdecode(name) for name in sorted(set(done.stdout.split(b"\0"))) if name]


def _files_by_walk() -> list[Path]:
    found = []
    for here, below, names in os.walk(ROOT):  # does not enter linked folders
        below[:] = sorted(
            name
            for name in below
            if name == ".ci" or not (name.startswith(".") or name in NOT_OURS or name.endswith(".egg-info"))
        )
        found += [Path(here, name) for name in sorted(names) if name != ".coverage"]
    return found
