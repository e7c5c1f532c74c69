"""The report of a run: one page that needs nothing but itself, beside it the executed notebooks, a page each.

Figures of the report are drawn by its own template as SVG, so that the page is small, prints and can be sent; those of
the notebooks are drawn by plotly.js, which lies beside them once.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import nbformat
import pandas as pd
from nbconvert import HTMLExporter
from plotly.offline import get_plotlyjs
from traitlets.config import Config

from workbench.figures.style import ARMS
from workbench.figures.verdict import DECISIONS, block_of
from workbench.methods import ALL
from workbench.report.card import PAGES, ResultCard, comparison_in_words, result_card
from workbench.report.facts import Facts, merged, shown_ref, without_places
from workbench.report.lineage import lineage
from workbench.runs.cache import atomic_write
from workbench.runs.recipe import format_yaml
from workbench.runs.run import Run
from workbench.verdict.in_words import STATES, counted_in, in_order, percent, spell, spoken, states
from workbench.verdict.intervals import UNDECIDED, wilson
from workbench.verdict.verdict import verdict_of

SCRIPT_SAYS = "Figures are drawn by plotly."
PLOTLY = "plotly.min.js"
N_LISTED = 400  # examples in the table to search; with all of them the page would be too large to send
PAGES.globals |= {"percent": percent, "shown_ref": shown_ref}
# The cells alone, their code folded.
CELLS = """{%- extends 'basic/index.html.j2' -%}
{%- block input -%}
<details class="code"><summary>code</summary>{{ cell.source | highlight_code(metadata=cell.metadata) }}</details>
{%- endblock input -%}
"""


def write_report(work: Run, cards: ResultCard | None = None) -> Path:
    """Write the page of a run, and a page of each of its notebooks that was executed; return the first.

    A run without a verdict has no page yet: the last notebook's is returned. `cards`: its card, if it is at hand.
    """
    reports, names = work.path / "reports", ALL[work.recipe.method].notebooks
    links = [notebook_page(path).name for name in names if (path := reports / f"{name}.ipynb").is_file()]
    if links and not work.verdict:
        return reports / links[-1]
    verdict, cards = verdict_of(work), cards or result_card(work)
    facts, blocks = Facts(work, verdict["student"]), [block_of(verdict, card.student) for card in cards]
    page = PAGES.get_template("report.html.j2").render(
        work=work,
        method=ALL[work.recipe.method],
        facts=facts,
        verdict=verdict,
        blocks=blocks,
        cards=cards,
        answers=sorted(Counter(card.rungs[-1].word for card in cards).items()),
        figure=_comparisons(blocks),
        counted=counted_in(verdict),
        tables=_tables(blocks, verdict),
        styles=_styles(work),
        pairs=_pairs(work),
        steps=_steps(facts.manifests),
        recipe=format_yaml(without_places(work.recipe.model_dump())),
        links=links,
        **_written(work),
    )
    atomic_write(reports / "report.html", page.encode("utf-8"))
    return reports / "report.html"


def _chart(rows: Sequence[tuple[str, list, str]], title: str, band: float = 0.0, legend: Sequence = ()) -> dict:
    """Return a figure for the template.

    Args:
        rows: What it is, its marks, and what is said behind them. A mark: value, low, high, colour, shape.
        band: Differences that do not matter, shaded around zero; 0 where values are shares and not differences.
        legend: Name, colour and shape of each kind of mark.
    """
    reach = max((abs(end) for _, marks, _ in rows for mark in marks for end in mark[1:3]), default=1.0)
    top = 1.05 * max(1.3 * band, reach) if band else 1.0
    step = next(step for step in (0.02, 0.05, 0.1, 0.2, 0.25, 0.5) if top / step <= 5)
    least = -top if band else 0.0
    ticks = [place * step for place in range(-5, 6) if least <= place * step <= top]
    return {"rows": rows, "title": title, "band": band, "legend": legend, "least": least, "top": top, "ticks": ticks}


def _comparisons(blocks: Sequence[Mapping]) -> dict:
    """Return the figure of page one: all comparisons of one student, or the primary one of several."""
    main = blocks[0]["comparisons"][0]
    a, b, one = spoken(main["a"]), spoken(main["b"]), len(blocks) == 1
    compared = [row for row in blocks[0]["comparisons"] if row["shots"] == main["shots"]]
    compared = compared if one else [block["comparisons"][0] for block in blocks]
    names = [f"{a} - {spoken(row['b'])}" for row in compared] if one else [block["student"] for block in blocks]
    title = f"What does {a} teaching gain?" if one else f"Whom does {a} teaching help, against {b}?"
    rows = []
    for name, row in zip(names, compared, strict=True):
        held, ends = row["decision_adjusted" if one else "decision"], (row["difference"], row["low"], row["high"])
        said = f"{spell(*ends, 'points').split()[0]} {held.partition(' larger')[0]}"
        rows.append((name, [(*ends, *DECISIONS[held][:2])], said))
    return _chart(rows, title, blocks[0]["primary"]["margin"])


def _tables(blocks: Sequence[Mapping], verdict: Mapping) -> list[tuple[str, dict[str, list[str]]]]:
    """Return right answers, differences and tasks: what stands in each table, and by row a cell for each student."""
    main = blocks[0]["comparisons"][0]
    against = f"{spoken(main['a'])} - {spoken(main['b'])}"
    heads = (f"{counted_in(verdict)}, {main['shots']} shots, %", "difference, points", f"{against} by task, points")
    columns = []
    for block in blocks:
        right = {spoken(arm): _cell(row, "accuracy") + _in_form(row) for arm, row in block["arms"].items()}
        right |= {"most frequent answer": f"{100 * verdict['majority']:.0f}"} if "majority" in verdict else {}
        others = {comparison_in_words(row, main["shots"])[0]: _cell(row) for row in block["comparisons"][1:]}
        tasks = {f"{spoken(row['task'])}, {row['n_items']} items": _cell(row) for row in block["per_task"]}
        columns.append((right, others, tasks))
    tables = []
    for head, own in zip(heads, zip(*columns, strict=True), strict=True):
        names = dict.fromkeys(name for column in own for name in column)
        tables.append((head, {name: [column.get(name, "") for column in own] for name in names}))
    return tables


def _in_form(row: Mapping) -> str:
    return f"; {100 * row['in_form']:.0f} in form" if "in_form" in row else ""


def _cell(row: Mapping, value: str = "difference") -> str:
    """Return a number with its interval, without the unit, and its decision where there is one."""
    number = spell(row[value], row["low"], row["high"], "points" if value == "difference" else "%")
    held = row.get("decision_adjusted", row.get("decision", UNDECIDED))
    return f"{re.sub(' (%|points)', '', number)} {'' if held == UNDECIDED else held.partition(' larger')[0]}".strip()


def _styles(work: Run) -> list[dict]:
    """Return a figure for each student of the styles that was written in for it, by arm; [] where none is known."""
    examples = work.read("examples").query("kept") if work.has("examples") else pd.DataFrame({"arm": [], "style": []})
    legend = [(spoken(arm), *ARMS[arm][:2]) for arm in ARMS if arm in set(examples["arm"])]
    charts = []
    for student in work.recipe.models.students if examples["style"].ne("").any() and len(legend) > 1 else ():
        own = examples[examples["student"].isin([student, ""]) & examples["arm"].isin(ARMS)]
        counts = pd.crosstab(own["style"], own["arm"].map(spoken))
        rows = []
        for style, of_style in in_order(counts.reset_index(), "style").set_index("style").iterrows():
            shares = [(of_style[name] / counts[name].sum(), counts[name].sum(), *look) for name, *look in legend]
            marks = [(share, *wilson(share, n), *look) for share, n, *look in shares]
            rows.append((style or "none known", marks, " / ".join(f"{100 * mark[0]:.0f}" for mark in marks)))
        charts.append(_chart(rows, f"Written for {student}", legend=legend))
    return charts


def _pairs(work: Run) -> list[dict]:
    """Return the pair with the widest gap and one in the middle, of the first student, with what they answer."""
    pairs = work.read("pairs").sort_values("score_gap", ascending=False) if work.has("pairs") else pd.DataFrame()
    if pairs.empty:
        return []
    student, kind = next(iter(work.recipe.models.students)), pairs["kind"].iloc[0]
    own = pairs[(pairs["student"] == student) & (pairs["kind"] == kind)]
    drafts = work.read("drafts") if kind == "rationale" and work.has("drafts") else pd.DataFrame()
    asked = dict(zip(drafts["draft_id"], drafts["question"], strict=True)) if len(drafts) else {}
    shown = own.iloc[sorted({0, len(own) // 2})[: len(own)]].to_dict("records")
    return [pair | {"question": asked.get(pair.get("chosen_id"), pair["prompt"])} for pair in shown]


def _steps(manifests: Mapping[str, Mapping]) -> dict[str, Counter]:
    """Return what each step counted, with its seconds and tokens; those of rounds and parts together."""
    rows: dict[str, Counter] = {}
    for name, made in manifests.items():
        sums = rows.setdefault(name.partition("/")[0], Counter())
        sums.update(merged(made["counts"]) | {"_seconds": round(made["seconds"]), "_tokens": made["tokens"]})
    return rows


def _written(work: Run) -> dict:
    """Return what was written in each arm by the state of its answers, some to search, two to read, and one's trace."""
    found = {"written": {}, "listed": [], "shown": [], "tree": "", "n_written": 0, "STATES": STATES}
    if work.has("examples"):
        examples = in_order(work.read("examples"), "arm")
        kept = examples[examples["kept"]].assign(state=lambda own: states(own))
        groups = kept.groupby(["arm", "student"], sort=False)
        listed = groups.head(max(1, N_LISTED // groups.ngroups)).head(N_LISTED)
        shown = kept[kept["arm"] == work.recipe.evaluation.primary.a].drop_duplicates("state")
        shown = shown.sort_values("state", key=lambda own: own.map(STATES.index)).head(2)
        found |= {"listed": listed.to_dict("records"), "shown": shown.to_dict("records"), "n_written": len(kept)}
        for arm, own in examples.groupby("arm", sort=False):
            counts = kept.loc[kept["arm"] == arm, "state"].value_counts(normalize=True)
            found["written"][arm] = {"kept": int(own["kept"].sum()), "dropped": int((~own["kept"]).sum()), **counts}
    if work.has("rows"):
        rows = work.read("rows")
        own = rows[rows["arm"] == work.recipe.evaluation.primary.a]["row_id"]
        found["tree"] = lineage(work, own.iloc[0])._repr_html_() if len(own) else ""
    return found


def notebook_page(executed: Path) -> Path:
    """Write an executed notebook as a page beside it, with plotly.js as a file of its own there; return the page.

    HTML in its outputs comes from our own cells, which escape the text of models.
    """
    settings = "window.PlotlyConfig = {MathJaxConfig: 'local'};"
    atomic_write(executed.with_name(PLOTLY), f"{settings}\n{get_plotlyjs()}".encode())
    # The values that a run used stand in its recipe.
    no_parameters = {"enabled": True, "remove_cell_tags": ["parameters", "injected-parameters"]}
    hide = {"exclude_input_prompt": True, "exclude_output_prompt": True, "exclude_anchor_links": True}
    exporter = HTMLExporter(raw_template=CELLS, config=Config({"TagRemovePreprocessor": no_parameters}), **hide)
    node = nbformat.read(executed, as_version=4)
    for cell in node.cells:
        # Without the plotly.js that a notebook's first cell displays.
        if "outputs" in cell:
            cell.outputs = [one for one in cell.outputs if one.get("data", {}).get("text/plain") != SCRIPT_SAYS]
    cells = exporter.from_notebook_node(node)[0]
    # Notebooks link each other; studies lie in a folder there, and beside the others here.
    cells = re.sub(r'href="(?:\.\./|studies/)?(\w+)\.ipynb"', r'href="\1.html"', cells)
    path = executed.with_suffix(".html")
    page = PAGES.get_template("notebook.html.j2").render(title=spoken(path.stem), cells=cells, plotly=PLOTLY)
    atomic_write(path, page.encode("utf-8"))
    return path
