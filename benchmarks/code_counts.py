"""Count what makes the code easy or hard to read: files, docstrings, names, exceptions to rules.

    python benchmarks/code_counts.py [FOLDER]

FOLDER is a checkout of the repository; the default is the one of this program.
"""

import argparse
import ast
import re
import statistics
import subprocess
from collections.abc import Iterator
from pathlib import Path

VERBS = frozenset(
    """
    accept add answer append apply ask assemble attach average begin bind bound break bring build
    calibrate call cancel capture carry catch change check choose clean clear clip close collect
    combine commit compare compile complete compute concatenate configure connect convert copy
    correct count create cut decide decode decorate defer delete describe detect discard display
    divide do download draw emit encode end enforce ensure escape estimate evaluate exclude exit
    expand explain export express extract fail fill filter find finish fit fix flatten flush fold
    follow form format free generate get give group hand handle have hide hold ignore import include
    infer ingest initialize insert install iterate join keep kill label lay leave let limit link
    list load lock log look make map mark mask match measure merge move multiply name normalize note
    notify open order pad parse pass pause pick pin plan point post predict prefetch prepare print
    process promote propose prune publish put query quit quote raise read rebuild recall receive
    record recover reduce refuse register release remember remove rename render repair repeat
    replace report request require rescale reserve reset resize resolve restore resume retrain retry
    return reverse revoke roll round run sanitize save say scale scan schedule score search see
    select send serve set shift shorten show shuffle sign simulate skip sort split start stop store
    strip submit suggest sum summarise summarize suppress tag take tear tell test time trace track
    train transform translate transpose try turn unlink unpack unpin update upload use validate
    verify view wait walk warn watch weigh withdraw wrap write yield zip
    """.split()  # noqa: SIM905
)
SHORT_FILE = 50
STEP_DEFINITIONS = "step_results.py"  # the name of a step, with the type of its result
LONG_LINE = 100
STEPS = re.compile(
    r"\"(load_data|check_data|build_model|compile_model|fit_model|persist_history|evaluate_model|calibrate_model|"
    r"score_test_set|export_model|write_report)\""
)


def sources(root: Path, *folders: str) -> Iterator[Path]:
    """Yield the Python files of some folders of a checkout, sorted by path."""
    for folder in folders:
        yield from sorted((root / folder).rglob("*.py"))


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """Yield all functions and methods of a syntax tree, nested ones included."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def is_imperative(docstring: str) -> bool:
    """Return whether a docstring opens with one of VERBS."""
    return re.split(r"[\s,;:.(]", docstring.strip().lower(), maxsplit=1)[0] in VERBS


def import_graph(root: Path) -> dict[str, set[str]]:
    """Return which modules of the library each module imports at its top level."""
    modules = {
        ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__"): path
        for path in sources(root, "nnbuild", "tasks", "flows")
    }
    graph: dict[str, set[str]] = {name: set() for name in modules}
    for name, path in modules.items():
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ImportFrom):
                for each in node.names:
                    target = f"{node.module}.{each.name}"
                    graph[name].add(target if target in modules else str(node.module))
        graph[name] &= modules.keys() - {name}
    return graph


def count_modules_in_cycles(root: Path) -> int:
    """Count the modules that import themselves through other modules."""
    graph = import_graph(root)

    def reachable(start: str) -> set[str]:
        seen, pending = set(), [start]
        while pending:
            for target in graph[pending.pop()] - seen:
                seen.add(target)
                pending.append(target)
        return seen

    return sum(name in reachable(name) for name in graph)


def count(root: Path) -> dict[str, float]:
    """Return all counts of a checkout, by description."""
    paths = list(sources(root, "nnbuild", "tasks", "flows"))
    texts = {path: path.read_text() for path in paths}
    trees = {path: ast.parse(text) for path, text in texts.items()}
    lines = [line for text in texts.values() for line in text.splitlines()]
    nodes = [node for tree in trees.values() for node in functions(tree)]
    docstrings = [text for node in nodes if (text := ast.get_docstring(node))]
    tests = [
        node.name.removeprefix("test_")
        for path in sources(root, "tests")
        for node in functions(ast.parse(path.read_text()))
        if node.name.startswith("test_")
    ]
    return {
        "Python files of the library": len(paths),
        "loose modules in nnbuild/ (without __init__)": len(
            [each for each in (root / "nnbuild").glob("*.py") if each.name != "__init__.py"]
        ),
        "modules in an import cycle": count_modules_in_cycles(root),
        f"files of at most {SHORT_FILE} lines": sum(
            text.count("\n") <= SHORT_FILE for text in texts.values()
        ),
        "longest file, lines": max(text.count("\n") for text in texts.values()),
        "docstrings of functions that open with a verb, %": round(
            100 * sum(map(is_imperative, docstrings)) / len(docstrings), 1
        ),
        f"lines over {LONG_LINE} columns, %": round(
            100 * sum(len(line) > LONG_LINE for line in lines) / len(lines), 2
        ),
        "# noqa": sum("# noqa" in line for line in lines),
        "functions that return Any": sum(
            isinstance(node.returns, ast.Name) and node.returns.id == "Any" for node in nodes
        ),
        "median test name, characters": statistics.median(len(f"test_{each}") for each in tests),
        "lines with the name of a step as a string, outside its definition": sum(
            bool(STEPS.search(line))
            for path, text in texts.items()
            for line in text.splitlines()
            if path.name != STEP_DEFINITIONS and not line.startswith("__all__")
        ),
        "subscripts of a manifest": sum(len(re.findall(r"\bmanifest\[", line)) for line in lines),
    }


def main() -> None:
    """Print the commit of the checkout, and its counts."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "folder",
        type=Path,
        nargs="?",
        default=Path(__file__).parent.parent,
        help="checkout of the repository",
    )
    root = parser.parse_args().folder.resolve()
    commit = subprocess.run(
        ["git", "-C", root, "log", "-1", "--format=%h"],  # noqa: S607
        capture_output=True,
        text=True,
        check=False,
    ).stdout.strip()
    print(f"{root.name} {commit}")
    for name, number in count(root).items():
        print(f"{number:>8}  {name}")


if __name__ == "__main__":
    main()
