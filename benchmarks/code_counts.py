"""Count what makes the code hard or easy to read: files, docstrings, names, exceptions to the rules.

Usage: python benchmarks/code_counts.py [FOLDER]  (a checkout; this one if not given)
"""

import ast
import re
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

VERBS = frozenset(
    """
    accept add answer append apply ask assemble attach average begin bind bound break bring build calibrate call cancel
    capture carry catch change check choose clean clear clip close collect combine commit compare compile complete
    compute concatenate configure connect convert copy count create cut decide decode decorate defer delete describe
    detect discard display divide do download draw emit encode end enforce ensure escape estimate evaluate exit expand
    explain export express extract fail fill filter find finish fit fix flatten flush fold follow form format free
    generate get give group handle have hide hold import include infer initialize insert install iterate join keep
    label lay leave let limit link list load lock log look make map mark mask match measure merge move multiply name
    normalize note notify open order pad parse pass pause pick plan point predict prefetch prepare print process
    promote propose prune publish put query quit quote raise read rebuild recall receive record recover reduce refuse
    register release remember remove rename render repair repeat replace report request require rescale reserve reset
    resize resolve restore resume retrain retry return reverse revoke roll round run sanitize save say scale scan
    schedule score search see select send serve set shift shorten show shuffle sign simulate skip sort split start
    stop store strip submit suggest sum summarize summarise suppress take tear tell test time trace track train
    transform translate transpose try turn unlink unpack update upload use validate verify view wait walk warn watch
    weigh withdraw wrap write yield zip
    """.split()  # noqa: SIM905
)
SHORT_FILE = 50
LONG_LINE = 100
STEPS = re.compile(
    r"\"(load_data|check_data|build_model|compile_model|fit_model|persist_history|evaluate_model|calibrate_model|"
    r"score_test_set|export_model|write_report)\""
)


def sources(root: Path, *folders: str) -> Iterator[Path]:
    for folder in folders:
        yield from sorted((root / folder).rglob("*.py"))


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def is_imperative(docstring: str) -> bool:
    return re.split(r"[\s,;:.(]", docstring.strip().lower(), maxsplit=1)[0] in VERBS


def arrows(root: Path) -> dict[str, set[str]]:
    """Return what each module imports at its top level of the other modules."""
    modules = {
        ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__"): path
        for path in sources(root, "nnbuild", "tasks", "flows")
    }
    found: dict[str, set[str]] = {name: set() for name in modules}
    for name, path in modules.items():
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ImportFrom):
                for each in node.names:
                    target = f"{node.module}.{each.name}"
                    found[name].add(target if target in modules else str(node.module))
        found[name] &= modules.keys() - {name}
    return found


def circles(root: Path) -> int:
    """Return how many modules import themselves by way of others."""
    graph = arrows(root)

    def reached(start: str) -> set[str]:
        seen, waiting = set(), [start]
        while waiting:
            for target in graph[waiting.pop()] - seen:
                seen.add(target)
                waiting.append(target)
        return seen

    return sum(name in reached(name) for name in graph)


def main(root: Path) -> None:
    paths = list(sources(root, "nnbuild", "tasks", "flows"))
    texts = {path: path.read_text() for path in paths}
    trees = {path: ast.parse(text) for path, text in texts.items()}
    lines = [line for text in texts.values() for line in text.splitlines()]
    every = [node for tree in trees.values() for node in functions(tree)]
    docstrings = [text for node in every if (text := ast.get_docstring(node))]
    tests = [
        node.name.removeprefix("test_")
        for path in sources(root, "tests")
        for node in functions(ast.parse(path.read_text()))
        if node.name.startswith("test_")
    ]
    counts = {
        "Python files of the library": len(paths),
        "loose modules in nnbuild/ (without __init__)": len(
            [each for each in (root / "nnbuild").glob("*.py") if each.name != "__init__.py"]
        ),
        "modules in an import circle": circles(root),
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
            isinstance(node.returns, ast.Name) and node.returns.id == "Any" for node in every
        ),
        "median test name, characters": statistics.median(len(f"test_{each}") for each in tests),
        "lines with a step's name as a string": sum(bool(STEPS.search(line)) for line in lines),
        "subscripts of a manifest": sum(len(re.findall(r"\bmanifest\[", line)) for line in lines),
    }
    commit = subprocess.run(
        ["git", "-C", root, "log", "-1", "--format=%h"],  # noqa: S607
        capture_output=True,
        text=True,
        check=False,
    ).stdout.strip()
    print(f"{root.name} {commit}")
    for name, count in counts.items():
        print(f"{count:>8}  {name}")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parent.parent).resolve())
