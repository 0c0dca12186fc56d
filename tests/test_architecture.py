"""Arrows go one way: what a room of the package may import is decided by its place in this list, from below."""

import ast
import re
import sys
import tomllib
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "anomaly3d"
DOORS = {path.stem for path in PACKAGE.glob("*.py")} - {"errors", "__init__"}
LEVELS = [
    {"errors"},
    {"system", "statistics"},
    {"scans"},
    {"atlas"},
    {"cohorts"},
    {"preprocessing"},
    {"networks", "data"},
    {"detectors"},
    {"phases"},
    {"runs"},
    {"training", "scoring"},
    {"evaluation"},
    {"report"},
    {"bundle"},
    DOORS,
]
LEVEL = {room: number for number, rooms in enumerate(LEVELS) for room in rooms}
FILES = sorted(PACKAGE.rglob("*.py"))


def imports(path: Path) -> set[str]:
    """Modules that a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def room(module: str) -> str | None:
    """The room of a module of this package; None for others and for the package itself."""
    parts = module.split(".")
    return parts[1] if parts[0] == "anomaly3d" and len(parts) > 1 and parts[1] in LEVEL else None


def test_every_room_has_its_place():
    rooms = {path.name for path in PACKAGE.iterdir() if path.is_dir() and (path / "__init__.py").exists()}
    assert rooms <= set(LEVEL)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_arrow_goes_up(path):
    here = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    if here == "__init__":
        return  # it hands out the Scorer when asked for it
    for module in imports(path):
        there = room(module)
        same = there == here or {there, here} <= DOORS
        assert there is None or same or LEVEL[there] < LEVEL[here], f"{here} imports {module}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_only_doors_hold_a_config_of_hydra(path):
    if path.relative_to(PACKAGE).parts[0].removesuffix(".py") not in DOORS:
        assert not {module for module in imports(path) if module.split(".")[0] == "omegaconf"}


def test_a_method_is_named_in_its_own_files_only():
    own = {"detectors/fanogan.py", "phases/gan.py", "phases/encoder.py", "phases/finetune.py", "phases/contrast.py"}
    own |= {
        "detectors/anogan.py",
        "detectors/alpha_fanogan.py",
        "detectors/fanogan_2d.py",
        "phases/alpha_gan.py",
    }  # methods that share its networks
    naming = {
        str(path.relative_to(PACKAGE)) for path in FILES if "fanogan" in path.read_text().lower().replace("-", "")
    }
    assert naming == own


NAMES = {
    "hydra": "hydra-core",
    "yaml": "pyyaml",
    "sklearn": "scikit-learn",
    "bids": "pybids",
    "PIL": "pillow",
}  # packages that are imported by another name


def test_every_package_that_is_imported_is_declared():
    """Also what another dependency happens to bring along; some are extras."""
    project = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text())["project"]
    names = ("bids", "dask", "dashboard", "dicom", "export", "sweep")
    extras = [text for name in names for text in project["optional-dependencies"][name]]
    listed = [*project["dependencies"], *extras]
    declared = {re.split(r"[<>=!\[ ]", text)[0].lower().replace("-", "_") for text in listed}
    imported = {module.split(".")[0] for path in FILES for module in imports(path)}
    third = imported - set(sys.stdlib_module_names) - {"anomaly3d"}
    assert {NAMES.get(name, name).replace("-", "_").lower() for name in third} <= declared
