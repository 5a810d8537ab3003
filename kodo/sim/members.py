"""Members of a mesh as the simulator plays them: what the options of a real service come to in a world."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import fields, replace
from typing import Any

from pydantic import TypeAdapter, ValidationError

from kodo.core.registry import Profile, Timing
from kodo.errors import SimulationError, suggestion
from kodo.loader import load_flows
from kodo.models import Key, Node, canonical

TIMING = {field.name for field in fields(Timing)}
MEANT = {"url", "connect", "node", "registry", "provider", "organization", "reset", *TIMING}
"""Options that mean something here."""
MEANINGLESS = {"cache", "trace", "log", "reload", "body_limit", "peer_body_limit", "loader"}
"""Options of real services that are taken, and change nothing."""
_SECONDS = TypeAdapter(float)


def url_of(name: str, taken: set[Key]) -> str:
    """A url for a member of this name that is not `taken`, and is from then on.

    It is `http://NAME:1`; where a name is no host, or another's but for its case, one with a number.
    """
    url = f"http://{name}:1"
    try:
        fits = canonical(url) not in taken
    except ValueError:
        fits = False
    if not fits:
        url = f"http://member{len(taken) + 1}:2"
    taken.add(canonical(url))
    return url


def urls_of(names: Iterable[str]) -> dict[str, str]:
    """A url for each name."""
    taken: set[Key] = set()
    return {name: url_of(name, taken) for name in names}


def profile_of(options: Mapping[str, Any]) -> Profile:
    """What a member is. Raises `SimulationError` for options that do not exist, or have values that cannot be.

    Raises `ValueError` for a url that is none.
    """
    for name in sorted(set(options) - MEANT - MEANINGLESS):
        expected = f"expected one of {', '.join(sorted(MEANT))}"
        hint = suggestion(name, sorted(MEANT | MEANINGLESS), otherwise=expected)
        raise SimulationError(f"there is no option {name!r}; {hint}")
    canonical(options["url"])
    given = {name: _seconds(name, options[name]) for name in sorted(TIMING & options.keys())}
    timing = replace(Timing(), **given)
    return Profile(options["url"], options["registry"], options["provider"], tuple(options["connect"]), timing)


def _seconds(name: str, value: Any) -> float:
    try:
        seconds = _SECONDS.validate_python(value)
    except ValidationError:
        seconds = 0.0
    if not 0.05 <= seconds <= 1e9:
        raise SimulationError(f"{name}: expected seconds, 0.05 or more")
    return seconds


def own_node(options: Mapping[str, Any], source: Any) -> Node | None:
    """The node that a member is, with the flows of `source`. Raises `LoaderError` when they cannot be loaded."""
    if not options["node"]:
        return None
    flows = {flow.url: flow for flow in load_flows(source)}
    return Node(url=options["url"], organization=options.get("organization"), flows=flows)
