"""Write a checkpoint of the shape of SpikeGPT-216M with random weights and the published keys.

For trying load, inspect, export and verify at full size; what it says means nothing. 18 layers, 768 channels,
vocabulary 50277 (tokenizer of GPT-NeoX-20B, part of the package), 215,399,424 parameters, seeded.

    python benchmarks/make_spikegpt_216m.py spikegpt-216m.pth
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import torch
from torch import Tensor

LAYERS, CHANNELS, VOCABULARY = 18, 768, 50277
GAIN = 1.6
"""Weights this much above 1/sqrt(inputs) make every layer spike."""


def state_dict(
    layers: int, channels: int, vocabulary: int, seed: int, dtype: torch.dtype
) -> dict[str, Tensor]:
    """Random tensors with the published keys."""
    generator = torch.Generator().manual_seed(seed)
    hidden = 4 * channels

    def matrix(rows: int, columns: int) -> Tensor:
        return (torch.randn(rows, columns, generator=generator) * (GAIN / math.sqrt(columns))).to(dtype)

    def norm(name: str) -> None:
        tensors[f"{name}.weight"], tensors[f"{name}.bias"] = torch.ones(channels), torch.zeros(channels)

    tensors: dict[str, Tensor] = {"emb.weight": matrix(vocabulary, channels)}
    norm("blocks.0.ln0")
    for layer in range(layers):
        base = f"blocks.{layer}"
        norm(f"{base}.ln1")
        norm(f"{base}.ln2")
        tensors[f"{base}.att.time_decay"] = torch.linspace(-5, 1, channels)
        tensors[f"{base}.att.time_first"] = torch.full((channels,), math.log(0.3))
        for part, kinds in (("att", "kvr"), ("ffn", "kr")):
            for kind in kinds:
                mix = torch.rand(1, 1, channels, generator=generator)
                tensors[f"{base}.{part}.time_mix_{kind}"] = mix
        for name in ("key", "value", "receptance", "output"):
            tensors[f"{base}.att.{name}.weight"] = matrix(channels, channels)
        tensors[f"{base}.ffn.key.weight"] = matrix(hidden, channels)
        tensors[f"{base}.ffn.receptance.weight"] = matrix(channels, channels)
        tensors[f"{base}.ffn.value.weight"] = matrix(channels, hidden)
    norm("ln_out")
    tensors["head.weight"] = matrix(vocabulary, channels)
    return tensors


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("path", type=Path, help="where to write the .pth")
    parser.add_argument(
        "--half", action="store_true", help="store matrices as float16 (431 MB instead of 862 MB)"
    )
    parser.add_argument("--layers", type=int, default=LAYERS)
    parser.add_argument("--channels", type=int, default=CHANNELS)
    parser.add_argument("--vocabulary", type=int, default=VOCABULARY)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    dtype = torch.float16 if options.half else torch.float32
    tensors = state_dict(options.layers, options.channels, options.vocabulary, options.seed, dtype)
    torch.save(tensors, options.path)


if __name__ == "__main__":
    main()
