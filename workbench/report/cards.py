"""The cards of a run: what was made and how, what it showed, what it cost and what did not work.

The words stand in templates (*.md.j2), the numbers come from Facts. Every value that a template shows is escaped, so
that Markdown and HTML show it literally; longer texts of models stand in fences that they cannot close, and none of
them comes into the front matter.
"""

import html
import re
import unicodedata
from collections.abc import Mapping

import pandas as pd
from huggingface_hub import DatasetCard, DatasetCardData, ModelCard, ModelCardData

from workbench.loop.reviews import PAST, newer_than_alignment
from workbench.methods import ALL
from workbench.models.loading import is_hub_id
from workbench.report.card import result_card, templates
from workbench.report.facts import NOT_STATED, Facts, shown_ref, without_places
from workbench.runs.recipe import format_yaml
from workbench.runs.schemas import REVIEWS
from workbench.verdict.in_words import (
    by_arm,
    decision_in_words,
    level,
    opened_in_words,
    percent,
    reliability,
    spell,
    spoken,
)

N_SHOWN = 3


class Fenced(str):
    """A text in a fence, which a template shows as it is."""


def plain(text: object) -> str:
    """Return a text on one line that Markdown and HTML show literally."""
    line = " ".join(_printable(str(text)).split())
    return re.sub(r"([\\`*_\[\]|~#])", r"\\\1", html.escape(line, quote=False))


def fenced(text: str, language: str = "") -> Fenced:
    """Return a text in a fence longer than any in it."""
    longest = max(map(len, re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return Fenced(f"{fence}{language}\n{_printable(text).rstrip()}\n{fence}")


def _printable(text: str) -> str:
    # Control and direction marks could hide, break or reorder what a reader sees.
    hidden = [one for one in set(text) - {"\n", "\t"} if re.match("C|Z[lp]", unicodedata.category(one))]
    return text.replace("\r\n", "\n").translate(dict.fromkeys(map(ord, hidden), "\ufffd"))


def _shown(value: object) -> str:
    if isinstance(value, Fenced):
        return value
    return f"{value:,}" if isinstance(value, int) else plain(value)


TEMPLATES = templates(finalize=_shown, keep_trailing_newline=True)
USED = (by_arm, decision_in_words, fenced, percent, reliability, shown_ref, spell)
TEMPLATES.filters["spoken"] = spoken
TEMPLATES.globals |= {one.__name__: one for one in USED} | {"NOT_STATED": NOT_STATED}


def data_card(facts: Facts, files: Mapping[str, str]) -> DatasetCard:
    """Return the card of the tailored set and its controls, whose files are named by arm, the tailored one first.

    A hub reads one kind of file for all of a card's splits.
    """
    # A split's name has no hyphens, a student's may.
    splits = [{"split": re.sub(r"\W", "_", arm), "path": file} for arm, file in files.items()]
    head = DatasetCardData(
        pretty_name=f"Tailored examples of run {facts.work.name}, student {facts.student}",
        task_categories=["text-generation"],
        tags=["synthetic", "knowledge-distillation", "responsive-teaching"],
        configs=[{"config_name": "default", "data_files": splits}],
        **_licence(facts),
    )
    first = facts.rows[facts.rows["arm"] == "tailored"].head(N_SHOWN)
    return DatasetCard(_content(head, "data_card.md.j2", facts, first=list(first.itertuples())))


def model_card(facts: Facts, kind: str, weights: Mapping[str, str], seed: int | None = None) -> ModelCard:
    """Return the card of the aligned "teacher", or of a "student" trained on the tailored examples of a seed.

    `weights` holds the SHA-256 of each file of weights.
    """
    models = facts.recipe.models
    base = models.teacher if kind == "teacher" else models.students[facts.student]
    head = ModelCardData(
        library_name="transformers",
        pipeline_tag="text-generation",
        base_model=base if is_hub_id(base) else None,
        tags=["trl", "dpo" if kind == "teacher" else "sft", "responsive-teaching"],
        **_licence(facts),
    )
    known = _aligned(facts) if kind == "teacher" else _right(facts, seed)
    content = _content(head, "model_card.md.j2", facts, kind=kind, base=base, weights=weights, seed=seed, **known)
    return ModelCard(content)


def _content(head: DatasetCardData | ModelCardData, template: str, facts: Facts, **known) -> str:
    packages: dict[str, list[str]] = {}
    for name, manifest in facts.manifests.items():
        said = ", ".join(map(" ".join, manifest["versions"].items()))
        packages.setdefault(said, []).append(name)
    text = TEMPLATES.get_template(template).render(
        facts=facts,
        card=next(card for card in result_card(facts.work) if card.student == facts.student),
        opened=opened_in_words(facts.verdict["test_set"]["times_opened"]),
        level=level(facts.block["primary"]["alpha"]),
        method=ALL[facts.recipe.method],
        reviewed=", ".join(f"{(facts.reviews['review'] == one).sum()} {PAST[one]}" for one in REVIEWS),
        newer=newer_than_alignment(facts.work),
        packages=packages,
        recipe=format_yaml(without_places(facts.recipe.model_dump())),
        **known,
    )
    return f"---\n{head.to_yaml()}\n---\n\n{text}"


def _aligned(facts: Facts) -> dict:
    """Return of each kind of pair how many, median gap and probability; and what alignment logged at its last step."""
    pairs, curve = facts.work.read("pairs"), facts.work.read("teachers", "curve")
    kinds = pairs[pairs["student"] == facts.student].groupby("kind")
    own = curve[(curve["student"] == facts.student) & (curve["arm"] == "tailored")].sort_values("step")
    last = own.groupby("metric")["value"].last()
    return {
        "pairs": [[kind, len(own), own["score_gap"].median(), own["p_chosen"].median()] for kind, own in kinds],
        "last": ", ".join(f"{name} {value:.3f}" for name, value in last.items()) or NOT_STATED,
    }


def _right(facts: Facts, seed: int | None) -> dict:
    """Return which share of how many test items the student of one seed answered right."""
    answers = facts.work.read("predictions")
    key = {"student": facts.student, "arm": "tailored", "seed": seed, "shots": facts.block["primary"]["shots"]}
    right = answers.loc[(answers[list(key)] == pd.Series(key)).all(axis=1), "correct"]
    return {"right": right.mean(), "n_items": len(right)}


def _licence(facts: Facts) -> dict[str, str]:
    """Return the front matter's licence: that of all inputs when they share one a hub could know."""
    found = {licence.lower() for licence in facts.licences.values()}
    if NOT_STATED in found:
        return {"license": "unknown"}
    only = found.pop() if len(found) == 1 else ""
    if re.fullmatch(r"[a-z0-9][a-z0-9.+-]*", only):
        return {"license": only}
    return {"license": "other", "license_name": "see-the-card"}
