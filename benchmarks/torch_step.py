"""SpikeGPT in torch as a peer to be timed: the project's float model for prompts, and a step for one token.

The step is written for torch: a pure function of one layer's tensors, so that torch.compile (inductor) compiles it once
for all layers, without breaks. A test holds it against the model.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from qslm_edge.spikegpt import SpikeGPT, load_checkpoint
from qslm_edge.spikegpt.model import initial_state

__all__ = ["TorchPeer"]

MATRICES = (
    *("att.key", "att.value", "att.receptance", "att.output"),
    *("ffn.key", "ffn.receptance", "ffn.value"),
)
VECTORS = (
    *(
        "ln1.weight",
        "ln1.bias",
        "ln2.weight",
        "ln2.bias",
        "att.time_mix_k",
        "att.time_mix_v",
        "att.time_mix_r",
    ),
    *("att.time_decay", "att.time_first", "ffn.time_mix_k", "ffn.time_mix_r"),
)


def block(x: Tensor, state: Tensor, vectors: Tensor, m: list[Tensor]) -> tuple[Tensor, Tensor]:
    """One layer for one token of B streams.

    Args:
        x: [B, C].
        state: [7, B, C].
        vectors: [11, C] in the order of VECTORS, the decay already -exp(time_decay).
        m: matrices in the order of MATRICES.

    Returns:
        x and the state after the token.
    """
    c = x.shape[-1:]
    n1, o1, n2, o2, mk, mv, mr, decay, first, fk, fr = vectors.unbind()
    att_x, ffn_x, a, b, p, v1, v2 = state.unbind()
    h = F.layer_norm(x, c, n1, o1)
    k = F.linear(h * mk + att_x * (1 - mk), m[0])
    v = F.linear(h * mv + att_x * (1 - mv), m[1])
    gate = torch.sigmoid(F.linear(h * mr + att_x * (1 - mr), m[2]))
    uk = k + first
    q = torch.maximum(p, uk)
    e1, e2 = torch.exp(p - q), torch.exp(uk - q)
    y = (e1 * a + e2 * v) / (e1 * b + e2)
    q = torch.maximum(p + decay, k)
    e1, e2 = torch.exp(p + decay - q), torch.exp(k - q)
    a, b = e1 * a + e2 * v, e1 * b + e2
    u = v1 + (F.linear(gate * y, m[3]) - v1) * 0.5
    spikes = (u >= 1).to(u.dtype)
    x, v1 = x + spikes, u * (1 - spikes)
    g = F.layer_norm(x, c, n2, o2)
    hidden = torch.relu(F.linear(g * fk + ffn_x * (1 - fk), m[4])).square()
    gate = torch.sigmoid(F.linear(g * fr + ffn_x * (1 - fr), m[5]))
    u = v2 + (gate * F.linear(hidden, m[6]) - v2) * 0.5
    spikes = (u >= 1).to(u.dtype)
    return x + spikes, torch.stack((h, g, a, b, q, v1, u * (1 - spikes)))


class TorchPeer:
    """One stream through the float model.

    Args:
        model: path of a checkpoint, or the model.
        threads: of torch.
        compiled: run the step through torch.compile.
    """

    def __init__(self, model: Path | SpikeGPT, threads: int = 1, compiled: bool = False) -> None:
        torch.set_num_threads(threads)
        self.model = load_checkpoint(model, embedding=None) if isinstance(model, Path) else model
        t, self.layers = self.model.tensors, []
        for layer in range(self.model.config.n_layer):
            base = f"blocks.{layer}"
            rows = {name: t[f"{base}.{name}"].reshape(-1) for name in VECTORS}
            rows["att.time_decay"] = -torch.exp(rows["att.time_decay"])
            matrices = [t[f"{base}.{name}.weight"] for name in MATRICES]
            self.layers.append((torch.stack(list(rows.values())), matrices))
        self._block: Any = torch.compile(block, fullgraph=True, dynamic=False) if compiled else block
        self.state = initial_state(self.model.config, 1)

    @torch.inference_mode()
    def prompt(self, tokens: list[int]) -> Tensor:
        """Logits [V] after the last of many tokens."""
        features = self.model.features(torch.tensor(tokens)[:, None], self.state)
        return self.model.weights.linear("head", features[-1])[0]

    @torch.inference_mode()
    def step(self, token: int) -> Tensor:
        """Logits [V] after one token."""
        tensors = self.model.tensors
        x = tensors["emb.weight"][token][None]
        if self.model.config.embedding == "binary":
            x = (x >= 0).to(x.dtype)
        c = x.shape[-1:]
        x = F.layer_norm(x, c, tensors["blocks.0.ln0.weight"], tensors["blocks.0.ln0.bias"])
        after = []
        for state, (vectors, matrices) in zip(
            self.state.view(len(self.layers), 7, 1, -1), self.layers, strict=True
        ):
            x, new = self._block(x, state, vectors, matrices)
            after.append(new)
        self.state = torch.cat(after)
        x = F.layer_norm(x, c, tensors["ln_out.weight"], tensors["ln_out.bias"])
        return F.linear(x, tensors["head.weight"])[0]
