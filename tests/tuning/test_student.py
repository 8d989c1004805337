"""The student is the quantised model: same code, same values, before and after tuning."""

from __future__ import annotations

import pytest
import torch

from qslm_edge.quantize.levels import Setting, parse_level
from qslm_edge.quantize.weights import QuantisedWeights, WeightStore
from qslm_edge.search.space import LevelMap
from qslm_edge.tuning.student import Student, features

TOKENS = torch.arange(24).view(12, 2) * 7 % 211


def setting(store: WeightStore, level: str) -> Setting:
    return LevelMap(store.model.config).setting(store.hierarchy, parse_level(level))


@pytest.mark.parametrize("level", ["2g64", "4g32", "8g64", "4g64f", "16", "32"])
def test_an_untuned_student_is_the_quantised_model(store: WeightStore, level: str) -> None:
    chosen = setting(store, level)
    student = Student(store, chosen)
    student.refresh()
    mine = features(student, store, TOKENS)
    with torch.no_grad():
        theirs = features(QuantisedWeights(store, chosen), store, TOKENS)
    assert torch.equal(mine, theirs)
    assert mine.requires_grad


@pytest.mark.parametrize("level", ["2g64@64", "4g32@96", "16@128", "32@32"])
def test_a_student_is_built_from_the_cut_model(cut_store: WeightStore, level: str) -> None:
    chosen = setting(cut_store, level)
    student = Student(cut_store, chosen)
    student.refresh()
    mine = features(student, cut_store, TOKENS)
    with torch.no_grad():
        theirs = features(QuantisedWeights(cut_store, chosen), cut_store, TOKENS)
    assert torch.equal(mine, theirs)
    made = {name: torch.from_numpy(matrix.dequantise()) for name, matrix in student.packed().items()}
    made |= {key.removesuffix(".weight"): tensor for key, tensor in student.tensors().items()}
    units = parse_level(level).units
    assert (made["blocks.1.ffn.key"].shape, made["blocks.1.ffn.value"].shape) == ((units, 64), (64, units))


def test_a_binary_embedding_stays_its_signs(binary_store: WeightStore) -> None:
    student = Student(binary_store, setting(binary_store, "2g64"))
    assert "emb.weight" not in dict(student.parameters())
    student.refresh()
    rows = student.embedding(TOKENS % binary_store.model.config.vocab_size)
    assert set(rows.flatten().tolist()) <= {0.0, 1.0}


def test_every_other_tensor_is_tuned(store: WeightStore) -> None:
    student = Student(store, setting(store, "2g64"))
    names = dict(student.parameters())
    matrices = {module.name for module in store.hierarchy.modules}
    vectors = {key for block in store.hierarchy.blocks for key, _ in block.float_tensors}
    grids = {f"2g64s{bits}.{part}" for bits in (16, 32) for part in ("latent", "log_scale")}
    assert set(names) - grids == vectors
    on_grids = [start.module.name for grid in student.grids.values() for start in grid.starts]
    assert sorted(on_grids) == sorted(matrices)
    weights = sum(tensor.numel() for name, tensor in names.items() if name.endswith("latent"))
    assert weights == sum(module.n_params for module in store.hierarchy.modules)


def test_gradients_reach_every_parameter(store: WeightStore) -> None:
    student = Student(store, setting(store, "2g64"))
    student.refresh()
    x = student.linear("head", features(student, store, TOKENS))
    (x * torch.linspace(-1, 1, x.shape[-1])).sum().backward()  # type: ignore[no-untyped-call]
    student.collect()
    for name, tensor in student.parameters():
        assert tensor.grad is not None, name
        assert torch.isfinite(tensor.grad).all(), name
        assert tensor.grad.any(), name


def test_gradients_of_two_parts_add_up(store: WeightStore) -> None:
    def gradient(parts: list[torch.Tensor]) -> torch.Tensor:
        student = Student(store, setting(store, "4g32"))
        student.refresh()
        for part in parts:
            features(student, store, part).square().sum().backward()  # type: ignore[no-untyped-call]
        student.collect()
        (grid,) = student.grids.values()
        found = grid.latent.grad
        assert found is not None
        return found

    torch.testing.assert_close(gradient([TOKENS]), gradient([TOKENS[:, :1], TOKENS[:, 1:]]))
