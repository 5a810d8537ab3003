"""What stands for a content: short, and equal where the content is equal.

Nothing is loaded for it, so that a start can compare what is stored with it before the rest of kodo is there.
"""

from __future__ import annotations

from hashlib import blake2b


def digest_of(flows: bytes) -> str:
    """The `digest` of flows that are JSON as `kodo.models.flows_json` writes it."""
    return blake2b(flows, digest_size=12).hexdigest()


def fingerprint(*values: object) -> int:
    """A number of 64 bits that is equal for equal values."""
    return int.from_bytes(blake2b(repr(values).encode(), digest_size=8).digest())
