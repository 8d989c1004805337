"""Reading and writing report.json, and its documentation."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from qslm_edge.errors import OutputError, RunError
from qslm_edge.report.model import SCHEMA, build_report, read_report, write_report
from qslm_edge.search.constraints import Constraints

Report = dict[str, Any]
JsonSchema = dict[str, Any]
TYPES: dict[str, type | tuple[type, ...]] = {
    "object": dict,
    "array": list,
    "string": str,
    "integer": int,
    "number": (int, float),
    "boolean": bool,
    "null": type(None),
}
KEYWORDS = {
    "$schema", "$defs", "$ref", "title", "type", "const", "enum",
    "required", "properties", "additionalProperties", "items",
}  # fmt: skip


def test_written_and_read_again(any_report: Report, tmp_path: Path) -> None:
    write_report(any_report, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.html", "report.json", "report.md"]
    assert read_report(tmp_path) == read_report(tmp_path / "report.json") == any_report


def test_a_report_is_joined_from_the_steps_without_infinity(small: Report) -> None:
    verification = small["verification"]
    verification["scoring"]["splits"]["report"]["comparison"]["standard_error"] = math.inf  # of a single item
    parts = {key: small[key] for key in ("model", "export", "search", "seconds")}
    plan = SimpleNamespace(
        recipe=SimpleNamespace(model_dump=lambda **_: small["recipe"]),
        profile=SimpleNamespace(to_manifest=lambda: small["profile"]),
        task=SimpleNamespace(name="wikitext2", title="WikiText-2"),
        constraints=Constraints(**small["constraints"]),
    )
    manifest = {key: small[key] for key in ("task", "setting", "quantiser", "tuning", "weights")} | {
        "cuts": None
    }
    bundle = SimpleNamespace(
        manifest=manifest, path=Path("runs/small/bundle"), digest=small["bundle"]["digest"]
    )
    report = build_report(cast(Any, plan), parts.pop("model"), cast(Any, bundle), verification, **parts)
    json.dumps(report, allow_nan=False)
    assert report["verification"]["scoring"]["splits"]["report"]["comparison"]["standard_error"] is None
    assert "±" not in report["summary"][0]["change"]
    assert report.keys() == small.keys() | {"cuts"}
    assert report["task"] == small["task"]


def test_infinity_is_refused_in_the_file(small: Report, tmp_path: Path) -> None:
    small["seconds"]["search"] = float("inf")
    with pytest.raises(ValueError, match="JSON"):
        write_report(small, tmp_path)


def test_a_place_that_cannot_be_written(small: Report, tmp_path: Path) -> None:
    with pytest.raises(OutputError):
        write_report(small, tmp_path / "missing")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no report here"),
        ("{", "cannot be read"),
        ("[" * 100_000, "cannot be read"),
        ("\ud800", "cannot be read"),
        ("[]", "found list; allowed: qslm-edge/report/1"),
        ('{"schema": "qslm-edge/report/2"}', "found qslm-edge/report/2"),
        ('{"verdict": "pass"}', "not a report of this version"),
    ],
)
def test_what_is_no_report(content: str | None, message: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "report.json").write_bytes(content.encode("utf-8", "surrogatepass"))
    with pytest.raises(RunError, match=re.escape(message)):
        read_report(tmp_path)


@pytest.fixture(scope="module")
def schema(root: Path) -> JsonSchema:
    read: JsonSchema = json.loads((root / "docs" / "report.schema.json").read_text("utf-8"))
    return read


def problems(value: Any, schema: JsonSchema, top: JsonSchema, path: str = "$") -> Iterator[str]:
    """What a value has against the few keywords that our schema uses; unknown keys count too."""
    assert schema.keys() <= KEYWORDS
    if "$ref" in schema:
        yield from problems(value, top["$defs"][schema["$ref"].removeprefix("#/$defs/")], top, path)
        return
    names = schema.get("type", [])
    names = [names] if isinstance(names, str) else names
    if names and not any(
        isinstance(value, TYPES[name]) and (name == "boolean" or not isinstance(value, bool))
        for name in names
    ):
        yield f"{path}: {value!r} is not {' or '.join(names)}"
    if "const" in schema and value != schema["const"]:
        yield f"{path}: {value!r} is not {schema['const']!r}"
    if "enum" in schema and value not in schema["enum"]:
        yield f"{path}: {value!r} is not one of {schema['enum']}"
    if isinstance(value, dict):
        yield from (f"{path}: {key} is missing" for key in schema.get("required", []) if key not in value)
        known, others = schema.get("properties", {}), schema.get("additionalProperties")
        for key, below in value.items():
            if key in known:
                yield from problems(below, known[key], top, f"{path}.{key}")
            elif isinstance(others, dict):
                yield from problems(below, others, top, f"{path}.{key}")
            elif known:
                yield f"{path}: {key} is not described"
    if isinstance(value, list) and "items" in schema:
        for number, below in enumerate(value):
            yield from problems(below, schema["items"], top, f"{path}[{number}]")


def test_reports_meet_the_schema(any_report: Report, schema: JsonSchema) -> None:
    assert list(problems(any_report, schema, schema)) == []


def test_measured_energy_meets_the_schema(measured_energy: Report, schema: JsonSchema) -> None:
    assert list(problems(measured_energy, schema, schema)) == []


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"verdict": "maybe"}, "$.verdict: 'maybe' is not one of"),
        ({"exit_code": True}, "$.exit_code: True is not integer"),
        ({"extra": 1}, "$: extra is not described"),
        ({"seconds": {"search": "1"}}, "$.seconds.search: '1' is not number"),
        ({"summary": [{}]}, "$.summary[0]: figure is missing"),
    ],
)
def test_the_schema_refuses(small: Report, schema: JsonSchema, change: Report, problem: str) -> None:
    found = list(problems({**small, **change}, schema, schema))
    assert found
    assert found[0].startswith(problem)


def names_in(schema: JsonSchema) -> Iterator[str]:
    for key, below in schema.items():
        if key in ("properties", "$defs"):
            yield from (name for name in below if key == "properties")
            for part in below.values():
                yield from names_in(part)
        elif isinstance(below, dict):
            yield from names_in(below)


def test_every_field_is_documented(root: Path, schema: JsonSchema) -> None:
    text = (root / "docs" / "report.md").read_text("utf-8")
    documented = set(re.findall(r"[A-Za-z_0-9]+", " ".join(re.findall(r"`([^`]+)`", text))))
    assert sorted(set(names_in(schema)) - documented) == []
    assert SCHEMA in text
