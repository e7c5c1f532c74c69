"""Code whose results are kept has a VERSION, and does not change unnoticed while that stays the same."""

import ast
import importlib
import json
import re
from functools import cache

import pytest
from conftest import PROJECT

import workbench
from workbench.methods import ALL
from workbench.runs.schemas import text_id

PACKAGE = PROJECT / "workbench"
ROOMS = ("loop", "signals")
# Beside those rooms, what can change their results. Answers are an argument of steps, so their VERSION counts there.
SHARED = ("tasks/answers", "tasks/numbers", "models/packed_losses")
KNOWN: dict[str, tuple[int, str]] = {
    "loop/alignment": (3, "36a116eeb9193660"),
    "loop/arms": (3, "43543015b3c6f30d"),
    "loop/budgets": (3, "cce3dd55b7578473"),
    "loop/drafting": (5, "0dc88e87a3334293"),
    "loop/instructions": (1, "622080a1c4d4152c"),
    "loop/pairs": (2, "31fbc93a2987feab"),
    "loop/preference_set": (1, "57180edf05c1d7f5"),
    "loop/reviews": (1, "062d7d9cdb220c0b"),
    "loop/tailoring": (4, "e2b33d0b90099aae"),
    "loop/writing": (3, "7a78bcb3e4e43e8d"),
    "signals/by_name": (1, "7f6b64d7e2ec2007"),
    "signals/difficulty": (1, "c0bfe1f35d95a364"),
    "signals/influence": (2, "3118c1f8242bd17c"),
    "signals/influence_of_drafts": (3, "ed11015d61316e69"),
    "signals/judge": (2, "11206714e8fa2b0f"),
    "signals/judging": (2, "aed490256c823b4c"),
    "signals/likelihood": (1, "39fc276c1b99c042"),
    "signals/measured_gain": (1, "8c21bbe37cb5bf46"),
    "signals/one_shot": (4, "1bd3a9419c381aa1"),
    "signals/reference": (1, "c847b4ea06320a6a"),
    "signals/reward": (1, "8cdd7a4d269466fa"),
    "signals/reward_models": (1, "b1a4f4dc7783fe04"),
    "signals/scores": (1, "47b6518845b53682"),
    "signals/warm_up": (1, "ebee57523e8916a6"),
    "tasks/answers": (2, "719f11e7535c65d4"),
}


def versioned() -> list[str]:
    """Return the modules of loop/ and signals/, and of SHARED, that have a VERSION, as room/name."""
    paths = [path for room in ROOMS for path in sorted((PACKAGE / room).glob("*.py"))]
    paths += [PACKAGE / f"{name}.py" for name in SHARED]
    names = [path.relative_to(PACKAGE).with_suffix("").as_posix() for path in paths]
    return [name for name in names if version_of(name)]


def version_of(name: str) -> int:
    found = re.search(r"^VERSION = (\d+)$", (PACKAGE / f"{name}.py").read_text(encoding="utf-8"), re.MULTILINE)
    return int(found[1]) if found else 0


@cache
def tree_of(name: str) -> ast.Module:
    """Return the syntax tree of a module without docstrings, VERSION and, as trees are, comments."""
    tree = ast.parse((PACKAGE / f"{name}.py").read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node, clean=False):
            node.body = node.body[1:]
    tree.body = [one for one in tree.body if not ast.unparse(one).startswith("VERSION = ")]
    return tree


def with_imports(name: str, known: frozenset[str] = frozenset()) -> frozenset[str]:
    """Return a module and what it imports of the rooms and of SHARED, and these in turn."""
    known |= {name}
    for node in ast.walk(tree_of(name)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("workbench."):
            above = node.module.removeprefix("workbench.").replace(".", "/")
            for other in (above, *(f"{above}/{one.name}" for one in node.names)):
                counts = other in SHARED or other.partition("/")[0] in ROOMS
                if counts and (PACKAGE / f"{other}.py").is_file() and other not in known:
                    known = with_imports(other, known)
    return known


def digest_of(name: str) -> str:
    return text_id("\n".join(ast.dump(tree_of(one)) for one in sorted(with_imports(name))))


@pytest.mark.parametrize("name", versioned())
def test_the_version_is_raised_with_the_code(name):
    now = (version, digest) = version_of(name), digest_of(name)
    assert KNOWN.get(name) == now, (
        f"workbench/{name}.py, or what it imports of {', '.join(sorted(with_imports(name) - {name})) or 'no other'}, "
        "changed: raise its VERSION if results can change, or finished steps are not computed again; then write into "
        f"tests/test_versions.py:\n    {json.dumps(name)}: ({version}, {json.dumps(digest)}),"
    )


def test_no_module_is_known_that_is_gone():
    assert set(KNOWN) <= set(versioned())


def test_the_digest_knows_what_a_module_asks_and_reads():
    assert {"loop/prompts", "loop/writing", "tasks/answers", "tasks/numbers"} < with_imports("signals/one_shot")
    assert "models/packed_losses" in with_imports("signals/influence_of_drafts")
    assert "loop/item_response" in with_imports("loop/preference_set")


def test_whatever_is_given_to_a_step_has_a_version():
    """Or its steps would stay as they are when it changes."""
    code = "".join(path.read_text(encoding="utf-8") for path in (PROJECT / "notebooks").rglob("*.ipynb"))
    names = set(re.findall(r'\.step\(\\"[a-z_]+\\", wb\.([a-z_.]+)', code))
    assert {"loop.draft_questions", "loop.build_pairs", "loop.apply_reviews"} <= names
    functions = [method.signal for method in ALL.values()]
    for name in names:
        function = workbench
        for part in name.split("."):
            function = getattr(function, part)
        functions.append(function)
    for function in functions:
        module = importlib.import_module(function.__module__)
        assert isinstance(getattr(module, "VERSION", None), int), f"{module.__name__} has no VERSION"
