"""Every row of the table, in its order.

To add one: write how a side begins, as a context manager that makes all ready and yields a function, one call of which
is one round and returns its figure; then put a `Row` into `ROWS`.
"""

from __future__ import annotations

import base64
import json
import random
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import count, cycle, product
from statistics import median
from typing import Any, TypeVar
from urllib.parse import quote
from urllib.request import urlopen

from tests.benchmarks import data, floors
from tests.benchmarks.load import NUMBER, Connection, Load, Request, burst, load
from tests.benchmarks.row import Begin, Measure, Row, Side, absolute, at_least, at_most, compared, plus
from tests.benchmarks.services import Bench, Service, free_port

T = TypeVar("T")
MS, S, RATE, NODES, MIB = "ms", "s", "requests/s", "nodes/s", "MiB"
FEW = 1_000
"""Flows of a small registry, which most figures at many flows are not to exceed."""
CLIENTS = 16
SEARCHES = 60
"""Searches of which SQLite alone is timed."""
APART = 0.3
"""Seconds between registrations that have nothing to do with each other."""
COLUMNS = (
    *("registry", "node", "organization", "created", "modified", "heartbeat"),
    *("url", "name", "author", "description", "tags"),
)


def _shuffled(texts: Iterable[str]) -> list[str]:
    found = sorted(set(texts))
    random.Random(3).shuffle(found)
    return found


NEEDLES = _shuffled(word[at : at + size] for word in data.WORDS for size in (3, 4, 5) for at in range(len(word) - size))
PHRASES = _shuffled(f"{word} {join}" for word in data.WORDS for join in data.JOINS)
"""Some two thousand each: a search that was asked before, and is remembered, would measure nothing."""

# -- reading -----------------------------------------------------------------------------------------------------------

Paths = Callable[[int], list[str]]
"""What is asked of a registry that holds so many flows, in turns."""
MANY = 20_000
"""Requests that are worded differently: more than are asked in all rounds, so that no answer was given before."""


def _wordings(word: str) -> list[str]:
    """A direction of `by`, which may be cut off anywhere."""
    return [word[:length] for length in range(1, len(word) + 1)]


DEFAULT = [
    f"registry:{registry},name:{name},node:{node},url:{url}"
    for registry, name, node, url in product(_wordings("ascending"), repeat=4)
]
"""Many ways to ask for the default order: the registry is the same in all rows."""


def _reworded(paths: Sequence[str]) -> list[str]:
    """These in turns, worded differently each time: answers are kept, and one that is would measure nothing else."""
    return [f"{paths[at % len(paths)]}&by={DEFAULT[at // len(paths) % len(DEFAULT)]}" for at in range(MANY)]


def first_page(flows: int) -> list[str]:
    return ["/flows"]


def any_page(flows: int) -> list[str]:
    pages = list(range(flows // 10))
    random.Random(1).shuffle(pages)
    return _reworded([f"/flows?p={page}" for page in pages[:MANY]])


def middle_page(flows: int) -> list[str]:
    return _reworded([f"/flows?p={flows // 20 + page}" for page in range(30)])


def counting(flows: int) -> list[str]:
    return ["/counts"]


def any_page_in_html(flows: int) -> list[str]:
    return [f"{path}&format=html" for path in any_page(flows)]


def last_page(flows: int) -> list[str]:
    return _reworded([f"/flows?p={flows // 10 - 1 - page}" for page in range(30)])


def any_sort(flows: int) -> list[list[str]]:
    """For each order many pages of it, which may be worded differently."""
    chance = random.Random(2)
    orders = [(column, _wordings(way)) for column in COLUMNS for way in ("ascending", "descending")]
    return [
        [f"/flows?by={column}:{chance.choice(ways)}&p={chance.randrange(flows // 10)}" for _ in range(MANY // 20)]
        for column, ways in orders
    ]


def any_filter(flows: int) -> list[list[str]]:
    """For each operator and each column that it makes sense for, some selections, many times with other words."""
    owners, tags = [data.organization(rank) for rank in range(20)], data.TOPICS[:20]
    words, firsts = NEEDLES[-20:], sorted(data.FIRST)
    asked = [
        *(
            [f'{column} {sign} "{word}"' for word in words]
            for column in ("name", "author")
            for sign in ("==", "<", ">=")
        ),
        [f'organization != "{owner}"' for owner in owners],
        [f'modified > "2024-12-25T00:{minute:02d}:00"' for minute in range(20)],
        [f'description ~ "{word}"' for word in words],
        [f'organization == "{owner}" & @tag("{tag}")' for owner, tag in zip(owners, tags, strict=True)],
        [f'author ~ "{first}" | @tag("{tag}")' for first, tag in zip(firsts, tags, strict=True)],
        [f'not (@tag("{tag}") | name ~ "{word}")' for tag, word in zip(tags, words, strict=True)],
    ]
    return [_reworded(list(map(_asking, one)))[: MANY // 20] for one in asked]


def by_organization(flows: int) -> list[str]:
    return _reworded([_asking(f'organization == "{data.organization(rank)}"') for rank in range(0, 40, 2)])


def by_tag(flows: int) -> list[str]:
    return _reworded([_asking(f'@tag("{tag}")') for tag in data.TOPICS[::2]])


def by_name(flows: int) -> list[str]:
    return [_asking(f'name ~ "{needle}"') for needle in NEEDLES]


def by_text(flows: int) -> list[str]:
    return [_asking(phrase) for phrase in PHRASES]


def everything(flows: int) -> list[str]:
    """Some of all that can be asked."""
    sorts = [pages[0] for pages in any_sort(flows)]
    return [
        *any_page(flows)[:20],
        *sorts,
        *by_organization(flows)[:20],
        *by_tag(flows)[:20],
        *by_name(flows)[:10],
        *by_text(flows)[:10],
    ]


def _asking(q: str) -> str:
    return f"/flows?q={quote(q)}"


def _requests(paths: Sequence[str]) -> list[Request]:
    return [Request(path) for path in paths]


Figure = Callable[[Load], float]


def p50(loaded: Load) -> float:
    return loaded.p50


def rate(loaded: Load) -> float:
    return loaded.rate


def reading(paths: Paths, figure: Figure = p50, connections: int = 1, flows: int | None = None) -> Begin:
    """kodo is asked these, by so many clients."""

    @contextmanager
    def begin(bench: Bench) -> Iterator[Measure]:
        held = bench.scale.flows if flows is None else flows
        url, requests = bench.listing(held).url, _requests(paths(held))
        rounds = count()

        def measure() -> float:
            asked = _turned(requests, next(rounds), bench)
            return figure(load(url, asked, connections, bench.scale.seconds))

        yield measure

    return begin


def _turned(asked: list[T], number: int, bench: Bench) -> list[T]:
    """Each round asks on where another begins, so that answers are not those of the round before."""
    at = number * len(asked) // bench.scale.rounds
    return asked[at:] + asked[:at]


@contextmanager
def reading_rows(bench: Bench) -> Iterator[Measure]:
    """The bare route reads the rows of any page from a copy of the cache that kodo lists."""
    requests, rounds = _requests(any_page(bench.scale.flows)), count()
    copy = bench.copied(bench.scale.flows)
    with bench.floor("rows", str(copy)) as service:
        yield lambda: load(service.url, _turned(requests, next(rounds), bench), 1, bench.scale.seconds).p50


def bare_page(paths: Paths, figure: Figure = p50, connections: int = 1) -> Side:
    """The bare route is asked the same."""

    @contextmanager
    def begin(bench: Bench) -> Iterator[Measure]:
        requests = _requests(paths(bench.scale.flows))
        with bench.floor("page") as service:
            yield lambda: figure(load(service.url, requests, connections, bench.scale.seconds))

    return Side("FastAPI route, 4 checked parameters, ten dicts by orjson", begin)


def slowest(kinds: Callable[[int], list[list[str]]]) -> Begin:
    """The slowest kind of all: the median latency of some pages of it."""

    @contextmanager
    def begin(bench: Bench) -> Iterator[Measure]:
        rounds, asked = count(), kinds(bench.scale.flows)
        with Connection(bench.listing().url) as connection:

            def measure() -> float:
                number = next(rounds)
                share = [_turned(kind, number, bench)[: len(kind) // bench.scale.rounds] for kind in asked]
                return _slowest(connection, share, bench.scale.seconds)

            yield measure

    return begin


def bare_slowest(kinds: Callable[[int], list[list[str]]]) -> Side:
    """The bare route is asked the same."""

    @contextmanager
    def begin(bench: Bench) -> Iterator[Measure]:
        share = [kind[: len(kind) // bench.scale.rounds] for kind in kinds(bench.scale.flows)]
        with bench.floor("page") as service, Connection(service.url) as connection:
            yield partial(_slowest, connection, share, bench.scale.seconds)

    return Side("FastAPI route, 4 checked parameters, ten dicts by orjson", begin)


def _slowest(connection: Connection, kinds: list[list[str]], seconds: float) -> float:
    return max(connection.p50(_requests(paths), seconds / len(kinds)) for paths in kinds)


@contextmanager
def asking_whether_it_changed(bench: Bench) -> Iterator[Measure]:
    """The first page is asked for with the tag that it has."""
    url = bench.listing().url
    with urlopen(f"{url}/flows") as answer:
        request = Request("/flows", tag=answer.headers["ETag"])
    yield lambda: load(url, [request], 1, bench.scale.seconds).p50


@contextmanager
def bare_asking_whether_it_changed(bench: Bench) -> Iterator[Measure]:
    """The bare route compares the tag that the page has."""
    with bench.floor("page") as service:
        yield lambda: load(service.url, [Request("/flows", tag=floors.TAG)], 1, bench.scale.seconds).p50


@contextmanager
def after_a_write(bench: Bench) -> Iterator[Measure]:
    """A node registers, and then the first page is read: how long that reading takes."""
    numbers = count(1)
    with bench.registry(bench.scale.flows) as service, Connection(service.url) as connection:

        def measure() -> float:
            return median(_read_after(connection, next(numbers)) for _ in range(3 * bench.scale.samples))

        yield measure


def _read_after(connection: Connection, number: int) -> float:
    connection.ask(newcomer().raw(number))
    return connection.p50([Request("/flows")], 0)


@contextmanager
def bare_first_page(bench: Bench) -> Iterator[Measure]:
    with bench.floor("page") as service, Connection(service.url) as connection:
        yield lambda: median(connection.p50([Request("/flows")], 0) for _ in range(3 * bench.scale.samples))


def sqlite_alone(how: floors.Select, needles: Sequence[str]) -> Side:
    """SQLite is asked the same of a file with the same flows: how many, and the first ten of them by name."""

    @contextmanager
    def begin(bench: Bench) -> Iterator[Measure]:
        path = bench.path("alone.db")
        floors.fill_sqlite(path, bench.scale.flows)
        with floors.selecting(path, how) as select:
            yield lambda: 1000 * median(_timed(partial(select, needle)) for needle in needles[:SEARCHES])
        path.unlink()

    return Side("SQLite alone, on a file with the same flows", begin)


def _timed(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


# -- writing -----------------------------------------------------------------------------------------------------------


def newcomer(at: int = 0) -> Request:
    """The registration of a node with realistic flows, with another number in its url each time."""
    body = data.node(10_000_000 + at)
    return Request("/register", json.dumps({**body, "url": data.node_url(NUMBER, body["organization"])}))


def newcomers() -> list[Request]:
    return [newcomer(at) for at in range(500)]


@contextmanager
def registering(bench: Bench) -> Iterator[Measure]:
    """Nodes that are new register with an empty registry, anew in each round."""
    requests = newcomers()

    def measure() -> float:
        with bench.registry() as service:
            return load(service.url, requests, CLIENTS, 2 * bench.scale.seconds).rate

    yield measure


@contextmanager
def registering_at_many(bench: Bench) -> Iterator[Measure]:
    """Nodes that are new register with a registry that lists many flows."""
    requests, firsts = newcomers(), count(0, 1_000_000)
    with bench.registry(bench.scale.flows) as service:
        yield lambda: load(service.url, requests, CLIENTS, 2 * bench.scale.seconds, next(firsts)).rate


@contextmanager
def bare_registering(bench: Bench) -> Iterator[Measure]:
    requests = newcomers()

    def measure() -> float:
        with bench.floor("register", str(bench.path("registrations")), path="/") as service:
            return load(service.url, requests, CLIENTS, 2 * bench.scale.seconds).rate

    yield measure


def sqlite_registering(*, empty: bool) -> Begin:
    """SQLite alone is told what kodo tells it for new nodes, by a program that does nothing else."""

    @contextmanager
    def begin(bench: Bench) -> Iterator[Measure]:
        held = 0 if empty else bench.scale.flows

        def measure() -> float:
            given = {"first": held // data.FLOWS_PER_NODE + 1, "nodes": bench.scale.nodes}
            return float(bench.told_again("registering_alone", held, **given))

        yield measure

    return begin


@contextmanager
def sqlite_beside_a_route(bench: Bench) -> Iterator[Measure]:
    """SQLite alone is told what kodo tells it for new nodes, while the bare route takes all that it can."""
    requests = newcomers()
    nodes = 2 * bench.scale.nodes

    def measure() -> float:
        with bench.floor("register", str(bench.path("registrations")), path="/") as service, _loaded(service, requests):
            return float(bench.told_again("registering_alone", 0, first=1, nodes=nodes))

    yield measure


@contextmanager
def _loaded(service: Service, requests: Sequence[Request]) -> Iterator[None]:
    """Meanwhile, registrations come without end."""
    over = threading.Event()

    def go_on() -> None:
        for first in count(0, 1_000_000):
            load(service.url, requests, CLIENTS, 0.5, first)
            if over.is_set():
                return

    with ThreadPoolExecutor(1) as threads:
        loading = threads.submit(go_on)
        try:
            yield
        finally:
            over.set()
        loading.result()


@contextmanager
def sqlite_joining(bench: Bench) -> Iterator[Measure]:
    """SQLite alone is told what kodo tells it when it joins."""
    yield lambda: float(bench.told_again("joining_alone", 0, flows=bench.scale.flows))


@contextmanager
def flows_into_etcd(bench: Bench) -> Iterator[Measure]:
    """The flows of the same nodes are put into etcd, each under a key of its own, those of a node in one transaction.

    That is the least with which etcd can give a page of them.
    """
    bodies = [json.loads(request.body or "") for request in newcomers()]
    puts = [[{"request_put": _kept(flow, body["url"])} for flow in body["flows"].values()] for body in bodies]
    yield partial(_into_etcd, bench, [Request("/v3/kv/txn", json.dumps({"success": some})) for some in puts])


@contextmanager
def bodies_into_etcd(bench: Bench) -> Iterator[Measure]:
    """The same bodies are put into etcd, each whole under a key of its own: nothing in them can be asked for."""
    values = [_base64(request.body or "") for request in newcomers()]
    yield partial(
        _into_etcd, bench, [Request("/v3/kv/put", json.dumps({"key": NUMBER, "value": value})) for value in values]
    )


def _kept(flow: dict[str, Any], node: str) -> dict[str, str]:
    """A flow as etcd is told to keep it. The eight digits of the node's number are base64 already."""
    return {"key": NUMBER + _base64(flow["url"]), "value": _base64(json.dumps({**flow, "node": node}))}


def _base64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def _into_etcd(bench: Bench, requests: Sequence[Request]) -> float:
    with bench.etcd() as service:
        return load(service.url, requests, CLIENTS, 2 * bench.scale.seconds).rate


# -- the mesh ----------------------------------------------------------------------------------------------------------


def along_a_chain(*, empty: bool) -> Begin:
    """A node registers at one end of a chain of registries that hold flows or none, until the other end lists it."""

    @contextmanager
    def begin(bench: Bench) -> Iterator[Measure]:
        holding = 0 if empty else bench.scale.carried
        with ExitStack() as stack:
            chain = [stack.enter_context(bench.registry(holding))]
            while len(chain) < bench.scale.chain:
                chain.append(stack.enter_context(bench.registry(0, chain[-1].url)))
            for service in chain:
                service.until_lists(holding)
                service.until_idle()
            yield partial(_along, chain, count(1), bench.scale.samples)

    return begin


def bare_relay(bench: Bench, following: Sequence[str]) -> Service:
    """A relay that keeps nothing."""
    return bench.floor("relay", *following)


def keeping_relay(bench: Bench, following: Sequence[str]) -> Service:
    """A relay that checks what it passes on, has SQLite do what kodo tells it, and reads it there."""
    return bench.relay(2 * bench.scale.rounds * bench.scale.samples, following)


def along_relays(relay: Callable[[Bench, Sequence[str]], Service]) -> Begin:
    """The same along services that only relay."""

    @contextmanager
    def begin(bench: Bench) -> Iterator[Measure]:
        with ExitStack() as stack:
            chain: list[Service] = []
            while len(chain) < bench.scale.chain:
                chain.insert(0, stack.enter_context(relay(bench, [service.url for service in chain[:1]])))
            yield partial(_along, chain, count(1), bench.scale.samples)

    return begin


def _along(chain: Sequence[Service], numbers: Iterator[int], samples: int) -> float:
    return 1000 * median(_passed_on(chain, next(numbers)) for _ in range(samples))


def _passed_on(chain: Sequence[Service], number: int) -> float:
    # What comes soon after other news is gathered with it; it is one registration alone that is meant.
    time.sleep(APART)
    first, last = chain[0], chain[-1]
    body = data.node(20_000_000 + number)
    asked = f'node == "{body["url"]}"'
    listed = f"/flows?pp=1&q={quote(asked)}"
    began = time.perf_counter()
    first.ask(Request("/register", json.dumps(body)))
    last.until(lambda: last.get(listed)["filtered"], "the node to be listed", 0.001)
    took = time.perf_counter() - began
    for service in chain:
        service.until_idle()
    return took


@contextmanager
def around_a_ring(bench: Bench) -> Iterator[Measure]:
    """A node registers with one of three: the pushes that follow, of which none may leave after a second."""
    numbers = count(1)
    urls = [f"http://127.0.0.1:{free_port()}" for _ in range(3)]
    with ExitStack() as stack:
        ring = []
        for at, url in enumerate(urls):
            ring.append(stack.enter_context(bench.registry(0, urls[at - 1], "--trace", url=url)))
        for service in ring:
            service.until_connected()
            service.until_idle()
        yield lambda: _pushes(ring, next(numbers))


def _pushes(ring: Sequence[Service], number: int) -> float:
    with ExitStack() as stack:
        traces = [stack.enter_context(Trace(service.url)) for service in ring]
        ring[0].ask(Request("/register", json.dumps(data.node(30_000_000 + number))))
        time.sleep(1)
        early = sum(trace.pushes for trace in traces)
        time.sleep(1)
        assert sum(trace.pushes for trace in traces) == early, "pushes were sent a second after the registration"
    return early


class Trace:
    """Counts the messages with nodes that a service has sent since this began."""

    def __init__(self, url: str) -> None:
        self.pushes = 0
        self._began = time.monotonic()
        self._stream = Connection(url)
        self._stream.send(Request("/events?kind=messages"))
        self._reader = threading.Thread(target=self._read, daemon=True)

    def __enter__(self) -> Trace:
        self._reader.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()
        self._reader.join()

    def _read(self) -> None:
        seen: set[str] = set()
        for line in self._stream.lines():
            if not line.startswith(b"data:"):
                continue
            for message in _messages(json.loads(line[5:])):
                if message["direction"] == "sent" and message["nodes"] and message["start"] >= self._began:
                    seen.add(message["id"])
            self.pushes = len(seen)


def _messages(said: Any) -> list[dict[str, Any]]:
    """The messages in an event, which tells one, or several."""
    if isinstance(said, dict) and "direction" in said:
        return [said]
    parts = said.values() if isinstance(said, dict) else said if isinstance(said, list) else []
    return [message for part in parts for message in _messages(part)]


def always(figure: float) -> Begin:
    """A floor that is known without measuring."""

    @contextmanager
    def begin(bench: Bench) -> Iterator[Measure]:
        yield lambda: figure

    return begin


@contextmanager
def joining(bench: Bench) -> Iterator[Measure]:
    """An empty registry connects with one that lists many flows, until it lists as many."""
    flows = bench.scale.flows

    def measure() -> float:
        with bench.registry(flows) as source:
            joiner = bench.registry(0, source.url)
            try:
                # Asked without pauses, answering would be a third of what it does meanwhile.
                return joiner.start(lambda page: page["total"] == flows, pause=0.02)
            finally:
                joiner.stop()

    yield measure


@contextmanager
def copying(bench: Bench) -> Iterator[Measure]:
    """The cache file is copied, and a registry started on the copy."""
    flows = bench.scale.flows
    bench.filled(flows)
    bench.end_shared()

    def measure() -> float:
        began = time.perf_counter()
        service = bench.registry(flows)
        copied = time.perf_counter() - began
        try:
            return copied + service.start(lambda page: page["total"] == flows)
        finally:
            service.stop()

    yield measure


@contextmanager
def coming_back(bench: Bench) -> Iterator[Measure]:
    """A registry with a peer restarts, and all its nodes register at once: until all are answered and it is idle."""
    raws = [Request("/register", json.dumps(data.node(number))).raw() for number in range(bench.scale.nodes)]
    with bench.registry(bench.scale.nodes * data.FLOWS_PER_NODE) as service, bench.registry(0, service.url) as peer:
        peer.until_lists(bench.scale.nodes * data.FLOWS_PER_NODE)

        def measure() -> float:
            service.stop()
            service.start()
            service.until_idle()
            began = time.perf_counter()
            burst(service.url, raws)
            service.until_idle()
            return time.perf_counter() - began

        yield measure


@contextmanager
def bare_coming_back(bench: Bench) -> Iterator[Measure]:
    raws = [Request("/register", json.dumps(data.node(number))).raw() for number in range(bench.scale.nodes)]
    with bench.floor("register", str(bench.path("registrations")), path="/") as service:
        yield lambda: _timed(lambda: burst(service.url, raws))


# -- starting, memory, the loop ----------------------------------------------------------------------------------------


def _started(make: Callable[[], Service], flows: int | None = None) -> Measure:
    def measure() -> float:
        service = make()
        try:
            return service.start(bool if flows is None else lambda page: page["total"] == flows)
        finally:
            service.stop()

    return measure


@contextmanager
def starting_empty(bench: Bench) -> Iterator[Measure]:
    yield _started(bench.registry)


@contextmanager
def starting_bare(bench: Bench) -> Iterator[Measure]:
    yield _started(partial(bench.floor, "page"))


@contextmanager
def restarting(bench: Bench) -> Iterator[Measure]:
    """A registry that was stopped starts again on its cache."""
    with bench.registry(bench.scale.flows) as service:

        def measure() -> float:
            service.stop()
            return service.start(lambda page: page["total"] == bench.scale.flows)

        yield measure


@contextmanager
def remembering(bench: Bench) -> Iterator[Measure]:
    """The memory of a registry that was started on many flows and asked all kinds of things."""
    with bench.registry(bench.scale.flows) as service:
        yield partial(_asked_all, service, bench, "VmRSS")


def _asked_all(service: Service, bench: Bench, name: str) -> float:
    for path in everything(bench.scale.flows):
        service.get(path)
    return service.memory(name)


@contextmanager
def remembering_bare(bench: Bench) -> Iterator[Measure]:
    with bench.floor("page") as service:
        yield partial(_asked_all, service, bench, "VmRSS")


@contextmanager
def remembering_peak(bench: Bench) -> Iterator[Measure]:
    """The most memory of a registry that has taken many flows from another, and was asked all kinds of things."""
    with bench.registry(bench.scale.flows) as source, bench.registry(0, source.url) as joiner:
        joiner.until_lists(bench.scale.flows)
        joiner.until_idle()
        yield partial(_asked_all, joiner, bench, "VmHWM")


@contextmanager
def loading_while_asked(bench: Bench) -> Iterator[Measure]:
    """A registry takes many flows from another and is asked all kinds of things: how long its loop is held at most."""
    flows = bench.scale.flows
    with bench.registry(flows) as source:

        def measure() -> float:
            report = bench.path("held")
            with bench.watched(report, source.url) as service:
                service.until(lambda: _ask_on(service, bench) == flows, "all flows to be listed", 0)
                _ask_on(service, bench)
                return service.told(signal.SIGUSR1, report)

        yield measure


@contextmanager
def bare_while_asked(bench: Bench) -> Iterator[Measure]:
    def measure() -> float:
        report = bench.path("held")
        with bench.floor("held", str(report)) as service:
            _ask_on(service, bench)
            return service.told(signal.SIGUSR1, report)

    yield measure


def _ask_on(service: Service, bench: Bench) -> int:
    """Ask for a while; how many flows there were in the end."""
    paths = cycle(everything(bench.scale.flows))
    end = time.perf_counter() + bench.scale.seconds
    total = 0
    while time.perf_counter() < end:
        total = service.get(next(paths))["total"]
    return total


# -- the lab and the simulator -----------------------------------------------------------------------------------------


def laboratory(name: str, what: str, members: int | None = None) -> Begin:
    """The seconds that the members of a lab, or `bare` ones, took for their `start`, `settle` or `stop`."""

    @contextmanager
    def begin(bench: Bench) -> Iterator[Measure]:
        rounds = count()
        yield lambda: float(bench.told(next(rounds), name, members=members or bench.scale.members)[what])

    return begin


def bare_forks(what: str, members: int | None = None) -> Side:
    """As many bare services from a fork server."""
    return Side("bare FastAPI from a preloaded fork server", laboratory("bare", what, members))


def subject(name: str) -> Begin:
    """The seconds that a function of `subjects` returns, over so many registries."""

    @contextmanager
    def begin(bench: Bench) -> Iterator[Measure]:
        yield lambda: float(bench.subject(name, registries=bench.scale.simulated))

    return begin


# -- the table ---------------------------------------------------------------------------------------------------------


def kodo(begin: Begin) -> Side:
    return Side("kodo", begin)


BARE_START = Side("bare FastAPI", starting_bare)
EMPTY_START = Side("kodo's empty start", starting_empty)
BARE_REGISTER = Side("FastAPI route, parse, index in memory, shared fsyncs", bare_registering)
BARE_CHAIN = Side("bare relays, one kept httpx client each", along_relays(bare_relay))
ALONE = "SQLite alone, told what kodo tells it"
ALONE_REGISTER = Side(f"{ALONE}, empty", sqlite_registering(empty=True))

ROWS: tuple[Row, ...] = (
    Row(
        "first-page",
        "GET /flows, first page, {flows} flows, one client, p50",
        MS,
        bare_page(first_page),
        kodo(reading(first_page)),
        at_most(1.3),
        grows=True,
    ),
    Row(
        "first-page-16",
        "the same, 16 connections",
        RATE,
        bare_page(first_page, rate, CLIENTS),
        kodo(reading(first_page, rate, CLIENTS)),
        at_least(0.75),
        grows=True,
    ),
    Row(
        "first-page-growth",
        f"the same at {{flows}} against {FEW:,}",
        MS,
        Side(f"kodo at {FEW:,} flows", reading(first_page, flows=FEW)),
        kodo(reading(first_page)),
        at_most(1.2, f"{FEW:,} flows"),
    ),
    Row("any-page", "any page, p50", MS, bare_page(any_page), kodo(reading(any_page)), at_most(1.5), grows=True),
    Row(
        "last-page", "the last page, p50", MS, bare_page(last_page), kodo(reading(last_page)), at_most(1.5), grows=True
    ),
    Row(
        "middle-page",
        "the page in the middle, p50",
        MS,
        bare_page(middle_page),
        kodo(reading(middle_page)),
        at_most(1.5),
        grows=True,
    ),
    Row(
        "not-modified",
        "the first page, asked for with its tag (304), p50",
        MS,
        Side("FastAPI route, 4 checked parameters, the tag compared", bare_asking_whether_it_changed),
        kodo(asking_whether_it_changed),
        at_most(1.3),
        grows=True,
    ),
    Row("counts", "GET /counts, p50", MS, bare_page(first_page), kodo(reading(counting)), at_most(1.5), grows=True),
    Row(
        "html",
        "any page in HTML, p50",
        MS,
        Side("the same page of kodo in JSON", reading(any_page)),
        kodo(reading(any_page_in_html)),
        at_most(3, "JSON"),
        grows=True,
    ),
    Row(
        "any-sort",
        "any page in the slowest order, p50",
        MS,
        bare_slowest(any_sort),
        kodo(slowest(any_sort)),
        at_most(1.5),
        grows=True,
    ),
    Row(
        "any-filter",
        "first page of the slowest filter, each operator, p50",
        MS,
        bare_slowest(any_filter),
        kodo(slowest(any_filter)),
        at_most(1.5),
        grows=True,
    ),
    Row(
        "organization",
        "organization == ..., first page, p50",
        MS,
        bare_page(by_organization),
        kodo(reading(by_organization)),
        at_most(1.5),
        grows=True,
    ),
    Row(
        "tag",
        "@tag(...), first page, p50",
        MS,
        bare_page(by_tag),
        kodo(reading(by_tag)),
        absolute(6, MS),
        grows=True,
    ),
    Row(
        "after-write",
        "first page right after a registration, p50",
        MS,
        Side("FastAPI route, 4 checked parameters, ten dicts by orjson", bare_first_page),
        kodo(after_a_write),
        absolute(3, MS),
        grows=True,
    ),
    Row(
        "name-contains",
        "name ~ ..., first page, p50",
        MS,
        sqlite_alone(floors.CONTAINS, NEEDLES),
        kodo(reading(by_name)),
        plus(3, MS),
        grows=True,
    ),
    Row(
        "full-text",
        "full text, first page, p50",
        MS,
        sqlite_alone(floors.FULL_TEXT, [f'"{phrase.casefold()}"' for phrase in PHRASES]),
        kodo(reading(by_text)),
        plus(3, MS),
        grows=True,
    ),
    Row(
        "register",
        "POST /register, 16 clients, durable",
        NODES,
        BARE_REGISTER,
        kodo(registering),
        at_least(0.8),
    ),
    Row(
        "register-etcd",
        "the same against etcd",
        NODES,
        Side("etcd, its flows put in a transaction, each under a key", flows_into_etcd),
        kodo(registering),
        at_least(1, "etcd"),
    ),
    Row(
        "register-growth",
        "the same at {flows} flows against empty",
        NODES,
        Side("kodo, empty", registering),
        kodo(registering_at_many),
        at_least(0.9, "empty"),
        grows=True,
    ),
    Row(
        "chain",
        "chain of {chain} registries, one registration from end to end, p50",
        MS,
        BARE_CHAIN,
        kodo(along_a_chain(empty=True)),
        at_most(2),
    ),
    Row(
        "chain-10000",
        "the same with {carried} flows held",
        MS,
        Side("kodo's chain, empty", along_a_chain(empty=True)),
        kodo(along_a_chain(empty=False)),
        at_most(1.2, "empty"),
    ),
    Row(
        "ring",
        "ring of 3, pushes after one registration, quiet within a second",
        "pushes",
        Side("one push a connection", always(3)),
        kodo(around_a_ring),
        absolute(4, "pushes (2E - V + 1)"),
    ),
    Row("start", "start of an empty registry, to the first 200", S, BARE_START, kodo(starting_empty), at_most(1.3)),
    Row(
        "restart",
        "restart on {flows} flows, to the first 200 that lists them",
        S,
        EMPTY_START,
        kodo(restarting),
        at_most(1.3, "empty start"),
        grows=True,
    ),
    Row(
        "join",
        "a registry joins one with {flows} flows, until it lists them",
        S,
        Side("copying its cache file and starting on it", copying),
        kodo(joining),
        at_most(3),
        grows=True,
    ),
    Row(
        "come-back",
        "{nodes} nodes come back at once after a restart, until idle, one peer",
        S,
        Side("FastAPI route, parse, index in memory, shared fsyncs", bare_coming_back),
        kodo(coming_back),
        absolute(3, S),
    ),
    Row(
        "held",
        "the event loop is held at most, while {flows} flows are loaded and queried",
        MS,
        Side("FastAPI route, queried alone", bare_while_asked),
        kodo(loading_while_asked),
        absolute(20, MS),
    ),
    Row(
        "memory",
        "resident memory at {flows} flows",
        MIB,
        Side("bare FastAPI", remembering_bare),
        kodo(remembering),
        absolute(120, MIB),
        grows=True,
    ),
    Row(
        "memory-peak",
        "its peak, where {flows} flows came from a peer",
        MIB,
        Side("bare FastAPI", remembering_bare),
        kodo(remembering_peak),
        absolute(180, MIB),
    ),
    Row(
        "lab-8",
        "lab: 8 members started and answering",
        S,
        bare_forks("start", 8),
        kodo(laboratory("lab", "start", 8)),
        at_most(1.3),
    ),
    Row("lab-many", "lab: {members} members", S, bare_forks("start"), kodo(laboratory("lab", "start")), at_most(1.3)),
    Row(
        "lab-settle",
        "lab: {members} members settle",
        S,
        bare_forks("start"),
        kodo(laboratory("lab", "settle")),
        absolute(1, S),
    ),
    Row(
        "lab-stop", "lab: {members} members ended", S, bare_forks("stop"), kodo(laboratory("lab", "stop")), at_most(1.3)
    ),
    Row(
        "simulator",
        "simulator: {simulated} registries, random graph of degree 4: one registration, within the bound of messages",
        S,
        Side("the same flood over sets and JSON", subject("flood")),
        kodo(subject("simulate")),
        absolute(10, S),
    ),
    # How far it could go.
    Row(
        "any-page-rows",
        "any page, p50, against the route that reads its ten rows from the same file",
        MS,
        Side("FastAPI route, 4 checked parameters, ten rows by their ids from SQLite", reading_rows),
        kodo(reading(any_page)),
        compared(),
    ),
    Row(
        "register-etcd-whole",
        "POST /register, 16 clients, durable, against etcd where it keeps each node whole, under one key",
        NODES,
        Side("etcd, the same bodies put", bodies_into_etcd),
        kodo(registering),
        compared(more=True),
    ),
    Row(
        "register-sqlite",
        "POST /register, 16 clients, durable, against SQLite alone, told what kodo tells it",
        NODES,
        ALONE_REGISTER,
        kodo(registering),
        compared(more=True),
    ),
    Row(
        "register-beside",
        "SQLite alone, told what kodo tells it, beside the bare route, against the bare route alone",
        NODES,
        BARE_REGISTER,
        Side("SQLite alone, beside the bare route under load", sqlite_beside_a_route),
        compared(more=True),
    ),
    Row(
        "register-sqlite-growth",
        "SQLite alone at {flows} flows against SQLite alone, empty",
        NODES,
        ALONE_REGISTER,
        Side(ALONE, sqlite_registering(empty=False)),
        compared(more=True),
    ),
    Row(
        "chain-least",
        "relays that check, have SQLite do what kodo tells it, and read it there, against bare relays",
        MS,
        BARE_CHAIN,
        Side("relays that check, store and read", along_relays(keeping_relay)),
        compared(),
    ),
    Row(
        "join-sqlite",
        "a registry joins one with {flows} flows, against SQLite alone, told what kodo tells it",
        S,
        Side(ALONE, sqlite_joining),
        kodo(joining),
        compared(),
    ),
)
