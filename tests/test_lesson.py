"""The lesson of notebook 06: its sample, its game, its live part on the shipped models, and all of it in a browser."""

import json
import os
import subprocess
import sys
import tomllib

import nbformat
import pandas as pd
import papermill
import pytest
from conftest import PROJECT
from lab import THEMES, app, axe_finds_nothing, lab, use_theme, write_notebook
from pictures import open_and_run, set_up

from workbench import figures
from workbench.notebook import guess_game
from workbench.notebook.guess_game import LETTERS, NEARLY, GuessGame, Round, rounds_of
from workbench.runs import schemas
from workbench.runs.run import file_sha256

FOLDER = PROJECT / "data" / "samples" / "teaching"
STUDENTS, TASK = ["tally-strong", "story-strong", "diary-strong"], "object_counting"
NOTEBOOK = PROJECT / "notebooks" / "06_responsive_teaching.ipynb"
EVIL = "<img src=x onerror=alert(1)></script>\u202e"


@pytest.fixture(scope="module")
def sample() -> dict:
    """What the lesson's first cells read: four frames, verdict and about."""
    frames = {name: pd.read_parquet(FOLDER / f"{name}.parquet") for name in "drafts signals pairs examples".split()}
    return frames | {name: json.loads((FOLDER / f"{name}.json").read_text()) for name in ("verdict", "about")}


def rounds(*scores: tuple[float, ...]) -> list[Round]:
    return [
        Round("ada", "navigate", f"Question {EVIL}", tuple((f"style {i}", EVIL, s) for i, s in enumerate(own)), 40)
        for own in scores
    ]


def test_the_sample_is_small_whole_and_from_the_run_it_names(sample):
    assert sum(path.stat().st_size for path in FOLDER.iterdir() if path.is_file()) < 300_000
    assert {name: file_sha256(FOLDER / name) for name in sample["about"]["files"]} == sample["about"]["files"]
    schemas.check(sample["drafts"], "drafts"), schemas.check(sample["signals"], "signals")
    students = list(sample["verdict"]["students"])
    assert students == STUDENTS == list(sample["signals"]["student"].unique())
    assert set(sample["pairs"]["student"]) == set(STUDENTS)
    assert set(sample["pairs"]["task"]) == {TASK} and not sample["pairs"]["flipped"].any()
    assert sample["about"]["run"] == sample["about"]["recipe"] == "arte" and all(sample["about"]["commits"].values())
    own, known = sample["verdict"]["students"], known_students()
    page = (PROJECT / "data" / "samples" / "README.md").read_text()
    for name in STUDENTS:
        assert zero_shot_decisions(own[name]) == zero_shot_decisions(known[name])
        main = own[name]["comparisons"][0]
        assert f"{100 * main['difference']:+.1f} ({100 * main['low']:+.1f} to {100 * main['high']:+.1f})" in page


def known_students() -> dict:
    known = json.loads((PROJECT / "data" / "samples" / "arte" / "verdict.json").read_text())
    return known["students"] | {known["student"]: known}


def zero_shot_decisions(block: dict) -> dict:
    return {row["b"]: row["decision"] for row in block["comparisons"] if row["shots"] == 0 and row["b"] != "base"}


def test_the_sample_draws_every_figure_of_the_lesson(sample):
    for student in STUDENTS:
        style = student.partition("-")[0]
        said = figures.sentence(figures.preference_scores(sample["signals"], sample["drafts"], student))
        assert f"best after {style} drafts" in said
        after = "meter" if student == "diary-strong" else style  # that student's teacher stays with its own way
        examples = sample["examples"]
        own = examples[examples["student"].isin([student, ""])].assign(
            student=student, question_id=lambda own: own.index
        )
        assert f"for {student} {after}" in figures.sentence(figures.style_shift(own))
        texts = own[own["rationale"] != ""]
        assert {"untailored", "tailored"} <= set(texts["arm"]) and texts["rationale"].str.contains("<ans>").all()
    assert figures.sentence(figures.by_student(sample["verdict"])).count("better") == 2


def test_rounds_are_about_the_way_of_explaining_alone(sample):
    drafts, signals = sample["drafts"], sample["signals"]
    found = rounds_of(signals, drafts)
    assert [now.student for now in found] == [name for name in STUDENTS for _ in range(2)]
    right = drafts[drafts["correct"]].set_index(["question", "rationale"])
    for now in found:
        assert sorted(style for style, *_ in now.examples) == ["diary", "meter", "story", "tally"]
        for style, text, _ in now.examples:
            assert style in set(right.loc[[(now.question, text)], "technique"])
    assert found == rounds_of(signals, drafts), "the order of the examples must not change from showing to showing"
    places = [[style for style, *_ in now.examples].index("tally") for now in rounds_of(signals, drafts, 4)]
    assert len(set(places)) > 1, "the place would give the style away"


def test_a_guess_counts_when_it_is_best_or_nearly():
    game = GuessGame(rounds((0.5, 0.8, 0.2, 0.76), (0.9, 0.1, 0.1, 0.1)))
    assert game.rounds[0].accepted() == "BD" and NEARLY > 0.05
    assert game.guess("D") and game.guess("A"), "a second guess changes nothing"
    assert game.guesses == {0: "D"} and "32 of 40 right (so close that D counts too)" in game.answer()
    game.next()
    assert not game.guess("C") and game.score() == "1 of 2 guesses right; by chance about 0.8"
    game.next()
    assert game.position == 0
    with pytest.raises(ValueError, match="one of A, B, C, D, got 'AB'"):
        game.guess("AB")


def test_the_view_is_the_state_and_keeps_model_text_as_text():
    game = GuessGame(rounds((0.5, 0.8, 0.2, 0.3), (0.9, 0.1, 0.1, 0.1)))
    heading, grid, said, foot = game.view().children
    cards, picks = zip(*((one.children[0], one.children[1].children[0]) for one in grid.children), strict=True)
    hands = [one.children[1].children[1] for one in grid.children]
    assert "Round 1 of 2" in heading.value and said.value == "" and foot.children[1].value == ""
    assert "Ana" in heading.value and "ada" not in heading.value, "a name may tell what a student likes"
    assert not any("style" in card.value for card in cards)
    hands[0].value = 12
    for shown in (heading, *cards):
        assert "<img" not in shown.value and "&lt;img" in shown.value
    picks[1].click()
    assert 'class="card best"' in cards[1].value and "style 1</strong>, 32 of 40 right" in cards[1].value
    assert game.guesses == {0: "B"} and hands[0].value == 12 and all(button.disabled for button in picks)
    assert "Right." in said.value and "1 of 1 guesses right" in foot.children[1].value
    foot.children[0].click()
    assert game.position == 1 and "Round 2 of 2" in heading.value and not picks[0].disabled and said.value == ""
    assert hands[0].value == 0
    picks[2].click()
    assert 'class="card guessed"' in cards[2].value and "In the run, Ana is ada." in said.value


def test_an_option_does_not_tell_its_style_in_words(sample):
    for now in rounds_of(sample["signals"], sample["drafts"], 4):
        for style, text, _ in now.examples:
            shown = guess_game.plain(style, text)
            assert style not in shown.lower() and "<" not in shown and len(shown) > 10


def test_headless_the_game_is_a_table_with_the_answers(monkeypatch):
    shown = []
    monkeypatch.setattr(guess_game, "show", lambda what, caption: shown.append(what))
    game = GuessGame(rounds((0.5, 0.8, 0.2, 0.3)))
    monkeypatch.setattr(game, "view", None)
    game.show()
    assert [row["example"] for row in shown[0]] == list(LETTERS) and shown[0][1]["right after it"] == "32 of 40"


@pytest.mark.slow
def test_the_lesson_takes_a_minute_or_two_of_machine_time_and_finds_what_was_planted(runs, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(PROJECT))
    out = tmp_path / "out.ipynb"
    papermill.execute_notebook(NOTEBOOK, out, {"student": "story-strong"}, cwd=PROJECT, progress_bar=False)
    found = json.loads((runs / "start-here" / "metrics.json").read_text())[NOTEBOOK.stem]
    # Half a minute on an idle machine; seconds of a core are twice as many where its other half is at work too.
    assert found["status"] == "ok" and found["machine_s"] < 120
    assert found["own_minus_foreign, diary-strong"] > 0 < found["own_minus_foreign, all students"]
    shown = json.loads(out.read_text())
    texts = ["".join(o["data"]["text/plain"]) for c in shown["cells"] for o in c.get("outputs", []) if "data" in o]
    (replies,) = (text for text in texts if "reply" in text.partition("\n")[0])
    assert replies.count("<ans>") == len(replies.splitlines()) - 1 and "Tally" not in replies, "they guess"
    (path,) = (text for text in texts if text.startswith("From the first to the last look"))
    assert "for story-strong story 0 %" in path and "for diary-strong meter 100 % to" in path


WITHOUT_TORCH = """
import json, sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "transformers", "trl", "peft", "datasets", "accelerate", "huggingface_hub"):
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Absent())
names = {"live": False, "student": "story-strong", "large": True}
for cell in json.load(open(sys.argv[1]))["cells"]:
    if cell["cell_type"] == "code" and "parameters" not in cell["metadata"].get("tags", []):
        exec("".join(cell["source"]), names)
"""


def test_its_stored_part_needs_no_torch(tmp_path):
    given = os.environ | {"PYTHONPATH": str(PROJECT), "WORKBENCH_HEADLESS": "1", "WORKBENCH_RUNS": str(tmp_path)}
    asked = [sys.executable, "-c", WITHOUT_TORCH, str(NOTEBOOK)]
    done = subprocess.run(asked, cwd=PROJECT, env=given, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / "start-here" / "metrics.json").is_file()


def test_what_the_app_tells_needs_no_code_and_no_live_part(sample):
    cells = {cell["id"]: cell for cell in json.loads(NOTEBOOK.read_text())["cells"]}
    told = {"".join(cell["source"]): cell["metadata"].get("tags", []) for cell in cells.values()}
    assert all(
        "live" in tags for text, tags in told.items() if text.startswith(("And now live", "And live", "As a figure"))
    )
    replies = json.loads((FOLDER / "replies.json").read_text())
    assert list(replies) == STUDENTS and len({len(own) for own in replies.values()}) == 1
    assert all(reply.startswith("<ans>") for own in replies.values() for reply in own), "they guess"


def test_what_make_lesson_installs_has_the_projects_pins():
    pins = [line for line in (PROJECT / ".ci" / "lesson.txt").read_text().splitlines() if not line.startswith("#")]
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
    assert set(pins) <= {*project["dependencies"], *project["optional-dependencies"]["app"]}


# Texts of figures that end outside of them, and the ground of the page and of a figure.
FIGURES_FIT = """() => [...document.querySelectorAll('.js-plotly-plot')].flatMap((figure) => {
  const whole = figure.getBoundingClientRect();
  return [...figure.querySelectorAll('text')].filter((text) => {
    const place = text.getBoundingClientRect();
    return place.width && (place.right > whole.right + 1 || place.bottom > whole.bottom + 1);
  }).map((text) => text.textContent);
})"""
LOOK = """() => [document.body, document.querySelector('.js-plotly-plot .main-svg')].map(
  (one) => getComputedStyle(one).backgroundColor)"""


def write_without_live_part(path):
    """Write the lesson as it is but for its live part, which is run above: here it is about what a class sees."""
    source = json.loads(NOTEBOOK.read_text())
    for cell in source["cells"]:
        cell["source"] = [line.replace("live: bool = True", "live: bool = False") for line in cell["source"]]
    path.write_text(json.dumps(source))


@pytest.mark.slow
@pytest.mark.browser
def test_as_an_app_it_is_the_lesson_without_code_and_asks_nobody_else(chromium, tmp_path):
    from playwright.sync_api import sync_playwright

    shown = app(NOTEBOOK, tmp_path, WORKBENCH_RUNS=str(tmp_path / "runs"))
    with shown as address, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        page, errors, asked = browser.new_page(viewport={"width": 800, "height": 900}), [], []
        page.set_default_timeout(180_000)
        page.on("console", lambda said: errors.append(said.text) if said.type == "error" else None)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("request", lambda one: asked.append(one.url))
        page.goto(address)
        page.get_by_text("1 of 7", exact=True).wait_for()
        assert "Using pre-heated kernel" in (tmp_path / "app.log").read_text(), (
            "all cells were run before somebody came"
        )
        page.get_by_role("link", name="Let the models answer live").wait_for()
        # One step a screen: nothing of the next one is seen before it is asked for.
        assert not page.get_by_role("button", name="Example A").is_visible()
        page.keyboard.press("ArrowRight")
        page.keyboard.press("ArrowRight")
        page.get_by_role("heading", name="Which example would you give?").wait_for()
        assert not page.get_by_role("heading", name="Meet three students").is_visible()
        page.get_by_role("button", name="Example A").click()
        page.get_by_text("guesses right; by chance").wait_for()
        page.get_by_role("button", name="Next round").click()
        page.get_by_text("Round 2 of 6").wait_for()
        page.wait_for_function("document.querySelectorAll('.js-plotly-plot .main-svg').length >= 4")
        figures_fit, looks = page.evaluate(FIGURES_FIT), []
        for key in ("ArrowLeft", *["ArrowRight"] * 5):
            page.keyboard.press(key)
            shown = page.locator("#rendered_cells [cell-index]:visible:not(.step-off)")
            assert len("".join(shown.all_inner_texts())) > 100 and "metrics.json" not in "".join(
                shown.all_inner_texts()
            )
        for scheme in ("dark", "light"):
            page.emulate_media(color_scheme=scheme)
            page.wait_for_timeout(1500)
            looks.append(page.evaluate(LOOK))
        code = page.get_by_text("import workbench as wb").count() + page.locator(".jp-InputArea-editor").count()
        browser.close()
    assert not errors, errors
    assert code == 0 and not figures_fit, figures_fit
    (dark, dark_figure), (light, light_figure) = looks
    assert dark != light and dark_figure != light_figure, "page and figures follow the visitor's colours"
    elsewhere = [url for url in asked if not url.startswith((address, address.replace("http", "ws"), "data:", "blob:"))]
    assert not elsewhere


@pytest.mark.slow
@pytest.mark.browser
def test_what_goes_wrong_in_the_app_is_a_card_on_the_screen(chromium, tmp_path):
    from playwright.sync_api import sync_playwright

    write_notebook(
        tmp_path / "a.ipynb", "import workbench as wb\nsettings = wb.setup(globals())", "wb.open_run('nope')"
    )
    notebook = nbformat.read(tmp_path / "a.ipynb", 4)
    notebook.cells.insert(1, nbformat.v4.new_markdown_cell("## Two\n"))
    nbformat.write(notebook, tmp_path / "a.ipynb")
    shown = app(tmp_path / "a.ipynb", tmp_path, WORKBENCH_RUNS=str(tmp_path / "runs"), WORKBENCH_HEADLESS="")
    with shown as address, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page()
        page.set_default_timeout(120_000)
        page.goto(address)
        page.get_by_role("alert").filter(has_text="There is no run 'nope'").wait_for()
        assert page.get_by_text("2 of 2", exact=True).is_visible()
        browser.close()


@pytest.mark.slow
@pytest.mark.browser
def test_in_lab_a_class_can_play_it(chromium, tmp_path):
    from playwright.sync_api import sync_playwright

    write_without_live_part(tmp_path / "06.ipynb")
    set_up(tmp_path)
    with lab(tmp_path, WORKBENCH_RUNS=str(tmp_path / "runs")) as address, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        page, errors = browser.new_page(viewport={"width": 1300, "height": 900}), []
        page.on("console", lambda said: errors.append(said.text) if said.type == "error" else None)
        page.on("pageerror", lambda error: errors.append(str(error)))
        open_and_run(page, address, "06.ipynb", "Written to start-here/metrics.json")
        assert page.locator(".js-plotly-plot .main-svg").count() >= 4
        answers = page.locator("details[open]").count()
        for letter in "AB":
            page.get_by_role("button", name=f"Example {letter}").focus()
            page.keyboard.press("Enter")
            page.get_by_text("guesses right; by chance").wait_for()
            page.get_by_role("button", name="Next round").focus()
            page.keyboard.press("Enter")
        page.get_by_text("Round 3 of 6").wait_for()
        said = page.get_by_text("of 2 guesses right").inner_text()
        grounds, heights = set(), set()
        for theme in THEMES:
            use_theme(page, theme)
            figure = page.locator(".js-plotly-plot .main-svg").first
            grounds.add(figure.evaluate("one => getComputedStyle(one).backgroundColor"))
            heights.add(figure.bounding_box()["height"])
            axe_finds_nothing(page, ".jp-OutputArea:has(.wbg)")
        browser.close()
    assert said.startswith(("0 of", "1 of", "2 of")) and answers == 0
    assert not errors and (len(grounds), len(heights)) == (2, 1), "figures that are there follow a theme"
    assert os.path.exists(tmp_path / "runs" / "start-here" / "metrics.json")
