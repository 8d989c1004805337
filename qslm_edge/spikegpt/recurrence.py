"""The two recurrences of SpikeGPT through time: SRWKV's weighted key-value average and the LIF neuron.

Everything else in the model works on whole windows at once; only these step token by token, batched over windows.
Tensors are time-major [T, B, C], so that a step is one contiguous slice. The original (a, b, p) form with its running
maximum is kept: a re-parametrised one rounds differently and flips spikes. On a CUDA device both run as one kernel each
(fused.py) where Triton is there.
Sources: RWKV-4 (Peng et al. 2023, appendix), SpikeGPT (Zhu et al. 2023, eq. 5-9) and its published code.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from types import ModuleType

import torch
from torch import Tensor

from qslm_edge.spikegpt.gradients import lif_with_gradient, wkv_with_gradient

__all__ = ["P_INIT", "lif", "one_thread", "stepwise_reason", "wkv"]

P_INIT = -1e38
"""Start of the running maximum p: exp(p - anything) is 0."""


@contextmanager
def one_thread() -> Iterator[None]:
    """One thread for the steps: each is too small to share, and waking a second thread thousands of times costs more
    than it gives, most of all when another process has its core."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@cache
def _fused() -> ModuleType | str:
    """The kernels for CUDA, tried on one neuron; in words why not where they do not work here."""
    try:
        from qslm_edge.spikegpt import fused

        fused.lif(torch.zeros(1, 1, 1, device="cuda"), torch.zeros(1, 1, device="cuda"), None, False)
    except ImportError as error:
        return f"no Triton: {error}"
    except Exception as error:  # noqa: BLE001 - a compiler of another project: whatever it says, loops still work
        return f"Triton does not work here: {(str(error).splitlines() or [type(error).__name__])[0]}"
    return fused


def _kernels(*tensors: Tensor) -> ModuleType | None:
    """The fused kernels where they serve these tensors."""
    if any(not tensor.is_cuda or tensor.dtype != torch.float32 for tensor in tensors):
        return None
    found = _fused()
    return None if isinstance(found, str) else found


def stepwise_reason(device: torch.device) -> str | None:
    """Why recurrences step through time on this device, a dozen launches a token; None where kernels do it whole."""
    if device.type != "cuda":
        return f"no kernel for {device.type}"
    found = _fused()
    return found if isinstance(found, str) else None


@one_thread()
def wkv(k: Tensor, v: Tensor, time_decay: Tensor, time_first: Tensor, state: Tensor) -> Tensor:
    """Weighted key-value average with exponential decay.

    Args:
        k, v: [T, B, C].
        time_decay: [C]; the decay is w = -exp(time_decay).
        time_first: [C]; bonus u of the current token.
        state: [3, B, C] (a, b, p), updated in place.

    Returns:
        y [T, B, C]; with gradients where autograd asks for them (gradients.py).
    """
    learns = any(tensor.requires_grad for tensor in (k, v, time_decay, time_first))
    with_gradient = torch.is_grad_enabled() and learns
    if state.is_contiguous() and (kernels := _kernels(k, v, time_decay, time_first, state)) is not None:
        y: Tensor = kernels.wkv(k, v, -torch.exp(time_decay), time_first, state, with_gradient)
        return y
    if with_gradient:
        return wkv_with_gradient(k, v, time_decay, time_first, state)
    w = -torch.exp(time_decay)
    a, b, p = state[0], state[1], state[2]
    uk = k + time_first
    y = torch.empty_like(v)
    q, e1, e2, num, den = (torch.empty_like(a) for _ in range(5))
    for t in range(k.shape[0]):
        vt = v[t]
        torch.maximum(p, uk[t], out=q)
        torch.sub(p, q, out=e1).exp_()
        torch.sub(uk[t], q, out=e2).exp_()
        torch.mul(e1, a, out=num).addcmul_(e2, vt)
        torch.mul(e1, b, out=den).add_(e2)
        torch.div(num, den, out=y[t])
        p.add_(w)
        torch.maximum(p, k[t], out=q)
        torch.sub(p, q, out=e1).exp_()
        torch.sub(k[t], q, out=e2).exp_()
        a.mul_(e1).addcmul_(e2, vt)
        b.mul_(e1).add_(e2)
        p.copy_(q)
    return y


@one_thread()
def lif(x: Tensor, v: Tensor, potentials: Tensor | None = None) -> Tensor:
    """Leaky integrate-and-fire over tokens: h = v + (x - v)/2, s = [h >= 1], v = h (1 - s).

    Args:
        x: input current [T, B, C].
        v: membrane potential [B, C], updated in place.
        potentials: [T, B, C], receives h, the potential that is held against the threshold; None keeps none.

    Returns:
        Spikes 0/1 [T, B, C] in the type of x; with a surrogate gradient where autograd asks for one (gradients.py).
    """
    with_gradient = torch.is_grad_enabled() and x.requires_grad
    if v.is_contiguous() and (kernels := _kernels(x, v)) is not None:
        spikes: Tensor = kernels.lif(x, v, potentials, with_gradient)
        return spikes
    if with_gradient:
        return lif_with_gradient(x, v)
    out = torch.empty_like(x)
    h = torch.empty_like(v)
    for t in range(x.shape[0]):
        fired = out[t]
        if potentials is not None:
            h = potentials[t]
        torch.sub(x[t], v, out=h).mul_(0.5).add_(v)
        torch.ge(h, 1.0, out=fired)
        torch.addcmul(h, h, fired, value=-1.0, out=v)
    return out
