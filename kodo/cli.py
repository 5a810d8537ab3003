"""The `kodo` command: start a service, look at a mesh, see what it is all about.

This room owns how kodo looks in a terminal. Its rules:

- What comes from a service was written by strangers. It is shown literally: never taken as markup of rich, never sent
  to the terminal as control characters (`_plain`).
- In a terminal there are colours, and lines fold where it ends; anywhere else there are neither, and nothing is cut.
  `--json` prints what the service said, and nothing else.
- What goes wrong on purpose is a `KodoError`: its words on stderr, exit code 2 if an option is to blame, else 1.
- A command imports what it needs when it runs: reading a mesh loads neither fastapi nor pandas.
"""

from __future__ import annotations

import inspect
import json
import os
import shlex
import sys
import threading
import time
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from itertools import starmap
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias, TypeVar, get_args, get_origin

import typer
from rich import box
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text
from rich.tree import Tree
from typer.core import TyperGroup

from kodo import __version__, serving
from kodo.errors import (
    InvalidMessageError,
    KodoError,
    OptionError,
    RejectedError,
    RoleError,
    duration,
    reason_of,
    suggestion,
)
from kodo.models import MISSING_AUTHOR, MISSING_DESCRIPTION, canonical
from kodo.options import ENV_PREFIX, Options, probable_url

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

    from kodo.client import Client, Convergence, Counts, Explanation, Listing, Status, View
    from kodo.lab import Member, MeshLab
    from kodo.sim.plan import Belief, Phase, Prediction

JOINERS = "\u200c\u200d"
"""The only invisible characters that are passed on: scripts and emoji are joined by them."""
WIDEST = 2**20
"""The width, in cells, that a line has where there is no terminal to end it."""
Layout: TypeAlias = tuple[tuple[str, ...], ...]
SIDE_BY_SIDE: Layout = (("name",), ("organization",), ("description",), ("author",), ("tags",), ("node + url",))
STACKED: Layout = (("name", "description"), ("organization", "author"), ("node", "url", "tags"))
MOMENTS: Layout = (("created",), ("modified",), ("heartbeat",))
BRIEF: Layout = (("name",), ("organization",), ("description",))
"""What the columns of the flow table hold: where there is room, where there is not, with times, and in the demo."""
BAR_LENGTH = 20
SILENCE = 3.0
"""Seconds without an answer after which the command says whom it waits for."""
STOPPED = "Stopped; nothing is left running."
INSTALL_LAB = "pip install 'kodo[lab]'"
METAVARS = {"url": "URL", "connect": "URL", "loader": "SOURCE"}
GOOD, POOR, BAD, QUIET, STRONG, LINK = "green", "yellow", "red", "dim", "bold", "cyan"
STATUS_STYLES = {"online": GOOD, "offline": BAD}
STATE_STYLES = {"listed": GOOD, "left": BAD, "lapsed": BAD, "older": QUIET}
PEER_STYLES = {"standing": GOOD, "greeting": POOR, "leaving": POOR}
"""What becomes of a status, of a record in an explanation, and of a peer."""
FROZEN = "No node is shown offline now: most nodes and peers fell silent at once, so perhaps this registry is cut off."
TROUBLES = {
    "away": "away just now",
    "leaving": "it is to be told that this service leaves",
    "no registry": "what answers there is no kodo registry",
    "refused": "not asked again until it is heard of",
}
"""What is said of a peer in such a state."""


EFFECTS = {
    "answer_loss": "an answer was lost",
    "crash": "a service ended at once",
    "cut": "a message did not get through",
    "deadline": "a message had no answer in time",
    "doubles": "a message came twice",
    "latency": "a message was under way for another time than usual",
    "loss": "a message was lost",
    "lost disk": "a service lost its disk",
    "pause": "something had to wait for a paused service",
    "reorder": "a message may have been overtaken",
    "skew": "a service read its wrong clock",
    "slow": "an answer came late",
    "unsaved": "a change was not yet on disk when its service crashed",
}
"""What faults did in a simulation, by the names under which it is counted."""


T = TypeVar("T")


class _Kodo(TyperGroup):
    """The group of all commands, which tells the errors of the family in their own words."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except (KodoError, OSError) as error:
            raise typer.Exit(tell(error)) from error


def tell(error: KodoError | OSError) -> int:
    """Tell an error of the family, or of the operating system, in plain words on stderr; the exit code for it."""
    if isinstance(error, BrokenPipeError):  # who read our output has seen enough
        raise error
    told = error if isinstance(error, KodoError) else _of_system(error)
    for line in str(told).splitlines():
        typer.echo(f"kodo: {_plain(line)}", err=True)
    return 2 if isinstance(error, OptionError) else 1


def _of_system(error: OSError) -> KodoError:
    """An error of the operating system in the words of the family: what could not be used, why, and what to do."""
    if error.filename is None:
        return KodoError(f"expected the system to do its part, but {reason_of(error)}; mend that, and try again")
    return KodoError(f"{error.filename}: expected to read or write there, but {reason_of(error)}; check the path")


app = typer.Typer(
    cls=_Kodo,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"kodo {__version__}")
        raise typer.Exit


@app.callback()
def _kodo(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """A federated registry mesh for agent services.

    Nodes offer flows, registries list them, and registries that are connected list the same.
    """


# -- starting a service ------------------------------------------------------------------------------------------------


def _flag(name: str, field: FieldInfo) -> inspect.Parameter:
    """An option of the service as a flag. Not given it is None, so that environment, file and default speak."""
    kind, metavar = _flag_type(name, field.annotation)
    option = typer.Option(help=_flag_help(name, field), metavar=metavar, show_default=False)
    annotation = Annotated[kind | None, option]  # type: ignore[valid-type]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def _flag_type(name: str, annotation: Any) -> tuple[Any, str | None]:
    """What the command line takes for an option. All but switches are texts: `Options` alone says what they may be."""
    if annotation is bool:
        return bool, None
    if get_origin(annotation) is tuple:
        return list[str], METAVARS.get(name, "TEXT")
    if annotation in (int, float):
        return str, "NUMBER"
    takes_path = any(Path in (kind, get_origin(kind), *get_args(kind)) for kind in get_args(annotation))
    return str, METAVARS.get(name, "PATH" if takes_path else "TEXT")


def _flag_help(name: str, field: FieldInfo) -> str:
    """What an option means, what it may look like, its variable, and its default."""
    default = "" if field.default in (None, ()) else f", default: {_written(field.default)}"
    example = "" if default or not field.examples else f", such as {str(field.examples[0]).partition(',')[0]}"
    repeated = "; repeatable" if get_origin(field.annotation) is tuple else ""
    return f"{field.description}{example}{repeated} [env: {ENV_PREFIX}{name.upper()}{default}]"


def _written(default: object) -> str:
    return str(default).lower() if isinstance(default, bool) else str(default)


def _with_flags(command: Callable[..., None]) -> Callable[..., None]:
    """The command with a flag for each option of a service."""
    flags = [_flag(name, field) for name, field in Options.model_fields.items()]
    command.__signature__ = inspect.Signature(flags)  # type: ignore[attr-defined]
    command.__annotations__ = {flag.name: flag.annotation for flag in flags}
    return command


@app.command()
@_with_flags
def serve(**flags: Any) -> None:
    """Run a service until Ctrl-C: a node, a registry, or both.

    What is not given here is taken from the environment, then from the YAML file that --loader names, then from
    the defaults.

    \b
    kodo serve --no-node --organization acme
    kodo serve --no-registry --url http://localhost:3367 \\
      --connect http://localhost:3366 --loader flows:load
    """
    serving.serve({name: _joined(value) for name, value in flags.items() if value is not None and value != []})


def _joined(value: Any) -> Any:
    return ",".join(value) if isinstance(value, list) else value


# -- reading a mesh ----------------------------------------------------------------------------------------------------

HOME: str = Options.model_fields["url"].default
NAMING = {"flows": "kodo flows -q {}", "explain": "kodo explain --flow {}"}
"""What takes the name of a flow, where somebody gives it in place of a url."""


def _url(context: typer.Context, parameter: typer.CallbackParam, given: str | None) -> str | None:
    """The url of a service, or none. Raises `OptionError` for another word, and says what was probably meant."""
    name = "URL" if parameter.param_type_name == "argument" else parameter.opts[0]
    if given is None:
        return None
    if "://" in given:
        _key(name, given)
        return given
    meant = ""
    if probable := probable_url(given):
        meant = f"; did you mean {probable}?"
    elif context.info_name in NAMING:
        meant = f"; if it names a flow: {NAMING[context.info_name].format(shlex.quote(given))}"
    raise OptionError(f"{name}: expected the url of a service, such as {HOME}, not {given!r}{meant}")


Url = Annotated[str, typer.Argument(metavar="URL", help="The service to ask.", callback=_url)]
AsJson = Annotated[bool, typer.Option("--json", help="Print the JSON of the service.")]


@app.command()
def flows(  # noqa: PLR0913, PLR0917, one for each option
    url: Url = HOME,
    q: Annotated[
        str | None,
        typer.Option("--q", "-q", metavar="TEXT", help="What to look for: a text, or an expression."),
    ] = None,
    by: Annotated[str | None, typer.Option("--by", metavar="COLUMNS", help="What to sort by; name:d descends.")] = None,
    p: Annotated[int, typer.Option("-p", "--p", metavar="PAGE", help="The page, from 0.")] = 0,
    pp: Annotated[int, typer.Option("--pp", metavar="ROWS", help="Rows a page, up to 1000.")] = 10,
    times: Annotated[bool, typer.Option("--times", help="Show the times too, in UTC.")] = False,
    as_json: AsJson = False,
) -> None:
    """List the flows of the mesh, a page at a time.

    Expressions and orders name the columns of the service: registry, node, organization, created, modified,
    heartbeat, url, name, author, description, tags. A time is compared as it is listed, or with its beginning.

    \b
    kodo flows -q routing
    kodo flows -q 'organization == "acme" & @tag("routing")' --by organization,name:d
    kodo flows -q 'modified > "2026-11-29T18"' --times
    """
    from kodo.misread import misordered  # noqa: PLC0415, the grammar is for the command that lists

    if by is not None and (wrong := misordered(by)):
        raise OptionError(f"--by: {wrong}")
    _answer(
        url,
        lambda client: client.flows(q=q, by=by, p=p, pp=pp),
        None if as_json else lambda page: _page(page, times, q),
    )


@app.command()
def counts(url: Url = HOME, as_json: AsJson = False) -> None:
    """Count the flows by organization, node and tag."""
    _answer(url, lambda client: client.counts(), None if as_json else _tally)


@app.command(name="map")
def map_(url: Url = HOME, as_json: AsJson = False) -> None:
    """Draw the mesh as a service sees it.

    Its own nodes come first, then each peer with the nodes that are known through it.
    """
    if as_json:
        _answer(url, lambda client: client.map())
    else:
        _answer(url, lambda client: (client.map(), client.status(), _troubles(client)), lambda seen: _mesh(*seen))


@dataclass(frozen=True, slots=True)
class _Troubles:
    """Why peers do not answer as they should, which nodes are silent, and whether none is shown offline for now.

    Urls are canonical. `peers` are all there are, where the service tells.
    """

    away: Mapping[str, str] = field(default_factory=dict)
    frozen: bool = False
    silent: frozenset[str] = frozenset()
    peers: frozenset[str] | None = None

    def is_peer(self, url: str) -> bool:
        """Whether it is, as far as is known, connected in some way; else it is what is left of one, or never was."""
        return self.peers is None or canonical(url) in self.peers


def _troubles(client: Client) -> _Troubles:
    """What is not as it should be; a service of another make does not tell."""
    try:
        told = client.convergence()
    except RejectedError:
        return _Troubles()
    said = {canonical(url): _trouble(peer) for url, peer in told["peers"].items()}
    return _Troubles(
        away={url: trouble for url, trouble in said.items() if trouble},
        frozen=told["frozen"],
        silent=frozenset(told["silent"]),
        peers=frozenset(said),
    )


def _trouble(peer: Mapping[str, Any]) -> str:
    said = TROUBLES.get(_state(peer), "")
    return f"{said}: {peer['why']}" if said and peer.get("why") else said


def _state(peer: Mapping[str, Any]) -> str:
    """The state of a peer in one word, without the status that it refused with."""
    return "refused" if peer["state"].startswith("refused ") else str(peer["state"])


def _answer(url: str, ask: Callable[[Client], T], draw: Callable[[T], Iterable[RenderableType]] | None = None) -> None:
    """Ask a service, and print its answer, drawn or, where nothing draws it, as JSON."""
    from kodo.client import Client  # noqa: PLC0415, httpx is for the commands that ask a service

    try:
        with Client(url) as client, _in_words_of_the_command(), _telling_of_silence(client):
            answer = ask(client)
        if draw is None:
            _show_json(answer)
        else:
            _show(*draw(answer))
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        # Something else that speaks JSON may listen there.
        raise RejectedError(f"expected the answer of a kodo service from {url}; check the url") from error


@contextmanager
def _telling_of_silence(client: Client) -> Iterator[None]:
    """Say after a while for whom the command waits, beside what it prints. It may have more than one answer to give."""
    said = f"{client.url} takes its time; it is given up after {client.timeout:g} s of silence"
    telling = threading.Timer(SILENCE, typer.echo, [said], {"err": True})
    telling.daemon = True
    telling.start()
    try:
        yield
    finally:
        telling.cancel()


@contextmanager
def _in_words_of_the_command() -> Iterator[None]:
    """Name what is wrong in a query as the command does: its parameters are our options."""
    try:
        yield
    except InvalidMessageError as error:
        if any(fault["loc"][:1] != ["query"] for fault in error.detail):
            raise
        told = (f"--{'.'.join(map(str, fault['loc'][1:]))}: {fault['msg']}" for fault in error.detail)
        raise OptionError("\n".join(told)) from error


def _page(page: Listing, times: bool = False, asked: str | None = None) -> Iterator[RenderableType]:
    """A page of flows as a table, and a line that says where in the listing it stands."""
    items = page["items"]
    if items:
        yield _flows(items, times)
        yield Text()
    yield _text(_place(page, len(items)), QUIET)
    from kodo.misread import explanation  # noqa: PLC0415, the grammar is for the command that lists

    if asked and (misread := explanation(asked)):
        yield _text(f"--q was {misread}", POOR)


def _flows(items: Sequence[Mapping[str, Any]], times: bool) -> _Fitting:
    moments = tuple(name for (name,) in MOMENTS)
    beside = SIDE_BY_SIDE + MOMENTS if times else SIDE_BY_SIDE
    return _fitting(list(map(_fields, items)), beside, (*STACKED, moments) if times else STACKED)


def _fields(item: Mapping[str, Any]) -> dict[str, Text]:
    """What is shown of a flow, by the names in the layouts."""
    return {
        "name": _text(item["name"], STRONG),
        "organization": _text(item["organization"]),
        "description": _given(item["description"], MISSING_DESCRIPTION),
        "author": _given(item["author"], MISSING_AUTHOR),
        "tags": _text(", ".join(item["tags"]), QUIET),
        "node": _text(item["node"]),
        "url": _text(item["url"], LINK),
        "node + url": Text.assemble(_text(item["node"].rstrip("/")), _text(item["url"], LINK), overflow="fold"),
        **{name: _text(_moment(item[name]), QUIET) for (name,) in MOMENTS},
    }


@dataclass(frozen=True, slots=True)
class _Fitting:
    """A table: a column for each field where the lines are long enough, else fields below each other."""

    beside: Table
    stacked: Table

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        fits = Measurement.get(console, options.update(width=WIDEST), self).maximum <= options.max_width
        yield self.beside if fits else self.stacked

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        return Measurement.get(console, options, self.beside)


def _fitting(rows: Sequence[Mapping[str, Text]], beside: Layout, stacked: Layout) -> _Fitting:
    return _Fitting(_laid_out(rows, beside), _laid_out(rows, stacked))


def _laid_out(rows: Iterable[Mapping[str, Text]], layout: Layout) -> Table:
    """Rows of fields by their names, as a table whose columns hold the fields that the layout names."""
    height = max(map(len, layout))
    titles = ("\n".join((*names, *[""] * (height - len(names)))) for names in layout)
    table = _table(*titles, leading=int(height > 1))
    for row in rows:
        table.add_row(*(_below([row[name] for name in names]) for names in layout))
    return table


def _below(texts: Sequence[Text]) -> Text:
    """The texts below each other, each in its line; those that are empty at the end take none."""
    told = max((line for line, text in enumerate(texts, 1) if text.plain), default=0)
    return Text("\n", overflow="fold").join(texts[:told])


def _place(page: Listing, rows: int) -> str:
    """Which rows of the listing a page shows, of what query, in what order, and how to see more."""
    total, found, first = page["total"], page["filtered"], page["p"] * page["pp"]
    asked = f" for {page['q']}, of {total} in all" if page["q"] else ""
    among = f"{_plural(found, 'flow')}{asked}"
    if not rows:
        return f"page {page['p']} is behind the last of {among}" if found else among
    more = f"; next: -p {page['p'] + 1}" if first + rows < found else ""
    return f"{first + 1} to {first + rows} of {among}, by {page['by']}{more}"


def _tally(numbers: Counts) -> Iterator[RenderableType]:
    """The counts as one table, a section for each kind, the largest first, with bars to compare them by."""
    nobodys = numbers["total"] - sum(numbers["organization"].values())
    sections = {
        "organization": [*_largest_first(numbers["organization"]), *_unless_zero("no organization", nobodys)],
        "node": _largest_first(numbers["node"]),
        "tag": _largest_first(numbers["tags"]),
    }
    if numbers["total"]:
        table = _table("by", "", "flows", "")
        table.columns[2].justify = "right"
        for kind, counted in sections.items():
            for row, (name, number) in enumerate(counted):
                bar = Text("━" * max(1, round(BAR_LENGTH * number / numbers["total"])), style=LINK)
                table.add_row(_text("" if row else kind, QUIET), name, str(number), bar)
            table.add_section()
        yield table
        yield Text()
    yield _text(f"{_plural(numbers['total'], 'flow')} in all", QUIET)


def _largest_first(counts: Mapping[str, int]) -> list[tuple[Text, int]]:
    return [(_text(name), number) for name, number in sorted(counts.items(), key=lambda item: (-item[1], item[0]))]


def _unless_zero(what: str, number: int) -> list[tuple[Text, int]]:
    """What is told in our own words, and only where there is some of it."""
    return [(_text(what, QUIET), number)] if number > 0 else []


def _mesh(seen: View, status: Status, troubles: _Troubles) -> Iterator[RenderableType]:
    """A service's view of the mesh as a tree, and a line with its numbers."""
    tree = Tree(_service(_kind(status), seen), guide_style=QUIET)
    for node in seen["nodes"].values():
        tree.add(_node(node, doubted=canonical(node["url"]) in troubles.silent))
    nodes = list(seen["nodes"].values())
    for peer, state in _peers(seen, troubles):
        branch = tree.add(Text.assemble(_service("provider" if peer["feed"] is False else "registry", peer), state))
        for node in peer["nodes"].values():
            branch.add(_node(node))
            nodes.append(node)
    yield tree
    yield Text()
    if troubles.frozen:
        yield Text(FROZEN, style=POOR)
    offered = sum(len(node["flows"]) for node in nodes)
    yield Text(f"{_plural(len(nodes), 'node')} with {_plural(offered, 'flow')}", style=QUIET)


def _peers(seen: View, troubles: _Troubles) -> Iterator[tuple[Mapping[str, Any], Text]]:
    """The peers of a service with the state of their connection: those it connects with, then those that came.

    Last come those of which it lists nodes, and with which it is not connected.
    """
    away = troubles.away
    known = {canonical(url): peer for url, peer in seen["providers"].items()}
    for url, since in seen["connection"].items():
        peer = known.pop(canonical(url), {"url": url, "organization": None, "feed": None, "nodes": {}})
        trouble = f"; {away[canonical(url)]}" if canonical(url) in away else ""
        if since:
            yield peer, _stands(url, "connected", away)
        else:  # what it said of itself went with the connection
            yield {**peer, "feed": None}, _text(f", not connected{trouble}", POOR)
    for peer in sorted(known.values(), key=lambda peer: not troubles.is_peer(peer["url"])):
        if troubles.is_peer(peer["url"]):
            yield peer, _stands(peer["url"], "connected from there", away)
        else:
            yield {**peer, "feed": None}, Text(", not connected", style=POOR)


def _stands(url: str, how: str, away: Mapping[str, str]) -> Text:
    if canonical(url) in away:
        return _text(f", {how}, but {away[canonical(url)]}", POOR)
    return Text(f", {how}", style=GOOD)


def _kind(status: Status) -> str:
    if status["provider"]:
        return "provider"
    return "registry" if status["registry"] else "node"


def _service(kind: str, service: Mapping[str, Any]) -> Text:
    organization = service["organization"]
    named = (" ", _text(organization, STRONG)) if organization else ()
    return Text.assemble((kind, QUIET), *named, " ", _text(service["url"], LINK))


def _node(node: Mapping[str, Any], *, doubted: bool = False) -> Text:
    status = node["status"]
    # Every node is unknown until its first beat, and most of those that never beat: that is no news.
    news = () if status == "unknown" else (", ", _status(status, doubted=doubted))
    return Text.assemble(_service("node", node), ", ", _plural(len(node["flows"]), "flow"), *news)


def _status(status: str, *, doubted: bool) -> Text:
    """The status of a node; `doubted`: it has fallen silent, and is not shown offline for now."""
    if doubted and status == "online":
        return Text("was online, silent now", style=POOR)
    return _text(status, STATUS_STYLES.get(status, ""))


# -- asking why --------------------------------------------------------------------------------------------------------


@app.command()
def explain(
    url: Url = HOME,
    node: Annotated[
        str | None, typer.Option("--node", metavar="URL", help="The node that is asked about.", callback=_url)
    ] = None,
    flow: Annotated[
        str | None, typer.Option("--flow", metavar="FLOW", help="The path or name of a flow, of this node or of any.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Say why a node, or a flow, is listed at a service or not.

    What every registry's part says of the node is shown, the deciding record first.

    \b
    kodo explain --flow "press agent"
    kodo explain http://localhost:3366 --node http://localhost:3367 --flow /press-agent
    """
    if as_json:
        _answer(url, lambda client: client.explain(node, flow))
    else:
        _answer(url, lambda client: _explained(client, node, flow), lambda told: _explanation(*told))


@app.command()
def convergence(url: Url = HOME, as_json: AsJson = False) -> None:
    """Say how far the peers of a service are behind.

    Beside that it is shown what the service knows of every registry: `news` is how many changes of its nodes, and
    `heard` how long ago the registry was known to be there.

    The states of a peer:

    \b
    standing     the connection stands: it is told all news
    greeting     no connection yet, or not again: it is asked for one
    away         it does not answer, and is tried again
    no registry  something else answers there, and is tried again
    refused      it answered 401 or 403, and is not asked again until it is heard of
    leaving      it is to be told that this service leaves
    """
    if as_json:
        _answer(url, lambda client: client.convergence())
    else:
        _answer(url, lambda client: (client.convergence(), client.status()), lambda told: _progress(*told))


def _explained(client: Client, node: str | None, flow: str | None) -> tuple[Explanation, str]:
    """Why a node or a flow is listed, and, of one that nobody knows, which was probably meant."""
    told = client.explain(node, flow)
    if told["listed"] or (told["records"] and flow is None):
        return told, ""
    if node is not None and not told["records"]:
        return told, suggestion(node, client.counts()["node"], otherwise="")
    # A url may hold quotes.
    of_node = None if node is None else f"node == {json.dumps(told['node'], ensure_ascii=False)}"
    listed = client.flows(q=of_node, pp=1000)["items"]
    names = [name for item in listed for name in (item["name"], item["url"])]
    return told, suggestion(flow or "", names, otherwise="")


def _explanation(told: Explanation, meant: str) -> Iterator[RenderableType]:
    """Listed or not, why, what was probably meant, and what every part says of it."""
    verdict = ("listed", GOOD) if told["listed"] else ("not listed", BAD)
    yield Text.assemble(verdict, ": ", _text(told["why"]), overflow="fold")
    if meant:
        yield _text(meant, POOR)
    if told["records"]:
        several = ("node",) if told["node"] is None else ()
        columns = ("registry", "state", "status", "modified", "registry heard", "told by")
        yield Text()
        yield _fitting(
            [_record(record, told) for record in told["records"]],
            tuple((name,) for name in (*several, *columns)),
            ((*several, "registry", "told by"), ("state", "status"), ("modified", "registry heard")),
        )
    if told.get("frozen"):
        yield Text()
        yield Text(FROZEN, style=POOR)


def _record(record: Mapping[str, Any], told: Explanation) -> dict[str, Text]:
    """What is shown of a part's record of a node, by the names in the layouts."""
    return {
        "node": _text(record["node"], STRONG),
        "registry": _text(record["origin"], LINK),
        "state": _text(record["state"], STATE_STYLES.get(record["state"], "")),
        "status": _leased(record, frozen=bool(told.get("frozen"))),
        "modified": _text(_moment(record["modified"]), QUIET),
        "registry heard": _text(_ago(record["age"], own=record["origin"] == canonical(told["registry"])), QUIET),
        "told by": _teller(record["on_behalf_of"] or record["told_by"], record["origin"]),
    }


def _leased(record: Mapping[str, Any], *, frozen: bool) -> Text:
    """The status of a node, and what is left of its lease; one without a lease left is about to be judged."""
    if record["state"] in {"left", "lapsed"}:
        return Text()
    status = _status(record["status"], doubted=frozen and record["lease"] == 0)
    if record["lease"] is None or status.plain != record["status"]:
        return status
    left = f", {duration(record['lease'])} left" if record["lease"] else " until judged: its lease is over"
    return Text.assemble(status, (left, QUIET))


def _progress(told: Convergence, status: Status) -> Iterator[RenderableType]:
    """How it stands with the peers, how old the news of every registry is, and a line that says what it comes to."""
    peers = told["peers"].values()
    if peers:
        rows = list(starmap(_standing, told["peers"].items()))
        yield _fitting(
            rows, (("peer",), ("state",), ("heard",), ("behind",)), (("peer", "state", "heard"), ("behind",))
        )
        yield Text()
    rows = [_origin(url, known, told["registry"]) for url, known in told["origins"].items()]
    yield _fitting(
        rows, (("registry",), ("news",), ("heard",), ("told by",)), (("registry", "told by"), ("news", "heard"))
    )
    yield Text()
    if told["frozen"]:
        yield Text(FROZEN, style=POOR)
    if not peers:
        yield Text("there are no peers", style=QUIET)
    if not status["registry"] and not any(map(_was_connected, peers)):
        yield Text("its flows are listed nowhere, since it is registered with no registry", style=BAD)
    states = Counter(map(_state, peers))
    counted = {
        "away": states["away"],
        "not a registry": states["no registry"],
        "not asked again": states["refused"],
        "never connected": sum(not _was_connected(peer) for peer in peers),
        "behind": sum(bool(peer["behind"]) for peer in peers),
    }
    for what, number in counted.items():
        if number:
            yield Text(f"{number} of {_plural(len(peers), 'peer')} {what}", style=POOR)
    if peers and not (counted["never connected"] or counted["behind"]):
        yield Text("nothing is owed to any peer", style=GOOD)


def _was_connected(peer: Mapping[str, Any]) -> bool:
    """An older kodo does not tell, and shows none that it was not."""
    return bool(peer.get("connected", True))


def _standing(url: str, peer: Mapping[str, Any]) -> dict[str, Text]:
    behind = list(starmap(_owed, peer["behind"].items()))
    if not _was_connected(peer):
        behind = ["all: never connected"]
    why = f": {peer['why']}" if peer.get("why") else ""
    soon = peer["next_try"]
    again = "" if soon is None else f", tried again in {duration(soon)}" if soon else ", tried again now"
    if _state(peer) == "refused":
        again = f", {TROUBLES['refused']}"
    return {
        "peer": _text(url, LINK),
        "state": Text.assemble(_text(peer["state"], PEER_STYLES.get(peer["state"], BAD)), _text(why), (again, QUIET)),
        "heard": _text("never" if peer["heard"] is None else _ago(peer["heard"]), QUIET),
        "behind": Text("\n").join(_text(line, POOR) for line in behind) if behind else Text("nothing", style=QUIET),
    }


def _owed(origin: str, owed: Mapping[str, Any]) -> str:
    """What a peer is to hear of a registry: its changes, or, after a start alone, that it counts them anew."""
    return f"{_plural(owed['changes'], 'change')} of {origin}" if owed["changes"] else f"a new start of {origin}"


def _origin(url: str, known: Mapping[str, Any], asked: str) -> dict[str, Text]:
    return {
        "registry": _text(url, LINK),
        "news": _text(_plural(known["version"][2], "change")),
        "heard": _text(_ago(known["age"], own=url == canonical(asked)), BAD if known["stale"] else QUIET),
        "told by": _teller(known["told_by"], url),
    }


def _teller(told_by: str | None, origin: str) -> Text:
    return _text("itself" if told_by in {None, origin} else told_by, QUIET)


def _ago(seconds: float, *, own: bool = False) -> str:
    """How long ago a registry was heard of; that which is asked answers."""
    return "just asked" if own else f"{duration(seconds)} ago"


# -- leaving -----------------------------------------------------------------------------------------------------------


@app.command()
def leave(
    url: Annotated[str, typer.Argument(metavar="URL", help="The service that is to leave.", callback=_url)],
    at: Annotated[
        str | None,
        typer.Option(
            "--at", metavar="REGISTRY", help="Say so to this registry, in place of the service.", callback=_url
        ),
    ] = None,
) -> None:
    """Let a service leave the mesh.

    All it is connected with are told, and forget it. It runs on: a node serves its own flows, a registry lists the
    nodes that are registered with it, and those of others as they were. Those that do not answer are told as soon as
    they do.

    A node that is dead cannot be asked to leave: with --at the registry that it is registered with forgets it, and
    tells the others. Of a registry that is dead this ends the connection with that one alone.

    \b
    kodo leave http://localhost:3367
    kodo leave http://localhost:3367 --at http://localhost:3366
    """
    if at is None:
        _answer(url, _leaves, lambda left: _farewells(url, left))
    elif _key("URL", url) == _key("--at", at):
        raise OptionError(
            f"--at: expected another service than the one that is to leave; kodo leave {shlex.quote(url)}"
        )
    else:
        _answer(at, lambda client: _dismiss(client, url), lambda known: _dismissed(url, at, known))


def _key(name: str, url: str) -> str:
    """A url as urls are compared. Raises `OptionError`, about what has this name, for what is none."""
    try:
        return canonical(url)
    except ValueError as error:
        raise OptionError(f"{name}: {error}") from error


@dataclass(frozen=True, slots=True)
class _Left:
    """A service that has left: its peers `before`, those to whom something is still to be said, what it goes on with.

    `connection` is that of the common reply before it left, `flows` how many it offers itself, `registered` how many
    nodes are registered with it, `others` how many it lists of other registries.
    """

    connection: Mapping[str, str | None]
    before: Iterable[str]
    after: Mapping[str, Any]
    flows: int
    registered: int
    others: int

    @property
    def goes_on(self) -> str:
        """What it does from now on."""
        own = ["serving its own flows"] if self.flows else []
        counted = {"registered with it": self.registered, "of others as it knew them": self.others}
        listed = [f"{_plural(number, 'node')} {what}" for what, number in counted.items() if number]
        return " and ".join(own + ([f"listing {' and '.join(listed)}"] if listed else []))


def _leaves(client: Client) -> _Left:
    """Let it leave."""
    status, before = client.status(), client.convergence()["peers"]
    with _busy("telling those it is connected with"):
        client.leave()
    view = client.map()
    nodes = {canonical(url): node for url, node in view["nodes"].items()}
    others = sum(len(peer["nodes"]) for peer in view["providers"].values())
    own = nodes.pop(canonical(status["url"]), {"flows": ()})
    after = client.convergence()["peers"]
    return _Left(status["connection"], before, after, len(own["flows"]), len(nodes), others)


def _farewells(url: str, left: _Left) -> Iterator[RenderableType]:
    """Who was told, who could not be, and what goes on."""
    never = {canonical(peer) for peer, since in left.connection.items() if since is None}
    goes_on = f"; it goes on {left.goes_on}" if left.goes_on else ""
    yield Text.assemble(_text(url, LINK), f" has left the mesh{goes_on}", overflow="fold")
    for peer in left.before:
        if peer in left.after:
            why = ("; told once it answers", QUIET)
            yield Text.assemble(("not told yet  ", POOR), _text(peer), why, overflow="fold")
        elif canonical(peer) in never:
            yield Text.assemble(("not connected ", QUIET), _text(peer))
        else:
            yield Text.assemble(("told          ", GOOD), _text(peer))
    if not left.before:
        yield Text("It was connected with no other registry: there was nobody to tell.", style=QUIET)


def _dismiss(client: Client, url: str) -> list[Mapping[str, Any]]:
    """Let a registry forget a service; what its own part said of it. Raises `KodoError` for a stranger there."""
    known = client.explain(url)
    try:
        client.post("/disconnect", {"url": url})
    except RoleError as error:
        if not client.status()["registry"]:
            raise
        listed = (record for record in known["records"] if record["state"] == "listed")
        elsewhere = [record["on_behalf_of"] or record["origin"] for record in listed]
        meant = suggestion(url, client.counts()["node"], otherwise="kodo map shows which there are")
        do = f"kodo leave {shlex.quote(url)} --at {elsewhere[0]}" if elsewhere else meant
        raise KodoError(f"{url} is neither registered nor connected at {client.url}: {known['why']}; {do}") from error
    return [record for record in known["records"] if record["origin"] == canonical(known["registry"])]


def _dismissed(url: str, at: str, known: Sequence[Mapping[str, Any]]) -> Iterator[RenderableType]:
    """That it was forgotten, and whether it may come back."""
    if any(record["state"] == "listed" for record in known):
        ends = ", which tells the others"
    else:
        ends = " as a peer; its own part stays until the `grace` is over, and its other peers are to be told one by one"
    yield Text.assemble(_text(url, LINK), " is forgotten by ", _text(at, LINK), ends, overflow="fold")
    if not known or known[0]["status"] != "offline":
        yield _text("If it still runs it comes back by itself; let it leave instead, or end it before.", POOR)


# -- seeing what it is all about ---------------------------------------------------------------------------------------

HARBOUR = (
    ("Berth planning", "Assigns ships to berths, two days ahead", "Ines Duarte", ["ships", "planning"]),
    ("Customs check", "Lists what customs will ask of a freight", "Tom Reuter", ["documents"]),
    ("Truck routing", "Plans the way of containers to the city", "Ines Duarte", ["routing", "planning"]),
)
RESCUE = (
    ("Ambulance routing", "Finds the fastest ambulance and its way", "Lena Brandt", ["routing"]),
    ("Call triage", "Sorts emergency calls, and says why", "Sam Okafor", ["triage"]),
    ("Shift handover", "Writes a shift's handover from its log", "Sam Okafor", ["documents"]),
)
"""What the two organizations of the demo offer: name, description, author and tags of each flow."""
MEANWHILE = {
    "flows {url} -q routing": "who plans routes, here or there?",
    "counts {url}": "who offers how much?",
    "map {url}": "who is connected?",
}
AFTERWARDS = {
    "kodo demo --keep": "the same, running until Ctrl-C, to ask it questions",
    "kodo serve": "a service of your own, node and registry in one",
    "kodo lab": "the notebooks: start, watch, break and heal a mesh",
}
"""What to try next, while the demo's mesh runs and when it has ended."""


@app.command()
def demo(
    picture: Annotated[
        Path, typer.Option("--picture", metavar="PATH", help="Where to write the picture of the mesh.")
    ] = Path("kodo-demo.png"),
    keep: Annotated[bool, typer.Option("--keep", help="Keep the mesh running until Ctrl-C.")] = False,
) -> None:
    """Start a mesh of two organizations, and look at it.

    Two registries and two nodes run on this machine, on free ports, until the demo ends; it leaves the picture and
    nothing else.
    """
    if not picture.parent.is_dir():
        raise OptionError(f"--picture: expected a path in a folder that exists; create {picture.parent} first")
    lab_class = _lab_class()
    from kodo.lab.drawing import FORMS  # noqa: PLC0415, the lab is an extra

    if picture.suffix not in FORMS:
        raise OptionError(f"--picture: expected a name that ends in {', '.join(FORMS)}, not {picture.name!r}")
    try:
        with lab_class() as mesh:
            _tell(mesh, picture, keep)
    except KeyboardInterrupt:
        _say("", STOPPED)
        raise typer.Exit(130) from None  # it was cut short, and a script is to know
    if keep:
        _say("", STOPPED)


def _lab_class() -> type[MeshLab]:
    try:
        from kodo.lab import MeshLab  # noqa: PLC0415, the lab is an extra
    except ImportError as error:
        raise KodoError(f"the demo needs the lab: {INSTALL_LAB}") from error
    return MeshLab


def _tell(mesh: MeshLab, picture: Path, keep: bool) -> None:
    """The story of the demo: what starts, what is listed, how it is connected, and where to go from here."""
    harbour = _started(mesh)
    _say("", "Whoever asks one of them finds the flows of both organizations:", "")
    _show(_laid_out(map(_fields, harbour.get("/flows")["items"]), BRIEF))
    _say("", "The mesh, as the harbour's registry sees it:", "")
    _show(*_mesh(harbour.map(), harbour.status(), _Troubles()))
    with _busy("drawing the mesh"):
        mesh.topology().save(picture)
    _say("", f"The picture of the mesh is {picture}.", "")
    if keep:
        _keep(harbour.url)
    else:
        _recommend(AFTERWARDS)


def _started(mesh: MeshLab) -> Member:
    """Start the members of the demo and wait until they agree; the first registry."""
    began = time.monotonic()
    with _busy("starting two registries and two nodes"):
        harbour = mesh.add_registry("Harbour registry", organization="Harbour")
        rescue = mesh.add_registry("Rescue registry", organization="City Rescue", connect=harbour)
        mesh.add_node("Harbour node", organization="Harbour", connect=harbour, flows=_offers(HARBOUR))
        mesh.add_node("Rescue node", organization="City Rescue", connect=rescue, flows=_offers(RESCUE))
    _say(f"Started in {time.monotonic() - began:.1f} s: two registries, connected, and a node at each.")
    with _busy("waiting until the registries agree"):
        settled = mesh.settle()
    _say(f"Settled in {1000 * settled.seconds:.0f} ms: both registries list the same {_plural(settled.flows, 'flow')}.")
    return harbour


def _keep(url: str) -> None:
    _recommend({f"kodo {words.format(url=url)}": what for words, what in MEANWHILE.items()})
    with suppress(KeyboardInterrupt):
        _say("", "The mesh runs until Ctrl-C.")
        threading.Event().wait()


def _recommend(commands: Mapping[str, str]) -> None:
    """Commands to try next, and what each is good for."""
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    for command, what in commands.items():
        table.add_row(Text(f"  {command}", style=LINK), Text(what))
    _say("Try next:")
    _show(table)


def _offers(flows: Iterable[tuple[str, str, str, list[str]]]) -> list[dict[str, Any]]:
    return [dict(zip(("name", "description", "author", "tags"), flow, strict=True)) for flow in flows]


@app.command(
    name="lab",
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
)
def lab(ctx: typer.Context) -> None:
    """Open JupyterLab on the notebooks.

    They are looked for in the folder notebooks, here; without one JupyterLab opens the current folder. What stands
    after -- is passed on to jupyter lab.

    \b
    kodo lab -- --no-browser --port 8889
    """
    if find_spec("jupyterlab") is None:
        raise KodoError(f"JupyterLab is not installed: {INSTALL_LAB}")
    notebooks = Path("notebooks")
    root = (notebooks if notebooks.is_dir() else Path()).resolve()
    # In place of this process: its signals, its terminal and its exit code are those of jupyter.
    os.execv(sys.executable, [sys.executable, "-m", "jupyterlab", f"--ServerApp.root_dir={root}", *ctx.args])


# -- simulating a mesh -------------------------------------------------------------------------------------------------


@app.command()
def sim(
    path: Annotated[Path, typer.Argument(metavar="FILE", help="A scenario, or a mesh in YAML.")],
    faults: Annotated[
        Path | None, typer.Option("--faults", metavar="FILE", help="What goes wrong in the mesh, in YAML.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", metavar="NUMBER", help="The seed of every random number.")] = 0,
    rewrite: Annotated[bool, typer.Option("--rewrite", help="Write what a scenario prints into its file.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the prediction for a mesh as JSON.")] = False,
) -> None:
    """Simulate a mesh in virtual time, without a network.

    A mesh in YAML, such as a lab's to_file writes, is played under its faults, and what came of it is a prediction:
    messages, bytes, time, and which listings are up to date. A scenario is a text of commands; it is printed with what
    each of them printed, and if that is not what stands in the file the exit code is 1.

    \b
    kodo sim mesh.yaml --faults faults.yaml --seed 7
    kodo sim scenario.txt

    The faults are a list. Each is there `at` a time, `for` so long, such as {at: 2s, for: 500ms, loss: 0.3}:

    \b
    loss, answer_loss      the chance, 0 to 1, that a request, or an answer, is lost
    doubles, reorder       the chance that it comes twice, or after a later one
    latency: [1ms, 300ms]  how long messages are under way
    cut: [[a], [b, c]]     nothing gets from group to group
    one_way: [a, b]        nothing gets from a to b
    slow: {a: 3s}          how long a registry takes to answer
    crash: a               a registry is down; with lose: true its disk is lost
    pause: a               a registry stands still
    clock: {a: 1h}         how far its clock is ahead, or behind with -1h
    """
    if path.suffix in {".yaml", ".yml"}:
        if rewrite:
            raise OptionError("--rewrite: expected a scenario; a mesh in YAML has nothing to be rewritten")
        _foretell(path, faults, seed, as_json)
    elif faults is not None or as_json:
        raise OptionError(f"--{'faults' if faults else 'json'}: expected a mesh in a file that ends in .yaml")
    else:
        _perform(path, seed, rewrite)


def _perform(path: Path, seed: int, rewrite: bool) -> None:
    """Play a scenario."""
    from kodo.plan import read_text, write_text  # noqa: PLC0415
    from kodo.sim.scenario import run_scenario  # noqa: PLC0415, the simulator is for this command alone
    from kodo.sim.world import World  # noqa: PLC0415

    played = run_scenario(read_text(path), str(path), World(seed))
    if rewrite:
        write_text(path, played.text)
        return
    _say(*played.text.splitlines())
    if played.differs is not None:
        raise KodoError(
            f"{path}:{played.differs}: expected what stands in the file; see it, or write it with --rewrite"
        )


def _foretell(path: Path, faults: Path | None, seed: int, as_json: bool) -> None:
    """Predict what becomes of a mesh."""
    from kodo.sim.plan import predict, read_faults, read_mesh  # noqa: PLC0415, the simulator is for this command alone

    mesh = read_mesh(path)
    prediction = predict(mesh, read_faults(faults, mesh) if faults else (), seed)
    if as_json:
        _show_json(asdict(prediction))
    else:
        _show(*_prediction(prediction))


def _prediction(told: Prediction) -> Iterator[RenderableType]:
    """A prediction as tables: what each phase costs, what the faults did, what every registry believes."""
    table = _table("phase", "time", "handshakes", "registered", "pushes", "signs of life", "bytes")
    for column in table.columns[1:]:
        column.justify = "right"
    for name, phase in (("forming", told.forming), ("running", told.running), ("settling", told.settling)):
        table.add_row(name, *_costs(phase))
    yield table
    yield Text()
    if told.effects:
        table = _table("fault", "times", "what it did")
        table.columns[1].justify = "right"
        for name, number in told.effects.items():
            table.add_row(_text(name, POOR), f"{number:,}", _text(EFFECTS.get(name), QUIET))
        yield table
        yield Text()
    table = _table("registry", "nodes", "flows", "its listing")
    for column in table.columns[1:3]:
        column.justify = "right"
    for belief in told.beliefs:
        table.add_row(_text(belief.registry, STRONG), f"{belief.nodes:,}", f"{belief.flows:,}", _belief(belief))
    yield table
    yield Text()
    yield _verdict(told)


def _costs(phase: Phase) -> tuple[str, ...]:
    kinds = ("/connect", "/register", "/update/node", None)
    numbers = (*map(phase.count, kinds), phase.bytes)
    return (f"{phase.seconds:.2f} s", *(f"{number:,}" for number in numbers))


def _belief(belief: Belief) -> Text:
    """In what a registry differs from the newest that is listed anywhere."""
    if belief.state == "provider":
        return Text("its own nodes alone: it is a provider", style=QUIET)
    if belief.state == "down":
        return Text("none: it is down", style=BAD)
    wrong = [
        f"{kind} {', '.join(names)}"
        for kind, names in (("misses", belief.missing), ("has outdated", belief.stale))
        if names
    ]
    return _text("; ".join(wrong), BAD) if wrong else Text("up to date", style=GOOD)


def _verdict(told: Prediction) -> Text:
    if told.why is not None:
        return _text(told.why, BAD)
    settled = f"settled {told.converged:.2f} s after the last event"
    return Text(f"{settled}; all registries that run agree", style=GOOD)


# -- how things are shown ----------------------------------------------------------------------------------------------


def _plain(text: object) -> str:
    """A text of strangers with everything invisible written as its escape: what is left, a terminal only shows."""
    return "".join(map(_visible, str(text)))


def _visible(character: str) -> str:
    if character.isprintable() or character in JOINERS:
        return character
    if unicodedata.category(character) == "Zs":
        return " "
    return character.encode("unicode_escape").decode()


def _text(value: object, style: str = "") -> Text:
    return Text("" if value is None else _plain(value), style=style, overflow="fold")


def _given(value: str, missing: str) -> Text:
    return Text() if value == missing else _text(value)


def _moment(time: str | None) -> str:
    return "-" if time is None else time[:19].replace("T", " ")


def _plural(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _table(*columns: str, leading: int = 0) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, header_style=QUIET, leading=leading)
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _show_json(content: object) -> None:
    """JSON as a service said it; what is invisible stands there as an escape, which means the same."""
    written = json.dumps(content, indent=2, ensure_ascii=False)
    typer.echo("".join(c if c.isprintable() or c == "\n" else json.dumps(c)[1:-1] for c in written))


def _console() -> Console:
    return Console(markup=False, emoji=False, highlight=False)


def _say(*lines: str) -> None:
    _show(*map(Text, lines))


def _busy(doing: str) -> AbstractContextManager[object]:
    """Show that something is going on, where somebody watches."""
    console = _console()
    return console.status(f"{doing} ...") if console.is_terminal else nullcontext()


def _show(*parts: RenderableType) -> None:
    """Print to a terminal as wide as it is; to anything else as wide as needed, and without spaces at line ends."""
    console = _console()
    for part in parts:
        if console.is_terminal:
            console.print(part)
        else:
            typer.echo(_unbounded(part))


def _unbounded(part: RenderableType) -> str:
    console = _console()
    wide = console.options.update(width=WIDEST)
    console.width = Measurement.get(console, wide, part).maximum
    with console.capture() as capture:
        console.print(part)
    return "\n".join(line.rstrip() for line in capture.get().splitlines())
