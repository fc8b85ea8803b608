"""Words for intervals, and numbers as they stand in tables."""

import pandas as pd
import pytest

from colq_utils.report import markdown as md
from colq_utils.report import tables, wording


@pytest.mark.parametrize(
    "low, high, words",
    [
        (-0.004, 0.001, "within the margin of 0.5"),
        (-0.002, -0.001, "within the margin of 0.5"),
        (-0.0362, -0.0214, "loses at least 2.1 points"),
        (-0.0123, -0.003, "loses between 0.3 and 1.2 points"),
        (-0.0066, 0.0014, "undecided: between -0.7 and +0.1"),
        (-0.006, -0.0004, "undecided: between -0.6 and -0.04"),
        (-0.0121, -0.005008, "at the margin: between -1.2 and -0.5"),
        (-0.006, 0.0, "undecided: between -0.6 and 0"),
        (float("nan"), 0.0, "not measured"),
    ],
)
def test_words_say_what_the_interval_shows(low, high, words):
    assert wording.change(low, high, 0.005) == words


def test_words_of_pairs_and_speed():
    assert [wording.pair(*i) for i in ((0.1, 0.2), (-0.2, -0.1), (-0.1, 0.1))] == [
        "higher",
        "lower",
        "undecided",
    ]
    assert [wording.speed(*i) for i in ((1.1, 1.2), (0.8, 0.9), (0.9, 1.1), (float("nan"),) * 2)] == [
        "slower",
        "faster",
        "undecided",
        "not measured",
    ]


def test_markdown_cells():
    assert (
        md.number(-0.001, 2, True) == "0.00"
        and md.number(1234.5, 1, True) == "+1,234.5"
        and md.number(None) == "not measured"
    )
    assert md.points_ci(-0.0123, -0.02, float("nan")) == "-1.23 [interval not measured]"
    assert md.percent_ci(-0.01, -0.02, 0.0, 0.5) == "-2.00% [-4.00, 0.00]"
    assert md.megabytes(8_466_000_000, 0) == "8,466" and md.p_value(0.00001) == "< 0.0001"
    assert md.table(["a", "b"], [["x|y", None]]) == "| a | b |\n| --- | ---: |\n| x\\|y | not measured |"


def test_three_significant_digits_by_the_name_of_the_column():
    assert [md.significant(v) for v in (30.1466, 0.8072, 1234, 9.996, 0, None)] == [
        "30.1",
        "0.807",
        "1,230",
        "10.0",
        "0",
        "not measured",
    ]
    assert (
        md.change_ci(-0.1734, -0.1869, -0.1598) == "-17.3 [-18.7, -16.0]"
        and md.change_ci(-0.0076, -0.0123, -0.003) == "-0.76 [-1.23, -0.30]"
    )
    frame = pd.DataFrame(
        {
            "label": ["a|b"],
            "tensor_bytes": [24_034_048],
            "saved_pct": [20.276],
            "load_s": [0.01234],
            "layers": [1234],
            "share": [0.274],
        }
    )
    assert (
        tables.table(frame, {name: name for name in frame}).splitlines()[2]
        == "| a\\|b | 24.0 | 20.3 | 12.3 | 1,234 | 27.4 |"
    )
    assert (
        md.label_list(["A, 1", "B, 2", "C"]) == "A, 1; B, 2; and C"
        and md.label_list(["A", "B", "C"]) == "A, B and C"
    )
