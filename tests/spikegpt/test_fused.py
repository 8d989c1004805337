"""The GPU kernels of the recurrences against the loops.

They run on a CUDA device; without one, under Triton's interpreter where Triton is installed and TRITON_INTERPRET=1 is
set. Its exponential is numpy's, so that values are then equal up to rounding alone.
"""

from __future__ import annotations

import importlib.util
import os
from types import ModuleType

import pytest
import torch
from torch import Tensor

from qslm_edge.spikegpt import recurrence
from qslm_edge.spikegpt.recurrence import P_INIT, lif, stepwise_reason, wkv

B, C = 3, 50  # 150 lanes: two whole programs and a part


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> torch.device:
    """Where the kernels run."""
    if importlib.util.find_spec("triton") is None:
        pytest.skip("Triton is not installed; torch's CUDA builds bring it")
    if torch.cuda.is_available():
        reason = stepwise_reason(torch.device("cuda"))
        assert reason is None, reason
        return torch.device("cuda")
    if os.environ.get("TRITON_INTERPRET") != "1":
        pytest.skip("no CUDA device, and TRITON_INTERPRET=1 is not set")
    from triton import language

    from qslm_edge.spikegpt import fused

    def exponential(x: object) -> object:
        return language.exp(x)  # looked up when called: the interpreter puts its own there meanwhile

    monkeypatch.setattr(fused.libdevice, "exp", exponential)
    monkeypatch.setattr(recurrence, "_kernels", lambda *_: fused)
    return torch.device("cpu")


def draw(seed: int, steps: int, scale: float, device: torch.device) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    k, v, weight = (torch.randn(steps, B, C, generator=generator) for _ in range(3))
    decay, first = (torch.randn(C, generator=generator) for _ in range(2))
    return tuple(tensor.to(device) for tensor in (k * scale, v, decay, first, weight))


def empty(device: torch.device) -> Tensor:
    state = torch.zeros(3, B, C, device=device)
    state[2] = P_INIT
    return state


def same(mine: Tensor, loops: Tensor) -> bool:
    """To the last bit on a GPU, where both use one exponential."""
    return torch.equal(mine, loops) if mine.is_cuda else torch.allclose(mine, loops, rtol=2e-6, atol=2e-7)


def no_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*tensors: Tensor) -> ModuleType | None:
        return None

    monkeypatch.setattr(recurrence, "_kernels", none)


@pytest.mark.parametrize(("steps", "scale"), [(1, 1.0), (9, 0.1), (33, 1.0), (40, 8.0)])
def test_wkv_is_the_loops(
    device: torch.device, steps: int, scale: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    k, v, decay, first, weight = draw(steps, steps, scale, device)

    def run() -> tuple[Tensor, ...]:
        inputs = [tensor.clone().requires_grad_() for tensor in (k, v, decay, first)]
        plain_state, state = empty(device), empty(device)
        plain = wkv(k, v, decay, first, plain_state)
        y = wkv(inputs[0], inputs[1], inputs[2], inputs[3], state)
        assert y.requires_grad
        grads = torch.autograd.grad((y * weight).sum(), inputs)
        return plain, plain_state, y.detach(), state, *grads

    mine = run()
    no_kernels(monkeypatch)
    loops = run()
    for got, wanted in zip(mine[:4], loops[:4], strict=True):
        assert same(got, wanted)
    for got, wanted in zip(mine[4:], loops[4:], strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("steps", [1, 9, 33])
def test_lif_is_the_loops(device: torch.device, steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    _, v, _, _, weight = draw(7, steps, 1.0, device)
    current = 3 * v

    def run() -> tuple[Tensor, ...]:
        x, shown = current.clone().requires_grad_(), torch.empty_like(current)
        plain_membrane, shown_membrane, membrane = (torch.full((B, C), 0.3, device=device) for _ in range(3))
        plain, watched = lif(current, plain_membrane), lif(current, shown_membrane, shown)
        spikes = lif(x, membrane)
        (grad,) = torch.autograd.grad((spikes * weight).sum(), x)
        return plain, plain_membrane, watched, shown, shown_membrane, spikes.detach(), membrane, grad

    mine = run()
    no_kernels(monkeypatch)
    loops = run()
    assert 0 < float(mine[0].mean()) < 1
    for got, wanted in zip(mine[:-1], loops[:-1], strict=True):
        assert torch.equal(got, wanted)  # no exponential in it
    torch.testing.assert_close(mine[-1], loops[-1], rtol=1e-5, atol=1e-6)


def test_windows_in_pieces_are_windows_whole(device: torch.device) -> None:
    k, v, decay, first, _ = draw(3, 20, 2.0, device)
    whole_state, state = empty(device), empty(device)
    whole = wkv(k, v, decay, first, whole_state)
    parts = [wkv(k[:7], v[:7], decay, first, state), wkv(k[7:], v[7:], decay, first, state)]
    assert torch.equal(torch.cat(parts), whole)
    assert torch.equal(state, whole_state)


def test_other_devices_and_types_step_through_time() -> None:
    assert recurrence._kernels(torch.zeros(1)) is None
    assert stepwise_reason(torch.device("cpu")) == "no kernel for cpu"
