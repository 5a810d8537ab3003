"""The same nodes register again and again with one registry: does its memory stay flat, and its file?

`python -m tests.benchmarks soak --registrations 1000000`; Ctrl-C ends it, and tells what there is so far.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

from tests.benchmarks import data, report
from tests.benchmarks.load import Connection, LoadError, Request
from tests.benchmarks.services import ROOT, Bench, Scale, Service

SHOWN = 20
"""Lines of the printed curve."""
TELLING = 8
"""Samples below which nothing is said of how it goes on: the first quarter only fills the registry."""


@dataclass(frozen=True)
class Sample:
    """How it stood after so many registrations: seconds since the begin, MiB in memory, in the file and its log."""

    registrations: int
    seconds: float
    memory: float
    file: float


def main(arguments: Sequence[str]) -> int:
    """Register, sample, and print the curve."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks soak", description=__doc__)
    parser.add_argument("--registrations", type=int, default=1_000_000, help="in all (default: 1,000,000)")
    parser.add_argument("--nodes", type=int, default=10_000, help="different nodes, ten flows each (default: 10,000)")
    parser.add_argument("--clients", type=int, default=16, help="processes that register (default: 16)")
    parser.add_argument("--every", type=float, default=5, help="seconds between samples (default: 5)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every sample there")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw the curve there")
    given = parser.parse_args(arguments)
    if min(given.registrations, given.nodes, given.clients) < 1:
        parser.error("expected at least one registration, node and client")
    where = report.circumstances(ROOT, Scale(flows=given.nodes * data.FLOWS_PER_NODE))
    samples: list[Sample] = []
    complete = True
    with TemporaryDirectory(prefix="kodo-soak-") as folder, Bench(Path(folder), Scale()) as bench:
        try:
            for sample in soak(bench, given.registrations, given.nodes, given.clients, given.every):
                samples.append(sample)
                end = "\r" if sys.stderr.isatty() else "\n"
                _tell(f"{sample.registrations:,} registrations, {sample.memory:.1f} MiB", end)
        except (KeyboardInterrupt, LoadError, OSError) as error:
            complete = False
            _tell(f"\nended early: {type(error).__name__} {error}")
    report.console().print(f"\n{report.headline(where)}\n")
    report.console().print(curve(samples), markup=False, soft_wrap=True)
    if given.json:
        told = {"circumstances": where, "complete": complete, "samples": [asdict(sample) for sample in samples]}
        given.json.write_text(json.dumps(told, indent=2))
    if given.plot and samples:
        plot(samples, given.plot)
    return int(not complete)


def _tell(text: str, end: str = "\n") -> None:
    print(text, end=end, file=sys.stderr, flush=True)  # noqa: T201, beside the table


def soak(bench: Bench, registrations: int, nodes: int, clients: int, every: float) -> Iterator[Sample]:
    """Samples until all is registered. Raises `LoadError` when a registration is not answered with 200."""
    service = bench.registry()
    cache = Path(service.option("--cache"))
    began = time.perf_counter()
    with service, _registering(service.url, registrations, nodes, clients) as (processes, done):
        while any(process.is_alive() for process in processes):
            yield _sample(service, cache, sum(done), time.perf_counter() - began)
            _wait(processes, every)
        if any(process.exitcode for process in processes):
            raise LoadError("a client ended early")
        yield _sample(service, cache, sum(done), time.perf_counter() - began)


def _wait(processes: Sequence[BaseProcess], seconds: float) -> None:
    end = time.perf_counter() + seconds
    for process in processes:
        process.join(max(0.0, end - time.perf_counter()))


def _sample(service: Service, cache: Path, registrations: int, seconds: float) -> Sample:
    files = [cache, cache.with_name(f"{cache.name}-wal")]
    size = sum(file.stat().st_size for file in files if file.exists())
    return Sample(registrations, seconds, service.memory(), size / 2**20)


@contextmanager
def _registering(url: str, registrations: int, nodes: int, clients: int) -> Iterator[Any]:
    """Processes that share the nodes and the registrations, and how many each of them has had answered."""
    context = multiprocessing.get_context("fork")
    done = context.Array("q", clients, lock=False)
    shares = [registrations // clients + (at < registrations % clients) for at in range(clients)]
    processes = [
        context.Process(target=_register, args=(url, range(at, nodes, clients), share, done, at), daemon=True)
        for at, share in enumerate(shares)
    ]
    for process in processes:
        process.start()
    try:
        yield processes, done
    finally:
        for process in processes:
            process.terminate()
            process.join()


def _register(url: str, numbers: Sequence[int], registrations: int, done: Any, at: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the main process says when it is over
    raws = [Request("/register", json.dumps(data.node(number))).raw() for number in numbers]
    with Connection(url) as connection:
        for number in range(registrations):
            connection.ask(raws[number % len(raws)])
            done[at] = number + 1


def drift(samples: Sequence[Sample], name: str) -> float:
    """By which part the median of the last quarter exceeds that of the second: the first one fills the registry."""
    quarter = max(1, len(samples) // 4)
    early, late = samples[quarter : 2 * quarter] or samples, samples[-quarter:]
    return median(getattr(one, name) for one in late) / median(getattr(one, name) for one in early) - 1


def curve(samples: Sequence[Sample]) -> str:
    """The curve as a table in Markdown, and how far it drifts."""
    if not samples:
        return "nothing was measured"
    step = max(1, len(samples) // SHOWN)
    shown = [*samples[:-1:step], samples[-1]]
    lines = [
        "| registrations | seconds | a second | memory, MiB | file and its log, MiB |",
        "| --: | --: | --: | --: | --: |",
    ]
    before = Sample(0, 0.0, 0.0, 0.0)
    for one in shown:
        rate = (one.registrations - before.registrations) / max(one.seconds - before.seconds, 1e-9)
        lines.append(
            f"| {one.registrations:,} | {one.seconds:,.0f} | {rate:,.0f} | {one.memory:.1f} | {one.file:.1f} |"
        )
        before = one
    most = max(one.memory for one in samples)
    if len(samples) < TELLING:
        lines += ["", f"Too few samples to tell whether that is flat; memory was {most:.1f} MiB at most."]
        return "\n".join(lines)
    moved = f"memory moved by {drift(samples, 'memory'):+.1%} and the file by {drift(samples, 'file'):+.1%}"
    lines += ["", f"From the second quarter to the last, {moved}; memory was {most:.1f} MiB at most."]
    return "\n".join(lines)


def plot(samples: Sequence[Sample], path: Path) -> None:
    """Draw memory and file by the number of registrations, from zero."""
    with report.drawing(path, 2, "the same nodes register again and again") as panels:
        for panel, name, title in zip(
            panels, ("memory", "file"), ("resident memory, MiB", "file and its log, MiB"), strict=True
        ):
            panel.plot([one.registrations for one in samples], [getattr(one, name) for one in samples], lw=1.4)
            panel.set(title=title, xlabel="registrations")
            panel.set_ylim(bottom=0)
            panel.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
            panel.grid(alpha=0.25)
            panel.spines[["top", "right"]].set_visible(False)
