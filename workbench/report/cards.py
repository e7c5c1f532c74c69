"""The cards of a run in Markdown: what was made and how, what it showed, what it cost and what did not work.

Everything said is read from the run's own frames, manifests, verdict and timings. Texts of models stand in fences that
they cannot close, all other texts are escaped, and none of them comes into the front matter.

Markdown that texts of models cannot break: escaped lines, fences, tables and lists.
"""

import html
import re
import unicodedata
from collections.abc import Iterable, Mapping

import pandas as pd
from huggingface_hub.utils import yaml_dump

from workbench.loop.reviews import PAST, newer_than_alignment
from workbench.report.facts import NOT_STATED, Facts, is_hub_id, shown_ref, without_places
from workbench.runs.cache import read_json
from workbench.runs.recipe import TAILORED_FOR, format_yaml
from workbench.runs.run import NOTEBOOKS
from workbench.runs.schemas import REVIEWS
from workbench.verdict.in_words import decision_in_words, opened_in_words, reliability, sentence
from workbench.verdict.intervals import clustered_mean, wilson


def plain(text: object) -> str:
    """Return a text on one line that Markdown and HTML show literally."""
    line = " ".join(_printable(str(text)).split())
    return re.sub(r"([\\`*_\[\]|~#])", r"\\\1", html.escape(line, quote=False))


def fenced(text: str, language: str = "") -> str:
    """Return a text in a fence longer than any in it."""
    longest = max(map(len, re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{_printable(text).rstrip()}\n{fence}"


def _printable(text: str) -> str:
    # Control and direction marks could hide, break or reorder what a reader sees.
    return "".join(one if one in "\n\t" or not _is_hidden(one) else "\ufffd" for one in text.replace("\r\n", "\n"))


def _is_hidden(character: str) -> bool:
    kind = unicodedata.category(character)
    return kind.startswith("C") or kind in ("Zl", "Zp")


def table(head: Iterable[object], rows: Iterable[Iterable[object]]) -> str:
    """Return a Markdown table of escaped cells."""
    names = [plain(name) for name in head]
    lines = [names, ["---"] * len(names), *([_cell(value) for value in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(value: object) -> str:
    return f"{value:,}" if isinstance(value, int) else plain(value)


def bullets(lines: Iterable[str]) -> str:
    """Return a Markdown list of escaped lines."""
    return "\n".join(f"- {plain(line)}" for line in lines)


UNALIGNED = "the teacher as it was"
WRITERS = {
    "untailored": UNALIGNED,
    "tailored": "the teacher aligned to the student",
    "random_pairs": "a teacher aligned to the same pairs, half of them turned round",
    "question_only": "a teacher aligned to the pairs of questions alone",
    "rationale_only": "a teacher aligned to the pairs of rationales alone",
    "decided_pairs": "a teacher aligned to the pairs that the probes leave little doubt about",
    "fewer_pairs": "a teacher aligned to as many pairs as are decided, drawn at random",
    "by_training_loss": "a teacher aligned to pairs by the student's training loss instead of influence",
    "random_rationale": f"{UNALIGNED}: a random draft of each question",
    "most_preferred": f"{UNALIGNED}: the draft of each question that the student preferred",
    "task_consistent": f"{UNALIGNED}: drafts of the technique that the student preferred in the task",
}
N_SHOWN = 3
# Names in a manifest's counts of what was lost or could not be used.
LOST = re.compile(r"dropped|without|not readable|tied|below|equal texts")
SEVERAL_LIMITS = (
    "The texts were written by a language model and not read by a person; some of their answers are wrong.",
    "Right answers are counted by rule, where the task has a rule; how good the reasoning is was not judged.",
    "Intervals are over the seeds and items of this run. They leave out the choice of tasks, models, the preference "
    "set and the settings of training.",
    "Preference was measured on one student; another student may prefer something else.",
)
POCKET_LIMIT = "The models are tiny ones, made for trying the method; nothing here says what larger models would do."
HOW_ASKED = {
    "arte": "The teacher drafted questions and several rationales of each; the student answered held-out preference "
    "questions with each draft as its one demonstration; best and worst drafts became pairs",
    "montessori": "The teacher wrote instructions, several to each prompt, and responses; what one optimiser step on "
    "each did to the student's loss on reference answers was measured; siblings that help and siblings that harm "
    "became pairs",
}
SOURCE = {"arte": "ARTE, arXiv:2406.19227", "montessori": "Montessori-Instruct, arXiv:2410.14208"}


def data_card(facts: Facts, files: Mapping[str, str]) -> str:
    """Return the card of the tailored set and its controls.

    Args:
        facts: The run and its student.
        files: Arm -> Parquet file, the tailored one first. A hub reads one kind of file for all of a card's splits.
    """
    rows, name = facts.rows, f"{facts.work.name}, student {facts.student}"
    # A split's name has no hyphens, a student's may.
    splits = [{"split": re.sub(r"\W", "_", arm), "path": file} for arm, file in files.items()]
    head = {
        "pretty_name": f"Tailored examples of run {name}",
        **_licence_line(facts),
        "task_categories": ["text-generation"],
        "tags": ["synthetic", "knowledge-distillation", "responsive-teaching"],
        "configs": [{"config_name": "default", "data_files": splits}],
    }
    first = rows[rows["arm"] == "tailored"].head(N_SHOWN)
    shown = "\n\n".join(fenced(f"{row.prompt}\n\n{row.completion}") for row in first.itertuples())
    return _card(
        head,
        f"# Tailored examples of run {plain(name)}",
        f"Questions and worked answers that a teacher model wrote for the student model {plain(facts.student)} after "
        "it was aligned to what this student learns from best in its context, beside the controls of the comparison.",
        _verdict_part(facts),
        _splits_part(facts),
        "## Examples\n\nPrompt and completion of the first rows, as a model wrote them.\n\n" + shown,
        *_common_parts(facts),
    )


def model_card(facts: Facts, kind: str, weights: Mapping[str, str], seed: int | None = None) -> str:
    """Return the card of the aligned teacher or of a student trained on tailored examples.

    Args:
        facts: The run and its student.
        kind: "teacher" or "student".
        weights: File name -> SHA-256 of the weights.
        seed: Of the student's training.
    """
    models = facts.recipe.models
    base = models.teacher if kind == "teacher" else models.students[facts.student]
    title, what = _model_words(facts, kind, base, seed)
    head = {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        **_licence_line(facts),
        **({"base_model": base} if is_hub_id(base) else {}),
        "tags": ["trl", "dpo" if kind == "teacher" else "sft", "responsive-teaching"],
    }
    sums = table(["file", "SHA-256"], weights.items())
    parts = [_pairs_part(facts)] if kind == "teacher" else []
    return _card(head, title, what, _verdict_part(facts), *parts, f"## Weights\n\n{sums}", *_common_parts(facts))


def _model_words(facts: Facts, kind: str, base: str, seed: int | None) -> tuple[str, str]:
    run, student = plain(facts.work.name), plain(facts.student)
    prompt = "Prompts go through the chat template that is saved with the tokenizer."
    if kind == "teacher":
        settings = facts.recipe.alignment
        what = (
            f"{plain(shown_ref(base))}, aligned by DPO (beta {settings.beta:g}) to the one-shot preference of the "
            f"student {student}: among its own drafts, those after which this student answered held-out questions best."
        )
        return f"# Teacher aligned to student {student}, run {run}", f"{what} {prompt}"
    own = facts.work.read("predictions")
    shots = facts.block["primary"]["shots"]
    key = {"student": facts.student, "arm": "tailored", "seed": seed, "shots": shots}
    right = own.loc[(own[list(key)] == pd.Series(key)).all(axis=1), "correct"]
    what = (
        f"{plain(shown_ref(base))}, fine-tuned on the tailored examples of seed {seed}. With {shots} shots it answered "
        f"{percent(right.mean())} of {len(right)} test items right; the decision below is over all seeds."
    )
    return f"# Student {student} trained on tailored examples, run {run}, seed {seed}", f"{what} {prompt}"


def _common_parts(facts: Facts) -> list[str]:
    parts = (_trouble_part, _reviews_part, _writing_part, _training_part, _making_part, _cost_part, _licence_part)
    limits = [*SEVERAL_LIMITS, *([POCKET_LIMIT] if facts.recipe.profile == "pocket" else [])]
    return [*(part(facts) for part in parts), "## Limits\n\n" + bullets(limits)]


def _verdict_part(facts: Facts) -> str:
    said = plain(sentence({**facts.block, "models": facts.verdict["models"]}))
    test_set, primary = facts.verdict["test_set"], facts.block["primary"]
    opened, now = test_set["times_opened"], facts.looks
    later = f" By the day of this card it has been opened {now} times." if now > opened else ""
    looks = f"Test set: {plain(test_set['name'])}, {test_set['sha256']}. {plain(opened_in_words(opened))}{later}"
    return f"## Decision\n\n{said}\n\nRule, fixed beforehand: {plain(primary['rule'])}.\n\n{looks}"


def _writer(arm: str) -> str:
    other = arm.removeprefix(TAILORED_FOR)
    return WRITERS[arm] if other == arm else f"the teacher aligned to student {other}"


def _splits_part(facts: Facts) -> str:
    lines = []
    for arm in facts.arms:
        own = facts.rows[facts.rows["arm"] == arm]
        by_seed = ", ".join(f"{n} (seed {seed})" for seed, n in own.groupby("seed").size().items())
        lines.append([arm, _writer(arm), len(own), by_seed, int(own["n_tokens"].sum())])
    seeds = (
        "Every seed is a draw of its own. To repeat the comparison, train on one seed at a time: within a seed and "
        "task all splits have about the same number of completion tokens."
    )
    head = ["split", "written by", "rows", "rows of a seed", "completion tokens"]
    uses = (
        "`trl.jsonl` has prompt and completion as messages, so that TRL puts both through the chat template and trains "
        "on the completion alone, as the run did. `conversational.jsonl` has whole conversations, for Unsloth and "
        "others. `llamafactory.json` is in LLaMA-Factory's alpaca form, described in `dataset_info.json`: give this "
        "folder as its dataset_dir. Files of a control have its name in theirs. The Parquet files have the texts as "
        "trained on, with task, seed, the answer read from the completion, the answer by rule (gold) and whether they "
        "agree. In the other files, blanks around a completion are left out, because chat templates put their own."
    )
    return f"## Splits and files\n\n{table(head, lines)}\n\n{seeds}\n\n{uses}"


def _pairs_part(facts: Facts) -> str:
    pairs = facts.work.read("pairs")
    own = pairs[pairs["student"] == facts.student]
    lines = [
        [kind, len(part), f"{part['score_gap'].median():.2f}", f"{part['p_chosen'].median():.2f}"]
        for kind, part in own.groupby("kind")
    ]
    curve = facts.work.stage("alignment").read("curve")
    curve = curve[(curve["student"] == facts.student) & (curve["arm"] == "tailored")].sort_values("step")
    last = ", ".join(f"{name} {value:.3f}" for name, value in curve.groupby("metric")["value"].last().items())
    head = ["kind of pair", "pairs", "median gap of the preference scores", "median probability that chosen is better"]
    shown = table(head, lines)
    return f"## Pairs\n\n{shown}\n\nAt the last step logged: {plain(last) or NOT_STATED}."


def _reviews_part(facts: Facts) -> str:
    """Say what people made of the pairs; who they are stays in the run's folder."""
    used = facts.reviews
    if used.empty:
        said = "No person reviewed the pairs: they are as the student's answers formed them."
    else:
        counts = ", ".join(f"{(used['review'] == one).sum()} {PAST[one]}" for one in REVIEWS)
        said = (
            f"People reviewed {len(used)} of the pairs: {counts}. A flipped pair was turned round and a dropped one "
            f"left out before the teachers of run {plain(facts.work.name)} were aligned (alignment "
            f"{facts.manifests['alignment']['fingerprint']})."
        )
    return "## Reviews by people\n\n" + " ".join(filter(None, [said, plain(newer_than_alignment(facts.work))]))


def _writing_part(facts: Facts) -> str:
    lines, judged = [], facts.judged
    for arm in (arm for arm in WRITERS if arm in set(facts.examples["arm"])):
        own = facts.examples[facts.examples["arm"] == arm]
        dropped = own.loc[~own["kept"], "drop_reason"].value_counts()
        reasons = "; ".join(f"{n} {why}" for why, n in dropped.items()) or "none"
        line = [arm, WRITERS[arm], len(own), int(own["kept"].sum()), reasons, _right(own)]
        lines.append([*line, *([] if judged is None else [_agreed(judged.examples[judged.examples["arm"] == arm])])])
    head = ["arm", "written by", "written", "kept", "dropped", "right by rule, of those kept"]
    head += [] if judged is None else [f"the judge ({shown_ref(facts.recipe.models.judge)}) comes to the same answer"]
    return (
        "## What the teachers wrote, before and after alignment\n\n"
        f"{table(head, lines)}\n\nIntervals are 95 %, t over questions (Wilson's where all are alike). All seeds "
        "together; of what was kept, training took as many tokens from each arm as the smallest arm had."
        + ("" if judged is None else f"\n\nThe judge reads the question alone. {plain(reliability(judged))}")
    )


def _right(examples: pd.DataFrame) -> str:
    checked = examples[examples["kept"] & (examples["gold"] != "")]
    return _share(checked["correct"], checked["question_id"]) if len(checked) else "no rule"


def _agreed(judged: pd.DataFrame) -> str:
    known = judged[judged["agrees"].notna()]
    said = _share(known["agrees"].astype(float), known["question_id"]) if len(known) else "none"
    silent = len(judged) - len(known)
    return f"{said}; {silent} without an answer" if silent else said


def _share(values: pd.Series, questions: pd.Series) -> str:
    mean, low, high = clustered_mean(values, questions)
    if not low < high:
        # One question, or all alike, which has no spread of its own.
        low, high = wilson(mean, questions.nunique())
    return f"{percent(mean)} of {len(values)}, {percent(max(low, 0))} to {percent(min(high, 1))}"


def _training_part(facts: Facts) -> str:
    block = facts.block
    arms = [
        [arm, percent(row["accuracy"]), _range(row), row["n_seeds"], row["training_tokens"], row["steps"]]
        for arm, row in block["arms"].items()
    ]
    compared = [
        [
            f"{row['a']} - {row['b']}",
            row["shots"],
            points(row["difference"]),
            _range(row, points),
            decision_in_words(row),
        ]
        for row in block["comparisons"]
    ]
    shots, level = block["primary"]["shots"], f"{100 * (1 - block['primary']['alpha']):g} %"
    head = [f"arm, {shots} shots", "right answers", level, "seeds", "training tokens", "steps"]
    return (
        f"## What training on it did\n\n{table(head, arms)}\n\n"
        + table(["comparison", "shots", "difference in points", level, "decision"], compared)
        + "\n\nTokens and steps are the mean of one training. Intervals are over seeds and items."
    )


def troubles(facts: Facts) -> list[str]:
    """Return what did not work, one sentence each: comparisons not won, harm by training, what was lost, warnings."""
    block, said = facts.block, []
    for row in block["comparisons"]:
        if (said_of := decision_in_words(row)) != "better":
            what = f"{row['a']} against {row['b']} with {row['shots']} shots: {said_of}"
            said.append(f"{what} ({points(row['difference'])} points, {_range(row, points)}).")
    said += [f"On {r['task']}, {r['a']} is worse than {r['b']}." for r in block["per_task"] if r["decision"] == "worse"]
    base = block["arms"].get("base")
    for arm, row in block["arms"].items():
        if base and row["accuracy"] < base["accuracy"]:
            said.append(
                f"Trained on {arm}, the student is right less often than untrained: {percent(row['accuracy'])} "
                f"({_range(row)}) against {percent(base['accuracy'])}."
            )
    kept = facts.examples[facts.examples["kept"] & (facts.examples["gold"] != "")]
    right = kept.groupby("arm")["correct"].mean()
    if right.get("tailored", 1.0) < right.get("untailored", 0.0):
        said.append(
            f"The aligned teacher is right less often than before: {percent(right['tailored'])} of its examples, "
            f"{percent(right['untailored'])} of the unaligned teacher's."
        )
    for stage, manifest in facts.manifests.items():
        lost = [f"{n} {what}" for what, n in manifest["counts"].items() if n and LOST.search(what)]
        said += [f"Counted in {stage}, all students together: {'; '.join(lost)}."] if lost else []
    return said + list(dict.fromkeys([*facts.verdict["warnings"], *block["warnings"]]))


def _trouble_part(facts: Facts) -> str:
    return "## What did not work\n\n" + bullets(troubles(facts) or ["None of what a run counts went wrong."])


def _making_part(facts: Facts) -> str:
    recipe, manifests = facts.recipe, facts.manifests
    teacher, student = recipe.models.teacher, recipe.models.students[facts.student]
    models = [
        ["teacher", shown_ref(teacher), manifests["alignment"]["parents"].get("teacher", NOT_STATED)],
        [
            f"student {facts.student}",
            shown_ref(student),
            manifests["probing"]["parents"].get(facts.student, NOT_STATED),
        ],
    ]
    stages = [
        [name, one["fingerprint"], one["git_commit"] or NOT_STATED, one["written"]] for name, one in manifests.items()
    ]
    used: dict[str, list[str]] = {}
    for name, one in manifests.items():
        packages = ", ".join(f"{package} {version}" for package, version in one["versions"].items())
        used.setdefault(packages, []).append(name)
    versions = bullets(f"{', '.join(names)}: {packages}" for packages, names in used.items())
    written = format_yaml(without_places(recipe.model_dump()))
    return (
        "## How it was made\n\n"
        f"{HOW_ASKED[recipe.method]}; the teacher was aligned to them by DPO and wrote new examples; students were "
        "trained on these and on the controls, at equal tokens and steps; all answered the same test items. Method: "
        f"{SOURCE[recipe.method]}, with our controls, seeds and decision rule. Seeds: "
        f"{', '.join(map(str, recipe.seeds))}.\n\n"
        f"{table(['model', 'name', 'fingerprint'], models)}\n\n"
        f"{table(['stage', 'fingerprint', 'git commit', 'written'], stages)}\n\nVersions:\n\n{versions}\n\n"
        f"<details><summary>The recipe</summary>\n\n{fenced(written, 'yaml')}\n\n</details>"
    )


def _cost_part(facts: Facts) -> str:
    timings = read_json(facts.work.path / "timings.json")
    lines = [[name, f"{timings[name]['seconds']:.0f}", timings[name]["tokens"]] for name in NOTEBOOKS]
    lines.append(["all", f"{sum(one['seconds'] for one in timings.values()):.0f}"])
    lines[-1].append(sum(one["tokens"] for one in timings.values()))
    return (
        "## Cost\n\n" + table(["stage", "seconds", "tokens"], lines) + "\n\nOf the whole run, all students and arms. "
        "Seconds are wall time of the last time a stage was worked on: what an earlier, stopped run had finished, or "
        "another run shared, is not in them. Tokens are those generated or trained on."
    )


def _licence_part(facts: Facts) -> str:
    said = "What was generated may fall under the terms of the models that wrote it."
    return f"## Licences of what went in\n\n{table(['input', 'licence'], facts.licences.items())}\n\n{said}"


def _licence_line(facts: Facts) -> dict[str, str]:
    """Return the front matter's licence: that of all inputs when they share one a hub could know."""
    found = {licence.lower() for licence in facts.licences.values()}
    if NOT_STATED in found:
        return {"license": "unknown"}
    only = found.pop() if len(found) == 1 else ""
    if re.fullmatch(r"[a-z0-9][a-z0-9.+-]*", only):
        return {"license": only}
    return {"license": "other", "license_name": "see-the-card"}


def _card(head: Mapping, *parts: str) -> str:
    # What reads front matter knows YAML 1.1, in which an unquoted `no` is false.
    front = yaml_dump(dict(head), sort_keys=False)
    return f"---\n{front}---\n\n" + "\n\n".join(parts) + "\n"


def percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def points(share: float) -> str:
    return f"{100 * share:+.1f}"


def _range(row: Mapping, form=percent) -> str:
    return f"{form(row['low'])} to {form(row['high'])}"
