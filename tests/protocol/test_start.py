"""Fixed: starting a service."""

from __future__ import annotations

import os
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from kodo.errors import OptionError
from kodo.loader import Loader, load_flows
from kodo.models import Node, canonical
from kodo.options import load_options
from kodo.service.node import doubts
from tests.conftest import Process, Start, free_port
from tests.protocol.helpers import LOG_LINE, ROOT, Ended, connected, flow_urls, log_of, logged, record
from tests.protocol.loaders import filled, listed, one
from tests.waiting import until

Spawn = Callable[..., Process]
COMBINATIONS = [each for each in product([True, False], repeat=3) if any(each)]


@pytest.fixture(autouse=True)
def _empty_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("KODO_"):
            monkeypatch.delenv(name)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_run_service_blocks_until_a_signal(spawn: Spawn, tmp_path: Path, number: signal.Signals) -> None:
    """`run_service` blocks and serves until SIGINT or SIGTERM."""
    served = spawn(loader="tests.protocol.loaders:one")
    assert served.process.is_alive()
    assert served.process.pid
    os.kill(served.process.pid, number)
    served.process.join(5)
    assert not served.process.is_alive()
    assert logged(tmp_path / "log-0.txt", "shutdown now")()


def test_bad_options_end_the_service_with_an_error(tmp_path: Path) -> None:
    """A missing host or port is an error; so are no role at all and `reload` with a callable loader."""
    bad: list[dict[str, Any]] = [
        {"url": "http://localhost"},
        {"url": "http://:3366"},
        {"url": "localhost"},
        {"node": False, "registry": False, "provider": False, "url": "http://127.0.0.1:0"},
    ]
    started = [Ended(cache=str(tmp_path / f"{number}.db"), **kwargs) for number, kwargs in enumerate(bad)]
    for kwargs, each in zip(bad, started, strict=True):
        code, text = each.wait()
        assert code != 0, kwargs
        assert text.strip(), kwargs


def test_reload_with_a_callable_loader_is_an_error() -> None:
    """With a callable loader `reload` is an error."""
    with pytest.raises(OptionError):
        load_options(url="http://127.0.0.1:0", reload=True, loader=one)


def test_a_port_in_use_ends_the_service_with_an_error(tmp_path: Path) -> None:
    """The url has the host and port to listen on: one that is taken ends the service with an error, not a wait."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        code, text = Ended(url=f"http://127.0.0.1:{port}", cache=str(tmp_path / "cache.db")).wait()
    assert code != 0
    assert str(port) in text


def test_defaults() -> None:
    """Defaults: `http://localhost:3366`, no organization, node and registry and no provider, no reset, no reload."""
    options = load_options()
    assert options.url == "http://localhost:3366"
    assert options.organization is None
    assert (options.node, options.registry, options.provider) == (True, True, False)
    assert (options.reset, options.reload, options.loader, options.log) == (False, False, None, None)
    assert list(options.connect) == []


@pytest.mark.parametrize(
    ("node", "registry", "provider"), [each for each in product([True, False], repeat=3) if any(each)]
)
def test_every_combination_of_roles(serve: Start, node: bool, registry: bool, provider: bool) -> None:
    """Roles are three flags, and every combination with at least one is legal; `provider` implies `registry`."""
    reply = serve(node=node, registry=registry, provider=provider).get()
    assert (reply["node"], reply["registry"], reply["provider"]) == (node, registry or provider, provider)


def test_roles_by_default(serve: Start) -> None:
    """The default is a development service: node and registry, no provider."""
    reply = serve().get()
    assert (reply["node"], reply["registry"], reply["provider"]) == (True, True, False)


def test_connect_takes_a_list_and_a_str(serve: Start) -> None:
    """`connect` is a list of urls; a single str is taken too."""
    first, second = serve(node=False), serve(node=False)
    for connect in ([first.url, second.url], first.url):
        third = serve(node=False, connect=connect)
        expected = {connect} if isinstance(connect, str) else set(connect)
        assert set(third.get()["connection"]) == expected
        for url in expected:
            until(lambda at=third, to=url: connected(at, to), "the connection to stand")  # type: ignore[misc]


def returns_loader() -> Loader:
    loader = Loader()
    loader.add_flow(name="my flow", description="d", author="a", tags=["t"])
    return loader


def returns_one_given(loader: Loader) -> Loader:
    loader.add_flow(name="x", url="deep/er/")
    return loader


@pytest.mark.parametrize(
    ("loader", "urls"),
    [
        (None, []),
        (returns_loader, ["/my-flow"]),
        (returns_one_given, ["/deep/er"]),
        (filled, ["/filled-two", "/given"]),
        (listed, ["/listed"]),
        ("tests.protocol.loaders:one", ["/by-module"]),
        ("tests.protocol.loaders:filled", ["/filled-two", "/given"]),
    ],
)
def test_loaders(serve: Start, loader: Any, urls: list[str]) -> None:
    """A loader is called with no argument or a `Loader`; it returns a `Loader`, a list, or fills the one given."""
    served = serve(registry=False, loader=loader)
    assert flow_urls(served) == urls


def test_a_flow_url_by_default(serve: Start) -> None:
    """A missing `url` is the name with spaces as `-`; a leading `/` is added, a trailing one removed."""

    def load(loader: Loader) -> None:
        loader.add_flow(name="a b  c")
        loader.add_flow(name="1", url="x")
        loader.add_flow(name="2", url="/y/")
        loader.add_flow(name="3", url="z/w/")

    assert flow_urls(serve(registry=False, loader=load)) == sorted(["/a-b--c", "/x", "/y", "/z/w"])


def test_reset_ignores_and_replaces_the_cache(serve: Start, tmp_path: Path) -> None:
    """`reset` starts from scratch: the cache is ignored and replaced."""
    cache = tmp_path / "kept.db"
    first = serve(node=False, cache=cache)
    first.post("/register", record("http://node1:3367", "mytest"))
    first.end()
    second = serve(node=False, cache=cache, url=first.url, reset=True)
    assert second.flows() == []
    second.end()
    assert serve(node=False, cache=cache, url=first.url).flows() == []


def test_without_reset_the_cache_is_read(serve: Start, tmp_path: Path) -> None:
    """Without `reset` the cache is the registry's durable state."""
    cache = tmp_path / "kept.json"
    first = serve(node=False, cache=cache)
    first.post("/register", record("http://node1:3367", "mytest"))
    first.end()
    assert cache.exists()
    assert flow_urls(serve(node=False, cache=cache, url=first.url)) == ["/mytest"]


def test_port_zero_takes_a_free_port(serve: Start) -> None:
    """Port 0 takes a free port, which becomes part of the own url."""
    served = serve(url="http://127.0.0.1:0")
    assert re.fullmatch(r"http://127\.0\.0\.1:[1-9]\d*", served.url)
    assert served.get()["url"] == served.url


@pytest.mark.parametrize("form", ["http://LOCALHOST:{}", "http://localhost:{}/", "http://LocalHost:{}/"])
def test_urls_in_connect_are_compared_normalised(serve: Start, form: str) -> None:
    """Urls are compared with lower-case host, explicit port and no trailing slash."""
    first = serve(node=False, url=f"http://localhost:{free_port()}")
    port = first.url.rpartition(":")[2]
    second = serve(node=False, connect=[first.url, form.format(port)])
    until(lambda: all(second.get()["connection"].values()), "the connection to stand")
    assert [key.lower().rstrip("/") for key in second.get()["connection"]] == [first.url]
    assert list(second.get("/map")["providers"]) == [first.url]


def test_urls_of_nodes_are_compared_normalised(serve: Start) -> None:
    """Urls are compared with lower-case host, explicit port and no trailing slash: one node, not several."""
    served = serve(node=False)
    served.post("/register", record("http://node1:80", "mytest"))
    for url in ("http://NODE1:80", "http://node1", "http://node1/", "http://Node1:80/"):
        reply = served.post("/register", record(url, "mytest"))
        assert "(seen previously " in reply["message"][0]
    assert served.get("/flows")["total"] == 1
    assert served.get("/counts")["total"] == 1


def test_options_in_the_environment(serve: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every option can be set as `KODO_<NAME>`, lists comma-separated; a kwarg beats it, and it beats the default."""
    first, second = serve(node=False), serve(node=False)
    monkeypatch.setenv("KODO_CONNECT", f"{first.url},{second.url}")
    monkeypatch.setenv("KODO_ORGANIZATION", "from environment")
    monkeypatch.setenv("KODO_NODE", "false")
    monkeypatch.setenv("KODO_PROVIDER", "true")
    monkeypatch.setenv("KODO_URL", "http://localhost:1")
    reply = serve(provider=False).get()
    assert set(reply["connection"]) == {first.url, second.url}
    assert reply["organization"] == "from environment"
    assert (reply["node"], reply["registry"], reply["provider"]) == (False, True, False)
    assert serve(organization="from kwarg").get()["organization"] == "from kwarg"


def test_options_in_the_environment_of_a_process(spawn: Spawn, monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment of the process gives the options that no kwarg gives."""
    monkeypatch.setenv("KODO_ORGANIZATION", "from environment")
    monkeypatch.setenv("KODO_REGISTRY", "false")
    monkeypatch.setenv("KODO_LOADER", "tests.protocol.loaders:one")
    served = spawn()
    reply = served.get()
    assert (reply["organization"], reply["registry"]) == ("from environment", False)
    assert flow_urls(served) == ["/by-module"]


def test_log_lines_go_to_the_log(spawn: Spawn, tmp_path: Path) -> None:
    """Log lines have level, time, logger, module, own url and text, at start and stop, uvicorn's in the same form."""
    log = tmp_path / "service.log"
    served = spawn(log=log, node=False)
    served.client.get("/nowhere")
    served.terminate()
    lines = log_of(log)
    for line in lines:
        match = LOG_LINE.fullmatch(line)
        assert match, line
        assert match[1] == served.url, line
    assert any(" - uvicorn" in line for line in lines)
    for word in ("registry startup", "successfully started registry", "shutdown now"):
        assert f"{served.url}: {word}" in "\n".join(lines)


@pytest.mark.parametrize(
    ("kwargs", "role"),
    [
        ({"node": False}, "registry"),
        ({"registry": False, "loader": one}, "node"),
        ({"node": False, "provider": True}, "provider"),
    ],
)
def test_log_lines_name_the_role(
    serve: Start, caplog: pytest.LogCaptureFixture, kwargs: dict[str, Any], role: str
) -> None:
    """Log lines at start and stop: `registry startup` (or `node`, `provider`), ..., `shutdown now`."""
    caplog.set_level("INFO")
    serve(**kwargs).end()
    said = [each.getMessage() for each in caplog.records if each.name == "kodo"]
    assert f"{role} startup" in said
    assert said[-1] == "shutdown now"


@pytest.mark.parametrize(
    ("kwargs", "doubt"),
    [
        ({"registry": False, "loader": ["a"]}, "listed nowhere"),
        ({"registry": False, "connect": "http://127.0.0.1:9"}, "offers no flows"),
        ({"url": "http://0.0.0.0:0"}, "cannot reach this"),
        ({"url": "https://127.0.0.1:0"}, "plain HTTP"),
        ({"url": "http://127.0.0.1:3366/kodo/"}, "only behind a proxy that takes /kodo away"),
        ({"connect": ["http://127.0.0.1:3366/", "http://a:1"]}, "connect with itself"),
        ({"node": False, "loader": "flows:load"}, "none of the flows"),
        ({"loader": ["a b", "c", "a-b"]}, "of its flows 'a b' and 'a-b', all at /a-b, the last alone is listed"),
    ],
    ids=["nowhere", "nothing", "unspecified", "https", "path", "itself", "no node", "twice"],
)
def test_what_is_hardly_meant_is_a_warning(kwargs: dict[str, Any], doubt: str) -> None:
    """Options that can be, but will disappoint, are told by their doubts."""
    options = load_options(**{"url": "http://127.0.0.1:3366", **kwargs})
    own = Node(url=options.url, flows=load_flows(options.loader)) if options.node else None
    (told,) = doubts(options, own)
    assert doubt in told


def test_a_file_of_options_is_no_loader_of_flows(tmp_path: Path) -> None:
    """A registry may have its options in a file; flows in it are told to be in vain."""
    file = tmp_path / "registry.yaml"
    file.write_text("node: false\n")
    assert list(doubts(load_options(loader=str(file)), None)) == []
    file.write_text("node: false\nflows: [a]\n")
    (told,) = doubts(load_options(loader=str(file)), None)
    assert "none of the flows" in told


def test_doubts_are_warnings_in_the_log(
    serve: Start, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A node that nobody will list, and a variable that is misspelt, are told in the log; the service starts."""
    monkeypatch.setenv("KODO_LEESE", "5")
    serve(registry=False, loader=one)
    warned = [each.getMessage() for each in caplog.records if each.levelname == "WARNING"]
    assert [any(text in line for line in warned) for text in ("listed nowhere", "KODO_LEASE?")] == [True, True]


def test_log_lines_go_to_stderr(tmp_path: Path) -> None:
    """Without `log` the lines go to stderr, in the form that is fixed."""
    url, cache = f"http://127.0.0.1:{free_port()}", tmp_path / "cache.db"
    code = f"from kodo.service.node import run_service; run_service(url={url!r}, node=False, cache={str(cache)!r})"
    with subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stderr
        assert process.stdout
        deadline, written = time.monotonic() + 20, b""
        while b"successfully started registry" not in written and time.monotonic() < deadline:
            written += process.stderr.readline()
        process.terminate()
        out, err = process.communicate(timeout=10)
    lines = (written + err).decode().splitlines()
    assert out == b""
    assert all(LOG_LINE.fullmatch(line) for line in lines), lines
    assert any(re.search(rf" - kodo - \w+ - {url}: registry startup$", line) for line in lines), lines


def test_log_lines_name_the_cache(serve: Start, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """At start the log says `ignore cache PATH` or `loading from cache PATH`."""
    caplog.set_level("INFO")
    cache = tmp_path / "named.db"
    first = serve(cache=cache, node=False)
    assert f"ignore cache {cache}" in caplog.messages
    assert "there is no such cache yet: it is made now" in caplog.messages
    first.post("/register", record("http://node1:3367", "mytest"))
    first.end()
    caplog.clear()
    serve(cache=cache, node=False, url=first.url).end()
    assert f"loading from cache {cache}" in caplog.text
    assert "ignore cache" not in caplog.text
    caplog.clear()
    serve(cache=cache, node=False, url=first.url, reset=True)
    assert f"ignore cache {cache}" in caplog.messages
    assert "loading from cache" not in caplog.text


def test_the_log_says_whose_records_were_spoiled(
    serve: Start, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Records that are not as they were written are taken up with a word in the log."""
    cache = tmp_path / "spoiled.db"
    first = serve(cache=cache, node=False)
    first.post("/register", record("http://node1:3367", "mytest"))
    first.end()
    with closing(sqlite3.connect(cache, isolation_level=None)) as db:
        db.execute("UPDATE record SET organization = 'another'")
    assert "as it was written" not in caplog.text
    serve(cache=cache, node=False, url=first.url)
    assert f"the records of {canonical(first.url)} in the cache are not as they were written" in caplog.text
