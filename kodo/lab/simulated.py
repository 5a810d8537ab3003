"""The engine of simulated members: `kodo.sim.World` in virtual time, behind the same handles as real processes.

Time passes in `wait` and `run` alone, so that what a notebook does between two calls happens at one moment. The same
calls with the same seed give the same run, to the byte. Nothing of it is a process, a port, a file or a thread.

- A member is at `http://NAME:1`; where a name is no host, or another's but for its case, at a url with a number.
- To end a member stops it on its disk; to kill it takes what was not durable with it.
- Faults hold for who asks, with the answers, as in the real transport: `World.mend`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from datetime import timedelta
from typing import Any, Self, cast

from pydantic import ValidationError

from kodo.client import Counts, Listing, Status, View
from kodo.errors import InvalidMessageError, LabError, LoaderError, SimulationError, UnavailableError
from kodo.lab.engine import Life, Setup, Table, Word
from kodo.lab.history import KEPT, Clock, History, Message
from kodo.lab.keeping import Kept
from kodo.lab.naming import Names
from kodo.models import Key, Registration, canonical, format_time, later
from kodo.query import matches, ordered, parse, parse_order, shown
from kodo.sim import EPOCH, Way, World, views
from kodo.sim import Message as Sent
from kodo.sim.members import MEANINGLESS, MEANT, own_node, profile_of, url_of

STEP = 1.0
"""Virtual seconds that pass at once while a mesh that is at rest is waited for."""
GRAIN = 1e-6
CODES: dict[Word, int] = {"TERM": 0, "KILL": -9}
INSTEAD = {
    "live()": "look at flows() after run() or settle()",
    "dashboard()": "look at topology(), timeline() and flows() after run() or settle()",
    "record()": "keep the calls and the seed: they are the record",
    "logs()": "timeline() and explain() say what happened",
    "folder": "it writes no files",
}
OUTCOMES = {"delivered": "200", "in flight": None, "lost": "lost: request", "answer lost": "lost: answer"}
BEGAN = format_time(EPOCH)


class SimulatedHistory(History):
    """What happened in a world: events as they are noted, messages from the world's own log."""

    def __init__(self, world: World) -> None:
        """Nothing has happened yet."""
        super().__init__(clock=Clock(lambda: world.clock, lambda: _utc(world.clock)))
        self._world = world

    def messages(self, names: Names) -> list[Message]:
        """All messages that are kept, in the order in which they left."""
        self.missed = sum(self._world.sent.values()) - len(self._world.messages)
        known: dict[Key, str] = {}
        return [
            _message(number, sent, _name(sent.source, names, known), _name(sent.target, names, known))
            for number, sent in enumerate(self._world.messages, self.missed)
        ]


class Simulated:
    """The members of one lab in a world: an `Engine`."""

    kind = "simulated"
    over = ""
    kept: Kept | None = None
    options = frozenset(MEANT | MEANINGLESS)

    def __init__(self, seed: int) -> None:
        """An empty world."""
        if isinstance(seed, bool) or not isinstance(seed, int):
            raise LabError(f"seed: expected a whole number, not {seed!r}")
        self.world = World(seed, log=KEPT)
        self.history: History = SimulatedHistory(self.world)
        self._lives: dict[str, Life] = {}
        self._urls: dict[str, str] = {}
        self._names: dict[str, str] = {}
        self._taken: set[Key] = set()
        self._ways: dict[str, dict[tuple[Key, Key], Way]] = {}

    def need_processes(self, verb: str) -> None:
        """Raise `LabError`: there are none."""
        hint = INSTEAD.get(verb, "use a verb of simulated labs")
        raise LabError(f"{verb}: expected a lab of real services; in a simulated one, {hint}")

    # -- lives ---------------------------------------------------------------------------------------------

    def defaults(self, name: str) -> dict[str, Any]:
        """A url that is no other's."""
        return {"url": url_of(name, self._taken)}

    def check(self, name: str, setup: Setup) -> None:
        """Whatever a setup holds stays in this process."""

    def launch(self, name: str, setup: Setup, links: Callable[[], Table]) -> Life:
        """Start a member, or start it again, now."""
        life = self._lives[name] = Life()
        url = self._urls[name] = setup.options["url"]
        self._names[url] = name
        try:
            profile, own = profile_of(setup.options), own_node(setup.options, setup.loader)
        except (SimulationError, LoaderError, InvalidMessageError, ValueError) as error:
            life.refused = str(error)
            return life
        self.history.note("launched", name)
        self._link(name, links())
        if canonical(url) in self.world.members:
            self.world.change(url, profile, own)
            self.world.restart(url, keep_disk=not setup.options.get("reset"))
        else:
            roles = {"provider": profile.provider, "registry": profile.registry}
            self.world.add(url, profile.connect, flows=own, timing=profile.timing, **roles)
        life.url = url
        self.history.note("started", name)
        return life

    def wait_for_start(self, life: Life, timeout: float) -> None:
        """It has started, or never will."""

    def signal(self, name: str, word: Word) -> None:
        """End a running member, or let it stand still or go on; to others nothing happens."""
        if not self.running(name):
            return
        life, url = self._lives[name], self._urls[name]
        match word:
            case "STOP" if not life.paused:
                self.world.pause(url)
                self.history.note("paused", name)
            case "CONT" if life.paused:
                self.world.resume(url)
                self.history.note("resumed", name)
            case "TERM" | "KILL":
                if word == "TERM":
                    self.world.site(url).disk.commit()
                self.world.crash(url)
                life.code = CODES[word]
                self.history.note("exited", name, life.code)
        life.paused = word == "STOP"

    def wait_for_pause(self, name: str, paused: bool, timeout: float) -> bool:
        """Whether it is so."""
        return self.life(name).paused == paused and self.running(name)

    def wait_for_end(self, name: str, timeout: float) -> bool:
        """Whether it has ended."""
        return not self.running(name)

    def running(self, name: str) -> bool:
        """Whether a member was started and has not ended."""
        life = self._lives.get(name)
        return life is not None and not life.over

    def life(self, name: str) -> Life:
        """What is known of a member; of an unknown one nothing."""
        return self._lives.get(name) or Life()

    def leave(self) -> None:
        """All members have ended."""
        self.end()

    def end(self) -> None:
        """All members have ended; what happened can still be looked at."""
        for life in self._lives.values():
            life.code = 0 if life.code is None else life.code
            life.paused = False

    # -- faults --------------------------------------------------------------------------------------------

    def link(self, tables: Callable[[], Mapping[str, Table]], timeout: float) -> list[str]:
        """Let these policies hold for the messages of these members, at once."""
        for name, table in tables().items():
            self._link(name, table, mend=False)
        self._mend()
        return []

    def _link(self, name: str, table: Table, *, mend: bool = True) -> None:
        source = canonical(self._urls[name])
        before = self._ways.get(name, {})
        self._ways[name] = {(source, canonical(url)): Way(**link) for url, link in table.items()}
        if mend and before != self._ways[name]:
            self._mend()

    def _mend(self) -> None:
        self.world.mend({link: way for ways in self._ways.values() for link, way in ways.items()})

    # -- asking --------------------------------------------------------------------------------------------

    def client(self, url: str, timeout: float) -> SimulatedClient:
        """Asks the member at this url."""
        return SimulatedClient(self.world, url, self)

    def answers(self, url: str) -> bool:
        """Whether a member is there and does not stand still."""
        name = self._names.get(url, "")
        return self.running(name) and not self.life(name).paused

    def pull(self, members: Iterable[tuple[str, str]], patience: float | None = None) -> None:
        """All is noted as it happens."""

    def log(self, name: str, tail: int | None = None) -> str:
        """Raise `LabError`: there is none."""
        raise LabError(f"{name}: expected a real service; a simulated one writes no log, {INSTEAD['logs()']}")

    def words(self, name: str, tail: int) -> str:
        """Raise `LabError`: there are none."""
        return self.log(name, tail)

    def discard(self, name: str) -> None:
        """It left nothing behind."""

    # -- time ----------------------------------------------------------------------------------------------

    @property
    def at_rest(self) -> bool:
        """Whether nothing is on its way or owed."""
        return self.world.quiet

    def wait(self, seconds: float) -> None:
        """Run until nothing is on its way or owed; when that is so already, a second, for a mesh may wake by itself.

        While somebody does not run, a second at most: what is owed to it is on no way, and nobody has to wait for that.
        """
        # A world counts whole microseconds: what is less would never pass.
        limit = max(seconds, GRAIN)
        quiet = self.world.quiet
        if quiet or any(life.over for life in self._lives.values()):
            limit = min(STEP, limit)
        if quiet:
            self.world.run(limit)
            return
        with suppress(SimulationError):
            self.world.settle(limit)

    def run(self, seconds: float) -> None:
        """Let so much virtual time pass."""
        self.world.run(seconds)


class SimulatedClient:
    """Asks one member of a world: what `kodo.client.Client` is to a real one, without the wire."""

    def __init__(self, world: World, url: str, engine: Simulated) -> None:
        """Nothing is asked yet."""
        self.url = url
        self._world = world
        self._engine = engine

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """There is nothing to close."""

    def close(self) -> None:
        """There is nothing to close."""

    def status(self) -> Status:
        """Who it is, what it is connected with, and whether all is said."""
        self._check()
        world = self._world
        began = _utc(0.0)
        return cast(Status, {**views.status(world, self.url), "started_at": began, "now": _utc(world.clock)})

    def flows(self, q: str | None = None, by: str | None = None, p: int = 0, pp: int = 10) -> Listing:
        """Page `p`, of `pp` flows, of the listing: those that `q` selects, in the order `by`."""
        rows, query, order = self._rows(), parse(q or ""), parse_order(by or "")
        found = [row for row in rows if matches(query, row)]
        items = [dict(row) for row in ordered(found, order)[p * pp : (p + 1) * pp]]
        counts = {"total": len(rows), "filtered": len(found), "p": p, "pp": pp}
        return cast(Listing, {**counts, "items": items, "by": order.shown, "q": shown(query)})

    def counts(self) -> Counts:
        """How many flows it lists."""
        rows = self._rows()
        counts: Counts = {"total": len(rows), "node": {}, "organization": {}, "tags": {}}
        for row in rows:
            for table, words in (
                (counts["node"], [row["node"]]),
                (counts["organization"], [row["organization"]] if row["organization"] is not None else []),
                (counts["tags"], row["tags"]),
            ):
                table |= {word: table.get(word, 0) + 1 for word in words}
        return counts

    def map(self) -> View:
        """What it knows of the mesh."""
        self._check()
        return cast(View, views.mesh_map(self._world, self.url))

    def get(self, path: str = "/", **params: Any) -> Any:
        """The answer to a GET of `/`, `/flows`, `/counts`, `/map`, `/explain` or `/convergence`."""
        given = {name: value for name, value in params.items() if value is not None}
        self._check()
        match path:
            case "/":
                return self.status()
            case "/flows":
                return self.flows(**given)
            case "/counts":
                return self.counts()
            case "/map":
                return self.map()
            case "/explain":
                return views.explain(self._world, self.url, **given)
            case "/convergence":
                return views.convergence(self._world, self.url)
        known = "/, /flows, /counts, /map, /explain or /convergence"
        raise LabError(f"expected a path that simulated members answer: {known}")

    def post(self, path: str, body: Any = None) -> Any:
        """The answer to a POST to `/register`, of a node that registers once."""
        self._check()
        if path != "/register":
            raise LabError("expected /register, which is all that a simulated member is told by hand")
        try:
            registration = Registration.model_validate(body)
        except ValidationError as error:
            faults = [
                {"loc": ["body", *fault["loc"]], "msg": fault["msg"], "type": fault["type"]} for fault in error.errors()
            ]
            raise InvalidMessageError(faults) from error
        return {**self.status(), "message": list(self._world.tell(self.url, registration))}

    def _rows(self) -> list[dict[str, Any]]:
        self._check()
        return self._world.site(self.url).disk.listing()

    def _check(self) -> None:
        if not self._engine.answers(self.url):
            raise UnavailableError(f"{self.url} did not answer; check that it runs and is not paused")


def _message(number: int, sent: Sent, sender: str, receiver: str) -> Message:
    outcome = OUTCOMES.get(sent.outcome, sent.outcome)
    if outcome is not None and sent.outcome.startswith("refused"):
        outcome = sent.outcome.replace("(", "").replace(")", "")
    elif outcome in ("no connection", "no answer in time"):
        outcome = f"lost: {outcome}"
    return Message(
        id=f"m{number}",
        sender=sender,
        receiver=receiver,
        route=sent.route,
        nodes=sent.nodes,
        bytes=sent.bytes,
        outcome=outcome,
        utc=_utc(sent.at),
        sent=sent.at,
        received=sent.arrived,
        answered=sent.answered,
        ended=sent.ended,
    )


def _name(key: Key, names: Names, known: dict[Key, str]) -> str:
    name = known.get(key)
    if name is None:
        name = known[key] = names[key]
    return name


def _utc(seconds: float) -> str:
    return later(BEGAN, timedelta(seconds=seconds))
