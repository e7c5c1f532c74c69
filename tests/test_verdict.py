"""The verdict: hand-computed values, calibration by simulation, and what it refuses."""

import json
import sys
import time

import numpy as np
import pandas as pd
import pytest
from simulated import two_arms

from workbench.figures.verdict import arm_accuracies
from workbench.runs.errors import DataError
from workbench.verdict import in_words, intervals, verdict
from workbench.verdict.intervals import BETTER, SAME, UNDECIDED, WORSE

MARGIN, ALPHA = 0.05, 0.05
SETTINGS = {
    "arms": ["base", "untailored", "random_pairs", "tailored"],
    "shots": [0, 3],
    "margin": MARGIN,
    "alpha": ALPHA,
    "primary": {"a": "tailored", "b": "untailored", "shots": 0},
}


def rows_of(arm, table, shots=0, student="ada", tasks=2, seeds=None):
    """Return a predictions frame for a seeds x items table of right and wrong answers."""
    seeds = range(len(table)) if seeds is None else seeds
    return pd.DataFrame(
        [
            (student, arm, seed, shots, f"task{i % tasks}", f"item{i:04d}", "x", True, bool(value))
            for seed, row in zip(seeds, table, strict=True)
            for i, value in enumerate(row)
        ],
        columns=["student", "arm", "seed", "shots", "task", "item_id", "answer", "parsed", "correct"],
    )


def predictions(effect=0.0, n_seeds=3, n_items=120, student="ada", key=0, seed_sd=0.01):
    """Return predictions of the four arms: tailored lies `effect` above the others, base has one seed."""
    generator = np.random.default_rng(key)
    frames = []
    for shots in (0, 3):
        tailored, plain = two_arms(n_seeds, n_items, generator, effect, seed_sd, 0.05)
        other, base = two_arms(n_seeds, n_items, generator, 0.0, seed_sd, 0.05)
        for arm, table in (("tailored", tailored), ("untailored", plain), ("random_pairs", other)):
            frames.append(rows_of(arm, table, shots, student))
        frames.append(rows_of("base", base[:1], shots, student, seeds=[-1]))
    return pd.concat(frames, ignore_index=True)


def calibration(repeats, seeds=(3, 5), items=(100, 400), item_sds=(0.0, 0.1), seed_sds=(0.0, 0.02, 0.04), effect=0.0):
    """Return coverage, how often "better", "worse" and equivalence were said, and the mean half width, by setting."""
    table = []
    for n_seeds in seeds:
        for n_items in items:
            for item_sd in item_sds:
                for seed_sd in seed_sds:
                    generator = np.random.default_rng([n_seeds, n_items, int(1e3 * item_sd), int(1e3 * seed_sd)])
                    table.append(
                        {"seeds": n_seeds, "items": n_items, "item_sd": item_sd, "seed_sd": seed_sd}
                        | _decisions(repeats, n_seeds, n_items, generator, effect, seed_sd, item_sd)
                    )
    return pd.DataFrame(table)


def _decisions(repeats, n_seeds, n_items, generator, effect, seed_sd, item_sd):
    tasks = np.repeat(["one", "two"], [n_items // 2, n_items - n_items // 2])
    covered, said, widths = 0, [], []
    for _ in range(repeats):
        a, b = two_arms(n_seeds, n_items, generator, effect, seed_sd, item_sd)
        of = intervals.spread(a - b, tasks)
        half = float(intervals.half_width(of, ALPHA))
        covered += abs(of.mean - effect) <= half
        widths.append(half)
        said.append(intervals.decide(of.mean, half, float(intervals.half_width(of, 2 * ALPHA)), MARGIN))
    shares = {
        name: said.count(label) / repeats for name, label in (("better", BETTER), ("worse", WORSE), ("same", SAME))
    }
    return {"coverage": covered / repeats} | shares | {"half_width": float(np.mean(widths))}


def test_calibrated_under_the_null():
    """Three and five seeds, several seed spreads: 600 runs each, so the bounds leave three standard errors."""
    table = calibration(600, items=(100, 400), item_sds=(0.1,), seed_sds=(0.0, 0.02, 0.04))
    assert table["coverage"].min() > 0.94 - 0.03, table
    assert table["coverage"].mean() > 0.945, table
    assert table["better"].max() <= 0.05, table
    assert table["worse"].max() <= 0.05, table


def test_equivalence_is_rarely_claimed_at_the_margin():
    """A true difference of exactly the margin is called "no difference" in at most about alpha of the runs."""
    table = calibration(400, seeds=(3,), items=(400,), item_sds=(0.1,), seed_sds=(0.0, 0.02), effect=MARGIN)
    assert table["same"].max() <= ALPHA + 0.035, table


def test_items_alone_would_not_do():
    """The interval over items alone misses far more than 5 % once seeds differ: the seed part is needed."""
    generator = np.random.default_rng(1)
    missed = 0
    for _ in range(400):
        a, b = two_arms(3, 400, generator, 0.0, 0.04, 0.0)
        of = intervals.spread(a - b, ["t"] * 400)
        missed += abs(of.mean) > float(intervals.half_width(of._replace(ms_seed=0.0), ALPHA))
    assert missed / 400 > 0.2


def test_spread_by_hand():
    """Two seeds, four items, one task: squares worked out on paper."""
    of = intervals.spread(np.array([[1.0, 1.0, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0]]), ["t"] * 4)
    assert of.mean == pytest.approx(3 / 8)
    assert of.ms_seed == pytest.approx(4 * ((0.5 - 0.375) ** 2 + (0.25 - 0.375) ** 2))
    assert of.ms_noise == pytest.approx((3 * 0.125**2 * 2 + 0.375**2 * 2) / 3)
    assert of.ms_item == pytest.approx(2 * 2.0 / 3)  # the floor: fewer than two items differ by one
    plenty = intervals.spread(np.tile([[1.0, -1.0]], (2, 10)), ["t"] * 20)
    assert plenty.ms_item == pytest.approx(2 * 20 / 19)


def test_interval_knows_nothing_of_the_order_of_items_and_seeds():
    generator = np.random.default_rng(3)
    scores = generator.integers(-1, 2, (4, 30)).astype(float)
    tasks = np.repeat(["a", "b"], 15)
    shuffle = generator.permutation(30)
    one, other = intervals.spread(scores, tasks), intervals.spread(scores[::-1][:, shuffle], tasks[shuffle])
    assert np.allclose(one, other)
    assert intervals.half_width(intervals.spread(-scores, tasks), 0.05) == pytest.approx(
        intervals.half_width(one, 0.05)
    )


def test_identical_arms_do_not_claim_certainty():
    of = intervals.spread(np.zeros((3, 100)), ["t"] * 100)
    assert 0.02 < intervals.half_width(of, 0.05) < 0.04
    few = intervals.spread(np.zeros((3, 10)), ["t"] * 10)
    assert intervals.decide(0.0, intervals.half_width(few, 0.05), intervals.half_width(few, 0.1), 0.05) == UNDECIDED


def test_interval_p_value_agrees_with_the_interval():
    generator = np.random.default_rng(5)
    a, b = two_arms(5, 200, generator, 0.1, 0.02, 0.05)
    of = intervals.spread(a - b, ["t"] * 200)
    p = intervals.interval_p_value(of)
    assert intervals.half_width(of, p) == pytest.approx(abs(of.mean), rel=1e-6)


def test_sign_flips_exact_and_drawn():
    assert intervals.sign_flip_p_value(np.array([1.0, 1.0, 1.0, 0.0])) == 0.25
    assert intervals.sign_flip_p_value(np.zeros(7)) == 1.0
    generator = np.random.default_rng(0)
    values = generator.normal(0.6, 1, 12)
    exact, drawn = intervals.sign_flip_p_value(values), intervals.sign_flip_p_value(values, n_flips=4000)
    assert drawn == pytest.approx(exact, abs=0.03)
    many = generator.normal(0, 1, 300)
    assert intervals.sign_flip_p_value(many) == intervals.sign_flip_p_value(-many)
    assert intervals.sign_flip_p_value(many + 1) == pytest.approx(1 / 10_001)


def test_sign_flips_of_whole_numbers_are_counted_exactly():
    generator = np.random.default_rng(3)
    values = generator.integers(-3, 4, (5, 11))
    enumerated = [intervals.sign_flip_p_value(row / 7) for row in values]
    assert intervals.sign_flip_p_values(values) == pytest.approx(enumerated)
    assert intervals.sign_flip_p_value(values[0]) == pytest.approx(enumerated[0])
    many = generator.integers(-3, 4, 400) + (generator.random(400) < 0.1)
    assert intervals.sign_flip_p_value(many) == pytest.approx(intervals.sign_flip_p_value(many / 7), abs=0.02)
    null = intervals.sign_flip_null(many)
    sums = np.arange(len(null)) - len(null) // 2
    assert null.sum() == pytest.approx(1.0) and null @ sums**2 == pytest.approx((many**2).sum())
    assert 0 < intervals.sign_flip_p_value(np.ones(300)) < 1e-12


def test_sign_flip_p_values_are_uniform_when_nothing_differs():
    generator = np.random.default_rng(2)
    p = np.array([intervals.sign_flip_p_value(generator.normal(0, 1, 25), n_flips=500) for _ in range(400)])
    assert 0.02 < np.mean(p <= 0.05) < 0.09
    assert 0.4 < np.mean(p <= 0.5) < 0.6


def test_holm_by_hand():
    assert np.allclose(intervals.holm([0.01, 0.04, 0.03]), [0.03, 0.06, 0.06])
    assert np.allclose(intervals.holm([0.6, 0.7]), [1.0, 1.0])
    assert intervals.holm([]).size == 0


def test_wilson_by_hand():
    low, high = intervals.wilson(0.5, 100)
    assert (low, high) == pytest.approx((0.4038, 0.5962), abs=1e-4)
    assert intervals.wilson(0.0, 10)[0] == 0.0 and intervals.wilson(1.0, 10)[1] == 1.0
    assert intervals.wilson(0.0, 0) == (0.0, 1.0)


@pytest.mark.parametrize(
    "effect, seed_sd, expected", [(0.25, 0.01, BETTER), (-0.25, 0.01, WORSE), (0.06, 0.04, UNDECIDED)]
)
def test_decisions(effect, seed_sd, expected):
    table = predictions(effect, n_seeds=5, n_items=200, key=4, seed_sd=seed_sd)
    row = verdict.compare(table, "tailored", "untailored", 0, MARGIN, ALPHA)
    assert row["decision"] == expected
    assert row["low"] <= row["difference"] <= row["high"]
    assert (row["more_needed"] is None) == (expected != UNDECIDED)


def test_equivalence():
    row = verdict.compare(predictions(0.0, 5, 3000, key=1, seed_sd=0.0), "tailored", "untailored", 0, MARGIN, ALPHA)
    assert row["decision"] == SAME
    assert -MARGIN < row["low_equivalence"] and row["high_equivalence"] < MARGIN


def test_compare_is_antisymmetric():
    table = predictions(0.1)
    one, other = (
        verdict.compare(table, *arms, 0, MARGIN, ALPHA) for arms in (("tailored", "base"), ("base", "tailored"))
    )
    assert one["difference"] == pytest.approx(-other["difference"])
    assert one["low"] == pytest.approx(-other["high"])
    assert one["p_value"] == other["p_value"]


def test_more_needed_holds_its_promise():
    """Runs of the size it asks for, at the difference and spread it saw, are settled about four times in five."""
    generator = np.random.default_rng(8)
    a, b = two_arms(4, 100, generator, 0.08, 0.01, 0.1)
    of = intervals.spread(a - b, ["t"] * 100)._replace(mean=0.08)
    more = intervals.sample_size_needed(of, MARGIN, ALPHA)
    grown = {"seeds": (4, 100 + more["items"]), "items": (4 + (more["seeds"] or 0), 100)}["seeds"]
    wider = of.at(*grown)
    settled = intervals.chance_to_settle(wider, 0.08, MARGIN, ALPHA)
    assert 0.8 <= settled < 0.83
    assert intervals.chance_to_settle(of, 0.08, MARGIN, ALPHA) < 0.8
    runs = []
    for _ in range(300):
        x, y = two_arms(*grown, generator, 0.08, 0.01, 0.1)
        seen = intervals.spread(x - y, ["t"] * grown[1])
        half, inner = (float(intervals.half_width(seen, alpha)) for alpha in (ALPHA, 2 * ALPHA))
        runs.append(intervals.decide(seen.mean, half, inner, MARGIN) != UNDECIDED)
    assert np.mean(runs) > 0.7


def test_more_needed_may_ask_for_both():
    of = intervals.VarianceComponents(0.0, 0.25, 0.8, 0.05, 3, 20, 1)
    more = intervals.sample_size_needed(of, MARGIN, ALPHA)
    assert more["together"] and more["seeds"] % 3 == 0 and more["items"] % 20 == 0


def test_arm_accuracy_of_one_seed_is_wilson():
    table = rows_of("base", [[1, 0, 0, 0] * 25], seeds=[-1])
    row = verdict.arm_accuracy(table, "base", 0)
    assert (row["accuracy"], row["n_items"], row["n_seeds"]) == (0.25, 100, 1)
    assert (row["low"], row["high"]) == pytest.approx(intervals.wilson(0.25, 100))


def test_arm_accuracy_widens_with_the_seeds_spread():
    even = np.tile([1, 0], (3, 100))
    uneven = np.vstack([np.ones(200), even[0], np.zeros(200)])
    narrow, wide = (verdict.arm_accuracy(rows_of("tailored", t), "tailored", 0) for t in (even, uneven))
    assert narrow["accuracy"] == wide["accuracy"] == 0.5
    assert wide["high"] - wide["low"] > 3 * (narrow["high"] - narrow["low"])
    assert 0.0 <= wide["low"] and wide["high"] <= 1.0


def test_per_task_is_corrected():
    table = predictions(0.3, n_seeds=5, n_items=200)
    rows = verdict.per_task(table, "tailored", "untailored", 0, MARGIN, ALPHA)
    assert list(rows["task"]) == ["task0", "task1"]
    assert (rows["p_holm"] >= rows["p_value"]).all()
    assert set(rows["decision"]) == {BETTER}
    strict = verdict.per_task(table, "tailored", "untailored", 0, MARGIN, 1e-7)
    assert BETTER not in set(strict["decision"])
    undecided = strict[strict["decision"] == UNDECIDED]
    assert undecided["more_needed"].notna().all()


def test_further_comparisons_are_corrected_and_the_primary_one_is_not():
    """Five further comparisons, effects near the edge: some hold alone and not corrected."""
    lost = 0
    for key in range(12):
        drawn, alone = predictions(0.1, key=key, n_items=200), []
        result = verdict.verdict(drawn, SETTINGS, recipe="r", run="r", models="pocket", student="ada")
        first, *others = result["comparisons"]
        assert (first["p_adjusted"], first["decision_adjusted"]) == (first["p_value"], first["decision"])
        for row in others:
            table = verdict.paired(drawn, "tailored", row["b"], row["shots"])
            of = intervals.spread(table.to_numpy(), table.columns.get_level_values("task"))
            alone.append(max(row["p_value"], intervals.interval_p_value(of)))
            changed = row["decision"] != row["decision_adjusted"]
            assert changed == (row["decision"] in (BETTER, WORSE) and row["p_adjusted"] > ALPHA)
            assert ("taken alone" in in_words.decision_in_words(row)) == changed
            lost += changed
        assert [row["p_adjusted"] for row in others] == pytest.approx(intervals.holm(alone).tolist(), abs=2e-6)
    assert lost


@pytest.mark.parametrize(
    "spoil, words",
    [
        (lambda t: t[~((t.arm == "tailored") & (t.item_id == "item0007"))], "arm 'tailored' lacks item 'item0007'"),
        (
            lambda t: t[~((t.arm == "tailored") & (t.item_id == "item0007") & (t.seed == 1))],
            "'item0007' of 'task1' under seed 1",
        ),
        (lambda t: t[~((t.arm == "untailored") & (t.seed == 2))], "arm 'untailored' lacks seed 2"),
        (lambda t: t[(t.arm != "tailored") | (t.seed == 0)], "arm 'tailored' has one seed"),
        (lambda t: t[t.arm != "tailored"], "no predictions of arm 'tailored' with 0 shots"),
        (lambda t: pd.concat([t, t.iloc[:1]]), "twice under seed 0"),
        (lambda t: t.assign(student=["ada", *["bob"] * (len(t) - 1)]), "2 students"),
    ],
)
def test_refusals(spoil, words):
    with pytest.raises(DataError, match=words):
        verdict.compare(spoil(predictions()), "tailored", "untailored", 0, MARGIN, ALPHA)


def test_base_alone_cannot_be_compared():
    with pytest.raises(DataError, match="one seed"):
        verdict.compare(predictions(), "base", "base", 0, MARGIN, ALPHA)


def training_table(steps=(30, 30, 30)):
    return pd.DataFrame(
        [
            (student, arm, seed, 9000, n)
            for student in ("ada", "bob")
            for arm, n in zip(SETTINGS["arms"][1:], steps, strict=True)
            for seed in (0, 1, 2)
        ],
        columns=["student", "arm", "seed", "tokens", "steps"],
    )


def full_verdict(effect=0.25, **changes):
    both = pd.concat([predictions(effect), predictions(0.0, student="bob", key=9)], ignore_index=True)
    given = {
        "recipe": "arte-demo",
        "run": "demo",
        "models": "pocket",
        "student": "ada",
        "training": training_table(),
        "test_set": {"name": "pocket test", "sha256": "ab", "times_opened": 1},
    }
    return verdict.verdict(both, SETTINGS, **(given | changes))


def test_verdict_has_its_shape_and_survives_json():
    result = full_verdict()
    assert json.loads(json.dumps(result)) == result
    assert set(result) >= {
        *("recipe run student models decision primary arms comparisons per_task test_set warnings students".split())
    }
    assert result["student"] == "ada" and set(result["students"]) == {"ada", "bob"}
    assert result["decision"] == result["comparisons"][0]["decision"] == BETTER
    assert (result["comparisons"][0]["a"], result["comparisons"][0]["b"]) == ("tailored", "untailored")
    assert len(result["comparisons"]) == 6
    assert result["arms"]["tailored"]["training_tokens"] == 9000 and result["arms"]["base"]["steps"] == 0
    assert set(result["arms"]["tailored"]["by_shots"]) == {"0", "3"}
    assert "3 seeds" in result["warnings"][0]
    assert full_verdict() == result


def test_warnings():
    result = full_verdict(
        training=training_table((30, 30, 20)), test_set={"times_opened": 4}, warnings=["a stage said so."]
    )
    text = " ".join(result["warnings"])
    assert result["warnings"][0] == "a stage said so."
    assert "opened 4 times, each time with another recipe" in text and "differ in steps: 20 to 30" in text
    spoilt = predictions(0.2)
    spoilt.loc[spoilt["arm"] == "base", "parsed"] = False
    alone = verdict.verdict(spoilt, SETTINGS, recipe="r", run="x", models="pocket", student="ada")
    assert any("100 % of the answers of base" in line for line in alone["warnings"])
    assert "students" not in alone
    formed = predictions(0.2).assign(in_form=lambda frame: frame["arm"] != "base")
    told = verdict.verdict(formed, SETTINGS, recipe="r", run="x", models="pocket", student="ada")["warnings"]
    assert [line for line in told if "in the form" in line] == ["0 % of the answers of base are in the form asked for."]
    block = verdict.verdict(formed, SETTINGS, recipe="r", run="x", models="pocket", student="ada") | {"majority": 0.25}
    assert block["arms"]["base"]["in_form"] == 0.0 and block["arms"]["tailored"]["in_form"] == 1.0
    beside = arm_accuracies(block).layout.meta["sentence"]
    assert "base 0 %" in beside and "most frequent answer, 25 %" in beside


def test_missing_student_is_refused():
    with pytest.raises(DataError, match="no predictions of student 'eve'"):
        full_verdict(student="eve")


def test_numbers_have_the_decimals_that_their_interval_bears():
    assert in_words.spell(0.0425, -0.148, 0.235, "points") == "+4 points (-15 to +24)"
    assert in_words.spell(-0.001, -0.025, 0.022, "points") == "+0 points (-2 to +2)"
    assert in_words.spell(-0.001, -0.004, 0.002, "points") == "-0.1 points (-0.4 to +0.2)"
    assert in_words.spell(0.5, float("nan"), float("nan")) == "50 % (no interval)"
    assert in_words.spell(float("nan"), float("nan"), float("nan"), "points") == "not known"
    assert in_words.spell(1.0, 1.0, 1.0, "") == "1.00 (1.00 to 1.00)"


def _tasks_apart(shift: float, rng) -> pd.DataFrame:
    """Return drafts of two tasks, in one of which all scores are higher and more answers wrong, `shift` being true."""
    rows = pd.DataFrame({"task": np.repeat(["easy", "hard"], 200), "question_id": np.arange(400) // 4})
    rows["right"] = rng.random(400) < np.where(rows["task"] == "easy", 0.5, 0.95)
    rows["value"] = np.where(rows["task"] == "easy", 0.8, 0.4) + shift * rows["right"] + rng.normal(0, 0.05, 400)
    return rows


@pytest.mark.parametrize("shift", [0.0, 0.1])
def test_within_tasks_a_difference_is_not_that_of_the_tasks(shift):
    """Pooled, right drafts score lower because the easy task has more wrong ones: Simpson's paradox."""
    rows = _tasks_apart(shift, np.random.default_rng(0))
    pooled = rows[rows["right"]]["value"].mean() - rows[~rows["right"]]["value"].mean()
    assert pooled < -0.03
    given = rows["value"], rows["right"], rows["task"], rows["question_id"]
    found, low, high = intervals.difference_within_tasks(*given)
    assert low < shift < high and found == pytest.approx(shift, abs=0.02)
    # Whatever the tasks' own means are, it stays the same.
    shuffled = rows["value"] + rows["task"].map({"easy": -3.0, "hard": 5.0})
    assert intervals.difference_within_tasks(shuffled, *given[1:]) == pytest.approx((found, low, high))
    alone = rows[rows["right"]]
    assert np.isnan(intervals.difference_within_tasks(alone["value"], alone["right"], alone["task"], alone.index)).all()


def test_the_mean_within_tasks_does_not_follow_their_shares():
    rows = _tasks_apart(0.0, np.random.default_rng(1))
    few = rows[(rows["task"] == "hard") | (rows.index < 40)]
    whole, some = (intervals.mean_within_tasks(own["value"], own["task"], own["question_id"]) for own in (rows, few))
    assert whole[0] == pytest.approx(0.6, abs=0.01) and some[1] < whole[0] < some[2] and few["value"].mean() < 0.5


if __name__ == "__main__":
    start, repeats = time.time(), int(sys.argv[1]) if len(sys.argv) > 1 else 1000
    null = calibration(repeats, seeds=(2, 3, 5), seed_sds=(0.0, 0.01, 0.02, 0.04))
    print(null.round(3).to_string(index=False))
    print(null[["coverage", "better", "worse", "same"]].agg(["min", "mean", "max"]).round(3))
    at_margin = calibration(repeats, items=(400, 1500), item_sds=(0.05,), effect=MARGIN)
    print(f"true difference of the margin\n{at_margin.round(3).to_string(index=False)}")
    print(f"{repeats} runs a row, {time.time() - start:.0f} s")
