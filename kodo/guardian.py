"""The guardian of a lab: forks its members, reaps them, and ends them when the lab's own process is gone.

`python -m kodo.guardian PARENT [PATH ...]` is started by `kodo.lab`, one a lab, in a session of its own. It has
preloaded the service and starts a member by forking, which takes a tenth of what a fresh interpreter does. Where there
is no forking, or something (a debugger, a monitor) has started threads here, which a fork would tear, a member is an
interpreter of its own: slower by its imports, and the same in all else. It is spoken to in lines of JSON, one order a
line, and reports the same way:

```
 stdin   {"start": NAME, "options": {...}, "loader": BASE64 or null, "log": PATH, "folder": PATH, "path": [...],
          "links": {...}}
         {"signal": "TERM" | "KILL" | "STOP" | "CONT", "name": NAME}
         {"links": {URL: {...}}, "name": NAME, "number": 3}     the policies of its outgoing messages, all of them
         {"owner": 7}                                the process that attaches, for who is told that it came second
         {"end": true}
 stdout  {"started": NAME, "pid": 7, "url": URL}     by the member's own word, when it is about to answer
         {"linked": NAME, "number": 3}               by the member's own word, when these policies hold
         {"paused": NAME} {"resumed": NAME}          whoever stopped or continued it
         {"exited": NAME, "pid": 7, "code": CODE}    minus the signal's number when one ended it
         {"refused": NAME, "reason": TEXT}           it was not started
         {"missing": NAME}                           nobody of this name runs, to be sent a signal or links
```

- When PARENT ends, when stdin closes, when it is told to (`end`, SIGTERM, SIGHUP), or when it fails itself: every
  member is told to end and woken if it is paused, gets 3 seconds, and is killed. Then each PATH is removed: the lab's
  scratch folder. Should the guardian be killed, the kernel kills its members (Linux).
- `python -m kodo.guardian --door NUMBER [PATH ...]` guards a lab that is kept, and is nobody's child. Orders and
  reports go over a connection that is made at the socket of this number; its end ends nothing. There is one at a time:
  others hear `{"busy": PID}`. One that comes hears all that happened to members, each report with the moment `at` (a
  start begins with `{"launched": NAME}`), and then `{"attached": PID}`, the guardian's own.
- It touches no process that it did not start: it signals children that it has not reaped, nothing else.
- It starts no threads, and no event loop: both would be lost, or torn, in a fork. It imports neither numpy nor
  pandas, which start threads. What a member needs of these it imports itself.
- It waits in one place, for a report, an order or a signal, and never looks at the clock to see what happened, but for
  its parent where the system has no pidfd.
- It never blocks in writing: a lab that reads nothing must still be watched, and so must a member that is paused. Of
  policies that a member has not taken yet the newest alone waits for it.
- File descriptors here are plain numbers. A file object that a member inherits would close its number when it is
  collected, and by then the number may be the member's own socket.
"""

from __future__ import annotations

import asyncio
import base64
import ctypes
import fcntl
import gc
import json
import os
import selectors
import shutil
import signal
import socket
import sys
import tempfile
import time
import traceback
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import urlsplit

from kodo.errors import KodoError, LabError, OptionError
from kodo.forks import can_fork
from kodo.options import load_options
from kodo.service.node import Running, run
from kodo.transport import Links

GRACE = 3.0
"""Seconds that members get to end in, once the lab is over."""
LOOK = 0.5
"""Seconds between looks at the parent, where the system cannot tell when it ends."""
CHUNK = 2**16
REPORT, ORDERS = 3, 4
"""The numbers of the pipes to and from the guardian in a member, those after stdin, stdout and stderr."""
SIGNALS = {"TERM": signal.SIGTERM, "KILL": signal.SIGKILL, "STOP": signal.SIGSTOP, "CONT": signal.SIGCONT}
ENDING = (signal.SIGTERM, signal.SIGHUP)
PRELOADED = (
    "uvicorn.protocols.http.httptools_impl",
    "uvicorn.loops.uvloop",
    "uvloop",
    "httptools",
    "cloudpickle",
    "httpx",
    "anyio._backends._asyncio",
    "pydantic.v1",
)
"""What a service would import when it starts or sends, and can do without; fastapi asks the last whether a parameter of
a route is one of its, which was more than half of what a member did after its fork."""
TOLD_AGAIN = {"started", "exited", "paused", "resumed"}
"""Reports that are told again to who attaches."""
PR_SET_PDEATHSIG = 1


@dataclass(slots=True)
class Member:
    """A child that was not reaped yet, the pipe on which it reports, and the one on which it is told its policies."""

    name: str
    report: int
    orders: int
    heard: bytearray = field(default_factory=bytearray)
    writing: bytes = b""
    newest: bytes = b""
    gone: bool = False


class Guardian:
    """Orders in, reports out, members beneath; `run` returns when all of them are gone."""

    def __init__(self, parent: int | None, door: int | None = None, *, forks: bool = True) -> None:
        """Guard until `parent` ends or, at a `door`, until told to end; start members by forking, if that is right."""
        self._parent = parent
        self._door = door
        self._forks = forks
        self._input: int | None = None
        self._output: int | None = None
        self._owner = 0
        self._told: list[bytes] = []
        self._held: dict[int, int] = {}
        self._members: dict[int, Member] = {}
        self._orders = bytearray()
        self._reports = bytearray()
        self._ending = False
        self._look: float | None = None
        # It keeps no descriptor of its own, as epoll would.
        self._selector = selectors.PollSelector()
        self._woken, self._wake = os.pipe()

    def run(self) -> None:
        """Serve until the lab is over, then end every member."""
        self._watch()
        try:
            while not self._ending:
                self._turn(self._look)
        finally:
            self._end()

    # -- waiting -------------------------------------------------------------------------------------------

    def _watch(self) -> None:
        for descriptor in (self._woken, self._wake):
            os.set_blocking(descriptor, False)
        signal.set_wakeup_fd(self._wake, warn_on_full_buffer=False)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        for number in (signal.SIGCHLD, *ENDING):
            # What matters is the byte that it leaves in the pipe.
            signal.signal(number, lambda *_: None)
        self._on_input(self._woken, self._signalled)
        if self._door is not None:
            self._on_input(self._door, self._attach)
        else:
            self._speak_over(sys.stdin.fileno(), sys.stdout.fileno())
            self._watch_parent()

    def _speak_over(self, orders: int, reports: int) -> None:
        self._input, self._output = orders, reports
        os.set_blocking(reports, False)
        self._on_input(orders, self._ordered)

    def _watch_parent(self) -> None:
        assert self._parent is not None
        try:
            self._on_input(os.pidfd_open(self._parent), self._over)
        except ProcessLookupError:
            self._over()
        except (AttributeError, OSError):
            self._look = LOOK
        self._check_parent()

    def _check_parent(self) -> None:
        # A pidfd that was opened too late may be that of another process with the same number.
        if os.getppid() != self._parent:
            self._over()

    def _on_input(self, descriptor: int, then: Callable[[], object]) -> None:
        self._selector.register(descriptor, selectors.EVENT_READ, then)

    def _turn(self, timeout: float | None) -> None:
        for key, _ in self._selector.select(timeout):
            key.data()
        if self._look is not None:
            self._check_parent()

    def _over(self) -> None:
        self._ending = True

    def _signalled(self) -> None:
        if any(number in ENDING for number in os.read(self._woken, CHUNK)):
            self._over()
        for pid in list(self._members):
            self._look_at(pid)

    def _look_at(self, pid: int) -> None:
        """See all that became of a member since the last look; once it is reaped, the number is nobody's."""
        while True:
            seen, status = os.waitpid(pid, os.WNOHANG | os.WUNTRACED | os.WCONTINUED)
            if not seen:
                return
            if os.WIFSTOPPED(status):
                self._say(paused=self._members[pid].name)
            elif os.WIFCONTINUED(status):
                self._say(resumed=self._members[pid].name)
            else:
                self._bury(pid, os.waitstatus_to_exitcode(status))
                return

    # -- orders --------------------------------------------------------------------------------------------

    def _ordered(self) -> bool:
        """Do what was ordered; whether there was anything."""
        if self._input is None:
            return False
        try:
            piece = os.read(self._input, CHUNK)
        except BlockingIOError:
            return False
        except ConnectionError:
            piece = b""
        if not piece:
            self._let_go()
        self._orders += piece
        if b"\n" not in piece:  # a loader may bring many megabytes along, to be looked through once
            return bool(piece)
        *lines, self._orders = self._orders.split(b"\n")
        for line in lines:
            self._obey(json.loads(line))
        return True

    def _obey(self, order: dict[str, Any]) -> None:
        match order:
            case {"start": str(name)}:
                self._start(name, order)
            case {"signal": str(word), "name": str(name)}:
                self._signal(name, SIGNALS[word])
            case {"links": dict(), "name": str(name)}:
                self._link(name, json.dumps(order).encode() + b"\n")
            case {"owner": int(pid)}:
                self._owner = pid
            case {"end": True}:
                self._over()
            case _:
                raise LabError(f"expected an order to start, signal, link or end, not one of {sorted(order)}")

    def _let_go(self) -> None:
        """The lab has hung up: that is the end, or, of a lab that is kept, nothing but the end of a connection."""
        if self._door is None:
            self._over()
        elif self._input is not None:
            self._selector.unregister(self._input)
            os.close(self._input)
            self._input = self._output = None
            self._owner = 0
            self._orders.clear()
            self._reports.clear()

    def _attach(self) -> None:
        """Speak with who came to the door, unless somebody is spoken with."""
        assert self._door is not None
        door = socket.socket(fileno=self._door)
        try:
            caller = door.accept()[0].detach()
        except OSError:  # it went away
            return
        finally:
            door.detach()
        while self._ordered():
            pass  # who was here before may have hung up just now, behind its last words
        if self._input is not None and _is_there(self._owner):
            os.write(caller, json.dumps({"busy": self._owner}).encode() + b"\n")
            os.close(caller)
            return
        self._let_go()
        self._speak_over(caller, caller)
        self._reports += b"".join(self._told)
        self._say(attached=os.getpid())

    def _hold(self, url: str) -> None:
        """Hold the port of a member of a lab that is kept, as `kodo.lab.processes.Ports` does in the lab's process."""
        if self._door is None or sys.platform != "linux":
            return
        with socket.socket() as holder, suppress(OSError, ValueError):  # the member says what is wrong with its url
            port = urlsplit(url).port or 0
            if port and port not in self._held:
                holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                holder.bind(("127.0.0.1", port))
                self._held[port] = holder.detach()

    def _start(self, name: str, order: dict[str, Any]) -> None:
        if self._pid(name) is not None:
            self._say(refused=name, reason="a member of this name is running; terminate it first")
            return
        self._hold(str(order["options"].get("url")))
        (report, told), (heard, orders) = os.pipe(), os.pipe()
        try:
            pid = (_fork if self._forks else _spawn)(order, (told, heard))
        except OSError as error:
            os.close(report)
            os.close(orders)
            self._say(refused=name, reason=f"no process could be started: {error}")
        else:
            for descriptor in (report, orders):
                os.set_blocking(descriptor, False)
            self._members[pid] = Member(name, report, orders)
            self._remember(launched=name)
            self._on_input(report, partial(self._hear, pid))
        finally:
            os.close(told)
            os.close(heard)

    def _signal(self, name: str, number: signal.Signals) -> None:
        pid = self._pid(name)
        if pid is None:
            self._say(missing=name)
        else:
            os.kill(pid, number)

    def _link(self, name: str, order: bytes) -> None:
        pid = self._pid(name)
        if pid is None:
            self._say(missing=name)
        else:
            self._members[pid].newest = order
            self._write(self._members[pid])

    def _write(self, member: Member) -> None:
        """Write what the member's pipe takes: what was begun, then the newest policies, and none between."""
        while not member.gone and (member.writing or member.newest):
            if not member.writing:
                member.writing, member.newest = member.newest, b""
            try:
                member.writing = member.writing[os.write(member.orders, member.writing) :]
            except BlockingIOError:
                if member.orders not in self._selector.get_map():
                    self._selector.register(member.orders, selectors.EVENT_WRITE, partial(self._write, member))
                return
            except BrokenPipeError:
                member.writing = member.newest = b""
        if member.orders in self._selector.get_map():
            self._selector.unregister(member.orders)

    def _pid(self, name: str) -> int | None:
        return next((pid for pid, member in self._members.items() if member.name == name), None)

    # -- members -------------------------------------------------------------------------------------------

    def _hear(self, pid: int) -> None:
        """Read what a member reports, line by line. It may be buried by now."""
        member = self._members.get(pid)
        if member is None or member.gone:
            return
        try:
            piece = os.read(member.report, CHUNK)
        except BlockingIOError:
            return
        if not piece:
            self._hang_up(member)
        member.heard += piece
        *lines, member.heard = member.heard.split(b"\n")
        for line in lines:
            with suppress(ValueError, KeyError, TypeError):  # a loader can write what it likes
                self._pass_on(pid, member, json.loads(line))

    def _pass_on(self, pid: int, member: Member, report: dict[str, Any]) -> None:
        if "url" in report:
            self._say(started=member.name, pid=pid, url=report["url"])
        else:
            self._say(linked=member.name, number=report["number"])

    def _hang_up(self, member: Member) -> None:
        if not member.gone:
            member.gone = True
            for descriptor in (member.report, member.orders):
                if descriptor in self._selector.get_map():
                    self._selector.unregister(descriptor)
                os.close(descriptor)

    def _bury(self, pid: int, code: int) -> None:
        self._hear(pid)
        member = self._members.pop(pid)
        self._hang_up(member)
        self._say(exited=member.name, pid=pid, code=code)

    def _end(self) -> None:
        self._forget_the_lab()
        for number in (signal.SIGTERM, signal.SIGCONT):
            self._tell_all(number)
        self._wait_for_members(GRACE)
        self._tell_all(signal.SIGKILL)
        self._wait_for_members(GRACE)

    def _forget_the_lab(self) -> None:
        """Wait for members alone: what has ended would wake us again and again."""
        kept = {self._woken, *(member.report for member in self._members.values() if not member.gone)}
        for descriptor in set(self._selector.get_map()) - kept:
            self._selector.unregister(descriptor)
        self._look = None

    def _tell_all(self, number: signal.Signals) -> None:
        for pid in self._members:
            os.kill(pid, number)

    def _wait_for_members(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while self._members and (left := deadline - time.monotonic()) > 0:
            self._turn(left)

    # -- reports -------------------------------------------------------------------------------------------

    def _say(self, **report: Any) -> None:
        self._reports += json.dumps(report).encode() + b"\n"
        if report.keys() & TOLD_AGAIN:
            self._remember(**report)
        self._report()

    def _remember(self, **report: Any) -> None:
        """Keep a report for who attaches. It is a few bytes for each thing that was done to a member."""
        if self._door is not None:
            self._told.append(json.dumps({**report, "at": time.monotonic()}).encode() + b"\n")

    def _report(self) -> None:
        """Write what the pipe takes. What is left waits until it takes more, and for nothing when nobody reads."""
        out = self._output
        if out is None:
            self._reports.clear()
            return
        try:
            del self._reports[: os.write(out, self._reports)]
        except BlockingIOError:
            pass
        except ConnectionError:
            self._reports.clear()
        self._await_room(out, waits=bool(self._reports) and not self._ending)

    def _await_room(self, out: int, *, waits: bool) -> None:
        if out == self._input:  # a connection, on which orders come as well
            if not self._ending:
                events = selectors.EVENT_READ | (selectors.EVENT_WRITE if waits else 0)
                self._selector.modify(out, events, self._converse if waits else self._ordered)
        elif waits and out not in self._selector.get_map():
            self._selector.register(out, selectors.EVENT_WRITE, self._report)
        elif not waits and out in self._selector.get_map():
            self._selector.unregister(out)

    def _converse(self) -> None:
        """The connection takes more, or has more, or both."""
        self._report()
        self._ordered()


def _fork(order: dict[str, Any], pipes: tuple[int, int]) -> int:
    guardian = os.getpid()
    pid = os.fork()
    if pid == 0:
        _close_all_but(pipes)
        become_member(order, pipes, guardian)
    return pid


def _spawn(order: dict[str, Any], pipes: tuple[int, int]) -> int:
    """Start an interpreter that reads its order from stdin: a file, for a pipe would have to be fed meanwhile."""
    with tempfile.TemporaryFile() as told:
        told.write(json.dumps(order).encode())
        told.seek(0)
        program = [sys.executable, "-m", "kodo.guardian", "--member", str(os.getpid())]
        # The pipes get their places before anything that starts with the interpreter may take these.
        places = zip((told.fileno(), *pipes), (0, REPORT, ORDERS), strict=True)
        actions = [(os.POSIX_SPAWN_DUP2, source, place) for source, place in places]
        return os.posix_spawn(sys.executable, program, os.environ, file_actions=actions)


def _close_all_but(pipes: tuple[int, int]) -> None:
    """In a fork: close what is the guardian's. An interpreter of its own has got nothing of that."""
    for entry in list(Path("/dev/fd").iterdir()):
        if int(entry.name) > 2 and int(entry.name) not in pipes:
            with suppress(OSError):  # that of the listing itself
                os.close(int(entry.name))


# -- in the member -----------------------------------------------------------------------------------------


def become_member(order: dict[str, Any], pipes: tuple[int, int], guardian: int) -> NoReturn:
    """Turn this child into a service. It returns to nobody: in a fork, the stack beneath is the guardian's."""
    code = 1
    try:
        _leave(order, pipes, guardian)
        _serve(order)
        code = 0
    except KodoError as error:
        if error.__cause__ is not None:
            traceback.print_exception(error.__cause__)
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
    except BaseException:  # noqa: BLE001, whatever a loader raises belongs into the log
        traceback.print_exc()
    finally:
        with suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _leave(order: dict[str, Any], pipes: tuple[int, int], guardian: int) -> None:
    """Let go of all that is the guardian's: its signals, its session, its streams."""
    signal.set_wakeup_fd(-1)
    for handled in (signal.SIGCHLD, *ENDING):
        signal.signal(handled, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.setsid()
    _die_with(guardian)
    log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    # Those that are here may stand at numbers that the others are to get.
    told, heard = (fcntl.fcntl(pipe, fcntl.F_DUPFD_CLOEXEC, ORDERS + 1) for pipe in pipes)
    null = os.open(os.devnull, os.O_RDONLY)
    for source, number in ((null, 0), (log, 1), (log, 2), (told, REPORT), (heard, ORDERS)):
        os.dup2(source, number, inheritable=number < REPORT)
    for spare in {null, log, told, heard, *pipes}:
        if spare > ORDERS:
            os.close(spare)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(line_buffering=True)  # type: ignore[union-attr]


def _die_with(guardian: int) -> None:
    """Have the kernel kill this process when the guardian is killed, or its thread that started this: its first."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != guardian:
            os._exit(1)


def _serve(order: dict[str, Any]) -> None:
    """Run the service, with imports and relative paths as they are in the lab's own process."""
    os.chdir(order["folder"])
    sys.path[:] = order["path"]
    options = load_options(**order["options"], loader=_opened(order["loader"]))
    if options.reload:
        raise OptionError("reload: expected false in a lab; restart the member when its code has changed")
    links = Links(order.get("links"), seed=zlib.crc32(order["start"].encode()))
    run(options, partial(_report, links), links)


def _opened(loader: str | None) -> Any:
    if loader is None:
        return None
    return import_module("cloudpickle").loads(base64.b64decode(loader))


def _report(links: Links, running: Running) -> None:
    """Say that this service is about to answer, and follow what the guardian says of its links from now on."""
    os.set_blocking(ORDERS, False)
    asyncio.get_running_loop().add_reader(ORDERS, _Orders(links).read)
    _say(url=running.url)


def _say(**report: Any) -> None:
    with suppress(BrokenPipeError):
        os.write(REPORT, json.dumps(report).encode() + b"\n")


class _Orders:
    """The policies that come over the pipe, a line each."""

    def __init__(self, links: Links) -> None:
        self._links = links
        self._heard = bytearray()

    def read(self) -> None:
        """Take what has come; nothing comes any more when the guardian is gone."""
        piece = os.read(ORDERS, CHUNK)
        if not piece:
            asyncio.get_running_loop().remove_reader(ORDERS)
        self._heard += piece
        *lines, self._heard = self._heard.split(b"\n")
        for line in lines:
            order = json.loads(line)
            self._links.replace(order["links"])
            _say(number=order["number"])


# -- the process -------------------------------------------------------------------------------------------


def _is_there(pid: int) -> bool:
    """Whether a process is there; 0 is one that has not said its number yet."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


@contextmanager
def _removing(leftovers: Sequence[str]) -> Iterator[None]:
    try:
        yield
    finally:
        for path in map(Path, leftovers):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


def main(parent: int | None, door: int | None, leftovers: Sequence[str]) -> None:
    """Guard the lab whose own process is `parent`, the one that started this, or one that is kept, at its `door`."""
    forks = can_fork()
    if door is not None:
        os.set_inheritable(door, False)
        if os.fork():
            os._exit(0)  # who started this is told that it is on its way, and has no child to reap
        os.setsid()
    with _removing(leftovers):
        for name in PRELOADED:
            with suppress(ImportError):
                import_module(name)
        # What is loaded by now stays as it is: members share its memory as long as no collection walks over it.
        gc.collect()
        gc.freeze()
        Guardian(parent, door, forks=forks).run()


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["--door", number, *paths]:
            main(None, int(number), paths)
        case ["--member", guardian]:
            become_member(json.load(sys.stdin), (REPORT, ORDERS), int(guardian))
        case [number, *paths]:
            main(int(number), None, paths)
        case _:
            sys.exit("usage: python -m kodo.guardian PARENT [PATH ...]; it is kodo.lab that starts it")
