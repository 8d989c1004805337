"""A step of SpikeGPT in torch, written for speed on a GPU: what the native engine is measured against.

float16 matrices; state and everything between the matrices float32, which costs a compiled step nothing; no state is
copied but into its own place, so that a step can be captured in a CUDA graph.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

P_INIT = -1e38
State = list[list[Tensor]]
"""For each layer att_x, ffn_x, a, b, p, v1, v2, each [B, C]."""


class TorchModel:
    """A model on the device of its tensors.

    Args:
        embedding, head: [V, C], float16.
        matrices: for each layer, by the names of qslm.h, [rows, columns], float16.
        mixes: for each layer [5, C]: key, value, receptance of time mix, key, receptance of channel mix.
        first, decay: [C], u and w of every layer.
    """

    def __init__(
        self,
        embedding: Tensor,
        head: Tensor,
        matrices: list[dict[str, Tensor]],
        mixes: list[Tensor],
        first: Tensor,
        decay: Tensor,
    ) -> None:
        self.embedding, self.head, self.matrices = embedding, head, matrices
        self.mixes, self.first, self.decay = mixes, first, decay
        self.channels = embedding.shape[1]

    def state(self, batch: int) -> State:
        """State of streams that have seen nothing."""
        device = self.embedding.device
        zeros = [[torch.zeros(batch, self.channels, device=device) for _ in range(7)] for _ in self.matrices]
        for layer in zeros:
            layer[4].fill_(P_INIT)
        return zeros

    def forward(self, tokens: Tensor, state: State) -> Tensor:
        """Logits [B, V], float16, of one token a stream; the state is moved on in place."""

        def product(x: Tensor, weight: Tensor) -> Tensor:
            return F.linear(x.half(), weight).float()

        def norm(x: Tensor) -> Tensor:
            return F.layer_norm(x, (self.channels,))

        def spikes(current: Tensor, membrane: Tensor) -> Tensor:
            u = membrane + (current - membrane) * 0.5
            fired = u >= 1
            membrane.copy_(torch.where(fired, 0.0, u))
            return fired.float()

        x = norm(F.embedding(tokens, self.embedding).float())
        for layer, (w, mix) in enumerate(zip(self.matrices, self.mixes, strict=True)):
            att_x, ffn_x, a, b, p, v1, v2 = state[layer]
            h = norm(x)
            k, v, r = (
                product(h * mix[i] + att_x * (1 - mix[i]), w[name])
                for i, name in enumerate(("att_key", "att_value", "att_receptance"))
            )
            att_x.copy_(h)
            uk = k + self.first
            q = torch.maximum(p, uk)
            e1, e2 = torch.exp(p - q), torch.exp(uk - q)
            y = (e1 * a + e2 * v) / (e1 * b + e2)
            pw = p + self.decay
            q = torch.maximum(pw, k)
            e1, e2 = torch.exp(pw - q), torch.exp(k - q)
            a.copy_(e1 * a + e2 * v)
            b.copy_(e1 * b + e2)
            p.copy_(q)
            x = x + spikes(product(torch.sigmoid(r) * y, w["att_output"]), v1)
            h = norm(x)
            hidden = product(h * mix[3] + ffn_x * (1 - mix[3]), w["ffn_key"])
            gate = torch.sigmoid(product(h * mix[4] + ffn_x * (1 - mix[4]), w["ffn_receptance"]))
            ffn_x.copy_(h)
            x = x + spikes(gate * product(torch.relu(hidden).square(), w["ffn_value"]), v2)
        return F.linear(norm(x).half(), self.head)


def captured(forward: Callable[[Tensor, State], Tensor], tokens: Tensor, state: State) -> Callable[[], None]:
    """The step as a CUDA graph, after a warm-up on a stream of its own as torch asks for."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            forward(tokens, state)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        forward(tokens, state)
    return graph.replay
