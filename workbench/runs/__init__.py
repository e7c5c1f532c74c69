"""A run: what it is asked, and what it remembers."""

import importlib
from collections.abc import Callable, Mapping


def lazily(
    package: str, where: Mapping[str, str], modules: Mapping[str, str] = {}
) -> tuple[Callable, Callable, list[str]]:
    """Return a package's `__getattr__`, its `__dir__` and its names.

    Args:
        package: Its name, as `__name__` says it.
        where: Module of the package -> the names it has, with blanks between them.
        modules: Name -> module of the package that stands under it.
    """
    module_of = {name: module for module, names in where.items() for name in names.split()}
    known = sorted([*module_of, *modules])

    def find(name: str):
        if name in modules:
            return importlib.import_module(f"{package}.{modules[name]}")
        if name not in module_of:
            raise AttributeError(f"{package} has no {name!r}; it has {', '.join(known)}.")
        return getattr(importlib.import_module(f"{package}.{module_of[name]}"), name)

    return find, lambda: known, known
