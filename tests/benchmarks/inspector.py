"""Measure the pair inspector on 100,000 pairs in a real JupyterLab: first paint, next pair, table, saved notebook.

Run by hand, with Chromium on the PATH:  python -m tests.benchmarks.inspector
No model is asked; answers are drawn. The times in the browser are from a key or a cell's start to what can be seen.
"""

import argparse
import os
import re
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from conftest import CHROMIUM_NAMES
from lab import lab, write_notebook
from probed_run import TASK, form_pairs, recipe_of, store

from workbench.models.start import students_of
from workbench.runs import schemas
from workbench.runs.run import Run, open_run
from workbench.signals import scores
from workbench.tasks.pocket_styles import STYLES
from workbench.tasks.task import load_tasks

WORDS = np.array("one two three apples pears steps left right then so add take away the box holds and we get".split())
LIMITS = {"first paint": 2.0, "next pair": 0.1}
START = "import workbench as wb\nfrom workbench.runs.run import open_run\n\ninspector = wb.inspect(open_run('large'))"
SHOW = "inspector.show()"


def main() -> None:
    """Print every figure beside its limit."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--questions", type=int, default=20_000)
    parser.add_argument("--students", type=int, default=5)
    parser.add_argument("--items", type=int, default=10)
    parser.add_argument("--screenshot", default="")
    parser.add_argument("--runs", default="", help="keep the run in this folder, and take it from there the next time")
    args = parser.parse_args()
    chromium = next(filter(None, map(shutil.which, CHROMIUM_NAMES)))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        runs = Path(args.runs or folder / "runs").absolute()
        os.environ["WORKBENCH_RUNS"] = str(runs)
        if not (runs / "large").is_dir():
            began = time.monotonic()
            work = form_pairs(write_large(args.questions, [f"student-{n}" for n in range(args.students)], args.items))
            counts = work.counts("pairs")
            print(f"{counts['pairs']:,} pairs, {counts['rationale groups']:,} groups of rationales", flush=True)
            print(f"made in {time.monotonic() - began:.0f} s", flush=True)
        write_notebook(folder / "large.ipynb", START, SHOW)
        with lab(folder, WORKBENCH_RUNS=os.environ["WORKBENCH_RUNS"]) as address:
            _measure(address, chromium, folder / "large.ipynb", args.screenshot)


def write_large(n_questions: int, students: list[str], n_items: int) -> Run:
    """Store a run of so many questions with four rationales each, all probed by every student."""
    recipe = recipe_of(n_questions, n_items, students)
    work, rng = open_run("large", recipe), np.random.default_rng(0)
    items = load_tasks(recipe)[TASK].validation.head(n_items).assign(task=TASK, chosen=True)
    items = items.assign(discrimination=np.nan, difficulty=np.nan)[list(schemas.SCHEMAS["preference_set"].columns)]
    texts = [f"{' '.join(words)} {n}?" for n, words in enumerate(rng.choice(WORDS, (n_questions, 30)))]
    ids = [schemas.text_id(text) for text in texts]
    questions = pd.DataFrame({"task": TASK, "question_id": ids, "question": texts, "drafted_target": "3"})
    questions["reply"] = [f" <input>{text}</input><target>3</target>" for text in texts]
    questions = questions.assign(
        prompt_id="p", prompt="More.", call=np.arange(n_questions), index=0, kept=True, drop_reason=""
    )
    drafts = []
    for style in STYLES:
        rationales = [f" {style} {' '.join(words)} <ans>3</ans>" for words in rng.choice(WORDS, (n_questions, 60))]
        one = questions[["task", "question_id", "question"]].assign(technique=style, rationale=rationales)
        one.insert(0, "draft_id", [schemas.text_id(f"{style}/{one_id}") for one_id in ids])
        drafts.append(one.assign(answer="3", gold="3", correct=rng.random(n_questions) < 0.7, n_tokens=80))
    drafts = pd.concat(drafts, ignore_index=True)
    drafts = drafts[list(schemas.SCHEMAS["drafts"].columns)]
    parts = [
        pd.DataFrame(
            {
                "student": student,
                "draft_id": np.repeat(drafts["draft_id"].to_numpy(), n_items),
                "item_id": np.tile(items["item_id"].to_numpy(), len(drafts)),
                "answer": "3",
                "correct": rng.random(len(drafts) * n_items) < 0.6,
            }
        )
        for student in students
    ]
    probes = pd.concat(parts, ignore_index=True).assign(parsed=True, n_tokens=40)
    store(work, questions=questions, drafts=drafts, preference_set=items, probes=probes)
    work.step("signals", scores.share_right, probes, drafts, students_of(recipe))
    return work


def _measure(address: str, chromium: str, path: Path, screenshot: str) -> None:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": 1300, "height": 1600})
        page.set_default_timeout(900_000)
        page.goto(f"{address}/tree/{path.name}")
        page.wait_for_selector("text=(ipykernel) | Idle")
        spent = _run(page, 0, f"/\\[\\d+\\]/.test({_prompt(0)})")
        print(f"the run opened and its pairs read, in the kernel: {spent:.1f} s", flush=True)
        _say("first paint", _run(page, 1, "document.querySelector('.wbi-text')?.textContent.length > 20"))
        counted = page.locator(".wbi-position").inner_text()
        print(f"   {counted}")
        _pairs(page)
        _table(page, int(re.search(r"of ([\d,]+)", counted)[1].replace(",", "")))
        _what_if(page)
        if screenshot:
            page.locator(".wbi").screenshot(path=screenshot)
        before = path.stat().st_mtime_ns
        page.keyboard.press("Control+s")
        while path.stat().st_mtime_ns == before:
            time.sleep(0.1)
        size = path.stat().st_size
        print(f"saved notebook: {size / 1e6:.3f} MB   {'within' if size < 1e6 else 'MORE THAN'} 1 MB")
        browser.close()


def _pairs(page) -> None:
    page.locator(".wbi").focus()
    nexts = [_key(page, "j", _at(n + 2)) for n in range(40)]
    _say("next pair", statistics.median(nexts), f"slowest of 40: {max(nexts):.3f} s")
    reviews = [_key(page, "2", _at(n + 42)) for n in range(20)]
    _say("review and next pair", statistics.median(reviews), f"slowest of 20: {max(reviews):.3f} s")


def _table(page, total: int) -> None:
    _say("table", _key(page, "t", "document.querySelectorAll('.wbi-body .wbi-row').length > 10"))
    here = "document.querySelector('.wbi-here')"
    last = f"{here}?.textContent.includes('student') && {here}.id.endsWith('-{total - 1}')"
    _say("table to its end", _key(page, "End", last))
    jumps = [_scroll(page, at / 12) for at in range(11)]
    _say("scroll to rows not seen yet", statistics.median(jumps), f"slowest of 11: {max(jumps):.3f} s")
    sort = page.locator(".wbi-heads button", has_text="gap")
    _say("sort", _after(page, sort.click, f"document.querySelector('[aria-sort=descending]') && {here}"))
    page.keyboard.press("/")
    page.keyboard.type("holds apples")
    page.wait_for_timeout(1500)
    found = _after(page, lambda: page.keyboard.insert_text(" pears"), _changed(page))
    _say("search, with a quarter of a second's wait for typing", found, page.locator(".wbi-position").inner_text())
    page.keyboard.press("Escape")
    _say("queue", _key(page, "q", "document.querySelectorAll('.wbi-switch[aria-pressed=true]').length == 1"))
    students = page.locator(".wbi select[aria-label=student]")
    filtered = _after(page, lambda: students.select_option(index=1), _changed(page))
    _say("filter by student", filtered, page.locator(".wbi-position").inner_text())


def _what_if(page) -> None:
    page.locator(".wbi").focus()
    outcome = "document.querySelector('.wbi-outcome')"
    _say("what if opened", _key(page, "w", f"{outcome}.textContent.includes('instead of')"))
    page.locator(".wbi-sliders input").first.focus()
    moved = f"{outcome}.getAttribute('aria-busy') === 'false' && !{outcome}.textContent.includes('(the same)')"
    page.evaluate("document.querySelector('.wbi-sliders input').value = 0.1")
    _say("what if: least gap moved", _key(page, "ArrowRight", moved))


def _changed(page) -> str:
    before = page.locator(".wbi-position").inner_text()
    return f"document.querySelector('.wbi-position').textContent !== '{before}'"


def _prompt(cell: int) -> str:
    return f"document.querySelectorAll('.jp-Cell .jp-InputArea-prompt')[{cell}].textContent"


def _at(place: int) -> str:
    return f"document.querySelector('.wbi-position').textContent.startsWith('Pair {place} of')"


def _run(page, cell: int, seen: str) -> float:
    page.locator(".jp-Cell .jp-InputArea-editor").nth(cell).click()
    return _key(page, "Shift+Enter", seen)


def _key(page, key: str, seen: str) -> float:
    """Press a key; return the seconds until what is to be seen is on the page."""
    return _after(page, lambda: page.keyboard.press(key), seen)


def _after(page, act, seen: str) -> float:
    """Do something; return the seconds until what is to be seen is on the page, looked for at every frame."""
    page.evaluate(WATCH, seen)
    act()
    return page.evaluate("window.watched") / 1000


def _scroll(page, share: float) -> float:
    rows = "[...document.querySelectorAll('.wbi-body .wbi-row')]"
    page.evaluate(WATCH, f"!{rows}.some((row) => row.children[1].textContent === '…')")
    page.locator(".wbi-scroller").evaluate("(box, share) => { box.scrollTop = share * box.scrollHeight; }", share)
    return page.evaluate("window.watched") / 1000


WATCH = """seen => {
  const test = new Function("return " + seen);
  const began = performance.now();
  let frames = 0;
  window.watched = new Promise((done) => {
    const painted = () => done(performance.now() - began);
    const look = () => requestAnimationFrame(frames++ > 1 && test() ? painted : look);
    look();
  });
}"""


def _say(what: str, seconds: float, more: str = "") -> None:
    limit = LIMITS.get(what)
    said = f"   {'within' if seconds <= limit else 'MORE THAN'} {limit:g} s" if limit else ""
    print(f"{what}: {seconds:.3f} s{said}   {more}", flush=True)


if __name__ == "__main__":
    main()
