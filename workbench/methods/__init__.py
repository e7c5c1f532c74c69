"""One file a method, and the list of all; a method of your own comes from a file or is added in a notebook.

wb.methods.ALL["mine"] = dataclasses.replace(wb.methods.ALL["arte"], name="mine", signal=my_signal)
"""

import importlib.util
import os
from pathlib import Path

from workbench.methods.arte import ARTE
from workbench.methods.base import Method
from workbench.methods.montessori import MONTESSORI
from workbench.methods.tapir import TAPIR
from workbench.methods.ts_align import TS_ALIGN
from workbench.runs import lazily
from workbench.runs.errors import RecipeError

SLOW = ("rounds", "tapir_rounds", "tapir_labels", "ts_align_rounds")  # they load models
__getattr__, *_ = lazily(__name__, {}, {name: name for name in SLOW})

FROM_FILE = "WORKBENCH_METHOD"  # path of a file of one's own that sets METHOD; processes that are started inherit it
FIRST, FIRST_RECIPE = ARTE.name, "arte-demo"
POCKET_RECIPE = "arte"  # names all models and tasks that the first notebooks need, and more

ALL: dict[str, Method] = {method.name: method for method in (ARTE, MONTESSORI, TAPIR, TS_ALIGN)}


def bring(path: str | Path) -> Method:
    """Add the method that a Python file sets as METHOD; the file is executed, so it must be yours.

    Raises:
        RecipeError: If there is no such file, or it sets no METHOD.
    """
    path = Path(path)
    if not path.is_file():
        raise RecipeError(f"--method must be a Python file that sets METHOD, got {str(path)!r}, which is no file.")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    method = getattr(module, "METHOD", None)
    if not isinstance(method, Method):
        raise RecipeError(f"{path} sets no METHOD; write, say: METHOD = replace(ALL['{FIRST}'], name='mine', ...)")
    ALL[method.name] = method
    return method


if os.environ.get(FROM_FILE):
    bring(os.environ[FROM_FILE])
