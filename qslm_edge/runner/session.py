"""An ONNX Runtime session over a bundle, with the recurrent state handled.

Every option that decides speed or memory is set here and recorded: threads, spinning, provider. A provider is
believed only when the session really got it; a missing or old runtime is one clear line.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qslm_edge.bundle.reader import Bundle
from qslm_edge.errors import RuntimeFault

__all__ = [
    "CPU",
    "RUNTIME_PACKAGES",
    "Session",
    "bundle_path_of",
    "import_onnxruntime",
    "uses_gpu",
    "version_tuple",
]

Array = NDArray[Any]
RUNTIME_PACKAGES = "onnxruntime (or the board vendor's build of it)"
CPU = "CPUExecutionProvider"
NVIDIA = ("CUDAExecutionProvider", "TensorrtExecutionProvider", "NvTensorRTRTXExecutionProvider")


def uses_gpu(provider: str) -> bool:
    """Whether a provider works on an NVIDIA GPU, whose power NVML then tells."""
    return provider in NVIDIA


def version_tuple(text: str) -> tuple[int, ...]:
    """Leading numbers of a version, for comparison."""
    return tuple(int(part) for part in re.findall(r"\d+", text)[:3])


def import_onnxruntime(minimum: str | None = None) -> Any:
    """The onnxruntime module, with its telemetry off.

    Official builds from 1.31 on send usage data by default, which costs a thread and 2 MB and would disturb
    what is measured here; ORT_DISABLE_TELEMETRY=0 in the environment leaves it on.

    Raises:
        RuntimeFault: not installed, broken, or older than the bundle needs.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # read once, while the library loads
    try:
        import onnxruntime

        version = str(onnxruntime.__version__)
    except Exception as error:  # noqa: BLE001 - a broken build raises whatever it likes while it loads
        raise RuntimeFault(
            "onnxruntime cannot be imported",
            found=_first_line(error),
            hint=f"install {RUNTIME_PACKAGES}" + (f", {minimum} or newer" if minimum else ""),
        ) from None
    if minimum is not None and version_tuple(version) < version_tuple(minimum):
        raise RuntimeFault(
            "onnxruntime is too old for this bundle",
            found=version,
            allowed=f"{minimum} or newer",
            hint="update it, or export again for a profile with this runtime",
        )
    return onnxruntime


class Session:
    """A loaded bundle.

    Args:
        bundle: what to load.
        provider: execution provider that must run it.
        threads: intra-op threads; 1 is the default for decoding, since a second spinning thread loses more
            with a busy core than it gains with an idle one.
        spinning: let waiting threads spin.

    Raises:
        RuntimeFault: runtime missing, too old, without the provider, or refusing the model.
    """

    def __init__(
        self, bundle: Bundle, *, provider: str = CPU, threads: int = 1, spinning: bool = False
    ) -> None:
        runtime = import_onnxruntime(bundle.manifest["runtime"]["onnxruntime_min"])
        if provider not in runtime.get_available_providers():
            raise RuntimeFault(
                "onnxruntime lacks the execution provider",
                found=", ".join(runtime.get_available_providers()),
                allowed=provider,
                hint="install a build that has it, or verify with --provider CPUExecutionProvider",
            )
        options = runtime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        options.add_session_config_entry("session.intra_op.allow_spinning", "1" if spinning else "0")
        path = bundle.file("model.onnx")
        try:
            self._session = runtime.InferenceSession(str(path), options, providers=[provider])
        except Exception as error:  # noqa: BLE001 - the binding's own classes have no public base
            raise RuntimeFault(
                "onnxruntime refuses the model",
                where=path,
                found=_first_line(error),
                hint=f"this is onnxruntime {runtime.__version__}; the bundle was made for "
                f"{bundle.manifest['runtime']['onnxruntime_min']} and newer",
            ) from None
        obtained = self._session.get_providers()
        if provider not in obtained:
            raise RuntimeFault(
                "the session fell back to another provider",
                found=", ".join(obtained),
                allowed=provider,
                hint="the provider's library does not load: check the driver and the build",
            )
        self.provider, self.threads, self.spinning = provider, threads, spinning
        self.runtime_version: str = runtime.__version__
        self.kind = bundle.kind
        state = bundle.manifest["state"]
        self._state_shape = (7 * int(state["n_layer"]), int(state["n_embd"]))
        self._p_init = np.float32(state["p_init"])

    def initial_state(self, batch: int) -> NDArray[np.float32]:
        """State of `batch` streams that have seen nothing: [7L, batch, C]."""
        rows, channels = self._state_shape
        state = np.zeros((rows, batch, channels), np.float32)
        state[4::7] = self._p_init
        return state

    def logits(
        self, tokens: Array, state: Array, last: int
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Run tokens [T, B] and return logits [last, B, V] of the last tokens, and the new state.

        Raises:
            RuntimeFault: the runtime fails, e.g. out of memory.
        """
        feed = {"tokens": tokens, "state": state, "last": np.array([last], np.int64)}
        logits, new_state = self._run(["logits", "state_out"], feed)
        return logits, new_state

    def pooled(self, tokens: Array, state: Array, mask: Array) -> tuple[Array, Array, NDArray[np.float32]]:
        """Run tokens [T, B]; return the masked sum of features [B, C], token counts [B], and the state."""
        pooled, count, new_state = self._run(
            ["pooled", "n_tokens", "state_out"], {"tokens": tokens, "state": state, "mask": mask}
        )
        return pooled, count, new_state

    def _run(self, outputs: list[str], feed: dict[str, Array]) -> list[Any]:
        try:
            return list(self._session.run(outputs, feed))
        except Exception as error:  # noqa: BLE001 - see above
            raise RuntimeFault(
                "onnxruntime failed while running the model",
                found=_first_line(error),
                hint="see `conditions` for the memory that was free",
            ) from None

    def describe(self) -> dict[str, object]:
        """What was set, for the report."""
        return {
            "onnxruntime": self.runtime_version,
            "provider": self.provider,
            "threads": self.threads,
            "spinning": self.spinning,
        }


def _first_line(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return (text[0] if text else type(error).__name__)[:300]


def bundle_path_of(script: str) -> Path | None:
    """The bundle that a run.pyz lies in, None when it was not started as one."""
    path = Path(script).resolve()
    return path.parent if path.suffix == ".pyz" else None
