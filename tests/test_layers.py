"""The house: a room imports only from the rooms before it, and what the rooms must not know of one another."""

import ast
from graphlib import TopologicalSorter

import pytest
from conftest import PROJECT

ROOMS = "runs tasks models loop signals methods verdict figures report notebook cli".split()
AT_THE_TOP = 6
FILES_IN_A_ROOM = {room: range(3, 17 if room == "signals" else 13) for room in ROOMS}
LINES_OF_A_FILE, LINES_OF_A_FUNCTION = 600, 60
# What a run folder calls a stage; the rest is what stages are made of.
STAGES = {"loop.drafting", "loop.tailoring", "loop.budgets", "methods.arte", "methods.montessori", "verdict.evaluation"}
MODELS = {"torch", "transformers", "trl", "peft", "vllm"}


def module_name(path) -> str:
    parts = path.relative_to(PROJECT / "workbench").with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


FILES = {module_name(path): path for path in sorted((PROJECT / "workbench").rglob("*.py"))}


def room_of(module: str) -> str:
    """Return the room of a module, "" for what stands at the top."""
    first = module.split(".")[0]
    return first if first in ROOMS else ""


IN_ROOMS = [module for module in FILES if room_of(module)]


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


def test_rooms_are_these_and_of_a_size_that_can_be_looked_over():
    folders = {path.name for path in (PROJECT / "workbench").iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert folders == set(ROOMS)
    assert sum(not room_of(module) for module in FILES) <= AT_THE_TOP
    for room, allowed in FILES_IN_A_ROOM.items():
        n = sum(module.startswith(f"{room}.") for module in FILES)
        assert n in allowed, f"{room} has {n} files; {allowed.start} to {allowed.stop - 1} are allowed"


@pytest.mark.parametrize("module", IN_ROOMS)
def test_a_room_imports_only_from_the_rooms_before_it(module):
    floor = ROOMS.index(room_of(module))
    above = {other for other in ours(module) if not room_of(other) or ROOMS.index(room_of(other)) > floor}
    assert not above, f"{module} imports {above} from above"
    # How the shipped models were raised, and who prefers what, is what no part of the library may know.
    assert not {name for name in imports(module) if name.split(".")[0] in ("data", "tests")}


def test_no_module_imports_itself_by_a_detour():
    graph = {module: ours(module) for module in FILES if module != "__init__"}
    assert len(list(TopologicalSorter(graph).static_order())) >= len(graph)  # raises CycleError, naming the detour


@pytest.mark.parametrize("module", [m for m in IN_ROOMS if room_of(m) in ("loop", "signals", "methods")])
def test_no_stage_is_imported_by_another(module):
    assert not ours(module) & STAGES


@pytest.mark.parametrize("module", [m for m in IN_ROOMS if room_of(m) in ("models", "loop", "signals", "methods")])
def test_no_stage_knows_the_generator_of_the_pocket_questions(module):
    assert not ours(module) & {"tasks.pocket_questions", "tasks.pocket_styles"}


@pytest.mark.parametrize("module", [*(m for m in IN_ROOMS if room_of(m) == "figures"), "notebook.pair_view"])
def test_figures_know_no_models(module):
    assert not {name for name in imports(module) if name.split(".")[0] in MODELS or name.startswith("workbench.models")}


@pytest.mark.parametrize("module", FILES)
def test_modules_and_functions_are_short_enough_to_read(module):
    text = FILES[module].read_text(encoding="utf-8")
    assert text.count("\n") <= LINES_OF_A_FILE, f"{module} is longer than {LINES_OF_A_FILE} lines"
    functions = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef)]
    long = [node.name for node in functions if node.end_lineno - node.lineno >= LINES_OF_A_FUNCTION]
    assert not long, f"{module}: longer than {LINES_OF_A_FUNCTION} lines: {long}"
    assert not {"utils", "helpers", "manager"} & set(module.split("."))


def test_the_reader_of_imports_sees_every_form(monkeypatch, tmp_path):
    path = tmp_path / "probe.py"
    path.write_text("import workbench.runs.run\nfrom workbench.tasks import task\ndef f():\n    from . import models\n")
    monkeypatch.setitem(FILES, "probe", path)
    assert imports("probe") >= {"workbench.runs.run", "workbench.tasks.task", "workbench.models"}
