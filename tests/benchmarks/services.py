"""Processes under measurement: kodo from some tree, the floors, etcd; started, asked, weighed and ended."""

from __future__ import annotations

import json
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any, Self

from tests.benchmarks.load import Connection, LoadError, NotReadyError, Request

ROOT = Path(__file__).parents[2]
PATIENCE = 120.0
"""Seconds after which a service that does not answer, or an answer that does not come, is a failure."""
ENDING = 15.0


class UnmeasuredError(Exception):
    """This cannot be measured here; the text says why."""


@dataclass(frozen=True)
class Scale:
    """How much is measured: `flows` held, `rounds` of each side, `seconds` of load in a round.

    Rows that take long have fewer `samples` (registrations along a `chain`, one by one, whose registries have so many
    flows `carried` with them), `nodes` (that come back), `members` of a lab and `simulated` registries in a quick run.
    """

    flows: int = 100_000
    rounds: int = 5
    seconds: float = 1.0
    members: int = 24
    chain: int = 8
    samples: int = 10
    nodes: int = 1_000
    simulated: int = 1_000
    carried: int = 10_000

    def fill(self, text: str) -> str:
        """A text about the work with its numbers in their places."""
        said = asdict(self)
        return text.format(**{name: f"{value:,}" for name, value in said.items()})

    def reduced(self) -> str:
        """What is smaller here than in a full run, in words; nothing if it is one."""
        full = asdict(Scale())
        less = [f"{name} {value:,} of {full[name]:,}" for name, value in asdict(self).items() if value < full[name]]
        return f"reduced: {', '.join(less)}" if less else ""


QUICK = Scale(5_000, rounds=2, seconds=0.3, members=8, chain=4, samples=3, nodes=300, simulated=300, carried=2_000)
"""Every row within three minutes: whether all works, and roughly how well."""


class Service:
    """A process that serves HTTP at `url`; `path` is what it answers with 200 when it is up and `whole` holds."""

    def __init__(self, command: Sequence[str], url: str, log: Path, path: str = "/flows") -> None:
        self.url = url
        self._command = command
        self._log = log
        self._path = path
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: Connection | None = None

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self, whole: Callable[[Any], bool] = bool, pause: float = 0.002) -> float:
        """Start it; the seconds until the first answer of which `whole` is true, asked for with pauses."""
        with self._log.open("ab") as log:
            began = time.perf_counter()
            self._process = subprocess.Popen(self._command, cwd=self._log.parent, stdout=log, stderr=log)
        self._connect(began)
        try:
            self.until(lambda: self._answers(whole), f"{self.url} to answer", pause)
        except (OSError, LoadError) as error:
            raise LoadError(f"{error}; the log: {self._log.read_text()[-800:]}") from error
        return time.perf_counter() - began

    def _answers(self, whole: Callable[[Any], bool]) -> bool:
        try:
            return whole(self.get(self._path))
        except NotReadyError:
            return False

    def _connect(self, began: float) -> None:
        while True:
            try:
                self._connection = Connection(self.url, PATIENCE)
                return
            except OSError:
                self._look(began)
                time.sleep(0.002)

    def _look(self, began: float) -> None:
        assert self._process is not None
        if self._process.poll() is not None or time.perf_counter() > began + PATIENCE:
            raise LoadError(f"{' '.join(self._command[-6:])} did not start: {self._log.read_text()[-800:]}")

    def option(self, name: str) -> str:
        """What it was started with as this option."""
        return self._command[self._command.index(name) + 1]

    def stop(self) -> None:
        """End it, and wait until it has ended."""
        if self._connection is not None:
            self._connection.__exit__()
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(ENDING)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._process = self._connection = None

    def ask(self, request: Request) -> Any:
        """The JSON of an answer, over the one kept connection."""
        assert self._connection is not None
        return json.loads(self._connection.ask(request.raw()))

    def get(self, path: str) -> Any:
        """The JSON at a path."""
        return self.ask(Request(path))

    def until(self, holds: Callable[[], object], what: str, pause: float = 0.002) -> None:
        """Wait until `holds()`. Raises `LoadError` when that takes too long."""
        deadline = time.perf_counter() + PATIENCE
        while not holds():
            if time.perf_counter() > deadline:
                raise LoadError(f"waited {PATIENCE:g} s in vain for {what}")
            time.sleep(pause)

    def until_idle(self) -> None:
        """Wait until nothing is queued or on its way to another service."""
        self.until(lambda: self.get("/")["idle"], f"{self.url} to be idle")

    def until_connected(self) -> None:
        """Wait until the connections that it opens stand."""
        self.until(lambda: all(self.get("/")["connection"].values()), f"{self.url} to be connected")

    def until_lists(self, flows: int) -> None:
        """Wait until so many flows are listed."""
        self.until(lambda: self.get("/flows?pp=1")["total"] == flows, f"{self.url} to list {flows} flows", 0.02)

    def told(self, number: signal.Signals, report: Path) -> float:
        """The figure that it writes to a file when it gets this signal."""
        assert self._process is not None
        self._process.send_signal(number)
        self.until(lambda: report.exists() and report.read_text(), f"{report} to be written")
        return float(report.read_text())

    def memory(self, name: str = "VmRSS") -> float:
        """The MiB that are resident now or, as `VmHWM`, were at most."""
        assert self._process is not None
        status = Path(f"/proc/{self._process.pid}/status")
        if not status.exists():
            raise UnmeasuredError("memory is read from /proc, which is not here")
        line = next(line for line in status.read_text().splitlines() if line.startswith(f"{name}:"))
        return int(line.split()[1]) / 1024


class Bench:
    """What is measured from one tree of the source, at one scale; what it starts ends with it.

    Caches are filled once and copied. A cache belongs to one url, therefore two registries that hold equally many flows
    of their own never run at once: the one that rows share (`listing`) ends before another one is started.
    """

    def __init__(self, folder: Path, scale: Scale, tree: Path = ROOT) -> None:
        self.scale = scale
        self.tree = tree
        self._folder = folder
        self._numbers = count()
        self._caches: dict[int, tuple[Path, str]] = {}
        self._shared: dict[int, Service] = {}
        self._told: dict[str, list[Any]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.end_shared()

    def at(self, flows: int) -> Bench:
        """The same with another number of flows, over the same caches."""
        other = Bench(self._folder, replace(self.scale, flows=flows), self.tree)
        other._numbers, other._caches, other._shared = self._numbers, self._caches, self._shared
        other._told = self._told
        return other

    def path(self, name: str) -> Path:
        """A path that nobody has used yet."""
        return self._folder / f"{next(self._numbers)}-{name}"

    # -- kodo ----------------------------------------------------------------------------------------------------------

    def registry(self, holding: int = 0, connect: str | None = None, *flags: str, url: str | None = None) -> Service:
        """A registry that is not started yet, with so many flows in its cache; `url` is for one that has none."""
        cache, own = self._cache(holding)
        url = url or own
        options = [*("--url", url), *("--cache", str(cache)), *(("--connect", connect) if connect else ()), *flags]
        command = self.python("-m", "kodo", "serve", "--no-node", "--organization", "registry", *options)
        return Service(command, url, self.path("registry.log"))

    def _cache(self, flows: int) -> tuple[Path, str]:
        """A cache for one service, and its url."""
        if not flows:
            return self.copied(0), f"http://127.0.0.1:{free_port()}"
        if flows in self._shared:
            self._shared.pop(flows).stop()
        return self.copied(flows), self.filled(flows)[1]

    def filled(self, flows: int) -> tuple[Path, str]:
        """A cache that holds so many flows, filled once, and the url of its registry. To be read, not to be used."""
        if flows not in self._caches:
            path, url = self.path(f"filled-{flows}.db"), f"http://127.0.0.1:{free_port()}"
            self.subject("fill", path=str(path), url=url, flows=flows)
            self._caches[flows] = path, url
        return self._caches[flows]

    def copied(self, flows: int) -> Path:
        """A copy of the cache that holds so many flows; where there are none, a path for one."""
        copy = self.path("cache.db")
        if flows:
            shutil.copyfile(self.filled(flows)[0], copy)
        return copy

    def told_again(self, name: str, holding: int, **given: Any) -> Any:
        """What a function of `subjects` returns that works on two caches with so many flows."""
        url = self.filled(holding)[1] if holding else "http://127.0.0.1:2"
        record, replay = (self.copied(holding) for _ in range(2))
        told = self.subject(name, record=str(record), replay=str(replay), url=url, **given)
        record.unlink()
        replay.unlink()
        return told

    def listing(self, flows: int | None = None) -> Service:
        """A registry that lists so many flows, shared by all that only read."""
        flows = self.scale.flows if flows is None else flows
        if flows not in self._shared:
            service = self.registry(flows)
            self._shared[flows] = service
            service.start(lambda page: page["total"] == flows)
        return self._shared[flows]

    def end_shared(self) -> None:
        """End what rows share."""
        while self._shared:
            self._shared.popitem()[1].stop()

    def subject(self, name: str, **given: Any) -> Any:
        """What a function of `subjects` returns, in a process of its own."""
        command = self.python("-m", "tests.benchmarks.subjects", name, json.dumps(given))
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=self._folder)
        if done.returncode:
            raise LoadError(f"{name}: {done.stderr[-800:]}")
        return json.loads(done.stdout)

    def told(self, round_number: int, name: str, **given: Any) -> Any:
        """What `subject` returned in this round: asked once, for all rows that show a part of it."""
        told = self._told.setdefault(f"{name} {given}", [])
        while len(told) <= round_number:
            told.append(self.subject(name, **given))
        return told[round_number]

    def watched(self, report: Path, connect: str) -> Service:
        """A registry whose event loop is watched; `report` says, when it is told to, how long it was held."""
        url = f"http://127.0.0.1:{free_port()}"
        given = {"url": url, "connect": connect, "node": False, "cache": str(self.path("cache.db"))}
        command = self.python("-m", "tests.benchmarks.subjects", "held", json.dumps({"report": str(report), **given}))
        return Service(command, url, self.path("held.log"))

    def python(self, *args: str) -> list[str]:
        """A command that runs Python on this tree."""
        # The installed kodo may be that of another tree: what stands in PYTHONPATH comes first. And its modules are
        # compiled once, as those of whatever is installed are, not anew at each start.
        return ["env", "-u", "PYTHONDONTWRITEBYTECODE", f"PYTHONPATH={self.tree}", sys.executable, *args]

    # -- what it is measured against -----------------------------------------------------------------------------------

    def floor(self, name: str, *args: str, path: str = "/flows") -> Service:
        """One of the floors, not started yet."""
        port = free_port()
        command = self.python("-m", "tests.benchmarks.floors", name, str(port), *args)
        return Service(command, f"http://127.0.0.1:{port}", self.path(f"floor-{name}.log"), path)

    def relay(self, nodes: int, following: Sequence[str]) -> Service:
        """A relay that does the least of what a registry promises for so many new nodes, not started yet."""
        port = free_port()
        caches = {name: str(self.path(f"{name}.db")) for name in ("record", "replay")}
        given = {"port": port, **caches, "nodes": nodes, "following": following}
        command = self.python("-m", "tests.benchmarks.subjects", "relay", json.dumps(given))
        return Service(command, f"http://127.0.0.1:{port}", self.path("relay.log"))

    def etcd(self) -> Service:
        """An empty etcd, not started yet, for its JSON gateway. Raises `UnmeasuredError` where there is none."""
        etcd = shutil.which("etcd")
        if etcd is None:
            raise UnmeasuredError("etcd is not installed (Debian: etcd-server)")
        url, peer = (f"http://127.0.0.1:{free_port()}" for _ in range(2))
        here = ("--listen-client-urls", url, "--advertise-client-urls", url, "--listen-peer-urls", peer)
        there = ("--initial-advertise-peer-urls", peer, "--initial-cluster", f"default={peer}")
        command = [etcd, "--data-dir", str(self.path("etcd")), *here, *there]
        return Service(command, url, self.path("etcd.log"), "/health")


def free_port() -> int:
    """A port that was free a moment ago, below those that the system gives to clients: it has to stay free."""
    while True:
        port = random.randrange(20_000, 32_000)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
