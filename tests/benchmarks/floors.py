"""The floors: services that do the least that the work needs, and nothing that kodo promises beside it.

`python -m tests.benchmarks.floors NAME PORT [...]` runs one of them, on uvicorn with the settings of kodo's own server.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import orjson
import uvicorn
from fastapi import FastAPI, Query, Request, Response

from tests.benchmarks import data

Routes = Callable[..., FastAPI]


def _json(content: Any) -> Response:
    return Response(orjson.dumps(content), media_type="application/json")


TAG = 'W/"a-1"'
"""The tag of the page."""
REGISTRY = "http://127.0.0.1:3366"


def page() -> FastAPI:
    """A route with four checked parameters, which writes ten dicts by orjson, or says that they have this tag."""
    one = data.node(0)
    shown = {"registry": REGISTRY, "node": one["url"], "organization": one["organization"]}
    times = dict.fromkeys(("created", "modified", "heartbeat"), "2024-12-25T18:03:12.989989")
    items = [{**shown, **times, **flow} for flow in one["flows"].values()]
    return _pages(lambda p, pp: items)


def rows(cache: str) -> FastAPI:
    """The same route, which reads the rows of a page by their ids, in an order that it knows, from a cache of kodo."""
    db = sqlite3.connect(cache)
    ids = [number for (number,) in db.execute("SELECT id FROM flow ORDER BY name, node, url")]
    columns = ("f.node", "f.url", "f.name", "f.author", "f.description", "n.organization")
    columns += ("n.created", "n.modified", "n.heartbeat")
    named = ", ".join(f"'{column[2:]}', {column}" for column in columns)
    wanted = (
        f"SELECT json_group_array(json_object('registry', ?, {named}, 'tags', json(f.tags))) FROM json_each(?) i"
        " CROSS JOIN flow f ON f.id = i.value CROSS JOIN record n ON n.id = f.record"
    )

    def items(p: int, pp: int) -> orjson.Fragment:
        some = orjson.dumps(ids[p * pp : (p + 1) * pp]).decode()
        return orjson.Fragment(db.execute(wanted, (REGISTRY, some)).fetchone()[0])

    return _pages(items)


def _pages(items: Callable[[int, int], Any]) -> FastAPI:
    app = FastAPI()

    @app.get("/flows")
    async def get_flows(
        request: Request,
        p: Annotated[int, Query(ge=0)] = 0,
        pp: Annotated[int, Query(ge=1, le=1000)] = 10,
        by: Annotated[str, Query()] = "",
        q: Annotated[str, Query()] = "",
    ) -> Response:
        if request.headers.get("if-none-match") == TAG:
            return Response(status_code=304, headers={"ETag": TAG})
        return _json({"total": 10, "filtered": 10, "p": p, "pp": pp, "items": items(p, pp), "by": by, "q": q})

    return app


def register(path: str) -> FastAPI:
    """A route that parses a registration, keeps it in memory with an index, and answers when it is on disk.

    Registrations that come together share one fsync.
    """
    from pydantic import BaseModel  # noqa: PLC0415, here alone

    class Flow(BaseModel):
        url: str
        name: str
        description: str | None = None
        tags: list[str] | None = None
        author: str | None = None

    class Registration(BaseModel):
        url: str
        organization: str | None = None
        flows: dict[str, Flow]

    log = Path(path).open("ab", buffering=0)  # noqa: SIM115, it is open as long as the service runs
    nodes: dict[str, Registration] = {}
    by_tag: dict[str, set[tuple[str, str]]] = {}
    waiting: list[tuple[bytes, asyncio.Future[None]]] = []
    news = asyncio.Event()

    def make_durable(lines: list[bytes]) -> None:
        log.write(b"\n".join(lines))
        os.fsync(log.fileno())

    async def write() -> None:
        while True:
            await news.wait()
            news.clear()
            batch, waiting[:] = waiting[:], []
            await asyncio.get_running_loop().run_in_executor(None, make_durable, [line for line, _ in batch])
            for _, done in batch:
                done.set_result(None)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> Any:
        task = asyncio.create_task(write())
        yield
        task.cancel()

    app = FastAPI(lifespan=lifespan)

    @app.get("/")
    async def get_status() -> Response:
        return _json({"idle": True})

    @app.post("/register")
    async def post_register(request: Request) -> Response:
        body = await request.body()
        node = Registration.model_validate_json(body)
        nodes[node.url] = node
        for flow in node.flows.values():
            for tag in flow.tags or ():
                by_tag.setdefault(tag, set()).add((node.url, flow.url))
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        waiting.append((body, done))
        news.set()
        await done
        return _json({"url": node.url, "message": [f"registered node {node.url}"]})

    return app


def relay(*following: str, keep: Callable[[bytes], Any] | None = None) -> FastAPI:
    """A service that remembers what it is told, and tells it to the next one by one kept client.

    `keep` is done first with what it is told, on a thread.
    """
    import httpx  # noqa: PLC0415, here alone

    app = FastAPI()
    client = httpx.AsyncClient(trust_env=False)
    known: set[str] = set()
    tasks: set[asyncio.Task[Any]] = set()

    def tell(body: bytes) -> None:
        for url in following:
            task = asyncio.create_task(client.post(f"{url}/register", content=body))
            tasks.add(task)
            task.add_done_callback(tasks.discard)

    @app.post("/register")
    async def post_register(request: Request) -> Response:
        body = await request.body()
        known.add(orjson.loads(body)["url"])
        if keep is not None:
            await asyncio.get_running_loop().run_in_executor(None, keep, body)
        tell(body)
        return _json({"message": []})

    @app.get("/flows")
    async def get_flows(pp: Annotated[int, Query(ge=1)] = 10, q: Annotated[str, Query()] = "") -> Response:
        return _json({"total": len(known), "filtered": int(q.split('"')[1] in known) if q else 0})

    @app.get("/")
    async def get_status() -> Response:
        return _json({"idle": not tasks})

    return app


def held(report: str) -> FastAPI:
    """The page, with a watch over how long its event loop is held; see `watch`."""
    app = page()

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> Any:
        watch(report)
        yield

    app.router.lifespan_context = lifespan
    return app


def watch(report: str, every: float = 0.001) -> None:
    """Look every millisecond whether this loop turns; at SIGUSR1 the longest that it did not is the report, in ms."""
    loop = asyncio.get_running_loop()
    longest, due = 0.0, loop.time() + every

    def look() -> None:
        nonlocal longest, due
        now = loop.time()
        longest, due = max(longest, now - due), now + every
        loop.call_at(due, look)

    loop.call_at(due, look)
    loop.add_signal_handler(signal.SIGUSR1, lambda: Path(report).write_text(str(1000 * longest)))


ROUTES: dict[str, Routes] = {
    "page": page,
    "rows": rows,
    "register": register,
    "relay": relay,
    "held": held,
}


def run(name: str, port: int, *args: str) -> None:
    """Run one of the floors until it is told to end."""
    serve(ROUTES[name](*args), port)


def serve(app: FastAPI, port: int) -> None:
    """Run a service on uvicorn, with the settings of kodo's own server."""
    uvicorn.run(app, host="127.0.0.1", port=port, log_level="error", access_log=False, ws="none", timeout_keep_alive=65)


# -- many at once ------------------------------------------------------------------------------------------------------


def fork_many(ports: list[int], ready: Callable[[int], Awaitable[None]]) -> dict[str, float]:
    """Start a bare service on each of these ports from a fork server, and end them: the seconds that each took."""
    import multiprocessing  # noqa: PLC0415, here alone

    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.benchmarks.floors", "uvicorn.protocols.http.httptools_impl", "uvloop"])
    began = time.perf_counter()
    processes = [context.Process(target=run, args=("page", port)) for port in ports]
    for process in processes:
        process.start()

    async def every() -> None:
        await asyncio.gather(*map(ready, ports))

    asyncio.run(every())
    started = time.perf_counter()
    for process in processes:
        process.terminate()
    for process in processes:
        process.join()
    return {"start": started - began, "stop": time.perf_counter() - started}


# -- SQLite alone ------------------------------------------------------------------------------------------------------


def fill_sqlite(path: Path, flows: int) -> None:
    """A file with the same flows, an index by name and one of trigrams."""
    db = sqlite3.connect(path)
    db.executescript(
        "PRAGMA synchronous = OFF;"
        "CREATE TABLE flow (id INTEGER PRIMARY KEY, node TEXT, organization TEXT, url TEXT, name TEXT, author TEXT,"
        " description TEXT, tags TEXT, folded TEXT);"
        "CREATE VIRTUAL TABLE flow_text USING fts5(organization, name, author, description, tags,"
        " tokenize = 'trigram case_sensitive 1');"
    )
    flow = "INSERT INTO flow VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"
    text = "INSERT INTO flow_text (rowid, organization, name, author, description, tags) VALUES (?, ?, ?, ?, ?, ?)"
    with db:
        for number, row in enumerate(_rows(flows)):
            db.execute(flow, (number, *row, row[3].casefold()))
            organization, name, author, description, tags = (value.casefold() for value in (row[1], *row[3:7]))
            db.execute(text, (number, organization, name, author, description, tags))
        db.execute("CREATE INDEX flow_name ON flow (name, node, url, folded)")
    db.close()


def _rows(flows: int) -> Iterator[tuple[str, ...]]:
    for node in data.nodes(flows):
        for flow in node["flows"].values():
            said = (flow["name"], flow["author"], flow["description"], "\n".join(flow["tags"]))
            yield (node["url"], node["organization"], flow["url"], *said)


@dataclass(frozen=True)
class Select:
    """How SQLite finds what is selected, and how it only counts it."""

    rows: str
    count: str


CONTAINS = Select(
    "FROM flow INDEXED BY flow_name WHERE instr(folded, ?) > 0",
    "FROM flow INDEXED BY flow_name WHERE instr(folded, ?) > 0",
)
FULL_TEXT = Select(
    "FROM flow WHERE id IN (SELECT rowid FROM flow_text WHERE flow_text MATCH ?)",
    "FROM flow_text WHERE flow_text MATCH ?",
)


@contextmanager
def selecting(path: Path, select: Select) -> Iterator[Callable[[str], Any]]:
    """A function that counts what is selected, and reads the first ten rows of it by name."""
    db = sqlite3.connect(path)

    def ask(needle: str) -> Any:
        count = db.execute(f"SELECT count(*) {select.count}", (needle,)).fetchone()[0]
        first = f"SELECT * {select.rows} ORDER BY name, node, url LIMIT 10"
        return count, db.execute(first, (needle,)).fetchall()

    try:
        yield ask
    finally:
        db.close()


if __name__ == "__main__":
    run(sys.argv[1], int(sys.argv[2]), *sys.argv[3:])
