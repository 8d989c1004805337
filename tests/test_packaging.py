"""The hand-written packaging facts agree with the tree, and the wheel holds all of it and nothing else."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest
from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import qslm_edge

MOUNTED = ("exporters", "device_profiles")  # top-level folders that install as sub-packages
MAX_PROJECT_BYTES = 23 * 2**20
# What `make` installs; the gpu extra excludes cpu and is a user's own choice.
PINNED_EXTRAS = ("export", "text", "cpu", "nvml", "dev")
ANYWHERE = Marker("python_version > '3'")


@pytest.fixture(scope="module")
def pyproject(root: Path) -> dict[str, Any]:
    return tomllib.loads((root / "pyproject.toml").read_text("utf-8"))


@pytest.fixture(scope="module")
def constraints(root: Path) -> list[Requirement]:
    lines = (root / "constraints.txt").read_text("utf-8").splitlines()
    return [Requirement(line) for line in lines if line and not line.startswith("#")]


def installed_names(root: Path, pyproject: dict[str, Any]) -> set[str]:
    """Every file of the packages in the tree, as the path it must have when installed."""
    found = set()
    for package, folder in pyproject["tool"]["setuptools"]["package-dir"].items():
        for here, below, names in os.walk(root / folder):  # does not enter linked folders
            below[:] = [name for name in below if name != "__pycache__"]
            inside = Path(package.replace(".", "/"), Path(here).relative_to(root / folder))
            found |= {(inside / name).as_posix() for name in names if not Path(here, name).is_symlink()}
    return found


def test_package_list_matches_the_tree(root: Path, pyproject: dict[str, Any]) -> None:
    in_tree = {
        str(Path(name).parent).replace("/", ".")
        for name in installed_names(root, pyproject)
        if name.endswith("/__init__.py")
    }
    assert sorted(pyproject["tool"]["setuptools"]["packages"]) == sorted(in_tree)


def test_every_module_is_in_a_package(root: Path, pyproject: dict[str, Any]) -> None:
    packages = pyproject["tool"]["setuptools"]["packages"]
    modules = [name for name in installed_names(root, pyproject) if name.endswith(".py")]
    assert [name for name in modules if str(Path(name).parent).replace("/", ".") not in packages] == []


@pytest.mark.parametrize("name", MOUNTED)
def test_mounted_folder_is_mapped_and_linked(root: Path, pyproject: dict[str, Any], name: str) -> None:
    assert pyproject["tool"]["setuptools"]["package-dir"][f"qslm_edge.{name}"] == name
    assert (root / "qslm_edge" / name).readlink() == Path("..", name)


def test_changelog_has_an_entry_for_the_version(root: Path) -> None:
    text = (root / "CHANGELOG.md").read_text("utf-8")
    assert re.findall(r"^## \[(\d\S*)\]", text, re.MULTILINE)[0] == qslm_edge.__version__


def test_constraints_pin_exactly(constraints: list[Requirement]) -> None:
    loose = [str(line) for line in constraints if not re.fullmatch(r"==[\w.+]+", str(line.specifier))]
    assert loose == []


def test_constraints_cover_what_make_installs(
    pyproject: dict[str, Any], constraints: list[Requirement]
) -> None:
    project = pyproject["project"]
    wanted = list(project["dependencies"])
    for extra in PINNED_EXTRAS:
        wanted += project["optional-dependencies"][extra]
    requirements = [Requirement(text) for text in wanted]
    names = {
        canonicalize_name(item.name)
        for item in requirements
        if item.name != "qslm-edge"
        and (item.marker is None or item.marker.evaluate({"python_version": "3.11"}))
    }
    pinned: dict[str, Requirement] = {canonicalize_name(line.name): line for line in constraints}
    assert names <= pinned.keys()
    outside = [
        str(item)
        for item in requirements
        if item.name in pinned and not item.specifier.contains(str(pinned[item.name].specifier)[2:])
    ]
    assert outside == []


@pytest.mark.parametrize(
    ("platform", "machine"), [("linux", "x86_64"), ("linux", "aarch64"), ("darwin", "arm64")]
)
def test_torch_is_never_a_cuda_build(constraints: list[Requirement], platform: str, machine: str) -> None:
    where = {"sys_platform": platform, "platform_machine": machine}
    pins = [
        str(line.specifier)
        for line in constraints
        if line.name == "torch" and (line.marker or ANYWHERE).evaluate(where)
    ]
    assert len(pins) == 1
    assert pins[0].endswith("+cpu") == (platform == "linux")


def test_project_stays_small(project_files: list[Path]) -> None:
    assert sum(path.stat().st_size for path in project_files) < MAX_PROJECT_BYTES


def run(*command: str | Path, cwd: Path, site: Path | None = None) -> str:
    """The output of a command that must succeed; `site` is a folder to import from before all others."""
    extra = {} if site is None else {"PYTHONPATH": str(site), "PYTHONSAFEPATH": "1"}
    done = subprocess.run(
        command,
        cwd=cwd,
        env={**os.environ, **extra},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_wheel_built_from_the_sdist(root: Path, pyproject: dict[str, Any], tmp_path: Path) -> None:
    """One test, since the build is the slow part: contents, and use outside the tree. No network."""
    tree, dist, site, elsewhere = (tmp_path / name for name in ("tree", "dist", "site", "elsewhere"))
    elsewhere.mkdir()
    for name in ("qslm_edge", *MOUNTED):
        shutil.copytree(root / name, tree / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(root / name, tree)

    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", dist, tree, cwd=tmp_path)
    (wheel,) = dist.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if not name.endswith("/")}
    dist_info = f"qslm_edge-{qslm_edge.__version__}.dist-info"
    assert {name.split("/")[0] for name in names} == {"qslm_edge", dist_info}
    assert f"{dist_info}/licenses/LICENSE" in names
    packed = {name for name in names if name.startswith("qslm_edge/")}
    assert sorted(packed) == sorted(installed_names(root, pyproject))
    assert "qslm_edge/py.typed" in packed
    assert [name for name in packed if re.fullmatch(r"qslm_edge/device_profiles/[^/]+\.toml", name)] != []
    assert [name for name in packed if name.startswith("qslm_edge/reference/spikegpt-7m/")] != []

    pip_install = (sys.executable, "-m", "pip", "install", "--no-index", "--no-deps")
    run(*pip_install, "--target", site, wheel, cwd=elsewhere)
    found = run(sys.executable, "-c", "import qslm_edge; print(qslm_edge.__file__)", cwd=elsewhere, site=site)
    assert Path(found.strip()) == site / "qslm_edge" / "__init__.py"
    listed = run(sys.executable, site / "bin" / "qslm-edge", "profiles", "list", cwd=elsewhere, site=site)
    assert "jetson-orin-nano" in listed
