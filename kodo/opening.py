"""How the database of a catalogue is opened: its tables, what is refused, and what an older one becomes.

```
 no file ------> tables are made ------------------------------------------+
 file, log ----> the log taken up, the form, rows, and the checkup's word --+--> the one connection that writes
        \\-----> DamagedCacheError: whoever opened it sets it aside
```

A file is opened under the cache's lock. What SQLite leaves out of its log, since something before it is damaged, is
told and kept; what the whole file is like is the checkup's affair (`kodo.checkup`).
"""

from __future__ import annotations

import logging
import os
import sqlite3
import time
from collections.abc import Collection
from contextlib import closing
from functools import cache
from pathlib import Path
from shutil import copy
from typing import Any

from pydantic import TypeAdapter

from kodo.checkup import APPLICATION_ID, aside, checkup_of, commits_in_log, has_log, log_of
from kodo.core.parts import Part
from kodo.core.peers import PeerState
from kodo.errors import DamagedCacheError, InUseError
from kodo.models import Key, canonical

log = logging.getLogger("kodo")

SCHEMA_VERSION = 5
PATIENCE = 5.0
"""Seconds for which it is waited until another process lets go of the file."""
LOGGED = 8000
"""Pages in SQLite's log (32 MiB) before they go to their places: once for each, however many commits changed it."""
MERGED = 8
"""Segments of the trigrams that are merged into one as they come: of 4, SQLite's default, writing them costs 1.4 times
as much; of 16, which is cheaper still, a search looks into so many that it takes half as long again."""

_SCHEMA = f"""
CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT) WITHOUT ROWID;
CREATE TABLE part (origin TEXT PRIMARY KEY, state TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE peer (key TEXT PRIMARY KEY, state TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE record (
  id INTEGER PRIMARY KEY, origin TEXT NOT NULL, key TEXT NOT NULL, url TEXT NOT NULL, organization TEXT,
  created TEXT, modified TEXT, heartbeat TEXT, status TEXT NOT NULL,
  seq INTEGER NOT NULL, flows_seq INTEGER NOT NULL, digest TEXT NOT NULL, size INTEGER NOT NULL,
  via TEXT, gone INTEGER NOT NULL, listed INTEGER NOT NULL DEFAULT 0, flows TEXT NOT NULL, UNIQUE (key, origin));
CREATE INDEX record_seq ON record (origin, seq);
CREATE INDEX record_url ON record (url, size) WHERE listed;
CREATE INDEX record_organization ON record (organization, url, size) WHERE listed;
CREATE INDEX record_created ON record (created, url) WHERE listed;
CREATE INDEX record_modified ON record (modified, url) WHERE listed;
CREATE INDEX record_heartbeat ON record (heartbeat, url) WHERE listed;
CREATE TABLE flow (
  id INTEGER PRIMARY KEY, record INTEGER NOT NULL, node TEXT NOT NULL, url TEXT NOT NULL, name TEXT NOT NULL,
  author TEXT NOT NULL, description TEXT NOT NULL, tags TEXT NOT NULL, tag_key TEXT NOT NULL);
CREATE TABLE tag (tag TEXT NOT NULL, flow INTEGER NOT NULL, PRIMARY KEY (tag, flow)) WITHOUT ROWID;
CREATE TABLE flow_text (
  id INTEGER PRIMARY KEY, organization TEXT NOT NULL, name TEXT NOT NULL, author TEXT NOT NULL,
  description TEXT NOT NULL, tags TEXT NOT NULL);
CREATE VIRTUAL TABLE trigram USING fts5(
  organization, name, author, description, tags, tokenize = 'trigram case_sensitive 1',
  content = 'flow_text', content_rowid = 'id', columnsize = 0);
CREATE VIEW unindexed AS
  SELECT * FROM flow_text WHERE id > (SELECT CAST(value AS INTEGER) FROM meta WHERE name = 'indexed');
INSERT INTO trigram (trigram, rank) VALUES ('automerge', {MERGED});
INSERT INTO meta VALUES ('indexed', 0);
CREATE TABLE tally (kind TEXT NOT NULL, value TEXT NOT NULL, flows INTEGER NOT NULL, PRIMARY KEY (kind, value))
  WITHOUT ROWID;
INSERT INTO tally VALUES ('total', '', 0);
"""

_UPGRADES = {
    3: """
DROP INDEX flow_node;
DROP INDEX record_organization;
CREATE INDEX record_url ON record (url, size) WHERE listed;
CREATE INDEX record_organization ON record (organization, url, size) WHERE listed;
UPDATE record SET size = (SELECT count(*) FROM json_each(flows));
""",
    4: "DROP TABLE staged",
}
"""From a version to the next: a cache that an older kodo wrote is taken over, with all that was acknowledged."""
FLOW_INDEXES = {"flow_record": "(record, url)", "flow_name": "(name, node, url)"}
_STAGED = """
CREATE TEMP TABLE staged (
  peer TEXT NOT NULL, origin TEXT NOT NULL, key TEXT NOT NULL, url TEXT NOT NULL, organization TEXT,
  created TEXT, modified TEXT, heartbeat TEXT, status TEXT NOT NULL,
  seq INTEGER NOT NULL, flows_seq INTEGER NOT NULL, digest TEXT, size INTEGER,
  via TEXT, gone INTEGER NOT NULL, flows TEXT, PRIMARY KEY (origin, peer, key)) WITHOUT ROWID
"""
"""Pages that are kept aside end with the life that began them: in a file of its own, which SQLite deletes at its end,
and which is never waited for (https://sqlite.org/tempfiles.html, 5: where it is)."""
_DAMAGE = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}
read_part, read_peer = TypeAdapter(Part).validate_json, TypeAdapter(PeerState).validate_json


def connect(path: Path | None, *, create: bool = True) -> sqlite3.Connection:
    """A connection to this file, or to a database in memory. Raises `sqlite3.Error`."""
    where = f"{path.absolute().as_uri()}?mode={'rwc' if create else 'rw'}" if path is not None else ":memory:"
    db = sqlite3.connect(where, uri=True, isolation_level=None, check_same_thread=False, timeout=10)
    db.create_function("casefold", 1, lambda text: None if text is None else str(text).casefold(), deterministic=True)
    return db


def is_damage(error: BaseException, codes: Collection[int] = _DAMAGE) -> bool:
    """Whether the file itself is broken; not that it is locked, cannot be read, or that the disk is full.

    A text that cannot be decoded has no code. Where a file is opened a statement that SQLite does not understand
    (SQLITE_ERROR) names what should be there; of questions it may be the question's fault.
    """
    if isinstance(error, sqlite3.Error):
        return getattr(error, "sqlite_errorcode", sqlite3.SQLITE_NOTADB) & 0xFF in codes
    return isinstance(error, UnicodeDecodeError)


def is_unreadable(error: BaseException) -> bool:
    """Whether a file that was opened just now is broken, or other than kodo makes one."""
    return is_damage(error, {*_DAMAGE, sqlite3.SQLITE_ERROR, sqlite3.SQLITE_CONSTRAINT})


def new_database(url: str, path: Path | None) -> sqlite3.Connection:
    """The database of a new catalogue of the service `url`. Raises `sqlite3.Error`."""
    db = connect(path)
    try:
        _make_ready(db, path)
        stamp = f"PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {SCHEMA_VERSION};"
        db.executescript(f"BEGIN; {stamp} {_SCHEMA}")
        index_flows(db)
        db.execute("INSERT INTO meta VALUES ('url', ?)", (url,))
        db.execute("COMMIT")
        # Out of the log at once: a file that came without it would look like one that nobody has used yet.
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    except BaseException:
        db.close()
        raise
    return db


def stored_database(url: str, path: Path) -> tuple[sqlite3.Connection, dict[Key, int]]:
    """The database of the service `url` that is there, and what the records of each part in it come to.

    Raises `DamagedCacheError` when it is no intact catalogue of this service, `InUseError` when another process does
    not let go of it, `sqlite3.Error` when it cannot be opened for another reason.
    """
    checkup = checkup_of(path)
    if checkup is None:
        raise DamagedCacheError(f"expected a catalogue of kodo in {path}, but it is no database")
    # What this SQLite cannot do at all is no fault of the file, and found out before it is opened.
    _own_form()
    kept = _keep_log(path)
    db = connect(path)
    try:
        if kept is not None:
            _check_log(db, path, kept)
        db.execute("BEGIN IMMEDIATE")
        _check_form(db, path)
        check_rows(db, url, path)
        found = checkup.found()
        if found.fault is not None:
            raise DamagedCacheError(f"expected an intact catalogue in {path}, but {found.fault}")
        db.execute("COMMIT")
        _make_ready(db, path)
    except BaseException as error:
        db.close()
        # Else it would look for the log of this file by its name, and find that of the file that comes next.
        checkup.wait()
        if kept is not None and log_of(path).exists():
            kept.unlink(missing_ok=True)
        elif kept is not None and kept.exists():
            kept.replace(aside(log_of(path)))
        if is_unreadable(error):
            raise DamagedCacheError(f"expected a catalogue of kodo in {path}, but {error}") from error
        raise
    return db, {Key(origin): content for origin, content in found.contents.items()}


def _make_ready(db: sqlite3.Connection, path: Path | None) -> None:
    """Make a connection the one that writes."""
    if path is None:
        db.execute("PRAGMA temp_store = MEMORY")
    db.execute(_STAGED)
    if path is not None:
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")
        db.execute(f"PRAGMA wal_autocheckpoint = {LOGGED}")


# -- the log -----------------------------------------------------------------------------------------------------------


def _keep_log(path: Path) -> Path | None:
    """SQLite's log of this database under a second name, which needs no room: SQLite removes the first one."""
    log_file = log_of(path)
    kept = log_file.with_name(f"{log_file.name}.kept")
    if not has_log(path):
        return None
    # Left by a start that was killed: the log it had is still there.
    kept.unlink(missing_ok=True)
    try:
        os.link(log_file, kept)
    except OSError:  # a file system without second names
        copy(log_file, kept)
    return kept


def _check_log(db: sqlite3.Connection, path: Path, kept: Path) -> None:
    """Say which commits SQLite leaves out of the log, since something before them is damaged; `kept` is the log.

    Each is on disk before the next begins: only the last may be incomplete, after a power cut. What is before the
    damage goes to its place, so that the next commit begins the log anew, and nothing of now is found there then.
    A mesh takes a registry with an older disk (FEDERATION.md, rule 10), and the log is kept for people.
    """
    (size,) = db.execute("PRAGMA page_size").fetchone()
    commits = commits_in_log(kept, size)
    taken = _checkpointed(db, path)
    lost = sum(number > taken for number in commits)
    if not lost:
        kept.unlink()
        return
    # SQLite goes on to write into the file that has two names.
    apart = copy(kept, aside(log_of(path)))
    kept.unlink()
    if lost > 1:
        log.error("%d commits in the log of %s are behind damage, and left out; kept as %s", lost, path, apart)
    else:
        said = "the last commit in the log of %s is incomplete, as after a power cut; kept as %s"
        log.warning(said, path, apart)


def _checkpointed(db: sqlite3.Connection, path: Path) -> int:
    """How many frames of its log SQLite takes, all of which are in their places then."""
    end = time.monotonic() + PATIENCE
    while True:
        busy, taken, _ = db.execute("PRAGMA wal_checkpoint").fetchone()
        if not busy:
            return int(taken)
        if time.monotonic() > end:
            raise InUseError(f"the cache {path} is in use by another process; end that one")
        time.sleep(0.05)


# -- form and rows -----------------------------------------------------------------------------------------------------


def index_flows(db: sqlite3.Connection) -> None:
    """Make the indexes of flows."""
    for name, columns in FLOW_INDEXES.items():
        db.execute(f"CREATE INDEX {name} ON flow {columns}")


def _form(db: sqlite3.Connection) -> set[tuple[Any, ...]]:
    """Which tables and indexes stand in a database, and how they were made."""
    made = "iif(name GLOB 'trigram_*', NULL, sql)"
    return set(db.execute(f"SELECT type, name, tbl_name, {made} FROM sqlite_schema"))


@cache
def _own_form() -> set[tuple[Any, ...]]:
    """The form of a catalogue of this version."""
    with closing(connect(None)) as db:
        db.executescript(_SCHEMA)
        index_flows(db)
        return _form(db)


def _check_form(db: sqlite3.Connection, path: Path) -> None:
    """Refuse what is no catalogue of kodo; bring one of an older version to the present one."""
    application, version = _stamps(db, "main")
    if application != APPLICATION_ID or version not in {*_UPGRADES, SCHEMA_VERSION}:
        raise DamagedCacheError(f"expected a catalogue of kodo in {path}, of version {SCHEMA_VERSION}")
    for older in range(version, SCHEMA_VERSION):
        for statement in _UPGRADES[older].split(";"):
            db.execute(statement)
        db.execute(f"PRAGMA user_version = {older + 1}")
    if missing := _own_form() - _form(db):
        names = ", ".join(sorted(name for _, name, *_ in missing))
        raise DamagedCacheError(f"expected an intact catalogue in {path}, but these are not as made: {names}")
    _check_trigrams(db, path)


def _stamps(db: sqlite3.Connection, schema: str) -> tuple[int, int]:
    """What a database says that it is: of which application, and in which version."""
    application, version = (db.execute(f"PRAGMA {schema}.{name}") for name in ("application_id", "user_version"))
    return application.fetchone()[0], version.fetchone()[0]


def _check_trigrams(db: sqlite3.Connection, path: Path) -> None:
    """Forget the trigrams, to be written anew, if FTS5 does not know its own tables again."""
    try:
        db.execute("SELECT 1 FROM trigram WHERE trigram MATCH 'kodo'").fetchone()
    except sqlite3.Error as error:
        if not is_damage(error):
            raise
        log.error("what searches go by in %s is damaged, and is written anew: %s", path, error)
        db.execute("INSERT INTO trigram (trigram) VALUES ('delete-all')")
        db.execute("UPDATE meta SET value = 0 WHERE name = 'indexed'")


def check_rows(db: sqlite3.Connection, url: str, path: Path) -> None:
    """Refuse what is another service's, and parts and peers that cannot be read: SQLite does not look into rows."""
    try:
        noted = dict(db.execute("SELECT name, value FROM meta"))
        if canonical(noted["url"]) != canonical(url):
            raise DamagedCacheError(f"expected the cache of {url}, but it is that of {noted['url']}")
        int(noted["indexed"])
        # A key that is not its row's would be a second one of that origin or peer with the next change.
        right = all(read_part(state).origin == key for key, state in db.execute("SELECT origin, state FROM part"))
        if not right or any(read_peer(state).key != key for key, state in db.execute("SELECT key, state FROM peer")):
            raise ValueError("expected every part and peer under its own key")
    except (KeyError, ValueError) as error:
        raise DamagedCacheError(f"expected an intact catalogue in {path}, but a row is damaged") from error


# -- what is damaged ---------------------------------------------------------------------------------------------------


def attach(db: sqlite3.Connection, path: Path) -> None:
    """Let this connection read a damaged catalogue, as `damaged`, without a change to it or beside it.

    Raises `DamagedCacheError` when it is none of this version, `sqlite3.Error` when it cannot be read.
    """
    alone = "" if has_log(path) else "&immutable=1"
    db.execute("ATTACH ? AS damaged", (f"{path.absolute().as_uri()}?mode=ro{alone}",))
    if _stamps(db, "damaged") != (APPLICATION_ID, SCHEMA_VERSION):
        db.execute("DETACH damaged")
        raise DamagedCacheError(f"expected a catalogue of kodo in {path}, of version {SCHEMA_VERSION}")


def copy_records(db: sqlite3.Connection) -> None:
    """Copy what all else in a catalogue follows from out of the one that is attached. Raises `sqlite3.Error`."""
    db.execute("DELETE FROM meta WHERE name = 'url'")
    db.execute("INSERT INTO meta SELECT * FROM damaged.meta WHERE name = 'url'")
    # In an order, since SQLite would copy pages and indexes as they are without one: those may be what is damaged.
    db.execute("INSERT INTO record SELECT * FROM damaged.record NOT INDEXED ORDER BY id")
    for table in ("part", "peer"):
        db.execute(f"INSERT INTO {table} SELECT * FROM damaged.{table}")
