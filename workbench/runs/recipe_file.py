"""A recipe's file read and overridden, and every fault in it said in one sentence."""

import difflib
import re
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel, ValidationError

from workbench.runs.errors import RecipeError, in_our_words, visible
from workbench.runs.recipe import Recipe, parse_yaml, project_root, recipe_class

KINDS = {bool: "a truth value", int: "a whole number", float: "a number", str: "text", list: "a list"}
KINDS |= {dict: "a mapping", type(None): "nothing"}
RENAMED = {"guard.false_alarms": "guard.false_positive_rate", "influence.way": "influence.estimator"}


def fault_of(error: dict, recipe: type[Recipe] = Recipe) -> str:
    """Say one of pydantic's errors in a recipe as: key, what is allowed, what was there, the fix."""
    path, value = [visible(str(part), 60) for part in error["loc"] if part != "[key]"], error["input"]
    shown = visible(repr(value), 200)
    key = ".".join(path)
    if error["type"] == "value_error":
        return f"{key}.{error['ctx']['error']}.".lstrip(".")
    if error["type"] in ("extra_forbidden", "invalid_key"):
        return f"{key} is not a key of a recipe (value {shown}){_closest_key(path, recipe)}"
    if error["type"] == "missing":
        return f"{key} is missing; add it: {_in_words(_declared(path, recipe))}."
    if error["type"] == "model_type":
        allowed = f"must be {_in_words(_declared(path, recipe))}"
    else:
        allowed = re.sub(r"^\w+ should", "must", error["msg"]).replace(" after validation", "")
    is_quoted_number = error["type"] in ("int_type", "float_type") and re.fullmatch(r"[-+.\de]*\d", str(value))
    fix = f" Remove the quotes: {value}." if is_quoted_number and isinstance(value, str) else ""
    return f"{key} {allowed}, got {shown} ({_kind(value)}).{fix}"


def _kind(value: Any) -> str:
    return KINDS.get(type(value), "a value")


def _closest_key(path: Sequence[str], recipe: type[Recipe]) -> str:
    """Suggest a key of the same section, else the same key in another section, else list what there is."""
    *sections, last = path
    if new_name := RENAMED.get(".".join(path)):
        return f"; it is called {new_name} now, rename it."
    siblings = _keys(_declared(sections, recipe))
    close = [".".join([*sections, key]) for key in difflib.get_close_matches(last, siblings, n=1)]
    close = close or [f"{name}.{last}" for name in _keys(recipe) if last in _keys(_declared([name], recipe))]
    return f"; did you mean {' or '.join(close)}?" if close else f"; known here: {', '.join(siblings)}."


def _declared(path: Sequence[str], recipe: type[Recipe]) -> Any:
    """Return the annotation of a key, of an item of a list or of a value of a mapping in a recipe."""
    annotation = recipe
    for part in path:
        fields = getattr(annotation, "model_fields", None)
        annotation = fields[part].annotation if fields else get_args(annotation)[-1]
    return annotation


def _keys(annotation: Any) -> list[str]:
    """Return the keys of a section, those that it cannot do without first; none for what is no section."""
    fields = annotation.model_fields if isinstance(annotation, type) and issubclass(annotation, BaseModel) else {}
    return sorted(fields, key=lambda key: not fields[key].is_required())


def _in_words(annotation: Any) -> str:
    if get_origin(annotation) is Literal:
        return "one of " + ", ".join(get_args(annotation))
    keys = ", ".join(_keys(annotation))
    return f"a section with {keys}" if keys else KINDS[get_origin(annotation) or annotation]


@in_our_words()
def load_recipe(name_or_path: str, overrides: Mapping[str, str] | None = None) -> Recipe:
    """Read a shipped recipe by name, or any recipe by path, with values replaced by dotted key.

    Args:
        name_or_path: "arte-demo" for notebooks/recipes/arte-demo.yaml, or a path that ends in .yaml.
        overrides: For example {"alignment.beta": "0.05"}; values are read as YAML.

    Raises:
        RecipeError: If anything is wrong, one line per fault.
    """
    path = _find(str(name_or_path))
    try:
        raw = parse_yaml(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RecipeError(f"There is no file {path}; correct the path, or give the name of a shipped recipe.") from None
    except (IsADirectoryError, NotADirectoryError, ValueError) as error:
        raise RecipeError(f"{path} cannot be read as YAML ({error}); correct the file.") from None
    if not isinstance(raw, dict):
        raise RecipeError(f"{path} must hold `key: value` lines, got {_kind(raw)}; start from a shipped recipe.")
    faults = [fault for key, value in (overrides or {}).items() if (fault := _override(raw, key, value))]
    kind = Recipe
    try:
        kind = recipe_class(raw.get("method"))
        recipe = kind.model_validate(raw, context={"place": partial(_place, beside=path.parent)})
    except ValidationError as invalid:
        faults += [fault_of(error, kind) for error in invalid.errors()]
    except ValueError as error:
        faults.append(f"{error}.")
    if faults:
        raise RecipeError("\n".join([f"The recipe {str(name_or_path)!r} cannot be used:", *dict.fromkeys(faults)]))
    return recipe


def _find(name_or_path: str) -> Path:
    if name_or_path.lower().endswith((".yaml", ".yml")):
        path = Path(name_or_path)
        return path if path.is_absolute() or path.exists() else project_root() / path
    folder = project_root() / "notebooks" / "recipes"
    path = folder / f"{name_or_path}.yaml"
    if path.is_file():
        return path
    names = sorted(found.stem for found in folder.glob("*.yaml"))
    close = difflib.get_close_matches(name_or_path, names, n=1)
    raise RecipeError(
        f"There is no recipe {name_or_path!r}{f'; did you mean {close[0]}?' if close else '.'} The shipped recipes are "
        f"{', '.join(names) or 'none'}; anything else is given as the path of a .yaml file."
    )


def _place(value: str, beside: Path) -> str:
    """Return a place as it is where it lies in the project or nowhere, else whole: beside the recipe, or from here."""
    path = Path(value).expanduser()
    if path.is_absolute() or (project_root() / path).exists():
        return value
    near = next((folder / path for folder in (beside, Path.cwd()) if (folder / path).exists()), None)
    return str(near.resolve()) if near else value


def _override(raw: dict, key: str, value: Any) -> str:
    """Put one override into the raw recipe; return what was wrong with it, or nothing."""
    try:
        value = parse_yaml(value) if isinstance(value, str) and value.strip() else value
    except ValueError as error:
        return f"{key}: {value!r} cannot be read as YAML ({error}); put quotes around text."
    parts = key.split(".")
    while len(parts) > 1 and ".".join(parts) not in raw:  # a student's name may hold dots
        section = parts.pop(0)
        raw = raw.setdefault(section, {})
        if not isinstance(raw, dict):
            return f"{key}: {section} holds a single value, so nothing can be set inside it; set {section} itself."
    raw[".".join(parts)] = value
    return ""
