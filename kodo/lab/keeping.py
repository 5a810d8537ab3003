"""Labs that are kept: `MeshLab(keep=True)` outlives its process, and `MeshLab.attach` takes it again.

```
 FOLDER/lab.state       what the lab is meant to be: members and how they are set up, faults; its guardian's process
 FOLDER/door            the socket at which its guardian is spoken to
 LABS/NAME -> FOLDER    by which it is found; a path that is short enough for a socket, wherever the folder is
```

- The file is replaced before anything of it is done, so that whatever becomes of the lab's process, it names all that
  may run. What really runs the guardian tells (`kodo.guardian`).
- Members' files end in `.json` and `.log`, the lab's own do not: a member may have any name.
- A guardian is known by its number and by when it started: a number that belongs to another process by now is nobody's.
- Files are the user's alone, and those of another user are refused: what they say would be run. What a function of a
  notebook offers stands there as it was pickled, and is opened in the member alone.
- A lab that was terminated leaves none of these; one whose guardian was killed, or that a restart of the machine ended,
  is said to be gone, and its name is free.
"""

from __future__ import annotations

import os
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal
from urllib.parse import quote

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from kodo.errors import LabError, suggestion
from kodo.lab.engine import Setup
from kodo.lab.naming import tally

STATE, DOOR = "lab.state", "door"
LONGEST = 40
"""Characters of the name of a lab that is kept: it stands in the path of a socket, which takes some hundred."""
PAUSE = 0.02


@dataclass(frozen=True, slots=True)
class Pickled:
    """A loader that was pickled by the process that had it; members open it, and nobody else."""

    text: str


class KeptMember(BaseModel):
    """How a member is set up. `loader` is flows, or a name; what can only be pickled is `pickled`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["registry", "provider", "node"]
    options: dict[str, Any]
    loader: Any = None
    pickled: str | None = None

    @property
    def setup(self) -> Setup:
        """As an engine takes it."""
        return Setup(dict(self.options), self.loader if self.pickled is None else Pickled(self.pickled))


class KeptFault(BaseModel):
    """A fault that was; with what it does while it holds: caller and callee, and the fields of an `Effect`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    label: str
    began: float
    ended: float | None = None
    effects: list[tuple[tuple[str, str], tuple[bool, float, float, float]]] = Field(default_factory=list)


class Kept(BaseModel):
    """A lab that is kept. `pid` and `started` are its guardian's; `began` is a moment of the monotonic clock."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kodo: Literal["lab"] = "lab"
    version: Literal[1] = 1
    name: str
    pid: int
    started: str
    began: float
    folder: Path
    scratch: bool
    timeout: float
    members: dict[str, KeptMember] = Field(default_factory=dict)
    faults: list[KeptFault] = Field(default_factory=list)

    def __repr__(self) -> str:
        return f"<Kept lab {self.name}: {tally(member.kind for member in self.members.values())}>"

    @property
    def link(self) -> Path:
        """Where it is found by its name."""
        return labs_folder() / quote(self.name, safe=" ")

    @property
    def door(self) -> Path:
        """The socket of its guardian."""
        return self.link / DOOR

    @property
    def leftovers(self) -> list[Path]:
        """What is to be removed when it ends."""
        own = [self.folder] if self.scratch else [self.folder / STATE, self.folder / DOOR]
        return [self.link, *own]

    @property
    def runs(self) -> bool:
        """Whether its guardian is there."""
        return start_of(self.pid) == self.started

    def remove(self) -> None:
        """Remove all of it that the guardian, if it was killed, has left."""
        if self.link.is_symlink() and self.link.readlink() == self.folder:
            self.link.unlink(missing_ok=True)
        if self.scratch:
            shutil.rmtree(self.folder, ignore_errors=True)
        else:
            for name in (STATE, DOOR):
                (self.folder / name).unlink(missing_ok=True)

    def write(self) -> None:
        """Replace the file, readable for this user alone."""
        draft = self.folder / f"{STATE}.new"
        with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:  # noqa: PTH123
            file.write(self.model_dump_json(indent=1))
        draft.replace(self.folder / STATE)


def labs_folder() -> Path:
    """The folder in which the labs that this user keeps are found by their names; made when there is none."""
    folder = Path(tempfile.gettempdir()) / f"kodo-labs-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if not stat.S_ISDIR(folder.lstat().st_mode) or _foreign(folder):
        raise LabError(f"expected {folder} to be a folder that nobody but you can write to; remove it, or set TMPDIR")
    return folder


def _foreign(path: Path) -> bool:
    """Whether somebody else could have written it."""
    about = path.lstat()
    return about.st_uid != os.getuid() or bool(about.st_mode & 0o022)


def read_kept(folder: Path) -> Kept:
    """What the file of a kept lab says. Raises `LabError` when there is none, or it is not to be trusted."""
    path = folder / STATE
    try:
        if _foreign(path):
            raise LabError(f"expected {path} to be a file that nobody but you can write to; its lab is not attached")
        return Kept.model_validate_json(path.read_bytes())
    except OSError as error:
        raise LabError(
            f"expected a kept lab in {folder}, but {STATE} is not there: it was terminated, or never kept"
        ) from error
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        at = ".".join(map(str, fault["loc"])) or "the file"
        raise LabError(
            f"{path}: expected the state of a lab, but {at}: {fault['msg']}; it cannot be attached"
        ) from error


def kept_labs() -> list[Kept]:
    """The labs of this user that are kept and run, by name."""
    labs = []
    for link in sorted(labs_folder().iterdir()):
        with suppress(LabError):
            labs.append(read_kept(link))
    return [lab for lab in labs if lab.runs]


def find_kept(which: str | os.PathLike[str] | None) -> Kept:
    """The kept lab of a name, or in a folder, or the only one. Raises `LabError`, saying which there are."""
    if which is None:
        return _only()
    if not isinstance(which, str | os.PathLike):
        raise LabError(f"expected the name or the folder of a kept lab, not {which!r}; {_there()}")
    if isinstance(which, os.PathLike) or os.sep in which:
        kept = read_kept(Path(which).absolute())
    else:
        link = labs_folder() / quote(which, safe=" ")
        if not link.is_symlink():
            raise LabError(f"expected the name of a kept lab, not {which!r}; {_there(which)}")
        kept = read_kept(link)
    if not kept.runs:
        raise LabError(
            f"expected the kept lab {kept.name!r} to run, but its guardian (process {kept.pid}) has ended, "
            f"and its members with it; logs are in {kept.folder}; start anew with MeshLab({kept.name!r}, keep=True)"
        )
    return kept


def _only() -> Kept:
    labs = kept_labs()
    if len(labs) != 1:
        raise LabError(f"expected one lab to be kept, or the name of one; {_there()}")
    return labs[0]


def _there(asked: str = "") -> str:
    names = [lab.name for lab in kept_labs()]
    kept = f"kept are {', '.join(map(repr, names))}" if names else "none is kept; MeshLab('demo', keep=True) keeps one"
    return suggestion(asked, names, otherwise=kept)


def free_name(name: str | None) -> str:
    """The name of a new lab that is kept, or one that is free. Raises `LabError` for one that cannot be."""
    taken = {lab.name for lab in kept_labs()}
    if name is None:
        return next(free for number in range(1, len(taken) + 2) if (free := f"lab{number}") not in taken)
    if name in taken:
        raise LabError(
            f"expected a new name, but a lab {name!r} is kept and runs; "
            f"MeshLab.attach({name!r}) takes it, and its terminate() ends it"
        )
    if not name.strip(". ") or not name.isprintable() or "/" in name or len(quote(name, safe=" ")) > LONGEST:
        raise LabError(f"expected a short name of printable characters without a slash for a kept lab, not {name!r}")
    return name


@contextmanager
def one_at_a_time() -> Iterator[None]:
    """While a name is chosen, until its door is open: two labs that begin at once would both take it."""
    import fcntl  # noqa: PLC0415, not everywhere

    folder = os.open(labs_folder(), os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


def open_door(kept: Kept) -> socket.socket:
    """The door of a new lab, which is found by its name from now on. Raises `LabError` when it is another's."""
    _check_unused(kept.folder)
    kept.write()
    (kept.folder / DOOR).unlink(missing_ok=True)
    kept.link.unlink(missing_ok=True)
    door = socket.socket(socket.AF_UNIX)
    try:
        kept.link.symlink_to(kept.folder)
        door.bind(str(kept.door))
        kept.door.chmod(0o600)
        door.listen()
    except OSError as error:
        door.close()
        kept.link.unlink(missing_ok=True)
        raise LabError(
            f"expected to keep the lab {kept.name!r}, but {error}; choose a shorter name, or set TMPDIR"
        ) from error
    return door


def _check_unused(folder: Path) -> None:
    try:
        other = read_kept(folder)
    except LabError:
        return
    if other.runs:
        raise LabError(f"expected a folder of its own for the lab, but {folder} is that of the kept lab {other.name!r}")


class Distant:
    """A guardian that is no child of this process, spoken to at its door; otherwise as `subprocess.Popen` has it."""

    def __init__(self, kept: Kept) -> None:
        """Connect. Raises `LabError` when nobody answers."""
        self.pid = kept.pid
        self._started = kept.started
        self._socket = socket.socket(socket.AF_UNIX)
        try:
            self._socket.connect(str(kept.door))
        except OSError as error:
            self._socket.close()
            raise LabError(f"expected the kept lab {kept.name!r} to answer, but {error}") from error
        self.stdin: IO[bytes] = self._socket.makefile("wb")
        self.stdout: IO[bytes] = self._socket.makefile("rb")

    def meet(self, kept: Kept) -> None:
        """Know it from now on by what it said of itself."""
        self.pid, self._started = kept.pid, kept.started

    def hang_up(self) -> None:
        """Speak no more; who was forked from this process does not either."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def wait(self, timeout: float | None = None) -> None:
        """Wait until it has ended. Raises `subprocess.TimeoutExpired`."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while start_of(self.pid) == self._started:
            if deadline is not None and time.monotonic() > deadline:
                raise subprocess.TimeoutExpired("kodo.guardian", timeout or 0)
            time.sleep(PAUSE)

    def kill(self) -> None:
        """Kill it, if it is still the one that was meant."""
        with suppress(ProcessLookupError):
            if start_of(self.pid) == self._started:
                os.kill(self.pid, 9)


def start_of(pid: int) -> str:
    """When a process started, in the words of the system; nothing when there is none, or it has ended already."""
    if sys.platform == "linux":
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return ""
        return "" if fields[0] in "ZX" else f"tick {fields[19]}"
    asked = ["ps", "-o", "lstart=", "-p", str(pid)]
    return subprocess.run(asked, capture_output=True, text=True, check=False).stdout.strip()
