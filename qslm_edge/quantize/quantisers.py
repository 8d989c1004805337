"""The quantisers by name. A new one is one file with a subclass of `Quantiser` and one line here."""

from __future__ import annotations

from difflib import get_close_matches

from qslm_edge.errors import UsageError
from qslm_edge.quantize.base import Quantiser
from qslm_edge.quantize.gptq import Gptq
from qslm_edge.quantize.hqq import Hqq
from qslm_edge.quantize.rtn import Rtn

__all__ = ["QUANTISERS", "get_quantiser"]

QUANTISERS: dict[str, type[Quantiser]] = {"gptq": Gptq, "hqq": Hqq, "rtn": Rtn}


def get_quantiser(name: str) -> Quantiser:
    """The quantiser of this name with its default options.

    Raises:
        UsageError: unknown; the message proposes the nearest name.
    """
    if name not in QUANTISERS:
        near = get_close_matches(name.lower(), QUANTISERS, n=1)
        raise UsageError(
            "unknown quantiser",
            where="--quantiser",
            found=name,
            allowed=", ".join(QUANTISERS),
            hint=f"did you mean {near[0]}?" if near else None,
        )
    return QUANTISERS[name]()
