"""One HTML page from executed notebooks: opens offline, asks no other host for anything, plotly.js in it once."""

import html
import re
from collections.abc import Sequence
from pathlib import Path

import nbformat
from nbconvert.filters import Highlight2HTML, ansi2html, markdown2html

from workbench.figures.style import plotly_script
from workbench.runs.cache import atomic_write

SCRIPT_SAYS = "Figures are drawn by plotly."
STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.55 Helvetica, Arial, sans-serif; color: #1f1f1f; background: #fff; margin: 0; }
main { max-width: 62rem; margin: 0 auto; padding: 1rem 1.5rem 4rem; }
nav { background: #f3f5f7; padding: .8rem 1.5rem; position: sticky; top: 0; z-index: 5; font-size: 14px; }
nav a { margin-right: 1.2rem; color: #00517d; }
h1 { font-size: 1.9rem; margin-top: 3rem; border-top: 3px solid #0072b2; padding-top: 1rem; }
h2 { font-size: 1.35rem; margin-top: 2.2rem; }
.verdict { background: #eef5fa; border-left: 5px solid #0072b2; padding: .8rem 1.2rem; font-size: 1.08rem; }
table { border-collapse: collapse; font-size: 14px; display: block; overflow-x: auto; }
th, td { text-align: left; padding: .25rem .7rem; border-bottom: 1px solid #dde3e8; vertical-align: top; }
pre { background: #f6f8fa; padding: .7rem 1rem; overflow-x: auto; font-size: 13px; line-height: 1.4; }
details { margin: .4rem 0; }
summary { cursor: pointer; color: #00517d; }
details.code > summary { font-size: 12px; color: #595959; }
blockquote { border-left: 4px solid #c9d3dc; margin-left: 0; padding-left: 1rem; color: #333; }
.anchor-link { display: none; }
.highlight .k, .highlight .kn, .highlight .ow { color: #00517d; font-weight: bold; }
.highlight .s1, .highlight .s2 { color: #7a3e00; }
.highlight .c1 { color: #595959; font-style: italic; }
.error { border-left: 5px solid #d55e00; }
"""


def build(notebooks: Sequence[Path], path: Path, title: str, verdict: str = "") -> Path:
    """Write one page from executed notebooks, in their order.

    Args:
        notebooks: Executed copies.
        path: Where the page goes.
        title: What the page is called.
        verdict: What stands first, in plain words.
    """
    parts, links = [], []
    for notebook in notebooks:
        node = nbformat.read(notebook, as_version=4)
        name = _title_of(node).partition(":")[0] or notebook.stem
        links.append(f'<a href="#{notebook.stem}">{html.escape(name)}</a>')
        parts.append(f'<section id="{notebook.stem}">{"".join(map(_cell, node.cells))}</section>')
    head = f'<meta charset="utf-8"><title>{html.escape(title)}</title>'
    first = f'<p class="verdict">{html.escape(verdict)}</p>' if verdict else ""
    page = (
        f'<!doctype html><html lang="en"><head>{head}<style>{STYLE}</style>{plotly_script()}</head><body>'
        f"<nav>{''.join(links)}</nav><main><p>{html.escape(title)}</p>{first}{''.join(parts)}</main></body></html>\n"
    )
    atomic_write(path, page.encode("utf-8"))
    return path


def _title_of(node: nbformat.NotebookNode) -> str:
    heads = [re.match(r"# (.+)", cell.source) for cell in node.cells if cell.cell_type == "markdown"]
    return next((head[1].strip() for head in heads if head), "")


def _cell(cell: nbformat.NotebookNode) -> str:
    if cell.cell_type == "markdown":
        # Notebooks link each other; here those of the loop are sections of one page, and a study is a page of its own.
        inside = re.sub(r'href="(\d\d_\w+)\.ipynb"', r'href="#\1"', markdown2html(cell.source))
        beside = re.sub(r'href="\.\./(\d\d_\w+)\.ipynb"', r'href="report.html#\1"', inside)
        return re.sub(r'href="(?:studies/)?([a-z]\w+)\.ipynb"', r'href="\1.html"', beside)
    if cell.cell_type != "code":
        return ""
    # The values that a run used stand in its recipe.
    if {"parameters", "injected-parameters"} & set(cell.metadata.get("tags", [])):
        return ""
    outputs = "".join(map(_output, cell.outputs))
    code = Highlight2HTML(pygments_lexer="python3")(cell.source)
    return f'<details class="code"><summary>code</summary>{code}</details>{outputs}'


def _output(output: nbformat.NotebookNode) -> str:
    """Return one output; HTML comes from our own cells, which escape the text of models."""
    if output.output_type == "stream":
        return f"<pre>{html.escape(output.text)}</pre>"
    if output.output_type == "error":
        return f'<pre class="error">{ansi2html(chr(10).join(output.traceback))}</pre>'
    data = output.get("data", {})
    if data.get("text/plain") == SCRIPT_SAYS:
        return ""
    if "text/html" in data:
        return f"<div>{data['text/html']}</div>"
    if "image/png" in data:
        return f'<img alt="" src="data:image/png;base64,{data["image/png"]}">'
    return f"<pre>{html.escape(data.get('text/plain', ''))}</pre>"
