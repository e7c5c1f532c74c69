"""The house: a room imports only from the rooms before it, and what the rooms must not know of one another."""

import ast
import io
import json
import re
import tokenize
from collections.abc import Iterator
from functools import reduce
from graphlib import TopologicalSorter
from importlib import import_module
from types import ModuleType

import pytest
from conftest import PROJECT

import workbench

ROOMS = "runs tasks models loop signals methods verdict studies figures report notebook cli".split()
AT_THE_TOP = 6
FILES_IN_A_ROOM = {room: range(3, {"signals": 17}.get(room, 13)) for room in ROOMS}
LINES_OF_A_FILE, LINES_OF_A_FUNCTION = 600, 60
# The bounds of what a reader takes in, for code alone; what there is with all that explains it may not grow either.
CODE_OF_THE_CORE, CODE_IN_ALL = 4_500, 15_000
LINES_OF_THE_CORE, LINES_IN_ALL = 6_456, 22_393
NOTEBOOKS = sorted((PROJECT / "notebooks").glob("[0-9]*.ipynb"))
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


def steps() -> dict[str, str]:
    """Return the functions of the library that notebooks give to Run.step, with their modules."""
    code = "\n".join(
        "".join(cell["source"])
        for path in NOTEBOOKS
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]
        if cell["cell_type"] == "code"
    )
    functions = set(re.findall(r"\.step\(\s*\"[^\"]+\",\s*wb\.([\w.]+)", code))
    return {name: home_of(name) for name in functions}


def home_of(name: str) -> str:
    """Return the module of a public name, as loop.draft_questions."""
    return reduce(getattr, name.split("."), workbench).__module__.removeprefix("workbench.")


# What is there, and what is to come.
NAMES = {module.partition(".")[2] for module in FILES if room_of(module) == "methods"} - {"", "base", "rounds"}
METHOD = re.compile(rf"(?<![a-z0-9])({'|'.join(sorted(NAMES | {'tapir', 'ts_align'}))})(?![a-z0-9])")


def words_of(text: str) -> Iterator[tuple[int, str]]:
    """Yield line and content of every text and name of a file but docstrings, in small letters, with _ for hyphens."""
    tree = ast.parse(text)
    statements = (node for node in ast.walk(tree) if isinstance(node, ast.Expr))
    said_of = {id(node.value) for node in statements if isinstance(node.value, ast.Constant)}
    for node in ast.walk(tree):
        for _, value in [] if id(node) in said_of else ast.iter_fields(node):
            if isinstance(value, str):
                apart = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", value)
                yield getattr(node, "lineno", 0), apart.lower().replace("-", "_")


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


def test_no_step_calls_another():
    """Their order is the notebooks'; a step that called another would remember less than it did."""
    functions = steps()
    assert len(functions) >= 12 and set(functions.values()) <= set(FILES)
    names = {name.rpartition(".")[2] for name in functions}
    for module in set(functions.values()):
        called = {
            node.func.id if isinstance(node.func, ast.Name) else node.func.attr
            for node in ast.walk(ast.parse(FILES[module].read_text(encoding="utf-8")))
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name | ast.Attribute)
        }
        assert not called & names, f"{module} calls {called & names}"


@pytest.mark.parametrize("package", ["", *ROOMS])
def test_no_public_name_is_hidden_by_a_file_of_that_name(package):
    """A file, once imported, stands in its package under its own name, and a function of that name is gone."""
    room = import_module(f"workbench.{package}".rstrip("."))
    within = {name.rpartition(".")[2] for name in FILES if name.rpartition(".")[0] == package}
    hidden = [
        name
        for name in getattr(room, "__all__", [])
        if name in within and not isinstance(getattr(room, name), ModuleType)
    ]
    assert not hidden, (
        f"{package or 'workbench'} offers {hidden}, and has files of that name; call one of them otherwise"
    )


@pytest.mark.parametrize("module", [m for m in FILES if room_of(m) not in ("methods", "")])
def test_no_part_of_the_house_but_methods_names_a_method(module):
    """A method is one file there; what names it elsewhere has to be changed for the next one."""
    found = [(line, word) for line, word in words_of(FILES[module].read_text(encoding="utf-8")) if METHOD.search(word)]
    assert not found, f"{module} names a method; take it from workbench.methods: {found}"


def test_no_template_or_script_names_a_method():
    others = [path for path in (PROJECT / "workbench").rglob("*.*") if path.suffix in (".j2", ".js", ".css", ".html")]
    assert others
    for path in others:
        found = METHOD.search(path.read_text(encoding="utf-8").lower().replace("-", "_"))
        assert not found, f"{path.name} names {found[0]}; take it from workbench.methods"


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


def test_the_reader_of_words_sees_them_everywhere_but_in_docstrings_and_comments():
    text = '''"""ARTE."""\ndef f():\n    """As ARTE does."""\n    return 1  # arte\n'''
    assert not [word for _, word in words_of(text) if METHOD.search(word)]
    for said in (
        "a = 'arte-demo'",
        "a = f'{b} of arte'",
        "a.of_montessori",
        "MontessoriRecipe",
        "import x.tapir",
        "from x import ts_align as y",
        "def run_arte(): pass",
        "f(arte=1)",
        "def f(arte): pass",
        "a = 'TS-Align, 2024'",
    ):
        assert [word for _, word in words_of(said) if METHOD.search(word)], said
    for other in ("a = 'quarter'", "cartesian", "a = 'starte'"):
        assert not [word for _, word in words_of(other) if METHOD.search(word)], other


def test_the_reader_of_imports_sees_every_form(monkeypatch, tmp_path):
    path = tmp_path / "probe.py"
    path.write_text("import workbench.runs.run\nfrom workbench.tasks import task\ndef f():\n    from . import models\n")
    monkeypatch.setitem(FILES, "probe", path)
    assert imports("probe") >= {"workbench.runs.run", "workbench.tasks.task", "workbench.models"}


def code_lines(text: str) -> int:
    """Return how many lines of a file are code: neither blank, nor a comment, nor part of a docstring."""
    silent = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
    tokens = [token for token in tokenize.generate_tokens(io.StringIO(text).readline) if token.type not in silent]
    lines = {line for token in tokens for line in range(token.start[0], token.end[0] + 1)}
    for node in ast.walk(ast.parse(text)):
        may_explain = isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        if may_explain and ast.get_docstring(node) is not None:
            lines -= set(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    return len(lines)


def test_lines_of_code_are_counted_without_what_explains_them():
    text = '"""Said."""\n\nX = """one\ntwo"""  # why\n\n\ndef f():\n    """Said."""\n    # why\n    return X\n'
    assert code_lines(text) == 4


def test_the_library_does_not_grow():
    texts = {module: path.read_text(encoding="utf-8") for module, path in FILES.items()}
    core = {"runs.run", "tasks.task", "tasks.answers"}
    core |= {name for name in texts if room_of(name) in ("methods", "loop", "signals")}
    for count, of_the_core, in_all in (
        (lambda text: text.count("\n"), LINES_OF_THE_CORE, LINES_IN_ALL),
        (code_lines, CODE_OF_THE_CORE, CODE_IN_ALL),
    ):
        lines = {module: count(text) for module, text in texts.items()}
        assert sum(lines[name] for name in core) <= of_the_core and sum(lines.values()) <= in_all
