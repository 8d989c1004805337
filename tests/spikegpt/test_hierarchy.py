"""The hierarchy: which matrices stand in which block, and that every parameter is counted once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from torch import Tensor

from qslm_edge import reference
from qslm_edge.errors import UsageError
from qslm_edge.spikegpt import SpikeGPTConfig, build_hierarchy, load_checkpoint

SPIKEGPT_216M = SpikeGPTConfig(18, 768, 3072, 50277, "dense", 1024)


def test_spikegpt_216m_has_its_published_size() -> None:
    hierarchy = build_hierarchy(SPIKEGPT_216M, "lm")
    assert hierarchy.n_params == 215_399_424
    assert hierarchy.float32_bytes == 861_597_696
    assert hierarchy.n_layer == 18
    block = hierarchy.blocks[7]
    assert sum(module.n_params for module in block.modules) == 7_667_712 == 5 * 768**2 + 2 * 768 * 3072
    assert block.n_float_params == 8_448 == 11 * 768


def test_the_reference_model_has_7_23_million_parameters() -> None:
    model = load_checkpoint(reference.model_path())
    lm, classifier = (build_hierarchy(model.config, head) for head in ("lm", "classifier"))
    every = sum(tensor.numel() for tensor in model.tensors.values())
    assert round(every / 1e6, 2) == 7.23
    assert lm.n_params == every - 2 * 256
    assert classifier.n_params == every - 4096 * 256


def test_modules_come_in_order_of_computation() -> None:
    hierarchy = build_hierarchy(SpikeGPTConfig(2, 32, 64, 11, "dense"), "lm")
    assert [block.name for block in hierarchy.blocks] == ["input", "attention.0", "attention.1", "output"]
    assert [block.index for block in hierarchy.blocks] == [0, 1, 2, 3]
    parts = ["att.key", "att.value", "att.receptance", "att.output", "ffn.key", "ffn.receptance", "ffn.value"]
    expected = ["emb", *(f"blocks.{i}.{part}" for i in range(2) for part in parts), "head"]
    assert [module.name for module in hierarchy.modules] == expected
    assert [module.block for module in hierarchy.modules] == [0] + [1] * 7 + [2] * 7 + [3]
    assert [m.kind for m in hierarchy.modules] == ["embedding"] + ["linear"] * 15
    shapes = {module.name: (module.rows, module.columns) for module in hierarchy.modules}
    assert shapes["emb"] == shapes["head"] == (11, 32)
    assert shapes["blocks.1.ffn.key"] == (64, 32)
    assert shapes["blocks.1.ffn.value"] == (32, 64)
    assert shapes["blocks.1.att.output"] == (32, 32)


@pytest.mark.parametrize("labels", [None, 3])
def test_every_tensor_of_a_state_dict_is_counted_once(
    make_tensors: Callable[..., dict[str, Tensor]], labels: int | None
) -> None:
    tensors = make_tensors(n_layer=3, c=32, f=96, vocab=7, labels=labels)
    config = SpikeGPTConfig(3, 32, 96, 7, "dense", num_labels=labels)
    hierarchy = build_hierarchy(config, "lm" if labels is None else "classifier")
    keys = [m.key for m in hierarchy.modules] + [k for b in hierarchy.blocks for k, _ in b.float_tensors]
    left_out = {"head.weight"} if labels else set()
    assert sorted(keys) == sorted(tensors.keys() - left_out)
    for block in hierarchy.blocks:
        assert block.n_float_params == sum(tensors[key].numel() for key, _ in block.float_tensors)
        assert [tuple(tensors[key].shape) for key, _ in block.float_tensors] == [
            shape for _, shape in block.float_tensors
        ]
    assert hierarchy.n_params == sum(t.numel() for key, t in tensors.items() if key not in left_out)
    assert hierarchy.n_params == sum(block.n_params for block in hierarchy.blocks)


def test_a_classifier_ships_no_language_model_head() -> None:
    config = SpikeGPTConfig(1, 32, 64, 11, "dense", num_labels=2)
    output = build_hierarchy(config, "classifier").blocks[-1]
    assert output.modules == ()
    assert dict(output.float_tensors)["classifier.weight"] == (2, 32)
    assert "classifier.weight" not in dict(build_hierarchy(config, "lm").blocks[-1].float_tensors)


def test_a_missing_head_is_said_with_the_task_that_works() -> None:
    with pytest.raises(UsageError, match="no classifier head.*wikitext2"):
        build_hierarchy(SpikeGPTConfig(1, 32, 64, 11, "dense"), "classifier")
    config = SpikeGPTConfig(1, 32, 64, 11, "dense", num_labels=2, has_lm_head=False)
    with pytest.raises(UsageError, match="no language-model head.*sst2"):
        build_hierarchy(config, "lm")


def test_the_golden_model_is_whole(golden: Path) -> None:
    model = load_checkpoint(golden / "small_plain.pth", "dense")
    hierarchy = build_hierarchy(model.config, "lm")
    assert hierarchy.n_params == sum(t.numel() for t in model.tensors.values())
    assert hierarchy.n_layer == 3
