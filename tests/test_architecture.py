"""What the import contracts of pyproject.toml cannot say about the code."""

import ast
import importlib
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
OURS = {"nnbuild", "tasks", "flows"}


def sources(package: str) -> list[Path]:
    found = sorted((ROOT / package).rglob("*.py"))
    assert found
    return found


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


def test_no_array_is_unpickled():
    for package in sorted(OURS):
        for path in sources(package):
            assert "allow_pickle=True" not in path.read_text(encoding="utf-8"), path


@pytest.mark.parametrize(
    "statement",
    [
        "import nnbuild",
        "import nnbuild.store, nnbuild.logits, nnbuild.data.sources, nnbuild.scoring",
        "from flows.cli.main import invoke; invoke(['run', '--help'])",
    ],
)
def test_what_is_light_imports_neither_tensorflow_nor_prefect(statement):
    heavy = "{'tensorflow', 'prefect', 'keras'}"
    program = f"{statement}; import sys; print(sorted({heavy} & set(sys.modules)))"
    found = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert found.stdout.splitlines()[-1] == "[]"
