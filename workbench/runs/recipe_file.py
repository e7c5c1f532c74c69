"""A recipe's file read and overridden, and every fault in it said in one sentence."""

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from workbench.runs.recipe import Recipe, RecipeError, project_root, recipe_class


class OnceLoader(yaml.SafeLoader):
    """YAML's safe loader, which also refuses a key that stands twice in a section: one of them would be lost."""

    def construct_mapping(self, node, deep=False):
        """Return a section, or refuse it."""
        known = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in known:
                said = f"{key.value!r} stands twice in its section"
                raise yaml.constructor.ConstructorError(None, None, said, key.start_mark)
            known.add(key.value)
        return super().construct_mapping(node, deep)


def fault_of(error: dict, recipe: type[BaseModel]) -> str:
    """Say one pydantic error as: key, what is allowed, what was there, the fix."""
    path, value = error["loc"], error["input"]
    key = ".".join(str(part) for part in path if part != "[key]")
    if error["type"] == "value_error":
        return f"{key}.{error['ctx']['error']}.".lstrip(".")
    if error["type"] == "extra_forbidden":
        return f"{key} is not a key of a recipe (value {value!r}){_closest_key(path, recipe)}"
    annotation, limits = _declared(path, recipe)
    if error["type"] == "missing":
        return f"{key} is missing; add it: {_allowed(annotation, limits)}."
    fault = f"{key} must be {_allowed(annotation, limits)}, got {value!r} ({kind_of(value)})."
    if isinstance(value, str) and annotation in (int, float):
        fault += _number_as_text(value)
    return fault


def _number_as_text(value: str) -> str:
    try:
        float(value)
    except ValueError:
        return ""
    mantissa, exponent, power = value.lower().partition("e")
    if not exponent:
        return f" Remove the quotes: {value}."
    power = power if power.startswith(("+", "-")) else f"+{power}"
    return f" YAML reads {value} as text; write {mantissa if '.' in mantissa else mantissa + '.0'}e{power}."


def _closest_key(path: tuple, recipe: type[BaseModel]) -> str:
    """Suggest a key of the same section, else the same key in another section, else list what there is."""
    *sections, last = map(str, path)
    siblings = list(_declared(path[:-1], recipe)[0].model_fields)
    close = difflib.get_close_matches(last, siblings, n=1)
    if close:
        return f"; did you mean {'.'.join([*sections, *close])}?"
    elsewhere = [f"{name}.{last}" for name, field in recipe.model_fields.items() if last in _keys(field.annotation)]
    if elsewhere:
        return f"; did you mean {' or '.join(elsewhere)}?"
    return f"; known here: {', '.join(siblings)}."


def _keys(annotation: Any) -> list[str]:
    """Return the keys of a section, those that it cannot do without first; none for what is no section."""
    is_section = isinstance(annotation, type) and issubclass(annotation, BaseModel)
    fields = annotation.model_fields if is_section else {}
    return sorted(fields, key=lambda key: not fields[key].is_required())


def _declared(path: tuple, recipe: type[BaseModel]) -> tuple[Any, list]:
    """Return the annotation and the limits the schema declares for a key."""
    if path and path[-1] == "[key]":
        return _unwrapped(get_args(_declared(path[:-2], recipe)[0])[0])
    annotation, limits = recipe, []
    for part in path:
        if _keys(annotation):
            field = annotation.model_fields[part]
            annotation, limits = field.annotation, field.metadata
        else:
            annotation, limits = _unwrapped(get_args(annotation)[-1])
    return annotation, limits


def _unwrapped(annotation: Any) -> tuple[Any, list]:
    if get_origin(annotation) is not Annotated:
        return annotation, []
    plain, *fields = get_args(annotation)
    return plain, [limit for field in fields for limit in field.metadata]


def _allowed(annotation: Any, limits: list) -> str:
    """Say a type and its limits in words, as in "a number > 0 and finite"."""
    if get_origin(annotation) is Literal:
        return "one of " + ", ".join(get_args(annotation))
    if _keys(annotation):
        return f"a section with {', '.join(_keys(annotation))}"
    words = {int: "a whole number", float: "a number", str: "text", list: "a list", dict: "a mapping"}
    words[bool] = "true or false"
    signs = {"gt": "> {}", "ge": ">= {}", "lt": "< {}", "le": "<= {}", "min_length": "of length {} or more"}
    signs |= {"pattern": "of letters, digits, '.', '_' and '-'"}
    found = [signs[name].format(getattr(limit, name)) for limit in limits for name in signs if hasattr(limit, name)]
    if annotation is float:
        found.append("finite")
    return " ".join([words[get_origin(annotation) or annotation], " and ".join(found)]).strip()


def kind_of(value: Any) -> str:
    """Return the kind of a YAML value in words."""
    words = {str: "a string", bool: "a truth value", int: "a whole number", float: "a number", list: "a list"}
    return words.get(type(value), "nothing" if value is None else "a mapping" if isinstance(value, dict) else "a value")


def one_line(error: Exception) -> str:
    """Return an error's text on one line."""
    return " ".join(str(error).split())


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
        raw = yaml.load(path.read_text(encoding="utf-8"), Loader=OnceLoader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise RecipeError(f"{path} cannot be read as YAML ({one_line(error)}); correct the file.") from None
    if not isinstance(raw, dict):
        raise RecipeError(f"{path} must hold `key: value` lines, got {kind_of(raw)}; start from a shipped recipe.")
    faults = [fault for key, value in (overrides or {}).items() if (fault := _override(raw, key, value))]
    kind = Recipe
    try:
        kind = recipe_class(raw.get("method"))
        recipe = kind.model_validate(raw)
    except ValidationError as invalid:
        faults += [fault_of(error, kind) for error in invalid.errors()]
    except ValueError as error:
        faults.append(f"{error}.")
    if faults:
        raise RecipeError("\n".join([f"The recipe {str(name_or_path)!r} cannot be used:", *dict.fromkeys(faults)]))
    return recipe


def _find(name_or_path: str) -> Path:
    if name_or_path.endswith((".yaml", ".yml")):
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


def _override(raw: dict, key: str, value: Any) -> str:
    """Put one override into the raw recipe; return what was wrong with it, or nothing."""
    try:
        value = yaml.safe_load(value) if isinstance(value, str) and value.strip() else value
    except yaml.YAMLError as error:
        return f"{key}: {value!r} cannot be read as YAML ({one_line(error)}); put quotes around text."
    *sections, last = key.split(".")
    for section in sections:
        raw = raw.setdefault(section, {})
        if not isinstance(raw, dict):
            return f"{key}: {section} holds a single value, so nothing can be set inside it; set {section} itself."
    raw[last] = value
    return ""
