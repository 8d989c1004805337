"""The native engine against the portable graph: the same model, at every level, in every split of the work."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from qslm_edge.bundle.reader import Bundle
from qslm_edge.errors import BundleError, RuntimeFault
from qslm_edge.exporters import ExportJob
from qslm_edge.quantize.base import InputStatistics
from qslm_edge.quantize.levels import parse_level
from qslm_edge.quantize.weights import WeightStore
from qslm_edge.runner.native.build import LIBRARY_VARIABLE
from qslm_edge.runner.sessions import open_session
from qslm_edge.runner.sessions.base import SessionOptions
from qslm_edge.runner.sessions.native import NativeSession
from qslm_edge.runner.sessions.portable import PortableSession
from qslm_edge.spikegpt.hierarchy import Head
from tests.helpers.native import ISAS, engine, exported_bundle, library, native_session, needs_compiler
from tests.helpers.tiny import CHANNELS, MIXED, N_LAYER, VOCABULARY, make_job, make_model, random_tokens

pytestmark = needs_compiler
Array = NDArray[Any]
LEVELS = ("32", "16", "8g64", "4g32", "4g64", "2g64", "2g64m", "4g64f", "2g32f")
T, B = 24, 3
Make = Callable[..., Bundle]


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """Exports a tiny model, once for equal arguments."""
    kept: dict[Any, Bundle] = {}

    def export(level: str, head: Head = "lm", embedding: Any = "dense", mixed: bool = False) -> Bundle:
        key = (level, head, embedding, mixed)
        if key not in kept:
            changes = MIXED if mixed else {"emb": "1"} if level == "sign" else {}
            if head != "lm":
                changes = {name: text for name, text in changes.items() if name != "head"}
            job = make_job(make_model(embedding), "4g64" if level == "sign" else level, head, changes)
            kept[key] = exported_bundle(job, tmp_path_factory.mktemp("native"))
        return kept[key]

    return export


def portable_logits(bundle: Bundle, tokens: Array) -> tuple[Array, Array]:
    session = PortableSession(bundle)
    return session.logits(tokens, session.initial_state(tokens.shape[1]), len(tokens))


def all_logits(session: NativeSession, tokens: Array) -> tuple[Array, Array]:
    logits, state = session.logits(tokens, session.initial_state(tokens.shape[1]), len(tokens))
    return logits, session.read_state(state)


def mean_kl(a: Array, b: Array) -> float:
    logs = [
        x.astype(np.float64) - np.log(np.exp(x.astype(np.float64)).sum(-1, keepdims=True)) for x in (a, b)
    ]
    return float((np.exp(logs[0]) * (logs[0] - logs[1])).sum(-1).mean())


@pytest.mark.parametrize("level", LEVELS)
def test_it_computes_what_the_graph_computes(level: str, make: Make) -> None:
    bundle, tokens = make(level), random_tokens(T, B)
    wanted, wanted_state = portable_logits(bundle, tokens)
    found, state = all_logits(native_session(bundle), tokens)
    # the first step has rounded nothing but its own inputs; later a code near a tie may fall the other way
    assert np.abs(found[0] - wanted[0]).max() < 1e-4 * np.abs(wanted).max()
    assert mean_kl(wanted, found) < (1e-8 if level in ("32", "16") or level.endswith("f") else 1e-3)
    assert (found.argmax(-1) == wanted.argmax(-1)).mean() > 0.95
    assert state.shape == wanted_state.shape


def test_every_layer_may_keep_other_hidden_units(tmp_path: Path) -> None:
    whole = make_job(make_model(), "4g64")
    hierarchy = whole.store.hierarchy
    inputs = {m.name: InputStatistics(np.eye(m.columns, dtype=np.float32), 1) for m in hierarchy.modules}
    store = WeightStore(whole.store.model, hierarchy, statistics=lambda: inputs)
    cut = {f"blocks.0.ffn.{side}": parse_level("2g64m@64") for side in ("key", "value")}
    cut |= {f"blocks.2.ffn.{side}": parse_level("4g32f@96") for side in ("key", "value")}
    job = ExportJob(store, whole.setting.with_levels(cut))
    bundle, tokens = exported_bundle(job, tmp_path), random_tokens(T, B)
    wanted, _ = portable_logits(bundle, tokens)
    found, _ = all_logits(native_session(bundle), tokens)
    assert np.abs(found[0] - wanted[0]).max() < 1e-4 * np.abs(wanted).max()
    assert mean_kl(wanted, found) < 1e-3


@pytest.mark.parametrize(
    ("level", "embedding", "mixed"),
    [("4g64", "dense", True), ("32", "binary", False), ("sign", "binary", False)],
)
def test_mixed_levels_and_binary_embeddings(level: str, embedding: str, mixed: bool, make: Make) -> None:
    bundle, tokens = make(level, embedding=embedding, mixed=mixed), random_tokens(T, B)
    wanted, _ = portable_logits(bundle, tokens)
    found, _ = all_logits(native_session(bundle), tokens)
    assert np.abs(found[0] - wanted[0]).max() < 1e-4 * np.abs(wanted).max()
    assert mean_kl(wanted, found) < 1e-3


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(("level", "mixed"), [("4g64", True), *((level, False) for level in LEVELS)])
def test_every_split_of_the_work_gives_the_same_bits(level: str, mixed: bool, isa: str, make: Make) -> None:
    """Steps, chunks, streams side by side, threads, instruction sets: no sum depends on them."""
    bundle, tokens = make(level, mixed=mixed), random_tokens(T, B)
    wanted, wanted_state = all_logits(native_session(bundle), tokens)
    session = native_session(bundle, isa, threads=3)
    found, found_state = all_logits(session, tokens)
    assert (found == wanted).all()
    assert (found_state == wanted_state).all()
    for sizes in ([1] * T, [7, 1, 16]):
        state, parts, begin = session.initial_state(B), [], 0
        for size in sizes:
            logits, state = session.logits(tokens[begin : begin + size], state, size)
            parts.append(logits)
            begin += size
        assert (np.concatenate(parts) == wanted).all()
        assert (session.read_state(state) == wanted_state).all()
    alone, alone_state = all_logits(session, tokens[:, 1:2])
    assert (alone == wanted[:, 1:2]).all()
    assert (alone_state == wanted_state[:, 1:2]).all()


def test_many_tokens_run_in_chunks_and_give_the_last_logits(make: Make) -> None:
    bundle, tokens = make("4g64"), random_tokens(300, 1)
    session = native_session(bundle)
    wanted, wanted_state = all_logits(session, tokens)
    for last in (1, 40, 299):
        found, state = session.logits(tokens, session.initial_state(1), last)
        assert (found == wanted[-last:]).all()
        assert (session.read_state(state) == wanted_state).all()
    wide = random_tokens(2, 150)  # more streams than tokens in a chunk
    found, _ = all_logits(session, wide)
    assert (found[:, 149:] == all_logits(session, wide[:, 149:])[0]).all()


@pytest.mark.parametrize("level", ["4g64", "32"])
def test_a_classifier_sums_its_features(level: str, make: Make) -> None:
    bundle, tokens = make(level, "classifier"), random_tokens(T, B)
    mask = np.ones((T, B), np.float32)
    mask[15:, 1] = 0
    reference = PortableSession(bundle)
    wanted, count, _ = reference.pooled(tokens, reference.initial_state(B), mask)
    session = native_session(bundle)
    found, found_count, _ = session.pooled(tokens, session.initial_state(B), mask)
    assert (found_count == count).all()
    assert np.abs(found - wanted).max() < 1e-3 * np.abs(wanted).max()
    state, total = session.initial_state(B), np.zeros_like(found)
    for begin in range(0, T, 10):
        part, _, state = session.pooled(tokens[begin : begin + 10], state, mask[begin : begin + 10])
        total += part
    assert np.abs(total - found).max() < 1e-4


def test_a_state_can_be_read_and_written(make: Make) -> None:
    session, tokens = native_session(make("4g64")), random_tokens(T, B)
    fresh = session.read_state(session.initial_state(2))
    assert fresh.shape == (7 * N_LAYER, 2, CHANNELS)
    assert (fresh[4::7] == np.float32(-1e38)).all()
    assert not fresh[[i for i in range(len(fresh)) if i % 7 != 4]].any()
    wanted, _ = all_logits(session, tokens)
    _, state = session.logits(tokens[:9], session.initial_state(B), 1)
    copy = session.initial_state(B)
    session.write_state(copy, session.read_state(state))
    assert (session.logits(tokens[9:], copy, T - 9)[0] == wanted[9:]).all()


def test_two_streams_do_not_touch_each_other(make: Make) -> None:
    session, tokens = native_session(make("4g64")), random_tokens(T, 1)
    wanted, _ = all_logits(session, tokens)
    a, b = session.initial_state(1), session.initial_state(1)
    for t in range(T):
        for which in "ab":
            state = a if which == "a" else b
            logits, state = session.logits(tokens[t : t + 1], state, 1)
            assert (logits == wanted[t]).all()
            a, b = (state, b) if which == "a" else (a, state)


def test_what_is_said_of_it(make: Make) -> None:
    with engine():
        session = open_session(make("4g64"), SessionOptions(engine="native", threads=2))
    said = session.describe()
    assert isinstance(session, NativeSession)
    assert (said["engine"], said["provider"], said["onnxruntime"]) == ("native", "native", None)
    assert (said["threads"], said["spinning"]) == (2, False)
    assert str(said["native"]).startswith("cpu ")
    with engine("portable"):
        assert native_session(make("4g64"), "portable").describe()["native"] == "cpu portable"


@pytest.mark.parametrize("wrong", [-1, VOCABULARY, 2**40])
def test_ids_beyond_the_vocabulary_are_refused(wrong: int, make: Make) -> None:
    session = native_session(make("4g64"))
    tokens = random_tokens(4, 1)
    tokens[2] = wrong
    state = session.initial_state(1)
    with pytest.raises(RuntimeFault, match=f"a token id that the vocabulary does not hold: {wrong}"):
        session.logits(tokens, state, 1)
    assert session.logits(random_tokens(4, 1), state, 1)[0].shape == (
        1,
        1,
        VOCABULARY,
    )  # nothing had been run


def test_misuse_is_one_line(make: Make) -> None:
    bundle = make("4g64")
    session, other = native_session(bundle), native_session(bundle)
    state = session.initial_state(2)
    for tokens, given, last, match in (
        (random_tokens(0, 2), state, 1, "no tokens to run"),
        (random_tokens(3, 2), state, 4, "1 to all of the tokens"),
        (random_tokens(3, 2), state, 0, "1 to all of the tokens"),
        (random_tokens(3, 1), state, 1, r"another shape than the state; found \[3, 1\]; allowed: \[T, 2\]"),
        (random_tokens(3, 2), other.initial_state(2), 1, "another session"),
    ):
        with pytest.raises(RuntimeFault, match=match) as caught:
            session.logits(tokens, given, last)
        assert caught.value.exit_code == 4
    session.logits(random_tokens(3, 2), state, 1)
    with pytest.raises(RuntimeFault, match="used up"):
        session.logits(random_tokens(3, 2), state, 1)
    with pytest.raises(RuntimeFault, match="state of another model or batch"):
        session.write_state(session.initial_state(1), np.zeros((3, 1, CHANNELS)))
    with pytest.raises(RuntimeFault, match="without streams"):
        session.initial_state(0)
    with pytest.raises(RuntimeFault, match="mask of another shape"):
        session.pooled(random_tokens(3, 1), session.initial_state(1), np.ones((2, 1), np.float32))


def test_memory_that_does_not_suffice_is_one_line(make: Make) -> None:
    session = native_session(make("4g64"))
    with pytest.raises(RuntimeFault, match="memory does not suffice") as caught:
        session.initial_state(2**31 - 1)
    assert caught.value.exit_code == 4


def test_a_bundle_without_a_table_says_so(make: Make, tmp_path: Path) -> None:
    job = make_job(make_model(), "4g64")
    bundle = exported_bundle(job, tmp_path)
    (tmp_path / "tensors.json").unlink()
    with pytest.raises(BundleError, match="says nothing of where its weights lie"):
        native_session(bundle)


def test_no_other_runtime_is_loaded(make: Make) -> None:
    """What makes the process small: only numpy beside the engine."""
    program = (
        "import json, sys\n"
        "from pathlib import Path\n"
        "from qslm_edge.bundle.reader import Bundle\n"
        "from qslm_edge.runner import processes\n"
        "from qslm_edge.runner.sessions import load_library, open_session\n"
        "from qslm_edge.runner.sessions.base import SessionOptions\n"
        "folder = Path(sys.argv[1])\n"
        "bundle = Bundle(folder, json.loads((folder / 'manifest.json').read_text()))\n"
        "options = SessionOptions(engine='native')\n"
        "load_library(options)\n"
        "open_session(bundle, options).initial_state(1)\n"
        "print(sorted({name.partition('.')[0] for name in sys.modules} & {'onnxruntime', 'onnx', 'torch'}))\n"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(LIBRARY_VARIABLE, str(library()))
        done = subprocess.run(
            [sys.executable, "-c", program, str(make("4g64").path)],
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "[]\n"
