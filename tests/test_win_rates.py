"""Win rates: by right answers as the verdict has them, by a judge, and at equal lengths where it likes length."""

import json
import sys
import types

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from workbench.runs.errors import DataError
from workbench.verdict.verdict import compare
from workbench.verdict.win_rates import (
    judged,
    length_controlled,
    raw_and_controlled,
    win_rate_of,
    write_alpaca_eval,
    write_mt_bench,
)


def test_a_verdicts_comparison_has_the_win_rate_and_the_same_interval_halved():
    rng = np.random.default_rng(0)
    rows = [
        {"student": "s", "arm": arm, "seed": seed, "shots": 0, "task": "t", "item_id": str(item), "correct": right}
        for arm, share in (("a", 0.7), ("b", 0.5))
        for seed in range(3)
        for item, right in enumerate(rng.random(60) < share)
    ]
    row = compare(pd.DataFrame(rows), "a", "b", 0, 0.05, 0.05)
    assert row["win_rate"] == pytest.approx(0.5 + row["difference"] / 2)
    assert row["win_low"] == pytest.approx(0.5 + row["low"] / 2) and row["win_high"] == pytest.approx(
        0.5 + row["high"] / 2
    )
    assert row["wins"] + row["ties"] / 2 == pytest.approx(row["win_rate"])


@given(st.lists(st.sampled_from([-1.0, 0.0, 1.0]), min_size=1))
def test_the_two_sides_win_rates_add_up(values):
    table = np.array([values])
    assert win_rate_of(table, 0.1)["win_rate"] + win_rate_of(-table, 0.1)["win_rate"] == pytest.approx(1)


def test_a_judge_prefers_ties_or_says_nothing():
    asked = pd.DataFrame({"task": "t", "question": list("wxyz"), "gold": "", "a": "long", "b": "b"}, index=[3, 5, 7, 9])
    scores = {"score_teacher": [9.0, 5.0, 2.0, np.nan], "score_student": [1.0, 5.0, 7.0, np.nan]}
    preferences = judged(asked, lambda frame: pd.DataFrame(scores, index=frame.index))
    assert preferences.tolist()[:3] == [1.0, 0.5, 0.0] and np.isnan(preferences[9])


def planted(n: int, by_length: float, by_worth: float, seed: int = 0):
    """Return preferences of a judge who likes length and worth as much as told, lengths, and prompts."""
    rng = np.random.default_rng(seed)
    mine, other = rng.normal(60, 15, n), rng.normal(40, 15, n)
    chance = 1 / (1 + np.exp(-(by_worth + by_length * np.tanh((mine - other) / np.std(mine - other)))))
    return (rng.random(n) < chance).astype(float), mine, other, np.arange(n) // 2


def test_a_liking_for_long_answers_shows_in_the_length_controlled_rate_and_not_in_the_raw_one():
    found = raw_and_controlled(*planted(1200, by_length=3.0, by_worth=0.0))
    assert found["low"] > 0.7  # the raw rate praises what is only longer
    assert found["controlled_low"] < 0.5 < found["controlled_high"]
    fair = raw_and_controlled(*planted(1200, by_length=0.0, by_worth=1.0))
    assert fair["controlled"] == pytest.approx(fair["win_rate"], abs=0.05) and fair["controlled_low"] > 0.6


@pytest.fixture(scope="module")
def alpaca_eval():
    """Return AlpacaEval, with the one thing of setuptools that it asks for and that is no more."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "pkg_resources", types.SimpleNamespace(parse_version=str))
        import alpaca_eval.metrics.glm_winrate as glm
        import alpaca_eval.utils as utils

        yield types.SimpleNamespace(glm=glm, utils=utils)


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize(("by_length", "by_worth"), [(3.0, 0.0), (0.0, 1.0), (2.0, 0.5), (-1.0, -0.7)])
def test_the_length_controlled_rate_is_alpaca_evals_own(alpaca_eval, monkeypatch, tmp_path, by_length, by_worth):
    preferences, mine, other, _ = planted(800, by_length, by_worth)
    mine, other = (lengths.clip(1).astype(int) for lengths in (mine, other))
    frame = pd.DataFrame(
        {
            "index": range(800),
            "preference": 1 + preferences,  # 2 where its second output, a's, is the better one
            "output_1": ["x" * n for n in other],
            "output_2": ["x" * n for n in mine],
            "generator_1": "b",
            "generator_2": "a",
        }
    )
    # Its table of difficulties is fetched from the hub; the formula taken here leaves them out.
    table = tmp_path / "gamed.csv"
    pd.DataFrame({"model": "m", "index": range(800), "instruction_difficulty": 0.0}).to_csv(table, index=False)
    monkeypatch.setattr(alpaca_eval.glm, "hf_hub_download", lambda **_: table)
    theirs = alpaca_eval.glm.get_length_controlled_winrate(frame, "length_controlled_minimal", save_weights_dir=None)
    ours = raw_and_controlled(preferences, mine, other, np.arange(800))
    assert 100 * ours["win_rate"] == pytest.approx(theirs["win_rate"])
    # It fits with a penalty chosen by cross-validation, we with next to none.
    assert 100 * ours["controlled"] == pytest.approx(theirs["length_controlled_winrate"], abs=1.0)
    assert by_length == 0 or abs(theirs["length_controlled_winrate"] - theirs["win_rate"]) > 5


def test_the_fit_is_that_of_logistic_regression():
    from sklearn import linear_model

    preferences, mine, other, _ = planted(400, 2.0, 0.5)
    x = np.tanh((mine - other) / np.std(mine - other))[:, None]
    fit = linear_model.LogisticRegression(C=np.inf).fit(x, preferences)
    assert length_controlled(preferences, mine - other) == pytest.approx(fit.predict_proba([[0.0]])[0, 1], abs=2e-3)


def test_intervals_widen_when_the_answers_of_a_prompt_belong_together():
    preferences, mine, other, prompts = planted(200, 0.0, 0.0)
    alone = raw_and_controlled(preferences, mine, other, np.arange(200))
    twice = raw_and_controlled(
        np.repeat(preferences, 5), np.repeat(mine, 5), np.repeat(other, 5), np.repeat(np.arange(200), 5)
    )
    assert twice["high"] - twice["low"] == pytest.approx(alone["high"] - alone["low"], rel=0.02)


def test_one_side_always_and_nothing_judged():
    assert 0.9 < raw_and_controlled(np.ones(20), np.arange(20), np.zeros(20), np.arange(20))["controlled"] <= 1.0
    left_out = raw_and_controlled(np.array([1.0, np.nan, 0.0]), np.ones(3), np.ones(3), np.arange(3))
    assert (left_out["n"], left_out["not_judged"], left_out["win_rate"]) == (2, 1, 0.5)
    with pytest.raises(DataError, match="None of 2 pairs was judged"):
        raw_and_controlled(np.full(2, np.nan), np.ones(2), np.ones(2), np.arange(2))


def test_outputs_are_as_alpaca_eval_and_mt_bench_read_them(tmp_path, alpaca_eval):
    answers = pd.DataFrame(
        {"question_id": ["q1", "q2"], "question": ["Why?", "Wo\u0308?"], "text": ["so", "da\n\u2028"]}
    )
    write_alpaca_eval(answers, "ours", tmp_path / "a.json")
    read = json.loads((tmp_path / "a.json").read_text(encoding="utf-8"))
    assert read[1] == {"instruction": "Wo\u0308?", "output": "da\n\u2028", "generator": "ours"}
    theirs = alpaca_eval.utils.load_or_convert_to_dataframe(tmp_path / "a.json")
    assert theirs[["instruction", "output"]].to_numpy().tolist() == answers[["question", "text"]].to_numpy().tolist()
    write_mt_bench(answers, "ours", tmp_path / "m.jsonl")
    lines = (tmp_path / "m.jsonl").read_text(encoding="utf-8").split("\n")
    assert len(lines) == 3 and json.loads(lines[0])["choices"] == [{"index": 0, "turns": ["so"]}]
