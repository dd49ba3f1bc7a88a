"""The documents cannot rot: the tutorial's code is run, in its order, in a folder of its own."""

import importlib
import re
import shlex
from pathlib import Path

from command_line import call

import nnbuild
from nnbuild.store import Store

DOCS = Path(__file__).parent.parent / "docs"
BLOCK = re.compile(r"^```(python|sh)\n(.*?)^```", re.DOTALL | re.MULTILINE)


def test_the_tutorial_works_from_top_to_bottom(capfd, tmp_path, monkeypatch, prefect_server):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("NNBUILD_STORE", raising=False)
    blocks = BLOCK.findall((DOCS / "tutorial.md").read_text(encoding="utf-8"))
    assert {language for language, _ in blocks} == {"python", "sh"}
    names = {}
    for language, text in blocks:
        if language == "python":
            exec(compile(text, "tutorial.md", "exec"), names)  # noqa: S102
            continue
        for line in text.splitlines():
            outcome = call(capfd, *shlex.split(line)[1:])
            assert outcome.code == 0, outcome
    store = Store("nnbuild-store")
    assert len(store.run_ids()) == 2
    assert store.read_table("decisions").num_rows == 2
    assert (tmp_path / "trends.html").stat().st_size > 1000


def test_every_link_between_documents_leads_somewhere():
    for page in DOCS.rglob("*.md"):
        for link in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text(encoding="utf-8")):
            assert (page.parent / link).exists(), (page.name, link)


def test_every_public_name_has_its_place_in_the_api_pages():
    pages = "\n".join(page.read_text(encoding="utf-8") for page in (DOCS / "api").glob("*.md"))
    described = re.findall(r"^::: (\S+)$", pages, re.MULTILINE)
    for name in nnbuild.__all__:
        found = getattr(nnbuild, name)
        assert {f"{found.__module__}.{name}", found.__module__} & set(described), name


def test_what_the_document_on_stability_says_is_what_its_program_measures(monkeypatch):
    monkeypatch.syspath_prepend(str(DOCS.parent / "benchmarks"))
    placements, stability = (importlib.import_module(name) for name in ("placements", "stability"))
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
    printed = stability.markdown(stability.turned(rows, "wrong_gradient")).splitlines()
    assert printed[0] == "| type | placement | run | ×1 | ×100 |"
    assert len(printed) == 2 + 3 * 3 + 1  # compiled and eager differ for one placement in one type
    assert "<svg" in stability.figure(rows)
