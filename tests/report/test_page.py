"""The report: self-contained for any number of classes, epochs and pixels, and reproducible."""

import base64
import io
import re
import subprocess
import sys
from html.parser import HTMLParser

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from report_data import AT, changed, decided, made

from nnbuild import report
from nnbuild.errors import DataError
from nnbuild.report import comparison, data
from nnbuild.report.facts import timings
from nnbuild.report.networks import Networks
from nnbuild.store.step_results import ExportedModel

MOST_BYTES = 3_000_000
VOID = {"meta", "link", "img", "br", "hr", "input"}
NASTY = '</title><script>alert("x")</script>&amp;\'"<img src=x onerror=y>'


class Page(HTMLParser):
    """A parsed page; refuses tags that are not nested properly."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        assert len({name for name, _ in attrs}) == len(attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not self.open or self.open[-1] != "style":
            self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def require_whole(text: str) -> Page:
    """Return the parsed page if it is self-contained and every image is valid and described."""
    assert len(text.encode()) < MOST_BYTES
    page = Page(text)
    assert page.all("script") == []
    for _, attributes in page.tags:
        for name in ("src", "href", "action", "srcset", "xlink:href"):
            assert attributes.get(name, "data:").startswith("data:")
        assert not [name for name in attributes if name.startswith("on")]
    assert not re.search(r"url\(|@import", text)
    for each in page.all("img"):
        assert each["alt"]
        Image.open(
            io.BytesIO(base64.b64decode(each["src"].removeprefix("data:image/png;base64,")))
        ).verify()
    for each in page.all("svg"):
        assert each["role"] == "img"
        assert each["aria-label"]
    for _, attributes in page.tags:
        for name in {
            "x",
            "y",
            "cx",
            "cy",
            "x1",
            "x2",
            "y1",
            "y2",
            "width",
            "height",
            "points",
            "viewbox",
        } & attributes.keys():
            assert re.fullmatch(r"[-\d., ]*", attributes[name]), attributes
    return page


@pytest.mark.parametrize(
    "given_",
    [
        {},
        {"classes": 2, "epochs": 1},
        {"classes": 20, "shape": (5, 1, 3)},
        {"classes": 21, "metrics": ("loss",), "validation_freq": 2, "epochs": 5},
        {"classes": 300, "images": 700, "shape": (300, 200, 3), "epochs": 200},
        {
            "classes": 10,
            "epochs": 3000,
            "validation_freq": 7,
            "metrics": ("loss", "accuracy", "top_2_accuracy"),
        },
        {"validation_freq": 9},
        {"images": 1, "classes": 2},
        {"scale": 60.0, "classes": 3, "images": 400},
        {"names": ["a very long name of a class indeed", *"bcdefghij"]},
    ],
    ids=str,
)
def test_page_is_complete_for_every_run(given_):
    manifest, tables, images = made(**given_)
    page = require_whole(report.render(manifest, tables, images))
    assert len(page.all("img")) == min(64, len(images)) + len(page_errors(tables)[:12])
    assert len(page.all("svg")) >= 5


def page_errors(tables):
    frame = tables["predictions"].to_pandas()
    wrong = frame[frame.label != frame.predicted].copy()
    wrong["of_label"] = [row[f"prob_{row.label:.0f}"] for _, row in wrong.iterrows()]
    return list(wrong.sort_values(["of_label", "confidence"], ascending=[True, False]).example_id)


def test_1000_classes_show_the_worst():
    manifest, tables, images = made(
        classes=1000, images=1500, names=[f"class {each}" for each in range(1000)]
    )
    text = report.render(manifest, tables, images)
    page = require_whole(text)
    assert "for the 20 of 1000 classes with the most errors" in page.text
    assert sum(each.get("class") == "small checks" for each in page.all("table")) == 1
    errors = tables["confusion"].filter(
        pc.not_equal(tables["confusion"]["label"], tables["confusion"]["predicted"])
    )
    most = max(errors.to_pylist(), key=lambda row: row["count"])
    assert most["count"] > 0
    assert re.search(
        r"most often \u2068class \d+\u2069 predicted as \u2068class \d+\u2069 \(", page.text
    )


def test_large_images_keep_the_page_small():
    manifest, tables, images = made(images=80, shape=(512, 384, 3))
    require_whole(report.render(manifest, tables, images))


def test_worst_errors_are_ordered_by_loss():
    manifest, tables, images = made(scale=2.0, images=500)
    page = Page(report.render(manifest, tables, images))
    shown = [int(re.match(r"Test image (\d+)", each["alt"])[1]) for each in page.all("img")][64:]
    assert shown == page_errors(tables)[:12]
    assert len(shown) == 12


def test_images_are_those_of_predictions():
    manifest, tables, images = made(shape=(6, 5, 3))
    page = Page(report.render(manifest, tables, images))
    for each in page.all("img"):
        number = int(re.match(r"Test image (\d+)", each["alt"])[1])
        shown = Image.open(io.BytesIO(base64.b64decode(each["src"].split(",")[1])))
        assert np.array_equal(np.asarray(shown), images[number])


def test_images_and_labels_are_optional():
    manifest, tables, images = made()
    assert require_whole(report.render(manifest, tables)).all("img") == []
    without = tables["predictions"].set_column(
        1, tables["predictions"].schema.field("label"), pa.nulls(len(images), pa.int16())
    )
    assert (
        len(
            require_whole(report.render(manifest, tables | {"predictions": without}, images)).all(
                "img"
            )
        )
        == 64
    )


BLIGHTS = ["Tomato___Early_blight", "Tomato___Late_blight"]


def test_similar_classes_are_distinguished():
    manifest, tables, images = made(classes=2, scale=4.0, lean=0.0, names=BLIGHTS)
    text = report.render(manifest, tables, images)
    for place, name in enumerate(BLIGHTS):
        assert f'<td class="full"><bdi>{name}</bdi></td>' in text
        assert re.search(
            rf">\u2068{('Tomato___…y_blight', 'Tomato___…e_blight')[place]}\u2069</te", text
        )
    page = require_whole(text)
    assert "Tomato…light" not in page.text
    titles = {each["title"] for _, each in page.tags if "title" in each}
    pairs = {f"\u2068{one}\u2069 → \u2068{other}\u2069" for one, other in (BLIGHTS, BLIGHTS[::-1])}
    assert pairs <= titles
    headings = set(re.findall(r"<h3><bdi>(\w+)</bdi> → <bdi>(\w+)</bdi>", text))
    assert headings == {tuple(BLIGHTS), tuple(BLIGHTS[::-1])}


class Directions(Page):
    """A page whose texts and attributes outside `bdi` and isolates are collected."""

    def __init__(self, text: str) -> None:
        self.exposed: list[str] = []
        super().__init__(text)

    def handle_starttag(self, tag, attrs):
        super().handle_starttag(tag, attrs)
        self.exposed += [value or "" for _, value in attrs]

    def handle_data(self, data):
        super().handle_data(data)
        if "bdi" not in self.open:
            self.exposed.append(data)


def test_right_to_left_names_are_isolated():
    names = ["قطة", "כלב", "a very long name: قطة كبيرة جدا"]
    manifest, tables, images = made(classes=3, lean=0.5, names=names)
    manifest.row.model = manifest.settings.dataset.name = "כלב"
    manifest.row.dataset = "قطة"
    page = Directions(report.render(manifest, tables, images))
    bare = [re.sub("\u2068[^\u2068\u2069]*\u2069", "", each) for each in page.exposed]
    assert [each for each in bare if re.search("[\u0590-\u06ff]", each)] == []
    assert any("\u2068قطة\u2069 → \u2068כלב\u2069" in each for each in page.exposed)


def test_perfect_network_has_no_errors():
    manifest, tables, images = made(lean=50, images=30)
    page = require_whole(report.render(manifest, tables, images))
    assert "Nowhere: all 30 test images are classified correctly" in page.text
    assert "The worst errors" not in page.text


def test_every_text_is_escaped():
    manifest, tables, images = made(classes=3, names=[NASTY, "b", "c" + NASTY])
    steps = manifest.steps
    manifest.row.model = manifest.row.dataset = manifest.code_version = NASTY
    steps.load_data = changed(steps.load_data, source=NASTY)
    steps.fit_model = changed(steps.fit_model, remarks=(NASTY,))
    first, *others = steps.check_data.checks
    steps.check_data = changed(steps.check_data, checks=(changed(first, measured=NASTY), *others))
    manifest.config["training"][NASTY] = [NASTY, {NASTY: NASTY}]
    manifest.steps.decide = decided(champion=NASTY, reason=NASTY)
    jobs = [
        {"score_id": NASTY, "measured_at": AT, "rows": 5, "psi": 0.1, "ks": 0.2, "exceeded": NASTY}
    ]
    page = require_whole(report.render(manifest, tables, images, jobs))
    assert page.text.count(NASTY) >= 8


def test_a_fallback_is_told_loudly():
    manifest, tables, images = made()
    assert 'role="alert"' not in report.render(manifest, tables, images)
    manifest.row.dataset = "digits"
    page = Page(report.render(manifest, tables, images))
    assert "Not trained on mnist" in page.text
    assert [each["class"] for each in page.all("p") if each.get("role") == "alert"] == ["loud"]


def ensemble_of(networks, epochs, total):
    """Return a report of an ensemble, whose history has the epochs of all its networks."""
    manifest, tables, images = made(epochs=total)
    manifest.config["model"] = {"ensemble_size": networks}
    manifest.config["training"]["epochs"] = epochs
    return report.render(manifest, tables, images)


def test_networks_of_an_ensemble_are_separate():
    text = ensemble_of(3, 2, 6)
    page = require_whole(text)
    assert "An ensemble of 3 networks of 2 epochs each, trained on mnist" in page.text
    assert "Yes: from its first to its last epoch, the validation loss of 3 of 3 networks" in (
        page.text
    )
    assert "In the last epoch of each, it is 0.1833 to 0.55." in page.text
    assert "One line for each network." in page.text
    for untrue in ("restored", "Circle", "The weights are those of epoch", "after epoch 6"):
        assert untrue not in page.text
    loss = next(each for each in text.split("<svg")[1:] if 'aria-label="loss:' in each)
    assert "validation of network 3 from 0.22 to 0.1833" in loss
    paths = re.findall(r'points="([^"]*)"', loss)
    assert [len(each.split()) for each in paths] == [2] * 6
    assert len({each.split()[0].split(",")[0] for each in paths}) == 1
    assert "kept" not in loss
    assert "ring" not in loss


def test_networks_that_stopped_early_are_separate():
    manifest, tables, images = made(epochs=6)
    manifest.config["model"] = {"ensemble_size": 3}
    fitted = manifest.steps.fit_model.model_copy(update={"member_epochs": (1, 3, 2)})
    manifest.steps.fit_model = fitted
    text = report.render(manifest, tables, images)
    assert "An ensemble of 3 networks of 1, 3 and 2 epochs, trained on mnist" in Page(text).text
    loss = next(each for each in text.split("<svg")[1:] if 'aria-label="loss:' in each)
    assert [len(each.split()) for each in re.findall(r'points="([^"]*)"', loss)] == [
        1,
        1,
        3,
        3,
        2,
        2,
    ]


def test_chart_of_a_metric_has_a_line_for_each_network():
    _, tables, _ = made(epochs=5)
    both = Networks(2, 5, (2, 3))
    picture = report.page.curve_picture(tables["history"], "accuracy", both, 5)
    assert [len(each.split()) for each in re.findall(r'points="([^"]*)"', picture)] == [2, 2, 3, 3]
    assert report.page.curve_picture(tables["history"], "auc", both, 5) is None
    single = report.page.curve_picture(tables["history"], "loss", Networks(1, 5, (5,)), 5)
    assert [len(each.split()) for each in re.findall(r'points="([^"]*)"', single)] == [5, 5]


def test_network_without_validation_leaves_the_colours_alone():
    """The first network stops before the first validation."""
    _, tables, _ = made(epochs=6, validation_freq=2)
    picture = report.page.curve_picture(tables["history"], "loss", Networks(2, 6, (1, 5)), 6)
    assert re.findall(r'<polyline[^>]*class="line (k\d)"', picture) == ["k0", "k0", "k1"]
    assert [name for name in ("training", "validation") if f">{name}</text>" in picture] == [
        "training",
        "validation",
    ]


def test_comparison_has_a_line_for_each_network():
    _, tables, _ = made(epochs=5)
    curves = data.curves(tables["history"])
    rows = [
        {"run_id": f"{number}-abcdef{number}", "model": "lab", "difference": None}
        for number in range(3)
    ]
    networks = [Networks(1, 5, (5,)), Networks(2, 5, (2, 3)), Networks(2, 5, None)]
    shown = {
        row["run_id"]: each.split(curves) if each.each else []
        for row, each in zip(rows, networks, strict=True)
    }
    pictures = comparison._curves({run_id: each for run_id, each in shown.items() if each})
    loss, accuracy = (str(each["picture"]) for each in pictures)
    for picture in (loss, accuracy):
        lines = [each.split() for each in re.findall(r'points="([^"]*)"', picture)]
        assert sorted(len(each) for each in lines if each) == [2, 3, 5]
    assert "bcdef1, network 2 from" in loss
    assert "An ensemble has a line for each" in comparison.comparison_page(rows, shown)
    assert "An ensemble" not in comparison.comparison_page(rows, {"0-abcdef0": [curves]})
    assert "bcdef0 from" in loss


def test_epochs_of_an_ensemble_that_are_not_recorded_are_not_divided():
    text = ensemble_of(2, 4, 7)
    page = require_whole(text)
    assert "An ensemble of 2 networks, 7 epochs in all, trained on mnist" in page.text
    assert "does not record where the epochs of one network end" in page.text
    assert "of 2 networks, 7 epochs in all" in page.text
    loss = next(each for each in text.split("<svg")[1:] if 'aria-label="loss:' in each)
    assert "epoch, counted over all networks" in loss
    assert "<polyline" not in loss
    assert loss.count('class="dot') == 14


def test_champion_is_next_to_the_metrics():
    manifest, tables, images = made()
    assert "champion" not in Page(report.render(manifest, tables, images)).text
    manifest.steps.decide = decided(champion="run-x", reason="because")
    page = require_whole(report.render(manifest, tables, images))
    for told in (
        "better than 10.00 %",
        "worse than 0.0100",
        "run-x",
        "Promoted: because.",
        "points higher",
    ):
        assert told in page.text
    assert (
        "The difference in accuracy is +2.00 percentage points "
        "(95 % confidence interval -1.00 to +5.00)" in page.text
    )
    assert "p = 0.03 for this run being better, p = 0.9 for it being worse" in page.text


def test_missing_champion_is_said():
    manifest, tables, images = made()
    manifest.steps.decide = decided(
        champion=None, reason="no previous champion", figures={"accuracy": 0.5}
    )
    text = require_whole(report.render(manifest, tables, images)).text
    assert "Promoted: no previous champion." in text
    manifest.steps.decide = decided(
        champion="run-x", reason="other images", figures={"accuracy": 0.5}
    )
    text = require_whole(report.render(manifest, tables, images)).text
    assert "only one of the two" not in text
    assert "other images" in text
    assert "The champion at that time was run run-x." in text
    for coloured in ("better than 1", "worse than", "points higher", "10.00 %"):
        assert coloured not in text  # they are metrics of other test images


def test_left_out_images_are_said():
    manifest, tables, images = made()
    known = decided(champion="run-x", reason="because")
    figures = known.figures | {"rescored": 100, "left_out": 7, "examples": 100}
    manifest.steps.decide = changed(known, figures=figures, champion_metrics={})
    text = require_whole(report.render(manifest, tables, images)).text
    assert "its model classified 100 test images of this run" in text
    assert "7 test images were left out" in text
    assert "better than 1" not in text
    assert "points higher" in text


def jobs_of(*exceeded):
    return [
        {
            "score_id": f"job-{place}",
            "measured_at": AT,
            "rows": 5000,
            "psi": 0.05 + place,
            "ks": 0.1,
            "exceeded": names,
        }
        for place, names in enumerate(exceeded)
    ]


@pytest.mark.parametrize(
    ("exceeded", "told"),
    [
        (("",), "Yes: no drift threshold was exceeded in 1 scoring job "),
        (("", ""), "Yes: no drift threshold was exceeded in 2 scoring jobs "),
        (("ink", ""), "Yes, again: a drift threshold was exceeded in 1 of 2 scoring jobs"),
        (("", "ink, brightness"), "in the latest one for ink, brightness."),
    ],
)
def test_drift_is_shown_once_scored(exceeded, told):
    manifest, tables, images = made()
    before = require_whole(report.render(manifest, tables, images))
    assert "new data" not in before.text
    page = require_whole(report.render(manifest, tables, images, jobs_of(*exceeded)))
    assert told in page.text
    assert page.text.count("5,000") == len(exceeded)
    assert len(page.all("svg")) == len(before.all("svg")) + (len(exceeded) > 1)


def test_seconds_are_in_order_of_steps():
    manifest, _, _ = made()
    manifest.steps.export_model = ExportedModel(
        path=None, remark="", largest_difference=None, same_predictions=None, probe=0
    )
    manifest.steps.decide = decided(champion=None, reason="")
    manifest.seconds = {
        "decide": 0.1,
        "export_model": 2.0,
        "fit_model": 8.0,
        "load_data": 1.0,
        "write_report": 1.0,
    }
    assert [each["name"] for each in timings(manifest)] == [
        "load data",
        "fit model",
        "export model",
        "decide",
    ]
    assert [each["share"] for each in timings(manifest)] == [0.125, 1, 0.25, 0.1 / 8]


def test_metadata_of_the_run_are_shown():
    manifest, tables, images = made()
    text = Page(report.render(manifest, tables, images)).text
    wanted = [
        "34,826 parameters",
        "17",
        "0.1.0+abc",
        "3.15.1",
        "ab" * 32,
        "on another processor",
        "8.25",
        "Linux",
    ]
    wanted += ["training.lr_schedule", "at most 4", "1 of 2 checks gave a warning", manifest.run_id]
    assert [each for each in wanted if each not in text] == []


def test_calibrated_diagram_is_drawn():
    manifest, tables, images = made()
    page = Page(report.render(manifest, tables, images))
    errors = dict.fromkeys(tables["calibration"]["expected_calibration_error"].to_pylist())
    labels = [each["aria-label"] for each in page.all("svg")]
    assert [each for each in labels if each.startswith("Reliability")] == [
        f"Reliability diagram, {scaled}: calibration error {error:.4f}"
        for scaled, error in zip(("uncalibrated", "temperature 1.500"), errors, strict=True)
    ]


def test_infinite_values_leave_gaps():
    manifest, tables, images = made(epochs=4)
    values = tables["history"]["value"].to_numpy().copy()
    values[::2] = np.inf
    values[1::4] = np.nan
    tables["history"] = tables["history"].set_column(
        2, tables["history"].schema.field("value"), pa.array(values)
    )
    require_whole(report.render(manifest, tables, images))


@settings(deadline=None, max_examples=15)
@given(
    classes=st.integers(2, 25),
    images=st.integers(1, 90),
    epochs=st.integers(1, 6),
    frequency=st.integers(1, 4),
    seed=st.integers(0, 99),
)
def test_page_is_reproducible(classes, images, epochs, frequency, seed):
    given_ = {
        "classes": classes,
        "images": images,
        "epochs": epochs,
        "validation_freq": frequency,
        "seed": seed,
    }
    first = report.render(*made(**given_))
    require_whole(first)
    assert first == report.render(*made(**given_))


def test_other_images_are_refused():
    manifest, tables, images = made()
    for wrong in (images[:5], images[..., 0], np.repeat(images, 2, axis=-1)):
        with pytest.raises(DataError, match=r"images have shape .*; pass the test images"):
            report.render(manifest, tables, wrong)


def test_import_does_not_load_tensorflow():
    program = (
        "import sys, nnbuild.report, flows.cli.runs; "
        "sys.exit(bool({'tensorflow', 'keras', 'prefect', 'matplotlib'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
