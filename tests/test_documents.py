"""The pages of docs/: their code runs, their links work, and the reference is complete."""

import importlib
import os
import re
import shlex
import sys
from enum import Enum
from itertools import chain
from pathlib import Path
from typing import Annotated, Literal

import pytest
import typer
import yaml
from command_line import call

import nnbuild
from nnbuild.store import Store, data_dictionary, schemas
from tasks import events as task_events

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
AT_THE_TOP = [ROOT / f"{name}.md" for name in ("README", "CONTRIBUTING", "SECURITY", "CHANGELOG")]
BLOCK = re.compile(r"^```(python|sh)\n(.*?)^```", re.DOTALL | re.MULTILINE)
CODE = re.compile(r"^( *)```.*?^\1```", re.DOTALL | re.MULTILINE)
WIDTH = 100


def text(page: str) -> str:
    return (DOCS / page).read_text(encoding="utf-8")


def run_blocks(page: str, capfd, languages: tuple[str, ...] = ("python", "sh")) -> int:
    """Run the code of a page in the order in which it stands there; return the number of blocks."""
    names: dict[str, object] = {}
    blocks = [each for each in BLOCK.findall(text(page)) if each[0] in languages]
    for language, block in blocks:
        if language == "python":
            exec(compile(block, page, "exec"), names)  # noqa: S102
            continue
        for line in block.splitlines():
            outcome = call(capfd, *shlex.split(line)[1:])
            assert outcome.code == 0, outcome
    return len(blocks)


@pytest.fixture
def empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("NNBUILD_STORE", raising=False)
    return tmp_path


def test_quick_start_runs_from_top_to_bottom(capfd, empty_folder, prefect_server):
    assert run_blocks("guide/quick-start.md", capfd) == 5
    store = Store("nnbuild-store")
    assert len(store.run_ids()) == 2
    assert store.read_table("decisions").num_rows == 2
    assert (empty_folder / "trends.html").stat().st_size > 1000


def test_example_networks_train_and_score(capfd, empty_folder, prefect_server):
    page = "guide/custom-network.md"
    sources = [block for language, block in BLOCK.findall(text(page)) if language == "python"]
    for name, source in zip(("small_resnet", "fine_tuned"), sources, strict=True):
        (empty_folder / f"{name}.py").write_text(source)
    assert run_blocks(page, capfd, ("sh",)) == 2
    store = Store("nnbuild-store")
    first, second = (store.read_table("runs", each).to_pylist()[0] for each in store.run_ids())
    assert [first["model"], second["model"]] == ["small_resnet:build", "fine_tuned:build"]
    assert first["test_accuracy"] > 0.9
    for run_id in store.run_ids():
        assert (empty_folder / "nnbuild-store" / "runs" / run_id / "model.onnx").exists()


@pytest.mark.parametrize(
    ("page", "blocks"),
    [("guide/logits.md", 4), ("guide/sweeps.md", 1), ("reference/api/index.md", 1)],
)
def test_python_code_runs(capfd, empty_folder, page, blocks):
    assert run_blocks(page, capfd) == blocks


@pytest.mark.parametrize("page", [*PAGES, *AT_THE_TOP], ids=lambda page: page.stem)
def test_links_lead_to_files(page):
    for link in re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text(encoding="utf-8")):
        assert (page.parent / link).exists(), link


@pytest.mark.parametrize("page", [*PAGES, *AT_THE_TOP], ids=lambda page: page.stem)
def test_prose_is_at_most_100_columns_wide(page):
    prose = CODE.sub("", page.read_text(encoding="utf-8"))
    wide = [line for line in prose.splitlines() if len(line) > WIDTH]
    assert not [line for line in wide if not line.lstrip().startswith(("|", "!["))]


def test_every_page_is_in_the_navigation():
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    listed = set(re.findall(r"[\w/-]+\.md", navigation.split("\nnav:")[1]))
    assert listed == {str(page.relative_to(DOCS)) for page in PAGES}


@pytest.fixture(scope="module")
def generator():
    sys.path.insert(0, str(DOCS))
    try:
        return importlib.import_module("_generate")
    finally:
        sys.path.remove(str(DOCS))


def test_generated_pages_are_current(generator):
    assert not list(generator.stale_pages()), "run make reference, and commit the pages"


def test_generated_sections_are_complete(generator):
    pages = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    found = set(re.findall(r"^<!-- generated: (\w+) ([\w-]+) -->$", pages, re.MULTILINE))
    expected = {("command", name) for name in generator.commands()}
    expected |= {("table", name) for name in schemas.TABLES}
    expected |= {("settings", name) for name in ("run", "score", "sweep")}
    assert found == expected | {("networks", "setting")}
    assert pages.count("<!-- end -->") == len(found)


def test_generate_replaces_the_section_only(generator):
    page = "before\n<!-- generated: command serve -->\nstale line\n<!-- end -->\nafter\n"
    new = generator.generate(page)
    assert new.startswith("before\n<!-- generated: command serve -->\n\n")
    assert new.endswith("\n\n<!-- end -->\nafter\n")
    assert "stale line" not in new
    assert "| `--score-input` `PATH`, `GLOB` or `URL` |" in new
    assert generator.generate(new) == new


OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]+")
OTHER_PROGRAMS = {  # Dask, Prefect and systemd
    *("--nthreads", "--nworkers", "--from-file", "--type", "--pool", "--all", "--host", "--now"),
}


@pytest.mark.parametrize("page", [*DOCS.glob("guide/*.md"), *DOCS.glob("reference/*.md")])
def test_options_of_the_pages_exist(page):
    from flows.cli.app import load_commands

    options = {
        name
        for command in load_commands().commands.values()
        for parameter in command.params
        for name in (*parameter.opts, *parameter.secondary_opts)
    }
    code = re.findall(
        r"^```.*?^```|`[^`\n]+`", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
    )
    named = {name for each in code for name in OPTION.findall(each)}
    assert named <= {*options, *OTHER_PROGRAMS, "--help", "--version"}


class Kind(Enum):
    ROW = "row"
    FILE = "file"


def test_option_rows_show_choices_and_defaults(generator):
    app = typer.Typer()

    @app.command()
    def one(
        kind: Annotated[Kind, typer.Option(help="What.")] = Kind.ROW,
        order: Annotated[Literal["up", "down"], typer.Option(help="How.")] = "up",
        late: Annotated[bool, typer.Option("--late/--no-late", help="When.")] = False,  # noqa: FBT002
        model: Annotated[str | None, typer.Option(metavar="ID", show_default="champion")] = None,
    ) -> None:
        """Do one thing."""

    rows = generator.option_rows(typer.main.get_command(app))
    assert list(rows)[:4] == [
        ["`--kind` `row` or `file`", "What.", "`row`"],
        ["`--order` `up` or `down`", "How.", "`up`"],
        ["`--late/--no-late`", "When.", "`--no-late`"],
        ["`--model ID`", "", "champion"],
    ]


@pytest.mark.parametrize("name", schemas.TABLES)
def test_describe_names_every_column_and_no_other(name):
    schema = schemas.documented(name)
    columns = ["prob_*" if column == "prob_0" else column for column in schema.names]
    described = data_dictionary.describe(name)
    assert list(described) == columns
    assert all(text.endswith((".", "…")) for text in described.values())


def test_every_public_name_is_in_the_api_pages():
    pages = "\n".join(
        page.read_text(encoding="utf-8") for page in (DOCS / "reference/api").iterdir()
    )
    described = set(re.findall(r"^::: (\S+)$", pages, re.MULTILINE))
    for name in nnbuild.__all__:
        module = getattr(nnbuild, name).__module__
        assert {f"{module}.{name}", module, f"nnbuild.{name}"} & described, name


def test_events_page_has_every_event_and_artifact():
    page = text("reference/events.md")
    events = {each for each in vars(task_events).values() if str(each).startswith("nnbuild.")}
    sources = chain((ROOT / "tasks").rglob("*.py"), (ROOT / "flows").rglob("*.py"))
    code = "\n".join(path.read_text(encoding="utf-8") for path in sources)
    shown = re.findall(r"(?:artifact|scoring)_key\(\s*f?\"(nnbuild-[\w-]+)", code)
    assert len(shown) > 8
    for name in {*map(str, events), *shown} - {"nnbuild-"}:
        assert f"`{name}`" in page, name


def test_environment_page_has_every_variable():
    page = text("reference/environment.md")
    places = [ROOT / name for name in ("nnbuild", "tasks", "flows")]
    sources = chain([ROOT / "prefect.yaml"], *(place.rglob("*.py") for place in places))
    code = "\n".join(path.read_text(encoding="utf-8") for path in sources)
    for name in set(re.findall(r"\bNNBUILD_[A-Z_]+[A-Z]\b", code)):
        assert f"`{name}`" in page, name


@pytest.mark.parametrize(
    "example", yaml.safe_load(text("automations.yaml")), ids=lambda e: e["name"]
)
def test_example_automations_use_documented_events(example):
    assert all(
        f"`{event}`" in text("reference/events.md") for event in example["trigger"]["expect"]
    )


def test_architecture_page_has_every_package():
    page = text("development/architecture.md")
    for path in (ROOT / "nnbuild").iterdir():
        if path.is_dir() and any(path.glob("*.py")):
            assert f"| `nnbuild/{path.name}/` |" in page, path.name
    for name in re.findall(r"`((?:nnbuild|tasks|flows|tests|benchmarks)/[\w/.]*)`", page):
        assert (ROOT / name).exists(), name


def test_programs_named_in_pages_exist():
    for page in PAGES:
        for name in re.findall(r"benchmarks/\w+\.py", page.read_text(encoding="utf-8")):
            assert (ROOT / name).exists(), f"{page}: {name}"


def test_pages_named_in_code_exist():
    for folder in ("nnbuild", "tasks", "flows", "benchmarks"):
        for path in (ROOT / folder).rglob("*.py"):
            for page in re.findall(r"docs/[\w/-]+\.md", path.read_text(encoding="utf-8")):
                assert (ROOT / page).exists(), f"{path}: {page}"


def test_placement_page_says_what_its_program_measures(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    placements, stability = (
        importlib.import_module(name) for name in ("softmax_placement", "stability")
    )
    monkeypatch.setattr(placements, "SCALES", (1, 100))
    rows = placements.numerics(40)
    assert len(rows) == 3 * 2 * 3 * 2
    for row in rows:
        wrong = row["wrong_gradient"]
        rescued = row["placement"] == "inside" and row["type"] == "float32" and row["compiled"]
        if row["placement"] == "outside" or row["scale"] == 1 or rescued:
            assert (row["wrong_loss"], wrong, row["not_finite"]) == (0, 0, 0), row
        else:
            assert wrong > 0.5, row
    printed = stability.markdown(stability.pivot(rows, "wrong_gradient")).splitlines()
    assert printed[0] == "| type | placement | run | ×1 | ×100 |"
    assert len(printed) == 2 + 3 * 3 + 1  # compiled and eager differ for one placement in one type
    assert "<svg" in stability.figure(rows)


def test_committed_files_name_no_index_and_no_path_of_a_machine():
    for folder, _, files in os.walk(ROOT):
        parts = Path(folder).relative_to(ROOT).parts
        if any(part.startswith(".") and part not in {".ci", ".github"} for part in parts):
            continue
        for name in files:
            path = Path(folder) / name
            if path.suffix in {".py", ".md", ".toml", ".txt", ".yaml", ".yml", ""}:
                content = path.read_text(encoding="utf-8", errors="replace")
                index = r"pypi\.org|pythonhosted|--index-url|/home/\w+/|/root/"
                assert path.name == Path(__file__).name or not re.search(index, content), path
