"""`qslm-edge generate`: text from a bundle, or the class of a text. Runs without torch."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qslm_edge.cli import console
from qslm_edge.cli import options as opt
from qslm_edge.cli.console import Json
from qslm_edge.errors import UsageError

if TYPE_CHECKING:
    from qslm_edge.bundle.reader import Bundle
    from qslm_edge.runner.generate import Generation, Sampling
    from qslm_edge.runner.run_settings import Asked
    from qslm_edge.runner.sessions.base import Session
    from qslm_edge.tasks.tokenizer import Tokenizer

__all__ = ["EXAMPLES", "command"]

EXAMPLES = """
[bold]Examples[/bold]

  [cyan]qslm-edge generate runs/demo/bundle --prompt "The river"[/cyan]              greedy
  [cyan]qslm-edge generate bundle --prompt "The river" --temperature 0.8 --top-k 40 --seed 7[/cyan]
  [cyan]qslm-edge generate runs/demo-sst2/bundle --prompt "a quiet triumph"[/cyan]   the class of a sentence

The text goes to stdout, figures to stderr. Exit codes: 0 done, 2 bad bundle or usage, 4 environment,
130 interrupted.
"""
SCHEMA = "qslm-edge/generate/1"
_END = "<|endoftext|>"


def command(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="Bundle directory.")],
    prompt: Annotated[
        str, typer.Option("--prompt", help="Text to go on from, or to classify.", show_default=False)
    ],
    max_tokens: Annotated[int, typer.Option("--max-tokens", min=1, help="Tokens to generate.")] = 128,
    temperature: Annotated[
        float, typer.Option("--temperature", min=0, help="0 takes the most likely token; else draws.")
    ] = 0.0,
    top_k: Annotated[
        int | None,
        typer.Option("--top-k", min=1, help="Draw from so many tokens. [dim]Default: all.[/dim]"),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of the draws.")] = 0,
    provider: opt.Provider = None,
    engine: opt.Engine = None,
    threads: opt.Threads = None,
    as_json: Json = False,
) -> None:
    """Stream text from a bundle, with its speed. A classifier's bundle gives the class of the prompt."""
    from qslm_edge.bundle.reader import open_bundle
    from qslm_edge.runner.generate import Sampling
    from qslm_edge.runner.run_settings import Asked
    from qslm_edge.tasks.tokenizer import check_vocabulary, load_tokenizer

    sampling = Sampling(temperature, top_k, seed)
    try:
        prompt.encode("utf-8")
    except UnicodeEncodeError:  # bytes of the command line that were no text
        raise UsageError("the prompt is not UTF-8", where="--prompt", found=ascii(prompt)[:60]) from None
    opened = open_bundle(bundle)
    tokenizer = load_tokenizer(opened.file("tokenizer.json"))
    check_vocabulary(tokenizer, int(opened.manifest["model"]["vocab_size"]))
    if not len(tokenizer.encode(prompt)):
        raise UsageError("the prompt is empty", where="--prompt", hint="give a word to begin with")
    begun = time.perf_counter()
    session, settings = _session(opened, Asked(provider, engine, threads))
    load_s = time.perf_counter() - begun
    common = {"schema": SCHEMA, "bundle": opened.digest, "prompt": prompt}
    after = {"load_s": load_s, "session": session.describe(), "run_settings": settings}
    if opened.kind == "classification":
        answer = _classify(session, opened, tokenizer, prompt)
        if as_json:
            console.print_json({**common, **answer, **after})
        else:
            console.print_line(f"{answer['label']} {100 * answer['probability']:.1f} %")
        return
    generated = _generate(session, tokenizer, prompt, max_tokens, sampling, opened, stream=not as_json)
    if as_json:
        console.print_json({**common, **generated, **after})
    else:
        _show_speed(generated, load_s)


def _session(bundle: Bundle, asked: Asked) -> tuple[Session, dict[str, Any]]:
    """The loaded bundle and the settings in force; a provider that stands in, and settings left out, are told."""
    from qslm_edge.bundle.reader import MANIFEST
    from qslm_edge.runner.machine import identify
    from qslm_edge.runner.memory_need import check_memory
    from qslm_edge.runner.placement import place_bundle
    from qslm_edge.runner.runtime import import_onnxruntime
    from qslm_edge.runner.sessions import open_session

    runtime = import_onnxruntime(bundle.manifest["runtime"]["onnxruntime_min"])
    placed = place_bundle(bundle, runtime, identify(), asked)
    if not placed.placement["as_planned"]:
        console.print_note(f"{placed.placement['provider']}: {placed.placement['note']}")
    if placed.in_force.note is not None:
        console.print_note(placed.in_force.note)
    options = placed.session(allow_fallback=False)
    check_memory(bundle.manifest["weights"], options.engine, bundle.file(MANIFEST))
    return open_session(bundle, options), placed.in_force.to_dict()


def _generate(
    session: Session,
    tokenizer: Tokenizer,
    prompt: str,
    max_tokens: int,
    sampling: Sampling,
    bundle: Bundle,
    *,
    stream: bool,
) -> dict[str, Any]:
    """Generate, writing the text as it comes if `stream`; an interruption ends the line first."""
    from qslm_edge.runner.generate import Generation
    from qslm_edge.tasks.tokenizer import StreamDecoder

    vocabulary = int(bundle.manifest["model"]["vocab_size"])
    run = Generation(session, sampling, min(vocabulary, tokenizer.max_id + 1))
    decoder, end = StreamDecoder(tokenizer), tokenizer.token_id(_END)
    ids: list[int] = []
    parts: list[str] = []

    def give(text: str) -> None:
        parts.append(text)
        if stream:
            console.print_part(text)

    prompt_ids = tokenizer.encode(prompt)
    stop = "length"
    try:
        for token in run.run(prompt_ids, max_tokens):
            if token == end:
                stop = "end of text"
                break
            ids.append(token)
            give(decoder.push(token))
        give(decoder.finish())
    finally:
        if stream:
            console.print_part("\n")
    return {
        "text": "".join(parts),
        "token_ids": ids,
        "stop": stop,
        "n_prompt_tokens": len(prompt_ids),
        "n_tokens": len(ids),
        "sampling": {
            "temperature": sampling.temperature,
            "top_k": sampling.top_k,
            "seed": sampling.seed if sampling.temperature else None,
        },
        **_speed(run),
    }


def _speed(run: Generation) -> dict[str, Any]:
    reason = None if run.tokens_per_s is not None else "fewer than two tokens"
    return {"first_token_s": run.first_token_s, "tokens_per_s": run.tokens_per_s, "reason": reason}


def _show_speed(generated: dict[str, Any], load_s: float) -> None:
    speed = generated["tokens_per_s"]
    console.print_note(
        f"{generated['n_tokens']} tokens, "
        + (f"{speed:.1f} tokens/s" if speed is not None else "speed not measured")
        + f"; first token after {1e3 * generated['first_token_s']:.1f} ms "
        f"({generated['n_prompt_tokens']} tokens of prompt), loading {1e3 * load_s:.0f} ms, "
        f"stopped at {generated['stop']}"
    )


def _classify(session: Session, bundle: Bundle, tokenizer: Tokenizer, prompt: str) -> dict[str, Any]:
    import numpy as np

    from qslm_edge.runner.scoring import classify

    ids = tokenizer.encode(prompt).astype(np.int64)[:, None]
    mask = np.ones(ids.shape, np.float32)
    scores = classify(session, ids, mask, bundle.classifier_weight())[0].astype(np.float64)
    weights = np.exp(scores - scores.max())
    shares = [float(share) for share in weights / weights.sum()]
    names = [str(name) for name in bundle.manifest["model"].get("labels") or []]
    labels = names if len(names) == len(shares) else [f"class {number}" for number in range(len(shares))]
    best = int(scores.argmax())
    return {
        "class": best,
        "label": labels[best],
        "probability": shares[best],
        "probabilities": dict(zip(labels, shares, strict=True)),
        "n_prompt_tokens": len(ids),
    }
