"""A bundle that a known limit cannot hold is refused before loading; what nobody knows refuses nothing."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from qslm_edge.bundle.reader import Bundle
from qslm_edge.errors import EnvironmentFault
from qslm_edge.runner import memory_need
from qslm_edge.runner.memory import CgroupMemory, MemoryReading
from qslm_edge.runner.memory_need import check_memory, memory_limits
from qslm_edge.runner.observe import Observed
from qslm_edge.runner.verify import VerifyOptions, verify_bundle
from tests.helpers.bundle_fixtures import CopyBundle
from tests.helpers.bundles import edit_manifest

NEED = {"predicted_peak_rss_bytes": 200 * 10**6}
NOTHING: Observed[int] = Observed(None, "nowhere", "not there")


@pytest.fixture
def limits(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Sets the limits that this system tells."""

    def put(group: int | None = None, address: int | None = None, free: int | None = None) -> None:
        def told(value: int | None) -> Observed[int]:
            return NOTHING if value is None else Observed(value, "a file")

        monkeypatch.setattr(
            memory_need, "cgroup_memory", lambda: CgroupMemory(2, told(group), NOTHING, NOTHING, NOTHING)
        )
        monkeypatch.setattr(memory_need, "available_bytes", lambda: told(free))
        monkeypatch.setattr(
            resource, "getrlimit", lambda _: (resource.RLIM_INFINITY if address is None else address, -1)
        )

    return put


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"group": 100 * 10**6}, r"limit of the control group \(a file\): 100 MB"),
        ({"address": 150 * 10**6}, r"limit of the address space \(ulimit -v\): 150 MB"),
        ({"free": 10**6, "group": 10**10}, r"memory that is free \(a file\): [0-9]+ MB"),
    ],
)
def test_a_limit_below_the_need_is_one_line(
    given: dict[str, int], said: str, limits: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory_need, "read_memory", lambda: MemoryReading(10**7, None, None, None, None, ""))
    limits(**given)
    with pytest.raises(
        EnvironmentFault, match=f"too little memory.*found {said}.*; allowed: 200 MB"
    ) as caught:
        check_memory(NEED, "onnxruntime", "manifest.json")
    assert caught.value.exit_code == 4
    assert "\n" not in caught.value.line()


def test_enough_memory_or_no_known_limit_refuses_nothing(limits: Any) -> None:
    limits(group=10**9, address=10**12, free=10**9)
    assert len(memory_limits()) == 3
    check_memory(NEED, "onnxruntime", None)
    limits()
    assert memory_limits() == []
    check_memory(NEED, "onnxruntime", None)


@pytest.mark.parametrize(
    "weights", [{}, {"predicted_peak_rss_bytes": None}, {"predicted_peak_rss_bytes": "1"}]
)
def test_without_a_prediction_nothing_is_refused(weights: dict[str, Any], limits: Any) -> None:
    limits(group=1)
    check_memory(weights, "onnxruntime", None)


def test_the_prediction_is_not_that_of_other_engines(limits: Any) -> None:
    limits(group=1)
    check_memory(NEED, "native", None)


def test_verify_refuses_before_any_process_starts(
    lm_bundle: Bundle, limits: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits(group=10**6)
    monkeypatch.setattr("qslm_edge.runner.verify.run_child", None)
    with pytest.raises(EnvironmentFault, match="too little memory to load this bundle"):
        verify_bundle(lm_bundle.path, VerifyOptions())


def test_a_real_limit_of_the_address_space_ends_in_one_line(
    lm_bundle: Bundle, copy_bundle: CopyBundle, root: Path
) -> None:
    bundle = copy_bundle(lm_bundle)
    edit_manifest(bundle, lambda m: m["weights"].update(predicted_peak_rss_bytes=2**45))
    code = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_AS, (2**44, 2**44));"
        "from qslm_edge.runner.__main__ import main; sys.exit(main(['verify', sys.argv[1]]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(bundle)], cwd=root, capture_output=True, text=True, check=False
    )
    assert done.returncode == 4
    assert done.stderr.splitlines()[-1].startswith("error: ")
    assert "limit of the address space (ulimit -v): 17592186 MB" in done.stderr
    assert "Traceback" not in done.stderr
