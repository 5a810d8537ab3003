"""The loop around the core: stamp, step, save, then send and reply.

```
 requests, timers, results of sends --> one queue --> worker thread: rows, step, write, commit --> replies, sends
```

Events that come together are stepped one after the other and share one commit; nothing of them is answered or sent
before it. All of that happens on one worker thread, so that the event loop is never held by the disk; the thread goes
on with what has come meanwhile by itself, and does not wait until the loop has written its answers. What the
runtime needs of the outside it names here, as `Store`, `Reader` and `Carrier`; the service passes them in.

A commit that fails answers 503 to all that it covered and ends the service (`failure`), since what runs in memory is
then no longer what is on disk.
"""

from __future__ import annotations

import asyncio
import logging
import random
import secrets
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Coroutine, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import count
from typing import Any, Protocol, TypeVar

from kodo.contacts import Contacts, Fate, fates
from kodo.core import events as ev
from kodo.core.instructions import Instruction, Parcel, Reply, Save, Send, Standing, Wake
from kodo.core.parts import Carried
from kodo.core.registry import Registry
from kodo.errors import (
    BusyError,
    CacheError,
    DamagedCacheError,
    KodoError,
    RejectedError,
    UnavailableError,
    UnknownServiceError,
)
from kodo.models import Farewell, Heartbeat, Key, Node, PeerMessage, PeerReply, Registration, now

log = logging.getLogger("kodo")

PLAIN_LIMIT = 8 * 2**20
"""Bytes of nodes that an older service is offered at once: it expects all that there is (PROTOCOL.md, Beyond)."""
PAGE_LIMIT = 2**19
"""Bytes of nodes in other messages: parsing and writing one is a time for which all others wait."""
BATCH, BATCH_TIME = 64, 0.05
"""Events, and seconds of work, that share a commit at most, so that the first does not wait for too many."""
READERS = 4
DOUBTFUL = 4
"""How often others know more of this registry than it does before it is said: a lost disk explains one or two."""
RESTS = 9
"""Times as long as it worked rests what looks the listing over: a tenth of one core, some 10 s for 100,000 flows."""

T = TypeVar("T")


class Content(Protocol):
    """What a parcel came to."""

    @property
    def nodes(self) -> dict[str, Any]: ...
    @property
    def deltas(self) -> list[dict[str, Any]]: ...
    @property
    def carried(self) -> Mapping[Key, Carried]: ...


class Reader(Protocol):
    """The records of the mesh: committed state, readable from any thread."""

    def rows(self, keys: Iterable[Key]) -> ev.Rows: ...
    def content(self, parcel: Parcel, limit: int, *, brief: bool = False) -> Content: ...
    def own_node(self, *, brief: bool = False) -> dict[str, Any]: ...
    @property
    def is_behind(self) -> bool: ...
    def look_over(self, after: int) -> int | None: ...
    def rollback(self) -> None: ...
    def writing(self) -> AbstractContextManager[None]: ...
    def interrupt(self) -> None: ...


class Store(Protocol):
    """Where changes go: written, then made durable together."""

    @property
    def catalogue(self) -> Reader: ...
    def write(self, save: Save) -> None: ...
    def commit(self) -> None: ...
    def catch_up(self) -> None: ...
    @property
    def is_mended(self) -> bool: ...
    def mend(self, damage: Exception) -> None: ...
    def rollback(self) -> None: ...
    def close(self) -> None: ...


class Carrier(Protocol):
    """Takes a message to a peer. Raises `RejectedError` when it will not happen, else `UnavailableError`."""

    async def post(self, send: Send, message: dict[str, Any]) -> PeerReply: ...
    async def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Identity:
    """Who this service is, as the common reply tells it."""

    url: str
    organization: str | None = None
    node: bool = True
    registry: bool = True
    provider: bool = False
    started_at: str = field(default_factory=now)

    @property
    def feed(self) -> bool:
        return self.registry and not self.provider


@dataclass(frozen=True, slots=True)
class Answer:
    """What a request is answered: the core's Reply and, for a handshake that asked to be fed, what it is offered."""

    reply: Reply
    content: Content | None = None


@dataclass(frozen=True, slots=True)
class _Item:
    """Something in the queue: an event still without its moment.

    `ticket` is the request that waits for its answer, `sent` the message that was answered.
    """

    event: Callable[[ev.Instant], ev.Event]
    ticket: int | None = None
    sent: Send | None = None


@dataclass(frozen=True, slots=True)
class _Step:
    """What a step came to: instructions, or the reason why it was refused; of an answer that was refused, both.

    `fates`: what became of nodes that are registered here.
    """

    item: _Item
    instructions: list[Instruction] = field(default_factory=list)
    error: KodoError | None = None
    fates: tuple[tuple[Fate, str], ...] = ()


class Runtime:
    """Runs one `Registry` over a store and a carrier."""

    def __init__(self, identity: Identity, registry: Registry, store: Store, carrier: Carrier) -> None:
        self.identity = identity
        self.store = store
        self.standing = registry.standing()
        self.contacts = Contacts()
        self.failure: asyncio.Future[Exception] = asyncio.get_running_loop().create_future()
        self._registry = registry
        self._carrier = carrier
        self._tickets = count(1)
        self._waiting: dict[int, asyncio.Future[Answer]] = {}
        self._loop = asyncio.get_running_loop()
        self._queue: deque[_Item] = deque()
        # Of the worker and the loop: who of them sees to it that what is queued is taken up.
        self._turn = threading.Lock()
        self._working = self._ending = False
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="kodo-writer")
        # What people ask has threads of its own, so that their hardest questions hold up no message.
        self._readers = ThreadPoolExecutor(READERS, thread_name_prefix="kodo-reader")
        self._helpers = ThreadPoolExecutor(READERS, thread_name_prefix="kodo-helper")
        self._busy: Counter[ThreadPoolExecutor] = Counter()
        self._tasks: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None

    # -- the face ------------------------------------------------------------------------------------------

    async def start(self, own: Node | None) -> None:
        """Make the new epoch durable and begin; `own` is this service as a node, if it is one."""
        start = partial(ev.Start, own=own, unix=int(time.time()), nonce=secrets.token_hex(8))
        self._queue.append(_Item(start))
        self._follow(await self._loop.run_in_executor(self._worker, self._process))
        self._rest()
        self._spawn(self._look_over())

    async def stop(self) -> None:
        """End: sends first, then what is queued is given up, and the store is closed."""
        with self._turn:
            self._ending = True
        if self._timer is not None:
            self._timer.cancel()
        self.contacts.close()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self.store.catalogue.interrupt()
        for threads in (self._readers, self._helpers):
            threads.shutdown(wait=True, cancel_futures=True)
        self._worker.shutdown(wait=True)
        await self._carrier.close()
        self.store.close()

    async def register(self, node: Registration, wait: float | None = None, beats: bool = False) -> Answer:
        """Step a `/register`; the answer once it is durable, or `wait` seconds later at most, once all have it.

        Raises `KodoError` when it is refused.
        """
        return await self._ask(partial(ev.Register, node=node, wait=wait, beats=beats))

    async def heartbeat(self, beat: Heartbeat) -> Answer:
        """Step a `/heartbeat`, like `register`."""
        return await self._ask(partial(ev.Heartbeat, url=beat.url))

    async def connect(self, message: PeerMessage) -> Answer:
        """Step a `/connect`, like `register`."""
        answer = await self._ask(partial(ev.Connect, message=message))
        self.contacts.connected(message.url)
        return answer

    async def update(self, message: PeerMessage) -> Answer:
        """Step an `/update/node`, like `register`."""
        return await self._ask(partial(ev.Update, message=message))

    async def disconnect(self, farewell: Farewell) -> Answer:
        """Step a `/disconnect`, like `register`."""
        answer = await self._ask(partial(ev.Disconnect, message=farewell))
        self.contacts.disconnected(farewell.url)
        return answer

    async def leave(self) -> Answer:
        """Step a `DELETE /connect`: the answer once all that this service is connected with were told."""
        return await self._ask(ev.Leave)

    async def read(self, read: Callable[..., T]) -> T:
        """Read from the catalogue what a person asks: at once where that is brief, else on a thread.

        Raises `BusyError` when it takes too long there as well.
        """
        try:
            return await self._briefly(read, self._readers)
        except DamagedCacheError as error:
            if not (self._ending or self.store.is_mended):
                self._spawn(self._mend(error))
            raise

    async def inspect(self, look: Callable[[Registry, float], T]) -> T:
        """Look at the core between two steps; `look` gets it and the monotonic time, and changes nothing.

        That is on the writer's thread, as all that touches the core: it changes in place, so no other may read it.
        """
        return await self._loop.run_in_executor(self._worker, partial(self._look, look))

    def _look(self, look: Callable[[Registry, float], T]) -> T:
        with self.store.catalogue.writing():
            return look(self._registry, time.monotonic())

    async def read_aside(self, read: Callable[..., T]) -> T:
        """Read from the catalogue on a thread: what is known to take longer than the event loop can be held."""
        return await self._on(self._readers, read)

    async def aside(self, work: Callable[..., T]) -> T:
        """Do something that would hold the event loop on a thread."""
        return await self._on(self._helpers, work)

    async def _on(self, threads: ThreadPoolExecutor, work: Callable[..., T]) -> T:
        def done(_: object) -> None:
            self._loop.call_soon_threadsafe(self._busy.subtract, [threads])

        doing = threads.submit(work)
        self._busy[threads] += 1
        # Not when who asked has gone: a thread that has begun goes on to its end.
        doing.add_done_callback(done)
        return await asyncio.wrap_future(doing)

    async def _briefly(self, read: Callable[..., T], threads: ThreadPoolExecutor) -> T:
        # While the writer works, the loop would have to wait for the interpreter again after each step of a read. But
        # nothing that is brief waits for threads that are all busy with what is hard.
        if not self._working or self._busy[threads] >= READERS:
            with suppress(BusyError):
                return read(brief=True)
        return await self._on(threads, read)

    # -- looking after the listing -------------------------------------------------------------------------

    async def _look_over(self) -> None:
        """Look once whether all that is listed is what the records say, slowly, since others have work to do."""
        last: int | None = 0
        try:
            while last is not None:
                begun = time.monotonic()
                with suppress(BusyError):  # others were faster: again, after the rest
                    last = await self._on(self._helpers, partial(self.store.catalogue.look_over, last))
                await asyncio.sleep(RESTS * (time.monotonic() - begun))
        except DamagedCacheError as error:
            await self._mend(error)
        except CacheError as error:
            log.error("what is listed was not looked over to its end: %s", error)

    async def _mend(self, damage: DamagedCacheError) -> None:
        """Where a read found damage. Should it stay, what the mesh says is still made durable."""
        try:
            await self._loop.run_in_executor(self._worker, self._write_anew, damage)
            self._rest()
        except Exception as error:  # noqa: BLE001, whatever damage leads to
            log.error("it cannot be listed anew: %s; see to the disk, and start on a new cache", error)

    def _write_anew(self, damage: DamagedCacheError) -> None:
        with self.store.catalogue.writing():
            try:
                self.store.mend(damage)
                self.store.commit()
            except BaseException:
                self.store.catalogue.rollback()
                raise

    def _catch_up(self) -> None:
        """On the worker thread: some of what makes reading fast, again and again as long as nothing else is to do."""
        try:
            if self._is_idle():
                with self.store.catalogue.writing():
                    self._catch_up_once()
        except Exception as error:  # noqa: BLE001, as where a message is written
            self._loop.call_soon_threadsafe(self._give_up, error)

    def _catch_up_once(self) -> None:
        try:
            self.store.catch_up()
            self._rest()
        except DamagedCacheError as error:
            # A search looks one by one at what it cannot be told of by trigrams: nobody has to end for that.
            self.store.catalogue.rollback()
            log.debug("what searches go by is not written: %s", error)

    def _rest(self) -> None:
        """After each piece of work: what can wait is done when nothing else is."""
        with self._turn:
            if self._is_idle():
                self._worker.submit(self._catch_up)

    def _is_idle(self) -> bool:
        return self.store.catalogue.is_behind and not (self._queue or self._ending)

    # -- the loop ------------------------------------------------------------------------------------------

    async def _ask(self, event: Callable[..., ev.Event]) -> Answer:
        if self.failure.done():
            raise CacheError("the service is ending, since its cache could not be written; ask again later")
        ticket = next(self._tickets)
        answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._waiting[ticket] = answer
        self._put(_Item(partial(event, ticket=ticket), ticket))
        try:
            return await answer
        finally:
            self._waiting.pop(ticket, None)

    def _tell(self, event: Callable[[ev.Instant], ev.Event]) -> None:
        self._put(_Item(event))

    def _put(self, item: _Item) -> None:
        with self._turn:
            self._queue.append(item)
            idle = not (self._working or self._ending)
            self._working = self._working or idle
        if idle:
            self._worker.submit(self._work)

    def _work(self) -> None:
        """On the worker thread: do what is queued. A look that waits (`inspect`) comes before what came meanwhile."""
        try:
            steps = self._process()
        except Exception as error:  # noqa: BLE001, a bug in the core ends the service like a broken disk
            self._loop.call_soon_threadsafe(self._give_up, error)
            return
        with self._turn:
            self._working = bool(self._queue) and not self._ending
            if self._working:
                self._worker.submit(self._work)
        # After the submission: the next batch is begun while the loop writes these answers.
        self._loop.call_soon_threadsafe(self._follow, steps)
        self._rest()

    def _follow(self, steps: list[_Step]) -> None:
        """Back on the loop, after the commit: answer, send, wait."""
        try:
            for step in steps if not self._ending else ():
                if step.item.sent is not None:
                    self._heard_of(step.item.sent, step.error)
                elif step.error is not None:
                    self._settle(step.item.ticket, step.error)
                for fate, url in step.fates:
                    self.contacts.became(fate, url)
                for instruction in step.instructions:
                    self._carry_out(instruction)
        except Exception as error:  # noqa: BLE001, as in `_work`
            self._give_up(error)

    def _heard_of(self, sent: Send, error: KodoError | None) -> None:
        """A message was answered; with an `error`, if the answer is none that can be taken."""
        if error is None:
            self.contacts.answered(sent)
        else:
            self.contacts.failed(sent, RejectedError(f"its answer to {sent.route} breaks the protocol: {error}"))

    def _process(self) -> list[_Step]:
        """On the worker thread: step the first events, write what is to be saved, and make it durable together."""
        end = time.monotonic() + BATCH_TIME
        steps: list[_Step] = []
        with self.store.catalogue.writing():
            try:
                while self._queue and len(steps) < BATCH and (not steps or time.monotonic() < end):
                    steps.append(self._step(self._queue.popleft()))
                if any(isinstance(done, Save) and not done.lazy for step in steps for done in step.instructions):
                    self.store.commit()
            except BaseException:
                self.store.rollback()
                raise
            self._note(self._registry.standing())
        return steps

    def _note(self, standing: Standing) -> None:
        """Keep what replies tell of the mesh, and say in the log what an operator is to know of it."""
        before, self.standing = self.standing, standing
        if standing.frozen != before.frozen:
            said = "frozen, since most nodes and most peers fell silent at once" if standing.frozen else "resumed"
            log.warning("the expiry of leases is %s", said)
        times = standing.surpassed
        if times >= DOUBTFUL and times.bit_length() > before.surpassed.bit_length():
            said = "others have known more of it than it did %d times; see that no other service has its url"
            log.warning(said, times)
        for url, status in set(standing.refused) - set(before.refused):
            log.warning("%s answered %d and is not asked again until it is heard of; see to its access", url, status)
        for origin in set(standing.stale) - set(before.stale):
            log.info("nothing was heard of %s for long; what it told is still listed", origin)

    def _step(self, item: _Item) -> _Step:
        event = item.event(ev.Instant(now(), time.monotonic(), random.random()))
        if isinstance(event, ev.Concerning):
            event = replace(event, rows=self.store.catalogue.rows(self._registry.concerns(event)))
        fault: KodoError | None = None
        try:
            instructions = self._registry.step(event)
        except KodoError as error:
            if not isinstance(event, ev.Delivered):
                return _Step(item, error=error)
            fault = error
            instructions = self._registry.step(ev.Refused(event.at, event.peer, event.route))
        for done in instructions:
            if isinstance(done, Save):
                self.store.write(done)
        return _Step(item, instructions, fault, tuple(fates(event, instructions, self._registry.key)))

    def _give_up(self, error: Exception) -> None:
        """What is in memory can no longer be made durable, or a rule was broken: answer nothing more, and end."""
        if self._ending or self.failure.done():
            return
        log.critical("the service ends: %s", error, exc_info=None if isinstance(error, KodoError) else error)
        self.failure.set_result(error)
        for ticket in list(self._waiting):
            self._settle(ticket, CacheError("what was asked could not be made durable; the service ends"))

    def _settle(self, ticket: int | None, outcome: Answer | KodoError) -> None:
        waiting = self._waiting.get(ticket) if ticket is not None else None
        if waiting is None or waiting.done():
            return
        if isinstance(outcome, KodoError):
            waiting.set_exception(outcome)
        else:
            waiting.set_result(outcome)

    # -- carrying out --------------------------------------------------------------------------------------

    def _carry_out(self, instruction: Instruction) -> None:
        match instruction:
            case Reply(offer=None):
                self._settle(instruction.ticket, Answer(instruction))
            case Reply(offer=Parcel() as offer):
                self._spawn(self._offer(instruction, offer))
            case Send():
                self._spawn(self._send(instruction))
            case Wake():
                self._wake(instruction.at)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("a reply or a message could not be written", exc_info=error)

    def _wake(self, at: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        delay = max(0.0, at - time.monotonic())
        self._timer = self._loop.call_later(delay, self._tell, ev.Tick)

    async def _offer(self, reply: Reply, offer: Parcel) -> None:
        carried: Mapping[Key, Carried] = {}
        try:
            content = await self._content(offer)
            self._settle(reply.ticket, Answer(reply, content))
            carried = content.carried
        except Exception:
            self._settle(reply.ticket, CacheError("what is listed could not be read; ask again later"))
            raise
        finally:
            if reply.to is not None:
                self._tell(partial(ev.Answered, peer=reply.to, carried=carried))

    async def _send(self, send: Send) -> None:
        try:
            await self._deliver(send)
        except RejectedError as error:
            self._was_refused(send, error)
            self._tell(partial(ev.Refused, peer=send.peer, route=send.route, status=error.answered))
        except UnavailableError as error:
            self.contacts.failed(send, error)
            self._tell(partial(ev.Lost, peer=send.peer, retry_after=error.retry_after))
        except Exception:
            # A peer whose message had no end would never be told anything again.
            self._tell(partial(ev.Lost, peer=send.peer))
            raise

    def _was_refused(self, send: Send, error: RejectedError) -> None:
        if error.answered != UnknownServiceError.status or send.route not in {"/heartbeat", "/disconnect"}:
            self.contacts.failed(send, error)
        elif send.route == "/heartbeat":
            self.contacts.unknown(send)
        else:
            self.contacts.parted(send)

    async def _deliver(self, send: Send) -> None:
        """Write the message from what is committed now, send it, and tell what it was answered."""
        carried: Mapping[Key, Carried] = {}
        if send.parcel is not None:
            content = await self._content(send.parcel)
            carried = content.carried
            if send.bare and not (content.nodes or content.deltas):
                self._tell(partial(ev.Unsaid, peer=send.peer, carried=carried))
                return
            message = self._message(send, content)
        elif send.route == "/register":
            message = await self._briefly(self.store.catalogue.own_node, self._helpers)
        elif send.route == "/disconnect":
            message = {"url": self.identity.url, "version": send.version, "everywhere": True}
        else:
            message = {"url": self.identity.url}
        reply = await self._carrier.post(send, message)
        answered = partial(ev.Delivered, peer=send.peer, route=send.route, carried=carried, reply=reply)
        self._put(_Item(answered, sent=send))

    async def _content(self, parcel: Parcel) -> Content:
        limit = PLAIN_LIMIT if parcel.form == "plain" else PAGE_LIMIT
        return await self._briefly(partial(self.store.catalogue.content, parcel, limit), self._helpers)

    def _message(self, send: Send, content: Content) -> dict[str, Any]:
        message: dict[str, Any] = {
            "url": self.identity.url,
            "organization": self.identity.organization,
            "feed": self.identity.feed and send.route == "/connect",
            "nodes": content.nodes,
        }
        if send.marks is not None:
            message |= {"deltas": content.deltas, "marks": dict(send.marks)}
        if send.resumes:
            message["resumes"] = True
        if send.beacon is not None:
            message["beacon"] = send.beacon.model_dump()
        for name, said in (("asks", send.asks), ("receipts", send.receipts)):
            if said:
                message[name] = [one.model_dump() for one in said]
        return message
