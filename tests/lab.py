"""A real JupyterLab on a port of its own, with its settings in a folder of its own, for tests in a browser."""

import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import nbformat
from conftest import PROJECT

START_S = 240
THEMES = ("JupyterLab Light", "JupyterLab Dark")


@contextmanager
def lab(folder: Path, **environment: str) -> Iterator[str]:
    """Start JupyterLab in a folder and yield its address; it is stopped, with its kernels, at the end."""
    settings = folder / ".jupyter"
    places = {name: str(settings / name) for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR")}
    places |= {
        "JUPYTERLAB_SETTINGS_DIR": str(settings / "lab"),
        "JUPYTERLAB_WORKSPACES_DIR": str(settings / "workspaces"),
    }
    path = os.pathsep.join(filter(None, [str(PROJECT), os.environ.get("PYTHONPATH", "")]))
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--ip=127.0.0.1", "--port=0"]
    command += ["--ServerApp.port_retries=0", "--IdentityProvider.token=", f"--ServerApp.root_dir={folder}"]
    environment = {**places, "PYTHONPATH": path, **environment}
    with _served(command, folder / "lab.log", r"http://127\.0\.0\.1:\d+/lab", environment) as address:
        yield address


@contextmanager
def app(notebook: Path, folder: Path, **environment: str) -> Iterator[str]:
    """Show a notebook as the app that `make app` makes of notebook 06, and yield its address."""
    flags = re.search(r"bin/voila \S+ ((?:.*\\\n)*.*)", (PROJECT / "Makefile").read_text())
    command = [sys.executable, "-m", "voila", str(notebook), *flags[1].replace("\\", "").split()]
    command += ["--no-browser", f"--port={_free_port()}"]
    path = os.pathsep.join(filter(None, [str(PROJECT), os.environ.get("PYTHONPATH", "")]))
    environment = {"JUPYTER_PATH": str(PROJECT / "notebooks" / "app"), "PYTHONPATH": path, **environment}
    with _served(command, folder / "app.log", r"http://(?:127\.0\.0\.1|localhost):\d+/", environment) as address:
        yield address


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


@contextmanager
def _served(command: list[str], said: Path, pattern: str, environment: dict[str, str]) -> Iterator[str]:
    """Start a server and yield the address that it says; it is stopped, with its kernels, at the end."""
    with open(said, "w") as log:
        server = subprocess.Popen(
            command, cwd=PROJECT, stdout=log, stderr=subprocess.STDOUT, env={**os.environ, **environment}
        )
    try:
        yield _address(server, said, pattern)
    finally:
        server.terminate()
        try:
            server.wait(30)
        except subprocess.TimeoutExpired:
            server.kill()


def _address(server: subprocess.Popen, said: Path, pattern: str) -> str:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and server.poll() is None:
        if found := re.search(pattern, said.read_text()):
            return found[0]
        time.sleep(0.2)
    raise RuntimeError(f"{server.args[2]} did not start: {said.read_text()[-2000:]}")


def use_theme(page, theme: str) -> None:
    """Choose a theme from Lab's menu, for example "JupyterLab Dark"."""
    page.get_by_role("menuitem", name="Settings").first.click()
    page.get_by_text("Theme", exact=True).first.click()
    page.get_by_text(theme, exact=True).last.click()
    light = "true" if theme.endswith("Light") else "false"
    page.wait_for_selector(f"body[data-jp-theme-light='{light}']", state="attached")
    page.wait_for_timeout(500)


def axe_finds_nothing(page, context: str) -> None:
    """Check names, roles and contrast of a part of the page."""
    from axe_playwright_python.sync_playwright import Axe

    found = Axe().run(page, context=context)
    assert not found.violations_count, f"{context}:\n{found.generate_report()}"


def write_notebook(path: Path, *cells: str) -> None:
    """Write a notebook of code cells."""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(notebook, path)
