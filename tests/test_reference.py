"""The embedded reference is complete, unchanged, and named in its README."""

from __future__ import annotations

import hashlib
import json
import lzma
from pathlib import Path

import pytest

from qslm_edge import reference
from qslm_edge.errors import DataError, UsageError

ROOT = Path(reference.__file__).parent
FILES = sorted(path for folder in ("data", "spikegpt-7m") for path in (ROOT / folder).iterdir())


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.name))
def test_readme_lists_each_file_with_size_and_hash(path: Path) -> None:
    content = path.read_bytes()
    rows = [line for line in (ROOT / "README.md").read_text().splitlines() if line.startswith("| ")]
    row = [line for line in rows if line.startswith(f"| {path.relative_to(ROOT).as_posix()} |")]
    assert len(row) == 1
    assert f"| {len(content):,} |" in row[0]
    assert hashlib.sha256(content).hexdigest() in row[0]


def test_nothing_else_is_embedded() -> None:
    data = {f"data/{name}" for name in (*reference.DATA_NAMES, "20B_tokenizer.json.xz")}
    model = {f"spikegpt-7m/{name}" for name in ("config.json", "model.safetensors", "tokenizer.json")}
    assert {path.relative_to(ROOT).as_posix() for path in FILES} == data | model


def test_every_file_has_a_licence_line() -> None:
    rows = [
        line.split("|")[1].strip() for line in (ROOT / "LICENSES.md").read_text().splitlines() if "|" in line
    ]
    for path in FILES:
        assert any(path.relative_to(ROOT).match(row) for row in rows), path


def test_model_path() -> None:
    config = json.loads((reference.model_path() / "config.json").read_text())
    assert (config["vocab_size"], config["ctx_len"]) == (4096, 512)


@pytest.mark.parametrize(
    ("name", "n_lines"),
    [("sst2.dev.tsv.xz", 873), ("sst2.search.tsv.xz", 1822), ("wiki.test.tokens.xz", 4358)],
)
def test_data_path(name: str, n_lines: int) -> None:
    assert lzma.decompress(reference.data_path(name).read_bytes()).count(b"\n") == n_lines


def test_tokenizer_20b_is_json() -> None:
    content = json.loads(lzma.decompress(reference.tokenizer_20b().read_bytes()))
    assert content["model"]["type"] == "BPE"


def test_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(UsageError, match=r"wiki\.valid\.tokens\.xz"):
        reference.data_path("../README.md")


def test_data_that_was_left_out_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reference, "_root", lambda: tmp_path)
    with pytest.raises(DataError, match="data file of your own"):
        reference.data_path("sst2.dev.tsv.xz")
