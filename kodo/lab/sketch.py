"""The mesh as data for the dashboard's picture, and the same picture as SVG that needs neither kernel nor widget.

A notebook is read without its kernel, and converted to HTML, where a widget is nothing. What stands in its place is
constant: no measure, whole numbers, inline styles, a colour of text for light and dark; all names are escaped. Shapes
and colours are those of `static/mesh.js`, which draws the same scene. The SVG is an image: of one within the HTML
JupyterLab leaves the words alone, where somebody else ran the notebook.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterable, Iterator, Mapping
from html import escape
from typing import Any

from kodo.lab.drawing import label_of
from kodo.lab.naming import tally
from kodo.lab.topology import Topology, bends_of, wrong_with

SCALE = 78
"""Pixels an inch of the places."""
EDGE, BELOW = 34, 18
"""Room around the members, and for the label of the lowest."""
SIZES = {"registry": 13, "provider": 13, "node": 10}
FILLS = {"registry": "#4a80b5", "provider": "#a374a8", "node": "#d39a3d"}
GONE, LINK, BROKEN = "#9aa4ad", "#8597a7", "#c9674f"
WORDS = "#757f89"
"""The colour of names, which an image cannot take from the page: as far from white as from JupyterLab's black."""
SIGNS = {"registry": "■", "provider": "◆", "node": "●"}
UP = ("running", "paused")

Scene = dict[str, Any]


def scene_of(topology: Topology, states: Mapping[str, str]) -> Scene:
    """What a picture shows: members with their places and states, links with what is wrong with them, other faults."""
    graph, places = topology.graph, topology.places
    bends = bends_of(graph, places)
    return {
        "title": f"{graph.number_of_nodes()} members, {graph.number_of_edges()} links",
        "members": [
            {
                "name": name,
                "kind": data["kind"],
                "label": label_of(name),
                "state": states.get(name, "running" if data["answers"] else "gone"),
                **dict(zip("xy", _pixels(places[name]), strict=True)),
            }
            for name, data in sorted(graph.nodes(data=True))
        ],
        "links": [
            {"one": one, "other": other, **data, "fault": wrong and wrong.label, "bend": _pixels(bends[one, other])}
            for one, other, data in sorted(graph.edges(data=True), key=lambda link: link[:2])
            for wrong in [wrong_with(one, other, topology.faults)]
        ],
        "beside": topology.beside,
    }


def _pixels(at: complex) -> tuple[int, int]:
    return round(at.real * SCALE), round(-at.imag * SCALE)


def sketch(scene: Scene) -> str:
    """The scene as HTML: a picture and its legend."""
    members = scene["members"]
    if not members:
        return ""
    left, right = _sides(members)
    top, low = min(member["y"] for member in members) - EDGE, max(member["y"] for member in members) + EDGE + BELOW
    at = {member["name"]: member for member in members}
    links = scene["links"]
    # What is said of a link may be longer than it, and stands above its ends then.
    parts = [*(_link(link, at) for link in links), *map(_member, members), *(_fault(link, at) for link in links)]
    size = f'width="{right - left}" height="{low - top}"'
    drawn = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{left} {top} {right - left} {low - top}" {size} '
        f'font-family="sans-serif" font-size="12">{"".join(parts)}</svg>'
    )
    source = b64encode(drawn.encode()).decode()
    return (
        f'<div><img alt="{escape(scene["title"])}" {size} style="max-width:100%;height:auto" '
        f'src="data:image/svg+xml;base64,{source}">'
        f'<div style="font-size:11px;opacity:0.7;padding:2px 0 8px">{"".join(_legend(scene))}</div></div>'
    )


def _sides(members: Iterable[Mapping[str, Any]]) -> tuple[int, int]:
    halves = [(member["x"], 4 * len(member["label"])) for member in members]
    return min(x - half for x, half in halves) - EDGE, max(x + half for x, half in halves) + EDGE


def _link(link: Mapping[str, Any], at: Mapping[str, Any]) -> str:
    one, other = at[link["one"]], at[link["other"]]
    wrong = link["fault"] or not link["stands"]
    look = f'stroke="{BROKEN}" stroke-dasharray="5 4"' if wrong else f'stroke="{LINK}"'
    width = 2.5 if link["kind"] == "connect" else 1.5
    # A curve's middle stands halfway between that of its ends and what draws it aside.
    x, y = ((one[at] + other[at]) / 2 + 2 * bend for at, bend in zip("xy", link["bend"], strict=True))
    way = f"M{one['x']} {one['y']}Q{x:g} {y:g} {other['x']} {other['y']}"
    return f'<path d="{way}" fill="none" {look} stroke-width="{width}"/>'


def _fault(link: Mapping[str, Any], at: Mapping[str, Any]) -> str:
    if not link["fault"]:
        return ""
    one, other, bend = at[link["one"]], at[link["other"]], link["bend"]
    lift = 20 if 6 * len(link["fault"]) > abs(one["x"] - other["x"]) - 40 else 5
    x, y = (one["x"] + other["x"]) // 2 + bend[0], (one["y"] + other["y"]) // 2 + bend[1] - lift
    return f'<text x="{x}" y="{y}" fill="{BROKEN}" text-anchor="middle">{escape(link["fault"])}</text>'


def _member(member: Mapping[str, Any]) -> str:
    kind, state, x, y = member["kind"], member["state"], member["x"], member["y"]
    size = SIZES[kind]
    wide = 2 * size
    fill = FILLS[kind] if state in UP else GONE
    shapes = {
        "registry": f'<rect x="{x - size}" y="{y - size}" width="{wide}" height="{wide}" rx="2" fill="{fill}"/>',
        "provider": f'<path d="M{x} {y - 15}L{x + 15} {y}L{x} {y + 15}L{x - 15} {y}Z" fill="{fill}"/>',
        "node": f'<circle cx="{x}" cy="{y}" r="{size}" fill="{fill}"/>',
    }
    bars = f'<path d="M{x - 3} {y - 5}v10M{x + 3} {y - 5}v10" stroke="#fff" stroke-width="3"/>'
    paused = bars if state == "paused" else ""
    style = ' font-style="italic" opacity="0.7"' if fill == GONE else ""
    words = f'fill="{WORDS}" text-anchor="middle"{style}'
    title = f"<title>{escape(kind + ' ' + member['name'])}: {state}</title>"
    label = f'<text x="{x}" y="{y + size + 17}" {words}>{escape(member["label"])}</text>'
    return f"<g>{title}{shapes[kind]}{paused}{label}</g>"


def _legend(scene: Scene) -> Iterator[str]:
    kinds = [member["kind"] for member in scene["members"]]
    for kind, sign in SIGNS.items():
        if count := tally(one for one in kinds if one == kind) * (kind in kinds):
            yield f'<span style="color:{FILLS[kind]}">{sign}</span> {count} &nbsp; '
    if any(member["state"] not in UP for member in scene["members"]):
        yield "grey: does not answer &nbsp; "
    if any(link["fault"] or not link["stands"] for link in scene["links"]):
        yield "dashed: broken, or does not stand"
    yield from (f"<div>{escape(words)}</div>" for words in scene["beside"])
