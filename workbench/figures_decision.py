"""Figures that explain the decision: what sign flips alone would give, and how often each answer comes out."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from workbench.figures_base import CHOSEN, CONTROL, LIGHT, OUTLINE, error_bars, finish, named
from workbench.figures_verdict import DECISIONS, block_of
from workbench.inference import sign_flip_null, sign_flip_p_value, wilson
from workbench.verdict import paired

BINS = 61
POCKET = "pocket models"


def sign_flips(predictions: pd.DataFrame, verdict: Mapping, student: str = "", models: str = POCKET) -> go.Figure:
    """Draw the differences that all sign patterns of the primary comparison would give, and the one that was seen."""
    block = block_of(verdict, student)
    primary = block["primary"]
    a, b = named(primary["a"]), named(primary["b"])
    own = predictions[predictions["student"] == block["student"]]
    table = paired(own, primary["a"], primary["b"], primary["shots"])
    sums = table.to_numpy().sum(axis=0)
    seen = 100 * sums.sum() / table.size
    # A flip changes the sum by an even number, so every other sum cannot be.
    null, unit = sign_flip_null(sums)[::2], 100 / table.size
    points = unit * (2 * np.arange(len(null)) - (len(null) - 1))
    reach = max(4.5 * np.sqrt(null @ points**2), 1.15 * abs(seen), unit)
    near = np.flatnonzero(np.abs(points) <= reach)
    width = 2 * unit * -(-len(near) // BINS)
    edges = np.arange(points[near[0]] - unit, points[near[-1]] + unit + width / 2, width)
    middles = (edges[:-1] + edges[1:]) / 2
    extreme = np.abs(points) >= abs(seen) - 1e-9
    shares = {far: 100 * np.histogram(points[part], edges, weights=null[part])[0] for far, part in _parts(extreme)}
    fig = go.Figure()
    for far, label, colour, pattern in (
        (False, "nearer to zero", LIGHT, ""),
        (True, "as far from zero as the difference seen", CHOSEN, "/"),
    ):
        fig.add_bar(
            x=middles,
            y=shares[far],
            width=width,
            name=label,
            marker={"color": colour, "pattern": {"shape": pattern}, "line": OUTLINE},
        )
    fig.add_vline(x=seen, line={"color": CONTROL, "dash": "dash", "width": 2}, annotation_text=f"seen {seen:+.1f}")
    fig.update_layout(barmode="stack", bargap=0)
    fig.update_xaxes(title_text="difference in right answers (points)", range=[-reach, reach])
    fig.update_yaxes(title_text="sign patterns (%)")
    p = sign_flip_p_value(sums)
    share = f"{100 * p:.1f} %" if p >= 0.001 else "less than 0.1 %"
    return finish(
        fig,
        f"Could luck alone put {a} {'ahead' if seen >= 0 else 'behind'} like this?",
        f"{(sums != 0).sum()} of {len(sums)} items differ between {a} and {b}, {primary['shots']} shots, "
        f"{len(table)} seeds; all sign patterns, counted exactly; {models}",
        "If the two arms were alike, every item's difference could as well have had the other sign. The bars are the "
        "differences that all choices of signs would give, all items with their own sizes. The seeds are taken as they "
        "are: whether other seeds would agree is what the interval adds.",
        f"If {a} and {b} were alike, {share} of all sign patterns would lie as far from zero as the {seen:+.1f} points "
        f"seen for {named(block['student'])} (that share is the p-value).",
        pd.DataFrame({"difference": middles, "nearer": shares[False], "as_far": shares[True]}),
    )


def _parts(extreme: np.ndarray) -> list[tuple[bool, np.ndarray]]:
    return [(False, ~extreme), (True, extreme)]


def decision_shares(counts: Mapping[str, int], facts: str, models: str = POCKET) -> go.Figure:
    """Draw how often each decision came out in simulated runs.

    Args:
        counts: Decision -> number of runs.
        facts: The simulated truth in words.
    """
    n = sum(counts.values())
    rows = [
        {"decision": said, "share": count / n} | dict(zip(("low", "high"), wilson(count / n, n), strict=True))
        for said, count in counts.items()
    ]
    table = pd.DataFrame(rows)
    fig = go.Figure()
    for row in table.itertuples():
        colour = DECISIONS[row.decision][1]
        fig.add_bar(
            x=[100 * row.share],
            y=[row.decision],
            orientation="h",
            marker={"color": colour, "pattern": {"shape": "/" if row.decision == "undecided" else ""}},
            error_x=error_bars(100 * table.loc[[row.Index], ["share", "low", "high"]], "share", "#1F1F1F"),
            showlegend=False,
        )
    fig.update_xaxes(title_text="simulated runs (%)", range=[0, 100])
    fig.update_yaxes(autorange="reversed")
    said = "; ".join(
        f"{row.decision} {100 * row.share:.0f} % ({100 * row.low:.0f} to {100 * row.high:.0f} %)"
        for row in table.itertuples()
    )
    return finish(
        fig,
        "How often does each decision come out?",
        f"{facts}; {n} simulated runs, 95 % intervals (Wilson); spread as seen with {models}",
        "Every simulated run has the true difference named above. What varies from run to run are its items, its seeds "
        "and chance, as much as they were seen to vary here.",
        f"{facts}: {said}.",
        table,
        height=330,
    )
