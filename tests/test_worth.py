"""What a tailored example is worth: values by hand, the curve that never gets there, and an interval that covers."""

import math

import numpy as np
import pandas as pd
import pytest

from workbench import figures
from workbench.runs.errors import DataError
from workbench.runs.seeding import stream
from workbench.studies.learning_curves import needed, points, worth
from workbench.verdict.verdict import BASE_SEED

SIZES, N_ITEMS, SEEDS = (5, 10, 20, 40), 100, (1, 2, 3)


def curves(untailored, tailored, base=0.2, sizes=SIZES) -> pd.DataFrame:
    """Answers with these accuracies, alike under every seed: of N_ITEMS questions the first so many are right."""
    students = [("base", 0, BASE_SEED, base)]
    for arm, accuracies in (("untailored", untailored), ("tailored", tailored)):
        students += [(arm, n, seed, at) for n, at in zip(sizes, accuracies, strict=True) for seed in SEEDS]
    items = {"task": ["sums", "moves"] * (N_ITEMS // 2), "item_id": [f"{at:04}" for at in range(N_ITEMS)]}
    frames = [
        pd.DataFrame({"student": "eve", "arm": arm, "n": n, "seed": seed, "shots": 0, **items})
        .assign(correct=np.arange(N_ITEMS) < round(at * N_ITEMS))
        for arm, n, seed, at in students
    ]  # fmt: skip
    return pd.concat(frames, ignore_index=True)


@pytest.mark.parametrize(
    ("accuracies", "level", "examples"),
    [
        ((0.2, 0.4, 0.6, 0.8), 0.6, 20),
        ((0.2, 0.4, 0.6, 0.8), 0.7, math.sqrt(20 * 40)),
        ((0.2, 0.4, 0.6, 0.8), 0.45, 10 * 2**0.25),
        ((0.2, 0.4, 0.6, 0.8), 0.3, 5),  # between none and the first size straight in n
        ((0.2, 0.4, 0.6, 0.8), 0.1, 0),
        ((0.2, 0.4, 0.6, 0.8), 0.81, math.inf),
        ((0.4, 0.2, 0.6, 0.5), 0.4, 0),
        ((0.4, 0.2, 0.6, 0.5), 0.5, 10 * 2**0.75),  # the first crossing of a curve that falls and rises
        ((0.4, 0.4, 0.4, 0.4), 0.5, math.inf),
    ],
)
def test_examples_needed_by_hand(accuracies, level, examples):
    assert needed([0, 10, 20, 40], accuracies, level) == pytest.approx(examples)


def test_equal_curves_are_worth_one():
    found = worth(curves((0.3, 0.4, 0.5, 0.6), (0.3, 0.4, 0.5, 0.6)))
    assert found["worth"].tolist() == [1.0] * 4
    assert (found["low"] < 1).all() and (found["high"] > 1).all()


def test_a_curve_that_is_two_doublings_ahead_is_worth_four():
    found = worth(curves((0.3, 0.4, 0.5, 0.6), (0.5, 0.6, 0.7, 0.8))).set_index("n")
    assert found["worth"].tolist() == [4.0, 4.0, math.inf, math.inf]
    assert found["most"].tolist() == [8.0, 4.0, 2.0, 1.0]
    assert found.loc[5, "low"] < 4 < found.loc[5, "high"] < 8
    # That the untailored curve would need more than 40 examples is sure for one of them and not for the other.
    assert found.loc[10, "high"] == math.inf and found.loc[40, "low"] == math.inf


def test_no_better_than_the_base_is_worth_nothing_and_below_the_first_size_it_is_in_proportion():
    found = worth(curves((0.4, 0.5, 0.6, 0.7), (0.2, 0.1, 0.3, 0.5), base=0.2))
    assert found["worth"].tolist() == pytest.approx([0.0, 0.0, 2.5 / 20, 10 / 40])
    assert found["needed"].tolist() == pytest.approx([0, 0, 2.5, 10])


def test_the_first_crossing_counts_where_the_untailored_curve_falls():
    found = worth(curves((0.5, 0.3, 0.4, 0.6), (0.45, 0.5, 0.5, 0.6), base=0.4)).set_index("n")
    assert found["worth"].tolist() == pytest.approx([0.5, 0.5, 0.25, 1.0])


def test_seeds_that_differ_widen_the_interval():
    table = curves((0.3, 0.4, 0.5, 0.6), (0.4, 0.5, 0.6, 0.7))
    apart = table.copy()
    place = apart["item_id"].astype(int)
    lucky, unlucky = apart["seed"] == 1, apart["seed"] == 2
    tailored = apart["arm"] == "tailored"
    mean = apart.groupby(["arm", "n"])["correct"].transform("mean")
    apart.loc[tailored & lucky, "correct"] = place < 100 * (mean + 0.06)
    apart.loc[tailored & unlucky, "correct"] = place < 100 * (mean - 0.06)
    near, wide = worth(table).set_index("n").loc[5], worth(apart).set_index("n").loc[5]
    assert wide["worth"] == pytest.approx(near["worth"]) and near["worth"] == pytest.approx(2.0)
    assert wide["low"] < near["low"] < near["high"] < wide["high"]


def test_the_interval_covers():
    """The truth is a worth of two; intervals of 95 % may miss it in some of 40 draws, not in many."""
    rng, missed = stream(0, "worth"), 0
    rise = {n: 0.3 + 0.45 * (1 - math.exp(-((n / 60) ** 0.7))) for n in (5, 10, 20, 40, 80)}
    for _ in range(40):
        shift = rng.uniform(-0.2, 0.2, N_ITEMS)
        table = curves([0.5] * 4, [0.5] * 4)
        level = [rise.get(2 * n if arm == "tailored" else n, 0.3) for arm, n in zip(table["arm"], table["n"])]
        luck = {key: 0.02 * rng.standard_normal() for key in table.groupby(["arm", "n", "seed"]).groups}
        level = level + table.set_index(["arm", "n", "seed"]).index.map(luck) + shift[table["item_id"].astype(int)]
        row = worth(table.assign(correct=rng.random(len(table)) < level)).set_index("n").loc[10]
        missed += not min(row["low"], row["most"]) <= 2 <= row["high"]
    assert missed <= 4


def test_points_are_accuracies_as_the_verdict_has_them():
    found = points(curves((0.3, 0.4, 0.5, 0.6), (0.4, 0.5, 0.6, 0.7))).set_index(["arm", "n"])
    assert len(found) == 9 and found.loc[("base", 0), "accuracy"] == 0.2
    assert found.loc[("tailored", 20), "accuracy"] == pytest.approx(0.6)
    assert (found["low"] < found["accuracy"]).all() and (found["accuracy"] < found["high"]).all()
    assert set(found["n_seeds"]) == {1, 3}


def test_the_figure_and_the_words_say_what_was_found():
    table = curves((0.3, 0.4, 0.5, 0.6), (0.5, 0.6, 0.7, 0.8)).assign(student="<b>eve")
    found = worth(table)
    figure = figures.learning_curve(points(table), found, "One is worth <b>two</b>.")
    assert "One is worth <b>two</b>." in figures.sentence(figure) and "tailored 80 % (" in figures.sentence(figure)
    assert "level line" in figures.caption(figure) and figure.layout.xaxis.type == "log"
    assert "<b>eve" not in figure.layout.title.text
    drawn = {trace.name: trace for trace in figure.data}
    assert set(drawn) == {"base", "untailored", "tailored", "as good"}
    assert [x for x in drawn["as good"].x if x] == pytest.approx([5, 20, 10, 40])
    plain = figures.learning_curve(points(table))
    assert len(plain.data) == 3 and "level line" not in figures.caption(plain)
    assert "worth" not in figures.sentence(plain) and figures.sentence(plain).endswith(".")
    with pytest.raises(DataError, match="workbench study learning_curves"):
        figures.learning_curve(points(table)[:0])
