"""Opening a graph of a bundle in onnxruntime: what both its sessions refuse, each in one clear line."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qslm_edge.bundle.reader import Bundle
from qslm_edge.errors import RuntimeFault
from qslm_edge.runner.child import MEMORY_HINT
from qslm_edge.runner.native_stderr import library_fault, native_stderr
from qslm_edge.runner.runtime import first_line, import_onnxruntime, version_tuple
from qslm_edge.runner.sessions.base import SessionOptions

__all__ = ["CUDA", "failed_run", "import_for", "open_graph", "option_values"]

CUDA = "CUDAExecutionProvider"
CUDA_TWO_BITS = "1.31.0"
"""Older releases have no 2-bit kernel there and read such weights as 4 bits."""


def import_for(bundle: Bundle, provider: str, minimum: str = "0") -> Any:
    """The onnxruntime module, after it was seen to have the provider and kernels for the widths of the bundle.

    Args:
        bundle: what is to be loaded.
        provider: execution provider.
        minimum: onnxruntime that one of its graphs needs, where that is more than the bundle does.

    Raises:
        RuntimeFault: missing, too old, without the provider, or one that would read a width wrongly.
    """
    own = str(bundle.manifest["runtime"]["onnxruntime_min"])
    runtime = import_onnxruntime(max(own, minimum, key=version_tuple))
    if provider not in runtime.get_available_providers():
        raise RuntimeFault(
            "onnxruntime lacks the execution provider",
            found=", ".join(runtime.get_available_providers()),
            allowed=provider,
            hint="install a build that has it, or verify with --provider CPUExecutionProvider",
        )
    release = str(runtime.__version__)
    if provider == CUDA and _has_two_bits(bundle) and version_tuple(release) < version_tuple(CUDA_TWO_BITS):
        raise RuntimeFault(
            "this onnxruntime reads 2-bit matrices on CUDA as 4 bits, which gives wrong values",
            found=release,
            allowed=f"{CUDA_TWO_BITS} or newer",
            hint="update it, verify with --provider CPUExecutionProvider, or export without 2 bits",
        )
    return runtime


def _has_two_bits(bundle: Bundle) -> bool:
    """Whether a matrix is stored at 2 bits; the embedding is unpacked by plain operators."""
    return any(
        str(level).startswith("2g") for name, level in bundle.manifest["setting"].items() if name != "emb"
    )


def option_values(runtime: Any, options: SessionOptions) -> Any:
    """SessionOptions of onnxruntime with threads and spinning set."""
    given = runtime.SessionOptions()
    given.intra_op_num_threads = options.threads
    given.inter_op_num_threads = 1
    given.log_severity_level = 3
    given.add_session_config_entry("session.intra_op.allow_spinning", "1" if options.spinning else "0")
    return given


def open_graph(
    runtime: Any,
    bundle: Bundle,
    path: Path,
    given: Any,
    provider: str,
    settings: Mapping[str, str] | None = None,
) -> Any:
    """An InferenceSession that really got its provider.

    Args:
        runtime: the onnxruntime module.
        bundle: for what it needs, in messages.
        path: the graph.
        given: SessionOptions of onnxruntime.
        provider: execution provider.
        settings: of the provider.

    Raises:
        RuntimeFault: the graph is refused, or the provider's library does not load.
    """
    asked: list[Any] = [provider if settings is None else (provider, dict(settings))]
    told: list[str] = []
    try:
        with native_stderr(told):
            # without enable_fallback=0 the binding opens the model on the CPU where a provider fails
            session = runtime.InferenceSession(str(path), given, providers=asked, enable_fallback=0)
    except Exception as error:  # noqa: BLE001 - the binding's own classes have no public base
        if (fault := _machine_fault(error, provider)) is not None:
            raise fault from None
        raise RuntimeFault(
            "onnxruntime refuses the model",
            where=path,
            found=first_line(error),
            hint=f"this is onnxruntime {runtime.__version__}; the bundle was made for "
            f"{bundle.manifest['runtime']['onnxruntime_min']} and newer",
        ) from None
    obtained = session.get_providers()
    if provider not in obtained:
        reason = library_fault(told)
        raise RuntimeFault(
            "the session fell back to another provider",
            found=", ".join(obtained) + (f": {reason}" if reason else ""),
            allowed=provider,
            hint="the provider's library does not load: check the driver and the build",
        )
    return session


def failed_run(error: Exception, provider: str) -> RuntimeFault:
    """What is raised when a run fails."""
    return _machine_fault(error, provider) or RuntimeFault(
        "onnxruntime failed while running the model",
        found=first_line(error),
        hint="see `conditions` for the memory that was free",
    )


def _machine_fault(error: Exception, provider: str) -> RuntimeFault | None:
    """The fault of a machine that lacks memory or a working GPU; None where neither is what the error says."""
    text, found = str(error), first_line(error)
    if provider == CUDA and re.search(r"out of memory|ALLOC_FAILED|[Ff]ailed to allocate", text):
        return RuntimeFault(
            "the GPU is out of memory",
            found=found,
            hint="end other work on it (nvidia-smi names it), or export a smaller setting",
        )
    if re.search(r"bad_alloc|[Ff]ailed to allocate", text):
        return RuntimeFault("onnxruntime is out of memory", found=found, hint=MEMORY_HINT)
    if provider == CUDA and re.search(r"CUDA (failure|error) \d|no CUDA-capable device", text):
        return RuntimeFault(
            "the GPU cannot be used",
            found=found,
            hint="see whether nvidia-smi names it, and CUDA_VISIBLE_DEVICES lets it be seen",
        )
    return None
