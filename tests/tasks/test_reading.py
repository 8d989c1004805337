"""Reading a user's own data: each fault is named with its file and line."""

from __future__ import annotations

import lzma
from pathlib import Path

import pytest

from qslm_edge.errors import DataError, TokenizerError
from qslm_edge.tasks import reading
from qslm_edge.tasks.reading import read_bytes, read_labelled, read_text


def written(tmp_path: Path, content: bytes, name: str = "data.tsv") -> Path:
    path = tmp_path / name
    path.write_bytes(content)
    return path


def test_sentences_stay_exactly_as_they_are(tmp_path: Path) -> None:
    content = 'sentence\tlabel\n it \'s "a"  film . \t1\nx\u2028y\x0bz\t0\n'
    sentences, labels = read_labelled(written(tmp_path, content.encode()))
    assert sentences == [' it \'s "a"  film . ', "x\u2028y\x0bz"]
    assert labels == [1, 0]


@pytest.mark.parametrize(
    "content",
    [
        b"sentence\tlabel\r\ngood\t1\r\nbad\t0\r\n",
        b"\xef\xbb\xbfsentence\tlabel\ngood\t1\nbad\t0",
        b"label\tid\tsentence\n1\t7\tgood\n0\t8\tbad\n",
    ],
    ids=["crlf", "byte order mark, no last end of line", "other columns"],
)
def test_forms_of_the_table(tmp_path: Path, content: bytes) -> None:
    assert read_labelled(written(tmp_path, content)) == (["good", "bad"], [1, 0])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "data.tsv: the file is empty"),
        (b" \n\n", "data.tsv: the file is empty"),
        (b"sentence\tlabel\n", "data.tsv: no sentences after the header"),
        (b"good film\t1\n", "data.tsv:1: the header needs one column 'sentence'"),
        (b"sentence\nx\n", "data.tsv:1: the header needs one column 'label'; found 'sentence'"),
        (b"sentence\tlabel\tlabel\nx\t1\t1\n", "data.tsv:1: the header needs one column 'label'"),
        (b"sentence\tlabel\ngood\t1\nbad\n", "data.tsv:3: wrong number of columns; found 1; allowed: 2"),
        (b"sentence\tlabel\n\ngood\t1\n", "data.tsv:2: wrong number of columns"),
        (b"sentence\tlabel\na\tb\t1\n", "data.tsv:2: wrong number of columns; found 3"),
        (b"sentence\tlabel\n \t1\n", "data.tsv:2: the sentence is empty"),
        (b"sentence\tlabel\nx\tpositive\n", "data.tsv:2: unknown label; found 'positive'; allowed: 0, 1"),
        (b"sentence\tlabel\nx\t1\ny\t2\n", "data.tsv:3: unknown label; found '2'"),
        (b"sentence\tlabel\nx\t1\n\xff\t1\n", "data.tsv:3: not UTF-8; found byte 0xff"),
    ],
)
def test_faults_of_the_table(tmp_path: Path, content: bytes, message: str) -> None:
    with pytest.raises(DataError) as caught:
        read_labelled(written(tmp_path, content))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_text_is_unchanged(tmp_path: Path) -> None:
    assert read_text(written(tmp_path, " a\r\n\u00a0é \n".encode())) == " a\r\n\u00a0é \n"


def test_xz_of_several_streams(tmp_path: Path) -> None:
    content = lzma.compress(b"one ") + bytes(8) + lzma.compress(b"two")
    assert read_text(written(tmp_path, content, "text.xz")) == "one two"


@pytest.mark.parametrize(
    "content",
    [b"plain", lzma.compress(bytes(1000))[:-9], lzma.compress(b"x") + b"junk"],
    ids=["plain", "cut", "junk"],
)
def test_damaged_xz(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(DataError, match=r"text.xz: not a complete xz file"):
        read_text(written(tmp_path, content, "text.xz"))


def test_size_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "MAX_DATA_BYTES", 1000)
    assert len(read_text(written(tmp_path, b"x" * 1000))) == 1000
    with pytest.raises(DataError, match="file too large; allowed: 1000 bytes"):
        read_text(written(tmp_path, b"x" * 1001))
    assert len(read_text(written(tmp_path, lzma.compress(b"x" * 1000), "a.xz"))) == 1000
    with pytest.raises(DataError, match="too large once decompressed"):
        read_text(written(tmp_path, lzma.compress(b"x" * 1001), "a.xz"))
    with pytest.raises(DataError, match="too large once decompressed"):
        read_text(written(tmp_path, lzma.compress(b"x" * 900) * 2, "a.xz"))


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match="no such file"):
        read_bytes(tmp_path / "absent", 10, TokenizerError)
    with pytest.raises(DataError, match=r"too large|cannot read"):
        read_bytes(tmp_path, 10)
    with pytest.raises(DataError, match="cannot read the file"):
        read_bytes(tmp_path, 10**9)
