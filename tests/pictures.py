"""The README's pictures of JupyterLab, taken in a real one from notebooks that are really run.

Run by hand:  make pictures  (or: python tests/pictures.py FOLDER)
"""

import shutil
import sys
import tempfile
from pathlib import Path

from conftest import CHROMIUM_NAMES, PROJECT
from lab import lab

FOLDER = PROJECT / "data" / "samples" / "pictures"
LESSON = "06_responsive_teaching"
# Picture -> words in the code of the cell whose output it shows.
SHOTS = {
    "lesson_game": "game.show()",
    "lesson_teacher": "How does one teacher change",
    "lesson_learners": "Who learns from whose",
}
HEIGHT = 690  # the figure and its sentence; what stands below is words
WAIT_MS = 900_000
# What is not drawn while it is off the screen could be neither counted nor photographed.
DRAW_ALL = '{"windowingMode": "none"}'
DARK = '{"theme": "JupyterLab Dark"}'


def set_up(folder: Path, dark: bool = False) -> None:
    """Write settings for a Lab in this folder that shows whole notebooks, in the light or the dark theme."""
    chosen = {"notebook-extension/tracker": DRAW_ALL} | ({"apputils-extension/themes": DARK} if dark else {})
    for name, text in chosen.items():
        path = folder / ".jupyter" / "lab" / "@jupyterlab" / f"{name}.jupyterlab-settings"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def open_and_run(page, address: str, name: str, last: str) -> None:
    """Open a notebook in a page, run all its cells and wait until its last text is there."""
    page.set_default_timeout(WAIT_MS)
    page.goto(f"{address}/tree/{name}?reset")
    # Before the kernel is there, Lab would ask which one is meant.
    page.get_by_text("| Idle").wait_for()
    page.click('.lm-MenuBar-itemLabel:text-is("Run")')
    page.click('.lm-Menu-itemLabel:text-is("Run All Cells")')
    page.get_by_text(last).wait_for()


def take(folder: Path) -> list[Path]:
    """Take all pictures and return their files."""
    from playwright.sync_api import sync_playwright

    chromium = next(filter(None, map(shutil.which, CHROMIUM_NAMES)))
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        set_up(root)
        shutil.copy(PROJECT / "notebooks" / f"{LESSON}.ipynb", root)
        with lab(root, WORKBENCH_RUNS=str(root / "runs")) as address, sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
            page = browser.new_page(viewport={"width": 1240, "height": 2600})
            open_and_run(page, address, f"{LESSON}.ipynb", "Written to start-here/metrics.json")
            page.get_by_role("button", name="Example C").click()
            page.get_by_text("guesses right; by chance").wait_for()
            return [_shot(page, text, folder / f"{name}.png") for name, text in SHOTS.items()]


def _shot(page, text: str, path: Path) -> Path:
    """Photograph what the first code cell with this text displayed."""
    cell = page.locator(".jp-CodeCell").filter(has=page.locator(".jp-InputArea", has_text=text)).first
    shown = cell.locator(".jp-Cell-outputWrapper").first
    shown.scroll_into_view_if_needed()
    page.wait_for_timeout(500)
    box = shown.bounding_box()
    page.screenshot(path=str(path), clip={**box, "height": min(box["height"], HEIGHT)})
    return path


if __name__ == "__main__":
    for picture in take(Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER):
        print(f"{picture}  {picture.stat().st_size / 1000:.0f} kB")
