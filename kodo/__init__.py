"""kodo: a mesh of services through which people find each other's agent services across organizations."""

from __future__ import annotations

__version__ = "0.1.0"
