"""The `kodo` command, as a script and as `python -m kodo`; `kodo serve` goes a short way where it can."""

from __future__ import annotations

import gc
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

INTERRUPTED = 130
"""The exit code after Ctrl-C, as of the whole command."""


def main() -> None:
    """Run the command with the arguments of this process."""
    for stream in (sys.stdout, sys.stderr):
        # A terminal that cannot write a character gets its escape instead of a traceback.
        if stream is not None:  # it may be closed
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    try:
        with _ended_at_once():
            if sys.argv[1:2] == ["serve"]:
                _serve(sys.argv[2:])
            else:
                _command()
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)


@contextmanager
def _ended_at_once() -> Iterator[None]:
    """Let Ctrl-C end the process until it is interruptible: as an exception some of what is loaded would lose it."""
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _command() -> None:
    from kodo.cli import app  # noqa: PLC0415, a service does without it
    from kodo.serving import be_interruptible  # noqa: PLC0415, loaded with it

    be_interruptible()
    app(prog_name="kodo")


def _serve(arguments: list[str]) -> None:
    gc.disable()  # until the service has begun: what it loads stays, and is looked through in vain again and again
    from kodo.errors import KodoError  # noqa: PLC0415, as long as Ctrl-C is no exception

    try:
        from kodo.checkup import begin_early  # noqa: PLC0415, only from here on no garbage is looked for

        begin_early(arguments)
        from kodo.serving import plain_flags, serve  # noqa: PLC0415, the cache is being read meanwhile

        given = plain_flags(arguments)
        if given is None:
            _command()
        else:
            serve(given)
    except (KodoError, OSError) as error:
        from kodo.cli import tell  # noqa: PLC0415, now its words are needed

        sys.exit(tell(error))


if __name__ == "__main__":
    main()
