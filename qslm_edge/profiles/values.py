"""The values that keys of a profile take, and the error of a check."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field
from pydantic_core import PydanticCustomError

__all__ = [
    "PRINTABLE",
    "Family",
    "PowerSource",
    "Provider",
    "Python",
    "Text",
    "Texts",
    "Version",
    "as_tuple",
    "distinct",
    "problem",
]


def problem(key: str, what: str, *, found: object = None, allowed: object = None) -> PydanticCustomError:
    """Build the error of a check that spans keys; ``loading.py`` turns it into the user's one line."""
    return PydanticCustomError(
        "profile", "{what}", {"key": key, "what": what, "found": found, "allowed": allowed}
    )


def as_tuple(value: Any) -> Any:
    """TOML has lists, frozen sections hold tuples."""
    return tuple(value) if isinstance(value, list) else value


def distinct(value: tuple[Any, ...]) -> tuple[Any, ...]:
    """The list as it is.

    Raises:
        PydanticCustomError: an entry stands twice.
    """
    if len(set(value)) != len(value):
        raise problem("", "an entry stands twice", found=list(value), allowed="each entry once")
    return value


PRINTABLE = r"^[^\x00-\x1f\x7f]+$"
Text = Annotated[str, Field(min_length=1, max_length=400, pattern=PRINTABLE)]
Texts = Annotated[tuple[Text, ...], BeforeValidator(as_tuple), AfterValidator(distinct), Field(max_length=64)]
Version = Annotated[str, Field(pattern=r"^[0-9]{1,4}\.[0-9]{1,4}\.[0-9]{1,4}$")]
Provider = Literal["CPUExecutionProvider", "CUDAExecutionProvider"]
Family = Literal["jetson", "raspberry-pi", "arm-board", "x86", "nvidia-gpu", "apple", "other"]
Python = Annotated[str, Field(pattern=r"^3\.[0-9]{1,2}$")]
PowerSource = Literal[
    "ina3221",
    "ina3221x",
    "ina238",
    "tegrastats",
    "nvml",
    "rapl",
    "rpi-pmic",
    "hwmon",
    "battery",
    "powermetrics",
    "none",
]
