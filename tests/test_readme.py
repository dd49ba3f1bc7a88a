"""The README: its commands, its code and its query work."""

import re
import shlex
from pathlib import Path

import duckdb
import pyarrow.parquet as pq
from command_line import call

from nnbuild.data import digits
from nnbuild.data.split_table import split_table
from nnbuild.store import Store, schemas

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.DOTALL | re.MULTILINE)


def test_commands_code_and_query_work(capfd, tmp_path, monkeypatch, prefect_server):
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


def test_make_has_the_targets_that_pages_name():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")]
    text = "\n".join(page.read_text(encoding="utf-8") for page in pages)
    code = "\n".join(re.findall(r"^```(?:ba)?sh\n(.*?)^```", text, re.DOTALL | re.MULTILINE))
    named = {
        *re.findall(r"^make ([\w-]+)", code, re.MULTILINE),
        *re.findall(r"`make ([\w-]+)", text),
    }
    assert len(named) > 5
    for target in named:
        assert f"\n{target}:" in makefile, target


def test_tables_are_those_of_the_store():
    listed = README.split("## The tables")[1].split("```")[0]
    names = re.findall(r"^\| (`\w+`(?:, `\w+`)*) \|", listed, re.MULTILINE)
    assert {name for each in names for name in re.findall(r"`(\w+)`", each)} == set(schemas.TABLES)
