"""What if pairs were formed by another rule or signal? Answered from stored outcomes; no model is asked anything."""

from collections.abc import Mapping
from functools import cached_property

import numpy as np
import pandas as pd
from traitlets import Float, HasTraits, Int, TraitError, Unicode, validate

from workbench.loop.pairs import DECIDED, build_pairs
from workbench.methods import ALL
from workbench.notebook.pair_view import Evidence
from workbench.runs.recipe import Pairs, Recipe
from workbench.signals.scores import share_right
from workbench.tasks.task import Task

SETTINGS = ("min_gap", "min_probability", "quantile", "n_question_pairs")
BINS = np.linspace(0.5, 1.0, 11)
RIGHT_ANSWERS, FIRST_HALF, OTHER_HALF = "right answers", "one_shot, first half", "one_shot, other half"


class WhatIf(HasTraits):
    """The pairs that another rule or signal would give, beside those of the run.

    Args:
        recipe: The run's; its rule is where this begins.
        tasks: As the recipe names them.
        evidence: What the run has stored.
        pairs: The run's pairs, before reviews.

    Example:
        what_if = wb.inspect(work).what_if
        what_if.min_probability = 0.9
        what_if.summary()
    """

    signal = Unicode(help="which score tells best from worst")
    min_gap = Float(min=0.0, help="least difference of scores")
    min_probability = Float(min=0.0, max=0.999, help="least probability that chosen is better")
    quantile = Float(min=0.01, max=0.5, help="share of questions at each end that may form pairs of questions")
    n_question_pairs = Int(min=0, help="pairs of questions a task")

    def __init__(self, recipe: Recipe, tasks: Mapping[str, Task], evidence: Evidence, pairs: pd.DataFrame):
        super().__init__(**{name: getattr(recipe.pairs, name) for name in SETTINGS})
        self.recipe, self.tasks, self.evidence, self.now = recipe, dict(tasks), evidence, pairs
        self.own_signal = str(evidence.signals["signal"].iloc[0]) if len(evidence.signals) else ""
        self._built: dict[tuple, pd.DataFrame] = {}
        if not self.min_gap and not self.min_probability:
            self._built[self.own_signal, self.quantile, self.n_question_pairs] = pairs
        self._changed: dict[tuple, pd.DataFrame] = {}
        self.signal = self.own_signal

    def __repr__(self) -> str:
        return f"WhatIf: {self.facts()}"

    @validate("signal")
    def _known(self, proposal):
        if proposal["value"] not in self.signals:
            raise TraitError(
                f"signal must be one of {', '.join(self.signals)}, which are stored, got {proposal['value']!r}."
            )
        return proposal["value"]

    @cached_property
    def signals(self) -> list[str]:
        """Signals that pairs can be formed by, without asking a model."""
        probed = [FIRST_HALF, OTHER_HALF] if len(self.evidence.probes) else []
        return [*dict.fromkeys(self.evidence.signals["signal"]), *probed, RIGHT_ANSWERS]

    @property
    def pairs(self) -> pd.DataFrame:
        """The pairs of the present state, before reviews."""
        # Both thresholds only leave pairs out, so one set of pairs serves every place of their sliders.
        pairs = self._all(self.signal, self.quantile, self.n_question_pairs)
        enough = ~(pairs["p_chosen"] < self.min_probability) & (pairs["score_gap"] >= self.min_gap)
        return pairs[enough].reset_index(drop=True)

    def _all(self, signal: str, quantile: float, n_question_pairs: int) -> pd.DataFrame:
        key = (signal, quantile, n_question_pairs)
        if key not in self._built:
            rule = Pairs(quantile=quantile, n_question_pairs=n_question_pairs)
            questions, drafts, _, probes, _ = self.evidence
            frames, rules = (questions, drafts, self._scores(signal), probes), ALL[self.recipe.method].pair_rules
            self._built[key] = build_pairs(rules, self.tasks, *frames, rule, self.recipe.seeds[0])
        return self._built[key]

    def _scores(self, signal: str) -> pd.DataFrame:
        """Return the frame of signals of that name; some are worked out from other frames."""
        drafts, signals, probes = self.evidence.drafts, self.evidence.signals, self.evidence.probes
        if signal in (FIRST_HALF, OTHER_HALF):
            from workbench.models.start import students_of  # brings torch, which looking at pairs does not need

            items = sorted(probes["item_id"].unique())[signal == OTHER_HALF :: 2]
            own = probes[probes["item_id"].isin(items)]
            return share_right(own, drafts, students_of(self.recipe))
        if signal == RIGHT_ANSWERS:
            checked = drafts[drafts["gold"] != ""]
            right = dict(zip(checked["draft_id"], checked["correct"].astype(float), strict=True))
            right |= checked.groupby("question_id")["correct"].mean().to_dict()
            own = signals[signals["signal"] == self.own_signal]
            return own.assign(value=own["draft_id"].map(right).fillna(0.0))
        return signals[signals["signal"] == signal]

    def change(self) -> pd.DataFrame:
        """Return which pairs change against the run's: pair_id, change (lost, new, turned) and what the pairs hold."""
        state = (id(self.now), *(getattr(self, name) for name in ("signal", *SETTINGS)))
        if state not in self._changed:
            now, then = self.now, self.pairs
            before, after = _sides(now), _sides(then)
            # Texts as objects: pandas is slow to look for its own kind of text among as many.
            same = then["pair_id"].astype(object).isin(now["pair_id"].astype(object))
            lost, new = now[~before.isin(after)], then[~after.isin(before)]
            parts = {"lost": lost, "new": new, "turned": then[after.isin(before) & ~same]}
            # One state at a time: a slider passes through many.
            changed = [part.assign(change=change) for change, part in parts.items()]
            self._changed = {state: pd.concat(changed, ignore_index=True)}
        return self._changed[state]

    def summary(self) -> dict:
        """Return in numbers how the pairs would differ: now and then, and how many are lost, new and turned."""
        changed = self.change()["change"].value_counts()
        counts = {name: int(changed.get(name, 0)) for name in ("lost", "new", "turned")}
        return {"now": _numbers(self.now), "then": _numbers(self.pairs), **counts, "overrides": self.overrides()}

    def overrides(self) -> str:
        """Return the changed settings as a notebook's overrides parameter takes them; a signal is no setting."""
        rule = self.recipe.pairs
        changed = {name: getattr(self, name) for name in SETTINGS if getattr(self, name) != getattr(rule, name)}
        return "; ".join(f"pairs.{name}={value:g}" for name, value in changed.items())

    def facts(self) -> str:
        """Return the difference to the run's pairs in words."""
        found = self.summary()
        by = "" if self.signal == self.own_signal else f" by {self.signal}"
        now, then = found["now"], found["then"]
        said = ", ".join(f"{found[name]:,} {name}" for name in ("lost", "new", "turned") if found[name])
        return (
            f"{then['pairs']:,} pairs{by} instead of {now['pairs']:,} ({said or 'the same'}); {then['decided']:.0%} "
            f"instead of {now['decided']:.0%} of them are decided (probability {DECIDED} or more)."
        )


def _sides(pairs: pd.DataFrame) -> pd.Series:
    """Return what each pair is, whichever way it is turned."""
    names = ("student", "kind", "chosen_id", "rejected_id")
    rows = zip(*(pairs[name].tolist() for name in names), strict=True)
    return pd.Series(["/".join((student, kind, *sorted(ends))) for student, kind, *ends in rows], pairs.index, object)


def _numbers(pairs: pd.DataFrame) -> dict:
    """Return how many pairs there are, of which kind, and how decided: a share at DECIDED or more, a histogram."""
    known = pairs["p_chosen"].dropna()
    kinds = pairs["kind"].value_counts()
    return {
        "pairs": len(pairs),
        "rationale": int(kinds.get("rationale", 0)),
        "question": int(kinds.get("question", 0)),
        "decided": float((known >= DECIDED).mean()) if len(known) else 0.0,
        "histogram": np.histogram(known.clip(BINS[0], BINS[-1]), BINS)[0].tolist(),
    }
