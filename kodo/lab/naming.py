"""Words for people: members by their names in place of urls, how many there are, what was meant by a wrong one."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from urllib.parse import urlsplit

from kodo.errors import LabError, suggestion
from kodo.models import Key, canonical

PLURALS = {"registry": "registries", "provider": "providers", "node": "nodes"}
"""The kinds of member, in the order in which they are counted."""
NO_ANSWER, NOBODY = "no answer", "no registry is there to be asked"
"""What stands for a member that cannot be asked, and for all that is listed when no registry can."""
NONE_RUNS = "no registry runs"
"""What stands for how many agree, where there is none."""

MOST = 12
"""Names that a text tells of all that there are."""
LOOPBACK = {"localhost", "127.0.0.1"}
"""What this machine is called by itself, where members of a lab listen."""
FEW = 4
"""Names that the label of a fault tells of each side."""
_URL = re.compile(r"https?://[^\s,;]+")


class Names:
    """The names of members by their urls; who is no member goes by the url, as it is spelled where it is first met."""

    def __init__(self, urls: Mapping[str, str]) -> None:
        self._names: dict[Key, str] = {canonical(url): name for name, url in urls.items()}

    def __getitem__(self, url: str) -> str:
        return self._names.setdefault(canonical(url), url)


def renamed(text: str, names: Names) -> str:
    """A text with members by their names in place of their urls."""
    return _URL.sub(lambda found: _name(found[0], names), text)


def _name(url: str, names: Names) -> str:
    try:
        return names[url]
    except ValueError:
        return url


def same_place(one: str, other: str) -> bool:
    """Whether two urls lead to the same port of this machine, or are the same by the protocol."""
    if canonical(one) == canonical(other):
        return True
    here, there = urlsplit(one), urlsplit(other)
    return here.port == there.port is not None and {here.hostname, there.hostname} <= LOOPBACK


def tally(kinds: Iterable[str]) -> str:
    """How many there are of each kind: `2 registries, 1 node`."""
    counts = Counter(kinds)
    present = [numbered(counts[kind], kind, plural) for kind, plural in PLURALS.items() if counts[kind]]
    return ", ".join(present) or "no members"


def one_of(word: object, known: Iterable[str]) -> str:
    """What was expected in place of a word: what there is, and which of it was probably meant."""
    names = list(known)
    if not names:
        return f"there is none, so there is no {word!r} either"
    hint = suggestion(str(word), names, otherwise="")
    return f"expected one of {few(names)}, not {word!r}{hint and f'; {hint}'}"


def few(names: Sequence[str], most: int = MOST, between: str = ", ") -> str:
    """The first few names, and how many more there are: `a, b and 7 more`."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return between.join(names[:most]) + more


def one_line(text: str) -> str:
    """A text on one line, as it is seen: what would steer a terminal, or turn a text around, is spelled out."""
    return "".join(
        sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in " ".join(text.split())
    )


def checked_path(path: os.PathLike[str] | str) -> Path:
    """A path that a file may have. Raises `LabError` for what is none, and for one with a NUL: no system takes it."""
    if not isinstance(path, str | os.PathLike):
        raise LabError(f"expected the path of a file, not {path!r}; give a text or a Path")
    if "\0" in str(path):
        raise LabError(f"expected a path without a NUL, not {str(path)!r}; choose another path")
    return Path(path)


def checked_most(name: str, value: int | None, least: int) -> int | None:
    """How many of the last are wanted; None for all. Raises `LabError` for anything else."""
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < least):
        raise LabError(f"{name}: expected a whole number, {least} or more, or None for all, not {value!r}")
    return value


def numbered(number: int, one: str, more: str | None = None) -> str:
    """A number with its noun: `1 flow`, `2 flows`."""
    return f"{number} {one if number == 1 else more or one + 's'}"
