"""A registry's durable state: opened under a lock, kept whole, set aside when it is broken.

What is durable is a SQLite file, the catalogue itself, or, when the path ends in `.json`, one readable document that is
replaced atomically with every commit while the catalogue is in memory. A service that is no registry keeps nothing.

- What was committed survives a kill and a power cut: SQLite with `synchronous = FULL`, or write, flush, fsync, rename,
  fsync of the folder.
- A cache that is truncated, damaged or another registry's is renamed to `NAME.set-aside-TIME` and said so in the log;
  it is never taken in silence, and never emptied in silence. What it holds goes on in a new one, if its records are
  intact: all else follows from them.
- A cache that another process holds is an error (`InUseError`) that touches nothing.
"""

from __future__ import annotations

import logging
import os
import sqlite3
from collections.abc import Callable, Iterable, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from functools import partial, reduce
from hashlib import sha256
from operator import xor
from pathlib import Path
from tempfile import SpooledTemporaryFile
from typing import IO, Annotated, Any

import orjson
from filelock import FileLock, Timeout
from pydantic import Field, ValidationError

from kodo.catalogue import Catalogue
from kodo.checkup import aside, beginning_of, has_log, is_catalogue, log_of
from kodo.core.instructions import Entry, Save
from kodo.core.parts import Part
from kodo.core.peers import PeerState
from kodo.errors import CacheError, DamagedCacheError, InUseError, reason_of
from kodo.models import (
    Count,
    Key,
    Model,
    Node,
    Nodes,
    ServiceUrl,
    Text,
    Time,
    Version,
    canonical,
    digest,
    nodes_by_key,
)
from kodo.opening import is_damage, is_unreadable

log = logging.getLogger("kodo")

SPOOLED = 2**20
"""Bytes of an answer that are held in memory."""
ROOM = 2**22
"""Bytes that SQLite's log is given at once. A commit that makes it longer takes up to twice as long as one within it,
since the file system has to note the new length as well; and until it is full for the first time, each would."""


@dataclass(frozen=True, slots=True)
class Owner:
    """Whose state it is, as `/_cache` shows it."""

    url: str
    organization: str | None = None
    feed: bool = False


class Cache:
    """The catalogue of a service, and how its changes become durable.

    `write` collects changes, `commit` makes them durable; both from one thread at a time, inside `catalogue.writing()`.
    """

    def __init__(self, owner: Owner, path: Path | None = None, *, reset: bool = False) -> None:
        """Open the durable state at `path`, or none. Raises `InUseError`, or `CacheError` when it cannot be opened."""
        self.owner = owner
        self._lazy: dict[Key, PeerState] = {}
        # What was written since the last commit; whether all that is listed was listed anew.
        self._unsaved: list[Save] = []
        self._mended = False
        self._lock: FileLock | None = None
        self._failed = False
        self._file: list[tuple[int, int]] = []
        # The length of SQLite's log when it was given room.
        self._room = 0
        try:
            self.path = path = path.resolve() if path is not None else None
            self._lock = _lock(path) if path is not None else None
            self.catalogue = self._open(reset=reset)
            self._file = _identity(self.catalogue.path)
        except (OSError, RuntimeError, sqlite3.Error) as error:
            self._unlock()
            raise CacheError(
                f"expected to open the cache {path}, but {reason_of(error)}; check its path, its rights and the disk"
            ) from error
        except BaseException:
            self._unlock()
            raise

    def _open(self, *, reset: bool) -> Catalogue:
        path = self.path
        if path is None:
            return Catalogue(self.owner.url)
        if not path.exists() and has_log(path):
            kept = aside(path)
            log.error("set aside the log of a cache that is gone as %s", kept)
            _set_aside(path, kept)
        if path.exists() or reset:
            # Of a rescue that a kill ended: made again if need be, and nothing that takes a place later on.
            _remove_files(_rescued(path))
        else:
            _end_rescue(path)
        present = path.exists()
        log.info("%s cache %s", "loading from" if present and not reset else "ignore", path)
        if not present:
            log.info("there is no such cache yet: it is made now")
        if present and not path.is_file():
            raise CacheError(f"expected a file as the cache, but {path} is none; choose another path")
        if reset and present:
            _remove(path)
        opened = self._open_json if path.suffix == ".json" else self._open_database
        try:
            return opened(path)
        except DamagedCacheError as error:
            rescued = path.suffix != ".json" and self._rescue(path)
            kept = aside(path)
            log.error("set aside cache %s as %s: %s", path, kept, error)
            _set_aside(path, kept)
        if rescued:
            _end_rescue(path)
        return opened(path)

    def _rescue(self, path: Path) -> bool:
        """Make a cache beside it of the records in a damaged one, if they are intact; whether that could be done.

        Raises `sqlite3.Error` when it is not for the records that it cannot, but for want of room, say.
        """
        try:
            with closing(Catalogue(self.owner.url, _rescued(path))) as catalogue:
                catalogue.take_over(path)
        except (DamagedCacheError, sqlite3.Error) as error:
            _remove_files(_rescued(path))
            if not (isinstance(error, DamagedCacheError) or is_unreadable(error)):
                raise
            log.debug("nothing is taken over: %s", error)
            return False
        return True

    def _open_database(self, path: Path) -> Catalogue:
        return Catalogue(self.owner.url, path)

    def _open_json(self, path: Path) -> Catalogue:
        catalogue = Catalogue(self.owner.url)
        if path.exists():
            try:
                catalogue.write(read_document(path, self.owner.url))
                catalogue.commit()
            except BaseException:
                catalogue.close()
                raise
        return catalogue

    def write(self, save: Save) -> None:
        """Make the changes of a Save; a lazy one waits for the next that is not."""
        for peer in save.peers:
            self._lazy[peer.key] = peer
        for key in save.forgotten:
            self._lazy.pop(key, None)
        if not save.lazy:
            whole = replace(save, peers=tuple(self._lazy.values())) if self._lazy else save
            self._do(partial(self.catalogue.write, whole))
            self._unsaved.append(whole)
            self._lazy.clear()

    def commit(self) -> None:
        """Make what was written durable. Raises `CacheError`: then nothing of it may be acknowledged."""
        self._do(self._commit)
        self._unsaved.clear()

    def catch_up(self) -> None:
        """Do some of what makes reading fast, between commits (`Catalogue.catch_up`). Raises `CacheError`."""
        self._do(self.catalogue.catch_up)

    def mend(self, damage: Exception) -> None:
        """List anew all that is listed, since some of it is damaged: from the records, and durable as a `write` is.

        Once at most in the life of a cache: if that does not help, it is for people to see to the disk. Raises
        `CacheError` when it cannot be done; then what is listed is as damaged as before.
        """
        if self._mended:
            return
        self._mended = True
        log.error("%s; all of it is listed anew", damage)
        try:
            self.catalogue.rollback()
            self.catalogue.list_anew()
            for save in self._unsaved:
                self.catalogue.write(save)
        except sqlite3.Error as error:
            raise self._unwritten(error) from error

    def _do(self, work: Callable[[], None]) -> None:
        """Write; once more when what stands there is damaged and can be mended."""
        try:
            try:
                work()
            except (sqlite3.Error, DamagedCacheError) as error:
                if self._mended or not _is_damage(error):
                    raise
                self.mend(DamagedCacheError(f"{self._where} is damaged: {error}"))
                work()
        except (OSError, sqlite3.Error) as error:
            raise self._unwritten(error) from error

    @property
    def _where(self) -> str:
        return "what is listed, in memory" if self.path is None else f"the cache {self.path}"

    @property
    def is_mended(self) -> bool:
        """Whether all that is listed was listed anew, which is done once."""
        return self._mended

    def _commit(self) -> None:
        if self._file and self._file != _identity(self.path):
            raise CacheError(f"the cache {self.path} was removed or replaced while the service was running")
        self.catalogue.commit()
        self._make_room()
        if self.path is not None and self.path.suffix == ".json":
            write_document(self.path, self._owner() | self.catalogue.document())

    def _unwritten(self, error: Exception) -> CacheError:
        kind = DamagedCacheError if _is_damage(error) else CacheError
        return kind(f"expected to write {self._where}, but {reason_of(error)}")

    def _make_room(self) -> None:
        """Give the log room, when it has another length than that had. Where that cannot be, commits take longer.

        SQLite keeps no log where it cannot share memory, as on some network file systems. It reads up to the first
        frame that it did not write (https://sqlite.org/fileformat2.html, 4.1), and holds its locks on other files.
        """
        if self.catalogue.path is None:
            return
        log_file = log_of(self.catalogue.path)
        with suppress(OSError, AttributeError):
            size = log_file.stat().st_size
            if size == self._room:
                return
            self._room = size + ROOM
            with log_file.open("r+b") as file:
                os.posix_fallocate(file.fileno(), size, ROOM)

    def spool(self, more: Mapping[str, Any], *, brief: bool = False) -> IO[bytes]:
        """What `/_cache` shows, the five keys of PROTOCOL.md, and `more` behind them, as JSON in a file of its own.

        It is read in one transaction, which no slow reader keeps open: what takes much memory goes to disk meanwhile.
        Raises `CacheError` when there is no room for it.
        """
        folder = None if self.path is None else str(self.path.parent)
        file = SpooledTemporaryFile(SPOOLED, dir=folder)  # noqa: SIM115, closed by who sends it
        try:
            file.write(orjson.dumps(self._owner())[:-1] + b",")
            file.writelines(self.catalogue.tree_json(brief=brief))
            file.write(b"," * bool(more) + orjson.dumps(more)[1:])
            file.flush()
        except OSError as error:
            # Closing would write what waits, and fail as this did.
            with suppress(OSError):
                file.close()
            raise CacheError(f"expected room on the disk for so long an answer, but {reason_of(error)}") from error
        return file

    def _owner(self) -> dict[str, Any]:
        return {"url": self.owner.url, "organization": self.owner.organization, "feed": self.owner.feed}

    def rollback(self) -> None:
        """Forget what was not committed, for good: what is in memory is then no longer what is durable."""
        self._failed = True
        self._unsaved.clear()
        self.catalogue.rollback()

    def close(self) -> None:
        """Write what waited, close, and let go of the lock."""
        try:
            if self._lazy and not self._failed:
                self.catalogue.resume()
                with self.catalogue.writing():
                    self.write(Save())
                    self.commit()
        finally:
            self.catalogue.close()
            self._unlock()

    def _unlock(self) -> None:
        if self._lock is not None:
            self._lock.release()


def _is_damage(error: Exception) -> bool:
    """Tables of FTS5 that do not agree are a broken constraint, if they are noticed at all."""
    return isinstance(error, sqlite3.IntegrityError | DamagedCacheError) or is_damage(error)


def _lock(path: Path) -> FileLock:
    lock_file = path.with_name(path.name + ".lock")
    _make_place(path, lock_file)
    lock = FileLock(lock_file, blocking=False)
    try:
        lock.acquire()
    except Timeout as error:
        raise InUseError(
            f"the cache {path} is in use by another process; stop it, or give this service a cache of its own"
        ) from error
    return lock


def _make_place(path: Path, lock_file: Path) -> None:
    """Make the folder of a cache and the file of its lock: the lock takes a place where none can be for one in use."""
    folder = path.parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock_file.touch()
    except (FileExistsError, NotADirectoryError) as error:
        file = next(each for each in (folder, *folder.parents) if each.exists())
        raise CacheError(f"expected a folder for the cache {path}, but {file} is a file; choose another") from error
    except FileNotFoundError as error:
        raise CacheError(f"expected to make the cache {path}, but {folder} takes no files; choose another") from error


def _files(path: Path) -> list[Path]:
    """The cache and what SQLite keeps beside it."""
    return [path, log_of(path), path.with_name(f"{path.name}-shm")]


def _identity(path: Path | None) -> list[tuple[int, int]]:
    """Which files stand there, the cache and its log: others may have taken their places."""
    found = []
    with suppress(FileNotFoundError):
        for file in _files(path)[:2] if path is not None else ():
            status = file.stat()
            found.append((status.st_dev, status.st_ino))
    return found


def _remove(path: Path) -> None:
    """Remove a cache that is to be replaced; a file that is no cache of kodo was named by mistake, and is kept."""
    ours = _is_document(path) if path.suffix == ".json" else is_catalogue(beginning_of(path))
    if not ours:
        kept = aside(path)
        log.warning("%s is no cache of kodo; kept as %s", path, kept)
        _set_aside(path, kept)
    _remove_files(path)


def _remove_files(path: Path) -> None:
    for file_name in _files(path):
        file_name.unlink(missing_ok=True)


def _rescued(path: Path) -> Path:
    """Where a new cache is made of what is intact in a damaged one, until it takes its place."""
    return path.with_name(f"{path.name}.rescued")


def _end_rescue(path: Path) -> None:
    """Let what was made of a damaged cache that was set aside take its place: now, or where a start was ended before.

    Only what is whole: SQLite removes the log of a database when it is closed.
    """
    if _rescued(path).exists() and not has_log(_rescued(path)):
        _rescued(path).rename(path)
        log.warning("its records are intact: they are taken over into a new cache %s, and listed anew", path)


def _is_document(path: Path) -> bool:
    try:
        found = orjson.loads(path.read_bytes())
    except ValueError:
        return False
    return isinstance(found, dict) and {"url", "nodes", "providers"} <= found.keys()


def _set_aside(path: Path, kept: Path) -> None:
    """Give a cache this name. It is said before: the start after a kill finds no cache, and has nothing to tell."""
    for file, kept_file in zip(_files(path), _files(kept), strict=True):
        with suppress(FileNotFoundError):
            file.rename(kept_file)


# -- the document ------------------------------------------------------------------------------------------


class StoredRecord(Model):
    """One node in a part; its body stands in `nodes` or `providers` unless it is given here. Remains count below 0."""

    seq: Annotated[int, Field(ge=-(2**63), lt=2**63)]
    flows_seq: Count
    via: ServiceUrl | None = None
    gone: bool = False
    node: Node | None = None


class StoredPart(Model):
    """An origin's part: how far it is known, and its records by node url."""

    origin: ServiceUrl
    version: Version
    floor: Version
    epochs: tuple[Version, ...] = ()
    via: ServiceUrl | None = None
    seen: Time | None = None
    content: Annotated[int, Field(ge=0, lt=2**64)] = 0
    records: dict[str, StoredRecord] = Field(default_factory=dict)


class StoredProvider(Model):
    """A peer in the cache, with the nodes that are known through it."""

    url: ServiceUrl
    organization: Text | None = None
    feed: bool = False
    nodes: Nodes = Field(default_factory=dict)


class Document(Model):
    """The `.json` cache. Without `parts` it is of the older shape, whose versions are made anew."""

    url: ServiceUrl
    organization: Text | None = None
    feed: bool = False
    nodes: Nodes = Field(default_factory=dict)
    providers: dict[str, StoredProvider] | list[StoredProvider] = Field(
        default_factory=dict, union_mode="left_to_right"
    )
    parts: tuple[StoredPart, ...] | None = None
    peers: tuple[PeerState, ...] = ()

    def each_provider(self) -> Iterable[StoredProvider]:
        """The peers, whichever of the two shapes they came in."""
        return self.providers.values() if isinstance(self.providers, dict) else self.providers


def read_document(path: Path, url: str) -> Save:
    """The state in the `.json` cache of the registry `url`, as one Save. Raises `DamagedCacheError` if it is none."""
    try:
        raw = orjson.loads(path.read_bytes())
        if not isinstance(raw, dict):
            raise DamagedCacheError("expected the JSON of a registry's state, but it is no object")
        checksum = raw.pop("checksum", None)
        if checksum is not None and checksum != _checksum(orjson.dumps(raw)):
            raise DamagedCacheError("its checksum does not fit its content (without a checksum it is read as it is)")
        document = Document.model_validate(raw)
    except ValueError as error:
        reason = f"{error.error_count()} fields are not" if isinstance(error, ValidationError) else error
        raise DamagedCacheError(f"expected the JSON of a registry's state, but {reason}") from error
    if canonical(document.url) != canonical(url):
        raise DamagedCacheError(f"it belongs to {document.url}")
    return _state(document) if document.parts is not None else _older_state(document)


def write_document(path: Path, document: dict[str, Any]) -> None:
    """Replace the `.json` cache atomically and durably."""
    plain = orjson.loads(orjson.dumps(document, default=list))
    sealed = {**plain, "checksum": _checksum(orjson.dumps(plain))}
    new = path.with_name(path.name + ".new")
    with new.open("wb") as file:
        file.write(orjson.dumps(sealed, option=orjson.OPT_INDENT_2))
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _checksum(content: bytes) -> str:
    return f"sha256:{sha256(content).hexdigest()}"


def _state(document: Document) -> Save:
    bodies: dict[Key, Node] = {**nodes_by_key(document.nodes)}
    for provider in document.each_provider():
        bodies.update(nodes_by_key(provider.nodes))
    entries = [
        _entry(canonical(part.origin), url, record, bodies)
        for part in document.parts or ()
        for url, record in part.records.items()
    ]
    parts = [
        Part(canonical(part.origin), part.version, part.floor, part.epochs, _key(part.via), part.content, part.seen)
        for part in document.parts or ()
    ]
    return Save(entries=tuple(entries), parts=tuple(parts), peers=document.peers)


def _key(url: str | None) -> Key | None:
    return None if url is None else canonical(url)


def _entry(origin: Key, url: str, record: StoredRecord, bodies: dict[Key, Node]) -> Entry:
    node = record.node or bodies.get(canonical(url))
    if node is None:
        raise DamagedCacheError("a record has no node")
    via = _key(record.via)
    flows = digest(node.flows or {})
    return Entry(origin, node.key, node, record.seq, record.flows_seq, flows, via, record.gone)


def _older_state(document: Document) -> Save:
    """The older shape: what it lists is this registry's own, on behalf of the provider that told it (rule 15)."""
    own = canonical(document.url)
    found: dict[Key, tuple[Node, Key | None]] = {
        key: (node, None) for key, node in nodes_by_key(document.nodes).items()
    }
    peers = []
    for provider in document.each_provider():
        via = canonical(provider.url)
        peers.append(
            PeerState(via, provider.url, provider.url, provider.organization, provider.feed, False, connected=True)
        )
        for key, node in nodes_by_key(provider.nodes).items():
            if key not in found or (node.modified or "") > (found[key][0].modified or ""):
                found[key] = (node, via)
    entries = [
        Entry(own, key, node, seq, seq, digest(node.flows or {}), via)
        for seq, (key, (node, via)) in enumerate(found.items(), start=1)
    ]
    content = reduce(xor, (entry.content for entry in entries), 0)
    part = Part(own, Version(0, "", len(entries)), content=content)
    return Save(entries=tuple(entries), parts=(part,), peers=tuple(peers))
