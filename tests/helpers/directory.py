"""A tiny model directory as users have it, with config.json, weights and tokenizer; and texts for it."""

from __future__ import annotations

import json
import random
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from tests.helpers.tiny import CHANNELS, HIDDEN, make_model

__all__ = ["N_LAYER", "make_text", "make_tokenizer", "write_model", "write_sentences"]

N_LAYER, CTX_LEN, MAX_VOCABULARY = 2, 32, 300
_TEXT = (
    "the river runs down to the old mill and a small boat waits where the water is slow and green "
    "under the trees while birds sing of rain and the wind turns over leaves before the long night"
)


def make_text(n_words: int, seed: int = 0) -> str:
    """Lines of words from a short list, equal for equal arguments."""
    draw = random.Random(seed)
    words = [draw.choice(_TEXT.split()) for _ in range(n_words)]
    return "".join(" ".join(words[i : i + 12]) + " .\n" for i in range(0, n_words, 12))


def make_tokenizer() -> Tokenizer:
    """A byte-level BPE tokenizer of at most 300 entries; id 0 is the end of a text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=MAX_VOCABULARY,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([make_text(400, seed=9)], trainer)
    return tokenizer


def write_model(folder: Path, *, heads: tuple[str, ...] = ("lm", "classifier"), seed: int = 0) -> Path:
    """Write a random SpikeGPT of 2 layers and 64 channels with its tokenizer.

    Args:
        folder: made if it is not there.
        heads: "lm", "classifier" or both.
        seed: of the weights.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = make_tokenizer()
    vocabulary = tokenizer.get_vocab_size()
    draw = torch.Generator().manual_seed(seed + 1)
    tensors = dict(make_model(n_layer=N_LAYER, seed=seed).tensors)
    tensors["emb.weight"] = torch.randn(vocabulary, CHANNELS, generator=draw)
    # small logits: perplexity then moves by tenths when a spike flips, and a limit of 1 parts the levels
    tensors["head.weight"] = torch.randn(vocabulary, CHANNELS, generator=draw) * 0.2 * CHANNELS**-0.5
    if "lm" not in heads:
        del tensors["head.weight"]
    if "classifier" not in heads:
        del tensors["classifier.weight"]
    config = {
        "model_type": "spikegpt",
        "n_layer": N_LAYER,
        "n_embd": CHANNELS,
        "ffn_dim": HIDDEN,
        "vocab_size": vocabulary,
        "ctx_len": CTX_LEN,
        "embedding": "dense",
        "heads": list(heads),
        "num_labels": 2,
        "id2label": {"0": "negative", "1": "positive"},
    }
    (folder / "config.json").write_text(json.dumps(config, indent=1), "utf-8")
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, folder / "model.safetensors")
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def write_sentences(path: Path, n_sentences: int, seed: int = 0) -> Path:
    """Write labelled sentences, half of them 1, as SST-2 has them."""
    lines = ["sentence\tlabel"]
    for number in range(n_sentences):
        words = make_text(8, seed=1000 * seed + number).replace(" .\n", "")
        lines.append(f"{words}\t{number % 2}")
    path.write_text("\n".join(lines) + "\n", "utf-8")
    return path
