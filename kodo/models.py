"""The wire vocabulary: what PROTOCOL.md calls things, as frozen pydantic models.

Everything that comes over the wire becomes one of these or is refused, and everything that goes out is
written from one of these. Unknown fields are ignored, so that older and newer services can talk
(PROTOCOL.md, Beyond). Three rules hold for every text and every time:

- A text has no NUL, and no lone surrogate (both break databases and readers further on).
- A time is a text, UTC, `2024-12-25T18:03:12.989989`: always six digits, no zone. Texts of this form
  compare like the times they stand for, so nothing needs to parse them again.
- Urls are compared by `canonical` and shown as their owner wrote them.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from functools import lru_cache
from ipaddress import ip_address
from typing import Annotated, Any, NamedTuple, NewType
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, TypeAdapter

from kodo.digests import digest_of

DEFAULT_PORTS = {"http": 80, "https": 443}
MISSING_AUTHOR = "missing author"
MISSING_DESCRIPTION = "missing description"

COLUMNS = (
    "registry",
    "node",
    "organization",
    "created",
    "modified",
    "heartbeat",
    "url",
    "name",
    "author",
    "description",
    "tags",
)
"""The columns of a listing, in the order in which tables show them."""

LONGEST_URL, USUAL_URL = 2048, 128
"""Characters of a url that names a service or a node at most, and of one whose form is remembered."""

AT_ONCE = 2**16
"""Bytes of JSON up to which a message is checked on an event loop; a larger one is checked on a thread."""

BEATS = "Kodo-Beats"
"""The header of a `/register` whose node will beat, if the reply names a `lease`; the body stays what is fixed."""

PACKED = "gzip"
"""How a large message may be packed: to whom says so in the `Accept-Encoding` of an answer (RFC 9110, 12.5.3)."""

Key = NewType("Key", str)
"""A canonical url: what services and nodes are told apart by."""


def canonical(url: str) -> Key:
    """The form by which urls are compared: lower-case scheme and host, explicit port, no trailing slash.

    Raises `ValueError` for what is not an http or https url with a host.
    """
    if len(url) > LONGEST_URL:
        raise ValueError(f"expected a url of at most {LONGEST_URL} characters")
    return _remembered(url) if len(url) <= USUAL_URL else _canonical(url)


def _canonical(url: str) -> Key:
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise ValueError("expected an http or https url with a host and a port below 65536") from None
    scheme = parts.scheme.lower()
    if "@" in parts.netloc or "?" in url or "#" in url:
        raise ValueError("expected a url of scheme, host, port and path: no user, no ? and no #")
    if scheme not in DEFAULT_PORTS or not parts.hostname or any(c.isspace() or ord(c) < 32 for c in url):
        raise ValueError("expected an http or https url with a host, such as http://localhost:3366")
    host = f"[{_compressed(parts.hostname)}]" if ":" in parts.hostname else parts.hostname
    port = DEFAULT_PORTS[scheme] if port is None else port
    return Key(f"{scheme}://{host}:{port}{parts.path.rstrip('/')}")


_remembered = lru_cache(maxsize=65536)(_canonical)


def _compressed(host: str) -> str:
    try:
        return ip_address(host).compressed
    except ValueError:
        raise ValueError("expected an IPv6 address between the brackets") from None


def format_time(moment: datetime) -> str:
    """A moment as the protocol writes it: UTC, six digits, no zone. A naive moment is taken as UTC."""
    if moment.tzinfo is not None:
        moment = moment.astimezone(UTC)
    return moment.replace(tzinfo=None).isoformat(timespec="microseconds")


def now() -> str:
    """This moment, as the protocol writes it."""
    return format_time(datetime.now(UTC))


def later(time: str, by: timedelta) -> str:
    """The time that is `by` after `time`; at the end of the calendar it stays where it is."""
    try:
        return format_time(datetime.fromisoformat(time) + by)
    except OverflowError:
        return time


def _storable(text: str) -> str:
    if "\0" in text:
        raise ValueError("expected a text without NUL characters")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("expected a text without lone surrogates") from None
    return text


def _not_empty(text: str) -> str:
    if not text:
        raise ValueError("expected a text that is not empty")
    return text


def _url(text: str) -> str:
    canonical(text)
    return text


def _time(value: Any) -> Any:
    if not isinstance(value, str) or "\0" in value:
        raise ValueError("expected a time such as 2024-12-25T18:03:12.989989")
    try:
        return format_time(datetime.fromisoformat(value))
    except (ValueError, OverflowError):
        raise ValueError("expected a time such as 2024-12-25T18:03:12.989989, within the calendar") from None


Text = Annotated[str, AfterValidator(_storable)]
FilledText = Annotated[Text, AfterValidator(_not_empty)]
ServiceUrl = Annotated[Text, AfterValidator(_url)]
Time = Annotated[str, BeforeValidator(_time)]
Count = Annotated[int, Field(ge=0, lt=2**63)]
Seconds = Annotated[int, Field(ge=0, lt=2**40)]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]


class Model(BaseModel):
    """Frozen, and blind to unknown fields."""

    model_config = ConfigDict(frozen=True, extra="ignore", populate_by_name=True)


def flow_path(name: object, url: object = None) -> object:
    """The path of a flow: its url, or its name with `-` for spaces, with one slash before it and none after.

    What is no text is returned as it is, for a model to refuse.
    """
    path = str(name).replace(" ", "-") if url is None else url
    return "/" + path.removeprefix("/").rstrip("/") if isinstance(path, str) else path


class Flow(Model):
    """A named agent service that a node offers; `url` is a path on the node."""

    url: FilledText
    name: FilledText
    description: Text | None = None
    tags: tuple[Text, ...] | None = None
    author: Text | None = None


def _flow_keys_match(flows: Any) -> Any:
    if isinstance(flows, dict) and any(key != flow.url for key, flow in flows.items()):
        raise ValueError("expected the key of each flow to be its url")
    return flows


def _node_keys_match(nodes: Any) -> Any:
    if isinstance(nodes, dict) and any(not _same_url(key, node.url) for key, node in nodes.items()):
        raise ValueError("expected the key of each node to be its url")
    return nodes


def _same_url(one: str, other: str) -> bool:
    try:
        return canonical(one) == canonical(other)
    except ValueError:
        return False


Flows = Annotated[dict[str, Flow] | list[Flow], Field(union_mode="left_to_right"), AfterValidator(_flow_keys_match)]
"""Flows as they come: an object keyed by flow url, or a list, in which the last of a url wins."""


def flows_by_url(flows: dict[str, Flow] | list[Flow]) -> dict[str, Flow]:
    """The flows keyed by their url; of several with the same url the last wins."""
    return dict(flows) if isinstance(flows, dict) else {flow.url: flow for flow in flows}


def flows_json(flows: dict[str, Flow] | list[Flow]) -> bytes:
    """The flows as JSON, keyed by url: how they are stored and sent."""
    return _FLOWS.dump_json(flows_by_url(flows))


def digest(flows: dict[str, Flow] | list[Flow]) -> str:
    """A short text that is equal for equal flows."""
    return digest_of(flows_json(flows))


_FLOWS = TypeAdapter(dict[str, Flow])


class Registration(Model):
    """The body of `POST /register`. Its times and status are checked and ignored: they are the registry's to set."""

    url: ServiceUrl
    organization: Text | None = None
    flows: Flows
    created: Time | None = None
    modified: Time | None = None
    heartbeat: Time | None = None
    status: Text = "unknown"


class Node(Model):
    """A node with its flows and times, as registries pass it on. Missing times are the receiver's to set.

    `flows` is None only inside a delta: the flows are those that the receiver has.
    """

    url: ServiceUrl
    organization: Text | None = None
    flows: Flows | None = None
    created: Time | None = None
    modified: Time | None = None
    heartbeat: Time | None = None
    status: Text = "unknown"

    @property
    def key(self) -> Key:
        return canonical(self.url)


class PlainNode(Node):
    """A node as the plain protocol sends it: `flows` is required."""

    flows: Flows


Nodes = Annotated[
    dict[str, PlainNode] | list[PlainNode],
    Field(union_mode="left_to_right"),
    AfterValidator(_node_keys_match),
]
"""Nodes as they come: an object keyed by node url, or a list, in which the last of a url wins."""


def nodes_by_key(nodes: dict[str, PlainNode] | list[PlainNode]) -> dict[Key, PlainNode]:
    """The nodes keyed by their canonical url; of several with the same url the last wins."""
    return {node.key: node for node in (nodes.values() if isinstance(nodes, dict) else nodes)}


class Version(NamedTuple):
    """The state of an origin's part (FEDERATION.md, rule 2): `seq` counts its changes, over all epochs.

    The epoch is `seconds` with a random `nonce`, new at every start of the origin. Versions compare as tuples.
    """

    seconds: Annotated[int, Field(ge=0, lt=2**40)] = 0
    nonce: Annotated[str, Field(pattern=r"^[0-9a-f]{0,16}$")] = ""
    seq: Count = 0

    def at(self, seq: int) -> Version:
        """The same epoch at another count."""
        return Version(self.seconds, self.nonce, seq)

    def same_epoch(self, other: Version) -> bool:
        """Whether both are of one start of the origin."""
        return self[:2] == other[:2]


NOTHING = Version()
"""Below every version: nothing of an origin is known."""

Marks = Annotated[dict[ServiceUrl, Version], Field(max_length=2**16)]
"""For each origin, the version at which a registry equals it (FEDERATION.md, rule 3)."""


class Record(Model):
    """One node in a delta: `seq` is the count at which the origin last changed it.

    `node` absent: its body stands in the message's `nodes`, once for old and new readers. `gone` is a tombstone.
    `adopted`: the origin wrote it on behalf of an older service (rule 15).
    """

    seq: Count
    node: Node | None = None
    gone: bool = False
    adopted: bool = False


class Delta(Model):
    """What changed in an origin's part in `(since, to]` (FEDERATION.md, rule 4).

    `since` of nothing is a snapshot: it replaces whatever the receiver has of that origin. A delta too large for
    one message comes in pages: `complete` is false for all but the last, and `since` of each is `to` of the one
    before. `epochs` are the last versions of the origin's earlier epochs, newest last. `age` is how many
    seconds ago the sender last knew the origin to be there (rule 12). `content` stands for all records of the part at
    `to`, by the origin's own word, so that whoever has followed it can tell whether it holds the same (rule 11).
    """

    origin: ServiceUrl
    since: Version
    to: Version
    floor: Version = NOTHING
    epochs: tuple[Version, ...] = Field(default=(), max_length=64)
    complete: bool = True
    content: Digest | None = None
    age: Seconds = 0
    records: dict[ServiceUrl, Record] = Field(default_factory=dict)


class Beacon(Model):
    """What registries that are connected tell each other when there is no news (FEDERATION.md, rule 11).

    `vector` stands for the versions and contents of all parts, `origins` for their names alone. `ages` are for each
    origin, in the order of their canonical urls, the seconds since it was known to be there (rule 12); they are of use
    to a receiver that knows the same origins.
    """

    vector: Digest
    origins: Digest
    ages: tuple[Seconds, ...] = Field(default=(), max_length=2**16)


class Ask(Model):
    """Asks for a receipt of an origin's part at `version`, within so many seconds (FEDERATION.md, rule 16)."""

    origin: ServiceUrl
    version: Version
    within: Annotated[float, Field(gt=0, le=3600, allow_inf_nan=False)]


class Receipt(Model):
    """Which registries have an origin's part at `version`, and which were asked and have not said so."""

    origin: ServiceUrl
    version: Version
    reached: tuple[ServiceUrl, ...] = Field(default=(), max_length=2**16)
    missing: tuple[ServiceUrl, ...] = Field(default=(), max_length=2**16)


class Heartbeat(Model):
    """The body of `POST /heartbeat`: the node that is there."""

    url: ServiceUrl


class Farewell(Model):
    """The body of `POST /disconnect`: who leaves.

    The rest is kodo's own addition. `version`: the one at which the part of a registry that leaves is empty.
    `everywhere`: it leaves the mesh, not this registry alone, as who has moved to another does.
    """

    url: ServiceUrl
    version: Version | None = None
    everywhere: bool = False


class PeerMessage(Model):
    """The body of `POST /connect` and `POST /update/node`.

    All after `nodes` is kodo's own addition: `marks` present says that the sender speaks deltas. It names in them what
    it has, in a handshake all of it. `resumes`: a handshake takes up a connection that there was, which a registry that
    has left in the meantime does not.
    """

    url: ServiceUrl
    organization: Text | None = None
    feed: bool = False
    nodes: Nodes = Field(default_factory=dict)
    deltas: tuple[Delta, ...] = Field(default=(), max_length=2**12)
    marks: Marks | None = None
    beacon: Beacon | None = None
    asks: tuple[Ask, ...] = Field(default=(), max_length=2**10)
    receipts: tuple[Receipt, ...] = Field(default=(), max_length=2**10)
    resumes: bool = False


class Offer(Model):
    """`providers` in the reply to `POST /connect`: everything the registry lists."""

    url: ServiceUrl
    organization: Text | None = None
    feed: bool = False
    nodes: Nodes = Field(default_factory=dict)


class PeerReply(Model):
    """What a registry reads in the answer of a peer, whichever of the two shapes it has.

    `contents` answers a beacon that did not fit: with them, `marks` are all that the peer has. `lease` answers a node
    that beats: how many seconds it may be silent.
    """

    url: ServiceUrl | None = None
    registry: bool = False
    provider: bool = False
    providers: Offer | None = None
    deltas: tuple[Delta, ...] = ()
    marks: Marks | None = None
    contents: Annotated[dict[ServiceUrl, Digest], Field(max_length=2**16)] | None = None
    receipts: tuple[Receipt, ...] = Field(default=(), max_length=2**10)
    handshake: bool = False
    lease: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None

    @property
    def feed(self) -> bool:
        """Whether the peer wants news, by the roles that the common reply tells."""
        return self.registry and not self.provider
