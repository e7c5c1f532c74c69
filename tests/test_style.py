"""The common look: colours told apart by every kind of colour vision and from the back row, type that can be large."""

import itertools
import re

import numpy as np
import pandas as pd
import pytest
from colorspacious import cspace_convert, deltaE
from test_figures import all_figures, evaluated  # noqa: F401

from workbench import figures
from workbench.figures import style
from workbench.figures.style import (
    ARMS,
    CHOSEN,
    CONTROL,
    DARK,
    GROUND,
    INK,
    LIGHT,
    MARKS,
    OTHER_ARMS,
    QUIET,
    REJECTED,
    SCALE,
    TAILORED,
)
from workbench.runs.errors import DataError

WHITE = "#FFFFFF"
# colorspacious simulates them at full strength after Machado, Oliveira & Fernandes 2009 (doi 10.1109/TVCG.2009.113).
VISIONS = (None, "protanomaly", "deuteranomaly", "tritanomaly")
MARK_CONTRAST, TEXT_CONTRAST = 3.0, 4.5  # WCAG 2.2, 1.4.11 and 1.4.3
APART = 6.0  # in CAM02-UCS, where 1 is about what can just be noticed side by side
THEMES = pytest.mark.parametrize("as_drawn", [str, DARK.__getitem__], ids=["light", "dark"])


def rgb(colour: str) -> np.ndarray:
    return np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255


def seen(colour: str, vision: str | None) -> np.ndarray:
    if vision is None:
        return rgb(colour)
    space = {"name": "sRGB1+CVD", "cvd_type": vision, "severity": 100}
    return np.clip(cspace_convert(rgb(colour), space, "sRGB1"), 0, 1)


def apart(one: str, other: str) -> float:
    """Return how far apart two colours are for whom they are nearest."""
    return min(float(deltaE(seen(one, v), seen(other, v), input_space="sRGB1")) for v in VISIONS)


def contrast(one: str, other: str) -> float:
    """Return the contrast ratio as WCAG defines it, 1 to 21."""
    lights = []
    for colour in (one, other):
        linear = np.where(rgb(colour) <= 0.04045, rgb(colour) / 12.92, ((rgb(colour) + 0.055) / 1.055) ** 2.4)
        lights.append(float(linear @ [0.2126, 0.7152, 0.0722]))
    return (max(lights) + 0.05) / (min(lights) + 0.05)


def test_the_measures_by_hand():
    assert contrast("#000000", WHITE) == pytest.approx(21) and contrast(WHITE, WHITE) == 1
    assert contrast("#767676", WHITE) == pytest.approx(4.54, abs=0.01)
    # Red and green of equal strength are the textbook case: far apart for most, near for one in twelve men.
    assert float(deltaE(rgb("#B83030"), rgb("#506B00"), input_space="sRGB1")) > 30 > 3 * apart("#B83030", "#506B00")


@THEMES
@pytest.mark.parametrize("marks", [[*ARMS.values(), *OTHER_ARMS], MARKS], ids=["arms", "marks"])
def test_what_stands_in_one_figure_differs_in_colour_for_everybody_and_in_more_than_colour(marks, as_drawn):
    for (colour, symbol, dash), (other, other_symbol, other_dash) in itertools.combinations(marks, 2):
        assert symbol != other_symbol and dash != other_dash
        assert colour == other or apart(as_drawn(colour), as_drawn(other)) >= APART, (colour, other)


@THEMES
def test_marks_and_words_stand_out_from_the_figures_own_ground(as_drawn):
    for colour in {CHOSEN, REJECTED, CONTROL, TAILORED, *(mark[0] for mark in [*ARMS.values(), *MARKS])}:
        assert contrast(as_drawn(colour), as_drawn(GROUND)) >= MARK_CONTRAST, colour
    for colour in (INK, QUIET):
        assert contrast(as_drawn(colour), as_drawn(GROUND)) >= TEXT_CONTRAST
    assert contrast(as_drawn(LIGHT), as_drawn(GROUND)) < MARK_CONTRAST, "then bars need no outline any more"
    assert min(contrast(as_drawn(INK), as_drawn(end)) for end in SCALE) >= TEXT_CONTRAST


def colours(value) -> set[str]:
    """Return every colour named in a figure."""
    if isinstance(value, dict):
        return set().union(*map(colours, value.values()))
    if isinstance(value, list | tuple):
        return set().union(*map(colours, value))
    return {value.upper()} if isinstance(value, str) and len(value) == 7 and value[0] == "#" else set()


def test_figures_use_the_colours_that_were_measured_and_no_others(all_figures):  # noqa: F811
    known = {CHOSEN, REJECTED, CONTROL, TAILORED, LIGHT, INK, *(m[0] for m in [*ARMS.values(), *MARKS])}
    for name, fig in all_figures.items():
        assert colours(fig.to_plotly_json()["data"]) <= known, name
        for trace in fig.data:
            if trace.type in ("bar", "histogram") and trace.marker.color == LIGHT:
                assert trace.marker.line.width, f"{name}: a light bar without an outline"
            if trace.type == "heatmap":
                assert trace.textfont.color == INK, name


def test_figures_bring_their_own_ground_so_that_a_dark_page_changes_nothing(all_figures):  # noqa: F811
    for name, fig in all_figures.items():
        look = fig.layout.template.layout
        assert look.paper_bgcolor == look.plot_bgcolor == GROUND and look.font.color == INK, name
        assert fig.layout.paper_bgcolor is None and fig.layout.font.color is None, name


@pytest.fixture
def look(monkeypatch):
    """Type as it is at first, also afterwards."""
    monkeypatch.setattr(style, "_times", 1.0)


def draw():
    return figures.comparisons(evaluated()[1])


def test_every_colour_has_one_for_dark_pages_and_the_way_back(all_figures):  # noqa: F811
    assert len(set(DARK.values())) == len(DARK) and not set(DARK) & set(DARK.values())
    # White is plotly's own for the ends of some scales, and the ground.
    for name, fig in all_figures.items():
        assert colours(fig.to_plotly_json()) <= set(DARK), name


@pytest.mark.browser
def test_figures_take_the_theme_of_the_page_and_follow_it(look, chromium, tmp_path):
    from playwright.sync_api import sync_playwright

    page = tmp_path / "page.html"
    script = f"{style.plotly_script()}<script>{style.FOLLOW}</script>"
    page.write_text(f'<meta charset="utf-8"><body data-jp-theme-light="false">{script}{figures.to_html(draw())}</body>')
    ground = "want => getComputedStyle(document.querySelector('.main-svg')).backgroundColor === want"
    drawn = "one => JSON.stringify([one.data, one.layout.template, one._fullLayout.height])"
    seen, errors = {}, []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        tab = browser.new_page()
        tab.on("pageerror", lambda error: errors.append(str(error)))
        tab.goto(page.as_uri())
        for is_light in ("false", "true", "false", "true"):
            tab.evaluate(f"document.body.dataset.jpThemeLight = '{is_light}'")
            tab.wait_for_function(ground, arg="rgb(255, 255, 255)" if is_light == "true" else "rgb(22, 22, 22)")
            seen.setdefault(is_light, []).append(tab.locator(".js-plotly-plot").evaluate(drawn))
        browser.close()
    assert not errors and all(one == other for one, other in seen.values()) and seen["true"] != seen["false"]


def test_large_type_enlarges_every_text_and_leaves_drawn_figures_alone(look):
    fig = draw()
    before = fig.to_json()
    figures.use_large_type(1.5)
    large = draw()
    assert fig.to_json() == before
    one, other = fig.layout.template.layout, large.layout.template.layout
    for size in ("font.size", "title.font.size", "title.subtitle.font.size", "xaxis.title.font.size"):
        assert other[size] == 1.5 * one[size]
    assert large.layout.template.data.scatter[0].marker.size == 1.5 * fig.layout.template.data.scatter[0].marker.size
    assert large.layout.height > fig.layout.height and large.layout.margin.t > fig.layout.margin.t
    words = [f.layout.title.subtitle.text.replace("<br>", " ").split() for f in (fig, large)]
    assert words[0] == words[1] and figures.sentence(large) == figures.sentence(fig)
    for wrong in (0.5, 9):
        with pytest.raises(DataError, match="1 to 3 times"):
            figures.use_large_type(wrong)


def test_numbers_in_tables_have_no_empty_decimals():
    page = figures.table(pd.DataFrame({"n_tokens": [64.0, -0.0001, 0.1234, 5332.0, float("nan")]}))
    assert [cell for cell in re.findall("<td>(.*?)</td>", page)] == ["64", "0", "0.123", "5332", ""]
    assert '<th scope="col">tokens</th>' in page
