"""The topology of a mesh: a graph of what members answered, its picture, and the same as Mermaid text.

Drawn is what `/map` says, not what the lab planned: who registered where, which registries are connected, whether a
connection stands, and strangers that someone connected behind the lab's back. The one importer of networkx and
matplotlib in the lab.

- Positions are inches, as complex numbers. Who has a place keeps it; who comes finds one by stress (two
  links are twice as long as one), and is then pushed off what it would cover, its label included. Nothing is
  random.
- Kinds differ in shape as well as in colour. What does not answer is grey, what does not stand is dashed.
- The picture is drawn on a white card, so that it reads in a dark theme too, and at twice its size, so that its text
  is sharp. It is made with matplotlib's objects alone: pyplot keeps figures, and belongs to the notebook.
- The bundle holds the Mermaid text, sorted, under a type that JupyterLab does not draw. It would draw
  `text/vnd.mermaid` in place of the picture, and write its drawing into the notebook, where a test finds it.
"""

from __future__ import annotations

import re
from base64 import b64encode
from cmath import rect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from io import BytesIO
from itertools import combinations
from math import pi
from pathlib import Path
from typing import Any

import networkx as nx  # type: ignore[import-untyped]
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.lines import Line2D
from matplotlib.patches import FancyBboxPatch
from matplotlib.textpath import TextPath
from matplotlib.transforms import Affine2D

from kodo.client import View
from kodo.errors import LabError
from kodo.lab.naming import Names, numbered, tally

MERMAID = "text/x-mermaid"
SUFFIXES = (".png", ".svg", ".pdf", ".mmd")

LINK = 1.35
"""Inches between two that are linked."""
CROWD = 12
"""How many find room around one at that length."""
STRANGERS = 2 * LINK
"""Inches between two that nothing links."""
GOLDEN = pi * (3 - 5**0.5)
ROUNDS = 400
MARGIN = 0.35
LEGEND = 0.42
DPI = 200
SCREEN = 100
"""Pixels an inch at which the picture is shown; it is drawn at `DPI`."""
LONGEST = 26
"""Characters of a label."""


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
INK, QUIET, PALE, CARD, FRAME = "#26323d", "#8d99a5", "#c9d0d6", "#ffffff", "#dfe4e8"
REGISTER, CONNECT, BROKEN = "#b3bdc6", "#5f7284", "#b5503c"


@dataclass(frozen=True, slots=True)
class Seen:
    """A member of the mesh, and its `/map` if it answered."""

    name: str
    url: str
    kind: str
    view: View | None


# -- the graph ---------------------------------------------------------------------------------------------


def graph_of(seen: Sequence[Seen]) -> nx.DiGraph:
    """The mesh as the members see it: `kind` and `answers` on each, `kind` and `stands` on each link."""
    graph = nx.DiGraph()
    names = Names({member.name: member.url for member in seen})
    for member in seen:
        graph.add_node(member.name, kind=member.kind, answers=member.view is not None)
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
        graph.add_node(name, kind=kind, answers=True)


def _link(graph: nx.DiGraph, one: str, other: str, *, stands: bool) -> None:
    """One link between two, in the direction in which it was first seen."""
    if one == other or graph.has_edge(one, other) or graph.has_edge(other, one):
        return
    kind = "register" if "node" in (graph.nodes[one]["kind"], graph.nodes[other]["kind"]) else "connect"
    graph.add_edge(one, other, kind=kind, stands=stands)


# -- places ------------------------------------------------------------------------------------------------


def place(graph: nx.DiGraph, known: Mapping[str, complex]) -> dict[str, complex]:
    """A place for each of the graph. Those that are known stay where they are, as far as there is room."""
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
        places = _lying(places)
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
    half = max(radius, _width(label_of(name), look.label) / 2)
    return Box(half + 0.07, radius + 0.06, radius + look.label / 72 + 0.16)


def label_of(name: str) -> str:
    """The name as it is drawn: a url without its scheme, and nothing longer than there is room for."""
    short = name.partition("://")[2] or name
    return short if len(short) <= LONGEST else short[: LONGEST - 1] + "…"


def _width(text: str, size: float) -> float:
    return float(TextPath((0, 0), text.replace("$", r"\$"), size=size, prop=FontProperties()).get_extents().width) / 72


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


class Topology:
    """The mesh at one moment: `graph`, a picture, and Mermaid text."""

    def __init__(self, graph: nx.DiGraph, places: Mapping[str, complex]) -> None:
        self.graph = graph
        self.places = {name: places[name] for name in graph}

    def __repr__(self) -> str:
        members = tally(kind for _, kind in self.graph.nodes(data="kind"))
        return f"<Topology: {members}, {numbered(self.graph.number_of_edges(), 'link')}>"

    def _repr_mimebundle_(self, **_: object) -> tuple[dict[str, Any], dict[str, Any]]:
        width, height = self._figure.get_size_inches()
        size = {"width": round(width * SCREEN), "height": round(height * SCREEN)}
        data = {"text/plain": repr(self), "image/png": b64encode(self.png).decode(), MERMAID: self.mermaid()}
        return data, {"image/png": size}

    @cached_property
    def png(self) -> bytes:
        """The picture."""
        return self._drawn("png")

    def save(self, path: Path | str) -> None:
        """Write the picture to a .png, .svg or .pdf file, or the Mermaid text to a .mmd file."""
        target = Path(path)
        if target.suffix not in SUFFIXES:
            raise LabError(f"expected a file that ends in one of {', '.join(SUFFIXES)}, such as topology.png")
        if target.suffix == ".mmd":
            target.write_text(self.mermaid())
        else:
            target.write_bytes(self._drawn(target.suffix[1:]))

    def mermaid(self) -> str:
        """The graph as Mermaid text, sorted: the same mesh gives the same text."""
        ids = _ids(sorted(self.graph))
        lines = [_mermaid_member(ids[name], name, self.graph.nodes[name]) for name in sorted(self.graph)]
        links = sorted(_mermaid_link(ids, one, other, data) for one, other, data in self.graph.edges(data=True))
        grey = [f"classDef gone fill:{PALE},color:{QUIET},stroke:{QUIET}"] * any(":::gone" in line for line in lines)
        return "\n    ".join(["graph LR", *lines, *links, *grey]) + "\n"

    def _drawn(self, form: str) -> bytes:
        drawn = BytesIO()
        self._figure.savefig(drawn, format=form, dpi=DPI)
        return drawn.getvalue()

    @cached_property
    def _figure(self) -> Figure:
        return _draw(self.graph, self.places)


def _draw(graph: nx.DiGraph, places: Mapping[str, complex]) -> Figure:
    corner, size = _extent(graph, places)
    figure = Figure(figsize=(size.real, size.imag), facecolor="none")
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, size.real), ylim=(0, size.imag))
    axes.set_axis_off()
    edge = 0.02
    inside = (size.real - 2 * edge, size.imag - 2 * edge)
    style = "round,pad=0,rounding_size=0.12"
    axes.add_patch(FancyBboxPatch((edge, edge), *inside, boxstyle=style, facecolor=CARD, edgecolor=FRAME, linewidth=1))
    at = {name: there - corner for name, there in places.items()}
    for one, other, data in sorted(graph.edges(data=True), key=lambda link: link[:2]):
        axes.add_line(_line(at[one], at[other], data, quiet=not (_answers(graph, one) and _answers(graph, other))))
    for name in sorted(graph):
        _draw_member(axes, name, at[name], graph.nodes[name])
    _draw_legend(axes, graph)
    return figure


def _extent(graph: nx.DiGraph, places: Mapping[str, complex]) -> tuple[complex, complex]:
    """The lower left corner of the card, and its size."""
    boxes = [(there, box_of(name, graph.nodes[name]["kind"])) for name, there in places.items()] or [(0j, Box(0, 0, 0))]
    left, right = min(p.real - b.half for p, b in boxes), max(p.real + b.half for p, b in boxes)
    low, high = min(p.imag - b.down for p, b in boxes), max(p.imag + b.up for p, b in boxes)
    needed = complex(right - left + 2 * MARGIN, high - low + 2 * MARGIN + LEGEND)
    size = complex(max(needed.real, sum(_legend_widths(graph)) + 2 * MARGIN), max(needed.imag, 1.8))
    return complex(left - MARGIN, low - MARGIN - LEGEND) - (size - needed) / 2, size


def _answers(graph: nx.DiGraph, name: str) -> bool:
    return bool(graph.nodes[name]["answers"])


def _line(one: complex, other: complex, data: Mapping[str, Any], *, quiet: bool) -> Line2D:
    connect = data["kind"] == "connect"
    colour = PALE if quiet else CONNECT if connect else REGISTER
    return Line2D(
        (one.real, other.real),
        (one.imag, other.imag),
        color=colour if data["stands"] else BROKEN,
        linewidth=2.2 if connect else 1.3,
        linestyle="-" if data["stands"] else (0, (3, 2.5)),
        zorder=1,
    )


def _draw_member(axes: Any, name: str, at: complex, data: Mapping[str, Any]) -> None:
    look, there = LOOKS[data["kind"]], data["answers"]
    axes.add_line(_marker(at, look, look.size, there))
    axes.text(
        at.real,
        at.imag - look.size / 144 - 0.07,
        label_of(name),
        fontsize=look.label,
        color=INK if there else QUIET,
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


def _legend(graph: nx.DiGraph) -> Iterator[tuple[str, Line2D]]:
    """What the picture needs explained: the words, and the sign at the origin."""
    kinds = {kind for _, kind in graph.nodes(data="kind")}
    for kind, look in LOOKS.items():
        if kind in kinds:
            yield kind, _marker(0j, look, 7.5, True)
    if not all(_answers(graph, name) for name in graph):
        yield "does not answer", _marker(0j, LOOKS["node"], 7.5, False)
    if not all(stands for *_, stands in graph.edges(data="stands")):
        yield "does not stand", _line(-0.09 + 0j, 0.09 + 0j, {"kind": "register", "stands": False}, quiet=False)


def _legend_widths(graph: nx.DiGraph) -> list[float]:
    return [_width(words, 8) + 0.5 for words, _ in _legend(graph)]


def _draw_legend(axes: Any, graph: nx.DiGraph) -> None:
    left, height = MARGIN, 0.27
    for (words, sign), width in zip(_legend(graph), _legend_widths(graph), strict=True):
        sign.set_transform(Affine2D().translate(left, height) + axes.transData)
        axes.add_line(sign)
        axes.text(left + 0.15, height, words, fontsize=8, color=QUIET, va="center_baseline", zorder=4)
        left += width


# -- Mermaid -----------------------------------------------------------------------------------------------

_SHAPES = {"registry": '["{}"]', "provider": '{{{{"{}"}}}}', "node": '(["{}"])'}
_RESERVED = {"end", "graph", "subgraph", "flowchart", "style", "class", "classDef", "click", "linkStyle", "default"}


def _ids(names: Sequence[str]) -> dict[str, str]:
    ids: dict[str, str] = {}
    for name in names:
        word = re.sub(r"\W", "_", name, flags=re.ASCII)
        while word in _RESERVED or word in ids.values():
            word += "_"
        ids[name] = word
    return ids


def _mermaid_member(word: str, name: str, data: Mapping[str, Any]) -> str:
    # What Mermaid would read as its own, it takes as a number between # and ;
    label = re.sub(r"[^\w .:/-]", lambda found: f"#{ord(found[0])};", name)
    return word + _SHAPES[data["kind"]].format(label) + ("" if data["answers"] else ":::gone")


def _mermaid_link(ids: Mapping[str, str], one: str, other: str, data: Mapping[str, Any]) -> str:
    directed = data["kind"] == "register"
    if not directed and ids[other] < ids[one]:
        one, other = other, one
    line = ("-->" if directed else "---") if data["stands"] else ("-.->" if directed else "-.-")
    return f"{ids[one]} {line} {ids[other]}"
