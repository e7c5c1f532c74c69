"""What all figures share: colours and marks, panels, the frame of title, caption and sentence, showing and saving."""

from __future__ import annotations

import html
import itertools
import json
import shutil
import subprocess
import tempfile
import textwrap
from collections.abc import Iterable, Mapping
from pathlib import Path

import pandas as pd
import plotly.express as px
import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from workbench.runs.errors import DataError, spoken
from workbench.runs.schemas import with_spoken_names
from workbench.verdict.in_words import in_order, spell

CHOSEN, REJECTED, CONTROL, TAILORED, LIGHT = "#0072B2", "#D55E00", "#595959", "#009E73", "#C9D3DC"
SECOND_CONTROL, INK, QUIET, LINE, GRID, GROUND = "#8C8C8C", "#1F1F1F", "#444444", "#8D8D8D", "#EBF0F8", "#FFFFFF"
Style = tuple[str, str, str]  # colour, marker and dash
Styles = Mapping[str, Style]
# Controls are grey and told apart by marker and dash.
ARMS = {
    "base": (CONTROL, "circle-open", "dashdot"),
    "untailored": (CONTROL, "circle", "dash"),
    "random_pairs": (SECOND_CONTROL, "square", "dot"),
    "tailored": (TAILORED, "diamond", "solid"),
}
# Dark enough for a projector, and apart from the others for every kind of colour vision; a test measures both.
OTHER_ARMS = (
    ("#30287A", "triangle-up", "longdash"),
    ("#7A5C00", "triangle-down", "longdashdot"),
    ("#901830", "cross", "12px,4px,2px,4px,2px,4px"),
)
MARKS = ((CHOSEN, "circle", "solid"), (REJECTED, "diamond", "dash"), (TAILORED, "square", "dot"), *OTHER_ARMS)
# Light enough at its end for dark figures in the cells, which plotly would colour by its own rule.
SCALE = ["#F7FBFF", "#6BAED6"]
# What each colour becomes in the dark theme; the same test measures these.
DARK = {
    **{CHOSEN: "#4098E0", REJECTED: "#FF8A3D", CONTROL: "#B4B4B4", TAILORED: "#1FC795", LIGHT: "#39424A"},
    **{SECOND_CONTROL: "#7F7F7F", "#30287A": "#CBBCFF", "#7A5C00": "#E8D06A", "#901830": "#F03050"},
    **{INK: "#EDEDED", QUIET: "#BBBBBB", LINE: "#8E8E8E", GRID: "#2C2C2C", GROUND: "#161616"},
    **{SCALE[0]: "#12202E", SCALE[1]: "#2B6191"},
}
TOOLS = ["zoom", "pan", "select", "lasso", "zoomin", "zoomout", "autoscale"]  # over titles; the mouse does it too
OUTLINE = {"color": CONTROL, "width": 1}
LEVEL = {"line_color": CONTROL, "line_dash": "dot", "line_width": 1}  # of a line that marks zero, or chance
FONT = "Helvetica, Arial, sans-serif"
POCKET = "pocket models"
TABLE_ROWS = 60
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
LINE_LETTERS = 100  # of a subtitle at its usual size, in a figure 700 pixels wide
# In Lab a figure is drawn anew in the colours of the theme, when it comes and when another theme is chosen.
FOLLOW = Path(__file__).with_name("follow.js").read_text(encoding="utf-8").replace("DARK", json.dumps(DARK))
_script_shown = False
_times = 1.0


def escape(text: object, limit: int = 60) -> str:
    """Return a text that plotly and HTML show literally, on one line and shortened to the limit.

    plotly reads tags, $mathematics$ and %{templates} in labels; names and texts written by a model could hold them.
    """
    line = " ".join(str(text).split())
    line = line if len(line) <= limit else line[: limit - 1] + "…"
    return html.escape(line, quote=False).replace("$", "&#36;").replace("{", "&#123;")


def named(text: object) -> str:
    """Return an escaped name with spaces for underscores."""
    return escape(spoken(str(text)))


def spell_each(rows: pd.DataFrame, name: str, value: str, unit: str = "%") -> str:
    """Return a number of every row with its interval, in the columns low and high, after the row's name."""
    own = rows[[name, value, "low", "high"]].itertuples(index=False, name=None)
    return "; ".join(f"{named(who)} {spell(*estimate, unit)}" for who, *estimate in own)


def arm_styles(arms: Iterable[str]) -> dict[str, Style]:
    """Return a style for each arm: the four have theirs, the others take six in turn, in the order of their names."""
    arms, others = list(dict.fromkeys(arms)), itertools.cycle((*OTHER_ARMS, *MARKS[:3]))
    styles = ARMS | {arm: next(others) for arm in sorted(set(arms) - set(ARMS))}
    return {arm: styles[arm] for arm in arms}


def need(frame: pd.DataFrame, what: str, do: str) -> pd.DataFrame:
    """Return the frame, or say what is missing when it is empty."""
    if frame.empty:
        raise DataError(f"There are no {what} to draw; {do}.")
    return frame


def marks_by(values: pd.Series) -> dict[str, Style]:
    """Return a style for each value, in the order in which they come; where colours come again marks are open."""
    opened = [(colour, f"{symbol}-open", dash) for colour, symbol, dash in MARKS]
    return dict(zip(values.unique(), itertools.cycle([*MARKS, *opened])))


def panelled(draw, rows: pd.DataFrame, x: str, y: str, panel: str = "", across: int = 0, **more) -> go.Figure:
    """Let a function of plotly express draw rows, their texts escaped, and a headed panel for each value of a column.

    Panels stand `across` in a row; 0 puts all into one. What is more goes to plotly express; `in_order` says in which
    order everything stands.
    """
    texts = rows.select_dtypes(exclude=["number", "bool"]).columns
    order = {column: [named(text) for text in in_order(rows, column)[column].unique()] for column in texts}
    more["category_orders"] = order | more.get("category_orders", {})
    rows = rows.assign(**{column: [named(text) for text in rows[column]] for column in texts})
    if panel:
        n = rows[panel].nunique()
        more = {"facet_col_spacing": 0.05, "facet_row_spacing": 0.2 * (across or n) / n} | more
        more |= {"facet_col": panel, "facet_col_wrap": across or n}
    fig = draw(rows, x=x, y=y, **more)
    return fig.for_each_annotation(lambda heading: heading.update(text=heading.text.partition("=")[2]))


def marks(
    rows: pd.DataFrame, x: str, y: str, by: str, styles: Styles, interval: str = "", lines: bool = False, **more
) -> go.Figure:
    """Draw a mark for every row, told apart `by` a column: by colour, shape and, where lines join them, dash.

    `interval` names which of x and y has one, in the columns low and high. What is more goes to `panelled`.
    """
    styles = {named(value): style for value, style in styles.items()}
    colours, symbols, dashes = ({name: style[at] for name, style in styles.items()} for at in range(3))
    if interval:
        middle = rows[interval]
        rows = rows.assign(above=rows["high"] - middle, below=middle - rows["low"])
        axis = "x" if interval == x else "y"
        more |= {f"error_{axis}": "above", f"error_{axis}_minus": "below"}
    if lines:
        more |= {"line_dash": by, "line_dash_map": dashes}
    more |= {"color": by, "color_discrete_map": colours, "symbol": by, "symbol_map": symbols, "render_mode": "svg"}
    fig = panelled(px.line if lines else px.scatter, rows, x, y, **more)
    if not pd.api.types.is_numeric_dtype(rows[y]):
        names = more.get("category_orders", {}).get(y) or list(map(named, in_order(rows, y)[y].unique()))
        fig.update_yaxes(categoryorder="array", categoryarray=names, range=[len(names) - 0.5, -0.5])
    return fig.update_traces(marker_line_width=2, selector=lambda trace: str(trace.marker.symbol).endswith("-open"))


def bars(rows: pd.DataFrame, x: str, y: str | None, by: str, fills: Mapping[str, tuple[str, str]], **more) -> go.Figure:
    """Draw bars told apart `by` a column, each of whose values has a colour and a pattern; without y, a histogram of x.

    What is more goes to `panelled`.
    """
    colours, patterns = ({name: fill[at] for name, fill in fills.items()} for at in range(2))
    more |= {"color": by, "color_discrete_map": colours, "pattern_shape": by, "pattern_shape_map": patterns}
    more["category_orders"] = {by: list(fills)} | more.get("category_orders", {})
    return panelled(px.bar if y else px.histogram, rows, x, y, **more).update_traces(marker_line=OUTLINE)


def dots_and_means(rows: pd.DataFrame, means: pd.DataFrame, panel: str, title: str) -> go.Figure:
    """Draw, a panel a value of a column, every row's value as a dot and above the dots of a technique their mean.

    The columns are technique, value (or mean, low and high) and the panel's; the title is that of the values.
    """
    common = {"panel": panel, "labels": {"value": title, "technique": ""}}
    dots = rows[[panel, "technique", "value"]].assign(kind="one draft")
    fig = panelled(px.strip, dots, "value", "technique", color="kind", color_discrete_sequence=[CONTROL], **common)
    fig.update_traces(pointpos=-1.1, jitter=0.6, marker_opacity=0.35)
    points = means.rename(columns={"mean": "value"}).assign(kind="mean, 95 % interval")
    style = {"mean, 95 % interval": (CHOSEN, "diamond", "solid")}
    return fig.add_traces(marks(points, "value", "technique", "kind", style, interval="value", **common).data)


def _template(times: float) -> go.layout.Template:
    """Return the look of all figures, with type and marks so many times their usual size."""
    axis = {"automargin": True, "linecolor": LINE, "gridcolor": GRID, "zeroline": False, "showline": True}
    axis["title"] = {"standoff": 8, "font": {"size": 13 * times}}
    title = {"x": 0.012, "xref": "container", "xanchor": "left", "y": 1.0, "yref": "container", "yanchor": "top"}
    title |= {"pad": {"t": 14}, "font": {"size": 18 * times}, "subtitle": {"font": {"size": 13 * times}}}
    title["subtitle"]["font"]["color"] = QUIET
    bars = {"thickness": 2, "width": 6}
    mark = {"marker": {"size": 10 * times}, "line": {"width": 2.5 * times}, "error_x": bars, "error_y": bars}
    fill = [{"marker": {"pattern": {"fillmode": "overlay", "solidity": 0.2, "size": 10}}}]
    return go.layout.Template(
        layout={
            "font": {"family": FONT, "size": 13 * times, "color": INK},
            "paper_bgcolor": GROUND,
            "plot_bgcolor": GROUND,
            "title": title,
            "xaxis": axis | {"ticks": "outside", "tickcolor": LINE},
            "yaxis": axis,
            "modebar": {"remove": TOOLS},
            "legend": {"orientation": "h", "yref": "container", "y": 0.0, "yanchor": "bottom", "x": 0.0},
        },
        data={"scatter": [mark], "box": [{"marker": {"size": 5 * times}}], "bar": fill, "histogram": fill},
    )


def use_large_type(times: float = 1.35) -> None:
    """Draw figures from now on with larger type and marks, to be read from the back row; 1 ends that."""
    global _times
    if not 1 <= times <= 3:
        raise DataError(f"Type can be 1 to 3 times as large, got {times}; 1.35 suits a projector.")
    _times = times


def finish(
    fig: go.Figure,
    title: str,
    subtitle: str,
    caption: str,
    sentence: str,
    numbers: pd.DataFrame,
    models: str = POCKET,
    height: int = 380,
) -> go.Figure:
    """Return a figure with its title, subtitle, caption, sentence and table of numbers, in the common look.

    Texts may hold escaped names; caption and sentence are kept as plain text in layout.meta (they are escaped again
    where they are shown), the table there as HTML. The subtitle ends by naming the models, if any, escaped here.
    """
    lines = textwrap.wrap("; ".join(filter(None, (subtitle, escape(models, 80)))), int(LINE_LETTERS / _times))
    top = _times * (78 + 18 * len(lines))
    fig.update_layout(
        template=_template(_times),
        title={"text": f"<b>{title}</b>", "subtitle": {"text": "<br>".join(lines)}},
        height=top - 78 + height + (_times - 1) * (60 + 0.35 * height),
        margin={"t": top, "l": 20, "r": 24 * _times, "b": 60 * _times},
        legend={"title": {"text": ""}},
        meta={"caption": html.unescape(caption), "sentence": html.unescape(sentence), "table": table(numbers)},
    )
    return fig


def caption(fig: go.Figure) -> str:
    """Return what the figure shows and how its intervals were made."""
    return fig.layout.meta["caption"]


def sentence(fig: go.Figure) -> str:
    """Return the one sentence that says what to see, with its uncertainty."""
    return fig.layout.meta["sentence"]


def table(of: go.Figure | pd.DataFrame) -> str:
    """Return the numbers of a figure, or a frame, as an HTML table; all text is escaped."""
    if isinstance(of, go.Figure):
        return of.layout.meta["table"]
    of = with_spoken_names(of)
    rows, n_more = of.head(TABLE_ROWS).to_numpy(dtype=object).tolist(), len(of) - TABLE_ROWS
    head = "".join(f'<th scope="col">{html.escape(column)}</th>' for column in of.columns)
    body = "".join("<tr>" + "".join(f"<td>{_cell(value)}</td>" for value in row) + "</tr>" for row in rows)
    more = f"<p>{n_more} more rows are not shown.</p>" if n_more > 0 else ""
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{more}"


def _cell(value: object) -> str:
    if pd.api.types.is_scalar(value) and pd.isna(value):
        return ""
    if isinstance(value, float):
        value = f"{round(value, 3) + 0.0:.3f}".rstrip("0").rstrip(".")
    return html.escape(str(value))


def plotly_script() -> str:
    """Return the script element that holds plotly.js; a page needs it once, before its first figure."""
    settings = "window.PlotlyConfig = {MathJaxConfig: 'local'};"
    return f'<script type="text/javascript">{settings}</script><script>{get_plotlyjs()}</script>'


def use_renderer() -> None:
    """Put plotly.js into the notebook, in the setup cell, so that an exported page shows its figures offline."""
    global _script_shown
    from IPython.display import display

    scripts = f"{plotly_script()}<script>{FOLLOW}</script>"
    display({"text/html": scripts, "text/plain": "Figures are drawn by plotly."}, raw=True)
    _script_shown = True


def to_html(fig: go.Figure, tools: bool = True) -> str:
    """Return the figure, without plotly.js, as an HTML element with the sentence as its alternative text."""
    config = {"displaylogo": False} if tools else {"displayModeBar": False}
    alone = {"full_html": False, "include_plotlyjs": False, "include_mathjax": False}
    drawn = fig.to_html(config=config, default_width="100%", **alone)
    return f'<div role="img" aria-label="{html.escape(sentence(fig))}">{drawn}</div>'


def notes_html(fig: go.Figure) -> str:
    """Return sentence, caption and the folded table of a figure as HTML."""
    return (
        f"<p><strong>{html.escape(sentence(fig))}</strong></p><p><em>{html.escape(caption(fig))}</em></p>"
        f"<details><summary>The numbers as a table</summary>"
        f'<div style="overflow-x:auto">{table(fig)}</div></details>'
    )


def show(fig: go.Figure) -> None:
    """Display a figure in a notebook: the figure, then its sentence, caption and table."""
    from IPython.display import display

    if not _script_shown:
        use_renderer()
    drawn = {"application/vnd.plotly.v1+json": json.loads(fig.to_json()), "text/html": to_html(fig)}
    display(drawn | {"text/plain": sentence(fig)}, raw=True)
    display({"text/html": notes_html(fig), "text/plain": caption(fig)}, raw=True)


def save_png(fig: go.Figure, path: str | Path, width: int = 960) -> Path:
    """Save a figure as a picture with Chromium or Chrome."""
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        raise DataError(f"A picture needs one of {', '.join(BROWSERS)}; install one, or read the table instead.")
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
        raise DataError(f"{browser} did not draw {path.name}: {done.stderr.strip()[-200:]}; try it by hand.")
    return path
