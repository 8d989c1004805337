"""The hierarchy that the search walks: input block, attention blocks, output block, and the modules inside.

As QSLM draws it: input = embedding and ln0; attention block i = SRWKV (key, value, receptance, output) and SRFFN (key,
receptance, value); output = ln_out with the head in use. Matrices are modules and can be quantised; 1-D tensors (0.07 %
of SpikeGPT-216M) and the tiny classifier matrix stay float32 and are counted as such.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

from qslm_edge.errors import UsageError
from qslm_edge.spikegpt.config import SpikeGPTConfig

__all__ = ["Block", "Head", "Hierarchy", "Module", "build_hierarchy"]

Head = Literal["lm", "classifier"]
ATT, FFN = ("key", "value", "receptance", "output"), ("key", "receptance", "value")


@dataclass(frozen=True)
class Module:
    """A matrix [rows, columns] that can be quantised along its columns.

    Attributes:
        scale_bits: width in which the scales of its groups are stored. 16 where float16 holds each of them exactly.
        hidden: the side that is made of hidden units of the SRFFN: rows of ffn.key, columns of ffn.value.
    """

    name: str
    block: int
    kind: Literal["embedding", "linear"]
    rows: int
    columns: int
    scale_bits: Literal[16, 32] = 32
    hidden: Literal["rows", "columns"] | None = None

    @property
    def key(self) -> str:
        """Key of the tensor in a state dict."""
        return f"{self.name}.weight"

    @property
    def n_params(self) -> int:
        return self.rows * self.columns

    @property
    def n_hidden(self) -> int | None:
        """Hidden units of its SRFFN; None where it has no side of them."""
        return None if self.hidden is None else self.rows if self.hidden == "rows" else self.columns

    def with_hidden(self, n_units: int | None) -> Module:
        """The same matrix with only some hidden units left; None, or a matrix without such a side: as it is."""
        if n_units is None or self.hidden is None:
            return self
        return replace(self, rows=n_units) if self.hidden == "rows" else replace(self, columns=n_units)


@dataclass(frozen=True)
class Block:
    """A block of the hierarchy with its modules and the tensors that stay float32."""

    name: str
    index: int
    modules: tuple[Module, ...]
    float_tensors: tuple[tuple[str, tuple[int, ...]], ...]

    @property
    def n_float_params(self) -> int:
        total = 0
        for _, shape in self.float_tensors:
            count = 1
            for size in shape:
                count *= size
            total += count
        return total

    @property
    def n_params(self) -> int:
        return self.n_float_params + sum(module.n_params for module in self.modules)


@dataclass(frozen=True)
class Hierarchy:
    """All blocks of a model with one head, in the order of computation."""

    blocks: tuple[Block, ...]
    head: Head

    @property
    def modules(self) -> tuple[Module, ...]:
        return tuple(self._modules())

    def _modules(self) -> Iterator[Module]:
        for block in self.blocks:
            yield from block.modules

    @property
    def n_params(self) -> int:
        return sum(block.n_params for block in self.blocks)

    @property
    def float32_bytes(self) -> int:
        """Weights of the float32 model of this task: what reductions are measured against."""
        return 4 * self.n_params

    @property
    def n_layer(self) -> int:
        return len(self.blocks) - 2


def _attention_block(layer: int, c: int, f: int) -> Block:
    base = f"blocks.{layer}"
    made = {
        "ffn.key": Module(f"{base}.ffn.key", layer + 1, "linear", f, c, hidden="rows"),
        "ffn.value": Module(f"{base}.ffn.value", layer + 1, "linear", c, f, hidden="columns"),
    }
    names = [f"att.{m}" for m in ATT] + [f"ffn.{m}" for m in FFN]
    modules = tuple(made.get(n) or Module(f"{base}.{n}", layer + 1, "linear", c, c) for n in names)
    vectors: list[tuple[str, tuple[int, ...]]] = [
        (f"{base}.{norm}.{part}", (c,)) for norm in ("ln1", "ln2") for part in ("weight", "bias")
    ]
    vectors += [(f"{base}.att.{n}", (c,)) for n in ("time_decay", "time_first")]
    vectors += [(f"{base}.att.time_mix_{n}", (1, 1, c)) for n in "kvr"]
    vectors += [(f"{base}.ffn.time_mix_{n}", (1, 1, c)) for n in "kr"]
    return Block(f"attention.{layer}", layer + 1, modules, tuple(vectors))


def build_hierarchy(config: SpikeGPTConfig, head: Head) -> Hierarchy:
    """Blocks and modules of a SpikeGPT with one head; the other head belongs to another deployment.

    Raises:
        UsageError: when the model does not have that head.
    """
    c, f, v = config.n_embd, config.ffn_dim, config.vocab_size
    norm = [("blocks.0.ln0.weight", (c,)), ("blocks.0.ln0.bias", (c,))]
    blocks = [Block("input", 0, (Module("emb", 0, "embedding", v, c),), tuple(norm))]
    blocks += [_attention_block(i, c, f) for i in range(config.n_layer)]
    out: list[tuple[str, tuple[int, ...]]] = [("ln_out.weight", (c,)), ("ln_out.bias", (c,))]
    last = config.n_layer + 1
    if head == "lm":
        if not config.has_lm_head:
            raise UsageError("the model has no language-model head (head.weight)", hint="use --task sst2")
        blocks.append(Block("output", last, (Module("head", last, "linear", v, c),), tuple(out)))
    else:
        if config.num_labels is None:
            raise UsageError(
                "the model has no classifier head (classifier.weight)", hint="use --task wikitext2"
            )
        blocks.append(Block("output", last, (), (*out, ("classifier.weight", (config.num_labels, c)))))
    return Hierarchy(tuple(blocks), head)
