"""Recipes: flags to file and back, and one line for everything that is wrong in one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from qslm_edge.errors import OutputError, UsageError
from qslm_edge.recipe import Recipe, make_recipe, read_recipe, write_recipe

EVERY = {
    "profile": "raspberry-pi-5",
    "task": "sst2",
    "model": "models/a b.pth",
    "embedding": "binary",
    "tokenizer": "tokenizer.json",
    "search_data": "s.tsv",
    "report_data": "r.tsv",
    "window": 256,
    "search_windows": 12,
    "report_windows": 48,
    "method": "qslm",
    "levels": ("8", "4g64"),
    "group_size": 128,
    "quantiser": "gptq",
    "calibration_data": "embedded",
    "calibration_tokens": 4096,
    "max_degradation": 1.5,
    "weights_budget_bytes": 400_000_000,
    "memory_budget_bytes": 2**33,
    "max_latency_s": 0.02,
    "min_decode_tokens_per_s": 50.0,
    "max_energy_j_per_token": 0.005,
    "cut_hidden": 0.5,
    "tune": True,
    "tune_tokens": 1_000_000,
    "tune_rounds": 2,
    "tune_rate": 0.001,
    "tune_start": "runs/other/tuned/1.safetensors",
    "seed": 7,
    "mu": 2.5,
    "early": False,
    "reuse": False,
}
VALUES: dict[str, st.SearchStrategy[Any]] = {
    "model": st.text(st.characters(codec="utf-8"), max_size=20),
    "window": st.integers(1, 65_536),
    "max_degradation": st.floats(0, 1e6),
    "mu": st.floats(0, allow_infinity=False),
    "levels": st.lists(st.sampled_from(["16", "8", "4g32"]), max_size=3).map(tuple),
    "memory_budget_bytes": st.integers(1, 10**18),
    "early": st.booleans(),
}


def refusal(tmp_path: Path, text: str | bytes) -> str:
    path = tmp_path / "recipe.toml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UsageError) as caught:
        read_recipe(path)
    line = str(caught.value)
    assert "\n" not in line
    assert "recipe.toml" in line
    return line


def test_the_only_required_choice_is_the_profile() -> None:
    recipe = make_recipe(profile="host")
    assert recipe.model_dump() == {
        **dict.fromkeys(EVERY),
        "recipe_schema": "qslm-edge/recipe/1",
        "profile": "host",
        "task": "wikitext2",
        "method": "budgeted",
        "tune": False,
        "early": True,
        "reuse": True,
    }


def test_every_choice_survives_the_file(tmp_path: Path) -> None:
    recipe = make_recipe(**EVERY)
    write_recipe(recipe, tmp_path / "recipe.toml")
    assert read_recipe(tmp_path / "recipe.toml") == recipe
    assert {key: getattr(recipe, key) for key in EVERY} == EVERY
    assert [path.name for path in tmp_path.iterdir()] == ["recipe.toml"]
    assert set(EVERY) | {"recipe_schema"} == set(Recipe.model_fields)


def test_the_file_names_its_schema_and_leaves_out_what_was_not_chosen(tmp_path: Path) -> None:
    write_recipe(make_recipe(profile="host", mu=None), tmp_path / "recipe.toml")
    text = (tmp_path / "recipe.toml").read_text("utf-8")
    assert 'schema = "qslm-edge/recipe/1"' in text
    assert "mu" not in text
    assert "model" not in text


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(values=st.fixed_dictionaries({"profile": VALUES["model"]}, optional=VALUES))
def test_any_recipe_survives_the_file(tmp_path: Path, values: dict[str, Any]) -> None:
    recipe = make_recipe(**values)
    write_recipe(recipe, tmp_path / "recipe.toml")
    assert read_recipe(tmp_path / "recipe.toml") == recipe


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("windows = 3", "recipe.toml: windows: Extra inputs"),
        ("recipe_schema = 'qslm-edge/recipe/1'", "recipe_schema: Extra inputs"),
        ("schema = 'qslm-edge/recipe/2'", "schema: Input should be 'qslm-edge/recipe/1'"),
        ("window = 0", "window: Input should be greater than or equal to 1; found 0"),
        ("window = 65537", "window: Input should be less than or equal to 65536"),
        ("window = true", "window: Input should be a valid integer; found True"),
        ("window = '512'", "window: Input should be a valid integer"),
        ("window = 1.5", "window: Input should be a valid integer"),
        ("search_windows = 0", "search_windows: "),
        ("report_windows = -1", "report_windows: "),
        ("method = 'gptq'", "method: Input should be 'budgeted', 'pareto', 'tiered' or 'qslm'"),
        ("group_size = 16", "group_size: Input should be 32, 64 or 128"),
        ("embedding = 'sparse'", "embedding: Input should be 'dense' or 'binary'"),
        ("max_degradation = -0.1", "max_degradation: Input should be greater than or equal to 0"),
        ("max_degradation = 1e7", "max_degradation: "),
        ("max_degradation = nan", "max_degradation: "),
        ("mu = inf", "mu: Input should be a finite number"),
        ("mu = nan", "mu: Input should be a finite number"),
        ("mu = -1", "mu: "),
        ("weights_budget_bytes = 0", "weights_budget_bytes: "),
        ("memory_budget_bytes = '1GB'", "memory_budget_bytes: "),
        ("levels = [8, 4]", "levels.0: Input should be a valid string"),
        ("levels = 8", "levels: "),
        ("early = 'perhaps'", "early: "),
        ("[model]", "model: Input should be a valid string"),
    ],
)
def test_each_mistake_is_one_line_with_its_key(tmp_path: Path, line: str, found: str) -> None:
    assert found in refusal(tmp_path, f"profile = 'host'\n{line}\n")


def test_an_unknown_key_is_answered_with_those_there_are(tmp_path: Path) -> None:
    line = refusal(tmp_path, "profile = 'host'\nmax_drop = 1\n")
    assert "allowed: schema, profile, task, model," in line
    assert "recipe_schema" not in line


@pytest.mark.parametrize("text", ["", "task = 'sst2'", "profile", "= 1", "profile = 'a'\nprofile = 'b'"])
def test_recipes_without_a_profile_or_sense(tmp_path: Path, text: str) -> None:
    refusal(tmp_path, text)


def test_a_recipe_that_is_missing_or_no_text(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read"):
        read_recipe(tmp_path / "none.toml")
    with pytest.raises(UsageError, match="cannot be read"):
        read_recipe(tmp_path)
    assert "cannot be read" in refusal(tmp_path, b"profile = '\xff'")


def test_flags_out_of_range_are_named_too() -> None:
    with pytest.raises(UsageError, match="recipe: max_degradation: .*found -1"):
        make_recipe(profile="host", max_degradation=-1)
    with pytest.raises(UsageError, match="recipe: profile: missing"):
        make_recipe()


def test_a_recipe_is_not_changed_by_accident() -> None:
    recipe = make_recipe(profile="host")
    with pytest.raises(ValidationError, match="frozen"):
        recipe.mu = 3.0


def test_a_place_that_cannot_be_written_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="cannot be written"):
        write_recipe(make_recipe(profile="host"), tmp_path / "none" / "recipe.toml")
    (tmp_path / "recipe.toml").mkdir()
    with pytest.raises(OutputError, match="cannot be written"):
        write_recipe(make_recipe(profile="host"), tmp_path / "recipe.toml")
    assert [path.name for path in tmp_path.iterdir()] == ["recipe.toml"]


def test_writing_again_replaces_the_whole_file(tmp_path: Path) -> None:
    write_recipe(make_recipe(**EVERY), tmp_path / "recipe.toml")
    write_recipe(make_recipe(profile="x"), tmp_path / "recipe.toml")
    assert read_recipe(tmp_path / "recipe.toml") == make_recipe(profile="x")
