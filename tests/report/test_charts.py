"""Axes, charts and sentences of the report."""

import math
import re
from datetime import date

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nnbuild.evaluation import wilson_interval
from nnbuild.report import charts, live, names, svg, text

FINITE = st.floats(-1e12, 1e12, allow_nan=False, allow_subnormal=False)
POSITIVE = st.floats(1e-12, 1e12)


@settings(deadline=None, max_examples=50)
@given(st.lists(FINITE, max_size=20), st.sampled_from([(0.0, 100.0), (212.0, 32.0)]))
def test_linear_axis_contains_its_values(values, ends):
    axis = svg.linear(values, *ends)
    assert axis.low < axis.high
    assert 2 <= len(axis.ticks) <= 12
    for value in values:
        room = 1e-6 * (axis.high - axis.low)
        assert axis.low - room <= value <= axis.high + room
    places = [axis.place(value) for value in sorted(values)]
    assert places == sorted(places, reverse=ends[0] > ends[1])
    assert all(min(ends) <= place <= max(ends) for place in places)


@settings(deadline=None, max_examples=50)
@given(st.lists(POSITIVE, max_size=20))
def test_log_axis_contains_its_values(values):
    axis = svg.logarithmic(values, 0.0, 100.0)
    assert 0 < axis.low < axis.high
    assert 1 <= len(axis.ticks) <= 12
    for value in values:
        assert axis.low * (1 - 1e-9) <= value <= axis.high * (1 + 1e-9)
    assert axis.place(math.sqrt(axis.low * axis.high)) == pytest.approx(50)


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 1000), st.integers(0, 100_000))
def test_epoch_axis_has_integer_ticks(first, more):
    axis = svg.counting(first, first + more, 0.0, 300.0)
    assert list(axis.ticks) == sorted(set(axis.ticks))
    assert axis.ticks[0] == first
    assert axis.ticks[-1] <= first + more
    assert all(tick == int(tick) for tick in axis.ticks)
    assert len(axis.ticks) <= 9


def test_tag_escapes_text_and_attributes():
    made = svg.tag(
        "text", "<&>", svg.tag("b", '"'), class_="a", aria_label='"<', font_size=1.25, x=3.0
    )
    assert made == (
        '<text class="a" aria-label="&#34;&lt;" font-size="1.2" x="3">'
        "&lt;&amp;&gt;<b>&#34;</b></text>"
    )


def test_long_line_is_thinned():
    points = [(epoch, epoch / 1000) for epoch in range(1, 5001)]
    drawn = charts.lines("t", {"training": points})
    path = re.search(r'points="([^"]*)"', drawn)[1].split()
    assert len(path) == 400
    assert "<circle" not in drawn
    assert path[0].startswith(f"{charts.LEFT + 8}.0,")
    assert path[-1].startswith(f"{charts.RIGHT - 8}.0,")


def test_ticks_of_an_axis_have_different_labels():
    for values in ([1.0, 1 - 1e-8], [0.5, 0.5 + 1e-5], [0.2, 0.9]):
        labels = [svg.tick_label(each) for each in svg.linear(values, 0.0, 100.0).ticks]
        assert len(set(labels)) == len(labels) > 1


def test_axis_ends_at_the_highest_possible_value():
    points = {"accuracy": [(1.0, 1.0), (2.0, 1.0)]}
    assert ">1.06<" in charts.lines("t", points)
    limited = charts.lines("t", points, highest=1.0)
    assert ">1.06<" not in limited
    assert ">1<" in limited


def test_live_periods_are_drawn_at_their_distance():
    days = [
        {
            "period": "day",
            "start": date(2026, 11, number),
            "accuracy": 0.9,
            "estimated_accuracy": 0.8,
        }
        for number in (1, 2, 30)
    ]
    drawn = live.picture(days)
    assert "day, 1 is 2026-11-01" in drawn
    across = svg.counting(1, 30, charts.LEFT + 8, charts.RIGHT - 8)
    path = re.search(r'points="([^"]*)"', drawn)[1].split()
    assert [each.split(",")[0] for each in path] == [
        f"{across.place(number):.1f}" for number in (1, 2, 30)
    ]


def test_best_and_restored_are_marked():
    points = [(1.0, 0.5), (2.0, 0.2), (3.0, 0.4)]
    drawn = charts.lines(
        "t", {"validation": points}, restored=2, best=text.best_of("val_loss", points)
    )
    across = svg.counting(1, 3, charts.LEFT + 8, charts.RIGHT - 8).place(2)
    assert f'<line x1="{across:.0f}" x2="{across:.0f}"' in drawn
    assert f'<circle cx="{across:.0f}"' in drawn
    assert 'class="ring"' in drawn


def test_heat_map_names_every_count():
    drawn = charts.heat_map("t", [[90, 10], [0, 123456]], ["cat", "dog"], [100, 123456])
    assert "\u2068cat\u2069 predicted as \u2068dog\u2069: 10 of 100" in drawn
    assert ">123k<" in drawn
    assert "predicted as \u2068cat\u2069: 0" not in drawn
    assert drawn.count('class="none"') == 1
    assert charts.heat_map("t", [[0]], ["x"], [0]).count('class="none"') == 1
    assert "rotate(-90" in charts.heat_map("t", [[1]], ["a long name"], [1])


def test_short_names_still_differ():
    all_names = ["automobile", *(f"photograph of class {place}" for place in range(10, 30))]
    short = names.shorten(all_names)
    assert short["automobile"] == "automobile"
    assert short["photograph of class 17"] == "photog…ss 17"
    assert len(set(short.values())) == len(all_names)


def test_short_names_that_collide_are_longer():
    short = names.shorten(["Tomato___Early_blight", "Tomato___Late_blight", "Tomato___healthy"])
    assert short["Tomato___Early_blight"] == "Tomato___…y_blight"
    assert short["Tomato___Late_blight"] == "Tomato___…e_blight"
    assert short["Tomato___healthy"] == "Tomato…althy"
    # A name that is as another one is shortened, and names that differ in the middle only.
    hard = ["Tomato…light", "Tomato___Early_blight", *(f"{'a' * 40}{x}{'b' * 40}" for x in "xy")]
    assert len(set(names.shorten(hard).values())) == len(hard)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.text(alphabet="ab…", max_size=30), unique=True))
def test_short_names_are_unique(given_):
    short = names.shorten(given_)
    assert list(short) == given_
    assert len(set(short.values())) == len(given_)


def test_isolates_are_kept_in_pairs_only():
    name = names.isolate("\u0627\u202e\u2069")
    assert name == "\u2068\u0627\\u202e\\u2069\u2069"
    assert names.sanitize(f"a {name} b\n") == f"a {name} b\\n"
    assert names.sanitize("\u2068open") == "\\u2068open"
    assert names.sanitize("\u2069 \u2068") == "\\u2069 \\u2068"


def test_bin_of_few_images_is_faint():
    bins = [
        charts.Bin(0, 0.5, 5, 0.3, 0.2),
        charts.Bin(0.5, 0.9, 500, 0.7, 0.8),
        charts.Bin(0.9, 1, 0, None, None),
    ]
    drawn = charts.reliability("t", bins)
    assert drawn.count("faint") == 1
    assert drawn.count('class="over"') == drawn.count('class="under"') == 1
    assert drawn.count("<rect") == 4


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 10_000), st.data())
def test_interval_contains_the_fraction(count, data):
    right = data.draw(st.integers(0, count))
    low, high = wilson_interval(right / count, count)
    assert 0 <= low <= right / count <= high <= 1
    closer = wilson_interval(right / count, 100 * count)
    assert closer[1] - closer[0] < high - low


def test_interval_ends_are_at_1_96_errors():
    for share, count in ((0.9904, 10_000), (0.5, 10), (0.03, 200)):
        for end in wilson_interval(share, count):
            assert abs(end - share) == pytest.approx(
                1.96 * math.sqrt(end * (1 - end) / count), rel=1e-9
            )


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (
            [0.5, 0.3, 0.2],
            "Yes: the validation loss went from 0.5 after epoch 1 to 0.2 after epoch 3.",
        ),
        (
            [0.5, 0.2, 0.21],
            (
                "Yes: the validation loss went from 0.5 after epoch 1 to 0.21 after epoch 3, "
                "with a minimum"
            ),
        ),
        ([0.5, 0.2, 0.4], "Yes, but only at first:"),
        ([0.2, 0.3, 0.4], "No: the validation loss went from 0.2"),
        ([0.2], "There is only one value: the validation loss is 0.2 after epoch 1"),
        ([math.nan, math.inf], "The history has no finite loss values."),
    ],
)
def test_what_is_said_of_the_loss(values, said):
    points = [(epoch + 1, value) for epoch, value in enumerate(values)]
    assert text.on_loss({"val_loss": points}, len(values)).startswith(said)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (
            [[0.5, 0.3], [0.4, 0.2]],
            "Yes: from its first to its last epoch, the validation loss of 2 of 2",
        ),
        ([[0.5, 0.3], [0.4, 0.6]], "Not in every network: from its first to its last epoch, the "),
        (
            [[0.5, 0.5], [0.4, 0.6]],
            "No: from its first to its last epoch, the validation loss of 0",
        ),
        ([[1.482], [1.62]], "There is only one value for each of the 2 networks: the validation "),
        ([[0.5, 0.3], [math.nan]], "1 of 2 networks have no finite loss values"),
    ],
)
def test_losses_of_an_ensemble_are_judged_together(values, said):
    members = [{"val_loss": list(enumerate(each, start=1))} for each in values]
    answer = text.on_losses(members)
    assert answer.startswith(said)
    assert answer.endswith("The model averages the log-probabilities of the networks.")
    assert "1.482 to 1.62" in answer or values[0] != [1.482]


@pytest.mark.parametrize(
    ("confidence", "said"),
    [
        (0.9, "Yes, on average"),
        (0.99, "Not quite, the network is overconfident"),
        (0.8, "Not quite, the network is underconfident"),
    ],
)
def test_trust_answer_depends_on_the_gap(confidence, said):
    assert text.on_trust([900], [100], confidence, 0.01).startswith(said)


def test_small_fractions_are_not_0_percent():
    assert text.percent(0.0) == "0.00 %"
    assert text.percent(1e-9) == "< 0.01 %"
    assert text.percent(0.5) == "50.00 %"
    assert text.chance(3e-7) == "3e-05 %"
    assert text.chance(0.5) == "50.0 %"


def test_lower_accuracy_is_called_lower():
    assert "5.00 percentage points lower" in text.on_champion({"difference": -0.05})
    assert text.on_champion({"difference": 0}).startswith("Both")


def test_compared_images_are_described():
    usual = {"examples": 90, "rescored": 0, "left_out": 0}
    assert text.on_compared_images(usual) == text.on_compared_images({}) == ""
    said = text.on_compared_images(usual | {"rescored": 90, "left_out": 10})
    assert "its model classified 90 test images" in said
    assert "10 test images were left out" in said
    assert "90 are compared" in said
    assert "1 test image was left out" in text.on_compared_images(usual | {"left_out": 1})


def test_changes_of_test_set_are_counted():
    assert text.on_test_sets([]) == text.on_test_sets(["a", "a"]) == []
    assert "changed 2 times" in text.on_test_sets(["a", "b", "b", "a"])[0]
