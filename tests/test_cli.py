"""The `kodo` command, as a person, a pipe and a script meet it."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import kodo
from kodo import cli
from kodo.options import Options
from kodo.serving import plain_flags
from tests.conftest import Served, Start, free_port
from tests.protocol.helpers import connected
from tests.waiting import until

RUN = [sys.executable, "-m", "kodo"]
COLOUR = re.compile(r"\x1b\[[0-9;]*m")
HOSTILE = {
    "name": "[red]x[/red]\x1b[2J\x9b31m\u202etxt",
    "url": "/hostile",
    "description": "one\ntwo :smile:",
    "tags": ["[bold]"],
}
LITERAL = r"[red]x[/red]\x1b[2J\x9b31m\u202etxt"

Run = Callable[..., Any]


@pytest.fixture(autouse=True)
def _plain_surroundings(monkeypatch: pytest.MonkeyPatch) -> None:
    """No option and no colour comes from where the tests run."""
    for name in [*os.environ]:
        if name.startswith("KODO_") or name in {"FORCE_COLOR", "NO_COLOR", "COLUMNS", "PY_COLORS"}:
            monkeypatch.delenv(name)


@pytest.fixture
def run() -> Run:
    """Run the command in this process: `run("flows", url)`."""
    return lambda *words: CliRunner().invoke(cli.app, [str(word) for word in words], prog_name="kodo")


@pytest.fixture
def mesh(serve: Start) -> tuple[Served, Served]:
    """Two registries that are connected, each with a node of its own."""
    acme = serve(organization="Acme", node=False)
    zeta = serve(organization="Zeta", node=False, connect=acme.url)
    described = {"name": "agent m", "description": "Plans tours", "author": "Mia", "tags": ["plan", "routing"]}
    serve(organization="Acme node", registry=False, connect=acme.url, loader=[described, HOSTILE])
    serve(organization="Zeta node", registry=False, connect=zeta.url, loader=["my test"])
    for registry in (acme, zeta):
        until(lambda at=registry: len(at.flows()) == 3, "all flows to be listed")  # type: ignore[misc]
    return acme, zeta


def words(text: str) -> str:
    """The text without what its layout adds."""
    return " ".join(text.split())


# -- the command -------------------------------------------------------------------------------------------------------


def test_kodo_and_python_m_kodo_are_the_same(run: Run) -> None:
    """`kodo --version` and `python -m kodo --version` print the version."""
    module = subprocess.run([*RUN, "--version"], capture_output=True, text=True, check=True)
    assert run("--version").stdout == module.stdout == f"kodo {kodo.__version__}\n"


def test_help_names_every_command(run: Run) -> None:
    """`kodo --help` names every command, with a summary that is not cut short."""
    told = run("--help").stdout
    for command in ("serve", "flows", "counts", "map", "explain", "convergence", "leave", "demo", "sim", "lab"):
        assert re.search(rf"^  {command}  ", told, re.MULTILINE)
    assert "..." not in told.partition("Commands:")[2]


def test_reading_starts_nothing_heavy(mesh: tuple[Served, Served]) -> None:
    """The version and the flow table come without importing fastapi, pandas or the lab."""
    script = "import sys, atexit; atexit.register(lambda: print(*sys.modules)); from kodo.__main__ import main; main()"
    for arguments in (["--version"], ["flows", mesh[0].url]):
        done = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=True)
        loaded = set(done.stdout.splitlines()[-1].split())
        assert "kodo.cli" in loaded
        heavy = {"fastapi", "pandas", "numpy", "uvicorn", "jupyterlab", "kodo.lab", "kodo.sim", "kodo.service"}
        assert not loaded & heavy


# -- kodo serve --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", Options.model_fields)
def test_every_option_is_a_flag(run: Run, name: str) -> None:
    """Every option of a service is a flag, whose help says what it means and which variable sets it."""
    told = words(run("serve", "--help").stdout)
    assert f"--{name.replace('_', '-')} " in told
    assert words(Options.model_fields[name].description or "") in told
    assert f"[env: KODO_{name.upper()}" in told


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What `kodo serve` would start a service with."""
    taken: dict[str, Any] = {}
    monkeypatch.setattr("kodo.serving.serve", taken.update)
    return taken


def test_what_is_not_given_is_left_to_other_sources(run: Run, given: dict[str, Any]) -> None:
    """A flag that is not given is no option given, so that environment and file speak."""
    assert run("serve").exit_code == 0
    assert given == {}


def test_flags_arrive_as_options(run: Run, given: dict[str, Any]) -> None:
    """Flags become options: `--connect` may be repeated, roles and switches come in pairs."""
    flags = "--url http://localhost:0 --connect http://a:1 --connect http://b:2 --no-node --provider --no-reset"
    assert run("serve", *flags.split(), "--body-limit", "10").exit_code == 0
    options = Options(**given)
    assert options.url == "http://localhost:0"
    assert options.connect == ("http://a:1", "http://b:2")
    assert (options.node, options.provider, options.reset, options.body_limit) == (False, True, False, 10)


@pytest.mark.parametrize(
    "flags",
    [
        "",
        "--no-node --organization acme --url=http://localhost:0",
        "--connect http://a:1 --body-limit 10 --lease 0.5 --trace --no-reset",
        "--cache= --loader flows:load",
    ],
)
def test_the_short_way_reads_flags_as_the_command_does(run: Run, given: dict[str, Any], flags: str) -> None:
    """`kodo serve` reads plain flags without the command, and they give a service the same options."""
    assert run("serve", *flags.split()).exit_code == 0
    assert plain_flags(flags.split()) == given


@pytest.mark.parametrize(
    "flags",
    [
        *("--help", "-h", "extra", "--", "--nowhere x", "--organisation=acme", "--no-no-node", "--no-url x"),
        *("--url", "--url --node", "--node=true", "--node --no-node", "--connect http://a:1 --connect http://b:2"),
    ],
)
def test_the_short_way_leaves_doubts_to_the_command(flags: str) -> None:
    """Help, mistakes, and flags that come twice are left to the command, which tells what was expected."""
    assert plain_flags(flags.split()) is None


def test_a_wrong_option_is_told_in_its_own_words(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wrong options are told on stderr, a line each, wherever they came from; the exit code is 2."""
    monkeypatch.setenv("KODO_NODE", "perhaps")
    done = run("serve", "--url", "nowhere", "--body-limit", "many")
    assert done.exit_code == 2
    assert done.stdout == ""
    lines = done.stderr.splitlines()
    assert len(lines) == 3
    assert all(line.startswith("kodo: ") for line in lines)
    assert "KODO_NODE in the environment" in done.stderr
    flags = ["--url", "nowhere", "--body-limit", "many"]
    short = subprocess.run([*RUN, "serve", *flags], capture_output=True, text=True, check=False)
    assert (short.returncode, short.stdout, short.stderr) == (2, "", done.stderr)


def test_a_port_in_use_is_one_line(run: Run, serve: Start) -> None:
    """A port in use is told in one line on stderr; the exit code is 1."""
    done = run("serve", "--url", serve(node=False).url)
    assert done.exit_code == 1
    assert done.stderr.startswith("kodo: expected to listen at http://127.0.0.1:")
    assert done.stderr.endswith(" address already in use; choose another url, or stop the service that listens there\n")
    assert len(done.stderr.splitlines()) == 1


def test_nobody_is_to_be_stopped_where_nobody_can_listen(run: Run) -> None:
    """An address that is not of this machine is told as that alone."""
    done = run("serve", "--url", "http://192.0.2.1:3366")
    assert done.stderr == (
        "kodo: expected to listen at http://192.0.2.1:3366, but cannot assign requested address; choose another url\n"
    )


def test_a_failure_after_the_start_is_told_once(tmp_path: Path) -> None:
    """What ends a service that began to log is told once, in plain words, without a traceback."""
    flags = ["--url", "http://127.0.0.1:0", "--no-registry", "--loader", "missing_here:load"]
    done = subprocess.run([*RUN, "serve", *flags], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.count("the import failed") == 1
    assert done.stderr.splitlines()[-1].startswith("kodo: loader module 'missing_here'")
    assert "Traceback" not in done.stderr


def test_a_folder_that_cannot_be_is_one_line(tmp_path: Path) -> None:
    """An error of the operating system is told in a line too."""
    (tmp_path / "file").touch()
    flags = ["--url", "http://127.0.0.1:0", "--cache", str(tmp_path / "file" / "cache.db")]
    done = subprocess.run([*RUN, "serve", *flags], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    told = done.stderr.splitlines()[-1]
    assert told.startswith(f"kodo: expected a folder for the cache {tmp_path / 'file' / 'cache.db'}, but ")
    assert told.endswith(" is a file; choose another")
    assert "Errno" not in told
    assert "Traceback" not in done.stderr


def test_a_log_that_cannot_be_is_one_line(run: Run, tmp_path: Path) -> None:
    """A log that cannot be written is told with its path, the reason and what to do; no folder is made for it."""
    (tmp_path / "file").touch()
    for log, said in (
        (tmp_path / "file" / "log", "not a directory; choose another path"),
        (tmp_path / "new" / "log", "its folder is not there; make the folder, or choose another path"),
    ):
        done = run("serve", "--url", "http://127.0.0.1:0", "--log", log)
        assert done.exit_code == 2
        assert done.stderr == f"kodo: log: {log}: expected a file to write, but {said}\n"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_serve_runs_until_it_is_interrupted(tmp_path: Path) -> None:
    """`kodo serve` answers until Ctrl-C, and ends with 0."""
    url = f"http://127.0.0.1:{free_port()}"
    flags = ["--url", url, "--organization", "acme", "--cache", str(tmp_path / "cache.db")]
    with started("serve", *flags) as service:
        service.await_line("Started server process")
        told = subprocess.run([*RUN, "map", url], capture_output=True, text=True, check=True).stdout
        assert told.startswith(f"registry acme {url}\n")
        assert service.interrupt() == 0


# -- kodo flows, counts, map -------------------------------------------------------------------------------------------


def test_flows_are_shown_as_a_table(run: Run, mesh: tuple[Served, Served]) -> None:
    """Each flow has a line with its name, organization, description, author, tags and address."""
    done = run("flows", mesh[1].url)
    assert done.exit_code == 0
    (line,) = (line for line in done.stdout.splitlines() if line.startswith("agent m"))
    assert re.split(" {2,}", line)[:5] == ["agent m", "Acme node", "Plans tours", "Mia", "plan, routing"]
    assert re.search(r"http://127\.0\.0\.1:\d+/agent-m$", line)
    assert done.stdout.endswith("\n1 to 3 of 3 flows, by name, node, url\n")


def test_a_query_that_became_text_says_why(run: Run, mesh: tuple[Served, Served]) -> None:
    """No query is refused, so a slip of the pen would go unnoticed."""
    said = "--q was searched as text: there is no column nmae"
    assert said in run("flows", mesh[1].url, "-q", 'nmae ~ "agent"').stdout
    assert "--q was" not in run("flows", mesh[1].url, "-q", "agent").stdout


def test_foreign_text_is_shown_literally(run: Run, mesh: tuple[Served, Served]) -> None:
    """Markup in foreign text stays text, and what a terminal would obey is written as its escape."""
    shown = run("flows", mesh[0].url).stdout
    assert LITERAL in shown
    assert r"one\ntwo :smile:" in shown
    assert "[bold]" in shown
    assert "[bold]" in run("counts", mesh[0].url).stdout
    assert not set(shown) & set("\x1b\x9b\u202e")


def test_json_is_what_the_service_said(run: Run, mesh: tuple[Served, Served]) -> None:
    """`--json` prints the service's JSON, pretty, and nothing else; control characters stay escaped."""
    for command, path in (("flows", "/flows"), ("counts", "/counts"), ("map", "/map")):
        done = run(command, mesh[0].url, "--json")
        assert json.loads(done.stdout) == mesh[0].get(path)
        assert done.stdout.startswith('{\n  "')
        assert not set(done.stdout) & set("\x1b\x9b\u202e")
        assert done.stderr == ""


def test_a_pipe_gets_whole_lines(run: Run, serve: Start) -> None:
    """Where there is no terminal there are no colours, nothing is cut or folded, and no line ends with spaces."""
    name = "long " * 100 + "end"
    shown = run("flows", serve(loader=[name]).url).stdout
    assert name in shown
    assert "\x1b" not in shown
    assert all(line == line.rstrip() for line in shown.splitlines())


def test_a_silent_service_is_named_while_it_is_waited_for(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who is paused holds the command up to its deadline, and the command says so meanwhile, beside its answer."""
    told, said = threading.Event(), cli.typer.echo

    def echo(*args: Any, **options: Any) -> None:
        said(*args, **options)
        told.set()

    monkeypatch.setattr(cli, "SILENCE", 0.01)
    monkeypatch.setattr(cli.typer, "echo", echo)
    with speaking('{"items": []}', after=told) as url:
        ended = run("flows", "--json", url)
    assert ended.exit_code == 0
    assert ended.stderr == f"{url} takes its time; it is given up after 30 s of silence\n"
    assert json.loads(ended.stdout) == {"items": []}


@pytest.mark.parametrize("width", [40, 80, 120, 400])
def test_a_terminal_gets_lines_that_fit(mesh: tuple[Served, Served], width: int) -> None:
    """In a terminal there are colours, no line is longer than it is wide, and no text is lost."""
    shown = in_terminal(width, "flows", mesh[0].url)
    assert COLOUR.search(shown)
    plain = COLOUR.sub("", shown)
    assert max(map(len, plain.splitlines())) <= width
    assert "\x1b" not in plain
    for text in ("Plans", "tours", "Mia", "routing", "/agent-m"):
        assert text in plain


def test_times_are_shown_when_asked_for(run: Run, mesh: tuple[Served, Served]) -> None:
    """Times are hidden unless `--times` asks for them."""
    created = mesh[0].flows()[0]["created"][:19].replace("T", " ")
    assert created not in run("flows", mesh[0].url).stdout
    assert created in run("flows", mesh[0].url, "--times").stdout


def test_queries_orders_and_pages_are_passed_on(run: Run, mesh: tuple[Served, Served]) -> None:
    """`--q`, `--by`, `-p` and `--pp` are those of the service, and the last line says where one is."""
    url = mesh[0].url
    found = run("flows", url, "--q", 'author == "Mia"').stdout
    assert found.endswith('1 to 1 of 1 flow for author == "Mia", of 3 in all, by name, node, url\n')
    first = run("flows", url, "--by", "name:d", "--pp", "2").stdout
    assert first.index("my test") < first.index("agent m")
    assert first.endswith("1 to 2 of 3 flows, by name:d; next: -p 1\n")
    assert run("flows", url, "--pp", "2", "-p", "1").stdout.endswith("3 to 3 of 3 flows, by name, node, url\n")
    assert run("flows", url, "-p", "9").stdout == "page 9 is behind the last of 3 flows\n"
    assert run("flows", url, "-q", "nothing").stdout == "0 flows for fulltext: nothing, of 3 in all\n"


def test_counts_are_shown_by_kind(run: Run, mesh: tuple[Served, Served]) -> None:
    """Counts are shown by organization, node and tag, the largest first, and in all."""
    shown = words(run("counts", mesh[0].url).stdout)
    assert re.search("organization Acme node 2 ━+ Zeta node 1 ━+ node http", shown)
    assert re.search("tag .* plan 1 ━+ routing 1 ━+ 3 flows in all$", shown)


def test_flows_of_no_organization_are_counted(run: Run, serve: Start) -> None:
    """Flows whose node names no organization have a row of their own, so that all are there."""
    served = serve(node=False)
    flows = [{"url": f"/{name}", "name": name} for name in "abc"]
    served.post("/register", {"url": "http://a:1", "organization": "Acme", "flows": flows[:1]})
    assert "no organization" not in run("counts", served.url).stdout
    served.post("/register", {"url": "http://b:1", "flows": flows})
    shown = words(run("counts", served.url).stdout)
    assert re.search("organization Acme 1 ━+ no organization 3 ━+ node http", shown)


def test_what_is_missing_leaves_its_line_empty(serve: Start) -> None:
    """In a narrow terminal each field of a flow stands in the line that its title has, whatever is missing above it."""
    served = serve(node=False)
    flow = {"url": "/a", "name": "nameless", "author": "Mia"}
    served.post("/register", {"url": "http://a-name-that-is-long.example:12345", "flows": [flow]})
    lines = [re.split(" {2,}", line) for line in COLOUR.sub("", in_terminal(80, "flows", served.url)).splitlines()]
    title = next(at for at, line in enumerate(lines) if "organization" in line)
    first = next(at for at, line in enumerate(lines) if line[0] == "nameless")
    assert [line[1:3] for line in lines[title : title + 2]] == [["organization", "node"], ["author", "url"]]
    assert "Mia" not in lines[first]
    assert "Mia" in lines[first + 1]


def test_the_map_is_a_tree(run: Run, mesh: tuple[Served, Served]) -> None:
    """The map shows the own nodes, then each peer with its nodes and the state of its connection."""
    acme, zeta = mesh
    node = r"node {} http://127\.0\.0\.1:\d+, {}"
    assert re.fullmatch(
        rf"registry Zeta {zeta.url}\n"
        rf"├── {node.format('Zeta node', '1 flow')}\n"
        rf"└── registry Acme {acme.url}, connected\n"
        rf"    └── {node.format('Acme node', '2 flows')}\n\n"
        "2 nodes with 3 flows\n",
        run("map", zeta.url).stdout,
    )
    assert f"registry Zeta {zeta.url}, connected from there\n" in run("map", acme.url).stdout


# -- kodo explain, convergence, leave ----------------------------------------------------------------------------------


def test_a_flow_is_explained(run: Run, mesh: tuple[Served, Served]) -> None:
    """`kodo explain` says whether a flow is listed, why, and what each registry's part says of its node."""
    acme, zeta = mesh
    node = next(item["node"] for item in zeta.flows() if item["name"] == "agent m")
    for asked in (["--flow", "agent m"], ["--node", node, "--flow", "/agent-m"], ["--node", node]):
        shown = run("explain", zeta.url, *asked).stdout
        assert shown.startswith(f"listed: registered at {acme.url}\n\nregistry ")
        (line,) = (line for line in shown.splitlines() if line.startswith(acme.url))
        assert re.fullmatch(rf"{acme.url} +listed +(unknown|online) +20[-0-9]+ [:0-9]+ +[.0-9]+ s ago +itself", line)
    shown = run("explain", zeta.url, "--node", node, "--flow", "nothing").stdout
    assert shown.startswith("not listed: the node is registered at ")
    assert "it has the paths /agent-m, /hostile" in shown
    told = json.loads(run("explain", zeta.url, "--node", node, "--json").stdout)
    assert list(told) == list(zeta.get("/explain", node=node))


def test_a_flow_of_several_nodes_is_explained_for_each(run: Run, serve: Start) -> None:
    """Where several nodes offer a flow, the rows begin with the node."""
    registry = serve(node=False)
    nodes = [serve(registry=False, connect=registry.url, loader=["same"]).url for _ in range(2)]
    until(lambda: len(registry.flows()) == 2, "both flows")
    shown = run("explain", registry.url, "--flow", "same").stdout
    assert shown.startswith("listed: 2 nodes offer it: ")
    assert {line.split()[0] for line in shown.splitlines() if line.startswith("http")} == set(nodes)


@pytest.mark.parametrize(
    "asked", [("--flow", "agent n"), ("--node", "NODE", "--flow", "agent n"), ("--node", "NODE/x")]
)
def test_what_was_probably_meant_is_told(run: Run, mesh: tuple[Served, Served], asked: tuple[str, ...]) -> None:
    """Of a flow or a node that nobody knows, the nearest one that is listed is named."""
    node = next(item["node"] for item in mesh[1].flows() if item["name"] == "agent m")
    shown = run("explain", mesh[1].url, *(word.replace("NODE", node) for word in asked)).stdout
    assert shown.startswith("not listed: ")
    assert f"did you mean {node if len(asked) == 2 and asked[0] == '--node' else 'agent m'!r}?" in shown


def test_what_was_meant_is_told_of_a_node_with_a_quote_in_its_url(run: Run, serve: Start) -> None:
    """A url is looked for as it is, whatever stands in it."""
    here, node = serve(node=False), 'http://node1:1/"a'
    here.post("/register", {"url": node, "flows": [{"url": "/a", "name": "agent m"}]})
    assert "did you mean 'agent m'?" in run("explain", here.url, "--node", node, "--flow", "agent n").stdout


def test_another_port_is_no_slip(run: Run, serve: Start) -> None:
    """A url that has no more than its host in common with a node's is not taken for a slip."""
    here = serve(node=False)
    here.post("/register", {"url": "http://localhost:4368", "flows": [{"url": "/a", "name": "a"}]})
    assert "did you mean" not in run("explain", here.url, "--node", "http://localhost:7799").stdout
    assert "did you mean 'http://localhost:4368'?" in run("explain", here.url, "--node", "http://localhost:4386").stdout


def test_convergence_says_who_is_behind(run: Run, mesh: tuple[Served, Served]) -> None:
    """`kodo convergence` shows each peer and each registry, and says in the end whether anything is owed."""
    acme, zeta = mesh
    until(lambda: not acme.get("/convergence")["peers"][zeta.url]["behind"], "nothing to be owed")
    shown = run("convergence", acme.url).stdout
    assert re.search(rf"^{zeta.url} +standing +[.0-9]+ s ago +nothing$", shown, re.MULTILINE)
    assert re.search(rf"^{acme.url} +\d+ changes? +just asked +itself$", shown, re.MULTILINE)
    assert shown.endswith("\nnothing is owed to any peer\n")
    assert list(json.loads(run("convergence", acme.url, "--json").stdout)) == list(acme.get("/convergence"))


def test_a_node_that_is_silent_is_not_said_to_be_online(run: Run, serve: Start) -> None:
    """While the expiry of leases is frozen a node that is silent is shown as that, with the reason, and no other."""
    here = serve(node=False, lease=1, beacon=0.1)
    peer = serve(node=False, connect=here.url)
    until(lambda: connected(peer, here.url), "the connection")
    peer.end()
    for node in ("http://node1:1", "http://node2:1", "http://node3:1"):
        here.post("/register", {"url": node, "flows": {}})
        here.post("/heartbeat", {"url": node})
    until(lambda: here.get("/convergence")["frozen"], "the expiry to be frozen")
    frozen = here.get("/explain", node="http://node1:1")
    assert (frozen["frozen"], frozen["records"][0]["status"], frozen["records"][0]["lease"]) == (True, "online", 0.0)
    for asked in (["map", here.url], ["explain", here.url, "--node", "http://node1:1"]):
        shown = run(*asked).stdout
        assert "was online, silent now" in shown
        assert f"\n{cli.FROZEN}\n" in shown
        assert "0.0 s left" not in shown
    assert f"\n{cli.FROZEN}\n" in run("convergence", here.url).stdout

    def shown_beating() -> bool:
        here.post("/heartbeat", {"url": "http://node3:1"})
        lines = run("map", here.url).stdout.splitlines()
        return [line[line.rindex(", ") :] for line in lines if "node3" in line] == [", online"]

    until(shown_beating, "the node that beats to be shown online")
    assert here.get("/convergence")["silent"] == ["http://node1:1", "http://node2:1"]


@pytest.mark.parametrize("state", ["standing", "greeting", "away", "no registry", "refused", "leaving", "`news`"])
def test_the_help_of_convergence_explains_its_words(run: Run, state: str) -> None:
    """Each state of a peer, and the count of news, is told in the help."""
    assert state in run("convergence", "--help").stdout


def test_what_a_peer_is_owed_is_shown(run: Run, serve: Start) -> None:
    """A peer that is gone is shown as away, with what it is owed, and the last line says that one is behind."""
    here, there = serve(node=False), serve(node=False)
    other = serve(node=False, connect=here.url)
    until(lambda: connected(other, here.url), "the connection")
    other.end()
    here.post("/register", {"url": there.url, "flows": []})
    until(lambda: here.get("/convergence")["peers"][other.url]["state"] == "away", "the peer to be found away")
    shown = run("convergence", here.url).stdout
    said = rf"^{other.url} +away: nothing listens there, tried again .*1 change of {here.url}$"
    assert re.search(said, shown, re.MULTILINE)
    assert shown.endswith("\n1 of 1 peer behind\n")


def test_leaving_says_who_was_told(run: Run, serve: Start) -> None:
    """`kodo leave` waits until all are told, and says who was, who never was connected, and who is told later."""
    registry, gone = serve(node=False), serve(node=False)
    away = f"http://127.0.0.1:{free_port()}"
    node = serve(registry=False, connect=[registry.url, gone.url, away], loader=["a"])
    until(lambda: len(registry.flows()) == len(gone.flows()) == 1, "both registrations")
    until(lambda: all(node.get("/")["connection"][url] for url in (registry.url, gone.url)), "both connections")
    gone.end()
    done = run("leave", node.url)
    assert done.exit_code == 0
    first, *rest = done.stdout.splitlines()
    assert first == f"{node.url} has left the mesh; it goes on serving its own flows"
    told = {f"told          {registry.url}", f"not told yet  {gone.url}; told once it answers"}
    assert told < set(rest)
    # It is told as well when a first contact was just on its way, which may have got through.
    assert set(rest) - told < {f"not connected {away}", f"not told yet  {away}; told once it answers"}
    (line,) = (line for line in run("map", node.url).stdout.splitlines() if gone.url in line)
    assert "it is to be told that this service leaves" in line
    assert registry.flows() == []
    assert [flow["name"] for flow in node.flows()] == ["a"]


def test_nobody_to_tell_is_said(run: Run, serve: Start) -> None:
    """A service that is connected with nobody leaves nobody; without a url nothing is asked to leave."""
    said = "It was connected with no other registry: there was nobody to tell.\n"
    assert run("leave", serve().url).stdout.endswith(said)
    done = run("leave")
    assert done.exit_code == 2
    assert "Missing argument 'URL'" in done.stderr


def test_what_goes_on_after_leaving_is_said(run: Run, serve: Start) -> None:
    """A service that has left goes on with its own flows and with the nodes registered with it, if there are any."""
    for kwargs, registered, goes_on in (
        ({"node": False}, 0, ""),
        ({"node": False}, 1, "; it goes on listing 1 node registered with it"),
        ({"loader": ["a"]}, 2, "; it goes on serving its own flows and listing 2 nodes registered with it"),
    ):
        served = serve(**kwargs)
        for number in range(registered):
            served.post("/register", {"url": f"http://node{number}:1", "flows": {}})
        first = run("leave", served.url).stdout.splitlines()[0]
        assert first == f"{served.url} has left the mesh{goes_on}"


def test_what_a_registry_that_left_knows_of_others_is_no_connection(run: Run, mesh: tuple[Served, Served]) -> None:
    """It goes on listing nodes of others as they were, and the map says that it is connected with none of them."""
    acme, zeta = mesh
    until(lambda: len(acme.flows()) == 3, "the flows of both")
    left = run("leave", acme.url).stdout
    goes_on = "it goes on listing 1 node registered with it and 1 node of others as it knew them\n"
    assert left.startswith(f"{acme.url} has left the mesh; {goes_on}")
    assert f"registry {zeta.url}, not connected\n" in run("map", acme.url).stdout


def test_a_registry_that_was_left_is_no_provider(run: Run, mesh: tuple[Served, Served]) -> None:
    """What a registry left, of which it goes on listing nodes, is a registry in its map, and not connected."""
    acme, zeta = mesh
    assert run("leave", zeta.url).exit_code == 0
    until(lambda: f"registry {acme.url}, not connected\n" in run("map", zeta.url).stdout, "the connection to be gone")


def test_a_registry_is_told_to_forget_a_node(run: Run, mesh: tuple[Served, Served]) -> None:
    """`kodo leave NODE --at REGISTRY` removes a node everywhere, and of one that is not there says where it is."""
    acme, zeta = mesh
    node = "http://node1:1"
    acme.post("/register", {"url": node, "flows": [{"url": "/late", "name": "late"}]})
    older = {"url": "http://node2:1", "flows": {}}
    acme.post("/connect", {"url": "http://older:1", "nodes": [older]})
    at_the_older = run("leave", older["url"], "--at", acme.url)
    assert at_the_older.stderr.endswith(f"; kodo leave {older['url']} --at http://older:1\n")
    until(lambda: len(zeta.flows()) == 4, "the node at both")
    elsewhere = run("leave", node, "--at", zeta.url)
    assert (elsewhere.exit_code, elsewhere.stdout) == (1, "")
    assert elsewhere.stderr.startswith(f"kodo: {node} is neither registered nor connected at {zeta.url}: registered at")
    assert elsewhere.stderr.endswith(f"; kodo leave {node} --at {acme.url}\n")
    done = run("leave", node, "--at", acme.url)
    first, *rest = done.stdout.splitlines()
    assert (done.exit_code, first) == (0, f"{node} is forgotten by {acme.url}, which tells the others")
    assert rest == ["If it still runs it comes back by itself; let it leave instead, or end it before."]
    until(lambda: len(zeta.flows()) == 3, "the node to be gone from both")
    again = run("leave", node, "--at", acme.url)
    assert (again.exit_code, "it has left" in again.stderr) == (1, True)
    peer = run("leave", "http://older:1", "--at", acme.url)
    assert peer.stdout.startswith(f"http://older:1 is forgotten by {acme.url} as a peer; its own part stays")


@pytest.mark.parametrize(
    ("url", "at", "said"),
    [
        ("http://a:1", "http://A:1/", "kodo: --at: expected another service than the one that is to leave"),
        ("http://a:1", "b:1", "kodo: --at: expected the url of a service"),
        ("http://", "http://b:1", "kodo: URL: expected an http or https url with a host"),
    ],
)
def test_who_cannot_be_told_to_forget_whom_is_said(run: Run, url: str, at: str, said: str) -> None:
    """A url that is none, or the service itself in place of a registry, is an error that names the argument."""
    done = run("leave", url, "--at", at)
    assert done.exit_code == 2
    assert done.stderr.startswith(said)


@pytest.mark.parametrize("width", [40, 80, 120])
@pytest.mark.parametrize("words", [["explain", "--flow", "agent m"], ["convergence"]])
def test_reasons_fit_a_terminal(mesh: tuple[Served, Served], width: int, words: list[str]) -> None:
    """No line of an explanation is longer than the terminal is wide."""
    plain = COLOUR.sub("", in_terminal(width, words[0], mesh[1].url, *words[1:]))
    assert max(map(len, plain.splitlines())) <= width
    assert "itself" in plain


def test_a_connection_that_does_not_stand_is_shown(run: Run, serve: Start) -> None:
    """A registry that was never reached is in the map, as not connected."""
    away = f"http://127.0.0.1:{free_port()}"
    url = serve(connect=away).url
    said = f"registry {away}, not connected; away just now: nothing listens there\n"
    until(lambda: said in run("map", url).stdout, "the first try")


def test_a_start_that_a_peer_has_not_heard_of_is_shown(run: Run, serve: Start, tmp_path: Path) -> None:
    """A registry that started again while its peer is away owes it that start, and no changes."""
    url = f"http://127.0.0.1:{free_port()}"
    own = {"url": url, "node": False, "cache": tmp_path / "acme.db"}
    acme, zeta = serve(**own), serve(node=False, connect=url)
    acme.post("/register", {"url": "http://node:1", "flows": {"/a": {"url": "/a", "name": "a"}}})
    until(lambda: len(zeta.flows()) == 1 and acme.idle() and zeta.idle(), "all to be told")
    zeta.end()
    acme.end()
    again = serve(**own)
    until(lambda: f"a new start of {url}" in run("convergence", again.url).stdout, "the start to be owed")


def test_a_node_that_is_registered_nowhere_is_told_so(run: Run, serve: Start) -> None:
    """A registry that never answered was never heard of and is owed all, and the flows of such a node are nowhere."""
    away = f"http://127.0.0.1:{free_port()}"
    node = serve(registry=False, connect=away, loader=["a"])
    until(lambda: node.get("/convergence")["peers"][away]["state"] == "away", "the first try")
    shown = run("convergence", node.url).stdout
    assert re.search(rf"^{away} +away: nothing listens there.* +never +all: never connected$", shown, re.MULTILINE)
    assert "its flows are listed nowhere, since it is registered with no registry\n" in shown
    assert shown.endswith("1 of 1 peer away\n1 of 1 peer never connected\n")


@pytest.mark.parametrize("posts", [False, True], ids=["501", "no JSON"])
def test_what_is_no_registry_is_told_so(run: Run, serve: Start, posts: bool) -> None:
    """A peer where something else answers is told as that, with what it answered, in the map and the convergence."""
    with speaking("<html>", posts=posts) as other:
        url = serve(connect=other, node=False).url
        until(lambda: "no registry: it" in run("convergence", url).stdout, "the answer")
        assert "1 of 1 peer not a registry\n" in run("convergence", url).stdout
        said = f"registry {other}, not connected; what answers there is no kodo registry: it"
        assert said in run("map", url).stdout


def test_who_refuses_is_said_not_to_be_asked_again(run: Run, serve: Start) -> None:
    """That a peer which answered 403 is not asked again is said in the map and the convergence too."""
    with speaking("{}", posts=True, status=403) as other:
        url = serve(connect=other, node=False).url
        until(lambda: "refused 403" in run("convergence", url).stdout, "the refusal")
        shown = run("convergence", url).stdout
        assert "refused 403: it answered 403 to /connect, not asked again until it is heard of " in shown
        assert "tried again" not in shown
        assert "1 of 1 peer not asked again\n" in shown
        said = f"registry {other}, not connected; not asked again until it is heard of: it answered 403 to /connect\n"
        assert said in run("map", url).stdout


@pytest.mark.parametrize("connects", ["asked", "other"])
def test_a_peer_that_does_not_answer_any_more_is_shown_as_away(run: Run, serve: Start, connects: str) -> None:
    """A registry that ended is away in the map and the convergence of its peer, whoever of them had connected."""
    gone = serve()
    asked = serve(connect=gone.url, beacon=0.1) if connects == "asked" else serve(beacon=0.1)
    if connects == "other":
        gone.post("/connect", {"url": asked.url, "feed": True, "nodes": {}})
        asked.post("/connect", {"url": gone.url, "feed": True, "nodes": {}, "marks": {}})
    until(lambda: ", connected" in run("map", asked.url).stdout, "the peers to be connected")
    gone.end()
    until(lambda: ", but away just now" in run("map", asked.url).stdout, "the peer to be missed")
    until(lambda: "1 of 1 peer away" in run("convergence", asked.url).stdout, "the peer to be missed")


def test_who_does_not_answer_is_told_in_a_line(run: Run) -> None:
    """A service that is not there, and a url that is none, are a line on stderr and an exit code."""
    done = run("flows", f"http://127.0.0.1:{free_port()}")
    assert (done.exit_code, done.stdout, len(done.stderr.splitlines())) == (1, "", 1)
    assert "did not answer" in done.stderr
    done = run("map", "nowhere")
    assert (done.exit_code, done.stdout, len(done.stderr.splitlines())) == (2, "", 1)


@pytest.mark.parametrize(
    ("asked", "hint"),
    [
        (("flows", "press"), "not 'press'; if it names a flow: kodo flows -q press\n"),
        (("explain", "press agent"), "; if it names a flow: kodo explain --flow 'press agent'\n"),
        (("counts", "localhost:3370"), "not 'localhost:3370'; did you mean http://localhost:3370?\n"),
        (("leave", "10.0.0.1"), "; did you mean http://10.0.0.1?\n"),
        (("flows", ":3370"), "not ':3370'; did you mean http://localhost:3370?\n"),
        (("counts", "3370"), "; did you mean http://localhost:3370?\n"),
        (("map", "http:/localhost:3370"), "not 'http:/localhost:3370'; did you mean http://localhost:3370?\n"),
        (("map", "https:localhost"), "; did you mean https://localhost?\n"),
        (("map", "press"), "such as http://localhost:3366, not 'press'\n"),
    ],
)
def test_what_is_no_url_is_told_with_what_was_meant(run: Run, asked: tuple[str, ...], hint: str) -> None:
    """A word in place of a url, and a url without its scheme, are an error that names what to write."""
    done = run(*asked)
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr.startswith("kodo: URL: expected the url of a service, such as ")
    assert done.stderr.endswith(hint)


def test_what_the_service_refuses_is_told_in_its_words(run: Run, mesh: tuple[Served, Served]) -> None:
    """A refusal of the service is told in its words, and the option that is to blame by its name in the command."""
    done = run("flows", mesh[0].url, "--pp", "0")
    assert (done.exit_code, done.stderr.count("\n")) == (2, 1)
    assert done.stderr.startswith("kodo: --pp: expected ")
    done = run("explain", mesh[0].url, "--node", "nowhere")
    assert (done.exit_code, done.stderr.count("\n")) == (2, 1)
    assert done.stderr.startswith("kodo: --node: expected the url of a service, ")
    assert done.stderr.endswith("; if it names a flow: kodo explain --flow nowhere\n")
    assert run("explain", mesh[0].url).stderr.startswith("kodo: --node: expected a node, a flow, or")


@pytest.mark.parametrize(
    ("by", "said"),
    [
        ("organization, nam:d", "'nam' is no column; did you mean 'name'?"),
        ("colour", "'colour' is no column; there are registry, node, organization, created, "),
        ("name:down", "expected :a or :d behind name, not ':down'"),
        ("name:", "expected :a or :d behind name, not ':'"),
        ("name,,url", "expected a column beside each comma, not 'name,,url'"),
    ],
)
def test_what_is_wrong_in_an_order_is_named(run: Run, by: str, said: str) -> None:
    """What is wrong in a `--by` is named, with what was probably meant, before anybody is asked."""
    done = run("flows", f"http://127.0.0.1:{free_port()}", "--by", by)
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr.startswith(f"kodo: --by: {said}")


@pytest.mark.parametrize("command", ["flows", "counts", "map", "explain", "convergence", "leave"])
@pytest.mark.parametrize("answer", ["{}", "[]", '{"items": [1], "total": 1, "nodes": [1]}', "<html>"])
def test_another_service_is_no_traceback(run: Run, command: str, answer: str) -> None:
    """Whatever else may listen at a url, it is told that it is no service of kodo."""
    with speaking(answer) as url:
        done = run(command, url, *(["--flow", "a"] if command == "explain" else []))
    assert done.exit_code == 1
    assert done.stderr.startswith("kodo: expected ")


def test_numbers_are_no_way_into_the_terminal(run: Run) -> None:
    """Control characters are escaped in every line, also where a service of kodo would give a number."""
    answer = {"total": "\x1b[2J", "filtered": 0, "p": 0, "pp": 10, "items": [], "by": "\x9b", "q": "\x1b]0;x"}
    with speaking(json.dumps(answer)) as url:
        shown = run("flows", url).stdout
    assert shown == "0 flows for \\x1b]0;x, of \\x1b[2J in all\n"


# -- kodo demo ---------------------------------------------------------------------------------------------------------


def test_the_demo_ends_by_itself(tmp_path: Path) -> None:
    """The demo shows the flows and the mesh, writes its picture, and ends with nothing left running."""
    with started("demo", "--picture", "mesh.png", cwd=tmp_path) as demo:
        assert demo.wait() == 0
    told = demo.told()
    for text in ("Ambulance routing", "Truck routing", "├── node", "mesh.png", "kodo serve"):
        assert text in told
    assert re.search(r"Settled in \d+ ms: both registries list the same 6 flows", told)
    assert "\x1b" not in told
    assert (tmp_path / "mesh.png").read_bytes().startswith(b"\x89PNG")
    assert [path.name for path in tmp_path.iterdir()] == ["mesh.png"]


def test_a_kept_demo_can_be_asked_and_ends_with_ctrl_c(tmp_path: Path, run: Run) -> None:
    """With `--keep` the mesh answers until Ctrl-C; then nothing is left running and the exit code is 0."""
    with started("demo", "--keep", cwd=tmp_path) as demo:
        demo.await_line("runs until Ctrl-C")
        (url,) = re.findall(r"kodo map (\S+)", demo.told())
        assert "Call triage" in run("flows", url).stdout
        assert demo.interrupt() == 0
    assert "nothing is left running" in demo.told()
    assert run("flows", url).exit_code == 1


def test_a_demo_that_is_cut_short_leaves_nothing(tmp_path: Path) -> None:
    """Ctrl-C while the mesh starts ends it all; the exit code says that it was cut short."""
    with started("demo", cwd=tmp_path) as demo:
        until(demo.has_guardian, "the first process of the mesh")
        # CPython ends by the signal itself when it came during an exec, as in the import of a dataclass; shells
        # show both as 130.
        assert demo.interrupt() in {130, -signal.SIGINT}


def test_the_demo_needs_the_lab(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the lab the demo says what to install."""
    monkeypatch.setitem(sys.modules, "kodo.lab", None)
    done = run("demo")
    assert done.exit_code == 1
    assert "pip install 'kodo[lab]'" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_picture_that_cannot_be_written_starts_nothing(run: Run, tmp_path: Path) -> None:
    """A picture in a folder that is not there is refused before anything starts."""
    done = run("demo", "--picture", tmp_path / "missing" / "mesh.png")
    assert done.exit_code == 2
    assert "--picture: expected" in done.stderr
    done = run("demo", "--picture", tmp_path / "mesh.txt")
    assert done.exit_code == 2
    assert "--picture: expected a name that ends in .png, .svg, .pdf, not 'mesh.txt'" in done.stderr


# -- kodo lab ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def executed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The command that takes the place of this process."""
    command: list[str] = []
    monkeypatch.setattr(os, "execv", lambda _, arguments: command.extend(arguments))
    return command


@pytest.mark.parametrize("folder", ["notebooks", "."])
def test_the_lab_opens_the_notebooks(
    run: Run, executed: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str
) -> None:
    """`kodo lab` opens JupyterLab in ./notebooks if there is one, else here; what stands after -- is passed on."""
    (tmp_path / folder).mkdir(exist_ok=True)
    monkeypatch.chdir(tmp_path)
    assert run("lab", "--", "--no-browser", "--port", "8889", "mine.ipynb").exit_code == 0
    root = f"--ServerApp.root_dir={(tmp_path / folder).resolve()}"
    assert executed[1:] == ["-m", "jupyterlab", root, "--no-browser", "--port", "8889", "mine.ipynb"]


def test_jupyter_is_what_runs(tmp_path: Path) -> None:
    """`kodo lab` is jupyter lab: it prints its version, and its exit code is the command's."""
    done = subprocess.run([*RUN, "lab", "--", "--version"], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert re.fullmatch(r"\d+\.\d+\.\d+\S*\n", done.stdout)


def test_the_lab_says_what_to_install(run: Run, executed: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Without JupyterLab the command says what to install."""
    monkeypatch.setattr(cli, "find_spec", lambda _: None)
    done = run("lab")
    assert done.exit_code == 1
    assert done.stderr == "kodo: JupyterLab is not installed: pip install 'kodo[lab]'\n"
    assert not executed


# -- how it is asked ---------------------------------------------------------------------------------------------------


class Command:
    """A kodo command in a process of its own; whatever it starts carries its mark in the environment."""

    def __init__(self, *arguments: str, cwd: Path | None = None) -> None:
        self.mark = f"CLI_TEST={uuid.uuid4().hex}"
        name, _, value = self.mark.partition("=")
        self.process = subprocess.Popen(
            [*RUN, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=cwd,
            env={**os.environ, name: value, "PYTHONUNBUFFERED": "1"},
        )
        self._lines: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._lines.append(line)

    def told(self) -> str:
        return "".join(self._lines)

    def await_line(self, text: str) -> None:
        until(lambda: text in self.told() or self.process.poll() is not None, text, timeout=60)
        assert text in self.told()

    def interrupt(self) -> int:
        """What Ctrl-C does to the command alone; its exit code."""
        self.process.send_signal(signal.SIGINT)
        return self.wait()

    def wait(self) -> int:
        code = self.process.wait(60)
        self._reader.join(10)
        return code

    def processes(self) -> list[int]:
        """The processes that carry the mark: the command, and what it started."""
        return [int(folder.name) for folder in Path("/proc").glob("[0-9]*") if self._marked(folder)]

    def has_guardian(self) -> bool:
        """Whether the demo has begun to start its mesh."""
        commands = [Path(f"/proc/{pid}/cmdline") for pid in self.processes()]
        return any(b"kodo.guardian" in command.read_bytes() for command in commands if command.exists())

    def _marked(self, process: Path) -> bool:
        try:
            return self.mark.encode() in (process / "environ").read_bytes().split(b"\0")
        except OSError:
            return False


@contextmanager
def started(*arguments: str, cwd: Path | None = None) -> Iterator[Command]:
    """A command in a process of its own. When the block ends, it and all that it started must have ended."""
    command = Command(*arguments, cwd=cwd)
    try:
        yield command
        until(lambda: not command.processes(), f"{arguments} to leave nothing running", timeout=10)
    finally:
        for pid in command.processes():
            os.kill(pid, signal.SIGKILL)
        command.wait()


def in_terminal(width: int, *arguments: str) -> str:
    """What a command writes to a terminal of this width."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 50, width, 0, 0))
    environment = {**os.environ, "TERM": "xterm-256color"}
    with subprocess.Popen([*RUN, *arguments], stdin=theirs, stdout=theirs, stderr=theirs, env=environment):
        os.close(theirs)
        written = b"".join(iter(lambda: _chunk(ours), b""))
    os.close(ours)
    return written.decode()


def _chunk(terminal: int) -> bytes:
    try:
        return os.read(terminal, 65536)
    except OSError:  # what Linux says when the last process has left a terminal
        return b""


@contextmanager
def speaking(
    answer: str, *, posts: bool = False, status: int = 200, after: threading.Event | None = None
) -> Iterator[str]:
    """Something that answers every GET, and every POST too if it `posts`, with the same text, called JSON; its url.

    `after` is what it waits for first.
    """

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            assert after is None or after.wait(20), "what it waits for did not come"
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(answer.encode())

        if posts:
            do_POST = do_GET  # noqa: N815, the name is http.server's

        def log_message(self, *_: Any) -> None:
            """Nothing to say."""

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
