"""Tasks with levels from the library reasoning-gym: its generators make the items, its verifiers compare the answers.

Source: Reasoning Gym, arXiv:2505.24760, version 0.1.25. Ours: what is refused, the split into sets by the question's
own text, and that an answer is right only where it gets the full mark that the library gives its own.
"""

import difflib
import hashlib
import importlib
import importlib.metadata
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from workbench.runs.errors import DataError
from workbench.runs.recipe import canonical_json
from workbench.runs.recipe_parts import TaskSource
from workbench.tasks.answers import Answers

MOST = 5_000  # items made before a generator counts as having no more
# Of eight questions one is a seed question, three are for validation and four for the test, by their own text: so no
# set holds a question of another, and each goes on without reshuffling the others.
SHARES = ("seeds", *["validation"] * 3, *["test"] * 4)
REFUSED = {
    "its verifier runs text of items or answers as code": "binary_matrix bitwise_arithmetic codeio countdown "
    "intermediate_integration n_queens number_sorting polynomial_multiplication puzzle24 simple_integration "
    "spiral_matrix string_insertion",
    "it makes other items in every process": "isomorphic_strings list_functions ransom_note word_ladder",
    "its verifier reads fractions without a limit, and 1e999999999 would keep it busy for hours": "coin_flip",
    "its verifier takes any text as right": "game_of_life_halting",
    "it gives no answers to show": "boxnet graph_color propositional_logic rubiks_cube rush_hour",
    "it only mixes others": "composite",
}
_REASONS = {name: reason for reason, names in REFUSED.items() for name in names.split()}


@dataclass(frozen=True)
class Verified(Answers):
    """Answers read as any and compared by a generator's verifier; n_drawn and version say which items there are."""

    generator: str = ""
    level: int = 0
    seed: int = 0
    n_drawn: int = 0
    version: str = ""

    def same(self, answer: str, target: str) -> bool:
        """Return whether an answer, as read, gets the full mark; a target that is no item's is compared as text.

        Where several items have this target, all must agree: what is right in another way may be so for one alone.
        """
        items = _by_target(self.generator, self.level, self.seed, self.n_drawn).get(target)
        if not answer or items is None:
            return super().same(answer, target)
        dataset = _dataset(self.generator, self.level, self.seed)
        return all(_mark(dataset, answer, item) >= full for item, full in items)


def drawn_items(source: TaskSource, name: str, wanted: dict[str, int]) -> tuple[dict[str, list[dict]], Verified, str]:
    """Return a generator's items by set, how their answers are compared, and the SHA-256 of what decides them.

    That is generator, level, seed and the library's version; `wanted`, the least number of each set, says only how far
    they go on. `name` is the task's in the recipe.

    Raises:
        DataError: If the library is not installed, generator or level are unknown, refused or cannot be made, there are
            too few items, or an answer of the library, as it is read, is not right by its verifier.
    """
    version, key = _require_known(source, name), (source.generator, source.level, source.seed)
    sets: dict[str, list[dict]] = {part: [] for part in wanted}
    questions: set[str] = set()
    n_drawn = 0
    while any(len(sets[part]) < n for part, n in wanted.items()):
        if n_drawn == MOST:
            there = ", ".join(f"{len(sets[part])} of {n} {part} items" for part, n in wanted.items())
            raise DataError(
                f"Task {name}: {MOST} tries of {source.generator} at level {source.level} gave {there}, the others "
                "being repeats; take another level or generator, or lower what the recipe asks for."
            )
        item, n_drawn = _item(*key, n_drawn), n_drawn + 1
        if item and item["question"] not in questions:
            questions.add(item["question"])
            part = SHARES[hashlib.sha256(item["question"].encode()).digest()[0] % len(SHARES)]
            sets[part].append({"input": item["question"], "target": item["answer"]})
    answers = Verified(source.answer_type, source.reply_pattern, *key, n_drawn, version)
    for target in sorted({row["target"] for rows in sets.values() for row in rows}):
        if not answers.same(answers.read(f"<ans>{target}</ans>"), target):
            raise DataError(
                f"tasks.sources.{name}.answer_type {source.answer_type} reads the answer {target[:60]!r} of "
                f"{source.generator} so that its verifier does not take it; set it to tagged."
            )
    return sets, answers, hashlib.sha256(canonical_json([*key, version]).encode()).hexdigest()


def _require_known(source: TaskSource, name: str) -> str:
    """Return the library's version, after looking whether it has this generator and level."""
    generator, where = source.generator, f"tasks.sources.{name}"
    try:
        library = _library()
    except ImportError as error:
        raise DataError(
            f"{where}.generator needs the library reasoning-gym, which is not installed ({error}); run: make gym"
        ) from None
    known = sorted(set(library.DATASETS) - set(_REASONS))
    if reason := _REASONS.get(generator):
        raise DataError(f"{where}.generator {generator!r} is refused, because {reason}; take another.")
    if generator not in known:
        near = difflib.get_close_matches(generator, known, n=3) or known
        raise DataError(
            f"{where}.generator must be one of {len(known)} generators of reasoning-gym, got {generator!r}; the "
            f"nearest: {', '.join(near)}."
        )
    attributes = library.create_curriculum(generator).attributes if generator in library.CURRICULA else {}
    highest = max((len(one.levels) for one in attributes.values()), default=1) - 1
    if source.level > highest:
        raise DataError(f"{where}.level must be from 0 to {highest} for {generator}, got {source.level}; lower it.")
    try:
        _dataset(generator, source.level, source.seed)
    except AssertionError as error:
        raise DataError(
            f"{where}.level {source.level} of {generator} is one that the library cannot make ({error}); take another "
            f"from 0 to {highest}."
        ) from None
    return importlib.metadata.version("reasoning-gym")


def _library() -> Any:
    return importlib.import_module("reasoning_gym.factory")


@lru_cache(maxsize=32)
def _dataset(generator: str, level: int, seed: int) -> Any:
    library, settings = _library(), {"seed": seed, "size": MOST}
    if generator not in library.CURRICULA:
        return library.create_dataset(generator, **settings)
    curriculum = library.create_curriculum(generator)
    curriculum.set_global_level(level)
    return library.DATASETS[generator][0](config=curriculum.generate_configuration(settings))


@lru_cache(maxsize=4 * MOST)
def _item(generator: str, level: int, seed: int, at: int) -> dict | None:
    """Return an item of the library, or None where it has no answer."""
    item = _dataset(generator, level, seed)[at]
    return item if isinstance(item["answer"], str) and item["answer"].strip() else None


@lru_cache(maxsize=32)
def _by_target(generator: str, level: int, seed: int, n_drawn: int) -> dict[str, list[tuple[dict, float]]]:
    """Return by target the items that have it, each with the mark of the target itself."""
    found: dict[str, list[tuple[dict, float]]] = {}
    for item in filter(None, (_item(generator, level, seed, at) for at in range(n_drawn))):
        full = _mark(_dataset(generator, level, seed), item["answer"], item)
        found.setdefault(item["answer"], []).append((item, full))
    return found


def _mark(dataset: Any, answer: str, item: dict) -> float:
    try:
        return float(dataset.score_answer(answer, item))
    # Verifiers raise many unrelated types on text that they cannot read, which is then no right answer.
    except Exception:
        return 0.0
