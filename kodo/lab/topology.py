"""The topology of a mesh: a graph of what members answered, its picture, and the same as Mermaid text.

Drawn is what `/map` says, not what the lab planned: who registered where, which registries are connected, whether a
connection stands, strangers that someone connected behind the lab's back, and the faults that the lab put between them.
The one importer of networkx.

- Positions are inches, as complex numbers. Who has a place keeps it; who comes finds one by stress (two
  links are twice as long as one), and is then pushed off what it would cover, its label included. Nothing is
  random.
- A link bends where it would run through a member that it does not touch.
- Kinds differ in shape as well as in colour. What does not answer is grey, what does not stand is dashed.
- More than `CROWD_FROM` members are laid out by `crowd.py`, and have no Mermaid text in the bundle. Named are the few
  that stand out, by their kind or their state; a line beneath says so, and where all names are.
- A link that is cut is red and dashed, with a cross; latency and loss stand beside theirs, where there is room.
  Faults that are on no link stand in words beneath the picture.
- The bundle holds the Mermaid text, sorted, under a type that JupyterLab does not draw. It would draw
  `text/vnd.mermaid` in place of the picture, and write its drawing into the notebook, where a test finds it.
"""

from __future__ import annotations

import re
from cmath import rect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import combinations
from math import pi
from typing import Any

import networkx as nx  # type: ignore[import-untyped]

from kodo.client import View
from kodo.lab.crowd import crowd_places
from kodo.lab.drawing import (
    BROKEN,
    CARD,
    FAINT,
    INK,
    PALE,
    QUIET,
    SLOW,
    SLOW_INK,
    Affine2D,
    Figure,
    Line2D,
    Picture,
    card,
    label_of,
    width_of,
)
from kodo.lab.faults import Effect, Held, Way, summed
from kodo.lab.naming import Names, numbered, tally

MERMAID = "text/x-mermaid"

LINK = 1.35
"""Inches between two that are linked."""
CROWD = 12
"""How many find room around one at that length."""
CROWD_FROM = 60
"""Members up to which each is labelled."""
FEW = 6
"""Members of a kind and state that are labelled in a crowd."""
CROWD_SIDE = 8.5
"""Inches of the picture of a crowd."""
PAGE, CLOSEST = 7.5, 0.65
"""Inches of the members that a notebook shows at their size, and the share of their distances that is kept for it."""
STRANGERS = 2 * LINK
"""Inches between two that nothing links."""
GOLDEN = pi * (3 - 5**0.5)
ROUNDS = 400
MARGIN = 0.35
LEGEND, BESIDE = 0.42, 0.17
MOST_BESIDE = 4
"""Faults that are told in words beneath the picture."""
CLEAR = 0.26
"""Inches that a link keeps from the middle of a member that it passes."""
MANY_LINKS = 120
"""Links up to which each bends for itself; of more nobody can follow one."""
BENDS = [0j, *(bend * side for bend in (0.3, 0.45, 0.6, 0.8) for side in (1j, -1j))]
"""Inches aside that are tried for the middle of a link."""
PLACES = 50
"""Places on a link that are tried for its words."""
WORDS = 8
"""Points of the words on a link."""
CROSS = 0.06
"""Inches that a cross takes to each side."""


@dataclass(frozen=True, slots=True)
class Look:
    """How a kind is drawn: marker, its size in points, colour, and size of the label in points."""

    marker: str
    size: float
    colour: str
    label: float


LOOKS = {
    "registry": Look("s", 19, "#2f5d8c", 9.5),
    "provider": Look("D", 16.5, "#8a5a8f", 9.5),
    "node": Look("o", 14, "#d39a3d", 8.5),
}
REGISTER, CONNECT = "#b3bdc6", "#5f7284"


@dataclass(frozen=True, slots=True)
class Seen:
    """A member of the mesh, and its `/map` if it answered."""

    name: str
    url: str
    kind: str
    view: View | None
    paused: bool = False


# -- the graph ---------------------------------------------------------------------------------------------


def graph_of(seen: Sequence[Seen]) -> nx.DiGraph:
    """The mesh as the members see it: `kind`, `answers` and `paused` on each, `kind` and `stands` on each link."""
    graph = nx.DiGraph()
    names = Names({member.name: member.url for member in seen})
    for member in seen:
        graph.add_node(member.name, kind=member.kind, answers=member.view is not None, paused=member.paused)
    for member in seen:
        if member.view is not None:
            _add_links(graph, member, member.view, names)
    _add_nodes_of_strangers(graph, seen, names)
    return graph


def _add_links(graph: nx.DiGraph, member: Seen, view: View, names: Names) -> None:
    for url, since in view["connection"].items():
        _add_stranger(graph, names[url], "registry")
        _link(graph, member.name, names[url], stands=since is not None)
    for url, peer in view["providers"].items():
        # To a provider no peer feeds anything: only others can tell one.
        gives_only = not peer["feed"] and member.kind == "registry"
        _add_stranger(graph, names[url], "provider" if gives_only else "registry")
        _link(graph, names[url], member.name, stands=True)
    if member.kind != "node":
        for url in view["nodes"]:
            _add_stranger(graph, names[url], "node")
            _link(graph, names[url], member.name, stands=True)


def _add_nodes_of_strangers(graph: nx.DiGraph, seen: Sequence[Seen], names: Names) -> None:
    """Nodes that are known through a registry outside the lab alone: where they registered nobody here can say."""
    for member in seen:
        peers = member.view["providers"] if member.view is not None else {}
        for url, peer in sorted(peers.items()):
            for node in sorted(peer["nodes"]) if names[url] == url else ():
                if names[node] not in graph:
                    _add_stranger(graph, names[node], "node")
                    _link(graph, names[node], url, stands=True)


def _add_stranger(graph: nx.DiGraph, name: str, kind: str) -> None:
    if name not in graph:
        graph.add_node(name, kind=kind, answers=True, paused=False)


def _link(graph: nx.DiGraph, one: str, other: str, *, stands: bool) -> None:
    """One link between two, in the direction in which it was first seen."""
    if one == other or graph.has_edge(one, other) or graph.has_edge(other, one):
        return
    kind = "register" if "node" in (graph.nodes[one]["kind"], graph.nodes[other]["kind"]) else "connect"
    graph.add_edge(one, other, kind=kind, stands=stands)


# -- places ------------------------------------------------------------------------------------------------


def place(graph: nx.DiGraph, known: Mapping[str, complex]) -> dict[str, complex]:
    """A place for each of the graph. Those that are known stay where they are, as far as there is room."""
    if len(graph) > CROWD_FROM:
        links = {name: sorted(set(nx.all_neighbors(graph, name))) for name in sorted(graph)}
        # Of a mesh that was small until now the places do not fit: then all are laid out anew.
        return crowd_places(links, known if len(known) > CROWD_FROM else {}, CROWD_SIDE)
    ways = dict(nx.all_pairs_dijkstra_path_length(graph.to_undirected(), weight=partial(_length, graph)))
    new = sorted(set(graph) - set(known), key=lambda name: (-graph.degree(name), name))
    places = {name: at for name, at in known.items() if name in graph}
    fresh = not places
    for number, name in enumerate(new):
        places[name] = _first_place(graph, name, number, places)
    for _ in range(ROUNDS):
        before = dict(places)
        for name in new:
            places[name] = _less_stress(name, places, ways[name])
        if all(abs(places[name] - before[name]) < LINK / 10000 for name in new):
            break
    if fresh:
        places = _closer(_lying(places))
    return _apart(graph, places, set(new))


def _length(graph: nx.DiGraph, one: str, other: str, _: object) -> float:
    """How long a link wants to be: longer where many meet, so that all have room around it."""
    crowd: int = max(graph.degree(one), graph.degree(other))
    return LINK * max(1.0, crowd / CROWD)


def _first_place(graph: nx.DiGraph, name: str, number: int, places: Mapping[str, complex]) -> complex:
    near = sorted(set(nx.all_neighbors(graph, name)) & set(places))
    start = places[near[0]] if near else sum(places.values()) / max(1, len(places))
    return start + LINK * (0.4 + 0.1 * number) * _direction(GOLDEN * number)


def _direction(angle: float) -> complex:
    return rect(1, angle)


def _less_stress(name: str, places: Mapping[str, complex], ways: Mapping[str, float]) -> complex:
    """Where one wants to be: at its distance from every other, the near ones counting most."""
    here, pull, weights = places[name], 0j, 0.0
    for other, there in places.items():
        if other != name:
            wanted = ways.get(other, STRANGERS)
            apart = abs(here - there) or 1e-9
            weight = wanted**-2
            pull += weight * (there + (here - there) / apart * wanted)
            weights += weight
    return pull / weights if weights else here


def _lying(places: Mapping[str, complex]) -> dict[str, complex]:
    """The same, turned so that it is wider than high."""
    middle = sum(places.values()) / max(1, len(places))
    moment = sum((at - middle) ** 2 for at in places.values())
    turn = (abs(moment) / moment) ** 0.5 if abs(moment) > 1e-9 else 1
    return {name: (at - middle) * turn for name, at in places.items()}


def _closer(places: Mapping[str, complex]) -> dict[str, complex]:
    """The same, as close as it takes to be shown at its size, and no closer than names need."""
    across = [at.real for at in places.values()] or [0.0]
    scale = max(CLOSEST, PAGE / max(max(across) - min(across), PAGE))
    return {name: at * scale for name, at in places.items()}


@dataclass(frozen=True, slots=True)
class Box:
    """What a member covers around its place, marker and label: half its width, and how far it goes up and down."""

    half: float
    up: float
    down: float

    def overlap(self, here: complex, other: Box, there: complex) -> tuple[float, float]:
        """How far two boxes reach into each other, across and along; both above 0 when they do."""
        across = self.half + other.half - abs(here.real - there.real)
        along = min(here.imag + self.up, there.imag + other.up) - max(here.imag - self.down, there.imag - other.down)
        return across, along


def box_of(name: str, kind: str) -> Box:
    """The box of a member, with a little room around it."""
    look = LOOKS[kind]
    radius = look.size / 144
    half = max(radius, width_of(label_of(name), look.label) / 2)
    return Box(half + 0.07, radius + 0.06, radius + look.label / 72 + 0.16)


@dataclass(frozen=True, slots=True)
class Wrong:
    """What is wrong with a link, both ways taken together."""

    label: str
    cut: bool

    @property
    def lines(self) -> list[str]:
        """The label, in lines that are short enough to stand beside a link."""
        return re.split(", |; ", self.label)


def wrong_with(one: str, other: str, faults: Mapping[Way, Effect]) -> Wrong | None:
    """The faults on a link: `cut`, `200 ms`, or with the way where it is wrong, `200 ms to registry2`."""
    there, back = faults.get((one, other)), faults.get((other, one))
    if there is None and back is None:
        return None
    words = {f"{effect.label} to {to}" for effect, to in ((there, other), (back, one)) if effect and effect.label}
    if there == back and there is not None:
        words = {there.label} - {""}
    cut = any(effect is not None and effect.cut for effect in (there, back))
    return Wrong("; ".join(sorted(words)), cut) if words else None


def bends_of(graph: nx.DiGraph, places: Mapping[str, complex]) -> dict[Way, complex]:
    """For each link how far aside its middle is drawn, so that it runs through no member."""
    links = sorted(graph.edges)
    if len(links) > MANY_LINKS or len(places) > CROWD_FROM:
        return dict.fromkeys(links, 0j)
    return dict(zip(links, _bends(tuple(links), tuple(sorted(places.items()))), strict=True))


@lru_cache(maxsize=8)
def _bends(links: tuple[Way, ...], places: tuple[tuple[str, complex], ...]) -> list[complex]:
    at = dict(places)
    return [_bend(at[one], at[other], [at[name] for name in at if name not in (one, other)]) for one, other in links]


def _bend(one: complex, other: complex, others: Sequence[complex]) -> complex:
    """The least bend that keeps clear of others, or else the one that keeps furthest from them."""
    length = abs(other - one) or 1
    way = (other - one) / length
    best, room = 0j, 0.0
    for bend in (way * aside for aside in BENDS if abs(aside) < 0.45 * length):
        there = min([abs(at - point) for point in curve(one, other, bend, 16) for at in others], default=CLEAR)
        if there >= CLEAR:
            return bend
        if there > room:
            best, room = bend, there
    return best


def curve(one: complex, other: complex, bend: complex, steps: int) -> list[complex]:
    """Places along a link whose middle stands aside."""
    return [on_curve(one, other, bend, step / steps) for step in range(steps + 1)]


def on_curve(one: complex, other: complex, bend: complex, share: float) -> complex:
    """The place on a link after a share of its way."""
    return one + (other - one) * share + bend * 4 * share * (1 - share)


def _apart(graph: nx.DiGraph, places: dict[str, complex], new: set[str]) -> dict[str, complex]:
    """Push boxes off each other until none covers another, the new ones first."""
    boxes = {name: box_of(name, graph.nodes[name]["kind"]) for name in places}
    order = sorted(places)
    for _ in range(ROUNDS):
        moved = False
        for one, other in combinations(order, 2):
            across, along = boxes[one].overlap(places[one], boxes[other], places[other])
            if across > 1e-6 and along > 1e-6:
                _push(places, (one, other), (across, along), new)
                moved = True
        if not moved:
            break
    return places


def _push(places: dict[str, complex], pair: tuple[str, str], overlap: tuple[float, float], new: set[str]) -> None:
    one, other = pair
    apart = places[other] - places[one]
    if overlap[0] < overlap[1]:
        step = complex(overlap[0] + 1e-3) * (1 if apart.real >= 0 else -1)
    else:
        step = 1j * (overlap[1] + 1e-3) * (1 if apart.imag >= 0 else -1)
    share = 0.5 + 0.45 * ((other in new) - (one in new))
    places[one] -= step * (1 - share)
    places[other] += step * share


# -- the picture -------------------------------------------------------------------------------------------


class Topology(Picture):
    """The mesh at one moment: `graph`, a picture, and Mermaid text; `faults` is what holds between its members."""

    def __init__(self, graph: nx.DiGraph, places: Mapping[str, complex], held: Sequence[Held] = ()) -> None:
        """`held` are the faults."""
        self.graph = graph
        self.places = {name: places[name] for name in graph}
        self.held = list(held)
        self.faults = summed(held)

    @property
    def beside(self) -> list[str]:
        """The faults that are on no link, in words."""
        links = {way for one, other in self.graph.edges for way in ((one, other), (other, one))}
        labels = [label for label, effects in self.held if links.isdisjoint(effects)]
        more = [f"and {len(labels) - MOST_BESIDE} more"] if len(labels) > MOST_BESIDE else []
        return [f"{words} (no link)" for words in (*labels[:MOST_BESIDE], *more)]

    @property
    def beneath(self) -> list[tuple[str, str]]:
        """What stands beneath the picture, and in which colour: `beside`, and of a crowd where its names are."""
        crowd = f"{len(self.graph)} members are too many to name each: .graph has all names and links"
        quiet = [(crowd, QUIET)] if len(self.graph) > CROWD_FROM else []
        return [(words, BROKEN) for words in self.beside] + quiet

    def __repr__(self) -> str:
        members = tally(kind for _, kind in self.graph.nodes(data="kind"))
        faults = f", {numbered(len(self.held), 'fault')}" if self.held else ""
        return f"<Topology: {members}, {numbered(self.graph.number_of_edges(), 'link')}{faults}>"

    def _repr_mimebundle_(self, **_: object) -> tuple[dict[str, Any], dict[str, Any]]:
        data, metadata = super()._repr_mimebundle_()
        if len(self.graph) > CROWD_FROM:
            return data, metadata
        return data | {MERMAID: self.mermaid()}, metadata

    def texts(self) -> dict[str, str]:
        """The Mermaid text."""
        return {".mmd": self.mermaid()}

    def draw(self) -> Figure:
        """Draw the mesh, each where it stands."""
        if len(self.graph) > CROWD_FROM:
            return _draw_crowd(self)
        return _draw(self)

    def mermaid(self) -> str:
        """The graph as Mermaid text, sorted: the same mesh gives the same text."""
        ids = _ids(sorted(self.graph))
        lines = [_mermaid_member(ids[name], name, self.graph.nodes[name]) for name in sorted(self.graph)]
        links = sorted(
            _mermaid_link(ids, one, other, data, wrong_with(one, other, self.faults))
            for one, other, data in self.graph.edges(data=True)
        )
        styles = {"gone": f"fill:{PALE},color:{QUIET},stroke:{QUIET}", "paused": f"stroke:{SLOW},stroke-dasharray:4"}
        beside = [f"%% {words}" for words in self.beside]
        used = [f"classDef {name} {style}" for name, style in styles.items() if any(f":::{name}" in x for x in lines)]
        return "\n    ".join(["graph LR", *lines, *links, *beside, *used]) + "\n"


def _draw(topology: Topology) -> Figure:
    graph, places, faults = topology.graph, topology.places, topology.faults
    bends = bends_of(graph, places)
    said = _said_of_links(topology, bends)
    corner, size = _extent(topology, bends, said)
    figure, axes = card(size.real, size.imag)
    at = {name: there - corner for name, there in places.items()}
    for one, other, data in _links(graph):
        quiet = not (_answers(graph, one) and _answers(graph, other))
        bend = bends[one, other]
        points = curve(at[one], at[other], bend, 24 if bend else 1)
        axes.add_line(_line(points, data, quiet=quiet, wrong=wrong_with(one, other, faults)))
    for name in sorted(graph):
        _draw_member(axes, name, at[name], graph.nodes[name])
    for there, _, wrong in said:
        _draw_wrong(axes, there - corner, wrong)
    _draw_legend(axes, topology)
    return figure


def _draw_crowd(topology: Topology) -> Figure:
    """Draw many, of which few are named: links of a kind are one line with gaps, members of a kind one of markers."""
    graph, places, faults = topology.graph, topology.places, topology.faults
    scale = max(0.35, (CROWD_FROM / len(graph)) ** 0.4)
    left, low = min(at.real for at in places.values()), min(at.imag for at in places.values())
    size = complex(max(at.real for at in places.values()) - left, max(at.imag for at in places.values()) - low)
    foot = _foot(topology)
    corner = complex(left - MARGIN, low - MARGIN - foot.imag)
    width = max(size.real, foot.real) + 2 * MARGIN
    figure, axes = card(width, size.imag + 2 * MARGIN + foot.imag)
    at = {name: there - corner + (width - size.real - 2 * MARGIN) / 2 for name, there in places.items()}
    for line in _crowd_lines(graph, at, faults, scale):
        axes.add_line(line)
    # Where many are cut the links say it by their colour.
    cuts = [(at[one] + at[other]) / 2 for one, other in graph.edges if _is_cut(one, other, faults)]
    for middle in cuts[: CROWD_FROM * (len(cuts) <= CROWD_FROM)]:
        axes.add_line(_cross(middle))
    widest = _widest_marker(graph, at)
    for kind, look in LOOKS.items():
        for answers in (True, False):
            there = [
                at[name] for name, data in graph.nodes(data=True) if (data["kind"], data["answers"]) == (kind, answers)
            ]
            size = max(look.size * 0.55 * scale, 3.2 if kind != "node" else 5.5)
            marks = _marker(0j, look, min(size, widest), answers)
            marks.set_data([place.real for place in there], [place.imag for place in there])
            marks.set_markeredgewidth(0.3)
            marks.set_zorder(4 if kind == "node" else 3)
            axes.add_line(marks)
    _label_outstanding(axes, graph, at, width)
    _draw_legend(axes, topology)
    return figure


def _label_outstanding(axes: Any, graph: nx.DiGraph, at: Mapping[str, complex], width: float) -> None:
    """Name the few, on the card, and each where no other name stands yet."""
    taken: list[tuple[complex, Box]] = []
    for name in _outstanding(graph):
        box = box_of(name, graph.nodes[name]["kind"])
        there = complex(min(max(at[name].real, box.half), width - box.half), at[name].imag)
        if all(min(box.overlap(there, other, place)) < 1e-6 for place, other in taken):
            _draw_label(axes, name, there - 0.08j, graph.nodes[name])
            taken.append((there, box))


def _outstanding(graph: nx.DiGraph) -> list[str]:
    """The members of each kind and state of which there are few."""
    alike: dict[tuple[object, ...], list[str]] = {}
    for name, data in sorted(graph.nodes(data=True)):
        alike.setdefault((data["kind"], data["answers"], data["paused"]), []).append(name)
    return [name for names in alike.values() if len(names) <= FEW for name in names]


def _is_cut(one: str, other: str, faults: Mapping[Way, Effect]) -> bool:
    wrong = wrong_with(one, other, faults)
    return wrong is not None and wrong.cut


def _widest_marker(graph: nx.DiGraph, at: Mapping[str, complex]) -> float:
    """The size of a marker in points at which half of the links can be seen between theirs."""
    lengths = sorted(abs(at[one] - at[other]) for one, other in graph.edges)
    return max(2.5, lengths[len(lengths) // 2] * 72 * 0.6) if lengths else 72.0


def _crowd_lines(
    graph: nx.DiGraph, at: Mapping[str, complex], faults: Mapping[Way, Effect], scale: float
) -> Iterator[Line2D]:
    alike: dict[tuple[Any, ...], list[tuple[complex, complex]]] = {}
    for one, other, data in sorted(graph.edges(data=True), key=lambda link: link[:2]):
        wrong = wrong_with(one, other, faults)
        quiet = not (_answers(graph, one) and _answers(graph, other))
        look = (data["kind"], data["stands"], quiet, None if wrong is None else wrong.cut)
        alike.setdefault(look, []).append((at[one], at[other]))
    for (kind, stands, quiet, cut), ends in sorted(alike.items(), key=repr):
        wrong = None if cut is None else Wrong("", cut)
        line = _line([0j], {"kind": kind, "stands": stands}, quiet=quiet, wrong=wrong)
        gap = float("nan")
        line.set_data(
            [x for one, other in ends for x in (one.real, other.real, gap)],
            [y for one, other in ends for y in (one.imag, other.imag, gap)],
        )
        line.set_linewidth(max(0.4, 1.4 * scale) if cut is None else max(1.0, 2.4 * scale))
        line.set_alpha(0.55 if cut is None else 1)
        if not stands or cut:
            line.set_linestyle((0, (1.5, 1)))
        line.set_zorder(1 if cut is None else 2)
        yield line


def _links(graph: nx.DiGraph) -> list[tuple[str, str, Any]]:
    return sorted(graph.edges(data=True), key=lambda link: link[:2])


def _said_of_links(topology: Topology, bends: Mapping[Way, complex]) -> list[tuple[complex, Box, Wrong]]:
    """Where it is said what is wrong with a link, each where nothing stands yet; without room nothing is said."""
    graph, places = topology.graph, topology.places
    taken = [(there, box_of(name, graph.nodes[name]["kind"])) for name, there in places.items()]
    said = []
    for one, other, _ in _links(graph):
        if (wrong := wrong_with(one, other, topology.faults)) is not None:
            box = _box_of_words(wrong)
            at = _room((places[one], places[other], bends[one, other]), box, taken)
            if at is not None:
                taken.append((at, box))
                said.append((at, box, wrong))
    return said


def _box_of_words(wrong: Wrong) -> Box:
    if wrong.label == "cut":
        return Box(CROSS, CROSS, CROSS)
    half = max(width_of(line, WORDS) for line in wrong.lines) / 2 + 0.05
    high = 0.09 * len(wrong.lines)
    return Box(half, high, high)


def _draw_wrong(axes: Any, at: complex, wrong: Wrong) -> None:
    """A cross on what is cut, and words beside the rest."""
    if wrong.label == "cut":
        axes.add_line(_cross(at))
        return
    style = {"boxstyle": "round,pad=0.15", "facecolor": CARD, "edgecolor": "none", "alpha": 0.92}
    colour = BROKEN if wrong.cut else SLOW_INK
    where = {"ha": "center", "va": "center", "parse_math": False, "zorder": 5, "bbox": style}
    axes.text(at.real, at.imag, "\n".join(wrong.lines), fontsize=WORDS, color=colour, **where)


def _room(link: tuple[complex, complex, complex], box: Box, taken: list[tuple[complex, Box]]) -> complex | None:
    """The place on a link, or else beside it, the nearer to its middle the better, where a box covers no other."""
    way = link[1] - link[0]
    aside = way * 1j / (abs(way) or 1) * (box.up + 0.03)
    for off in (0j, aside, -aside, 2 * aside, -2 * aside, 3 * aside, -3 * aside)[: 1 if box.half < 0.1 else None]:
        for step in range(PLACES):
            at = on_curve(*link, 0.5 + (step + 1) // 2 * 0.8 / PLACES * (1 if step % 2 else -1)) + off
            if all(min(box.overlap(at, other, there)) < 1e-6 for there, other in taken):
                return at
    return None


def _cross(at: complex, size: float = 8) -> Line2D:
    return Line2D((at.real,), (at.imag,), marker="x", markersize=size, markeredgewidth=2, color=BROKEN, zorder=5)


def _extent(
    topology: Topology, bends: Mapping[Way, complex], said: Sequence[tuple[complex, Box, Wrong]]
) -> tuple[complex, complex]:
    """The lower left corner of the card, and its size: members have room on it, and what is said of links."""
    kinds, foot = topology.graph.nodes(data="kind"), _foot(topology)
    places = topology.places
    boxes = [(places[name], box_of(name, kind)) for name, kind in kinds] or [(0j, Box(0, 0, 0))]
    boxes += [(on_curve(places[one], places[other], bend, 0.5), Box(0, 0, 0)) for (one, other), bend in bends.items()]
    boxes += [(at, box) for at, box, _ in said]
    left, right = min(p.real - b.half for p, b in boxes), max(p.real + b.half for p, b in boxes)
    low, high = min(p.imag - b.down for p, b in boxes), max(p.imag + b.up for p, b in boxes)
    needed = complex(right - left + 2 * MARGIN, high - low + 2 * MARGIN + foot.imag)
    size = complex(max(needed.real, foot.real + 2 * MARGIN), max(needed.imag, 1.8))
    return complex(left - MARGIN, low - MARGIN - foot.imag) - (size - needed) / 2, size


def _answers(graph: nx.DiGraph, name: str) -> bool:
    return bool(graph.nodes[name]["answers"])


def _line(points: Sequence[complex], data: Mapping[str, Any], *, quiet: bool, wrong: Wrong | None = None) -> Line2D:
    connect = data["kind"] == "connect"
    colour = PALE if quiet else CONNECT if connect else REGISTER
    stands = data["stands"] and not (wrong and wrong.cut)
    if wrong is not None:
        colour = SLOW
    return Line2D(
        [point.real for point in points],
        [point.imag for point in points],
        color=colour if stands else BROKEN,
        linewidth=2.2 if connect else 1.3,
        linestyle="-" if stands else (0, (3, 2.5)),
        zorder=1,
    )


def _draw_member(axes: Any, name: str, at: complex, data: Mapping[str, Any]) -> None:
    look, there = LOOKS[data["kind"]], data["answers"]
    axes.add_line(_marker(at, look, look.size, there or data["paused"]))
    if data["paused"]:
        for sign in _paused(at, look.size / 144 * 0.45):
            axes.add_line(sign)
    _draw_label(axes, name, at - 1j * (look.size / 144 + 0.07), data)


def _draw_label(axes: Any, name: str, at: complex, data: Mapping[str, Any]) -> None:
    axes.text(
        at.real,
        at.imag,
        label_of(name),
        fontsize=LOOKS[data["kind"]].label,
        color=INK if data["answers"] or data["paused"] else QUIET,
        ha="center",
        va="top",
        parse_math=False,
        bbox={"boxstyle": "round,pad=0.1", "facecolor": CARD, "edgecolor": "none", "alpha": 0.9},
        zorder=4,
    )


def _marker(at: complex, look: Look, size: float, answers: bool) -> Line2D:
    return Line2D(
        (at.real,),
        (at.imag,),
        marker=look.marker,
        markersize=size if look.marker != "D" else size * 0.8,
        markerfacecolor=look.colour if answers else PALE,
        markeredgecolor=CARD,
        markeredgewidth=1.6 if size > 10 else 0.5,
        linestyle="none",
        zorder=3,
    )


def _paused(at: complex, half: float, width: float = 2.6) -> list[Line2D]:
    """Two upright bars."""
    return [
        Line2D((at.real + x, at.real + x), (at.imag - half, at.imag + half), color=CARD, linewidth=width, zorder=4)
        for x in (-half * 0.55, half * 0.55)
    ]


def _legend(graph: nx.DiGraph, faults: Mapping[Way, Effect]) -> Iterator[tuple[str, list[Line2D]]]:
    """What the picture needs explained: the words, and the sign at the origin."""
    kinds, sign = {kind for _, kind in graph.nodes(data="kind")}, [-0.09 + 0j, 0.09 + 0j]
    for kind, look in LOOKS.items():
        if kind in kinds:
            yield kind, [_marker(0j, look, 7.5, True)]
    if any(paused for _, paused in graph.nodes(data="paused")):
        yield "paused", [_marker(0j, Look("s", 9, FAINT, 8), 9, True), *_paused(0j, 0.028, 1.2)]
    if not all(answers or paused for answers, paused in _states(graph)):
        yield "does not answer", [_marker(0j, LOOKS["node"], 7.5, False)]
    if not all(stands for *_, stands in graph.edges(data="stands")):
        yield "does not stand", [_line(sign, {"kind": "register", "stands": False}, quiet=False)]
    found = [wrong for one, other in graph.edges if (wrong := wrong_with(one, other, faults))]
    for words, cut in (("cut", True), ("latency or loss", False)):
        if any(wrong.cut == cut for wrong in found):
            line = _line(sign, {"kind": "register", "stands": True}, quiet=False, wrong=Wrong("", cut))
            yield words, [line, *([_cross(0j, 5)] if cut else [])]


def _states(graph: nx.DiGraph) -> Iterator[tuple[bool, bool]]:
    for _, data in graph.nodes(data=True):
        yield data["answers"], data["paused"]


def _legend_widths(graph: nx.DiGraph, faults: Mapping[Way, Effect]) -> list[float]:
    return [width_of(words, 8) + 0.5 for words, _ in _legend(graph, faults)]


def _foot(topology: Topology) -> complex:
    """How wide and how high the legend is, with the words beneath it."""
    beneath = topology.beneath
    widths = [sum(_legend_widths(topology.graph, topology.faults)), *(width_of(words, WORDS) for words, _ in beneath)]
    return complex(max(widths), LEGEND + BESIDE * len(beneath))


def _draw_legend(axes: Any, topology: Topology) -> None:
    graph, faults, beneath = topology.graph, topology.faults, topology.beneath
    for number, (words, colour) in enumerate(reversed(beneath)):
        there = (MARGIN - 0.07, 0.27 + BESIDE * number)
        axes.text(*there, words, fontsize=WORDS, color=colour, va="center_baseline", parse_math=False, zorder=4)
    left, height = MARGIN, 0.27 + BESIDE * len(beneath)
    for (words, signs), width in zip(_legend(graph, faults), _legend_widths(graph, faults), strict=True):
        for sign in signs:
            sign.set_transform(Affine2D().translate(left, height) + axes.transData)
            axes.add_line(sign)
        axes.text(left + 0.15, height, words, fontsize=8, color=QUIET, va="center_baseline", zorder=4)
        left += width


# -- Mermaid -----------------------------------------------------------------------------------------------

_SHAPES = {"registry": '["{}"]', "provider": '{{{{"{}"}}}}', "node": '(["{}"])'}
_RESERVED = {"end", "graph", "subgraph", "flowchart", "style", "class", "classDef", "click", "linkStyle", "default"}


def _ids(names: Sequence[str]) -> dict[str, str]:
    ids: dict[str, str] = {}
    taken = set(_RESERVED)
    for name in names:
        word = re.sub(r"\W", "_", name, flags=re.ASCII)
        while word in taken:
            word += "_"
        ids[name] = word
        taken.add(word)
    return ids


def _mermaid_text(text: str) -> str:
    # What Mermaid would read as its own, it takes as a number between # and ;
    return re.sub(r"[^\w .:/-]", lambda found: f"#{ord(found[0])};", text)


def _mermaid_member(word: str, name: str, data: Mapping[str, Any]) -> str:
    state = ":::paused" if data["paused"] else "" if data["answers"] else ":::gone"
    return word + _SHAPES[data["kind"]].format(_mermaid_text(name)) + state


def _mermaid_link(ids: Mapping[str, str], one: str, other: str, data: Mapping[str, Any], wrong: Wrong | None) -> str:
    directed = data["kind"] == "register"
    if not directed and ids[other] < ids[one]:
        one, other = other, one
    dashed, head = not data["stands"] or (wrong is not None and wrong.cut), ">" if directed else ""
    if wrong is None:
        line = f"-.-{head}" if dashed and not head else "-.->" if dashed else f"--{head or '-'}"
    else:
        words = f'"{_mermaid_text(wrong.label)}"'
        line = f"-. {words} .-{head}" if dashed else f"-- {words} --{head or '-'}"
    return f"{ids[one]} {line} {ids[other]}"
