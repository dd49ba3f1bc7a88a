"""The README cannot rot: its commands and its code are run here."""

import os
import re
import shlex
from pathlib import Path

import duckdb
import pyarrow.parquet as pq
from command_line import call

from nnbuild.data import digits
from nnbuild.data.tables import split_table
from nnbuild.store import Store

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.DOTALL | re.MULTILINE)


def test_the_commands_the_code_and_the_query_work(capfd, tmp_path, monkeypatch, prefect_server):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("NNBUILD_STORE", raising=False)
    (tmp_path / "images").mkdir()
    pq.write_table(split_table(digits.load().test), tmp_path / "images" / "some.parquet")
    lines = [
        line for block in blocks("sh") for line in block.splitlines() if line.startswith("nnbuild ")
    ]
    assert len(lines) >= 4
    for line in lines:
        outcome = call(capfd, *shlex.split(line)[1:])
        assert outcome.code == 0, outcome
    for program in blocks("python"):
        exec(compile(program, "README.md", "exec"), {})  # noqa: S102
    assert len(Store(tmp_path / "nnbuild-store").run_ids()) == 2
    for query in blocks("sql"):
        assert len(duckdb.sql(query).fetchall()) == 2


def test_make_has_the_targets_that_are_named():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"^make (\w+)$|`make (\w+)`", README, re.MULTILINE):
        assert f"\n{''.join(target)}:" in makefile


def test_the_map_and_the_links_are_true():
    places = re.findall(
        r"^\| ((?:`[\w./]+`(?:, )?)+) \|", README.split("## The map")[1], re.MULTILINE
    )
    named = [name for each in places for name in re.findall(r"`([\w./]+)`", each)]
    assert len(named) >= 20
    for name in named:
        assert (ROOT / name).exists() or (ROOT / "nnbuild" / name).exists(), name
    for link in re.findall(r"\]\(([^)]+)\)", README):
        assert (ROOT / link).exists(), link
    rooms = {
        path.name
        for path in (ROOT / "nnbuild").iterdir()
        if path.is_dir() and path.name != "__pycache__"
    }
    assert rooms <= {Path(name).name for name in named}


def test_committed_files_name_no_index_and_no_path_of_a_machine():
    for folder, _, files in os.walk(ROOT):
        if any(
            part.startswith(".") and part != ".ci" for part in Path(folder).relative_to(ROOT).parts
        ):
            continue
        for name in files:
            path = Path(folder) / name
            if (
                path.suffix in {".py", ".md", ".toml", ".txt", ".yaml", ""}
                and path.name != "test_readme.py"
            ):
                text = path.read_text(encoding="utf-8", errors="replace")
                assert not re.search(
                    r"pypi\.org|pythonhosted|--index-url|/home/\w+/|/root/", text
                ), path
