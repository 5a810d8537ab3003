"""Tags of answers (RFC 9110, 8.8.3 and 13.1.2): who has the answer already gets 304 and no body.

A tag is made of what an answer depends on, never of the answer: the epoch and a count of the listing
(`kodo.changes`), and whatever else was asked. It is read before the answer is: an answer may be newer than its tag,
which costs a repeated answer, and never older, which would hide news. Tags are weak, for JSON says the same in more
than one order of bytes.
"""

from __future__ import annotations

import re
from hashlib import blake2b
from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import Response

_TAG = re.compile(r'[\s,]*(?:W/)?"([\x21\x23-\x7e\x80-\xff]*)"\s*(?=,|$)')


def tag_of(epoch: str, count: int, *asked: Any) -> str:
    """The tag of an answer at this count; `asked` is what else it depends on."""
    if not asked:
        return f'W/"{epoch}-{count}"'
    return f'W/"{epoch}-{count}-{blake2b(orjson.dumps(asked, default=list), digest_size=6).hexdigest()}"'


def headers_of(tag: str, vary: str | None = None) -> dict[str, str]:
    """What an answer with a tag says of itself, and a 304 in its place as well: keep it, and ask before using it."""
    return {"ETag": tag, "Cache-Control": "no-cache"} | ({} if vary is None else {"Vary": vary})


def not_modified(request: Request, headers: dict[str, str]) -> Response | None:
    """The 304 for a request whose `If-None-Match` names the tag of these headers."""
    asked = ", ".join(request.headers.getlist("if-none-match"))
    return Response(status_code=304, headers=headers) if names(asked, headers["ETag"]) else None


def names(asked: str, tag: str) -> bool:
    """Whether an `If-None-Match` names a tag, weakly compared; what is no list of tags names nothing."""
    if asked.strip() == "*":
        return True
    opaque, at = tag.removeprefix("W/").strip('"'), 0
    while (found := _TAG.match(asked, at)) is not None:
        if found[1] == opaque:
            return True
        at = found.end()
    return False
