"""Why a service did not answer, in words for people: those of libraries and systems name numbers and files of C."""

from __future__ import annotations

import errno
import socket

from kodo.errors import reason_of

REASONS = {
    errno.ECONNREFUSED: "nothing listens there",
    errno.EHOSTUNREACH: "no way leads there",
    errno.ENETUNREACH: "no way leads there",
    errno.ECONNRESET: "it broke off the connection",
    errno.EPIPE: "it broke off the connection",
}
BROKEN_OFF = {"ReadError", "RemoteProtocolError", "WriteError"}
"""What the reasons of the system, and of the HTTP client, mean here."""
TLS = {
    "WRONG_VERSION_NUMBER": "it speaks http there, not https",
    "CERTIFICATE_VERIFY_FAILED": "its certificate is not trusted here",
}
"""What those of OpenSSL do."""


def unanswered(error: BaseException) -> str:
    """Why there was no answer: as the system told it, below what libraries made of it."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, BaseExceptionGroup):
            # Of a name with several addresses: one reason stands for all.
            cause = cause.exceptions[0]
        if isinstance(cause, UnicodeError):
            return "no host can have its name"
        if isinstance(cause, socket.gaierror):
            return "its name is not known here"
        if (reason := getattr(cause, "reason", None)) in TLS:
            return TLS[reason]
        if isinstance(cause, OSError) and cause.errno is not None:
            return REASONS.get(cause.errno) or reason_of(cause)
        cause = cause.__cause__ or cause.__context__
    name = type(error).__name__
    return "it broke off the connection" if name in BROKEN_OFF else f"the message did not get through ({name})"
