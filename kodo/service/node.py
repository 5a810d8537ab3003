"""`run_service`: the one place that wires a service together, runs it, and ends it.

The order matters. The port is bound first, so that a port in use is an error that touches nothing; then the loader is
asked for flows and the cache is opened, under its lock; then the new epoch is made durable; and only then is the first
request answered. A service ends within a few seconds, whatever is in flight: what was acknowledged is on disk.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any
from urllib.parse import urlsplit

import uvicorn

from kodo.cache import Cache, Owner
from kodo.core.registry import Profile, Registry, Timing
from kodo.errors import InUseError, KodoError, OptionError, reason_of, unwritten
from kodo.loader import Source, is_file, load_flows, read_file
from kodo.models import Node
from kodo.options import Options, load_options, misspelt, with_port
from kodo.runtime import Identity, Runtime
from kodo.service.app import create_app
from kodo.service.routes import Limits
from kodo.service.stream import Streams
from kodo.trace import Trace
from kodo.transport import Links, Transport

log = logging.getLogger("kodo")

BACKLOG = 2048
GRACE = 2
"""Seconds that requests in flight get to end in."""
LAST_WORD = 3.5
"""Seconds after which a service that was told to end is ended from within, whatever still runs."""


@dataclass(frozen=True, slots=True)
class Running:
    """A service that answers: its own url, with the real port in it, and how to end it from any thread."""

    url: str
    end: Callable[[], object]


Ready = Callable[[Running], None]


def run_service(**kwargs: Any) -> None:
    """Run a service until SIGINT or SIGTERM; the options are those of `kodo.options.Options`.

    Raises `OptionError` for options that cannot be, `InUseError` for a port or a cache that is in use, `LoaderError`
    and `CacheError`; nothing was started then.
    """
    begin(load_options(**kwargs))


def begin(options: Options, ready: Ready | None = None) -> None:
    """Run a service with checked options, in this process or, with `reload`, in others; see `run`."""
    if options.reload:
        _run_reloading(options)
    else:
        run(options, ready)


def run(options: Options, ready: Ready | None = None, links: Links | None = None) -> None:
    """Run a service with checked options until a signal, or until what `ready` is told ends it.

    `links` are policies on its outgoing messages, for a lab.
    """
    listener = bind(options)
    try:
        options = with_port(options, listener.getsockname()[1])
        with _logging(options):
            _run_on(listener, options, _Given(ready, links))
    finally:
        listener.close()


def bind(options: Options) -> socket.socket:
    """A socket that listens at the own url of the service. Raises `InUseError` when the port is taken."""
    family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
    try:
        address = socket.getaddrinfo(options.host, options.port, family, socket.SOCK_STREAM)[0][4]
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(BACKLOG)
    except OSError as error:
        stop = ", or stop the service that listens there" if error.errno == errno.EADDRINUSE else ""
        said = f"expected to listen at {options.url}, but {reason_of(error)}; choose another url{stop}"
        raise InUseError(said) from error
    return listener


def _run_on(listener: socket.socket, options: Options, given: _Given) -> None:
    log.info("%s startup", options.kind)
    own = _own_node(options)
    for doubt in (*doubts(options, own), *misspelt(os.environ)):
        log.warning("%s", doubt)
    config = uvicorn.Config(
        app=_nothing,
        log_config=None,
        access_log=False,
        lifespan="off",
        timeout_graceful_shutdown=GRACE,
        timeout_keep_alive=65,
        ws="none",
        server_header=False,
    )
    with asyncio.Runner(loop_factory=config.get_loop_factory()) as runner:
        runner.run(_serve(listener, config, own, options, given))


def _own_node(options: Options) -> Node | None:
    """This service as a node; its loader is asked before there is an event loop, for it may run one of its own."""
    if not options.node:
        return None
    return Node(url=options.url, organization=options.organization, flows=load_flows(options.loader))


def doubts(options: Options, own: Node | None) -> Iterator[str]:
    """What can be, but is hardly meant."""
    if options.host in {"0.0.0.0", "::"}:
        yield f"others are told {options.url}, where they cannot reach this; name a host in `url` that they know"
    if options.url.lower().startswith("https:"):
        yield f"nobody reaches this by {options.url}, since it speaks plain HTTP; name a `url` with http"
    if path := urlsplit(options.url).path.rstrip("/"):
        yield (
            f"others are told {options.url}, where this answers only behind a proxy that takes {path} away; "
            "without one, name a `url` without a path"
        )
    if len(options.others) < len(options.connect):
        yield f"it is told to connect with itself, {options.url}, which is ignored; see to its `connect`"
    for path, names in _repeated(own).items():
        said = " and ".join(map(repr, names))
        yield f"of its flows {said}, all at {path}, the last alone is listed; give each a `url` of its own"
    if not options.node and _offered(options.loader):
        yield "it offers none of the flows of its `loader`, since it is no node; leave out `--no-node`, or the loader"
    if options.registry:
        return
    if not options.others:
        yield "its flows are listed nowhere, since it connects with no registry; name one in `connect`"
    if own is not None and not own.flows:
        yield "it offers no flows; see to its `loader`"


def _repeated(own: Node | None) -> dict[str, list[str]]:
    """The paths that several flows of a node have, with the names of these."""
    named: dict[str, list[str]] = {}
    for flow in own.flows if own is not None and isinstance(own.flows, list) else ():
        named.setdefault(flow.url, []).append(flow.name)
    return {path: names for path, names in named.items() if len(names) > 1}


def _offered(loader: Source) -> bool:
    """Whether a loader is to give flows: a file may be there for its options alone."""
    return bool(read_file(loader)[1]) if is_file(loader) else loader is not None


@dataclass(frozen=True, slots=True)
class _Given:
    """What whoever starts a service in this process brings along; see `run`."""

    ready: Ready | None
    links: Links | None


async def _serve(
    listener: socket.socket, config: uvicorn.Config, own: Node | None, options: Options, given: _Given
) -> None:
    cache = Cache(
        Owner(options.url, options.organization, options.feed),
        options.cache_path if options.registry else None,
        reset=options.reset,
    )
    trace = Trace() if options.trace else None
    runtime = _assembled(options, cache, Transport(given.links, trace))
    last_word = threading.Timer(LAST_WORD, os._exit, [1])
    last_word.daemon = True
    try:
        await runtime.start(own)
        limits = Limits(body=options.body_limit, peer_body=options.peer_body_limit)
        streams = Streams()
        config.app = create_app(runtime, cache, limits, streams, trace)
        server = _Server(config, options, given.ready, last_word, streams)
        runtime.failure.add_done_callback(lambda _: server.end())
        await server.serve(sockets=[listener])
    finally:
        await runtime.stop()
        last_word.cancel()
    if runtime.failure.done():
        raise runtime.failure.result()


def _assembled(options: Options, cache: Cache, transport: Transport) -> Runtime:
    timing = Timing(options.lease, options.retention, options.beacon, options.grace)
    profile = Profile(options.url, options.registry, options.provider, options.others, timing)
    catalogue = cache.catalogue
    parts, contents = catalogue.parts(), catalogue.contents()
    for part in parts:
        if part.content and part.content != contents.get(part.origin, 0):
            log.error(
                "the records of %s in the cache are not as they were written; they are compared anew", part.origin
            )
    registry = Registry(profile, parts, catalogue.peers(), catalogue.own_rows(), contents)
    identity = Identity(options.url, options.organization, options.node, options.registry, options.provider)
    return Runtime(identity, registry, cache, transport)


async def _nothing(scope: Any, receive: Any, send: Any) -> None:
    """Stands in the configuration until the application is there."""


class _Server(uvicorn.Server):
    """uvicorn, but the end of the service is ours: a signal ends it once, and is not raised again."""

    def __init__(
        self,
        config: uvicorn.Config,
        options: Options,
        ready: Ready | None,
        last_word: threading.Timer,
        streams: Streams,
    ) -> None:
        super().__init__(config)
        self._streams = streams
        self._last_word = last_word
        self._options = options
        self._ready = ready
        self._loop = asyncio.get_running_loop()
        self._over = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        log.info("successfully started %s", self._options.kind)
        if self._ready is not None:
            self._ready(Running(self._options.url, partial(self._loop.call_soon_threadsafe, self.end)))

    async def main_loop(self) -> None:
        """That of uvicorn looks ten times a second whether it is to end; this one is woken."""
        ticking = asyncio.create_task(super().main_loop())
        await self._over.wait()
        ticking.cancel()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        handlers = {number: signal.signal(number, self._told) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        log.info("shutdown now")
        self._streams.close()
        await super().shutdown(sockets)

    def _told(self, number: int, frame: FrameType | None) -> None:
        self.end()

    def end(self) -> None:
        """Begin the end. Should it not come by itself, it is brought about: what was acknowledged is on disk."""
        if not self.should_exit:
            self.should_exit = True
            self._loop.call_soon_threadsafe(self._over.set)  # a signal may have come while it waits
            if threading.current_thread() is threading.main_thread():
                self._last_word.start()


@dataclass(frozen=True, slots=True)
class _Reloaded:
    """The target of the reloading process: importable, so that a fresh interpreter can run it."""

    options: Options

    def __call__(self) -> None:
        try:
            with told_once(self.options):
                run(self.options)
        except KodoError as error:
            told = (*str(error).splitlines(), "it starts anew when a file changes")
            sys.exit("\n".join(f"kodo: {line}" for line in told))


def _run_reloading(options: Options) -> None:
    """Run the service in a process of its own, anew whenever a file below the working directory changes."""
    from watchfiles import PythonFilter, run_process  # noqa: PLC0415, for developers alone

    listener = bind(options)
    options = with_port(options, listener.getsockname()[1])
    listener.close()
    logging.getLogger("watchfiles").setLevel(logging.ERROR)  # that the service ended, it says itself
    watched = PythonFilter(extra_extensions=[".yaml", ".yml"])
    run_process(Path.cwd(), target=_Reloaded(options), target_type="function", watch_filter=watched)


@contextmanager
def told_once(options: Options) -> Iterator[None]:
    """Keep the last words of a service out of the log lines on stderr, where who runs it says them."""
    if options.log is not None:
        yield
        return
    log.addFilter(_is_no_last_word)
    try:
        yield
    finally:
        log.removeFilter(_is_no_last_word)


def _is_no_last_word(record: logging.LogRecord) -> bool:
    """Whether a line of the log is something else than the error with which a service ends."""
    told = record.args[0] if isinstance(record.args, tuple) and record.args else None
    return record.levelno < logging.CRITICAL or not isinstance(told, KodoError)


def _handler(path: Path | None) -> logging.Handler:
    if path is None:
        return logging.StreamHandler(sys.stderr)
    try:
        return logging.FileHandler(path)
    except OSError as error:
        raise OptionError(f"log: {unwritten(path, error)}") from error


@contextmanager
def _logging(options: Options) -> Iterator[None]:
    """Log lines of kodo and uvicorn in one form, to stderr or to the file `log`; `OptionError` if that cannot be."""
    handler = _handler(options.log)
    form = f"%(levelname)s - %(asctime)s - %(name)s - %(module)s - {options.url.replace('%', '%%')}: %(message)s"
    handler.setFormatter(logging.Formatter(form))
    loggers = [logging.getLogger("kodo"), logging.getLogger("uvicorn")]
    for logger in loggers:
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
        logger.propagate = False
    try:
        yield
    except KodoError as error:
        log.critical("%s", error)
        raise
    finally:
        for logger in loggers:
            logger.removeHandler(handler)
        handler.close()
