"""One HTML page from executed notebooks: opens offline, asks no other host for anything, plotly.js in it once."""

import html
import re
from collections.abc import Sequence
from pathlib import Path

import nbformat
from nbconvert import HTMLExporter

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
.output_error { border-left: 5px solid #d55e00; }
"""
# The cells alone, their code folded.
CELLS = """{%- extends 'basic/index.html.j2' -%}
{%- block input -%}
<details class="code"><summary>code</summary>{{ cell.source | highlight_code(metadata=cell.metadata) }}</details>
{%- endblock input -%}
"""


def build(notebooks: Sequence[Path], path: Path, title: str, verdict: str = "") -> Path:
    """Write one page from executed notebooks, in their order.

    Args:
        notebooks: Executed copies; HTML in them comes from our own cells, which escape the text of models.
        path: Where the page goes.
        title: What the page is called.
        verdict: What stands first, in plain words.
    """
    hide = {"exclude_input_prompt": True, "exclude_output_prompt": True, "exclude_anchor_links": True}
    exporter, parts, links = HTMLExporter(raw_template=CELLS, **hide), [], []
    for notebook in notebooks:
        node = nbformat.read(notebook, as_version=4)
        node.cells = [cell for cell in map(_without_script, node.cells) if not _holds_parameters(cell)]
        name = _title_of(node).partition(":")[0] or notebook.stem
        links.append(f'<a href="#{notebook.stem}">{html.escape(name)}</a>')
        # Notebooks link each other; here those of the loop are sections of one page, and a study is a page of its own.
        cells = re.sub(r'href="(\d\d_\w+)\.ipynb"', r'href="#\1"', exporter.from_notebook_node(node)[0])
        cells = re.sub(r'href="\.\./(\d\d_\w+)\.ipynb"', r'href="report.html#\1"', cells)
        cells = re.sub(r'href="(?:studies/)?([a-z]\w+)\.ipynb"', r'href="\1.html"', cells)
        parts.append(f'<section id="{notebook.stem}">{cells}</section>')
    head = f'<meta charset="utf-8"><title>{html.escape(title)}</title>'
    first = f'<p class="verdict">{html.escape(verdict)}</p>' if verdict else ""
    page = (
        f'<!doctype html><html lang="en"><head>{head}<style>{STYLE}</style>{plotly_script()}</head><body>'
        f"<nav>{''.join(links)}</nav><main><p>{html.escape(title)}</p>{first}{''.join(parts)}</main></body></html>\n"
    )
    atomic_write(path, page.encode("utf-8"))
    return path


def _without_script(cell: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Return the cell without the plotly.js that a notebook's first cell displays."""
    if "outputs" in cell:
        cell.outputs = [one for one in cell.outputs if one.get("data", {}).get("text/plain") != SCRIPT_SAYS]
    return cell


def _holds_parameters(cell: nbformat.NotebookNode) -> bool:
    # The values that a run used stand in its recipe.
    return bool({"parameters", "injected-parameters"} & set(cell.metadata.get("tags", [])))


def _title_of(node: nbformat.NotebookNode) -> str:
    heads = [re.match(r"# (.+)", cell.source) for cell in node.cells if cell.cell_type == "markdown"]
    return next((head[1].strip() for head in heads if head), "")
