"""What runs on a board needs only what boards have: Python 3.10, numpy and a runtime; no torch, no onnx.

import-linter (`make lint`) checks the direction of the layers. Here the runner is really imported with the
host's libraries blocked, and everything that it can reach is read for syntax and names newer than 3.10.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = "qslm_edge"
# Third-party modules that what runs on a board may name; the last two are loaded where they are needed.
ON_BOARDS = frozenset({"numpy", "onnxruntime", "psutil", "pynvml"})
BLOCKED = (
    *("onnx", "pydantic", "psutil", "pynvml", "rich", "safetensors", "scipy"),
    *("tokenizers", "tomli", "tomllib", "torch", "typer"),
)
IMPORT_BLOCKED = """
import importlib, importlib.abc, pkgutil, sys

blocked = set(sys.argv[1:])

class Block(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in blocked:
            raise ModuleNotFoundError(f"blocked: {name}", name=name)
        return None

sys.meta_path.insert(0, Block())
for name in blocked:
    try:
        importlib.import_module(name)
    except ModuleNotFoundError:
        continue
    sys.exit(f"{name} was not blocked")

import qslm_edge.runner

print("qslm_edge.runner")
for module in pkgutil.walk_packages(qslm_edge.runner.__path__, "qslm_edge.runner."):
    importlib.import_module(module.name)
    print(module.name)
"""
# Standard library newer than 3.10; None: the whole module.
NEWER: dict[str, frozenset[str] | None] = {
    "tomllib": None,
    "wsgiref.types": None,
    "asyncio": frozenset({"Barrier", "Runner", "TaskGroup", "timeout", "timeout_at"}),
    "builtins": frozenset({"BaseExceptionGroup", "ExceptionGroup", "PythonFinalizationError"}),
    "contextlib": frozenset({"chdir"}),
    "datetime": frozenset({"UTC"}),
    "enum": frozenset({"EnumCheck", "ReprEnum", "StrEnum", "global_enum", "member", "nonmember", "verify"}),
    "hashlib": frozenset({"file_digest"}),
    "itertools": frozenset({"batched"}),
    "logging": frozenset({"getLevelNamesMapping"}),
    "math": frozenset({"cbrt", "exp2", "fma", "sumprod"}),
    "operator": frozenset({"call"}),
    "typing": frozenset(
        {"LiteralString", "Never", "NotRequired", "ReadOnly", "Required", "Self", "TypeAliasType", "TypeIs"}
        | {"TypeVarTuple", "Unpack", "assert_never", "assert_type", "dataclass_transform", "override"}
    ),
}


def source_of(root: Path, module: str) -> Path | None:
    """The file of a module in the tree, None when the name is not that of a module."""
    base = root.joinpath(*module.split("."))
    for path in (base / "__init__.py", base.with_suffix(".py")):
        if path.is_file():
            return path
    return None


def imports_in(tree: ast.AST) -> Iterator[tuple[str, str]]:
    """(module, name) for every import anywhere in a file; the name is empty for `import module`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from ((node.module or "", alias.name) for alias in node.names)


def newer_names(source: str) -> set[str]:
    """Names of the standard library in a file that Python 3.10 does not have."""
    tree = ast.parse(source, feature_version=(3, 10))
    found = set()
    for module, name in imports_in(tree):
        if module in NEWER and (NEWER[module] is None or name in (NEWER[module] or ())):
            found.add(f"{module}.{name}".rstrip("."))
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            if node.attr in (NEWER.get(node.value.id) or ()):
                found.add(f"{node.value.id}.{node.attr}")
        elif isinstance(node, ast.Name) and node.id in (NEWER["builtins"] or ()):
            found.add(node.id)
    return found


@pytest.fixture(scope="module")
def board_modules(root: Path) -> dict[str, Path]:
    """Everything of the project that importing or calling the runner can load, with its file."""
    folder = root / PACKAGE / "runner"
    todo = []
    for path in sorted(folder.rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        todo.append(".".join(parts[:-1] if parts[-1] == "__init__" else parts))
    found: dict[str, Path] = {}
    while todo:
        module = todo.pop()
        path_or_none = source_of(root, module)
        if path_or_none is None or module in found:
            continue
        found[module] = path_or_none
        todo.append(module.rpartition(".")[0])  # importing a module runs its parents
        for imported, name in imports_in(ast.parse(path_or_none.read_text("utf-8"))):
            if imported.partition(".")[0] == PACKAGE:
                todo += [imported, f"{imported}.{name}"]
    return found


def test_runner_imports_with_the_host_libraries_blocked(root: Path) -> None:
    command = [sys.executable, "-c", IMPORT_BLOCKED, *BLOCKED]
    done = subprocess.run(
        command, cwd=root, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    in_tree = {path for path in (root / PACKAGE / "runner").rglob("*.py") if path.name != "__init__.py"}
    assert len(done.stdout.split()) >= len(in_tree) + 1


def test_board_modules_name_only_what_boards_have(board_modules: dict[str, Path]) -> None:
    allowed = sys.stdlib_module_names | ON_BOARDS | {PACKAGE}
    wrong = [
        f"{module} imports {imported}"
        for module, path in sorted(board_modules.items())
        for imported, _ in imports_in(ast.parse(path.read_text("utf-8")))
        if imported.partition(".")[0] not in allowed
    ]
    assert wrong == []
    assert f"{PACKAGE}.runner" in board_modules


def test_board_modules_are_python_3_10(board_modules: dict[str, Path]) -> None:
    wrong = {module: newer_names(path.read_text("utf-8")) for module, path in board_modules.items()}
    assert {module: names for module, names in wrong.items() if names} == {}


def test_base_install_is_python_3_10(root: Path) -> None:
    """Off the board tomllib is allowed where tomli stands in for it on 3.10."""
    wrong = []
    for folder in (PACKAGE, "exporters", "device_profiles"):
        for path in sorted((root / folder).rglob("*.py")):
            source = path.read_text("utf-8")
            names = newer_names(source)
            if re.search(r"^\s*import tomli\b", source, re.MULTILINE):
                names.discard("tomllib")
            wrong += [f"{path.relative_to(root)}: {name}" for name in sorted(names)]
    assert wrong == []


@pytest.mark.parametrize(
    ("source", "names"),
    [
        ("import tomllib", {"tomllib"}),
        ("from enum import Enum, StrEnum", {"enum.StrEnum"}),
        ("import datetime\nnow = datetime.UTC", {"datetime.UTC"}),
        ("raise ExceptionGroup('', [])", {"ExceptionGroup"}),
        ("def f():\n    from typing import Any, Self", {"typing.Self"}),
        ("import math\nfrom enum import Enum\nmath.exp(1)", set()),
    ],
)
def test_newer_names_are_seen(source: str, names: set[str]) -> None:
    assert newer_names(source) == names


def test_newer_syntax_is_refused() -> None:
    with pytest.raises(SyntaxError):
        newer_names("try:\n    pass\nexcept* OSError:\n    pass")


def forbidden_text() -> re.Pattern[str]:
    """Written in pieces, so that this file is not a hit itself."""
    folders = [re.escape("/".join(("", *parts))) for parts in (("work", ""), ("root", ""), ("tmp", "w", ""))]
    homes = ["/" + "home" + r"/\w", "/" + "Users" + r"/\w", r"\b[A-Z]:\\+" + r"Users\\"]
    hosts = [
        re.escape(".".join(parts))
        for parts in (
            ("pypi", "org"),
            ("files", "pythonhosted"),
            ("download", "pytorch"),
            ("pypi", "nvidia"),
            ("registry", "npmjs"),
            ("deb", "debian", "org"),
        )
    ]
    return re.compile("|".join([*folders, *homes, *hosts, re.escape("../" + "shared")]))


def test_no_file_names_a_developer_machine_or_a_registry(root: Path, project_files: list[Path]) -> None:
    pattern = forbidden_text()
    wrong = []
    for path in project_files:
        content = path.read_bytes()
        if b"\0" in content[:4096]:
            continue  # weights and compressed data
        for number, line in enumerate(content.decode("utf-8", "replace").splitlines(), 1):
            hit = pattern.search(line)
            if hit:
                wrong.append(f"{path.relative_to(root)}:{number}: {hit.group()}")
    assert wrong == []


def test_forbidden_text_is_seen() -> None:
    pattern = forbidden_text()
    for text in ("see /" + "work/main", "/" + "home/me/x", "https://" + "pypi" + ".org/simple"):
        assert pattern.search(text)
    assert not pattern.search("runs/demo, /sys/class/hwmon, /usr/bin/python3, network/home")
