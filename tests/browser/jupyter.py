"""JupyterLab as a process of its own, with settings of its own, and a notebook opened in a page."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import nbformat
from playwright.sync_api import Page

from tests.conftest import free_port
from tests.waiting import until

SETTINGS = {
    "notification": {"fetchNews": "false", "checkForUpdates": False},
}


@dataclass(frozen=True, slots=True)
class Lab:
    """A server that answers, and the folder that it serves."""

    url: str
    folder: Path


@contextmanager
def jupyterlab(folder: Path, dark: bool = False) -> Iterator[Lab]:
    """Start a JupyterLab that knows nothing of the user's; it ends with its kernels."""
    home = folder / "jupyter"
    settings = home / "settings" / "@jupyterlab" / "apputils-extension"
    settings.mkdir(parents=True)
    wanted: dict[str, Any] = {**SETTINGS, "themes": {"theme": f"JupyterLab {'Dark' if dark else 'Light'}"}}
    for name, values in wanted.items():
        (settings / f"{name}.jupyterlab-settings").write_text(json.dumps(values))
    served = folder / "served"
    served.mkdir()
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    places = {name: str(home / name.lower()) for name in ("CONFIG_DIR", "DATA_DIR", "RUNTIME_DIR")}
    environment = {**os.environ, **{f"JUPYTER_{name}": place for name, place in places.items()}}
    order = [
        *(sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", f"--ServerApp.root_dir={served}"),
        *(f"--ServerApp.port={port}", "--ServerApp.port_retries=0", "--IdentityProvider.token="),
        *("--ServerApp.ip=127.0.0.1", "--LabApp.expose_app_in_browser=True"),
        *(f"--LabApp.user_settings_dir={home / 'settings'}", f"--LabApp.workspaces_dir={home / 'workspaces'}"),
    ]
    with (folder / "jupyter.log").open("wb") as log:
        server = subprocess.Popen(order, stdout=log, stderr=log, env=environment, start_new_session=True)
    try:
        until(lambda: _answers(url), "JupyterLab to answer", timeout=60)
        yield Lab(url, served)
        for session in _get(f"{url}/api/sessions"):
            httpx.delete(f"{url}/api/sessions/{session['id']}", trust_env=False, timeout=30)
    finally:
        server.terminate()
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGKILL)
            raise
        shutil.rmtree(home, ignore_errors=True)


def _answers(url: str) -> bool:
    try:
        return bool(_get(f"{url}/api/status"))
    except httpx.HTTPError:
        return False


def _get(url: str) -> Any:
    return httpx.get(url, trust_env=False, timeout=10).json()


def write_notebook(path: Path, cells: list[str]) -> None:
    """A notebook of these cells of code."""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    notebook.metadata["kernelspec"] = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}
    notebook.metadata["language_info"] = {"name": "python"}
    nbformat.write(notebook, path)


def code_of(path: Path) -> list[str]:
    """The cells of code of a notebook."""
    return [cell.source for cell in nbformat.read(path, 4).cells if cell.cell_type == "code"]


def run_notebook(page: Page, lab: Lab, name: str) -> None:
    """Open a notebook and run all of it, until the kernel is idle again and no cell waits."""
    page.goto(f"{lab.url}/lab/workspaces/{name.partition('.')[0]}/tree/{name}?reset")
    page.wait_for_selector(".jp-NotebookPanel .jp-Cell", timeout=60_000)
    page.wait_for_function("window.jupyterapp?.commands.isEnabled('notebook:run-all-cells')", timeout=60_000)
    # A notebook that is run before it has a kernel asks for one.
    page.wait_for_function(
        "jupyterapp.shell.currentWidget?.sessionContext?.session?.kernel?.status === 'idle'", timeout=60_000
    )
    page.evaluate("void jupyterapp.commands.execute('filebrowser:toggle-main')")
    page.evaluate("void jupyterapp.commands.execute('notebook:run-all-cells')")
    page.wait_for_function(
        """() => {
          const prompts = [...document.querySelectorAll('.jp-CodeCell .jp-InputPrompt')].map((one) => one.textContent);
          return prompts.length && prompts.every((text) => /\\[\\d+\\]/.test(text));
        }""",
        timeout=60_000,
    )
    faults = page.locator('.jp-RenderedText[data-mime-type="application/vnd.jupyter.error"]')
    assert faults.count() == 0, faults.first.text_content()
