"""The common look: colours told apart by every kind of colour vision and from the back row, type that can be large."""

import itertools
import json

import numpy as np
import plotly.graph_objects as go
import pytest
from colorspacious import cspace_convert, deltaE
from test_figures import all_figures  # noqa: F401

from workbench import figures
from workbench.figures import style
from workbench.figures.style import ARMS, CHOSEN, CONTROL, INK, LIGHT, MARKS, OTHER_ARMS, REJECTED, SCALE, TAILORED

WHITE = "#FFFFFF"
# colorspacious simulates them at full strength after Machado, Oliveira & Fernandes 2009 (doi 10.1109/TVCG.2009.113).
VISIONS = (None, "protanomaly", "deuteranomaly", "tritanomaly")
MARK_CONTRAST, TEXT_CONTRAST = 3.0, 4.5  # WCAG 2.2, 1.4.11 and 1.4.3
APART = 6.0  # in CAM02-UCS, where 1 is about what can just be noticed side by side


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


@pytest.mark.parametrize("marks", [[*ARMS.values(), *OTHER_ARMS], MARKS], ids=["arms", "marks"])
def test_what_stands_in_one_figure_differs_in_colour_for_everybody_and_in_more_than_colour(marks):
    for (colour, symbol, dash), (other, other_symbol, other_dash) in itertools.combinations(marks, 2):
        assert symbol != other_symbol and dash != other_dash
        assert colour == other or apart(colour, other) >= APART, (colour, other)


def test_marks_and_words_stand_out_from_the_figures_own_ground():
    for colour in {CHOSEN, REJECTED, CONTROL, TAILORED, *(mark[0] for mark in [*ARMS.values(), *MARKS])}:
        assert contrast(colour, WHITE) >= MARK_CONTRAST, colour
    for colour in (INK, "#444444"):
        assert contrast(colour, WHITE) >= TEXT_CONTRAST
    assert contrast(LIGHT, WHITE) < MARK_CONTRAST, "then bars need no outline any more"
    assert min(contrast(INK, end) for _, end in SCALE) >= TEXT_CONTRAST


def colours(value) -> set[str]:
    """Return every colour named in a figure's data."""
    if isinstance(value, dict):
        return set().union(*(colours(item) for key, item in value.items() if key != "colorscale"))
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
        assert fig.layout.paper_bgcolor == fig.layout.plot_bgcolor == "white", name
        assert fig.layout.font.color == INK, name


def test_large_type_enlarges_every_text_and_leaves_the_figure_alone(all_figures):  # noqa: F811
    for name, fig in all_figures.items():
        before = json.loads(fig.to_json())
        large = figures.enlarge(fig, 1.5)
        assert json.loads(fig.to_json()) == before, name
        sizes = [
            (f.layout.font.size, f.layout.title.font.size, f.layout.title.subtitle.font.size) for f in (fig, large)
        ]
        assert sizes[1] == tuple(1.5 * size for size in sizes[0]), name
        for axis in [*large.select_xaxes(), *large.select_yaxes()]:
            assert axis.title.font.size == large.layout.font.size
        assert large.layout.height > fig.layout.height and large.layout.margin.t > fig.layout.margin.t
        words = [f.layout.title.subtitle.text.replace("<br>", " ").split() for f in (fig, large)]
        assert words[0] == words[1] and figures.sentence(large) == figures.sentence(fig), name


def test_large_type_is_used_for_what_is_shown_from_then_on(monkeypatch, all_figures):  # noqa: F811
    shown = []
    monkeypatch.setattr(style, "_script_shown", True)
    monkeypatch.setattr(style, "_type_size", 1.0)
    monkeypatch.setattr("IPython.display.display", lambda bundle, raw: shown.append(bundle))
    figures.use_large_type(2)
    figures.show(all_figures["comparisons"])
    drawn = go.Figure(shown[0]["application/vnd.plotly.v1+json"])
    assert drawn.layout.font.size == 26
    for wrong in (0.5, 9):
        with pytest.raises(figures.FigureError, match="1 to 3 times"):
            figures.use_large_type(wrong)
