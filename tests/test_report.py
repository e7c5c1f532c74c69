"""The report of a run: small, whole, offline, on one screen and a few sheets of paper; nothing in it becomes markup."""

import html
import re
from types import SimpleNamespace

import nbformat
import pandas as pd
import pytest
from lab import axe_finds_nothing
from test_figures import evaluated, examples_frame

from workbench.methods import ALL
from workbench.report import page
from workbench.report.card import ResultCard, Rung, StudentCard
from workbench.report.lineage import Line, Lineage
from workbench.verdict.in_words import spell

BAD = "<script>alert(1)</script><img src=x onerror=alert(1)>"
PAGES_OF_PAPER, MOST_WORDS, MOST_BYTES = 6, 1_400, 2_000_000


def words_read(report) -> int:
    """Return how many words a page shows before anything is unfolded or searched, those of its figures with them."""
    page = report.read_text(encoding="utf-8").partition('<div class="screen">')[0]
    page = re.sub(r"<(style|script|title|details)\b.*?</\1>|<[^>]+>", " ", page, flags=re.S)
    assert " p = " not in page, "no p-value"
    return len(html.unescape(page).split())


def raw_names(page) -> set[str]:
    """Return the names with underscores that people read on a page: all but code, and what it shows as it stands."""
    text = re.sub(r'<details class="code">.*?</details>', " ", page.read_text(encoding="utf-8"), flags=re.S)
    text = re.sub(r"<(script|style|title|pre|code)\b.*?</\1>|<[^>]+>", " ", text, flags=re.S)
    return set(re.findall(r"\b[a-z0-9]+(?:_[a-z0-9]+)+\b", html.unescape(text)))


def card_of(block) -> StudentCard:
    row = block["comparisons"][0]
    number = spell(row["difference"], row["low"], row["high"], "points")
    rungs = [Rung("Found?", "yes", "AUC 0.9 (0.8 to 1.0)", BAD), Rung("Learned?", "a little", "", BAD)]
    rungs.append(Rung("Better?", row["decision"], number, "As it fell."))
    return StudentCard(block["student"], rungs, [("a - b", number, row["decision"])] * 5, "More seeds would settle it.")


@pytest.fixture(scope="module", params=[1, 2], ids=["one student", "two students"])
def report(request, tmp_path_factory):
    """The report of a made-up run of one student or two, all of whose texts are hostile."""
    folder = tmp_path_factory.mktemp("report")
    _, verdict = evaluated()
    blocks = list(verdict["students"].values())[: request.param]
    students = {block["student"]: BAD for block in blocks}
    if request.param == 1:
        verdict = verdict | {"students": {}}
    examples = examples_frame().assign(
        example_id="e", question_id="q", question=BAD, rationale=BAD, answer="", kept=True, drop_reason=""
    )
    pair = {"student": blocks[0]["student"], "kind": "rationale", "task": "t", "prompt": BAD, "chosen": BAD}
    pairs = pd.DataFrame(
        [pair | {"rejected": BAD, "score_chosen": 1, "score_rejected": 0, "score_gap": 1, "p_chosen": 1}]
    )
    frames = {"examples": examples, "pairs": pairs}
    made = {
        "counts": {"made": 3, "dropped": 0},
        "seconds": 61.0,
        "tokens": 5,
        "written": "2026-01-02",
        "git_commit": "",
    }
    recipe = SimpleNamespace(
        name="small",
        method=next(iter(ALL)),
        seeds=[1, 2],
        models=SimpleNamespace(teacher="a/teacher", students=students),
        evaluation=SimpleNamespace(primary=SimpleNamespace(a="tailored")),
        model_dump=lambda: {"name": BAD},
    )
    run = SimpleNamespace(
        name=BAD,
        path=folder,
        verdict=verdict,
        recipe=recipe,
        has=frames.__contains__,
        read=lambda name: frames[name],
        steps=lambda: ["drafts", "round-1/a", "round-1/b"],
        manifest=lambda name: made,
    )
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(page, "result_card", lambda run: ResultCard(map(card_of, blocks)))
        return page.write_report(run)


def test_nothing_becomes_markup_and_nothing_is_asked_for(report):
    text = report.read_text(encoding="utf-8")
    assert "<script>alert" not in text and "<img" not in text and html.escape(BAD) in text.replace("&#34;", "&quot;")
    assert text.count("<script>") == 1 and len(text.encode()) < MOST_BYTES
    assert not re.search(r"(src|href)=[\"']?(https?:)?//|@import|url\(", text)


def test_no_zero_is_counted_and_the_parts_of_a_round_are_one_step(report):
    text = report.read_text(encoding="utf-8")
    assert "0 dropped" not in text and "6 made" in text and "round-1/a" not in text
    assert 100 < words_read(report) < MOST_WORDS


@pytest.mark.browser
@pytest.mark.parametrize("width", [1400, 800])
def test_the_first_screen_shows_the_figure_and_the_search_finds(report, chromium, width):
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        tab = browser.new_context(offline=True, viewport={"width": width, "height": 900}).new_page()
        errors, asked = [], []
        tab.on("pageerror", lambda error: errors.append(str(error)))
        tab.on("request", lambda request: asked.append(request.url))
        tab.goto(report.as_uri())
        box = tab.locator("figure svg").first.bounding_box()
        assert box["y"] + box["height"] < 900 and box["x"] >= 0 and box["x"] + box["width"] <= width
        assert tab.evaluate("document.documentElement.scrollWidth") <= width, "nothing is cut at the side"
        axe_finds_nothing(tab, "main")
        rows, shown = tab.locator("#examples tbody tr"), tab.locator("#examples tbody tr:visible")
        tab.fill("#search", "TAILORED right")
        assert 0 < shown.count() < rows.count() and f"{shown.count()} found" in tab.inner_text("#found")
        tab.fill("#search", "nowhere")
        assert shown.count() == 0
        browser.close()
    assert not errors and asked == [report.as_uri()]


def sheets_of(report, chromium) -> int:
    """Return on how many sheets of A4 a page is printed."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        tab = browser.new_page()
        tab.goto(report.as_uri())
        sheets = tab.pdf(prefer_css_page_size=True)
        browser.close()
    return len(re.findall(rb"/Type\s*/Page\b", sheets))


@pytest.mark.browser
def test_it_prints_on_a_few_sheets(report, chromium):
    assert 1 <= sheets_of(report, chromium) <= PAGES_OF_PAPER


def test_a_notebook_becomes_a_page_that_shares_plotly(tmp_path):
    cells = [
        nbformat.v4.new_code_cell("run = 1", metadata={"tags": ["parameters"]}),
        nbformat.v4.new_code_cell("1", outputs=[nbformat.v4.new_output("stream", text=BAD)]),
        nbformat.v4.new_markdown_cell("[a](03_a.ipynb) [b](studies/b.ipynb) [c](../03_a.ipynb)"),
    ]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / "a.ipynb")
    text = page.notebook_page(tmp_path / "a.ipynb").read_text(encoding="utf-8")
    assert BAD not in text and "run = " not in text and len(text) < 50_000
    assert text.count('href="03_a.html"') == 2 and 'href="b.html"' in text and 'src="plotly.min.js"' in text
    assert "plotly.js v" in (tmp_path / "plotly.min.js").read_text(encoding="utf-8")


def test_a_lineage_is_text_and_a_tree():
    lines = [Line(0, "row 0123456789abcdef"), Line(1, f"example {BAD}"), Line(2, "x" * 300, ""), Line(1, "other", "->")]
    made = Lineage([*lines, Line(2, "what was asked", "", aside=True)])
    assert made.splitlines()[:2] == ["row 0123456789abcdef", f"   <- example {BAD}"]
    assert made.splitlines()[2].endswith("x...") and "what was asked" not in made
    tree = made._repr_html_()
    assert BAD not in tree and "<code>01234567</code>" in tree and "x" * 300 in tree and "what was asked" in tree
    assert tree.count("<details") == tree.count("</details>") == 3 and tree.count("<details open>") == 3
