"""Reading SpikeGPT checkpoints, which are treated as hostile input.

Accepted: a model directory (config.json and model.safetensors, or shards with an index), a .safetensors file,
a bare .pth state dict with the published keys. safetensors comes first; a .pth is read with `weights_only`,
memory-mapped, and only in the zip form with stored (not compressed) tensors that are no larger than the file,
so that it can neither run code nor inflate. Every tensor must have the shape that the others imply, and only
finite values. Weights become float32.
"""

from __future__ import annotations

import json
import pickle  # noqa: TID251 - only for the name of the exception that torch raises; nothing is unpickled here
import re
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from qslm_edge.errors import CheckpointError
from qslm_edge.spikegpt.config import DEFAULT_CTX_LEN, SpikeGPTConfig, decide_embedding, declared_values
from qslm_edge.spikegpt.hierarchy import Head, build_hierarchy
from qslm_edge.spikegpt.model import SpikeGPT

__all__ = ["load_checkpoint", "read_config"]

MAX_FILE_BYTES = 16 * 10**9
MAX_JSON_BYTES = 64 * 2**20
INDEX = "model.safetensors.index.json"
_WRAPPERS = ("state_dict", "model", "module")
_PREFIXES = ("module.", "_forward_module.", "model.")


def load_checkpoint(path: str | Path, embedding: str | None = None) -> SpikeGPT:
    """Load a SpikeGPT.

    Args:
        path: model directory, .safetensors file, or .pth state dict with the published keys.
        embedding: "dense" or "binary"; None reads config.json or applies the rule by vocabulary size.

    Returns:
        The model with float32 tensors on the CPU.

    Raises:
        CheckpointError: missing, truncated, unsafe, wrong keys, wrong shapes, or values that are not finite.
    """
    config, tensors = _open(Path(path), embedding)
    return SpikeGPT(config, _checked(tensors, config, Path(path)))


def read_config(path: str | Path, embedding: str | None = None) -> SpikeGPTConfig:
    """Sizes of a checkpoint, from the names and shapes of its tensors; their values are not looked at.

    Args:
        path: as for `load_checkpoint`.
        embedding: likewise.

    Raises:
        CheckpointError: missing, truncated, unsafe, wrong keys or wrong shapes.
    """
    config, tensors = _open(Path(path), embedding)
    for key, shape in _named(tensors, config, Path(path)).items():
        _check_shape(tensors[key], shape, f"{path}: {key}")
    return config


def _open(path: Path, embedding: str | None) -> tuple[SpikeGPTConfig, dict[str, Tensor]]:
    """Sizes and tensors under the published keys; the files are mapped."""
    if not _exists(path):
        raise CheckpointError(
            "no such checkpoint", where=path, hint="give a .pth, a .safetensors or a model directory"
        )
    raw_config: Mapping[str, Any] = {}
    if path.is_dir():
        config_path = path / "config.json"
        if not config_path.exists():
            raise CheckpointError(
                "config.json is missing", where=path, hint="give a model directory or a .pth file"
            )
        raw_config = _read_json(config_path)
        tensors = _read_directory(path)
    elif path.suffix == ".safetensors":
        tensors = _read_safetensors(path)
    else:
        tensors = _read_pth(path)
    tensors = _published_keys(tensors, path)
    return _config_from(tensors, raw_config, embedding, path), tensors


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError) as error:  # a name that is too long, a folder that may not be entered
        raise CheckpointError("cannot be read", where=path, found=_reason(error)) from None


def _reason(error: BaseException) -> str:
    """First line of an exception, with its name where the text alone says little."""
    text = next(iter(str(error).splitlines()), "")[:200]
    if isinstance(error, LookupError) or not text:
        return f"{type(error).__name__} {text}".rstrip()
    return text


def _read_json(path: Path) -> Mapping[str, Any]:
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise CheckpointError("file is too large", where=path, allowed=f"{MAX_JSON_BYTES} bytes")
        data = json.loads(path.read_text("utf-8"))
    except (ValueError, OSError, RecursionError) as error:
        raise CheckpointError("cannot be read as JSON", where=path, found=_reason(error)) from None
    if not isinstance(data, dict):
        raise CheckpointError("must hold a JSON object", where=path, found=type(data).__name__)
    return data


def _read_directory(path: Path) -> dict[str, Tensor]:
    if (path / "model.safetensors").exists():
        return _read_safetensors(path / "model.safetensors")
    if not (path / INDEX).exists():
        raise CheckpointError("no weights", where=path, allowed=f"model.safetensors, or shards with {INDEX}")
    index = _read_json(path / INDEX).get("weight_map")
    if not isinstance(index, dict) or not index:
        raise CheckpointError("weight_map is missing or empty", where=path / INDEX)
    tensors: dict[str, Tensor] = {}
    for shard in sorted({str(name) for name in index.values()}):
        if Path(shard).name != shard or not shard.endswith(".safetensors"):
            raise CheckpointError("shard name leaves the directory", where=path / INDEX, found=shard)
        wanted = {key for key, name in index.items() if name == shard}
        found = _read_safetensors(path / shard)
        if missing := wanted - found.keys():
            raise CheckpointError(
                "shard lacks tensors of the index", where=path / shard, found=_some(missing)
            )
        if extra := found.keys() - wanted:  # the same key in two shards would make the order decide
            raise CheckpointError(
                "shard holds tensors that the index places elsewhere", where=path / shard, found=_some(extra)
            )
        tensors.update(found)
    return tensors


def _check_size(path: Path) -> None:
    try:
        size = path.stat().st_size
    except OSError as error:
        raise CheckpointError("cannot be read", where=path, found=error.strerror) from None
    if size > MAX_FILE_BYTES:
        raise CheckpointError(
            "file is too large", where=path, found=f"{size} bytes", allowed=f"{MAX_FILE_BYTES} bytes"
        )
    if size == 0:
        raise CheckpointError("file is empty", where=path)


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    _check_size(path)
    try:
        with safe_open(str(path), framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a dict
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise CheckpointError(
            "not a complete safetensors file", where=path, found=_reason(error), hint="copy the file again"
        ) from None


def _read_pth(path: Path) -> dict[str, Tensor]:
    _check_size(path)
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except Exception as error:  # damage shows as anything from BadZipFile to UnicodeDecodeError
        raise CheckpointError(
            "not a complete torch checkpoint (zip form)",
            where=path,
            hint="copy the file again, or save it once more with a torch newer than 1.6",
        ) from error
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise CheckpointError("compressed entries are refused: they can inflate", where=path)
    try:
        data = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError:
        raise CheckpointError(
            "holds objects other than tensors and is not loaded, since loading them can run code",
            where=path,
            hint="save model.state_dict() alone, or convert it to safetensors where you trust it",
        ) from None
    except Exception as error:  # a damaged or hostile pickle raises whatever its instructions run into
        raise CheckpointError("cannot be loaded", where=path, found=_reason(error)) from error
    for name in _WRAPPERS:
        if isinstance(data, dict) and "emb.weight" not in data and isinstance(data.get(name), dict):
            data = data[name]
    if not isinstance(data, dict):
        raise CheckpointError("does not hold a state dict", where=path, found=type(data).__name__)
    tensors = {str(key): value for key, value in data.items() if isinstance(value, Tensor)}
    _refuse_inflation(tensors, path)
    return tensors


def _refuse_inflation(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Refuse tensors that stand for more values than the file holds: a stride of 0, a sparse form.

    Twice the file is allowed, since embedding and head may share one storage.
    """
    total = 0
    for key, tensor in tensors.items():
        if tensor.layout is not torch.strided or tensor.device.type != "cpu" or tensor.is_quantized:
            raise CheckpointError("not a plain dense tensor", where=f"{path}: {key}")
        total += _product(tensor.shape) * tensor.element_size()
    if total > 2 * path.stat().st_size:
        raise CheckpointError(
            "tensors are larger than the file that holds them",
            where=path,
            found=f"{total} bytes in a file of {path.stat().st_size}",
        )


def _published_keys(tensors: dict[str, Tensor], where: Path) -> dict[str, Tensor]:
    for prefix in _PREFIXES:
        if f"{prefix}emb.weight" in tensors and "emb.weight" not in tensors:
            tensors = {key.removeprefix(prefix): value for key, value in tensors.items()}
    if any(".ffnPre." in key for key in tensors):
        raise CheckpointError(
            "model variant RWKV-ffnPre is not supported",
            where=where,
            found="blocks.0.ffnPre",
            allowed="SpikeGPT blocks",
        )
    if extra := sorted(key for key in tensors if key.startswith(("head_q", "head_k"))):
        raise CheckpointError(
            "tiny-attention heads are not supported",
            where=where,
            found=extra[0],
            hint="remove head_q and head_k from the state dict if they were not used in training",
        )
    if "emb.weight" not in tensors:
        first = ", ".join(sorted(tensors)[:3]) or "no tensors"
        raise CheckpointError("not a SpikeGPT state dict: emb.weight is missing", where=where, found=first)
    return tensors


def _config_from(
    tensors: Mapping[str, Tensor], raw: Mapping[str, Any], embedding: str | None, where: Path
) -> SpikeGPTConfig:
    declared, ctx_len, labels = declared_values(raw, where) if raw else (None, DEFAULT_CTX_LEN, ())
    emb, ffn = tensors["emb.weight"], tensors.get("blocks.0.ffn.key.weight")
    layers = {int(match[1]) for key in tensors if (match := re.match(r"blocks\.(\d{1,4})\.", key))}
    if emb.dim() != 2 or ffn is None or ffn.dim() != 2 or not layers:
        raise CheckpointError(
            "not a SpikeGPT state dict", where=where, found="no 2-D emb.weight and blocks.0.ffn.key.weight"
        )
    classifier = tensors.get("classifier.weight")
    if classifier is not None and classifier.dim() != 2:
        raise CheckpointError(
            "wrong shape", where=f"{where}: classifier.weight", found=list(classifier.shape)
        )
    vocab_size = emb.shape[0]
    config = SpikeGPTConfig(
        n_layer=max(layers) + 1,
        n_embd=emb.shape[1],
        ffn_dim=ffn.shape[0],
        vocab_size=vocab_size,
        embedding=decide_embedding(embedding, declared, vocab_size, where),
        ctx_len=ctx_len,
        num_labels=None if classifier is None else classifier.shape[0],
        has_lm_head="head.weight" in tensors,
        labels=labels,
    )
    config.check(where)
    for key in ("n_layer", "n_embd", "ffn_dim", "vocab_size"):
        if key in raw and raw[key] != getattr(config, key):
            raise CheckpointError(
                "config.json and weights disagree",
                where=f"{where}/config.json: {key}",
                found=raw[key],
                allowed=f"{getattr(config, key)} as in the weights",
            )
    if config.num_labels is not None and labels and len(labels) != config.num_labels:
        raise CheckpointError(
            "config.json and weights disagree",
            where=f"{where}/config.json: id2label",
            found=f"{len(labels)} class names",
            allowed=f"{config.num_labels} as in classifier.weight",
        )
    return config


def _expected(config: SpikeGPTConfig) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    heads: list[Head] = ["lm"] if config.has_lm_head else []
    if config.num_labels is not None:
        heads.append("classifier")
    for head in heads:
        for block in build_hierarchy(config, head).blocks:
            shapes.update({module.key: (module.rows, module.columns) for module in block.modules})
            shapes.update(dict(block.float_tensors))
    return shapes


def _named(tensors: Mapping[str, Tensor], config: SpikeGPTConfig, where: Path) -> dict[str, tuple[int, ...]]:
    """Shape of every tensor of the model, all of which are there and no others."""
    expected = _expected(config)
    if missing := expected.keys() - tensors.keys():
        raise CheckpointError(
            "tensors are missing", where=where, found=_some(missing), allowed="the published SpikeGPT keys"
        )
    if unknown := tensors.keys() - expected.keys():
        raise CheckpointError(
            "unknown tensors", where=where, found=_some(unknown), allowed="the published SpikeGPT keys"
        )
    return expected


def _check_shape(tensor: Tensor, shape: tuple[int, ...], where: str) -> None:
    # some exporters write vectors with other axes of length one; a transposed matrix is wrong
    if [n for n in tensor.shape if n != 1] != [n for n in shape if n != 1]:
        raise CheckpointError("wrong shape", where=where, found=list(tensor.shape), allowed=list(shape))


def _checked(tensors: Mapping[str, Tensor], config: SpikeGPTConfig, where: Path) -> dict[str, Tensor]:
    kept: dict[str, Tensor] = {}
    for key, shape in _named(tensors, config, where).items():
        tensor = tensors[key]
        _check_shape(tensor, shape, f"{where}: {key}")
        tensor = tensor.reshape(shape)
        if not tensor.is_floating_point():
            raise CheckpointError("not a floating-point tensor", where=f"{where}: {key}", found=tensor.dtype)
        tensor = tensor.to(torch.float32)
        if not bool(torch.isfinite(tensor).all()):
            raise CheckpointError(
                "holds NaN or infinite values", where=f"{where}: {key}", hint="retrain or repair it"
            )
        kept[key] = tensor.contiguous()
    return kept


def _product(shape: Iterable[int]) -> int:
    total = 1
    for size in shape:
        total *= size
    return total


def _some(names: Iterable[str]) -> str:
    shown = sorted(names)
    return ", ".join(shown[:3]) + (f" and {len(shown) - 3} more" if len(shown) > 3 else "")
