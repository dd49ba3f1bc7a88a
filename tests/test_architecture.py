"""The layout that the README draws: flows → tasks → nnbuild, and the heavy imports where they belong."""

import ast
import importlib
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ALLOWED = {
    "nnbuild": {"nnbuild"},
    "tasks": {"nnbuild", "tasks"},
    "flows": {"nnbuild", "tasks", "flows"},
}
OURS = set(ALLOWED)


def imports(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            names.add(str(node.module))
    return names


def sources(package: str) -> list[Path]:
    found = sorted((ROOT / package).rglob("*.py"))
    assert found
    return found


@pytest.mark.parametrize("package", sorted(OURS))
def test_imports_point_one_way(package):
    for path in sources(package):
        tops = {name.split(".")[0] for name in imports(path)}
        assert tops & OURS <= ALLOWED[package], path


def test_the_library_knows_no_prefect():
    for path in sources("nnbuild"):
        assert not any(name.split(".")[0] == "prefect" for name in imports(path)), path


def test_only_the_backend_imports_tensorflow():
    for package in OURS:
        for path in sources(package):
            if path != ROOT / "nnbuild" / "backend.py":
                assert not {name.split(".")[0] for name in imports(path)} & {
                    "tensorflow",
                    "keras",
                }, path


def test_benchmarks_import_what_is_there():
    """They are run seldom, so that a name that has moved would be found late."""
    for path in sources("benchmarks"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and str(node.module).split(".")[0] in OURS:
                module = importlib.import_module(str(node.module))
                modules = {
                    each.name for each in pkgutil.iter_modules(getattr(module, "__path__", []))
                }
                missing = [
                    each.name
                    for each in node.names
                    if each.name not in modules and not hasattr(module, each.name)
                ]
                assert not missing, f"{path}: {node.module}"


def test_nothing_unpickles():
    for package in OURS:
        for path in sources(package):
            assert not {name.split(".")[0] for name in imports(path)} & {
                "pickle",
                "cloudpickle",
                "dill",
                "joblib",
            }, path
            assert "allow_pickle=True" not in path.read_text(encoding="utf-8"), path


@pytest.mark.parametrize(
    "statement",
    [
        "import nnbuild",
        "import nnbuild.store, nnbuild.logits, nnbuild.data.sources, nnbuild.scoring",
        "import flows.cli; flows.cli.invoke(['run', '--help'])",
    ],
)
def test_what_is_light_imports_neither_tensorflow_nor_prefect(statement):
    program = f"{statement}; import sys; print(sorted({{'tensorflow', 'prefect', 'keras'}} & set(sys.modules)))"
    found = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert found.stdout.splitlines()[-1] == "[]"
