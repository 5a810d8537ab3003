"""Beyond, "Bad input": a 4xx with a JSON body that names the field, no echo, nothing changed, never a 500."""

from __future__ import annotations

import json
import re
import select
import socket
import time
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Process, Served, Start
from tests.protocol.conftest import Shared
from tests.protocol.helpers import ago, ahead, flow, flow_urls, post_raw, record, stamped, told
from tests.waiting import until

MARK = "XECHOX"
NODE, OTHER = "http://node1:3367", "http://registry2:3368"
DEEP = 100_000
MESSAGES = ["/register", "/connect", "/update/node"]
RAW = "<RAW>"  # replaced in the JSON by text that json.dumps would not write
MIB = 1024 * 1024


@pytest.fixture(scope="module")
def target(shared: Shared) -> Served:
    """A registry with a node of its own and one through a peer; no bad input may change it."""
    served = shared(node=False, organization="registry1")
    served.post("/register", record(NODE, flow("a", tags=["x"])))
    served.post("/connect", told(OTHER, stamped("http://node2:3367", "b", created=ago(hours=1)), feed=False))
    return served


@pytest.fixture(scope="module")
def other(shared: Shared) -> Served:
    """A registry that may take what it is sent."""
    return shared(node=False)


def state(served: Served) -> tuple[Any, ...]:
    return *(served.get(path) for path in ("/_cache", "/flows")), served.get("/map")["providers"]


def refused(served: Served, path: str, raw: bytes, field: str | None, **headers: str) -> None:
    """The input is refused as promised."""
    if field and "\\ud" in raw.decode("latin-1"):
        field = "body"  # an escaped half of a pair is no JSON: the body is at fault, not a field of it
    before = state(served)
    started = time.monotonic()
    answer = post_raw(served, path, raw, **headers)
    assert time.monotonic() - started < 5
    check_refusal(answer.status_code, answer.text, field)
    assert state(served) == before


def check_refusal(status: int, text: str, field: str | None) -> None:
    assert 400 <= status < 500, (status, text[:300])
    detail = json.loads(text)["detail"]
    assert detail
    assert MARK not in text
    assert len(text) < 5000
    if field:
        assert field in json.dumps(detail), detail


def bodies(path: str) -> dict[str, Any]:
    """A good body for a route, with one node that has one flow."""
    if path == "/register":
        return record("http://new:3367", "n")
    return told("http://registry3:3368", stamped("http://new:3367", "n", created=ago(hours=1)))


@pytest.mark.parametrize("path", MESSAGES)
@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b" ",
        b"{",
        b"[]",
        b'"XECHOX"',
        b"null",
        b"true",
        b"1",
        b"NaN",
        b"XECHOX",
        b"{}",
        b'{"url": "http://new:3367", "flows": {}, "nodes": {},}',
        b"{'url': 'http://new:3367'}",
        b'{"url": "http://new:3367", "flows": {}, "nodes": {}, "organization": NaN}',
        b'{"url": "http://new:3367", "flows": {}, "nodes": {}, "organization": Infinity}',
        b'{"url": "http://new:3367", "flows": {}, "nodes": {}, "organization": -Infinity}',
        b'{"url": "http://new:3367", "flows": {}, "nodes": {}, "organization": 1e999}',
        b'{"url": "http://new:3367", "flows": {}, "nodes": {}, "organization": ' + b"9" * 400 + b"}",
        b'{"url": "http://new:3367", "flows": {}, "nodes": {}, "organization": ' + b"9" * 10_000 + b"}",
        b'{"url": "http://new:3367", "flows": {}, "nodes": {}, "organization": "\xff\xfeXECHOX"}',
        b'{"url": "http://new:3367", "flows": {}, "nodes": {}, "organization": "\xed\xa0\x80XECHOX"}',
        b'{"url": "http://new:3367", "flows": {}, "nodes": {}, "organization": "\x00XECHOX"}',
        b'{"url": "http://new:3367", "flows": {}, "nodes": {}, "organization": "\\ud800XECHOX"}',
        b'{"url": "http://new:3367", "flows": {}, "nodes": {}, "organization": "\\udc00\\ud800XECHOX"}',
        b"[" * DEEP,
        b"[" * DEEP + b"]" * DEEP,
        b'{"url":' * DEEP,
        b'{"url": ' + b"[" * DEEP + b"]" * DEEP + b"}",
        b'{"url": "http://new:3367", "flows": ' + b"[" * DEEP + b"]" * DEEP + b', "nodes": 5}',
        b'{"url": "http://new:3367", "flows": 5, "nodes": ' + b'{"a":' * DEEP + b"1" + b"}" * DEEP + b"}",
        b"\x00",
        b"\x1f\x8b\x08\x00XECHOX",
        "{}".encode("utf-16"),
    ],
    ids=lambda raw: raw[:70].decode("latin-1").encode("unicode_escape").decode() + f"-{len(raw)}",
)
def test_a_body_that_is_none(target: Served, path: str, raw: bytes) -> None:
    """What is no JSON, or not of the shape, is refused."""
    refused(target, path, raw, None)


BAD_URLS: list[Any] = [
    None,
    5,
    True,
    [],
    {},
    "",
    " ",
    MARK,
    f"ftp://{MARK}:21",
    "http://",
    "http://:3367",
    f"http://{MARK}:port",
    f"http://{MARK}:99999",
    f"http://{MARK}:-1",
    f"//{MARK}:3367",
    f"javascript:{MARK}",
    f"file:///{MARK}",
    f"http://{MARK}\x00:3367",
    f"http://{MARK}\ud800:3367",
    f"http://[{MARK}:3367",
    f"http://a b{MARK}:3367",
    f"http://{MARK}\n:3367",
]
BAD_TIMES: list[Any] = [
    5,
    True,
    [],
    MARK,
    "",
    "9999-12-31T23:59:59-23:59",
    "0001-01-01T00:00:00+23:59",
    "2024-02-30T00:00:00",
    "2024-13-01T00:00:00",
    "10000-01-01T00:00:00",
    "9999-12-31T23:59:59.999999",
    "2024-12-25T18:03:12.989989\x00",
    "2024-12-25T18:03:12\ud800",
    "AHEAD",
]
BAD_FLOW: list[tuple[str, Any]] = [
    ("url", None),
    ("url", 5),
    ("url", []),
    ("url", f"/{MARK}\ud800"),
    ("name", None),
    ("name", 5),
    ("name", {}),
    ("name", f"{MARK}\ud800"),
    ("name", f"\udfff{MARK}"),
    ("description", 5),
    ("description", [MARK]),
    ("author", 5),
    ("author", {MARK: 1}),
    ("tags", 5),
    ("tags", MARK),
    ("tags", {MARK: 1}),
    ("tags", [5]),
    ("tags", [None]),
    ("tags", [[MARK]]),
    ("tags", [f"{MARK}\ud800"]),
]


def dumped(value: Any) -> bytes:
    """JSON with surrogates as escapes."""
    return json.dumps(value).encode()


@pytest.mark.parametrize("path", MESSAGES)
@pytest.mark.parametrize("url", BAD_URLS, ids=repr)
def test_a_bad_url(target: Served, path: str, url: Any) -> None:
    """A sender's url is a http url with host and port."""
    refused(target, path, dumped({**bodies(path), "url": url}), "url")


@pytest.mark.parametrize("path", ["/connect", "/update/node"])
@pytest.mark.parametrize("url", BAD_URLS, ids=repr)
def test_a_bad_url_of_a_node(target: Served, path: str, url: Any) -> None:
    """So is a node's."""
    node = {**stamped("http://new:3367", "n", created=ago(hours=1)), "url": url}
    refused(target, path, dumped({**bodies(path), "nodes": [node]}), "url")
    if isinstance(url, str):
        refused(target, path, dumped({**bodies(path), "nodes": {url: node}}), "url")


@pytest.mark.parametrize("path", MESSAGES)
@pytest.mark.parametrize(
    ("name", "time"),
    [*[("modified", each) for each in BAD_TIMES], *product(("created", "heartbeat"), ("AHEAD", MARK))],
    ids=repr,
)
def test_a_bad_time(target: Served, path: str, name: str, time: Any) -> None:
    """Times are ISO 8601, in the calendar in UTC too, and no more than a day ahead."""
    value = ahead(hours=25) if time == "AHEAD" else time
    body = bodies(path)
    if path == "/register":
        body[name] = value
    else:
        body["nodes"]["http://new:3367"][name] = value
    refused(target, path, dumped(body), name)


def test_less_than_a_day_ahead_is_taken(serve: Start) -> None:
    """A time more than a day ahead is refused; 23 hours are not."""
    served = serve(node=False)
    served.post("/update/node", told(OTHER, stamped(NODE, "a", created=ahead(hours=23))))
    assert flow_urls(served) == ["/a"]


@pytest.mark.parametrize("path", MESSAGES)
@pytest.mark.parametrize(("field", "value"), BAD_FLOW, ids=repr)
def test_a_bad_flow(target: Served, path: str, field: str, value: Any) -> None:
    """A flow has url and name, and texts where texts are expected."""
    bad = {**flow("bad"), field: value}
    body = bodies(path)
    if path == "/register":
        body["flows"] = [bad]
    else:
        body["nodes"]["http://new:3367"]["flows"] = [flow("good"), bad]
    refused(target, path, dumped(body), field)


NO_TEXT: list[Any] = [5, True, [MARK], {}, f"{MARK}\ud800"]
NO_FLAG: list[Any] = [5, MARK, [], {}, None, 2**70]
NO_COLLECTION: list[Any] = [None, 5, True, MARK, [5], [MARK], {NODE: 5}, [None], [[]]]


@pytest.mark.parametrize(
    ("path", "field", "value"),
    [
        *product(["/register"], ["flows"], NO_COLLECTION),
        *product(["/connect", "/update/node"], ["nodes"], NO_COLLECTION),
        *product(["/connect"], ["feed"], NO_FLAG),
        *product(MESSAGES, ["organization"], NO_TEXT),
    ],
    ids=repr,
)
def test_a_wrong_type(target: Served, path: str, field: str, value: Any) -> None:
    """Every field has its type."""
    refused(target, path, dumped({**bodies(path), field: value}), field)


@pytest.mark.parametrize(
    ("path", "field"), [("/register", "url"), ("/register", "flows"), ("/connect", "url"), ("/update/node", "url")]
)
def test_a_missing_field(target: Served, path: str, field: str) -> None:
    """What is required may not be missing."""
    body = bodies(path)
    del body[field]
    refused(target, path, dumped(body), field)


@pytest.mark.parametrize("field", ["url", "name"])
def test_a_flow_without_url_or_name(target: Served, field: str) -> None:
    """Flows need `url` and `name`."""
    bad = flow("bad")
    del bad[field]
    refused(target, "/register", dumped({**bodies("/register"), "flows": [bad]}), field)
    refused(target, "/register", dumped({**bodies("/register"), "flows": {"/bad": bad}}), field)


def test_a_key_that_differs(target: Served) -> None:
    """An object key that differs from the `url` under it: 422."""
    body = bodies("/register")
    body["flows"] = {f"/{MARK}": flow("n")}
    refused(target, "/register", dumped(body), "flows")
    for path in ("/connect", "/update/node"):
        body = bodies(path)
        body["nodes"] = {f"http://{MARK.lower()}:1": stamped("http://new:3367", created=ago(hours=1))}
        refused(target, path, dumped(body), "nodes")
        body = bodies(path)
        body["nodes"]["http://new:3367"]["flows"] = {f"/{MARK}": flow("n")}
        refused(target, path, dumped(body), "flows")
        assert post_raw(target, path, dumped(body)).status_code == 422


@pytest.mark.parametrize("path", MESSAGES)
@pytest.mark.parametrize("form", ["{}", "{}/"])
def test_the_own_url_as_sender(target: Served, path: str, form: str) -> None:
    """A service's own url as the sender of a message: 422."""
    body = dumped({**bodies(path), "url": form.format(target.url)})
    refused(target, path, body, "url")
    assert post_raw(target, path, body).status_code == 422


@pytest.mark.parametrize("path", MESSAGES)
def test_a_nul_in_a_text(target: Served, path: str) -> None:
    """NUL gives no 500: it is refused, and changes nothing."""
    body = bodies(path)
    bad = flow("bad", name=f"{MARK}\x00")
    if path == "/register":
        body["flows"] = [bad]
    else:
        body["nodes"]["http://new:3367"]["flows"] = [bad]
    refused(target, path, dumped(body), "name")


@pytest.mark.parametrize("path", MESSAGES)
@pytest.mark.parametrize(
    "value",
    ["NaN", "1e999", "9" * 400, "9" * 5000, "-" + "9" * 30, '"\\ud800"', '"\\u0000"', "[" * DEEP + "]" * DEEP],
    ids=lambda value: f"{value[:10]}-{len(value)}",
)
def test_an_unknown_field_that_is_bad(other: Served, path: str, value: str) -> None:
    """Unknown fields are ignored; whatever is in them, there is no 500, and what is taken can be read."""
    before = {row["modified"] for row in other.flows()}
    body = bodies(path)
    if path != "/register":
        body["nodes"]["http://new:3367"]["modified"] = ago()
    raw = dumped({**body, "unknown": RAW}).replace(f'"{RAW}"'.encode(), value.encode())
    answer = post_raw(other, path, raw)
    assert answer.status_code == 200 or 400 <= answer.status_code < 500
    for read in ("/", "/flows", "/counts", "/map", "/_cache"):
        assert other.client.get(read).status_code == 200
    assert ({row["modified"] for row in other.flows()} != before) == (answer.status_code == 200)


@pytest.mark.parametrize("path", MESSAGES)
def test_duplicate_keys(serve: Start, path: str) -> None:
    """A key that comes twice gives no 500 and no mixture: it is refused, or the last one counts."""
    served = serve(node=False)
    raw = dumped(bodies(path)).replace(b'{"url"', b'{"url": "http://first:1", "url"', 1)
    answer = post_raw(served, path, raw)
    assert answer.status_code == 200 or 400 <= answer.status_code < 500
    assert "http://first:1" not in served.client.get("/_cache").text


@pytest.mark.parametrize("path", MESSAGES)
@pytest.mark.parametrize("content_type", ["", "text/plain", "application/x-www-form-urlencoded", "a/b; charset=x"])
def test_the_content_type(target: Served, path: str, content_type: str) -> None:
    """A bad body is refused with no `Content-Type` and with a wrong one too."""
    refused(target, path, b'{"url": 5}', "url", Content_Type=content_type)
    refused(target, path, b"", None, Content_Type=content_type)


@pytest.mark.parametrize(
    ("path", "params", "field"),
    [
        *[("/flows", f"p={value}", "p") for value in ("-1", "x", "1.5", "", "NaN", "-" + "9" * 30, MARK, "%00")],
        *[
            ("/flows", f"pp={value}", "pp")
            for value in ("0", "-1", "1001", "x", "", "9" * 30, MARK, "1e2", "%ED%A0%80")
        ],
        *[
            ("/flows", f"by={value}", "by")
            for value in (
                MARK,
                f"name,{MARK}",
                f"name:{MARK}",
                "name:x",
                "name:ascendingly",
                "name:a:d",
                "items",
                f"%00{MARK}",
                "%ED%A0%80",
                f"name%27;drop%20{MARK}",
            )
        ],
    ],
)
def test_bad_parameters(target: Served, path: str, params: str, field: str) -> None:
    """`p` below 0, `pp` below 1 or above 1,000, an unknown column in `by`: 422, naming the field."""
    before = state(target)
    answer = target.client.get(f"{path}?{params}", timeout=10)
    assert answer.status_code == 422
    check_refusal(answer.status_code, answer.text, field)
    assert state(target) == before


def test_an_unknown_column_names_the_columns(target: Served) -> None:
    """`by` with an unknown column: 422, naming the columns."""
    text = target.client.get(f"/flows?by={MARK}").text
    for column in ("registry", "node", "organization", "created", "modified", "heartbeat", "url", "name", "tags"):
        assert re.search(rf"\b{column}\b", text), column


@pytest.mark.parametrize("params", ["p=" + "9" * 18, "p=" + "9" * 30, "p=" + "9" * 5000, f"p={2**62}&pp=1000"])
def test_a_huge_page(target: Served, params: str) -> None:
    """A huge `p` is a page beyond the last, or refused: never a 500."""
    answer = target.client.get(f"/flows?{params}", timeout=10)
    if answer.status_code == 200:
        assert answer.json()["items"] == []
    else:
        check_refusal(answer.status_code, answer.text, "p")


@pytest.mark.parametrize(
    "query",
    [
        "%ED%A0%80",
        "%FF",
        "%00",
        'name%20==%20"%00"',
        "(" * 5000,
        "not%20" * 1000 + "x",
        "9" * 5000,
        "created%20>%20" + "9" * 40,
        "created%20>%20%229999-12-31T23:59:59-23:59%22",
        "name%20~%20%22%ED%A0%80%22",
        "%22",
        "@tag()",
        "@tag(%22",
        "__import__('os')",
        "%F0%9F%A4%96",
    ],
)
def test_odd_queries(target: Served, query: str) -> None:
    """Every `q` is an expression, text or refused: never a 500, never a hang."""
    answer = target.client.get(f"/flows?q={query}", timeout=10)
    assert answer.status_code == 200 or 400 <= answer.status_code < 500
    assert target.client.get(f"/flows?format=html&q={query}", timeout=10).status_code == answer.status_code


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", f"/{MARK}", 404),
        ("POST", f"/{MARK}", 404),
        ("GET", "/register", 405),
        ("PUT", "/flows", 405),
        ("POST", "/flows", 405),
        ("DELETE", "/register", 405),
        ("GET", "/%00", 404),
        ("GET", "/%ED%A0%80", 404),
    ],
)
def test_what_there_is_not(target: Served, method: str, path: str, status: int) -> None:
    """Every error is 4xx with `{"detail": ...}`, unknown routes and methods too, without an echo."""
    answer = target.client.request(method, path)
    assert answer.status_code == status
    check_refusal(answer.status_code, answer.text, None)


# bodies above the limit


def head(served: Served, path: str, length: int | None) -> bytes:
    framing = "Transfer-Encoding: chunked" if length is None else f"Content-Length: {length}"
    return f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n{framing}\r\n\r\n".encode()


def answered(connection: socket.socket) -> bytes:
    """One whole answer."""
    answer = b""
    while True:
        top, gap, rest = answer.partition(b"\r\n\r\n")
        if gap and len(rest) >= int(re.findall(rb"(?i)content-length: (\d+)", top)[0]):
            return answer
        chunk = connection.recv(65536)
        assert chunk, answer
        answer += chunk


def push(served: Served, path: str, size: int, chunked: bool) -> tuple[bytes, int]:
    """Send a body of `size` bytes, the rest of it after the answer too; the answer, and what was sent before it."""
    host, _, port = served.url.removeprefix("http://").rpartition(":")
    piece = b" " * 65536
    frame = b"10000\r\n" + piece + b"\r\n" if chunked else piece
    before, answer = 0, b""
    with socket.create_connection((host, int(port)), 20) as connection:
        connection.sendall(head(served, path, None if chunked else size))
        try:
            for sent in range(0, size, len(piece)):
                if not answer and select.select([connection], [], [], 0)[0]:
                    answer, before = answered(connection), sent
                connection.sendall(frame)
            if chunked:
                connection.sendall(b"0\r\n\r\n")
            if not answer:
                answer, before = answered(connection), size
            assert connection.recv(1) == b"", "the service closes"
        except (BrokenPipeError, ConnectionResetError):  # the service has closed
            pass
    return answer, before


def peak(process: Process) -> int:
    """The most memory that a process ever had, in bytes."""
    status = Path(f"/proc/{process.process.pid}/status").read_text()
    return int(re.findall(r"VmHWM:\s+(\d+) kB", status)[0]) * 1024


def test_a_huge_body_costs_no_memory(spawn: Callable[..., Process]) -> None:
    """A body above the limit: 413 and `Connection: close`, before it is read whole, declared or chunked."""
    served = spawn(node=False)
    served.post("/register", record(NODE, "a"))
    before, memory = served.get("/_cache"), peak(served)
    for chunked in (False, True):
        answer, before_it = push(served, "/register", 50 * MIB, chunked)
        assert answer.startswith(b"HTTP/1.1 413 "), answer[:100]
        assert re.search(rb"(?im)^connection: close\r$", answer)
        assert b'"detail"' in answer
        assert before_it < 30 * MIB
    assert peak(served) - memory < 25 * MIB
    assert served.get("/_cache") == before


def test_many_short_answers_take_little_memory(spawn: Callable[..., Process]) -> None:
    """Answers that are kept for whoever asks again take their own size in memory."""
    served = spawn(node=False)
    for p in range(300):
        served.get("/flows", p=p)
    memory = peak(served)
    for p in range(300, 2300):
        served.get("/flows", p=p)
    assert peak(served) - memory < 4 * MIB


@pytest.mark.parametrize(("path", "limit"), [("/register", 16), ("/connect", 64), ("/update/node", 64)])
def test_the_limits(target: Served, path: str, limit: int) -> None:
    """The limit is 16 MiB, 64 MiB for `/connect` and `/update/node`; what declares more is refused unread."""
    host, _, port = target.url.removeprefix("http://").rpartition(":")
    with socket.create_connection((host, int(port)), 10) as connection:
        connection.sendall(head(target, path, limit * MIB + 1))
        answer = answered(connection)
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert re.search(rb"(?im)^connection: close\r$", answer)
    check_refusal(413, answer.split(b"\r\n\r\n", 1)[1].decode(), None)


@pytest.mark.parametrize(("path", "size"), [("/register", 15), ("/connect", 20), ("/update/node", 20)])
def test_a_body_below_the_limit_is_taken(serve: Start, path: str, size: int) -> None:
    """What is below the limit of its route is taken."""
    served = serve(node=False)
    raw = dumped(bodies(path))
    answer = served.client.post(path, content=raw + b" " * (size * MIB - len(raw)))
    assert answer.status_code == 200
    assert flow_urls(served) == ["/n"]


def test_a_body_that_never_ends(target: Served) -> None:
    """A body that is not sent to its end hangs nobody else, and changes nothing."""
    before = state(target)
    host, _, port = target.url.removeprefix("http://").rpartition(":")
    with socket.create_connection((host, int(port)), 10) as connection:
        connection.sendall(head(target, "/register", 1000) + b'{"url": "http://new:3367"')
        assert state(target) == before
    until(lambda: state(target) == before, "nothing to have changed")


def test_a_body_that_takes_too_long(serve: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """What came of a body is kept until it is whole: one that does not come to its end is given up with 408."""
    monkeypatch.setattr("kodo.service.routes.BODY_TIME", 0.2)
    served = serve()
    host, _, port = served.url.removeprefix("http://").rpartition(":")
    with socket.create_connection((host, int(port)), 10) as connection:
        connection.sendall(head(served, "/register", 1000) + b"{")
        answer = b""
        while piece := connection.recv(65536):
            answer += piece
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b"expected the whole body within 0.2 s" in answer
