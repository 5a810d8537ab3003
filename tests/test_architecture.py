"""The house holds: who may import whom, what loads at start, and that every public name is documented.

The table is that of docs/architecture.md. Imports inside functions count like any other, but for the ones in `LATE`,
which keep a heavy library off the start-up path.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from urllib.request import urlopen

import pytest

from tests.conftest import free_port
from tests.waiting import until

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "kodo"
FILES = sorted(PACKAGE.rglob("*.py"))

WIRE = {"kodo.errors", "kodo.models"}
CORE = WIRE | {"kodo.core", "kodo.digests"}
LAB = WIRE | {
    *("kodo", "kodo.client", "kodo.query", "kodo.misread", "kodo.frames", "kodo.lab", "kodo.loader", "kodo.plan"),
    *("kodo.options", "kodo.sim"),
}
SERVICE = CORE | {
    *("kodo", "kodo.cache", "kodo.catalogue", "kodo.changes", "kodo.checkup", "kodo.contacts", "kodo.loader"),
    *("kodo.options", "kodo.query", "kodo.runtime", "kodo.trace", "kodo.transport", "kodo.service"),
}
MAY_IMPORT: dict[str, set[str]] = {
    "kodo": set(),
    "kodo.__main__": {"kodo.checkup", "kodo.cli", "kodo.errors", "kodo.serving"},
    "kodo.errors": set(),
    "kodo.models": {"kodo.digests"},
    "kodo.core": CORE,
    "kodo.query": WIRE,
    "kodo.misread": WIRE | {"kodo.query"},
    "kodo.changes": WIRE,
    "kodo.digests": set(),
    "kodo.forks": set(),
    "kodo.checkup": {"kodo.digests", "kodo.forks"},
    "kodo.opening": CORE | {"kodo.checkup"},
    "kodo.listing": WIRE | {"kodo.opening"},
    "kodo.rows": {"kodo.listing"},
    "kodo.catalogue": CORE
    | {"kodo.changes", "kodo.checkup", "kodo.listing", "kodo.opening", "kodo.query", "kodo.rows"},
    "kodo.cache": CORE | {"kodo.catalogue", "kodo.checkup", "kodo.opening"},
    "kodo.loader": WIRE,
    "kodo.options": WIRE | {"kodo.loader"},
    "kodo.plan": WIRE,
    "kodo.contacts": CORE,
    "kodo.runtime": CORE | {"kodo.contacts"},
    "kodo.trace": WIRE,
    "kodo.reasons": {"kodo.errors"},
    "kodo.transport": CORE | {"kodo.reasons", "kodo.trace"},
    "kodo.client": WIRE | {"kodo.reasons"},
    "kodo.frames": WIRE,
    "kodo.guardian": WIRE | {"kodo.forks", "kodo.loader", "kodo.options", "kodo.service", "kodo.transport"},
    "kodo.service": SERVICE,
    "kodo.sim": CORE | {"kodo.loader", "kodo.plan", "kodo.query"},
    "kodo.lab": LAB,
    "kodo.serving": {"kodo.errors", "kodo.options", "kodo.service"},
    "kodo.cli": SERVICE | LAB | {"kodo.serving"},
}
LATE = {
    ("kodo.cli", "kodo.service"),
    ("kodo.cli", "kodo.lab"),
    ("kodo.cli", "kodo.sim"),
}
OUTSIDE: dict[str, set[str]] = {
    "fastapi": {"kodo.service"},
    "starlette": {"kodo.service"},
    "uvicorn": {"kodo.service"},
    "pandas": {"kodo.frames"},
    "ipywidgets": {"kodo.lab"},
    "anywidget": {"kodo.lab"},
    "networkx": {"kodo.lab"},
    "matplotlib": {"kodo.lab"},
    "numpy": {"kodo.lab"},
    "sqlite3": {
        "kodo.cache",
        "kodo.catalogue",
        "kodo.checkup",
        "kodo.listing",
        "kodo.opening",
        "kodo.rows",
        "kodo.serving",
    },
    "typer": {"kodo.cli"},
    "rich": {"kodo.cli", "kodo.lab"},
}
NOT_IN_CORE = {
    "asyncio",
    "time",
    "random",
    "os",
    "socket",
    "logging",
    "httpx",
    "fastapi",
    "pandas",
    "threading",
    "secrets",
}
ONE_FILE = {"pandas", "anywidget", "ipywidgets", "networkx", "matplotlib", "numpy"}


def module(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def room(name: str) -> str:
    """The room of a module: the longest prefix in the table."""
    return max((known for known in MAY_IMPORT if name == known or name.startswith(known + ".")), key=len)


def imports(path: Path) -> Iterator[str]:
    tree = ast.parse(path.read_text())
    for branch in ast.walk(tree):
        if isinstance(branch, ast.If) and isinstance(branch.test, ast.Name) and branch.test.id == "TYPE_CHECKING":
            branch.body = []  # names for types are not imported when the program runs
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path} imports relatively"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from (name if _is_module(name) else node.module for name in names)


def _is_module(name: str) -> bool:
    path = ROOT.joinpath(*name.split("."))
    return path.is_dir() or path.with_suffix(".py").exists()


@pytest.mark.parametrize("path", FILES, ids=module)
def test_imports_keep_to_the_table(path: Path) -> None:
    """A module imports only the rooms that the table gives to its own."""
    here = room(module(path))
    for name in imports(path):
        if name.partition(".")[0] == "kodo" and room(name) != here:
            allowed = room(name) in MAY_IMPORT[here] or (module(path), room(name)) in LATE
            assert allowed, f"{module(path)} imports {name}"


@pytest.mark.parametrize("path", FILES, ids=module)
def test_libraries_stay_in_their_rooms(path: Path) -> None:
    """Each library that shapes the code is imported in its own room alone, and the core imports nothing that acts."""
    here = room(module(path))
    for name in imports(path):
        library = name.partition(".")[0]
        assert here in OUTSIDE.get(library, {here}), f"{module(path)} imports {name}"
        assert not (here == "kodo.core" and library in NOT_IN_CORE), f"{module(path)} imports {name}"


def test_one_importer_each() -> None:
    """pandas, anywidget, ipywidgets, networkx, matplotlib and numpy have one importing module each."""
    for library in ONE_FILE:
        importers = {module(path) for path in FILES if library in {name.partition(".")[0] for name in imports(path)}}
        assert len(importers) <= 1, f"{library} is imported by {importers}"


def test_what_a_start_loads() -> None:
    """A service answers without pandas, YAML, the HTTP client, the lab and the simulator, a page of HTML included."""
    late = [
        *("pandas", "numpy", "yaml", "ipywidgets", "IPython", "anywidget", "networkx", "matplotlib", "typer"),
        *("httpx", "kodo.lab", "kodo.sim", "kodo.frames", "kodo.client"),
    ]
    loaded = subprocess.run(
        [sys.executable, "-c", ANSWERS, *late], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert loaded.stdout.splitlines() == ["200 application/json", "200 text/html; charset=utf-8", "[]"]


ANSWERS = """
import sys, threading
from http.client import HTTPConnection
from kodo.service import node

def ask(running):
    connection = HTTPConnection(running.url.removeprefix("http://"))
    for path in ("/flows", "/flows?format=html"):
        connection.request("GET", path)
        answer = connection.getresponse()
        answer.read()
        print(answer.status, answer.getheader("content-type"))
    print([name for name in sys.argv[1:] if name in sys.modules])
    running.end()

options = node.load_options(url="http://127.0.0.1:0", registry=False)
node.run(options, lambda running: threading.Thread(target=ask, args=[running]).start())
"""


BUDGET = 50
"""Modules of kodo and of Python's own that a service may load beyond those of a bare one.

Into how many modules a library is cut is its own affair, and changes with its releases: of those the names count.
"""
LIBRARIES = {"pydantic", "pydantic_settings", "dotenv", "filelock", "orjson"}
BARE = """
import fastapi, sqlite3, uvicorn
app = fastapi.FastAPI()
app.get("/")(lambda p=0: p)
config = uvicorn.Config(app, ws="none")
config.load()
config.get_loop_factory()()
"""


def test_the_budget_of_a_start(tmp_path: Path) -> None:
    """Before its first answer `kodo serve` loads what bare FastAPI does, settings, a lock and kodo, within a budget."""
    python = [sys.executable, "-X", "importtime"]
    bare = subprocess.run([*python, "-c", BARE], stderr=subprocess.PIPE, text=True, check=True).stderr
    url, log = f"http://127.0.0.1:{free_port()}", tmp_path / "log"
    with log.open("w") as file:
        serve = [*python, "-m", "kodo", "serve", "--url", url, "--cache", str(tmp_path / "cache.db")]
        service = subprocess.Popen(serve, stderr=file, cwd=ROOT)
    try:
        until(lambda: "successfully started" in log.read_text(), "the service to start", timeout=30)
        with urlopen(f"{url}/flows") as answer:
            assert answer.status == HTTPStatus.OK
    finally:
        service.terminate()
        service.wait()
    beyond = _loaded(log.read_text()) - _loaded(bare)
    own = {name for name in beyond if name.partition(".")[0] in {"kodo", *sys.stdlib_module_names}}
    assert {name.partition(".")[0] for name in beyond - own} <= LIBRARIES
    assert len(own) <= BUDGET, sorted(own)


def _loaded(importtime: str) -> set[str]:
    lines = importtime.splitlines()
    return {line.rpartition("|")[2].strip() for line in lines if line.startswith("import time:")}


MESSAGE = """
import asyncio, sys
from kodo import transport

class Finder:
    asked = set()

    @classmethod
    def find_spec(cls, name, path=None, target=None):
        cls.asked.add(name)

async def main():
    client = await asyncio.to_thread(transport._client)
    before = set(sys.modules)
    sys.meta_path.insert(0, Finder)
    async with client.stream("POST", sys.argv[1], content=b"{}") as answer:
        await answer.aread()
    print(sorted(set(sys.modules) - before), sorted(Finder.asked))

asyncio.run(main())
"""


def test_what_the_first_message_loads() -> None:
    """The first message to a peer loads nothing more on the event loop, nor looks there for what is not installed."""

    class Peer(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.send_response(HTTPStatus.OK)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Peer) as peer, ThreadPoolExecutor(1) as thread:
        peer.timeout = 30
        thread.submit(peer.handle_request)
        sent = [sys.executable, "-c", MESSAGE, f"http://127.0.0.1:{peer.server_port}/update/node"]
        loaded = subprocess.run(sent, capture_output=True, text=True, check=True, cwd=ROOT)
    assert loaded.stdout.strip() == "[] []"


def test_what_a_lab_loads() -> None:
    """A lab starts without the simulator, pandas and matplotlib: they are loaded when they are asked for."""
    late = ["pandas", "numpy", "matplotlib", "kodo.sim", "kodo.core"]
    code = f"import sys, kodo.lab; print([name for name in {late} if name in sys.modules])"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert loaded.stdout.strip() == "[]"


def _public(path: Path) -> Iterator[tuple[str, ast.AST]]:
    tree = ast.parse(path.read_text())
    yield module(path), tree
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            yield f"{module(path)}.{node.name}", node
            if isinstance(node, ast.ClassDef) and not _is_protocol(node):
                for method in node.body:
                    if isinstance(method, ast.FunctionDef | ast.AsyncFunctionDef) and not method.name.startswith("_"):
                        yield f"{module(path)}.{node.name}.{method.name}", method


def _is_protocol(node: ast.ClassDef) -> bool:
    return any(isinstance(base, ast.Name) and base.id == "Protocol" for base in node.bases)


SPEAKS_FOR_ITSELF = {"key", "feed"}
"""Properties whose name, in the class where they stand, says all."""


@pytest.mark.parametrize("path", FILES, ids=module)
def test_every_public_name_is_documented(path: Path) -> None:
    """Modules, and public classes, functions and methods, say what they do."""
    if not path.read_text().strip():
        return
    for name, node in _public(path):
        assert isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        inherited = name.rpartition(".")[2] in SPEAKS_FOR_ITSELF | OVERRIDDEN
        assert inherited or ast.get_docstring(node), f"{name} has no docstring"


OVERRIDDEN = {"concerns", "render", "capture_signals", "startup", "shutdown"}
"""Methods that do what the class above them says."""


def test_the_rooms_are_those_of_the_documentation() -> None:
    """docs/architecture.md has a row for every room, and no other."""
    rows = [line for line in (ROOT / "docs/architecture.md").read_text().splitlines() if line.startswith("| `kodo/")]
    named = {name for row in rows for name in row.split("|")[1].replace("`", "").replace(" ", "").split(",")}
    wanted = {"kodo/" + "/".join(name.split(".")[1:]) for name in MAY_IMPORT if name not in {"kodo", "kodo.__main__"}}
    assert {name.removesuffix(".py").rstrip("/") for name in named} == wanted
