"""Test texts of users in terminals, messages, logs, Markdown and HTML: shown literally."""

import logging
import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser

import pytest
from command_line import call
from hostile_text import ESCAPE, HOSTILE, controls
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from report_data import changed, made

from flows.cli import console
from nnbuild.report import render
from nnbuild.report.comparison import comparison_page, trends_page
from nnbuild.report.page import confusion_picture
from nnbuild.runtime.text import (
    markdown_code,
    markdown_text,
    printable,
    sanitize,
    sanitize_lines,
    sanitize_log_records,
)

MARKDOWN = MarkdownIt("commonmark").enable(["table", "strikethrough"])
BLOCKS = [each for each in HOSTILE if each[:1] in "#1->"]


class Texts(HTMLParser):
    """The text nodes and the tags of a page."""

    def __init__(self, page):
        super().__init__(convert_charrefs=True)
        self.texts, self.tags, self.attributes = [], [], []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(name, value) for name, value in attrs if value]

    def handle_data(self, data):
        self.texts.append(data)


@given(st.text())
def test_printable_escapes_controls(text):
    shown = printable(text)
    assert not controls(shown, allowed="")
    assert printable(shown) == shown


@given(st.text(alphabet=st.characters(categories=["L", "M", "N", "P", "S", "Zs"])))
def test_printable_leaves_what_people_write(text):
    assert printable(text) == text


def test_printable_shows_what_it_escapes():
    assert printable(ESCAPE) == r"\x1b[31mred\x1b[0m"
    assert printable("a\nb\tc\u202e\udc80") == r"a\nb\tc\u202e\udc80"


def test_lines_stay_lines():
    assert sanitize_lines(f"a\n\tb {ESCAPE}") == f"a\n\tb {printable(ESCAPE)}"


@pytest.mark.parametrize("text", HOSTILE)
@pytest.mark.parametrize("escape", [markdown_text, markdown_code])
def test_markdown_cell_shows_the_text(text, escape):
    page = MARKDOWN.render(f"| a | b |\n| --- | --- |\n| x | {escape(text)} |\n")
    found = Texts(page)
    assert set(found.tags) <= {"table", "thead", "tbody", "tr", "th", "td", "code"}
    assert found.attributes == []
    cell = re.search(r"<td>x</td>\n<td>(.*?)</td>", page, re.DOTALL)[1]
    assert "".join(Texts(cell).texts) == sanitize(text.strip())


@pytest.mark.parametrize("text", HOSTILE)
def test_markdown_sentence_shows_the_text(text):
    found = Texts(MARKDOWN.render(markdown_text(text)))
    assert found.tags == ["p"]
    assert "".join(found.texts).strip() == sanitize(text.strip())


@given(st.text(min_size=1))
def test_markdown_any_text_is_a_paragraph(text):
    found = Texts(MARKDOWN.render(f"x {markdown_text(text)}"))
    assert found.tags == ["p"]
    assert "".join(found.texts).split() == f"x {sanitize(text.strip())}".split()


def test_markdown_url_is_no_link():
    linked = MarkdownIt("gfm-like", {"linkify": False})  # the rules that need no other package
    assert "http://" not in markdown_text("http://auto.example")
    assert "www." not in markdown_text("www.auto.example")
    assert "a" not in Texts(linked.render(markdown_text("http://auto.example"))).tags


@pytest.mark.parametrize("text", HOSTILE)
@pytest.mark.parametrize("terminal", [False, True])
def test_table_shows_the_text(capsys, monkeypatch, text, terminal):
    if terminal:
        monkeypatch.setattr("sys.stdout.isatty", lambda: True)
        monkeypatch.setenv("TERM", "dumb")
    console.print_table([{text: text, "b": 1.5}], (text, "b"), "")
    console.print_table([], (), f"nothing in {text}")
    console.print_values({text: text})
    out = capsys.readouterr().out
    assert not controls(out)
    assert sanitize(text)[:20] in out
    assert sanitize(f"nothing in {text}") in out
    assert all(
        "forged" in line and not line.startswith("nnbuild")
        for line in out.split("\n")
        if "forged" in line
    )


@pytest.mark.parametrize("text", HOSTILE)
def test_display_shows_the_text(capsys, text):
    shown = console.display_for(console.PlainConsole(stderr=True))
    shown.note(text)
    shown.epoch(1, 2, {text: 1.0}, 3.0)
    shown.download(text, 5, 5)
    err = capsys.readouterr().err
    assert not controls(err)
    assert err.count("\n") == 3
    assert err.count(sanitize(text)) == 3


def test_live_display_shows_the_text(capsys):
    terminal = console.PlainConsole(stderr=True, force_terminal=True, width=200)
    shown = console.display_for(terminal)
    for text in HOSTILE:
        shown.step(1, 1, 1, 2, {text: 1.0})
        shown.download(text, 1, 2)
    shown.close()
    own = re.sub(
        r"\x1b\[[0-9;?]*[A-Za-z]", "", capsys.readouterr().err
    )  # what Rich moves the cursor by
    assert not controls(own, allowed="\n\r")


@pytest.mark.parametrize("text", HOSTILE)
def test_message_is_one_clean_line(capfd, tmp_path, text):
    outcome = call(capfd, "history", text, "--store", tmp_path / "store")
    assert outcome.code == 2
    assert outcome.err.count("\n") == 1
    assert outcome.err.startswith("nnbuild: ")
    assert not controls(outcome.err)


@pytest.mark.parametrize(
    "command", [("runs",), ("history",), ("champion",), ("trends",), ("doctor", "--repair")]
)
def test_store_path_is_shown_literally(capfd, tmp_path, command):
    root = tmp_path / f"[/x] {ESCAPE}\nstore"
    outcome = call(capfd, *command, "--store", root)
    assert outcome.code == 2  # there is no store
    assert not controls(outcome.out + outcome.err)
    assert f"[/x] {printable(ESCAPE)} store" in outcome.err


def test_csv_is_clean_on_terminal_only(monkeypatch):
    assert console.escape_for_terminal(ESCAPE) == ESCAPE
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    assert console.escape_for_terminal(ESCAPE) == printable(ESCAPE)
    assert console.escape_for_terminal(1.5) == 1.5


def test_page_escapes_texts():
    names = [*HOSTILE, "x"]
    manifest, tables, images = made(classes=len(names), images=4 * len(names), names=names)
    manifest.settings.dataset.name = manifest.row.dataset = HOSTILE[0]
    manifest.config["dataset"]["name"] = HOSTILE[0]
    manifest.config["texts"] = dict.fromkeys(HOSTILE, 1)
    steps = manifest.steps
    steps.load_data = changed(steps.load_data, source=HOSTILE[0])
    steps.fit_model = changed(steps.fit_model, remarks=tuple(HOSTILE))
    page = render(manifest, tables, images)
    found = Texts(page)
    assert not controls(page, allowed="\n\u2068\u2069")
    assert page.count("\u2068") == page.count("\u2069")
    assert {sanitize(text) for text in HOSTILE} <= set(found.texts)
    assert set(found.tags).isdisjoint({"script", "iframe", "a"})
    assert not [name for name, _ in found.attributes if name.startswith("on")]
    sources = {
        value.partition(":")[0] for name, value in found.attributes if name in {"src", "href"}
    }
    assert sources == {"data"}
    ET.fromstring(confusion_picture(tables["confusion"], names))  # noqa: S314  (our own)


def test_comparison_pages_escape_texts():
    row = {"promoted": True, "difference": None, "accuracy": 0.5, "loss": 1.0}
    row |= {"expected_calibration_error": 0.1, "seconds": 1.0, "test_set": "small, 45 images"}
    rows = [
        {"run_id": f"r{place}", "model": text, "dataset": text} | row
        for place, text in enumerate(HOSTILE)
    ]
    for page in (comparison_page(rows), trends_page(rows)):
        found = Texts(page)
        assert not controls(page, allowed="\n\u2068\u2069")
        assert {sanitize(text) for text in HOSTILE} <= set(found.texts)
        assert set(found.tags).isdisjoint({"script", "img", "a"})


@pytest.mark.parametrize("text", HOSTILE)
@pytest.mark.parametrize("name", ["nnbuild", "prefect.flow_runs", "somebody.else"])
def test_log_line_is_clean(text, name):
    sanitize_log_records()
    sanitize_log_records()
    make, error = logging.getLogRecordFactory(), ValueError(text)
    record = make(name, logging.ERROR, "f.py", 1, "read %s", (text,), (type(error), error, None))
    shown = logging.Formatter().format(record)
    assert shown.startswith("read ")
    assert not controls(shown, allowed="\n\t")
    if name != "somebody.else":
        assert shown.split("\n")[1].startswith("ValueError")


def test_log_record_invalid_is_kept():
    sanitize_log_records()
    record = logging.getLogRecordFactory()("n", 30, "f", 1, "%d", ("no number",), None)
    assert record.args == ("no number",)
