"""The pair inspector in a real JupyterLab and a real browser, by keyboard."""

import json
import os
import re
import signal
import time

import pytest
from lab import THEMES, axe_finds_nothing, lab, use_theme, write_notebook
from probed_run import form_pairs, write_run

from workbench.loop.reviews import Reviews, standing
from workbench.runs.run import open_run

pytestmark = [pytest.mark.browser, pytest.mark.slow]

START = """import os
import workbench as wb
from workbench.runs.run import open_run

work = open_run("probed")
wb.inspect(work).show()
print("pid", os.getpid())"""
REVIEWED = """pairs = work.read("pairs")
work.step("reviewed", wb.loop.apply_reviews, pairs, wb.loop.reviews_in_force(work, pairs))
print({what: n for what, n in work.counts("reviewed").items() if "review" in what})"""
TEXTS = [
    "<script>window.broken = 1</script><img src=x onerror='window.broken = 2'>",
    "<svg/onload=window.broken=3><a href='javascript:window.broken=4'>x</a></pre></textarea></div><style>*{top:0}",
    r"$$\\href{javascript:window.broken=5}{x}$$ \\(\\unicode{65}\\) $E=mc^2$ \\begin{align}x\\end{align}",
    "\x1b[31mred\x1b[0m \x00 \x07 \r back",
    "right \u202eto left\u202c \u2066isolated\u2069 \u200f mark \u05e9\u05dc\u05d5\u05dd",
    "long " + "word-" * 9_999 + "end",
    "x" * 50_000,
    "{{7*7}} ${7*7} %s <%= 1 %> \\u003cscript\\u003e `window.broken=6`",
]
WAIT_MS = 180_000
# Returns the text that a box stands for, how many signs it shows by name, and the kinds of elements in it.
READ = """box => {
  const letter = (e) => String.fromCharCode(parseInt(e.title.slice(2), 16));
  const read = (e) => e.className === "wbi-control" ? letter(e) : e.childNodes.length
    ? [...e.childNodes].map(read).join("") : e.textContent;
  const all = [...box.querySelectorAll("*")];
  return [read(box), box.querySelectorAll(".wbi-control").length, [...new Set(all.map((e) => e.tagName))]];
}"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Notebooks beside a folder of runs: one with real texts, one with hostile ones."""
    folder = tmp_path_factory.mktemp("lab")
    write_notebook(folder / "review.ipynb", START, REVIEWED)
    write_notebook(folder / "hostile.ipynb", START.replace("probed", "hostile"))
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("WORKBENCH_RUNS", str(folder / "runs"))
        form_pairs(write_run())
        form_pairs(write_run("hostile", rationales=TEXTS))
    return folder


@pytest.fixture(scope="module")
def address(folder):
    with lab(folder, WORKBENCH_RUNS=str(folder / "runs")) as address:
        yield address


@pytest.fixture(scope="module")
def browser(chromium):
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


class Page:
    """A notebook in Lab, and what its console said."""

    def __init__(self, browser, address: str, name: str):
        self.page = browser.new_page(viewport={"width": 1300, "height": 2400})
        self.page.set_default_timeout(WAIT_MS)
        self.errors: list[str] = []
        self.page.on("console", lambda said: self.errors.append(said.text) if said.type == "error" else None)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        # A workspace of its own: what another test had open stays there.
        self.page.goto(f"{address}/workspaces/{name.partition('.')[0]}/tree/{name}")
        self.page.wait_for_selector(".jp-Notebook .jp-Cell")
        self.idle()

    def idle(self) -> None:
        # The indicator in the notebook says idle also before there is a kernel; then Lab does not run what it is told.
        self.page.wait_for_selector("text=(ipykernel) | Idle")

    def run(self, cell: int) -> None:
        """Run one cell that takes a while, by keyboard, and wait until it is done."""
        from playwright.sync_api import TimeoutError as Late

        prompt = f"document.querySelectorAll('.jp-Cell .jp-InputArea-prompt')[{cell}].textContent"
        for _ in range(20):
            self.page.locator(".jp-Cell .jp-InputArea-editor").nth(cell).click()
            self.page.keyboard.press("Shift+Enter")
            try:
                self.page.wait_for_function(f"{prompt}.includes('*')", timeout=5_000)
                break
            except Late:
                # Lab runs nothing, and says nothing, while a kernel is still being connected to.
                continue
        self.page.wait_for_function(f"/\\[\\d+\\]/.test({prompt})")

    def text(self, selector: str) -> str:
        return self.page.locator(selector).first.inner_text()

    def wait_for(self, selector: str, words: str) -> None:
        self.page.wait_for_function(
            "([selector, words]) => document.querySelector(selector)?.textContent.includes(words)",
            arg=[selector, words],
        )

    def tab_to(self, selector: str) -> None:
        """Press Tab until the focus is there."""
        for _ in range(80):
            self.page.keyboard.press("Tab")
            if self.page.evaluate(f"document.activeElement.matches({json.dumps(selector)})"):
                return
        raise AssertionError(f"Tab does not reach {selector}")

    def inside(self) -> bool:
        return self.page.evaluate("Boolean(document.activeElement.closest('.wbi'))")

    def cells(self) -> int:
        return self.page.locator(".jp-Notebook .jp-Cell").count()

    def press(self, *keys: str) -> None:
        for key in keys:
            self.page.keyboard.press(key)


@pytest.fixture
def opened(browser, address, folder):
    pages = []

    def open_one(name: str) -> Page:
        pages.append(Page(browser, address, name))
        return pages[-1]

    yield open_one
    for n, one in enumerate(pages):
        # Kept with the test's other files, for whoever looks into a failure.
        one.page.screenshot(path=folder / f"end-{n}.png")
        one.page.close()


def reviews_of(folder, name: str = "probed") -> dict:
    held = standing(Reviews(folder / "runs" / name / "reviews.sqlite").events())
    return {said["review"].pair_id: said["review"].value for said in held.values() if "review" in said}


def wait_until(true, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_pairs_are_reviewed_by_keyboard_survive_a_killed_kernel_and_count(folder, opened):
    lab = opened("review.ipynb")
    lab.run(0)
    lab.wait_for(".wbi-position", "Pair 1 of 14")
    lab.press("Escape")
    lab.tab_to(".wbi")
    _a_decision_needs_no_scrolling(lab)
    # Each key waits for what the one before did: a review is of the pair on the screen.
    lab.press("2")
    lab.wait_for(".wbi-position", "Pair 2 of 14")
    assert lab.text(".wbi-saved") == "✓ saved" and list(reviews_of(folder).values()) == ["flip"]
    lab.press("1")
    lab.wait_for(".wbi-position", "Pair 3 of 14")
    lab.press("0")
    lab.wait_for(".wbi-position", "Pair 4 of 14")
    lab.wait_for(".wbi-facts", "3 of 14 pairs reviewed (1 kept, 1 flipped, 1 dropped)")
    lab.press("u")
    lab.wait_for(".wbi-position", "Pair 3 of 14")
    lab.wait_for(".wbi-facts", "2 of 14")
    lab.press("n")
    lab.page.keyboard.type("d d 1 2 0 are typed here, no reviews")
    lab.press("Escape")
    lab.wait_for(".wbi-saved", "✓ saved")
    _shortcuts_stay_inside(lab)
    lab.press("t", "Home", "Enter")
    lab.wait_for(".wbi-position", "Pair 1 of 14")
    lab.wait_for(".wbi-chips", "flipped")
    assert not lab.errors, lab.errors
    _saving_keeps_texts_out(lab, folder)
    _a_killed_kernel_loses_nothing(lab, folder)
    lab.run(1)
    said = lab.page.locator(".jp-Cell").nth(1).inner_text()
    assert re.search(r"'pairs flipped by review': 1, 'pairs dropped by review': 1", said), said
    reviewed = json.loads((folder / "runs" / "probed" / "reviewed" / "manifest.json").read_text())
    assert reviewed["counts"]["pairs"] == 13


def _a_decision_needs_no_scrolling(lab: Page) -> None:
    """What is needed is on screen in a small window, in a larger one in three columns, and no button moves."""
    before = lab.page.viewport_size
    for width, height, columns in ((1280, 720, 2), (1440, 900, 3)):
        lab.page.set_viewport_size({"width": width, "height": height})
        lab.page.evaluate("document.querySelector('.wbi').scrollIntoView({block: 'end'})")
        lab.page.locator(".wbi").focus()
        places = []
        for at in (1, 2):
            lab.wait_for(".wbi-position", f"Pair {at} of 14")
            needed = [".wbi-position", ".wbi-facts", ".wbi-prompt", ".wbi-side >> nth=0", ".wbi-side >> nth=1"]
            needed += [f".wbi-foot .wbi-act >> nth={n}" for n in range(4)] + [".wbi-decided"]
            boxes = [lab.page.locator(selector).bounding_box() for selector in needed]
            assert all(0 <= box["y"] and box["y"] + box["height"] <= height and box["width"] for box in boxes)
            places.append(boxes[5:9])
            lab.press("j" if at == 1 else "k")
        assert places[0] == places[1]
        grid = lab.page.evaluate("getComputedStyle(document.querySelector('.wbi-main')).gridTemplateColumns")
        assert len(grid.split()) == columns, grid
    lab.wait_for(".wbi-next [aria-current]", "1")
    lab.press("?")
    help_box, root = (lab.page.locator(one).bounding_box() for one in (".wbi-keys", ".wbi"))
    assert root["y"] < help_box["y"] and help_box["y"] + help_box["height"] < root["y"] + root["height"]
    lab.press("Escape")
    assert not lab.page.locator(".wbi-keys").is_visible()
    lab.page.set_viewport_size(before)


def _shortcuts_stay_inside(lab: Page) -> None:
    """Press Lab's own shortcuts at every kind of place, also just after something was drawn anew."""
    cells = lab.cells()
    places = [".wbi", ".wbi [role=tab][aria-selected=true]", ".wbi select", ".wbi-text", ".wbi-cell", ".wbi-act"]
    for place in places:
        lab.page.locator(place).first.focus()
        lab.press("d", "d", "x", "a", "m", "z")
        assert lab.inside() and lab.cells() == cells, place
    lab.page.locator(".wbi-cell").first.focus()
    lab.press("j", "d", "d", "k", "d", "d")
    lab.press("t")
    lab.press("ArrowDown", "d", "d", "Enter", "d", "d")
    lab.page.locator(".wbi-chips").first.click()
    lab.press("d", "d")
    assert lab.cells() == cells and not lab.page.locator(".jp-Cell.jp-mod-selected .jp-MarkdownOutput").count()
    lab.page.locator(".wbi").focus()


def _saving_keeps_texts_out(lab: Page, folder) -> None:
    path = folder / "review.ipynb"
    before = path.stat().st_mtime_ns
    lab.press("Control+s")
    wait_until(lambda: path.stat().st_mtime_ns > before)
    saved = path.read_text()
    assert len(saved) < 200_000 and "Answer: Let's think" not in saved and "Tally:" not in saved


def _a_killed_kernel_loses_nothing(lab: Page, folder) -> None:
    """The kernel stops before it can read the key, and is killed; what was said is written by the next one."""
    pid = int(re.search(r"pid (\d+)", lab.page.locator(".jp-Cell").first.inner_text())[1])
    before = reviews_of(folder)
    lab.press("j", "j")
    lab.wait_for(".wbi-position", "Pair 3 of 14")
    os.kill(pid, signal.SIGSTOP)
    lab.press("0")
    lab.wait_for(".wbi-saved", "saving")
    os.kill(pid, signal.SIGKILL)
    assert reviews_of(folder) == before
    lab.page.locator(".jp-Dialog button.jp-mod-accept").click()
    lab.page.wait_for_selector(".jp-Dialog", state="detached")
    lab.run(0)
    lab.wait_for(".wbi-position", "Pair 1 of 14")
    wait_until(lambda: list(reviews_of(folder).values()).count("drop") == 1)
    lab.wait_for(".wbi-facts", "3 of 14 pairs reviewed (1 kept, 1 flipped, 1 dropped)")
    assert {**reviews_of(folder), **before} == reviews_of(folder)


def test_hostile_texts_are_shown_as_text_and_everything_can_be_used_by_everybody(folder, opened, monkeypatch):
    lab = opened("hostile.ipynb")
    lab.run(0)
    lab.wait_for(".wbi-position", "Pair 1")
    lab.page.locator(".wbi").focus()
    monkeypatch.setenv("WORKBENCH_RUNS", str(folder / "runs"))
    from workbench.notebook.inspector import inspect

    pairs = inspect(open_run("hostile")).pairs
    for at, pair in enumerate(pairs.to_dict("records")):
        lab.wait_for(".wbi-position", f"Pair {at + 1} of")
        for n, side in enumerate(("chosen", "rejected")):
            _is_shown_as_text(lab, n, pair[side])
        lab.press("j")
    lab.press("t")
    lab.wait_for(".wbi-body", "window.broken")
    assert lab.page.evaluate("window.broken") is None
    assert not lab.errors, lab.errors
    _axe_finds_nothing(lab)


def _is_shown_as_text(lab: Page, n: int, text: str) -> None:
    """The text is there letter by letter, signs that steer a screen by name, and no element was made of it."""
    read, marks, tags = lab.page.locator(".wbi-side .wbi-text").nth(n).evaluate(READ)
    assert read == text
    assert marks == sum(letter in "\x1b\x00\x07\r\u202e\u202c\u2066\u2069\u200f" for letter in text)
    assert set(tags) <= {"MARK", "SPAN"}


def _axe_finds_nothing(lab: Page) -> None:
    """Look at every view of the inspector, in both of Lab's themes."""
    for theme in THEMES:
        use_theme(lab.page, theme)
        for key, there in (("p", ".wbi-cell"), ("t", ".wbi-body .wbi-row"), ("w", ".wbi-tile"), ("b", ".wbi")):
            lab.page.locator(".wbi").focus()
            lab.press(key)
            lab.page.wait_for_selector(there)
            axe_finds_nothing(lab.page, ".wbi")
        lab.page.locator(".wbi").focus()
        lab.press("b", "p")
