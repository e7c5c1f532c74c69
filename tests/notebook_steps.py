"""The steps of a notebook, computed in this process: its code without what only shows something."""

import ast
import json

from conftest import PROJECT

from workbench.runs.run import steps_in

SHOWS = {"show", "say", "source", "finish"}
NOTEBOOKS = {
    "drafting": "01_drafting",
    "probing": "02_preference_probing",
    "alignment": "03_teacher_alignment",
    "training": "04_student_training",
    "evaluation": "05_evaluation",
    "influence": "07_influence",
    "curriculum": "08_curriculum",
    "ts_align": "09_ts_align",
}


def compute(stage: str, run) -> dict:
    """Compute the steps of a notebook on a run; return the names that its code has set."""
    cells = json.loads((PROJECT / "notebooks" / f"{NOTEBOOKS[stage]}.ipynb").read_text(encoding="utf-8"))["cells"]
    names, last = {"__name__": "__main__", "work": run}, steps_in(NOTEBOOKS[stage])[-1]
    for cell in (cell for cell in cells if cell["cell_type"] == "code"):
        tree = ast.parse("".join(cell["source"]))
        tree.body = [statement for statement in tree.body if not _only_shows(statement)]
        exec(compile(tree, NOTEBOOKS[stage], "exec"), names)
        if f'"{last}"' in "".join(cell["source"]):
            break
    return names


def _only_shows(statement: ast.stmt) -> bool:
    if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == "work":
        return True  # the run is given
    if isinstance(statement, ast.For | ast.If):
        return all(map(_only_shows, [*statement.body, *statement.orelse]))
    call = statement.value if isinstance(statement, ast.Expr) else None
    return isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and call.func.attr in SHOWS
