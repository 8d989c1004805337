"""``qslm-edge inspect``: what it counts, as text and as JSON, and what it refuses."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import Result

from qslm_edge.profiles import load_profile

Invoke = Callable[..., Result]


def test_it_works_without_arguments_on_the_reference(run: Invoke) -> None:
    result = run("inspect")
    assert (result.exit_code, result.stderr) == (0, "")
    lines = result.stdout.splitlines()
    assert lines[0] == "spikegpt-7m: SpikeGPT, 7,226,880 parameters"
    assert "state of a stream: 43.0 kB, whatever the context length" in lines
    total = next(line.split() for line in lines if line.startswith("total"))
    assert total[:5] == ["total", "44", "7,226,880", "100.0", "%"]
    assert total[5] == "28.91"


def test_json_counts_every_module_once(run: Invoke, tiny_model: Path) -> None:
    result = run("inspect", tiny_model, "--json")
    found = json.loads(result.stdout)
    assert result.exit_code == 0
    tensors = load_file(tiny_model / "model.safetensors")
    del tensors["classifier.weight"]  # belongs to the other head
    assert found["n_params"] == sum(tensor.numel() for tensor in tensors.values())
    modules = {module["name"]: module for block in found["blocks"] for module in block["modules"]}
    assert {f"{name}.weight" for name in modules} == {key for key, t in tensors.items() if t.dim() == 2}
    assert sum(block["n_params"] for block in found["blocks"]) == found["n_params"]
    assert sum(block["share"] for block in found["blocks"]) == pytest.approx(1)
    assert found["state_bytes"] == 4 * 7 * 2 * 64
    assert found["model"]["heads"] == ["lm", "classifier"]
    assert found["profile"] is None


def test_bytes_of_a_level_are_those_of_its_codes_scales_and_zero_points(
    run: Invoke, tiny_model: Path
) -> None:
    found = json.loads(run("inspect", tiny_model, "--levels", "16,4g32", "--json").stdout)
    assert [level["level"] for level in found["levels"]] == ["16", "4g32"]
    for level in found["levels"]:
        assert level["weight_bytes"] == sum(block["bytes"][level["level"]] for block in found["blocks"])
        assert level["reduction"] == pytest.approx(1 - level["weight_bytes"] / found["float32_bytes"])
        assert level["fits"] is None
    key = next(m for b in found["blocks"] for m in b["modules"] if m["name"] == "blocks.0.att.key")
    # 64 x 64 codes of half a byte; two groups a row, each a float16 scale and half a byte of zero point
    assert key["bytes"]["4g32"] == 64 * 64 // 2 + 64 * (2 * 2 + 1)


def test_a_profile_brings_its_levels_and_its_budget(run: Invoke, tiny_model: Path) -> None:
    found = json.loads(run("inspect", tiny_model, "--profile", "jetson-orin", "--json").stdout)
    profile = load_profile("jetson-orin")
    assert found["profile"]["budget_bytes"] == profile.memory.budget_mib * 2**20
    assert {int(level["level"].partition("g")[0]) for level in found["levels"]} == {16, 8, 4}
    assert all(level["fits"] for level in found["levels"])
    assert [width["bits"] for width in found["profile"]["refused_widths"]] == [2]
    text = run("inspect", tiny_model, "--profile", "jetson-orin").stdout
    assert "not 2 bits: " in text
    (fits,) = [line.split()[2:] for line in text.splitlines() if line.startswith("within budget")]
    assert fits == ["yes"] * len(found["levels"])


def test_a_group_that_no_column_count_allows_is_told(run: Invoke, tiny_model: Path) -> None:
    found = json.loads(run("inspect", tiny_model, "--levels", "4g128", "--json").stdout)
    elsewhere = found["levels"][0]["elsewhere"]
    assert elsewhere["blocks.0.att.key"].startswith("4g64")
    assert "blocks.0.ffn.value" not in elsewhere  # it has 256 columns
    assert "other levels are taken by 14 matrices" in run("inspect", tiny_model, "--levels", "4g128").stdout


def test_gpu_memory_is_not_compared_with_a_process(run: Invoke, tiny_model: Path) -> None:
    found = json.loads(run("inspect", tiny_model, "--profile", "h100", "--json").stdout)
    assert found["profile"]["budget_bytes"] is None
    assert "GPU memory" in found["profile"]["reason"]
    assert {level["fits"] for level in found["levels"]} == {None}


def test_the_task_chooses_the_head(run: Invoke, tiny_model: Path, tmp_path: Path) -> None:
    found = json.loads(run("inspect", tiny_model, "--task", "sst2", "--json").stdout)
    assert (found["head"], found["blocks"][-1]["modules"]) == ("classifier", [])
    only = shutil.copytree(tiny_model, tmp_path / "only")
    tensors = load_file(only / "model.safetensors")
    del tensors["head.weight"]
    save_file(tensors, only / "model.safetensors")
    assert json.loads(run("inspect", only, "--json").stdout)["head"] == "classifier"
    refused = run("inspect", only, "--task", "wikitext2")
    assert refused.exit_code == 2
    assert "no language-model head" in refused.stderr


def broken(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> Path:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")
    return folder


class Bomb:
    """Runs code when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (exec, ("raise SystemExit('loaded')",))


def missing(folder: Path) -> Path:
    return folder / "none.pth"


def truncated(folder: Path) -> Path:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])
    return folder


def truncated_pth(folder: Path) -> Path:
    path = folder / "model.pth"
    torch.save({"emb.weight": torch.ones(4, 4)}, path)
    path.write_bytes(path.read_bytes()[:-100])
    return path


def wrong_key(folder: Path) -> Path:
    return broken(folder, lambda tensors: tensors.update(extra=torch.ones(1)))


def lacking_key(folder: Path) -> Path:
    return broken(folder, lambda tensors: tensors.pop("ln_out.bias"))


def wrong_shape(folder: Path) -> Path:
    return broken(folder, lambda tensors: tensors.update({"blocks.1.att.key.weight": torch.ones(64, 32)}))


def not_finite(folder: Path) -> Path:
    return broken(folder, lambda tensors: tensors["blocks.1.att.key.weight"].fill_(float("nan")))


def bomb(folder: Path) -> Path:
    path = folder / "model.pth"
    torch.save({"emb.weight": Bomb()}, path)
    return path


def another_model(folder: Path) -> Path:
    (folder / "config.json").write_text('{"model_type": "gpt2"}', "utf-8")
    return folder


def another_size(folder: Path) -> Path:
    config = json.loads((folder / "config.json").read_text("utf-8"))
    (folder / "config.json").write_text(json.dumps({**config, "n_layer": 7}), "utf-8")
    return folder


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (missing, "no such checkpoint"),
        (truncated, "not a complete safetensors file"),
        (truncated_pth, "not a complete torch checkpoint"),
        (wrong_key, "unknown tensors; found extra"),
        (lacking_key, "tensors are missing; found ln_out.bias"),
        (wrong_shape, "blocks.1.att.key.weight: wrong shape; found [64, 32]; allowed: [64, 64]"),
        (not_finite, "blocks.1.att.key.weight: holds NaN or infinite values"),
        (bomb, "holds objects other than tensors and is not loaded"),
        (another_model, "not a SpikeGPT"),
        (another_size, "config.json and weights disagree; found 7; allowed: 2"),
    ],
)
def test_a_bad_checkpoint_is_one_line_and_2(
    run: Invoke, tiny_model: Path, tmp_path: Path, spoil: Callable[[Path], Path], says: str
) -> None:
    path = spoil(shutil.copytree(tiny_model, tmp_path / "model"))
    result = run("inspect", path, "--json")
    assert result.exit_code == 2
    assert says in result.stderr
    assert result.stderr.count("\n") == 1
    assert json.loads(result.stdout)["error"]["type"] == "CheckpointError"


def test_a_bare_state_dict_needs_the_embedding_mode(run: Invoke, tiny_model: Path, tmp_path: Path) -> None:
    path = tmp_path / "bare.pth"
    torch.save(load_file(tiny_model / "model.safetensors"), path)
    refused = run("inspect", path)
    assert refused.exit_code == 2
    assert "Add --embedding dense or --embedding binary" in refused.stderr
    found = json.loads(run("inspect", path, "--embedding", "binary", "--levels", "4", "--json").stdout)
    assert found["model"]["embedding"] == "binary"
    table = found["blocks"][0]["modules"][0]
    assert table["bytes"] == {"4g64": table["n_params"] // 8}  # signs, one bit each, at every level
    assert found["levels"][0]["elsewhere"] == {}


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--levels", "5"], "not a precision level; found '5'"),
        (["--levels", ","], "no precision levels to search"),
        (["--levels", "q6"], "not a level to search"),
        (["--levels", "2", "--profile", "jetson-orin"], "cannot use 2-bit weights"),
        (["--group-size", "48"], "--group-size: not a group size of a packed level; found 48"),
        (["--profile", "jetson-orni"], "Did you mean 'jetson-orin'?"),
        (["--task", "sst3"], "unknown task; found 'sst3'"),
        (["--embedding", "spiky"], "unknown embedding mode"),
    ],
)
def test_bad_flags_are_one_line_and_2(run: Invoke, tiny_model: Path, words: list[str], says: str) -> None:
    result = run("inspect", tiny_model, *words)
    assert (result.exit_code, result.stdout) == (2, "")
    assert says in result.stderr
    assert result.stderr.count("\n") == 1


def test_an_unknown_key_of_a_profile_is_named(run: Invoke, tiny_model: Path, tmp_path: Path) -> None:
    from qslm_edge import device_profiles

    path = tmp_path / "mine.toml"
    text = device_profiles.path("x86-laptop").read_text("utf-8")
    path.write_text(text.replace("budget_mib", "budget_mb", 1), "utf-8")
    result = run("inspect", tiny_model, "--profile", path)
    assert result.exit_code == 2
    assert f"{path}: memory.budget_mb: unknown key. Did you mean 'budget_mib'" in result.stderr
