"""One family of errors.

Every error that kodo raises on purpose is a `KodoError`. Its text names what was expected and what to do
about it, and never echoes what came over the wire. `status` is the HTTP status with which the service
answers it; the client turns the same status back into the same class (`for_status`).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar


class KodoError(Exception):
    """Base of the family: something that kodo refuses or could not do."""

    status: ClassVar[int] = 500


class OptionError(KodoError):
    """An option is missing, unknown or of the wrong form; nothing was started."""


class LoaderError(KodoError):
    """The flows of a node could not be loaded from its loader."""


class CacheError(KodoError):
    """The durable state could not be opened, or a change could not be made durable."""

    status = 503


class DamagedCacheError(CacheError):
    """A cache is truncated, damaged, of another form, or another service's; it is not to be used."""


class InUseError(KodoError):
    """A port or a cache belongs to another process that is running."""


class InvalidMessageError(KodoError):
    """A request was not of the form that its route takes; it changed nothing.

    `detail` lists every fault as `{"loc": [...], "msg": ..., "type": ...}`, the shape that FastAPI uses.
    """

    status = 422

    def __init__(self, detail: list[dict[str, Any]]) -> None:
        self.detail = detail
        super().__init__("; ".join(f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in detail))

    @classmethod
    def at(cls, *loc: str | int, expected: str) -> InvalidMessageError:
        """The error of a single fault, at the field `loc`."""
        return cls([{"loc": ["body", *loc], "msg": expected, "type": "value_error"}])


class RoleError(KodoError):
    """The service does not have the role that the request is for."""

    status = 404


class UnknownServiceError(KodoError):
    """A service speaks of itself that is neither registered nor connected here; it is to register or connect first."""

    status = 404


class TooSlowError(KodoError):
    """A body did not come to its end in time."""

    status = 408


class TooLargeError(KodoError):
    """A body is above the limit of its route; it was not read to its end."""

    status = 413


class BusyError(KodoError):
    """A brief read would have taken too long for an event loop, or had to wait; it is to be done on a thread."""

    status = 503


class RejectedError(KodoError):
    """A service answered, but refused the request or gave no answer of its protocol; asking again is no help."""

    status = 502

    def __init__(self, message: str = "", answered: int | None = None, *, foreign: bool = False) -> None:
        """`answered` is the status of the answer, if that was the reason; `foreign`: none that a registry gives."""
        super().__init__(message)
        self.answered = answered
        self.foreign = foreign


class UnavailableError(KodoError):
    """A service did not do what it was asked: it is not there, answers too late, or is not ready for it."""

    status = 503

    def __init__(self, message: str = "", retry_after: float = 0.0, answered: int | None = None) -> None:
        """`retry_after`: the seconds for which the service asked to be left alone (RFC 9110, 10.2.3).

        `answered` is the status of the answer, if there was one.
        """
        super().__init__(message)
        self.retry_after = retry_after
        self.answered = answered


class LabError(KodoError):
    """A lab could not do what it was asked: start a member, find one, or wait long enough."""


class PlanError(KodoError):
    """A file that describes a mesh, or what happens to it, cannot be read or written, or says what cannot be."""


class SimulationError(KodoError):
    """A simulation could not do what it was asked, or a scenario says what it does not read."""


def reason_of(error: Exception) -> str:
    """Why the system refused, in its words, without the number of the error and without paths."""
    said = str(getattr(error, "strerror", None) or error)
    return said[:1].lower() + said[1:]


OURS = {
    "Input should be greater": "expected a number greater",
    "Input should be less": "expected a number less",
    "Input should be": "expected",
}
"""What stands for words of pydantic."""


def in_words(said: str) -> str:
    """What pydantic says that it expected, in words of ours."""
    said = said.removeprefix("Value error, ")
    for theirs, ours in OURS.items():
        said = said.replace(theirs, ours)
    return said


def duration(seconds: float) -> str:
    """So many seconds, in the unit that reads best."""
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"


CLOSE, CLOSE_URLS = 0.6, 0.9
"""How much two words have in common, of 1, for one to stand for the other; urls have much in common anyway."""
BEGINNING = 3
"""Characters by which a word is taken for the beginning of another."""


def suggestion(word: str, known: Iterable[str], *, otherwise: str) -> str:
    """What to do about an unknown word: the nearest known one, or the one that it begins, if there is one."""
    from difflib import get_close_matches  # noqa: PLC0415, where something is wrong

    there = list(known)
    near = get_close_matches(word, there, n=1, cutoff=CLOSE_URLS if "://" in word else CLOSE)
    if not near and len(word) >= BEGINNING:
        near = [each for each in there if each.startswith(word)][:1]
    return f"did you mean {near[0]!r}?" if near else otherwise


def unwritten(path: object, error: OSError) -> str:
    """Why a file cannot be written, and what to do."""
    if isinstance(error, FileNotFoundError):
        return f"{path}: expected a file to write, but its folder is not there; make the folder, or choose another path"
    return f"{path}: expected a file to write, but {reason_of(error)}; choose another path"


_BY_STATUS: dict[int, type[KodoError]] = {
    404: RoleError,
    408: TooSlowError,
    413: TooLargeError,
    503: UnavailableError,
}


def for_status(status: int) -> type[KodoError]:
    """The class of the family that stands for the HTTP status of an answer (422 is built from its detail)."""
    return _BY_STATUS.get(status, KodoError)
