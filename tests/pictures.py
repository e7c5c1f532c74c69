"""The README's pictures: of JupyterLab, taken in a real one from notebooks that are really run, and one that moves.

Run by hand:  make pictures  (or: python tests/pictures.py FOLDER)
"""

import io
import shutil
import sys
import tempfile
from pathlib import Path

import pandas as pd
from conftest import CHROMIUM_NAMES, PROJECT
from lab import lab, write_notebook
from PIL import Image

from workbench.figures.style import CONTROL, TAILORED
from workbench.tasks.pocket_styles import STYLES

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
QUIET = '{"fetchNews": "false"}'  # nobody is asked about news in front of what is photographed


def set_up(folder: Path, dark: bool = False) -> None:
    """Write settings for a Lab in this folder that shows whole notebooks, in the light or the dark theme."""
    chosen = {"notebook-extension/tracker": DRAW_ALL, "apputils-extension/notification": QUIET}
    chosen |= {"apputils-extension/themes": DARK} if dark else {}
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


WIDTH, TALL = 960, 600
PAGE = """<meta charset="utf-8"><style>
body {{ font: 21px/1.4 Helvetica, Arial, sans-serif; margin: 28px 34px; color: #1f1f1f; background: #fff }}
h1 {{ font-size: 30px; margin: 0 }} p {{ margin: 6px 0 26px; color: #444 }} h2 {{ font-size: 21px; margin: 0 0 8px }}
.all {{ display: grid; grid-template-columns: repeat(3, 1fr); gap: 34px }} .row {{ margin: 20px 0 }}
.bar {{ height: 38px; margin-top: 4px; background: #ebf0f8 }} .bar div {{ height: 100% }}
</style><h1>One teacher, three students</h1><p>{said}</p><div class="all">{panels}</div>"""
INSPECT = "import workbench as wb\nwb.inspect(wb.open_run('sample')).show()"


def styles_written() -> dict[str, tuple[pd.Series, pd.Series]]:
    """Return of the first three students of the shipped run the share of each style, before and after alignment."""
    written = pd.read_parquet(PROJECT / "data/samples/run/examples/examples.parquet").query("kept")
    shares = {}
    for student in [name for name in written["student"].unique() if name][:3]:
        own = written[written["student"].isin([student, ""])]
        of = own.groupby("arm")["style"].value_counts(normalize=True)
        shares[student] = tuple(of[arm].reindex(STYLES, fill_value=0.0) for arm in ("untailored", "tailored"))
    return shares


def teacher_page(shares: dict, part: float) -> str:
    """Return the page of one moment: what the teacher writes, a part of the way from before to after alignment."""
    said = {0: "What it writes before it has asked anybody.", 1: "What it writes after alignment to each student."}
    panels = ""
    for student, (before, after) in shares.items():
        rows, native = "", student.partition("-")[0]
        for style, share in (before + part * (after - before)).items():
            colour = TAILORED if style == native and part else CONTROL
            bar = f'<div class="bar"><div style="width:{100 * share:.1f}%;background:{colour}"></div></div>'
            rows += f'<div class="row">{style} {100 * share:.0f} %{bar}</div>'
        panels += f"<div><h2>for {student}</h2>{rows}</div>"
    return PAGE.format(said=said.get(part, "It is aligned to what each student answers well after ..."), panels=panels)


def animate(folder: Path) -> Path:
    """Write the picture that moves: the teacher changing, then the inspector of the shipped run's pairs."""
    from playwright.sync_api import sync_playwright

    frames, shares = [], styles_written()

    def add(page, show_ms: int, clip: dict | None = None) -> None:
        shot = Image.open(io.BytesIO(page.screenshot(clip=clip))).convert("RGB")
        shot.thumbnail((WIDTH, TALL))
        whole = Image.new("RGB", (WIDTH, TALL), "white")
        whole.paste(shot, ((WIDTH - shot.width) // 2, 0))
        frames.append((whole, show_ms))

    chromium = next(filter(None, map(shutil.which, CHROMIUM_NAMES)))
    with tempfile.TemporaryDirectory() as place, sync_playwright() as playwright:
        root = Path(place)
        set_up(root)
        write_notebook(root / "pairs.ipynb", INSPECT)
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": WIDTH, "height": TALL})
        for part, show_ms in [(0, 2200), *((n / 8, 120) for n in range(1, 8)), (1, 3500)]:
            page.set_content(teacher_page(shares, part))
            add(page, show_ms)
        with lab(root, WORKBENCH_RUNS=str(root / "runs")) as address:
            page = browser.new_page(viewport={"width": 1440, "height": 900})
            open_and_run(page, address, "pairs.ipynb", "pairs reviewed")
            view = page.locator(".wbi")
            view.wait_for()
            page.keyboard.press("Control+b")
            for key, show_ms in (("", 3000), ("2", 1500), ("1", 1500), ("t", 2500), ("w", 3000)):
                view.focus()
                page.keyboard.press(key or "Escape")
                page.wait_for_timeout(1500)
                add(page, show_ms, view.bounding_box())
        browser.close()
    path, ((first, _), *others) = folder / "workbench.webp", frames
    times = [show_ms for _, show_ms in frames]
    first.save(path, save_all=True, append_images=[f for f, _ in others], duration=times, loop=0, quality=70, method=6)
    return path


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
    to = Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER
    for picture in [*take(to), animate(to)]:
        print(f"{picture}  {picture.stat().st_size / 1000:.0f} kB")
