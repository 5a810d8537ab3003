"""The engine of real processes: the guardian, what it was told, and what it reports of the members.

A lab starts one guardian (`kodo.guardian`, whose module says what the two say to each other) and asks it for members.
One thread reads its reports into `Life`, one for each name, and wakes who waits. It holds no lab, so that a lab that
nobody uses any more can be collected.

- Nothing outlives `end`, which may be called twice, at any moment, from any thread. A process that was forked from the
  lab's own does not end the lab when it ends itself.
- A lab that is kept (`keeping.py`) has a guardian that is nobody's child; `leave` hangs up, and who attaches is told by
  it all that happened.
- The members' settings are those that the lab gives: `KODO_` variables of the environment do not reach them.
- What processes write goes to files in the lab's folder, never to pipes that nobody reads.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import IO, Any, Self

import cloudpickle  # type: ignore[import-untyped]

from kodo.client import Client
from kodo.errors import LabError, OptionError, reason_of
from kodo.lab import keeping
from kodo.lab.engine import Life, Setup, Table, Word
from kodo.lab.history import PATIENCE, History
from kodo.lab.keeping import Distant, Kept, Pickled
from kodo.lab.naming import checked_path

LAST = 10.0
"""Seconds that the guardian gets to end in, before it is killed, and with it (on Linux) the members."""
FIRST = 30.0
"""Seconds that the guardian of a lab that is kept gets to answer in."""
OPTIONS = frozenset(
    (
        *(
            "url",
            "organization",
            "connect",
            "node",
            "provider",
            "registry",
            "loader",
            "cache",
            "reset",
            "reload",
            "log",
        ),
        *("body_limit", "peer_body_limit", "lease", "retention", "beacon", "grace", "trace"),
    )
)
"""The options of `kodo.options`, whose room is the service's."""
GUARDIAN_LOG = "guardian.words"

PAUSE = 0.05
"""Seconds between two looks at a mesh of which nobody can know when it is at rest."""


class Processes:
    """The guardian of one lab, and the members it started, by name: an `Engine`."""

    kind = ""
    options = OPTIONS

    def __init__(self, folder: Path | str | None = None, kept: Kept | None = None) -> None:
        """Start the guardian, or speak with that of a lab that is `kept`: `Processes.keep`, `Processes.attach`.

        `folder` is for logs and caches; without one there is one that goes with the lab.
        """
        self.kept = kept
        self.history = History()
        if kept is None:
            self.folder = _made_folder(folder)
        else:
            self.folder, self.history.began = kept.folder, kept.began
        self._scratch = folder is None if kept is None else kept.scratch
        self._ports = Ports()
        self._owner = os.getpid()
        self._lives: dict[str, Life] = {}
        self._changed = threading.Condition()
        # Of what holds for members: who tells it makes it, so that what is told last is what holds.
        self._telling = threading.Lock()
        self._gone = False
        self.over = ""
        self._guardian: int | None = None
        self._busy: int | None = None
        # Of a lab that is attached, what a member says yet to the one before is of smaller numbers.
        self._number = 0 if kept is None else time.monotonic_ns()
        self._process = self._start_guardian() if kept is None else Distant(kept)
        reader = threading.Thread(target=self._listen, args=(self._process.stdout,), name="kodo-lab", daemon=True)
        reader.start()
        if kept is not None:
            self._introduce(kept)

    @classmethod
    def keep(cls, name: str | None, folder: Path | str | None, timeout: float) -> Self:
        """Start the guardian of a lab that is kept. Raises `LabError` for a name or a folder that is another's."""
        with ExitStack() as claim:
            claim.enter_context(keeping.one_at_a_time())
            name = keeping.free_name(name)
            # Until there is a guardian, this process stands for it.
            pid, made = os.getpid(), _made_folder(folder)
            kept = Kept(
                name=name,
                pid=pid,
                started=keeping.start_of(pid),
                began=time.monotonic(),
                folder=made,
                scratch=folder is None,
                timeout=timeout,
            )
            try:
                with keeping.open_door(kept) as door:
                    claim.close()
                    paths = [str(path) for path in kept.leftovers]
                    _spawn(made, ["--door", str(door.fileno()), *paths], pass_fds=[door.fileno()]).wait()
                return cls(kept=kept)
            except BaseException:
                if folder is None:
                    shutil.rmtree(made, ignore_errors=True)
                raise

    @classmethod
    def attach(cls, kept: Kept) -> Self:
        """Speak with the guardian of a lab that is kept. Raises `LabError` when somebody does."""
        return cls(kept=kept)

    def _start_guardian(self) -> subprocess.Popen[bytes]:
        leftovers = [str(self.folder)] * self._scratch
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        return _spawn(self.folder, [str(self._owner), *leftovers], **pipes)

    def _introduce(self, kept: Kept) -> None:
        """Say who speaks, and take what happened so far."""
        with suppress(LabError):  # it is not there, or it has hung up and said why
            self._tell(owner=self._owner)
        self._wait(lambda: self._guardian is not None, FIRST)
        if self._guardian is None:
            words = f"process {self._busy} has it; detach() it there, or end that process"
            if self._busy is None:
                words = f"its guardian does not answer{self._guardians_words()}"
            self.leave()
            raise LabError(f"expected to attach the kept lab {kept.name!r}, but {words}")
        self.kept = kept.model_copy(update={"pid": self._guardian, "started": keeping.start_of(self._guardian)})
        assert isinstance(self._process, Distant)
        self._process.meet(self.kept)

    # -- what a lab asks -----------------------------------------------------------------------------------

    def need_processes(self, verb: str) -> None:
        """There are processes."""

    def defaults(self, name: str) -> dict[str, Any]:
        """A url with a port of the lab's own, a cache in its folder, and a trace."""
        url = f"http://127.0.0.1:{self._ports.take()}"
        return {"url": url, "cache": self.folder / f"{name}.json", "trace": True}

    def check(self, name: str, setup: Setup) -> None:
        """Raise `LabError` for options that no service takes, and for a loader that cannot travel."""
        from kodo.options import check_options  # noqa: PLC0415, loaded while the guardian loads what members need

        given = {} if isinstance(setup.loader, Pickled) else {"loader": setup.loader}
        try:
            check_options(**setup.options, **given)
        except OptionError as error:
            raise LabError(f"{name}: {error}") from error
        _pickled(name, setup.loader)

    def launch(self, name: str, setup: Setup, links: Callable[[], Table]) -> Life:
        """Have a member started, and wait for nothing. Raises `LabError` when it runs, or another thread starts it."""
        order, life = self._order(name, setup), Life(written=self._written(name))
        with self._telling:
            with self._changed:
                if self.running(name):
                    raise LabError(
                        f"expected {name} to have ended, but it was started meanwhile; wait until it answers"
                    )
                self._lives[name] = life
            self.history.note("launched", name, setup=recorded(setup))
            self._tell(start=name, links=links(), **order)
        return life

    def _order(self, name: str, setup: Setup) -> dict[str, Any]:
        return {
            "options": _plain(setup.options),
            "loader": None if setup.loader is None else _pickled(name, setup.loader),
            "log": str(self._log(name)),
            "folder": str(Path.cwd()),
            "path": sys.path,
        }

    def wait_for_start(self, life: Life, timeout: float) -> None:
        """Wait until a member is about to answer, has ended, was refused, or the time is over."""
        self._wait(lambda: life.url is not None or life.over, timeout)
        if self._gone and not life.over:
            raise self._over()

    def link(self, tables: Callable[[], Mapping[str, Table]], timeout: float) -> list[str]:
        """Let these policies hold for the outgoing messages of these members, and wait until they do. For whom not.

        Waited for are members that can say so: one that is paused has taken them when it goes on.
        """
        with self._telling:
            self._number += 1
            number, told = self._number, tables()
            lives = {name: self._lives[name] for name in told if self.running(name)}
            for name in lives:
                self._tell(links=told[name], name=name, number=number)

        def late() -> list[str]:
            return [name for name, life in lives.items() if not (life.linked >= number or life.over or life.paused)]

        return late() if not self._wait(lambda: not late(), timeout) and not self._gone else []

    def wait_for_pause(self, name: str, paused: bool, timeout: float) -> bool:
        """Wait until a member is paused, or is not. Whether that came to be."""
        life = self.life(name)
        self._wait(lambda: life.paused == paused or life.over, timeout)
        return life.paused == paused and self.running(name)

    def signal(self, name: str, word: Word) -> None:
        """Send a signal to a running member; to others it is not sent."""
        if self.running(name):
            self._lives[name].ending |= word in {"TERM", "KILL"}
            self._tell(signal=word, name=name)

    def wait_for_end(self, name: str, timeout: float) -> bool:
        """Wait until a member has ended. Whether it has."""
        return self._wait(lambda: not self.running(name), timeout)

    def running(self, name: str) -> bool:
        """Whether a member's process was started and has not ended."""
        life = self._lives.get(name)
        return life is not None and not life.over and not self._gone

    def life(self, name: str) -> Life:
        """What is known of a member's process; of an unknown one nothing."""
        return self._lives.get(name) or Life()

    def client(self, url: str, timeout: float) -> Client:
        """A client over HTTP."""
        return Client(url, timeout)

    def pull(self, members: Iterable[tuple[str, str]], patience: float | None = None) -> None:
        """Read the traces of these members; who does not answer is left out."""
        self.history.pull(members, PATIENCE if patience is None else patience)

    def log(self, name: str, tail: int | None = None) -> str:
        """The last lines of a member's log file, or all. Raises `LabError` when it is gone."""
        return self._log_since(0, name, tail)

    def words(self, name: str, tail: int) -> str:
        """The last lines that a member has written since it was launched. Raises `LabError` when its log is gone."""
        return self._log_since(self.life(name).written, name, tail)

    def discard(self, name: str) -> None:
        """Take what a member wrote since it was launched out of its log: it never was."""
        if (life := self._lives.get(name)) is not None:
            with suppress(OSError):
                os.truncate(self._log(name), min(self._written(name), life.written))

    def _log_since(self, written: int, name: str, tail: int | None) -> str:
        try:
            return tail_of(self._log(name), tail, written)
        except OSError as error:
            raise LabError(
                f"expected the log of {name}, but it is gone with its lab; give the lab a folder= to keep logs"
            ) from error

    def _written(self, name: str) -> int:
        """How many bytes there are of a member's log."""
        with suppress(OSError):
            return self._log(name).stat().st_size
        return 0

    def _log(self, name: str) -> Path:
        return self.folder / f"{name}.log"

    @property
    def at_rest(self) -> bool:
        """Nobody can know: who looks twice and sees the same has good reason to think so."""
        return False

    def wait(self, seconds: float) -> None:
        """Wait a moment."""
        time.sleep(min(PAUSE, max(0.0, seconds)))

    def run(self, seconds: float) -> None:
        """Wait."""
        time.sleep(seconds)

    def end(self) -> None:
        """End every member and the guardian, and remove the folder if it is scratch."""
        self._end()
        self._ports.release()

    def leave(self) -> None:
        """The lab is used no more: that is its end, unless it is kept."""
        if self.kept is None:
            self.end()
        elif os.getpid() == self._owner and isinstance(self._process, Distant):
            self._process.hang_up()
            self._ports.release()

    def _end(self) -> None:
        if os.getpid() != self._owner:
            return
        with suppress(LabError):
            self._tell(end=True)
        with suppress(OSError):
            self._input.close()
        try:
            self._process.wait(LAST)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if isinstance(self._process, Distant):
            self._process.hang_up()
        if self.kept is not None:
            self.kept.remove()
        elif self._scratch:
            shutil.rmtree(self.folder, ignore_errors=True)

    # -- speaking with the guardian ------------------------------------------------------------------------

    @property
    def _input(self) -> IO[bytes]:
        assert self._process.stdin is not None
        return self._process.stdin

    def _tell(self, **order: Any) -> None:
        try:
            with self._changed:
                self._input.write(json.dumps(order).encode() + b"\n")
                self._input.flush()
        except (OSError, ValueError) as error:  # ValueError: the pipe was closed by `end`
            raise self._over() from error

    def _over(self) -> LabError:
        return LabError(self.over or self._ended())

    def _ended(self) -> str:
        return f"the lab has ended{self._guardians_words()}; start a new one with MeshLab()"

    def _guardians_words(self) -> str:
        with suppress(OSError):
            if said := tail_of(self.folder / GUARDIAN_LOG, 5):
                return f", its guardian's last words are\n{said}\n"
        return ""

    def _wait(self, holds: Callable[[], bool], timeout: float) -> bool:
        deadline = time.monotonic() + timeout
        with self._changed:
            self._changed.wait_for(lambda: holds() or self._gone, max(0.0, deadline - time.monotonic()))
            return holds()

    def _listen(self, reports: IO[bytes]) -> None:
        """On the reader thread: take reports until the guardian ends."""
        with reports, suppress(ConnectionError):
            for line in reports:
                self._take(json.loads(line))
        over = self._ended()
        with self._changed:
            self._gone, self.over = True, over
            self._changed.notify_all()

    def _take(self, report: dict[str, Any]) -> None:
        with self._changed:
            told: dict[str, Any] = {"at": report.get("at")}
            match report:
                case {"attached": pid}:
                    self._guardian = pid
                case {"busy": pid}:
                    self._busy = pid
                case {"launched": name}:
                    self._lives[name] = Life()
                    self.history.note("launched", name, **told)
                case {"started": name, "pid": pid, "url": url}:
                    self._lives[name].pid, self._lives[name].url = pid, url
                    self.history.note("started", name, **told)
                case {"exited": name, "pid": pid, "code": code}:
                    self._lives[name].pid, self._lives[name].code = pid, code
                    self._lives[name].paused = False
                    self.history.note("exited", name, code, **told)
                case {"paused": name}:
                    self._lives[name].paused = True
                    self.history.note("paused", name, **told)
                case {"resumed": name} if self._lives[name].paused:
                    self._lives[name].paused = False
                    self.history.note("resumed", name, **told)
                case {"linked": name, "number": number}:
                    self._lives[name].linked = max(number, self._lives[name].linked)
                case {"refused": name, "reason": reason} if self._lives[name].pid is None:
                    self._lives[name].refused = reason
            self._changed.notify_all()


class Ports:
    """Ports of this machine that are a lab's for as long as it lives.

    A socket that is bound and does not listen keeps a port: a member can listen there, whoever calls a member that has
    ended is refused, and no other program is given the port until it comes back. Only Linux lets two sockets share
    a port in this way; elsewhere a port is one that was free a moment ago.
    """

    def __init__(self) -> None:
        self._held: list[socket.socket] = []

    def take(self) -> int:
        """A port that is free, and from now on this lab's."""
        holder = socket.socket()
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind(("127.0.0.1", 0))
        port: int = holder.getsockname()[1]
        if sys.platform == "linux":
            self._held.append(holder)
        else:
            holder.close()
        return port

    def release(self) -> None:
        """Give all of them back."""
        while self._held:
            self._held.pop().close()


def _made_folder(folder: Path | str | None) -> Path:
    try:
        made = Path(tempfile.mkdtemp(prefix="kodo-lab-")) if folder is None else checked_path(folder).absolute()
        made.mkdir(parents=True, exist_ok=True)
        (made / GUARDIAN_LOG).touch()
    except OSError as error:
        place = tempfile.gettempdir() if folder is None else folder
        raise LabError(f"folder: expected one that can be written to, but {place}: {reason_of(error)}") from error
    return made


def _spawn(folder: Path, order: Iterable[str], **pipes: Any) -> subprocess.Popen[bytes]:
    """Start a guardian, without the options of the environment, and with its words in the folder."""
    if sys.platform == "win32":
        raise LabError("expected a POSIX system, for a lab's signals and pipes; run it on Linux, macOS or in WSL")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("KODO_")}
    command = [sys.executable, "-m", "kodo.guardian", *order]
    given: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, **pipes}
    with (folder / GUARDIAN_LOG).open("ab") as log:
        return subprocess.Popen(command, stderr=log, env=environment, start_new_session=True, **given)


def tail_of(path: Path, lines: int | None = None, start: int = 0) -> str:
    """The last lines of a file, or all of it, from a byte on."""
    with path.open("rb") as file:
        file.seek(start)
        found = file.read().decode(errors="replace").splitlines()
    return "\n".join(found if lines is None else found[max(0, len(found) - lines) :])


def _plain(options: Mapping[str, Any]) -> dict[str, Any]:
    return {name: str(value) if isinstance(value, Path) else value for name, value in options.items()}


def recorded(setup: Setup) -> dict[str, Any]:
    """A setup as a record keeps it: plain options, and flows that are no function's, which only a member can tell."""
    options = {name: value for name, value in _plain(setup.options).items() if name not in ("cache", "trace")}
    try:
        return json.loads(json.dumps({"options": options, "flows": _plain_flows(setup.loader)}))  # type: ignore[no-any-return]
    except (TypeError, ValueError):
        return {"options": {"connect": list(options.get("connect") or ())}, "flows": None}


def kept_setup(name: str, kind: str, setup: Setup) -> dict[str, Any]:
    """A setup as the file of a lab that is kept has it."""
    try:
        loader = json.loads(json.dumps(setup.loader))
        return {"kind": kind, "options": _plain(setup.options), "loader": loader}
    except (TypeError, ValueError):
        return {"kind": kind, "options": _plain(setup.options), "pickled": _pickled(name, setup.loader)}


def _plain_flows(loader: Any) -> list[Any] | None:
    return list(loader) if isinstance(loader, list | tuple) else [] if loader is None else None


def _pickled(name: str, loader: Any) -> str:
    if isinstance(loader, Pickled):
        return loader.text
    try:
        return base64.b64encode(cloudpickle.dumps(loader)).decode()
    except Exception as error:
        raise LabError(
            f"{name}: expected a loader that can travel to another process, but {error}; "
            "let it open files, locks and connections when it is called"
        ) from error
