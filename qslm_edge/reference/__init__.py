"""Where the embedded reference lies: one small SpikeGPT, the sets that judge it and those that calibrate it.

The files are package data, so a deployment works without a download. README.md beside this file lists each
of them with its sha256, LICENSES.md names source and licence. SST-2 states no licence: a user may delete its
files, and asking for them then says so.
"""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from qslm_edge.errors import CheckpointError, DataError, TokenizerError, UsageError

__all__ = ["DATA_NAMES", "MODEL_NAME", "data_path", "model_path", "tokenizer_20b"]

MODEL_NAME = "spikegpt-7m"
DATA_NAMES = (
    "sst2.dev.tsv.xz",
    "sst2.search.tsv.xz",
    "sst2.train.tsv.xz",
    "wiki.test.tokens.xz",
    "wiki.train.tokens.xz",
    "wiki.valid.tokens.xz",
)

_INCOMPLETE = "the installation of qslm-edge is incomplete: install it again"


def model_path() -> Path:
    """The directory of the reference model: config.json, model.safetensors and tokenizer.json.

    Raises:
        CheckpointError: the directory is not part of this installation.
    """
    path = _root() / MODEL_NAME
    if not path.is_dir():
        raise CheckpointError("the embedded reference model is missing", where=path, hint=_INCOMPLETE)
    return path


def data_path(name: str) -> Path:
    """The file of one data set, xz-compressed.

    Args:
        name: one of `DATA_NAMES`.

    Raises:
        UsageError: no such set is embedded.
        DataError: the file was left out of this installation.
    """
    if name not in DATA_NAMES:
        raise UsageError("no such embedded data set", found=name, allowed=", ".join(DATA_NAMES))
    path = _root() / "data" / name
    if not path.is_file():
        raise DataError(
            "this data set is not part of the installation",
            where=path,
            hint="give a data file of your own, or install qslm-edge again",
        )
    return path


def tokenizer_20b() -> Path:
    """The xz-compressed tokenizer of GPT-NeoX-20B, which SpikeGPT-216M uses: 50,277 entries.

    Raises:
        TokenizerError: the file is not part of this installation.
    """
    path = _root() / "data" / "20B_tokenizer.json.xz"
    if not path.is_file():
        raise TokenizerError("the embedded tokenizer is missing", where=path, hint=_INCOMPLETE)
    return path


def _root() -> Path:
    return Path(str(files("qslm_edge.reference")))
