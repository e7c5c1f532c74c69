"""The rules that every notebook of the project follows, so that each can be read and taught in the same way."""

import ast
import re
import statistics
import subprocess
import sys

import nbformat
import pytest
from conftest import PROJECT

from workbench.methods import ALL

NUMBERED = sorted((PROJECT / "notebooks").glob("*.ipynb"))
STUDIES = sorted((PROJECT / "notebooks" / "studies").glob("*.ipynb"))
PATHS = [*NUMBERED, *STUDIES]
CLOSING = ("What we saw", "Check yourself", "Next")
HEADERS = ("**Question.**", "**You will**", "**Needs**", "**Time.**")
FORBIDDEN = {
    r"\binput\(": "input()",
    r"getpass": "getpass",
    r"^\s*[!%]": "a shell or magic line",
    r"pip install": "pip",
    r"plt\.show": "plt.show",
    r"\btqdm\b": "bare tqdm",
    r"""["'](/|~/|[A-Z]:\\)""": "an absolute path",
    r"\.show\(renderer": "a renderer of its own",
}
STEMS = [path.stem for path in PATHS]
OF_METHODS = {name for method in ALL.values() for name in method.notebooks}
LINK = r"\]\(((?:\.\./)?(?:\w+/)?\w+\.ipynb)\)"


@pytest.fixture(params=PATHS, ids=STEMS)
def notebook(request):
    return nbformat.read(request.param, as_version=4)


def code_of(notebook) -> list[str]:
    return [cell.source for cell in notebook.cells if cell.cell_type == "code"]


def markdown_of(notebook) -> list[str]:
    return [cell.source for cell in notebook.cells if cell.cell_type == "markdown"]


def headings(notebook) -> list[tuple[int, str]]:
    lines = [line for text in markdown_of(notebook) for line in text.splitlines()]
    return [(len(found[1]), found[2]) for line in lines if (found := re.match(r"(#+) (.+)", line))]


def sections(notebook) -> dict[str, list]:
    """Return heading -> cells of every H2 section."""
    found, name = {}, ""
    for cell in notebook.cells:
        if cell.cell_type == "markdown" and (head := re.match(r"## (.+)", cell.source)):
            name = head[1]
        if name:
            found.setdefault(name, []).append(cell)
    return found


def test_the_notebooks_of_all_methods_are_there():
    assert STEMS[:1] == ["00_start_here"] and set(STEMS) >= OF_METHODS


def test_those_that_are_read_in_order_are_numbered_and_studies_are_not():
    assert [path.stem[:2] for path in NUMBERED] == [f"{n:02}" for n in range(len(NUMBERED))]
    assert STUDIES and not [path.stem for path in STUDIES if path.stem[0].isdigit()]


def test_first_cell_says_what_this_is(notebook):
    first = notebook.cells[0]
    assert first.cell_type == "markdown" and first.source.startswith("# ")
    for words in HEADERS:
        assert words in first.source


def test_one_title_and_no_skipped_heading(notebook):
    levels = [level for level, _ in headings(notebook)]
    assert levels.count(1) == 1 and levels[0] == 1
    assert all(after - before <= 1 for before, after in zip(levels, levels[1:], strict=False))


def test_second_cell_holds_the_parameters(notebook):
    cell = notebook.cells[1]
    assert cell.metadata.get("tags") == ["parameters"]
    tagged = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    assert len(tagged) == 1
    lines = cell.source.splitlines()
    assert len(lines) <= 8
    for line in lines:
        assert re.fullmatch(r'\w+: (str|int|float|bool) = ("[^"]*"|[\w.-]+)  # .+', line), line


def test_third_cell_checks_them(notebook):
    assert re.search(r"wb\.(start|setup)\(.*globals\(\)", notebook.cells[2].source)


def test_notebooks_of_methods_take_the_same_parameters(notebook, request):
    if request.node.callspec.id in OF_METHODS:
        assert re.findall(r"^(\w+):", notebook.cells[1].source, re.MULTILINE) == ["run", "recipe", "overrides"]


def test_cells_are_short(notebook):
    lengths = [len(source.splitlines()) for source in code_of(notebook)]
    assert max(lengths) <= 15, [source for source in code_of(notebook) if len(source.splitlines()) > 15]
    assert statistics.median(lengths) <= 8
    assert len(markdown_of(notebook)) >= len(lengths)


def test_long_functions_and_classes_live_in_the_library(notebook):
    for source in code_of(notebook):
        for node in ast.walk(ast.parse(source)):
            assert not isinstance(node, ast.ClassDef)
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno - node.lineno < 15, node.name


def test_nothing_that_stops_or_ties_the_notebook_to_one_machine(notebook):
    for source in code_of(notebook):
        for pattern, what in FORBIDDEN.items():
            assert not re.search(pattern, source, re.MULTILINE), f"{what} in:\n{source}"


def test_each_section_asks_predicts_runs_and_answers(notebook):
    for name, cells in sections(notebook).items():
        if name in CLOSING:
            continue
        kinds = [cell.cell_type for cell in cells]
        assert "code" in kinds, f"{name} runs nothing"
        before = "\n".join(cell.source for cell in cells[: kinds.index("code")])
        after = "\n".join(cell.source for cell in cells[kinds.index("code") :] if cell.cell_type == "markdown")
        assert "**Predict.**" in before, f"{name} asks for no prediction before its result"
        assert "<details><summary>" in after, f"{name} folds no answer below its result"


def test_folded_answers_are_well_formed(notebook):
    for text in markdown_of(notebook):
        assert text.count("<details>") == text.count("</details>") == text.count("</summary>")
        # Without an empty line, Markdown inside is shown as it stands.
        assert not re.search(r"</summary>\n(?!\n)", text)


def test_exercises_are_variations_with_minutes(notebook):
    text = "\n".join(markdown_of(notebook))
    tries = re.findall(r"\*\*Try it[^*]*\*\*", text)
    assert tries
    assert all(re.fullmatch(r"\*\*Try it \(\d+ min\)\.\*\*", one) for one in tries), tries
    assert "___" not in text and "TODO" not in text and "your code here" not in text.lower()


def test_ends_with_what_we_saw_questions_and_a_way_on(notebook):
    assert [text for level, text in headings(notebook) if level == 2][-3:] == list(CLOSING)
    last = notebook.cells[-1].source
    saw, check, onward = (last.split(f"## {name}\n")[1].split("\n## ")[0] for name in CLOSING)
    assert len(re.findall(r"^- ", saw, re.MULTILINE)) == 3
    assert len(re.findall(r"^\d\. ", check, re.MULTILINE)) == 3
    assert re.search(LINK, onward)


def test_links_lead_to_notebooks_that_exist(notebook, request):
    folder = PATHS[STEMS.index(request.node.callspec.id)].parent
    for link in re.findall(LINK, "\n".join(markdown_of(notebook))):
        assert (folder / link).is_file(), link


def test_writes_its_metrics(notebook, request):
    name = request.node.callspec.id
    assert any(re.search(rf'wb\.finish\(\s*(work|None),\s*"{name}"', source) for source in code_of(notebook))


def test_is_stripped_of_outputs(tmp_path):
    assert not verified(*PATHS), "run nbstripout on these"
    executed = nbformat.read(PATHS[0], as_version=4)
    executed.cells[1].outputs = [nbformat.v4.new_output("stream", text="left behind")]
    nbformat.write(executed, tmp_path / "executed.ipynb")
    assert verified(tmp_path / "executed.ipynb"), "nbstripout let an output pass"


def verified(*paths) -> str:
    """Return what nbstripout holds against the notebooks."""
    done = subprocess.run([sys.executable, "-m", "nbstripout", "--verify", *paths], capture_output=True, text=True)
    return done.stdout + done.stderr if done.returncode else ""


def test_is_a_valid_notebook_without_widgets_or_counts(notebook):
    nbformat.validate(notebook)
    assert "widgets" not in notebook.metadata
    assert all(cell.execution_count is None for cell in notebook.cells if cell.cell_type == "code")
