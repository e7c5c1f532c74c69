"""Figures: what they say, that model text stays text, and that an exported page draws them offline."""

import functools
import re
import shutil

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest
from simulated import two_arms

from workbench import figures
from workbench.figures import scores as scores_module
from workbench.figures import style
from workbench.figures.style import arm_styles
from workbench.runs.errors import DataError
from workbench.verdict import in_words, intervals, verdict

EVIL = "<img src=x onerror=alert(1)>%{x}$a$</script>"
TECHNIQUES = ["bare", "forwards", "sorted_lists", EVIL]
STUDENTS = {"ada": "forwards", "bob": "bare"}
TASKS = ["object_counting", "navigate"]
ARMS = ["base", "untailored", "random_pairs", "tailored"]


def drafts_frame(n_questions=20):
    generator = np.random.default_rng(0)
    rows = [
        (f"{task}-{q}-{t}", task, f"{task}-{q}", EVIL, t, EVIL, "3", "3", bool(generator.random() < 0.7), 30)
        for task in TASKS
        for q in range(n_questions)
        for t in TECHNIQUES
    ]
    columns = "draft_id task question_id question technique rationale answer gold correct n_tokens".split()
    return pd.DataFrame(rows, columns=columns)


def signals_frame(drafts, n=40):
    generator = np.random.default_rng(1)
    rows = []
    for student, native in STUDENTS.items():
        for draft in drafts.itertuples():
            value = generator.binomial(n, 0.65 if draft.technique == native else 0.4) / n
            rows.append(
                (draft.draft_id, "rationale", "icl", student, "f", "s", value, (value * (1 - value) / n) ** 0.5, n, 9)
            )
        for question in drafts["question_id"].unique():
            rows.append((question, "question", "icl", student, "f", "s", generator.uniform(0.3, 0.6), 0.04, n, 9))
    return pd.DataFrame(
        rows, columns="draft_id item_kind signal student student_fp set_fp value stderr n tokens".split()
    )


def pairs_frame(drafts, signals):
    rows = []
    kinds = {"rationale": drafts.set_index("draft_id")["question_id"], "question": None}
    for (student, kind), own in signals.groupby(["student", "item_kind"]):
        groups = own.groupby(own["draft_id"].map(kinds[kind]) if kind == "rationale" else np.arange(len(own)) // 4)
        for _, group in groups:
            best, worst = group.loc[group["value"].idxmax()], group.loc[group["value"].idxmin()]
            gap = best["value"] - worst["value"]
            row = (f"p{len(rows)}", student, kind, TASKS[0], EVIL, EVIL, EVIL, best["draft_id"], worst["draft_id"])
            rows.append((*row, best["value"], worst["value"], gap, 0.5 + gap / 2, False))
    columns = "pair_id student kind task prompt chosen rejected chosen_id rejected_id "
    columns += "score_chosen score_rejected score_gap p_chosen flipped"
    return pd.DataFrame(rows, columns=columns.split())


def curve_frame():
    generator = np.random.default_rng(2)
    rows = []
    for step in range(0, 60, 5):
        for student in STUDENTS:
            for arm, slope in (("tailored", 0.05), ("random_pairs", 0.01)):
                rows.append(
                    ("alignment", arm, student, 0, step, "rewards/margins", slope * step + generator.normal(0, 0.05))
                )
                rows.append(("alignment", arm, student, 0, step, "rewards/accuracies", min(1, 0.5 + slope * step / 4)))
            for seed in (0, 1, 2):
                for arm in ARMS[1:]:
                    loss = 2 * np.exp(-step / 20) + generator.normal(0.4, 0.05)
                    rows.append(("training", arm, student, seed, step, "loss", loss))
    return pd.DataFrame(rows, columns="stage arm student seed step metric value".split())


def examples_frame():
    generator = np.random.default_rng(3)
    rows = []
    for student in STUDENTS:
        for arm, native in (("untailored", 0.3), ("random_pairs", 0.35), ("tailored", 0.75)):
            for i in range(150):
                style = "running_totals" if generator.random() < native else str(generator.choice(["lists", "", EVIL]))
                right = bool(generator.random() < (0.6 if arm == "tailored" else 0.7))
                rows.append(
                    (
                        f"{arm}{student}{i}",
                        arm,
                        student,
                        0,
                        TASKS[0],
                        "q",
                        EVIL,
                        EVIL,
                        "3",
                        "3",
                        right,
                        style,
                        30,
                        True,
                        "",
                    )
                )
    columns = "example_id arm student seed task question_id question rationale answer gold correct style "
    columns += "n_tokens kept drop_reason"
    return pd.DataFrame(rows, columns=columns.split())


def rounds_frame():
    """Return a score that rises by a tenth a round, for two arms, tasks and seeds."""
    return pd.DataFrame(
        [
            {"panel": panel, "arm": arm, "student": "ada", "seed": seed, "round": n, "value": 0.1 * n + 0.01 * seed}
            for panel in (TASKS[0], EVIL)
            for arm in ("full", EVIL)
            for seed in (1, 2)
            for n in (1, 2, 3)
        ]
    )


@functools.cache
def evaluated():
    """Return predictions of a run and its verdict."""
    settings = {
        "arms": ARMS,
        "shots": [0, 3],
        "margin": 0.05,
        "alpha": 0.05,
        "primary": {"a": "tailored", "b": "untailored", "shots": 0},
    }
    generator, rows = np.random.default_rng(4), []
    for student, effect in (("ada", 0.22), ("bob", 0.02), (EVIL, -0.2)):
        for shots in settings["shots"]:
            for arm in ARMS:
                tables = two_arms(3, 200, generator, effect if arm == "tailored" else 0.0, 0.01, 0.05)
                for seed, answers in zip([-1] if arm == "base" else [0, 1, 2], tables[0]):
                    rows += [
                        (student, arm, seed, shots, [*TASKS, EVIL][i % 3], f"i{i}", "x", True, bool(v))
                        for i, v in enumerate(answers)
                    ]
    frame = pd.DataFrame(rows, columns="student arm seed shots task item_id answer parsed correct".split())
    return frame, verdict.verdict(frame, settings, recipe="arte-demo", run="demo", models="pocket", student="ada")


@pytest.fixture
def all_figures():
    return drawn()


@functools.cache
def drawn():
    """Return one of each figure; two files look at them."""
    drafts = drafts_frame()
    signals, (answers, result) = signals_frame(drafts), evaluated()
    return {
        "drafts_by_technique": figures.drafts_by_technique(drafts),
        "preference_scores": figures.preference_scores(signals, drafts, "ada"),
        "technique_heatmap": figures.technique_heatmap(signals, drafts),
        "probe_roc": figures.probe_roc(signals, drafts, STUDENTS),
        "pair_decidedness": figures.pair_decidedness(pairs_frame(drafts, signals)),
        "reward_margins": figures.reward_margins(curve_frame()),
        "training_curves": figures.training_curves(curve_frame()),
        "by_round": figures.by_round(
            rounds_frame(), "Does it get better?", "score", "Mean score on forty questions, before each round."
        ),
        "style_shift": figures.style_shift(examples_frame()),
        "arm_accuracies": figures.arm_accuracies(result),
        "comparisons": figures.comparisons(result),
        "per_task": figures.per_task(result),
        "by_student": figures.by_student(result),
        "sign_flips": figures.sign_flips(answers, result, EVIL),
        "decision_shares": figures.decision_shares(
            dict.fromkeys((intervals.BETTER, intervals.WORSE, intervals.SAME, intervals.UNDECIDED), 5),
            "True difference 0",
        ),
        "evil_student": figures.comparisons(result, EVIL),
    }


def strings(value):
    """Return every string anywhere in a figure's data and layout, but for the notes shown as escaped HTML."""
    if isinstance(value, dict):
        return [s for key, item in value.items() if key not in ("meta", "template") for s in strings(item)]
    if isinstance(value, list | tuple | np.ndarray):
        return [s for item in value for s in strings(item)]
    return [value] if isinstance(value, str) else []


def test_every_figure_is_complete(all_figures):
    for name, fig in all_figures.items():
        assert isinstance(fig, go.Figure), name
        assert len(figures.caption(fig)) > 40 and figures.caption(fig).endswith("."), name
        assert figures.sentence(fig).endswith(".") and re.search(r"\d", figures.sentence(fig)), name
        assert "pocket models" in fig.layout.title.subtitle.text.replace("<br>", " "), name
        assert "<td>" in figures.table(fig), name


def test_model_text_never_becomes_markup(all_figures):
    for name, fig in all_figures.items():
        for text in strings(fig.to_plotly_json()):
            assert not re.search(r"<(?!/?b>|br>|/?extra>)", text), (name, text)
            assert "$a$" not in text and "onerror=alert(1)>%{" not in text, (name, text)
        for page in (figures.notes_html(fig), figures.to_html(fig)):
            assert "<img" not in page and "$a$</script>" not in page, name


def test_escape():
    assert figures.escape("a\n b<b>") == "a b&lt;b&gt;"
    assert figures.escape("$x$ %{y} &") == "&#36;x&#36; %&#123;y} &amp;"
    assert len(figures.escape("x" * 500)) == 60


def test_sentences_say_what_was_planted(all_figures):
    said = {name: figures.sentence(fig) for name, fig in all_figures.items()}
    assert "Student ada answers best after forwards drafts, 0.6" in said["preference_scores"]
    assert "ada forwards" in said["technique_heatmap"] and "bob bare" in said["technique_heatmap"]
    assert "for ada running totals" in said["style_shift"] and "right answers" in said["style_shift"]
    assert "Tailored against untailored: better" in said["comparisons"]
    assert "worse" in said["by_student"] and "worse" in said["evil_student"]
    assert f"full {TASKS[0].replace('_', ' ')} 0.32 (from 0.31 to 0.32 over 2 runs)" in said["by_round"]
    assert "tailored" in said["reward_margins"] and "random pairs" in said["reward_margins"]


def test_what_cannot_be_checked_is_neither_right_nor_wrong():
    rows = [("a", "2", True), ("a", "2", False), ("a", "", False), ("b", "", False)]
    drafts = pd.DataFrame(rows, columns=["technique", "gold", "correct"])
    drafts = drafts.assign(task="t", question_id=range(4), style=drafts["technique"], arm="tailored", student="ada")
    assert list(in_words.states(drafts)) == ["right", "wrong", "cannot be checked", "cannot be checked"]
    figure = figures.drafts_by_technique(drafts)
    upto = {bar.name: dict(zip(bar.y, bar.x, strict=True)) for bar in figure.data}
    assert list(upto) == ["cannot be checked", "wrong", "right"] and [upto[name]["a"] for name in upto] == [3, 2, 1]
    assert [upto[name]["b"] for name in upto] == [1, 0, 0] and "50 % right" in str(figure.data[0].text)
    assert "Of 2 rationales that can be checked (2 cannot), 50 % (" in figures.sentence(figure)
    shift = figures.style_shift(drafts)
    assert "cannot be checked" in figures.table(shift) and "<td>0.5</td>" in figures.table(shift)


def test_sign_flips_show_the_p_value_of_the_verdict():
    answers, result = evaluated()
    fig = figures.sign_flips(answers, result, "bob")
    p = result["students"]["bob"]["comparisons"][0]["p_value"]
    assert f"{100 * p:.1f} % of all sign patterns" in figures.sentence(fig)
    near, as_far = (sum(bar.y) for bar in fig.data)
    assert as_far == pytest.approx(100 * p, abs=0.01) and as_far + near == pytest.approx(100, abs=0.01)


def test_decision_shares_are_shares():
    fig = figures.decision_shares({intervals.BETTER: 30, intervals.UNDECIDED: 90}, "True difference +5")
    assert [bar.x[0] for bar in fig.data] == [0.25, 0.75]
    assert "True difference +5: better 25 %" in figures.sentence(fig)


def test_decidedness_reads_the_probability_of_unflipped_pairs():
    pairs = pd.DataFrame(
        [("p", 0.9, False), ("q", 0.89, False), ("r", 0.01, True)], columns=["pair_id", "p_chosen", "flipped"]
    ).assign(student="ada", kind="rationale", task="t", score_gap=0.1)
    figure = figures.pair_decidedness(pairs)
    assert "50 % of 2 rationale pairs" in figures.sentence(figure)
    assert [name in figures.table(figure) for name in ("<td>p</td>", "<td>q</td>", "<td>r</td>")] == [True, True, False]
    with pytest.raises(DataError, match="'q' has no p_chosen"):
        figures.pair_decidedness(pairs.assign(p_chosen=[0.9, float("nan"), 0.1]))


def test_auc_by_hand_and_covers():
    area, low, high = intervals.auc([3, 2, 2, 1], [True, True, False, False], [0, 1, 2, 3])
    assert area == pytest.approx(3.5 / 4) and low < area <= high
    generator, covered = np.random.default_rng(0), 0
    for _ in range(300):
        question = np.repeat(np.arange(30), 4)
        positive = np.tile([True, False, False, False], 30)
        scores = generator.normal(0, 1, 30)[question] + generator.normal(0, 1, 120) + 1.0 * positive
        _, low, high = intervals.auc(scores, positive, question)
        covered += low <= 0.6914625 <= high  # normal distribution function at 1 / (2 * sqrt(1 + 1) / sqrt(2))
    assert covered / 300 > 0.9


def test_clustered_mean_by_hand():
    mean, low, high = intervals.clustered_mean([1.0, 1.0, 0.0, 0.0], ["a", "a", "b", "b"])
    half = 12.706204736 * (2 * 2) ** 0.5 / 4  # sums +1 and -1, times 2 / (2 - 1)
    assert (mean, high - mean, mean - low) == pytest.approx((0.5, half, half))
    assert np.isnan(intervals.clustered_mean([1.0], ["a"])[1])


def test_arms_of_any_method_are_told_apart():
    arms = ["base", "pool", "full", "without_a", "without_b", "without_c", "without_d"]
    assert len(set(arm_styles(arms).values())) == len(arms) and list(arm_styles(arms)) == arms
    assert arm_styles(["tailored", "base"]).items() <= arm_styles(["x", "base", "y", "tailored"]).items()


def test_empty_frames_are_refused():
    drafts = drafts_frame(1)
    for draw in (
        lambda: figures.drafts_by_technique(drafts[:0]),
        lambda: figures.preference_scores(signals_frame(drafts), drafts, "eve"),
        lambda: figures.reward_margins(curve_frame()[:0]),
        lambda: figures.style_shift(examples_frame()[:0]),
        lambda: figures.probe_roc(signals_frame(drafts), drafts, {}),
        lambda: figures.comparisons(evaluated()[1], "eve"),
    ):
        with pytest.raises(DataError):
            draw()


def test_table_escapes_and_shortens():
    page = figures.table(pd.DataFrame({EVIL: [EVIL] * 100, "n": [0.12345] * 99 + [None], "of": [[1, 2]] * 100}))
    assert "<img" not in page and "0.123" in page and "40 more rows" in page and "[1, 2]" in page
    assert "<td></td>" in figures.table(pd.DataFrame({"n": [float("nan")], "text": [None]}))


def test_more_drafts_than_can_be_told_apart_are_sampled_and_the_figure_says_so(monkeypatch):
    drafts = drafts_frame()
    signals = signals_frame(drafts)
    whole = figures.preference_scores(signals, drafts, "ada")
    monkeypatch.setattr(scores_module, "MAX_DOTS", 50)
    some = figures.preference_scores(signals, drafts, "ada")
    n_dots = [sum(len(trace.x) for trace in fig.data if trace.name == "one draft") for fig in (whole, some)]
    assert n_dots == [160, 50]
    said = [fig.layout.title.subtitle.text for fig in (whole, some)]
    assert "drawn as dots" not in said[0] and "160 drafts (50 of them drawn as dots, picked at random)" in said[1]
    assert figures.sentence(some) == figures.sentence(whole) and figures.table(some) == figures.table(whole)


def test_notebook_page_draws_offline(tmp_path, monkeypatch):
    """A notebook that shows figures, exported to HTML, holds plotly.js once, its figures, captions and sentences."""
    import nbformat
    from nbconvert import HTMLExporter

    shown = []
    monkeypatch.setattr(style, "_script_shown", False)
    monkeypatch.setattr("IPython.display.display", lambda bundle, raw: shown.append(bundle))
    figures.show(figures.drafts_by_technique(drafts_frame(3)))
    figures.show(figures.reward_margins(curve_frame()))
    outputs = [nbformat.v4.new_output("display_data", data=bundle) for bundle in shown]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(outputs=outputs)])
    said = [bundle["text/plain"] for bundle in shown]
    assert any(text.startswith("Of 24 rationales") for text in said)
    page, _ = HTMLExporter().from_notebook_node(notebook)
    assert page.count("plotly.js v") == 1
    assert page.count("Plotly.newPlot(") >= 2 and "The numbers as a table" in page
    drawn = page.replace(figures.plotly_script(), "")
    assert "cdn.plot.ly" not in drawn
    (tmp_path / "page.html").write_text(page, encoding="utf-8")
    assert count_drawn(tmp_path / "page.html") in (2, None)


def count_drawn(page):
    """Return how many figures a browser drew, None where there is no browser."""
    if not shutil.which("chromium"):
        return None
    sync = pytest.importorskip("playwright.sync_api")
    with sync.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        tab = browser.new_context(offline=True).new_page()
        tab.goto(page.as_uri())
        tab.wait_for_timeout(1500)
        count = tab.locator(".plotly-graph-div .main-svg .cartesianlayer").count()
        browser.close()
    return count


@pytest.mark.browser
@pytest.mark.skipif(not shutil.which("chromium"), reason="needs Chromium")
def test_png(tmp_path, all_figures):
    path = figures.save_png(all_figures["comparisons"], tmp_path / "comparisons.png")
    assert path.read_bytes().startswith(b"\x89PNG") and path.stat().st_size > 10_000


def test_png_without_a_browser(tmp_path, all_figures, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(DataError, match="install one"):
        figures.save_png(all_figures["comparisons"], tmp_path / "x.png")


def test_estimates_are_drawn_a_row_each_with_a_line_where_nothing_was_found():
    table = pd.DataFrame({"label": [EVIL, "b"], "value": [10.0, 20.0], "low": [8.0, 15.0], "high": [12.0, 22.0]})
    fig = figures.estimates(table, "points", 0.0, "Which?", "2 rows", "How to read it.", "b is ahead.")
    assert "<img" not in fig.data[0].y[0] and list(fig.data[0].x) == [10.0, 20.0] and fig.layout.shapes[0].x0 == 0.0
    assert figures.sentence(fig) == "b is ahead."
    assert not figures.estimates(table, "share", None, "Which?", "", "", "").layout.shapes


def test_students_styles_and_arms_stand_in_one_order_everywhere(all_figures):
    rows = pd.DataFrame({"arm": ["other", "tailored", "base", "random_pairs", "untailored"], "student": list("cabac")})
    ordered = in_words.in_order(rows.assign(style=["", "b", "a", "unrecognised", "c"]), "arm")
    assert [*ordered["arm"]] == [*ARMS, "other"] and [*in_words.in_order(rows, "student")["student"]] == list("ccaab")
    assert [*in_words.in_order(ordered, "style")["style"]][:3] == ["a", "b", "c"]
    assert list(style.ARMS) == list(in_words.ARMS) == ARMS
    for name, fig in all_figures.items():
        drawn_arms = [arm for arm in dict.fromkeys(trace.name for trace in fig.data) if arm in map(style.named, ARMS)]
        assert drawn_arms == [arm for arm in map(style.named, ARMS) if arm in drawn_arms], name
    # Written and trained in another order than the alphabet's, and in another than that of arms.
    examples = examples_frame().replace({"student": {"ada": "eve"}})[::-1]
    curve = curve_frame().replace({"student": {"ada": "eve"}}).sort_values("student", ascending=False)
    answers = evaluated()[0].replace({"student": {EVIL: "zoe"}}).replace({"student": {"ada": "eve"}})
    settings = {"arms": ARMS, "shots": [0], "margin": 0.05, "alpha": 0.05}
    settings["primary"] = {"a": "tailored", "b": "untailored", "shots": 0}
    found = verdict.verdict(answers, settings, recipe="r", run="r", models="pocket", student="eve")
    assert list(found["students"]) == ["eve", "bob", "zoe"]
    for fig, panels in (
        (figures.style_shift(examples), ["bob", "eve"]),
        (figures.training_curves(curve), ["eve", "bob"]),
        (figures.technique_heatmap(signals_frame(drafts_frame())[::-1], drafts_frame()), None),
    ):
        headings = [note.text for note in fig.layout.annotations if note.text in ("bob", "eve")]
        assert headings == panels if panels else list(fig.data[0].y) == ["bob", "ada"]
    shift = figures.style_shift(examples)
    assert [*dict.fromkeys(trace.name for trace in shift.data)] == ["untailored", "random pairs", "tailored"]
    assert [*shift.layout.yaxis.categoryarray][-2:] == ["unrecognised", "right answers"]


def test_as_many_as_twelve_are_told_apart_by_their_marks():
    styles = style.marks_by(pd.Series([f"signal {n}" for n in range(12)]))
    assert len({(colour, symbol) for colour, symbol, _ in styles.values()}) == len(styles) == 12
