"""Scenarios: a simulated mesh as a text, in which each command is followed by what came of it.

```
# Two registries, connected.
add r1 r2
----
r1 started
r2 started

connect r2 r1
----
r2 restarted

settle
----
0.000 r2 -> r1 /connect, delivered
settled after 0.02 s
```

A text is paragraphs, parted by blank lines. A paragraph of lines that begin with `#` is a remark; any other is a
command, and may go on with `----` and what is printed. `run_scenario` plays the commands in one world and writes the
same text with what was printed this time: the difference is the review (the manner of etcd's `testdata`). A message is
printed once, with the moment at which it was sent, by the command during which it became known what became of it.

`COMMANDS` is the language; what a command does not understand is an error with file and line.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from kodo.errors import KodoError, SimulationError
from kodo.plan import seconds
from kodo.sim import wire
from kodo.sim.store import Disk
from kodo.sim.world import IN_FLIGHT, Message, World, key_of, name_of

RULE = "----"


@dataclass(frozen=True, slots=True)
class Paragraph:
    """A command with its words, its line, and what was printed; a remark has no words."""

    line: int
    text: str
    words: tuple[str, ...]
    printed: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class Played:
    """A scenario with what was printed this time, and the line of the first command that printed something else."""

    text: str
    differs: int | None


def parse(text: str, name: str = "scenario") -> list[Paragraph]:
    """The paragraphs of a scenario. Raises `SimulationError` with file and line."""
    paragraphs = []
    for first, lines in _blocks(text):
        if all(line.startswith("#") for line in lines):
            paragraphs.append(Paragraph(first, "\n".join(lines), ()))
            continue
        if len(lines) > 1 and lines[1] != RULE:
            raise SimulationError(
                f"{name}:{first + 1}: expected {RULE} and what is printed after a command, or a blank line"
            )
        words = tuple(lines[0].split())
        if words[0] not in COMMANDS:
            raise SimulationError(f"{name}:{first}: expected one of the commands {', '.join(sorted(COMMANDS))}")
        printed = tuple(lines[2:]) if len(lines) > 1 else None
        paragraphs.append(Paragraph(first, lines[0].strip(), words, printed))
    return paragraphs


def _blocks(text: str) -> Iterator[tuple[int, list[str]]]:
    """The paragraphs as lines, with the number of the first."""
    lines: list[str] = []
    for number, line in enumerate([*text.splitlines(), ""], 1):
        if line.strip():
            lines.append(line.rstrip())
        elif lines:
            yield number - len(lines), lines
            lines = []


def run_scenario(text: str, name: str = "scenario", world: World | None = None) -> Played:
    """Play a scenario, in a new world if none is given. Raises `SimulationError` with file and line."""
    stage = _Stage(World() if world is None else world)
    written, differs = [], None
    for paragraph in parse(text, name):
        if not paragraph.words:
            written.append(paragraph.text)
            continue
        try:
            printed = stage.play(paragraph.words)
        except KodoError as error:
            raise SimulationError(f"{name}:{paragraph.line}: {paragraph.words[0]}: {error}") from error
        written.append("\n".join([paragraph.text, RULE, *printed]))
        if differs is None and paragraph.printed is not None and list(paragraph.printed) != printed:
            differs = paragraph.line
    return Played("\n\n".join(written) + "\n", differs)


class _Stage:
    """The world of a scenario, and what its commands remember."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.copies: dict[str, Disk] = {}
        self.told: Counter[str] = Counter()
        self.flying: list[Message] = []

    def play(self, words: Sequence[str]) -> list[str]:
        """What a command prints: what became of messages meanwhile, then its own words."""
        before = len(self.world.messages)
        said = COMMANDS[words[0]](self, list(words[1:]))
        sent = islice(self.world.messages, before, None)
        known = [*self.flying, *(message for message in sent if message.kind not in wire.HOUSEKEEPING)]
        self.flying = [message for message in known if message.outcome == IN_FLIGHT]
        return [_shown(message) for message in known if message.outcome != IN_FLIGHT] + said


def _shown(message: Message) -> str:
    about = f", {message.nodes} node{'' if message.nodes == 1 else 's'}" if message.nodes else ""
    way = f"{name_of(message.source)} -> {name_of(message.target)}"
    return f"{message.at:.3f} {way} {message.route}{about}, {message.outcome}"


# -- the commands ------------------------------------------------------------------------------------------

Command = Callable[[_Stage, list[str]], list[str]]


def _take(words: list[str], least: int, shape: str, most: int | None = None) -> list[str]:
    if len(words) < least or (most is not None and len(words) > most):
        raise SimulationError(f"expected {shape}")
    return words


def _chance(word: str) -> float:
    try:
        chance = float(word)
    except ValueError:
        chance = -1.0
    if not 0 <= chance <= 1:
        raise SimulationError("expected a chance between 0 and 1, such as 0.3")
    return chance


def _number(word: str) -> int:
    if not word.isdecimal():
        raise SimulationError("expected a whole number, such as 1")
    return int(word)


def _links(stage: _Stage, words: list[str]) -> list[tuple[str, str]]:
    """Links such as `r1->r2`, one way, or `r1-r2`, both."""
    links = []
    for word in words:
        one, way, other = word.partition("->")
        if not way:
            one, way, other = word.partition("-")
        if not (one and other):
            raise SimulationError("expected a link such as r1->r2, or r1-r2 for both ways")
        stage.world.member(one), stage.world.member(other)
        links += [(one, other)] if way == "->" else [(one, other), (other, one)]
    return links


def _add(stage: _Stage, words: list[str], *, provider: bool = False, old: bool = False) -> list[str]:
    """`add r1 r2 connect=r3,r4`: start registries."""
    connect = [name for word in words if "=" in word for name in _setting(word)]
    names = _take([word for word in words if "=" not in word], 1, "names, and maybe connect=NAME,NAME")
    for name in names:
        if old:
            stage.world.add_old(name, connect)
        else:
            stage.world.add(name, connect, provider=provider)
    return [f"{name} started" for name in names]


def _setting(word: str) -> list[str]:
    option, _, value = word.partition("=")
    if option != "connect" or not value:
        raise SimulationError("expected connect=NAME, with commas between several names")
    return value.split(",")


def _provider(stage: _Stage, words: list[str]) -> list[str]:
    """`provider p connect=r1`: start a registry that gives and does not take."""
    return _add(stage, words, provider=True)


def _old(stage: _Stage, words: list[str]) -> list[str]:
    """`old o connect=r1`: start a service that knows the fixed part of the protocol alone."""
    return _add(stage, words, old=True)


def _connect(stage: _Stage, words: list[str]) -> list[str]:
    """`connect r2 r1`: start r2 again, on its disk, with r1 in its `connect`."""
    name, *others = _take(words, 2, "a service, and those it is to connect with")
    stage.world.connect(name, *others)
    return [f"{name} restarted"]


def _register(stage: _Stage, words: list[str]) -> list[str]:
    """`register r1 n1 a b`: node n1 registers with r1, with the flows a and b."""
    name, node, *flows = _take(words, 2, "a registry, a node, and its flows")
    return [f"{name} says: {line}" for line in stage.world.register(name, node, flows)]


def _node(stage: _Stage, words: list[str]) -> list[str]:
    """`node n1 connect=r1 a b`: start a node, which registers with r1 and beats."""
    connect = [name for word in words if "=" in word for name in _setting(word)]
    name, *flows = _take([word for word in words if "=" not in word], 1, "a node, connect=NAME, and its flows")
    stage.world.add(name, connect, registry=False, flows=flows)
    return [f"{name} started"]


def _leave(stage: _Stage, words: list[str]) -> list[str]:
    """`leave r1`: r1 leaves the mesh; it goes on by itself."""
    (name,) = _take(words, 1, "a service", 1)
    stage.world.leave(name)
    return []


def _cut(stage: _Stage, words: list[str]) -> list[str]:
    """`cut r1->r2`, or `cut r1-r2` for both ways: nothing passes on these links."""
    for one, other in _links(stage, _take(words, 1, "links such as r1->r2")):
        stage.world.faults.cuts.add((key_of(one), key_of(other)))
    return []


def _partition(stage: _Stage, words: list[str]) -> list[str]:
    """`partition r1,r2 r3`: cut every link between the groups."""
    groups = [word.split(",") for word in _take(words, 2, "two groups or more, such as r1,r2 r3")]
    stage.world.faults.partition(*([stage.world.member(name).key for name in group] for group in groups))
    return []


def _heal(stage: _Stage, words: list[str]) -> list[str]:
    """`heal`: end every fault of the links; the latency stays."""
    _take(words, 0, "nothing more", 0)
    stage.world.faults.heal()
    return []


def _drop(stage: _Stage, words: list[str]) -> list[str]:
    """`drop r1->r2 1`: the next request on that link is lost; `drop answer r2->r1 1`: the next answer."""
    faults = stage.world.faults
    drops = faults.drops
    if words[:1] == ["answer"]:
        words, drops = words[1:], faults.answer_drops
    link, number = _take(words, 2, "a link and a number, such as r1->r2 1", 2)
    for one, other in _links(stage, [link]):
        drops[key_of(one), key_of(other)] = _number(number)
    return []


def _set(field: str) -> Command:
    """A command that sets a chance of `Faults`."""

    def command(stage: _Stage, words: list[str]) -> list[str]:
        (word,) = _take(words, 1, "a chance, such as 0.3", 1)
        setattr(stage.world.faults, field, _chance(word))
        return []

    command.__doc__ = f"`{field.replace('_', '-')} 0.3`: set this chance for every message."
    return command


def _latency(stage: _Stage, words: list[str]) -> list[str]:
    """`latency 10ms 200ms`: how long a message takes, at least and at most."""
    least, most = _take(words, 2, "two times, such as 10ms 200ms", 2)
    if seconds(least) > seconds(most):
        raise SimulationError(f"expected the least first, not {least} before {most}")
    stage.world.faults.latency = (seconds(least), seconds(most))
    return []


def _slow(stage: _Stage, words: list[str]) -> list[str]:
    """`slow r1 3s`: r1 takes that much longer to answer."""
    name, time = _take(words, 2, "a service and a time, such as r1 3s", 2)
    stage.world.faults.slow[stage.world.member(name).key] = seconds(time)
    return []


def _crash(stage: _Stage, words: list[str]) -> list[str]:
    """`crash r1`: r1 stops at once; `crash r1 lose`: and its disk is gone."""
    name, *how = _take(words, 1, "a service, and maybe lose", 2)
    if how not in ([], ["lose"]):
        raise SimulationError("expected a service, and maybe lose")
    stage.world.crash(name, keep_disk=not how)
    return []


def _copy(stage: _Stage, words: list[str]) -> list[str]:
    """`copy r1`: put a copy of the disk of r1 aside, for `restart r1 copy`."""
    (name,) = _take(words, 1, "a service", 1)
    stage.copies[name] = stage.world.copy_disk(name)
    return []


def _restart(stage: _Stage, words: list[str]) -> list[str]:
    """`restart r1`: r1 starts again on its disk; `restart r1 copy`: on the copy that was put aside."""
    name, *how = _take(words, 1, "a service, and maybe copy", 2)
    if how and (how != ["copy"] or name not in stage.copies):
        raise SimulationError("expected a service, and maybe copy, if its disk was copied before")
    stage.world.restart(name, disk=stage.copies[name] if how else None)
    return [f"{name} restarted"]


def _pause(stage: _Stage, words: list[str]) -> list[str]:
    """`pause r1`: r1 stands still."""
    for name in _take(words, 1, "a service"):
        stage.world.pause(name)
    return []


def _resume(stage: _Stage, words: list[str]) -> list[str]:
    """`resume r1`: r1 goes on, with all that came meanwhile."""
    for name in _take(words, 1, "a service"):
        stage.world.resume(name)
    return []


def _clock(stage: _Stage, words: list[str]) -> list[str]:
    """`clock r1 -1h`: the clock of r1 is that far ahead, or behind."""
    name, time = _take(words, 2, "a service and a time, such as r1 -1h", 2)
    stage.world.set_clock(name, seconds(time))
    return []


def _run(stage: _Stage, words: list[str]) -> list[str]:
    """`run 5s`: let that much time pass."""
    (time,) = _take(words, 1, "a time, such as 5s", 1)
    stage.world.run(seconds(time))
    return []


def _settle(stage: _Stage, words: list[str]) -> list[str]:
    """`settle` or `settle 20s`: run until nothing is on its way or owed, and say whether all agree."""
    within = seconds(_take(words, 0, "nothing, or a time", 1)[0]) if words else 60.0
    try:
        took = stage.world.settle(within)
    except SimulationError as error:
        return [str(error)]
    return [f"settled after {took:.2f} s", *stage.world.missing()]


def _list(stage: _Stage, words: list[str]) -> list[str]:
    """`list r1`: what r1 lists; without a name all of them, those that list the same in one line."""
    names = words or [name_of(key) for key in stage.world.members]
    alike: dict[str, list[str]] = {}
    for name in names:
        flows = [f"{name_of(row['node'])}{row['url']}" for row in stage.world.listing(name)]
        alike.setdefault(" ".join(flows) or "nothing", []).append(name)
    return [f"{', '.join(same)}: {flows}" for flows, same in alike.items()]


def _messages(stage: _Stage, words: list[str]) -> list[str]:
    """`messages`: how many messages of each kind were sent since the last time, housekeeping apart."""
    _take(words, 0, "nothing more", 0)
    sent = stage.world.sent - stage.told
    stage.told = stage.world.sent.copy()
    counted = [f"{kind}: {number}" for kind, number in sorted(sent.items()) if kind not in wire.HOUSEKEEPING]
    return counted or ["none"]


def _effects(stage: _Stage, words: list[str]) -> list[str]:
    """`effects`: what the faults did so far."""
    _take(words, 0, "nothing more", 0)
    return [f"{name}: {number}" for name, number in sorted(stage.world.effects.items()) if number]


COMMANDS: dict[str, Command] = {
    "add": _add,
    "provider": _provider,
    "old": _old,
    "connect": _connect,
    "register": _register,
    "node": _node,
    "leave": _leave,
    "cut": _cut,
    "partition": _partition,
    "heal": _heal,
    "drop": _drop,
    "loss": _set("loss"),
    "answer-loss": _set("answer_loss"),
    "doubles": _set("doubles"),
    "reorder": _set("reorder"),
    "latency": _latency,
    "slow": _slow,
    "crash": _crash,
    "copy": _copy,
    "restart": _restart,
    "pause": _pause,
    "resume": _resume,
    "clock": _clock,
    "run": _run,
    "settle": _settle,
    "list": _list,
    "messages": _messages,
    "effects": _effects,
}
"""The language of scenarios: what each word does is told by its function."""
