"""Reading evaluation data and tokenizers: size limits, xz, UTF-8, and the line of whatever is wrong.

Data is a user's own as often as the embedded one, so a file may be anything. `.xz` is told by its name; the
limit holds for the content, since a few kilobytes of xz can hold gigabytes.
"""

from __future__ import annotations

import lzma
from pathlib import Path

from qslm_edge.errors import DataError, InputError

__all__ = ["MAX_DATA_BYTES", "read_bytes", "read_labelled", "read_text"]

MAX_DATA_BYTES = 512_000_000
_MAX_LZMA_MEMORY_BYTES = 1 << 28  # xz -9 needs 65 MiB


def read_bytes(path: Path, limit_bytes: int, fault: type[InputError] = DataError) -> bytes:
    """The content of a file, decompressed if its name ends in .xz.

    Raises:
        InputError: of the class `fault`; missing, unreadable, too large, or a damaged xz.
    """
    try:
        if path.stat().st_size > limit_bytes:
            raise fault("file too large", where=path, allowed=f"{limit_bytes} bytes")
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise fault("no such file", where=path) from error
    except OSError as error:
        raise fault("cannot read the file", where=path, found=error.strerror) from error
    if path.suffix != ".xz":
        return data
    try:
        content = _decompress(data, limit_bytes)
    except (lzma.LZMAError, EOFError) as error:
        raise fault("not a complete xz file", where=path, found=str(error)) from error
    if len(content) > limit_bytes:
        raise fault("file too large once decompressed", where=path, allowed=f"{limit_bytes} bytes")
    return content


def read_text(path: Path) -> str:
    """The text of a UTF-8 file, unchanged but for a byte order mark, which is dropped.

    Raises:
        DataError: missing, empty, too large, or not UTF-8, with the line.
    """
    data = read_bytes(path, MAX_DATA_BYTES).removeprefix(b"\xef\xbb\xbf")
    if not data.strip():
        raise DataError("the file is empty", where=path)
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        found = f"byte 0x{data[error.start]:02x}"
        raise DataError("not UTF-8", where=f"{path}:{line}", found=found) from error


def read_labelled(path: Path) -> tuple[list[str], list[int]]:
    """Sentences and labels of a TSV file whose header names the columns `sentence` and `label`.

    Sentences stay exactly as they are: no quoting, no stripping. Other columns are ignored.

    Returns:
        The sentences, and their labels, 0 or 1.

    Raises:
        DataError: as `read_text`; or, with its line, a column missing, a line with more or fewer columns, an
            empty sentence, a label that is not 0 or 1.
    """
    lines = [line.removesuffix("\r") for line in read_text(path).split("\n")]
    if not lines[-1]:
        lines.pop()
    names = lines[0].split("\t")
    for name in ("sentence", "label"):
        if names.count(name) != 1:
            raise DataError(
                f"the header needs one column {name!r}",
                where=f"{path}:1",
                found=" ".join(map(repr, names))[:80],
                allowed="sentence<TAB>label",
            )
    at_sentence, at_label = names.index("sentence"), names.index("label")
    sentences, labels = [], []
    for number, line in enumerate(lines[1:], start=2):
        cells = line.split("\t")
        if len(cells) != len(names):
            raise DataError(
                "wrong number of columns", where=f"{path}:{number}", found=len(cells), allowed=len(names)
            )
        if not cells[at_sentence].strip():
            raise DataError("the sentence is empty", where=f"{path}:{number}")
        if cells[at_label] not in ("0", "1"):
            found = repr(cells[at_label][:40])
            raise DataError("unknown label", where=f"{path}:{number}", found=found, allowed="0, 1")
        sentences.append(cells[at_sentence])
        labels.append(int(cells[at_label]))
    if not sentences:
        raise DataError("no sentences after the header", where=path)
    return sentences, labels


def _decompress(data: bytes, limit_bytes: int) -> bytes:
    """All streams of an xz file one after the other, stopping one byte past the limit."""
    parts: list[bytes] = []
    room = limit_bytes + 1
    while data and room > 0:
        decoder = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_MAX_LZMA_MEMORY_BYTES)
        parts.append(decoder.decompress(data, max_length=room))
        room -= len(parts[-1])
        if room > 0 and not decoder.eof:
            raise EOFError("the stream ends early")
        data = decoder.unused_data.lstrip(b"\0")  # padding between streams
    return b"".join(parts)
