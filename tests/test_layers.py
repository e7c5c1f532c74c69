"""Imports only go down: records at the bottom, the command line at the top, no stage knowing another."""

import ast
from graphlib import TopologicalSorter

import pytest
from conftest import PROJECT

FLOORS = {
    0: "markdown records recipe recipe_engines recipe_faults recipe_montessori recipe_parts seeding",
    1: "heartbeat items store answers sources tasks guard likeness prompts models prefix_attention generation "
    "engines engine_vllm engine_openai server spending starting pool writing asking tuning packing warming "
    "trainers launching training_process unsloth_backend near_duplicates synthesis reference",
    2: "drafting signals signals.icl signals.irt signals.influence signals.montessori signals.stepping "
    "preference_set pairs arms alignment training evaluation inference verdict overlap simulation calibration "
    "decidedness reproduction trials workload reviews",
    3: "figures inspection",
    4: "__main__ notebook headless report card plan doctor trace playground summary ablations validity goodhart facts "
    "cards export selection look_back judging monitor lesson guessing what_if inspector inspector_view benchmarks "
    "asked two_signals rates",
}
# What a run folder calls a stage; pairs, irt, influence, inference, verdict and the like are what stages are made of.
STAGES = {"drafting", "signals.icl", "signals.montessori", "alignment", "training", "evaluation"}
# The pocket classroom and the table of contents stand beside the floors: anything below the surface is theirs to use.
BESIDE = ("pocket", "__init__")
MODELS = {"torch", "transformers", "trl", "peft", "vllm", "workbench.models", "workbench.engines"}


def module_name(path) -> str:
    parts = path.relative_to(PROJECT / "workbench").with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


FILES = {module_name(path): path for path in sorted((PROJECT / "workbench").rglob("*.py"))}
FLOOR_OF = {module: floor for floor, modules in FLOORS.items() for module in modules.split()}
# Figures are one thing in several files, one for each stage.
FLOOR_OF |= {module: 3 for module in FILES if module.startswith("figures_")}


def is_beside(module: str) -> bool:
    return module.split(".")[0] in BESIDE


def imports(module: str) -> set[str]:
    """Return every module named by an import anywhere in a file, lazy ones included."""
    package = ["workbench", *module.split(".")]
    if FILES[module].name != "__init__.py":
        package = package[:-1]
    elif module == "__init__":
        package = ["workbench"]
    found = set()
    for node in ast.walk(ast.parse(FILES[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            source = ".".join([*base, *filter(None, [node.module])])
            found |= {source} | {f"{source}.{alias.name}" for alias in node.names}
    return found


def ours(module: str) -> set[str]:
    """Return the modules of the workbench that a module imports."""
    named = {name.removeprefix("workbench.") for name in imports(module)}
    return (named & set(FILES)) - {module}


@pytest.mark.parametrize("module", FILES)
def test_every_module_has_a_floor(module):
    assert module in FLOOR_OF or is_beside(module), f"give {module} a floor in {__file__}"


@pytest.mark.parametrize("module", FILES)
def test_imports_only_go_down(module):
    floor = 3 if is_beside(module) else FLOOR_OF.get(module, 0)
    upwards = {other for other in ours(module) if not is_beside(other) and FLOOR_OF.get(other, 0) > floor}
    assert not upwards, f"{module} (floor {floor}) imports {upwards} from above"
    beside = {other for other in ours(module) if is_beside(other)}
    if module == "tasks":
        # A solver and a style are facts about a text; who was raised how (pocket.classroom) is what no stage may know.
        beside -= {"pocket", "pocket.problems", "pocket.rationales"}
    assert is_beside(module) or floor == 4 or not beside, f"{module} imports {beside}, which stands beside the stages"


@pytest.mark.parametrize("module", sorted(set(FILES) & {m for m, floor in FLOOR_OF.items() if floor == 2}))
def test_no_stage_is_imported_by_another(module):
    assert not ours(module) & STAGES


@pytest.mark.parametrize("module", sorted(set(FILES) & {m for m, floor in FLOOR_OF.items() if floor == 3}))
def test_figures_know_no_models(module):
    assert not {name for name in imports(module) if name.split(".")[0] in MODELS or name in MODELS}


def test_no_module_imports_itself_by_a_detour():
    TopologicalSorter({module: ours(module) for module in FILES if module != "__init__"}).prepare()


@pytest.mark.parametrize("module", FILES)
def test_modules_and_functions_are_short_enough_to_read(module):
    text = FILES[module].read_text(encoding="utf-8")
    assert text.count("\n") <= 400, f"{module} is longer than 400 lines"
    functions = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef)]
    long = [node.name for node in functions if node.end_lineno - node.lineno >= 60]
    assert not long, f"{module}: longer than 60 lines: {long}"
    assert module.split(".")[-1] not in {"utils", "helpers", "manager"}


def test_the_reader_of_imports_sees_every_form(monkeypatch, tmp_path):
    path = tmp_path / "probe.py"
    path.write_text("import workbench.store\nfrom workbench import tasks\ndef f():\n    from . import models\n")
    monkeypatch.setitem(FILES, "probe", path)
    assert imports("probe") >= {"workbench.store", "workbench.tasks", "workbench.models"}
