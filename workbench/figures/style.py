"""What all figures share: colours, the frame of title, caption and sentence, and how they are shown and saved."""

from __future__ import annotations

import html
import json
import math
import shutil
import subprocess
import tempfile
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

CHOSEN, REJECTED, CONTROL, TAILORED, LIGHT = "#0072B2", "#D55E00", "#595959", "#009E73", "#C9D3DC"
# Colour, marker and dash of every arm; controls are grey and told apart by marker and dash.
ARMS = {
    "tailored": (TAILORED, "diamond", "solid"),
    "untailored": (CONTROL, "circle", "dash"),
    "random_pairs": ("#8C8C8C", "square", "dot"),
    "base": (CONTROL, "circle-open", "dashdot"),
}
# Dark enough for a projector, and apart from the others for every kind of colour vision; a test measures both.
OTHER_ARMS = (
    ("#30287A", "triangle-up", "longdash"),
    ("#7A5C00", "triangle-down", "longdashdot"),
    ("#901830", "cross", "12px,4px,2px,4px,2px,4px"),
)
MARKS = ((CHOSEN, "circle", "solid"), (REJECTED, "diamond", "dash"), (TAILORED, "square", "dot"), *OTHER_ARMS)
# Light enough at its end for dark figures in the cells, which plotly would colour by its own rule.
SCALE, INK = [[0.0, "#F7FBFF"], [1.0, "#6BAED6"]], "#1F1F1F"
OUTLINE = {"color": CONTROL, "width": 1}
FONT = "Helvetica, Arial, sans-serif"
TABLE_ROWS, STORED_ROWS = 60, 1_000
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")

LINE_LETTERS = 118  # of a subtitle at its usual size
_script_shown = False
_type_size = 1.0


class FigureError(ValueError):
    """A figure cannot be drawn from what was given, and what to do about it."""


def escape(text: object, limit: int = 60) -> str:
    """Return a text that plotly and HTML show literally, on one line and shortened to the limit.

    plotly reads tags, $mathematics$ and %{templates} in labels; names and texts written by a model could hold them.
    """
    line = " ".join(str(text).split())
    line = line if len(line) <= limit else line[: limit - 1] + "…"
    return html.escape(line, quote=False).replace("$", "&#36;").replace("{", "&#123;")


def named(text: object) -> str:
    """Return an escaped name with spaces for underscores."""
    return escape(str(text).replace("_", " "))


def arm_style(arm: str) -> tuple[str, str, str]:
    """Return colour, marker and dash of an arm; one outside the four always gets the same of three others."""
    return ARMS.get(arm) or OTHER_ARMS[sum(arm.encode()) % len(OTHER_ARMS)]


def need(frame: pd.DataFrame, what: str, do: str) -> pd.DataFrame:
    """Return the frame, or say what is missing when it is empty."""
    if frame.empty:
        raise FigureError(f"There are no {what} to draw; {do}.")
    return frame


def error_bars(rows: pd.DataFrame, centre: str, colour: str) -> dict:
    """Return plotly error bars from the columns low and high around a centre."""
    return {
        "type": "data",
        "symmetric": False,
        "array": rows["high"] - rows[centre],
        "arrayminus": rows[centre] - rows["low"],
        "color": colour,
        "thickness": 2,
        "width": 6,
    }


def finish(
    fig: go.Figure, title: str, subtitle: str, caption: str, sentence: str, table: pd.DataFrame, height: int = 380
) -> go.Figure:
    """Give a figure its title, subtitle, caption, sentence and table, and the common look.

    Titles, subtitles, captions and sentences may hold escaped names; the caption and the sentence are kept as plain
    text in layout.meta (they are escaped again where they are shown), the table's first STORED_ROWS rows there too.
    """
    lines = textwrap.wrap(subtitle, LINE_LETTERS)
    table = table.astype(object).where(table.notna(), None)
    fig.update_layout(
        template="plotly_white",
        title={
            "text": f"<b>{title}</b>",
            "subtitle": {"text": "<br>".join(lines), "font": {"size": 13, "color": "#444444"}},
            "x": 0.012,
            "xref": "container",
            "xanchor": "left",
            "yref": "container",
            "y": 1.0,
            "yanchor": "top",
            "pad": {"t": 14},
            "font": {"size": 18},
        },
        font={"family": FONT, "size": 13, "color": "#1F1F1F"},
        paper_bgcolor="white",
        plot_bgcolor="white",
        height=height + 18 * len(lines),
        margin={"t": 78 + 18 * len(lines), "l": 20, "r": 24, "b": 60},
        legend={"orientation": "h", "yref": "container", "y": 0.0, "yanchor": "bottom", "x": 0.0},
        meta={
            "caption": html.unescape(caption),
            "sentence": html.unescape(sentence),
            "table": {
                "columns": [str(column) for column in table.columns],
                "rows": [[_plain(value) for value in row] for row in table.head(STORED_ROWS).itertuples(index=False)],
                "n_rows": len(table),
            },
        },
    )
    fig.update_xaxes(
        automargin=True, linecolor="#8C8C8C", ticks="outside", tickcolor="#8C8C8C", title_standoff=8, title_font_size=13
    )
    fig.update_xaxes(zeroline=False)
    fig.update_yaxes(automargin=True, linecolor="#8C8C8C", title_standoff=8, title_font_size=13, zeroline=False)
    fig.update_annotations(font_size=13)
    return fig


def use_large_type(times: float = 1.35) -> None:
    """Let figures shown from now on have larger type and marks, to be read from the back row; 1 ends that."""
    global _type_size
    if not 1 <= times <= 3:
        raise FigureError(f"Type can be 1 to 3 times as large, got {times}; 1.35 suits a projector.")
    _type_size = times


def enlarge(fig: go.Figure, times: float) -> go.Figure:
    """Return a copy whose type and marks are so many times as large; figure and margins grow with them."""
    large = go.Figure(fig)
    title = large.layout.title
    lines = textwrap.wrap(title.subtitle.text.replace("<br>", " "), int(LINE_LETTERS / times))
    title.subtitle.text, title.subtitle.font.size = "<br>".join(lines), times * title.subtitle.font.size
    title.font.size = times * title.font.size
    large.layout.font.size = times * large.layout.font.size
    for axis in [*large.select_xaxes(), *large.select_yaxes()]:
        axis.title.font.size = large.layout.font.size
    for annotation in large.layout.annotations:
        annotation.font.size = times * (annotation.font.size or 13)
    for trace in large.data:
        for part in filter(None, (getattr(trace, "marker", None), getattr(trace, "line", None))):
            name = "size" if "size" in part else "width"
            if name in part and isinstance(part[name], int | float):
                part[name] = times * part[name]
    margin = large.layout.margin
    top = times * (78 + 18 * len(lines))
    large.layout.height += (top - margin.t) + (times - 1) * margin.b + (times - 1) * 0.35 * large.layout.height
    margin.t, margin.b, margin.r = top, times * margin.b, times * margin.r
    return large


def _plain(value: object) -> object:
    value = value.item() if hasattr(value, "item") else value
    return value if isinstance(value, int | float | bool | type(None)) else str(value)


def caption(fig: go.Figure) -> str:
    """Return what the figure shows and how its intervals were made."""
    return fig.layout.meta["caption"]


def sentence(fig: go.Figure) -> str:
    """Return the one sentence that says what to see, with its uncertainty."""
    return fig.layout.meta["sentence"]


def table(of: go.Figure | pd.DataFrame) -> str:
    """Return the numbers of a figure, or a frame, as an HTML table; all text is escaped."""
    if isinstance(of, pd.DataFrame):
        columns, rows, n_rows = list(map(str, of.columns)), of.head(TABLE_ROWS).to_numpy(dtype=object).tolist(), len(of)
    else:
        columns, rows, n_rows = (of.layout.meta["table"][key] for key in ("columns", "rows", "n_rows"))
    head = "".join(f'<th scope="col">{html.escape(column)}</th>' for column in columns)
    body = "".join("<tr>" + "".join(f"<td>{_cell(value)}</td>" for value in row) + "</tr>" for row in rows[:TABLE_ROWS])
    more = f"<p>{n_rows - TABLE_ROWS} more rows are not shown.</p>" if n_rows > TABLE_ROWS else ""
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{more}"


def _cell(value: object) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    return html.escape(f"{value:.3f}" if isinstance(value, float) else str(value))


def plotly_script() -> str:
    """Return the script element that holds plotly.js; a page needs it once, before its first figure."""
    settings = "window.PlotlyConfig = {MathJaxConfig: 'local'};"
    return f'<script type="text/javascript">{settings}</script><script>{get_plotlyjs()}</script>'


def use_renderer() -> None:
    """Put plotly.js into the notebook once, so that an exported page shows its figures offline.

    Call it in the setup cell: the script then stays there when a later cell is run again.
    """
    global _script_shown
    from IPython.display import display

    display({"text/html": plotly_script(), "text/plain": "Figures are drawn by plotly."}, raw=True)
    _script_shown = True


def to_html(fig: go.Figure, tools: bool = True) -> str:
    """Return the figure as an HTML element, without plotly.js and asking no other host for anything."""
    config = {"displaylogo": False} if tools else {"displayModeBar": False}
    return fig.to_html(
        config=config, full_html=False, include_plotlyjs=False, include_mathjax=False, default_width="100%"
    )


def notes_html(fig: go.Figure) -> str:
    """Return sentence, caption and the folded table of a figure as HTML."""
    return (
        f"<p><strong>{html.escape(sentence(fig))}</strong></p><p><em>{html.escape(caption(fig))}</em></p>"
        f"<details><summary>The numbers as a table</summary>{table(fig)}</details>"
    )


def share_cells(grid: pd.DataFrame, columns: Sequence[str], texts: object, colorbar: dict) -> go.Heatmap:
    """Return a heat map of shares from 0 to 1, a row for each of the index, with a text in every cell.

    Args:
        grid: Shares; its index names the rows.
        columns: What to call the columns.
        texts: Texts of the cells, shape of grid.
        colorbar: As plotly takes it.
    """
    return go.Heatmap(
        z=grid.to_numpy(),
        x=columns,
        y=panels(grid.index),
        text=texts,
        texttemplate="%{text}",
        textfont={"color": INK},
        colorscale=SCALE,
        zmin=0,
        zmax=1,
        xgap=3,
        ygap=3,
        colorbar=colorbar,
        hovertemplate="%{y}, %{x}: %{text}<extra></extra>",
    )


def show(fig: go.Figure) -> None:
    """Display a figure in a notebook: the figure, then its sentence, caption and table."""
    from IPython.display import display

    if not _script_shown:
        use_renderer()
    fig = enlarge(fig, _type_size) if _type_size > 1 else fig
    bundle = {
        "application/vnd.plotly.v1+json": json.loads(fig.to_json()),
        "text/html": to_html(fig),
        "text/plain": sentence(fig),
    }
    display(bundle, raw=True)
    display({"text/html": notes_html(fig), "text/plain": caption(fig)}, raw=True)


def save_png(fig: go.Figure, path: str | Path, width: int = 960) -> Path:
    """Save a figure as a picture with Chromium or Chrome.

    Raises:
        FigureError: If there is no browser, or it does not draw.
    """
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        raise FigureError(f"A picture needs one of {', '.join(BROWSERS)}; install one, or read the table instead.")
    path = Path(path).resolve()
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder, "figure.html")
        still = go.Figure(fig).update_layout(width=width)
        body = f'<meta charset="utf-8"><body style="margin:0">{plotly_script()}{to_html(still, tools=False)}</body>'
        page.write_text(body, encoding="utf-8")
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--virtual-time-budget=8000"]
        size = f"--window-size={width},{int(fig.layout.height or 450)}"
        profile = f"--user-data-dir={folder}/profile"
        command = [browser, *flags, profile, size, f"--screenshot={path}", page.as_uri()]
        done = subprocess.run(command, capture_output=True, timeout=120, text=True)
    if done.returncode or not path.exists():
        raise FigureError(f"{browser} did not draw {path.name}: {done.stderr.strip()[-200:]}; try it by hand.")
    return path


def panels(names: Sequence[str]) -> list[str]:
    """Return panel headings: the escaped names."""
    return [named(name) for name in names]


def dots_and_means(
    fig: go.Figure,
    column: int,
    dots: pd.DataFrame,
    means: pd.DataFrame,
    place: Mapping[str, int],
    rng: np.random.Generator,
    opacity: float,
) -> None:
    """Add to a cell of a row, by technique, every draft as a dot and above the dots the means with intervals.

    Args:
        fig: The figure.
        column: Which cell; the first one's traces stand in the legend.
        dots: Columns technique and value, a row a draft.
        means: Columns technique, mean, low and high.
        place: Height of each technique.
        rng: Draws how far below its technique each dot lies.
        opacity: Of the dots.
    """
    cell = {"mode": "markers", "showlegend": column == 1, "row": 1, "col": column}
    fig.add_scatter(
        x=dots["value"],
        y=dots["technique"].map(place) + rng.uniform(-0.3, -0.12, len(dots)),
        marker={"color": CONTROL, "size": 5, "opacity": opacity},
        name="one draft",
        legendgroup="d",
        **cell,
    )
    fig.add_scatter(
        x=means["mean"],
        y=means["technique"].map(place),
        error_x=error_bars(means, "mean", CHOSEN),
        marker={"color": CHOSEN, "size": 10, "symbol": "diamond"},
        name="mean, 95 % interval",
        legendgroup="m",
        **cell,
    )
