"""Bytes of a setting, and the predicted peak against measurements of SpikeGPT-216M."""

from __future__ import annotations

import pytest

from qslm_edge.quantize.accounting import (
    BARE_PROCESS_BYTES,
    block_bytes,
    matrix_bytes,
    predict_memory,
    predict_peak_rss_bytes,
    weight_bytes,
)
from qslm_edge.quantize.levels import FLOAT16, FLOAT32, Level, Setting, parse_level
from qslm_edge.quantize.packed import pack_matrix
from qslm_edge.spikegpt import Hierarchy, SpikeGPT, SpikeGPTConfig, build_hierarchy

MIB = 2**20
LARGE = build_hierarchy(SpikeGPTConfig(18, 768, 3072, 50277, "dense", num_labels=2), "lm")


def uniform(hierarchy: Hierarchy, text: str, **others: str) -> Setting:
    setting = Setting.uniform((m.name for m in hierarchy.modules), parse_level(text))
    return setting.with_levels({name: parse_level(level) for name, level in others.items()})


def mixed() -> Setting:
    """8 bits for embedding, head, att.output and ffn.receptance, 2 for ffn.key, 4 for the rest."""
    levels: dict[str, str] = {}
    for module in LARGE.modules:
        part = module.name.split(".", 2)[-1]
        if part in ("emb", "head", "att.output", "ffn.receptance"):
            levels[module.name] = "8g64"
        else:
            levels[module.name] = "2g64" if part == "ffn.key" else "4g64"
    return Setting.from_dict(levels)


# MiB above the bare process: measured on ONNX Runtime 1.31.1, x86-64, 216M step graph.
MEASURED = [
    (uniform(LARGE, "32"), 830, 10),
    (uniform(LARGE, "8g64"), 256, 3),
    (mixed(), 190, 3),
    (uniform(LARGE, "4g64"), 153, 3),
    (uniform(LARGE, "4g128"), 136, 3),
    (uniform(LARGE, "4g32f"), 128, 3),
    (uniform(LARGE, "2g64", emb="4g64"), 99, 3),
    (uniform(LARGE, "2g128", emb="4g128"), 97, 3),
]


@pytest.mark.parametrize(("setting", "measured", "error"), MEASURED)
def test_predicted_peaks_fit_the_measured_ones(setting: Setting, measured: float, error: float) -> None:
    predicted = (predict_peak_rss_bytes(LARGE, setting) - BARE_PROCESS_BYTES) / MIB
    assert predicted == pytest.approx(measured, abs=error)


def test_without_a_large_head_the_running_step_is_the_peak() -> None:
    hierarchy = build_hierarchy(SpikeGPTConfig(18, 768, 3072, 50277, "dense", num_labels=2), "classifier")
    fast, exact = (
        (predict_peak_rss_bytes(hierarchy, uniform(hierarchy, text)) - BARE_PROCESS_BYTES) / MIB
        for text in ("4g64", "4g32f")
    )
    weights = 18 * 7_667_712 / MIB
    assert fast == pytest.approx(18 + 5 + weights * (0.5 + 12 / 64), abs=0.1)
    # float activations: no prepacked scales, but the mapped ones are read
    assert exact == pytest.approx(18 + 5 + weights * (0.5 + 4 / 32), abs=0.1)


def test_the_embedding_stays_in_the_file() -> None:
    peaks = {predict_peak_rss_bytes(LARGE, uniform(LARGE, "4g64", emb=e)) for e in ("32", "16", "2g64")}
    assert len(peaks) == 1


def test_float16_saves_disk_and_not_memory() -> None:
    single, half = uniform(LARGE, "32"), uniform(LARGE, "16")
    assert weight_bytes(LARGE, half) < 0.51 * weight_bytes(LARGE, single)
    assert predict_peak_rss_bytes(LARGE, half) > predict_peak_rss_bytes(LARGE, single)
    linear = sum(m.n_params for m in LARGE.modules if m.kind == "linear")
    largest = 4 * 50277 * 768
    resident = predict_peak_rss_bytes(LARGE, half) - BARE_PROCESS_BYTES - 18 * MIB - largest
    assert 2.1 <= resident / (2 * linear) <= 2.25  # of the file, as measured


@pytest.mark.parametrize("text", ["32", "16", "8g32", "8g64", "4g32", "4g64", "4g64f", "2g32", "2g64"])
def test_weights_are_counted_to_the_byte(
    golden_model: SpikeGPT, golden_hierarchy: Hierarchy, text: str
) -> None:
    level = parse_level(text)
    setting = uniform(golden_hierarchy, text)
    expected = 0
    for block in golden_hierarchy.blocks:
        stored = sum(pack_matrix(m, golden_model.tensors[m.key].numpy(), level).nbytes for m in block.modules)
        floats = sum(golden_model.tensors[key].nbytes for key, _ in block.float_tensors)
        assert block_bytes(block, setting) == stored + floats
        expected += stored + floats
    assert weight_bytes(golden_hierarchy, setting) == expected
    if text == "32":
        assert expected == golden_hierarchy.float32_bytes


def test_simulated_levels_count_as_the_paper_does() -> None:
    for bits in (16, 14, 10, 6, 4):
        level = Level(bits, simulated=True)
        matrices = sum(matrix_bytes(module, level) for module in LARGE.modules)
        assert matrices == sum(module.n_params for module in LARGE.modules) * bits // 8
    module = LARGE.modules[0]
    assert matrix_bytes(module, Level(8, simulated=True)) < matrix_bytes(module, Level(8, 128, 4))


def test_lower_levels_weigh_less() -> None:
    texts = ["32", "16", "8g32", "8g64", "8g128", "4g32", "4g64", "4g128", "2g32", "2g64", "2g128"]
    sizes = [weight_bytes(LARGE, uniform(LARGE, text)) for text in texts]
    assert sizes == sorted(sizes, reverse=True)
    assert len(set(sizes)) == len(sizes)


def test_published_reductions_of_the_reference() -> None:
    reference = build_hierarchy(SpikeGPTConfig(6, 256, 1024, 4096, "dense"), "lm")
    reductions = {"4g32": 83.8, "4g64": 85.5, "4g128": 86.4, "2g64": 91.8, "2g128": 92.7}
    for text, percent in reductions.items():
        share = 1 - weight_bytes(reference, uniform(reference, text)) / reference.float32_bytes
        assert 100 * share == pytest.approx(percent, abs=0.1)


def test_float_levels_are_what_their_name_says() -> None:
    module = LARGE.modules[0]
    assert matrix_bytes(module, FLOAT32) == 4 * 50277 * 768
    assert matrix_bytes(module, FLOAT16) == 2 * 50277 * 768


@pytest.mark.parametrize("text", ["32", "16", "8g64", "4g32f", "2g128"])
def test_the_peak_is_that_of_its_parts(text: str) -> None:
    memory = predict_memory(LARGE, uniform(LARGE, text))
    assert memory.after_load_bytes == memory.bare_bytes + memory.matrices_bytes + memory.session_bytes
    assert memory.load_peak_bytes == memory.after_load_bytes + memory.loading_bytes
    assert memory.steady_bytes == memory.after_load_bytes + memory.running_bytes
    assert memory.peak_bytes == max(memory.load_peak_bytes, memory.steady_bytes)
    assert memory.peak_bytes == predict_peak_rss_bytes(LARGE, uniform(LARGE, text))
    assert memory.bare_bytes == BARE_PROCESS_BYTES
