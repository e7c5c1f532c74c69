"""The result card, from numbers put in by hand; on whole runs it is tested with the loops."""

import io
import re
import subprocess
import sys
from types import SimpleNamespace

import pandas as pd
import pytest

from workbench.methods.base import Evidence
from workbench.notebook.display import print_card
from workbench.report import card
from workbench.report.card import N_COMPARED, ResultCard, StudentCard, _answers, _found, _learned, _rung_of

NATIVE = {"student": "ada", "native": "tally", "auc": 0.9, "auc_low": 0.8, "auc_high": 0.95}
SHARES = {
    **{"native_untailored": 0.25, "native_random_pairs": 0.3, "native_tailored": 0.8},
    **{"n_untailored": 100, "n_random_pairs": 100, "n_tailored": 100},
}
EXAMPLES = pd.DataFrame(
    [
        ("untailored", "a", 1, True),
        ("untailored", "a", 2, True),
        ("tailored", "a", 3, False),
        ("tailored", "a", 4, True),
    ],
    columns=["arm", "task", "question_id", "correct"],
).assign(kept=True, gold=["1", "1", "1", "1"], student="ada")
PAIRS = pd.DataFrame({"p_chosen": [0.95, 0.9, 0.6, 0.2], "student": "ada"})


def run_of(**frames: pd.DataFrame) -> SimpleNamespace:
    return SimpleNamespace(read=frames.__getitem__, has=frames.__contains__)


def comparison(b: str, shots: int = 0, decision: str = "better", **more) -> dict:
    row = {"a": "tailored", "b": b, "shots": shots, "difference": 0.277, "low": 0.146, "high": 0.407}
    return row | {"decision": decision, "n_items": 200, "n_seeds": 5, "more_needed": None} | more


@pytest.mark.parametrize(("low", "word"), [(0.51, "yes"), (0.5, "not seen")])
def test_a_preference_is_found_when_the_interval_lies_above_chance(low, word):
    rung = _found(run_of(), NATIVE | {"auc_low": low})
    assert rung.word == word and rung.number.startswith("AUC 0.9") and "tally" in rung.says


def test_without_an_answer_key_new_questions_must_confirm_the_pairs(monkeypatch):
    rung = _found(run_of(pairs=PAIRS), {"student": "ada"})
    assert (rung.word, rung.number) == ("unknown", "4 pairs") and "Of 4 pairs 50 % are confident" in rung.says
    for low, word in ((0.6, "yes"), (0.4, "not seen")):
        monkeypatch.setattr(card, "_confirmed", lambda run, student, low=low: (0.7, low, 0.8))
        rung = _found(run_of(pairs=PAIRS), {"student": "ada"})
        assert (
            rung.word == word and rung.number == f"70 % ({100 * low:.0f} to 80) of pairs are confirmed by new questions"
        )


@pytest.mark.parametrize(("control", "word"), [(0.3, "yes"), (0.75, "not seen")])
def test_the_teacher_has_learned_when_its_share_lies_above_those_of_both_others(control, word):
    rung = _learned(run_of(examples=EXAMPLES), NATIVE | SHARES | {"native_random_pairs": control})
    assert rung.word == word and rung.number == "80 % (71 to 87) tally"
    assert rung.says.startswith(f"25 % before, {100 * control:.0f} % in the control. Right answers -50 points (")


def test_a_small_share_is_learned_a_little():
    few = {"native_untailored": 0.0, "native_random_pairs": 0.0, "native_tailored": 0.1}
    assert _learned(run_of(examples=EXAMPLES), NATIVE | SHARES | few).word == "a little"
    assert _learned(run_of(examples=EXAMPLES.assign(gold="")), {"student": "ada"}).word == "unknown"


def test_the_verdict_is_one_word_one_number_and_no_p_value():
    arms = {arm: {"accuracy": share} for arm, share in (("tailored", 0.8), ("untailored", 0.52))}
    block = {"arms": arms, "primary": {"margin": 0.05}, "comparisons": [comparison("untailored", p_value=0.019)]}
    rung = _answers(block, wins=False)
    assert (rung.word, rung.number) == ("better", "+28 points (+15 to +41)")
    assert "80 against 52 % right; 200 items, 5 seeds" in rung.says and "0.019" not in rung.says
    small = comparison("untailored", difference=0.02, low=0.01, high=0.03, win_rate=0.6, win_low=0.5, win_high=0.7)
    rung = _answers(block | {"comparisons": [small]}, wins=True)
    assert "Less than the 5 points that count." in rung.says and "Win rate 60 % (50 to 70)." in rung.says


def test_evidence_becomes_a_rung():
    values, positive = pd.Series([0.1, 0.2, 0.8, 0.9] * 10), pd.Series([False, False, True, True] * 10)
    clusters = pd.Series(range(40))
    rung = _rung_of(Evidence("Found?", values, clusters, ", the chance", "All.", unit="", positive=positive))
    assert rung == ("Found?", "yes", "1.00 (1.00 to 1.00), the chance", "All.")
    assert _rung_of(Evidence("Found?", values, clusters, "", "All.", positive=positive & False)).word == "unknown"
    assert _rung_of(Evidence("Above?", values, clusters, " of all", "")).word == "not seen"
    assert _rung_of(Evidence("Above?", values[:0], clusters[:0], "", "")).word == "unknown"


def test_what_a_run_says_is_escaped_and_fits_a_terminal():
    rungs = [card.Rung("Is <b>it</b>?", "yes", "1 % (0 to 2)", "<script>alert(1)</script> " * 12)] * 3
    compared = [("tailored - base", "+1 points (0 to +2)", "undecided")] * N_COMPARED
    shown = ResultCard([StudentCard("<i>ada</i>", rungs, compared, "More seeds.")])
    assert "<script" not in shown._repr_html_() and "<i>" not in shown._repr_html_()
    assert max(map(len, str(shown).splitlines())) <= 105 and str(shown).count("undecided") == N_COMPARED
    assert repr(shown) == "<i>ada</i>: yes, yes, yes"


def test_looking_at_a_result_loads_no_models():
    names = "{'torch', 'transformers'}"
    code = f"import sys, workbench as wb; wb.result_card, wb.model_names, wb.planted; print({names} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "set()", done.stderr


@pytest.mark.parametrize("width", [72, 100])
def test_no_line_is_wider_than_the_terminal_and_what_goes_on_is_set_in(width):
    asks = ("Did we find what the student prefers?", "Did the teacher learn it?", "Does the student answer better?")
    rungs = [
        card.Rung(ask, "no difference", "46 % (41 to 50) of pairs are confirmed by new questions", "") for ask in asks
    ]
    decision = "better taken alone, no difference corrected for the number of comparisons"
    compared = [("tailored - tailored for tally-strong", "+12 points (-10 to +29)", decision)] * 2
    lines = ResultCard([StudentCard("ada", rungs, compared, "")]).text(width).splitlines()
    assert max(map(len, lines)) <= width and lines[0] == "ada"
    assert all(line.startswith(("  1  ", "  2  ", "  3  ", "     ")) for line in lines[1:] if line)
    assert " ".join(" ".join(lines).split()).count("corrected for the number of comparisons") == 2


def test_on_a_terminal_the_answers_have_colours_and_elsewhere_none(monkeypatch):
    rungs = [card.Rung("Found?", "yes", "1 % (0 to 2)", "so yes  we say")] * 3
    shown = ResultCard([StudentCard("[b]ada", rungs, [("tailored - base", "+1 points (0 to +2)", "undecided")], "")])
    plain, terminal = io.StringIO(), io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    for out in (plain, terminal):
        print_card(shown, out)
    assert plain.getvalue() == f"{shown}\n"
    coloured = terminal.getvalue()
    assert re.sub(r"\x1b\[[\d;]*m", "", coloured).split() == plain.getvalue().split()
    assert coloured.count("\x1b[1;32mYES") == 3 and "\x1b[33mundecided" in coloured and "[b]ada" in coloured
