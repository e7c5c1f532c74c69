"""Markdown that texts of models cannot break: escaped lines, fences, tables and lists."""

import html
import re
import unicodedata
from collections.abc import Iterable


def plain(text: object) -> str:
    """Return a text on one line that Markdown and HTML show literally."""
    line = " ".join(_printable(str(text)).split())
    return re.sub(r"([\\`*_\[\]|~#])", r"\\\1", html.escape(line, quote=False))


def fenced(text: str, language: str = "") -> str:
    """Return a text in a fence longer than any in it."""
    longest = max(map(len, re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{_printable(text).rstrip()}\n{fence}"


def _printable(text: str) -> str:
    # Control and direction marks could hide, break or reorder what a reader sees.
    return "".join(one if one in "\n\t" or not _is_hidden(one) else "\ufffd" for one in text.replace("\r\n", "\n"))


def _is_hidden(character: str) -> bool:
    kind = unicodedata.category(character)
    return kind.startswith("C") or kind in ("Zl", "Zp")


def table(head: Iterable[object], rows: Iterable[Iterable[object]]) -> str:
    """Return a Markdown table of escaped cells."""
    names = [plain(name) for name in head]
    lines = [names, ["---"] * len(names), *([_cell(value) for value in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(value: object) -> str:
    return f"{value:,}" if isinstance(value, int) else plain(value)


def bullets(lines: Iterable[str]) -> str:
    """Return a Markdown list of escaped lines."""
    return "\n".join(f"- {plain(line)}" for line in lines)
