"""Score and gain by round: what is called a parting and what is not, and the rounds themselves on models built here."""

import multiprocessing
import os
import shutil
from contextlib import contextmanager

import numpy as np
import pandas as pd
import pytest
import small_classroom

from workbench import figures
from workbench.runs import progress
from workbench.runs.errors import DataError, RunError
from workbench.runs.run import open_run
from workbench.runs.seeding import stream
from workbench.studies.goodhart import by_round, findings, follow, partings

SCORES = (0.4, 0.5, 0.6, 0.65)


def rounds(scores, gains, key=0, n_seeds=5, seed_sd=0.01, n_items=(40, 120), student="ada") -> pd.DataFrame:
    """Rounds whose true score and gain are given; seeds shift a round, and questions differ in difficulty."""
    rng, keys, values = stream(0, "rounds", key, student), [], []
    for what, levels, n, size in (("score", scores, n_items[0], 8), ("gain", gains, n_items[1], 1)):
        ease = rng.uniform(-0.2, 0.2, n)
        before = (rng.random(n) < 0.5 + ease) if what == "gain" else np.zeros(n)
        for number, level in enumerate(levels):
            share = level if what == "score" else 0.5 + level
            for seed in range(n_seeds):
                chance = np.clip(share + ease + seed_sd * rng.standard_normal(), 0.02, 0.98)
                values.append(rng.binomial(size, chance, n) / size - before)
                keys += [(student, number, seed, what, "t", f"i{i}") for i in range(n)]
    columns = ["student", "round", "seed", "what", "task", "item_id"]
    return pd.DataFrame(keys, columns=columns).assign(value=np.concatenate(values))


def test_a_score_that_rises_while_the_gain_falls_is_warned_of():
    table = rounds(SCORES, (0.10, 0.12, 0.02, -0.15))
    found = partings(table).set_index(["earlier", "later"])
    assert found.loc[(1, 3), "parted"] and not found.loc[(0, 1), "parted"]
    (said,) = findings(table)
    assert said.startswith("Warning: for ada") and "stop at round" in said and "to round 3" in said


def test_score_and_gain_that_rise_together_are_not():
    table = rounds(SCORES, (0.0, 0.08, 0.15, 0.2))
    assert not partings(table)["parted"].any()
    (said,) = findings(table)
    assert said.startswith("No parting is seen for ada") and "From round 0 to round 3" in said
    assert "shows little" not in said


def test_a_gain_that_falls_with_the_score_is_no_parting():
    table = rounds(SCORES[::-1], (0.2, 0.1, 0.0, -0.15))
    assert not partings(table)["parted"].any()
    assert "did not rise beyond chance" in findings(table)[0]


def test_what_alone_would_be_a_parting_is_undecided_after_correction():
    table = rounds(SCORES, (0.10, 0.10, 0.09, 0.02), key=1, seed_sd=0.03)
    found = partings(table)
    alone = found[(found["score_low"] > 0) & (found["gain_high"] < 0)]
    assert len(alone) and not found["parted"].any()
    (said,) = findings(table)
    row = alone.loc[alone["gain"].idxmin()]
    assert said.startswith(f"Undecided for ada. From round {row['earlier']} to round {row['later']} the score moved")
    assert f"of 6 pairs of rounds one may be so by chance (p {row['p_holm']:.2f})" in said


def test_false_warnings_are_rare_and_true_ones_are_found():
    """60 drawn worlds each: a gain that stays where it is, and one that falls by 12 points at the end."""
    flat, falls = (
        np.mean([partings(rounds(SCORES, gains, key))["parted"].any() for key in range(60)])
        for gains in ((0.1,) * 4, (0.1, 0.1, 0.1, -0.02))
    )
    assert flat <= 0.05 and falls >= 0.5


def test_by_round_by_hand():
    table = pd.DataFrame(
        [
            ("ada", 0, seed, what, "t", item, value)
            for what, values in (("score", [[1.0, 0.5], [0.5, 0.0]]), ("gain", [[1.0, 0.0], [0.0, 0.0]]))
            for seed, row in enumerate(values)
            for item, value in zip("ij", row, strict=True)
        ]
        + [("ada", 0, 0, "n_tokens", "t", "e", 30.0)],
        columns=["student", "round", "seed", "what", "task", "item_id", "value"],
    )
    (row,) = by_round(table).to_dict("records")
    assert (row["score"], row["gain"], row["n_tokens"], row["n_seeds"]) == (0.5, 0.25, 30.0, 2)
    assert row["score_low"] < 0.5 < row["score_high"]


def test_students_do_not_mix():
    both = pd.concat([rounds(SCORES, (0.1, 0.1, 0, -0.15)), rounds(SCORES, (0.1,) * 4, student="bob")])
    alone = partings(rounds(SCORES, (0.1,) * 4, student="bob"))
    pd.testing.assert_frame_equal(partings(both).query("student == 'bob'").reset_index(drop=True), alone)
    assert [said.startswith("Warning") for said in findings(both)] == [True, False]


def test_the_figure_says_what_was_found():
    table = rounds(SCORES, (0.1, 0.1, 0.0, -0.15), student="<b>eve")
    figure = figures.score_and_gain(by_round(table), findings(table))
    assert "score and gain part" in figures.sentence(figure) and len(figure.data) == 2
    assert all("<b>eve" not in note.text for note in figure.layout.annotations)
    with pytest.raises(DataError, match="workbench study goodhart"):
        figures.score_and_gain(by_round(table)[:0], [])


@pytest.fixture(scope="module")
def aligned(small_run, tmp_path_factory):
    """A folder of runs with one run of the small classroom, up to its alignment."""
    return shutil.copytree(small_run, tmp_path_factory.mktemp("aligned") / "runs")


def follow_until_killed(runs: str, kill: tuple[str, int]) -> None:
    os.environ["WORKBENCH_RUNS"] = runs
    small_classroom._arm(*kill)
    follow(open_run("loop"), 2, 2, 2)


def test_rounds_are_followed_killed_and_gone_on_with(aligned, monkeypatch, capsys):
    monkeypatch.setenv("WORKBENCH_RUNS", str(aligned))
    run = open_run("loop")
    kept = run.path / "goodhart.parquet"
    assert not kept.exists()
    process = multiprocessing.get_context("spawn").Process(
        target=follow_until_killed, args=(str(aligned), ("workbench.runs.cache:Cache.put_many", 6))
    )
    process.start()
    process.join()
    assert process.exitcode == -9 and not kept.exists()
    before = {name: run.manifest(name) for name in ("drafts", "signals", "examples")}
    shown = {}

    @contextmanager
    def watching(step):
        shown[step] = progress.folder()
        yield

    run.watching = watching
    table = follow(run, 2, 2, 2)
    # Trainings are no step, and say all the same how far they are.
    assert shown["training on rounds"] == run.path / "goodhart" / progress.FOLDER and progress.folder() is None
    assert not shown["training on rounds"].exists()
    pd.testing.assert_frame_equal(pd.read_parquet(kept), table)
    assert set(table["round"]) == {0, 1, 2} and set(table["seed"]) == {1, 2}
    shares = table[table["what"] == "score"]
    assert len(shares) == 3 * 2 * 2 * 8 and shares["value"].between(0, 1).all()
    gains = table[table["what"] == "gain"]
    assert len(gains) == 3 * 2 * 2 * 2 and set(gains["value"]) <= {-1.0, 0.0, 1.0}
    assert before == {name: run.manifest(name) for name in before}
    # Round 1 is what the run's own aligned teacher wrote.
    examples = run.read("examples").query("arm == 'tailored' and kept")
    assert set(table.query("round == 1 and what == 'n_tokens'")["item_id"]) <= set(examples["example_id"])
    capsys.readouterr()
    pd.testing.assert_frame_equal(follow(run, 2, 2, 2), table)
    assert "stored" in capsys.readouterr().out


def test_what_cannot_be_followed_is_said(aligned, monkeypatch):
    monkeypatch.setenv("WORKBENCH_RUNS", str(aligned))
    run = open_run("loop")
    with pytest.raises(RunError, match="must be 2 .* to 2, .* got 3"):
        follow(run, 1, 3, 2)
    with pytest.raises(RunError, match="its students are pupil"):
        follow(run, 1, 2, 2, ["eve"])
    with pytest.raises(RunError, match="no finished step"):
        follow(open_run("empty", run.recipe), 1, 2, 2)
