"""Tokenizers: loading, matching a model, and streaming without half characters."""

from __future__ import annotations

import json
import lzma
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qslm_edge import reference
from qslm_edge.errors import DependencyError, TokenizerError
from qslm_edge.tasks.tokenizer import StreamDecoder, Tokenizer, check_vocabulary, load_tokenizer

REFERENCE = load_tokenizer(reference.model_path())
TEXT = " The <unk> café 's  東京 — 🤖👩‍👩‍👧 …\n"


def streamed(tokenizer: Tokenizer, ids: list[int]) -> list[str]:
    decoder = StreamDecoder(tokenizer)
    return [*map(decoder.push, ids), decoder.finish()]


def test_sizes(tokenizer: Tokenizer, tokenizer_20b: Tokenizer) -> None:
    assert (tokenizer.size, tokenizer.max_id) == (4096, 4095)
    assert (tokenizer_20b.size, tokenizer_20b.max_id) == (50_277, 50_276)
    assert tokenizer_20b.encode("\n").tolist() == [187]


def test_file_folder_xz_and_bytes_are_the_same(tmp_path: Path) -> None:
    path = reference.model_path() / "tokenizer.json"
    packed = tmp_path / "tokenizer.json.xz"
    packed.write_bytes(lzma.compress(path.read_bytes()))
    forms = [load_tokenizer(form) for form in (path, str(path), path.parent, packed, path.read_bytes())]
    assert {form.digest for form in forms} == {
        "6e778f62fd948b4c9c419c0b788dba2d278a9f5953ab7e050ee259aa8e31b643"
    }
    assert {form.raw for form in forms} == {path.read_bytes()}


def test_encode_adds_and_strips_nothing(tokenizer: Tokenizer, tokenizer_20b: Tokenizer) -> None:
    for one in (tokenizer, tokenizer_20b):
        assert one.decode(one.encode(TEXT)) == TEXT
        assert one.decode(one.encode("no space")) == "no space"
        ids, ends = one.encode_with_ends(TEXT)
        assert ids.tolist() == one.encode(TEXT).tolist()
        assert ends[-1] == len(TEXT)


def test_special_tokens(tokenizer: Tokenizer) -> None:
    assert tokenizer.token_id("<|endoftext|>") == 0
    assert tokenizer.token_id("<|absent|>") is None
    assert tokenizer.decode([0, 2]) == "<|endoftext|><unk>"
    assert tokenizer.decode([0, 2], skip_special=True) == ""
    with pytest.raises(TokenizerError, match="negative; found -1"):
        tokenizer.decode([3, -1])


def test_truncation_and_padding_in_the_file_are_switched_off() -> None:
    content = json.loads(REFERENCE.raw)
    content["truncation"] = {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0}
    content["padding"] = {
        "strategy": {"Fixed": 100}, "direction": "Right", "pad_to_multiple_of": None,
        "pad_id": 1, "pad_type_id": 0, "pad_token": "<|padding|>",
    }  # fmt: skip
    changed = load_tokenizer(json.dumps(content).encode())
    assert changed.encode(TEXT).tolist() == REFERENCE.encode(TEXT).tolist()


def small(**model: object) -> bytes:
    fields = {"type": "WordLevel", "vocab": {"a": 0, "b": 1}, "unk_token": "?"} | model
    return json.dumps({"version": "1.0", "added_tokens": [], "model": fields}).encode()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a JSON file"),
        (b"\xff\xfe", "not a JSON file"),
        (b"[" * 100_000, "not a JSON file"),
        (b'{"hello": 0}', "it has no 'model'"),
        (b"[1]", "it has no 'model'"),
        (b'{"model": {}}', "tokenizer.json: not a tokenizer; found"),
        (small(vocab={}), "empty"),
    ],
)
def test_what_is_no_tokenizer(content: bytes, message: str) -> None:
    with pytest.raises(TokenizerError) as caught:
        load_tokenizer(content)
    assert message in str(caught.value)


def test_missing_file_names_the_path(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match=r"tokenizer.json: no such file"):
        load_tokenizer(tmp_path)


def test_text_that_the_tokenizer_cannot_encode() -> None:
    with pytest.raises(TokenizerError, match="cannot encode the text"):
        load_tokenizer(small()).encode("c")


def test_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(DependencyError, match=r"extra 'text' \(qslm-edge\[text\]\); the extra 'export'"):
        load_tokenizer(reference.model_path())


@pytest.mark.parametrize("vocab_size", [4096, 4100, 4551])
def test_vocabulary_that_fits(tokenizer: Tokenizer, vocab_size: int) -> None:
    check_vocabulary(tokenizer, vocab_size)


@pytest.mark.parametrize(
    ("vocab_size", "message"),
    [
        (4095, "ids that the model lacks; found id 4095; allowed: 0 to 4094"),
        (77, "ids that the model lacks"),
        (4552, "much smaller than the model's vocabulary; found 4096 entries for 4552 rows"),
        (50_277, "much smaller"),
    ],
)
def test_vocabulary_of_another_model(tokenizer: Tokenizer, vocab_size: int, message: str) -> None:
    with pytest.raises(TokenizerError) as caught:
        check_vocabulary(tokenizer, vocab_size)
    assert message in str(caught.value)


def test_20b_fits_the_large_model(tokenizer_20b: Tokenizer) -> None:
    check_vocabulary(tokenizer_20b, 50_277)


@settings(deadline=None)
@given(st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\ufffd"), max_size=80))
def test_streaming_gives_the_text_in_whole_characters(text: str) -> None:
    pieces = streamed(REFERENCE, REFERENCE.encode(text).tolist())
    assert "".join(pieces) == text
    assert not any("\ufffd" in piece for piece in pieces)
    assert pieces[-1] == ""


@settings(deadline=None)
@given(st.lists(st.integers(0, 400) | st.integers(0, 4095), max_size=120))
def test_streaming_any_ids_gives_what_decoding_gives(ids: list[int]) -> None:
    """Untrained models emit bytes that are no UTF-8; the first ids of the vocabulary are single bytes."""
    assert "".join(streamed(REFERENCE, ids)) == REFERENCE.decode(ids)


def test_streaming_holds_back_only_the_unfinished_character(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("🤖").tolist()
    assert len(ids) > 1
    assert streamed(tokenizer, ids) == [""] * (len(ids) - 1) + ["🤖", ""]
    assert streamed(tokenizer, ids[:-1])[-1] == "\ufffd"


def test_streaming_forgets_what_is_final(tokenizer: Tokenizer) -> None:
    text = TEXT * 40
    decoder = StreamDecoder(tokenizer)
    pieces = []
    longest = 0
    for token_id in tokenizer.encode(text).tolist():
        pieces.append(decoder.push(token_id))
        longest = max(longest, len(decoder._ids))
    assert "".join(pieces) + decoder.finish() == text
    assert longest < 60


def test_streaming_keeps_the_spaces_of_other_decoders() -> None:
    content = json.loads(small(vocab={"▁a": 0, "▁b": 1, "c": 2}))
    content["decoder"] = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}
    tokenizer = load_tokenizer(json.dumps(content).encode())
    ids = [0, 2, 1] * 30
    assert "".join(streamed(tokenizer, ids)) == tokenizer.decode(ids) == " ".join(["ac", "b"] * 30)
