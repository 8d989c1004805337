"""``qslm-edge generate``: text, its determinism and its figures; the class of a sentence; what is refused."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import Result

from qslm_edge.bundle.reader import open_bundle
from qslm_edge.errors import RuntimeFault
from qslm_edge.runner.generate import Generation, Sampling, choose_token
from qslm_edge.runner.sessions.base import PREFILL_CHUNK
from qslm_edge.runner.sessions.portable import PortableSession
from qslm_edge.tasks.tokenizer import load_tokenizer

Invoke = Callable[..., Result]


def generated(run: Invoke, bundle: Path, *words: str) -> dict[str, Any]:
    result = run("generate", bundle, *words, "--json")
    assert result.exit_code == 0, result.stderr
    data: dict[str, Any] = json.loads(result.stdout)
    return data


def test_text_goes_to_stdout_and_figures_to_stderr(run: Invoke, bundle: Path) -> None:
    result = run("generate", bundle, "--prompt", "the river", "--max-tokens", "12")
    assert result.exit_code == 0
    assert result.stdout.endswith("\n")
    assert "12 tokens, " in result.stderr
    assert "tokens/s; first token after " in result.stderr
    assert "stopped at length" in result.stderr
    told = generated(run, bundle, "--prompt", "the river", "--max-tokens", "12")
    written = "".join(
        mark if mark.isprintable() or mark in "\n\t" else ascii(mark)[1:-1] for mark in told["text"]
    )
    assert result.stdout == written + "\n"
    assert told["schema"] == "qslm-edge/generate/1"
    assert (told["n_tokens"], told["stop"], told["reason"]) == (12, "length", None)
    assert told["bundle"] == open_bundle(bundle).digest
    assert load_tokenizer(bundle / "tokenizer.json").decode(told["token_ids"]) == told["text"]


def test_greedy_is_the_most_likely_token_of_the_whole_text(run: Invoke, bundle: Path) -> None:
    """Fed at once without a carried state, the text gives the same choices."""
    prompt = "the river runs down to the old mill"
    told = generated(run, bundle, "--prompt", prompt, "--max-tokens", "6")
    session, tokenizer = PortableSession(open_bundle(bundle)), load_tokenizer(bundle / "tokenizer.json")
    ids = tokenizer.encode(prompt).tolist()
    for token in told["token_ids"]:
        logits, _ = session.logits(np.array(ids, np.int64)[:, None], session.initial_state(1), 1)
        assert logits[0, 0].argmax() == token
        ids.append(token)


def test_a_long_prompt_runs_in_chunks(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lengths: list[int] = []
    logits = PortableSession.logits

    def counted(self: PortableSession, tokens: Any, state: Any, last: int) -> Any:
        lengths.append(len(tokens))
        assert last == 1
        return logits(self, tokens, state, last)

    monkeypatch.setattr(PortableSession, "logits", counted)
    session = PortableSession(open_bundle(bundle))
    prompt = np.arange(2 * PREFILL_CHUNK + 5) % 200
    assert len(list(Generation(session, Sampling(), 250).run(prompt, 3))) == 3
    assert lengths == [PREFILL_CHUNK, PREFILL_CHUNK, 5, 1, 1]


def test_equal_seeds_give_equal_text(run: Invoke, bundle: Path) -> None:
    words = ["--prompt", "the river", "--max-tokens", "24", "--temperature", "1.5", "--top-k", "40"]
    texts = [generated(run, bundle, *words, "--seed", seed)["token_ids"] for seed in ("7", "7", "8")]
    assert texts[0] == texts[1]
    assert texts[0] != texts[2]


def test_a_single_token_has_no_speed(run: Invoke, bundle: Path) -> None:
    told = generated(run, bundle, "--prompt", "the", "--max-tokens", "1")
    assert (told["tokens_per_s"], told["reason"]) == (None, "fewer than two tokens")
    assert told["first_token_s"] > 0


def test_the_end_of_a_text_ends_it(run: Invoke, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = iter([5, 6, 0, 7])
    monkeypatch.setattr("qslm_edge.runner.generate.choose_token", lambda *_: next(chosen))
    told = generated(run, bundle, "--prompt", "the", "--max-tokens", "9")
    assert (told["token_ids"], told["stop"]) == ([5, 6], "end of text")


def test_control_marks_of_a_model_do_not_reach_the_terminal(
    run: Invoke, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = load_tokenizer(bundle / "tokenizer.json").encode("\x1b[31m\n").tolist()
    chosen = iter(ids)
    monkeypatch.setattr("qslm_edge.runner.generate.choose_token", lambda *_: next(chosen))
    result = run("generate", bundle, "--prompt", "the", "--max-tokens", str(len(ids)))
    assert result.stdout == "\\x1b[31m\n\n"


def test_a_classifier_names_the_class(run: Invoke, classifier: Path) -> None:
    told = generated(run, classifier, "--prompt", "the small boat waits")
    assert told["probabilities"].keys() == {"negative", "positive"}
    assert sum(told["probabilities"].values()) == pytest.approx(1)
    assert told["label"] == max(told["probabilities"], key=told["probabilities"].get)
    result = run("generate", classifier, "--prompt", "the small boat waits")
    assert result.stdout == f"{told['label']} {100 * told['probability']:.1f} %\n"


def test_it_runs_without_torch_and_onnx(root: Path, bundle: Path) -> None:
    code = (
        "import sys\nfor name in ('torch', 'onnx', 'filelock', 'tomli_w', 'platformdirs'):\n"
        "    sys.modules[name] = None\n"
        "sys.argv = ['qslm-edge', *sys.argv[1:]]\n"
        "from qslm_edge.cli.app import main\nmain()"
    )
    command = [sys.executable, "-c", code, "generate", str(bundle), "--prompt", "the", "--max-tokens", "3"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert "3 tokens, " in done.stderr


PAUSE = """
import sys, time
from qslm_edge.cli import generate, console

give, count = console.print_part, [0]

def paused(text):
    give(text)
    count[0] += 1
    if count[0] == 4:
        print("here", file=sys.stderr, flush=True)
        time.sleep(600)

console.print_part = paused
from qslm_edge.cli.app import main
sys.argv[0] = "qslm-edge"
main()
"""


def test_ctrl_c_ends_the_line_and_is_130(root: Path, bundle: Path) -> None:
    words = ["generate", str(bundle), "--prompt", "the", "--max-tokens", "100"]
    with subprocess.Popen(
        [sys.executable, "-c", PAUSE, *words],
        env={**os.environ, "PYTHONPATH": str(root)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr is not None
        assert process.stderr.readline() == "here\n"
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (130, "interrupted: stopped by the keyboard\n")
    assert out.endswith("\n")


# what is refused


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--prompt", ""], "--prompt: the prompt is empty. Give a word to begin with"),
        (["--prompt", "the \udcff"], r"--prompt: the prompt is not UTF-8; found 'the \udcff'"),
        (["--prompt", "a", "--max-tokens", "0"], "invalid value for '--max-tokens'"),
        (["--prompt", "a", "--temperature", "inf"], "--temperature: impossible temperature; found inf"),
        (["--prompt", "a", "--top-k", "5"], "--top-k: the cut needs a draw of one token or more"),
        (["--prompt", "a", "--provider", "Abacus"], "--provider: unknown execution provider"),
        ([], "missing option '--prompt'"),
    ],
)
def test_bad_flags_are_one_line_and_2(run: Invoke, bundle: Path, words: list[str], says: str) -> None:
    result = run("generate", bundle, *words)
    assert (result.exit_code, result.stdout) == (2, "")
    assert says in result.stderr
    assert result.stderr.count("\n") == 1


def test_a_bad_bundle_is_2(run: Invoke, bundle: Path, tmp_path: Path) -> None:
    assert run("generate", tmp_path, "--prompt", "a").exit_code == 2
    copied = shutil.copytree(bundle, tmp_path / "bundle")
    (copied / "tokenizer.json").write_text("{}", "utf-8")
    result = run("generate", copied, "--prompt", "a", "--json")
    assert result.exit_code == 2
    assert "tokenizer.json: tampered or damaged bundle" in json.loads(result.stdout)["error"]["message"]


# choosing a token

logit_rows = st.lists(st.floats(-50, 50, width=32), min_size=1, max_size=40).map(
    lambda values: np.array(values, np.float32)
)


@given(logit_rows, st.floats(0.05, 5), st.integers(1, 50), st.integers(0, 2**32))
def test_a_draw_is_one_of_the_k_most_likely(
    logits: np.ndarray[Any, np.dtype[np.float32]], temperature: float, top_k: int, seed: int
) -> None:
    token = choose_token(logits, Sampling(temperature, top_k), np.random.default_rng(seed))
    assert 0 <= token < len(logits)
    assert (logits > logits[token]).sum() < top_k


def test_draws_follow_the_softmax() -> None:
    logits = np.array([0.0, 1.0, -1.0, 2.0], np.float32)
    draw, sampling = np.random.default_rng(3), Sampling(2.0)
    counts = np.bincount([choose_token(logits, sampling, draw) for _ in range(4000)], minlength=4)
    shares = np.exp(logits / 2) / np.exp(logits / 2).sum()
    errors = np.sqrt(shares * (1 - shares) / 4000)
    assert (np.abs(counts / 4000 - shares) < 4 * errors).all()


def test_greedy_takes_the_largest_and_draws_nothing() -> None:
    draw = np.random.default_rng(0)
    assert choose_token(np.array([0.0, 3.0, 3.0], np.float32), Sampling(), draw) == 1
    assert draw.random() == np.random.default_rng(0).random()


def test_values_that_are_not_finite_are_a_fault() -> None:
    with pytest.raises(RuntimeFault, match="not finite"):
        choose_token(np.array([0.0, np.nan], np.float32), Sampling(), np.random.default_rng(0))
