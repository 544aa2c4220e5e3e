"""The shape of the project itself: who imports whom, how long files are, and what a wheel contains."""

import ast
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILES = sorted((ROOT / "jaxnm").rglob("*.py"))
# each level may import those before it; members of the level of modules never import each other
FOUNDATION = {"status", "arguments", "trees"}
MODULES = {"filtering", "first_order", "stokes", "tensor_train"}


def _imports(path):
    """The parts of jaxnm that a file imports, by the name of the part."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "jaxnm":
            parts = node.module.split(".")
            found |= {parts[1]} if len(parts) > 1 else {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("jaxnm.")}
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_dependencies_point_one_way(path):
    part = path.relative_to(ROOT / "jaxnm").parts[0].removesuffix(".py")
    allowed = {
        "__init__": FOUNDATION | MODULES | {"linalg"},
        "status": set(),
        "arguments": set(),
        "trees": {"arguments"},
        "linalg": FOUNDATION | {"linalg"},
        "plot": FOUNDATION | MODULES | {"linalg", "plot"},
    }
    assert _imports(path) <= allowed.get(part, FOUNDATION | {"linalg", part})


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_stay_readable_and_set_nothing_global(path):
    text = path.read_text()
    assert len(text.splitlines()) <= 600
    tree = ast.parse(text)
    assert not any(isinstance(node, ast.Assert) for node in ast.walk(tree))
    assert "jax.config" not in text
    assert path.stem not in {"utils", "util", "misc", "helpers", "common"}


def test_requirements_agree_with_the_package_and_name_no_address():
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    listed = lambda name: {
        line.strip()
        for line in (ROOT / "requirements" / f"{name}.in").read_text().splitlines()
        if line.strip() and not line.startswith(("#", "-r"))
    }
    assert listed("run") == set(wanted["dependencies"])
    for name in ("test", "docs", "examples", "bench"):
        assert listed(name) == set(wanted["optional-dependencies"][name])
    for lock in (ROOT / "requirements").glob("*.txt"):
        text = lock.read_text()
        assert "://" not in text
        assert "--hash=sha256:" in text


def test_a_wheel_holds_every_file_of_the_package(tmp_path, monkeypatch):
    from hatchling.build import build_wheel

    monkeypatch.chdir(ROOT)
    name = build_wheel(str(tmp_path))
    packed = set(zipfile.ZipFile(tmp_path / name).namelist())
    for path in [*FILES, ROOT / "jaxnm" / "py.typed"]:
        assert str(path.relative_to(ROOT)) in packed
    assert not any(entry.startswith(("tests", "benchmarks", "examples")) for entry in packed)
