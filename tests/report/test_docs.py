"""The documentation says what the program does: commands, keys, byte layouts, links."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from qslm_edge.bundle import reader
from qslm_edge.cli.app import COMMANDS
from qslm_edge.quantize.packing import pack_blocked, pack_planar
from qslm_edge.recipe import Recipe

Pack = Callable[[NDArray[np.uint8], int], NDArray[np.uint8]]
PAGES = (
    "README.md",
    "docs/architecture.md",
    "docs/bundle.md",
    "docs/how-to-new-board.md",
    "docs/how-to-own-model.md",
    "docs/recipe.md",
    "docs/report.md",
)


def code_words(text: str) -> set[str]:
    """Everything between backquotes, blocks of code left out."""
    text = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    return set(re.findall(r"[\w-]+", " ".join(re.findall(r"`([^`]+)`", text))))


def section(text: str, title: str) -> str:
    return text.split(f"\n{title}\n", 1)[1].split("\n#", 1)[0]


def test_readme_lists_every_command(root: Path) -> None:
    listed = section((root / "README.md").read_text("utf-8"), "## Commands")
    assert set(COMMANDS) <= code_words(listed)


@pytest.mark.parametrize("page", PAGES)
def test_files_that_a_page_names_exist(root: Path, page: str) -> None:
    text = (root / page).read_text("utf-8")
    named = set(re.findall(r"(?:docs|qslm_edge|exporters)/[\w./-]*\w", text))
    named |= set(re.findall(r"\]\(([\w./-]+)\)", text))
    assert named
    assert [name for name in sorted(named) if not (root / name).exists()] == []


def test_flags_in_the_examples_exist(root: Path) -> None:
    known = set(
        re.findall(
            r'"(--[a-z-]+)"', "".join(p.read_text("utf-8") for p in (root / "qslm_edge").rglob("*.py"))
        )
    )
    used: set[str] = set()
    for page in PAGES:
        used |= set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", (root / page).read_text("utf-8")))
    assert sorted(used - known - {"--help", "--version"}) == []


def test_every_key_of_a_recipe_is_documented(root: Path) -> None:
    text = (root / "docs" / "recipe.md").read_text("utf-8")
    keys = {field.alias or name for name, field in Recipe.model_fields.items()}
    assert sorted(keys - code_words(text)) == []


def test_every_key_of_a_manifest_is_documented(root: Path) -> None:
    listed = section((root / "docs" / "bundle.md").read_text("utf-8"), "## manifest.json")
    required: dict[str, Any] = vars(reader)["_REQUIRED"]
    assert sorted(required.keys() - code_words(listed)) == []
    assert reader.SCHEMA in listed


@pytest.mark.parametrize(
    ("title", "pack"),
    [
        ("### Blocked: matrices (`com.microsoft::MatMulNBits`)", pack_blocked),
        ("### Planar: the embedding", pack_planar),
        ("### One bit: a binary embedding", pack_planar),
    ],
)
def test_layout_examples(root: Path, title: str, pack: Pack) -> None:
    """Each example reads: <width> bits, <what> <numbers>: byte(s) `<hex>`."""
    widths = {"one": 1, "two": 2, "four": 4}
    text = " ".join(section((root / "docs" / "bundle.md").read_text("utf-8"), title).split())
    if title.startswith("### One bit"):
        text = text.replace("Bits 1", "One bit, codes 1")
    examples = re.findall(r"(One|Two|Four) bits?, [a-z ]+ (\d+(?:, \d+)+): bytes? `([0-9a-f ]+)`", text)
    assert examples
    for width, numbers, stored in examples:
        codes = np.array([int(number) for number in numbers.split(", ")], np.uint8)
        assert pack(codes, widths[width.lower()]).tobytes().hex(" ") == stored
