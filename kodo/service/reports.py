"""The routes that explain: why something is listed or not, and how far the others are."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query, Response

from kodo.cache import Cache
from kodo.core import report
from kodo.core.registry import Registry
from kodo.errors import InvalidMessageError
from kodo.models import Key, canonical
from kodo.runtime import Runtime
from kodo.service import shapes
from kodo.service.routes import JSON


def create_reports(runtime: Runtime, cache: Cache) -> APIRouter:
    """The routes of reports, over one runtime."""
    router = APIRouter()
    catalogue = cache.catalogue

    @router.get("/explain", **shapes.EXPLAIN)
    async def get_explain(
        node: Annotated[str, Query(description="the url of the node")],
        flow: Annotated[str | None, Query(description="the path of a flow on it")] = None,
    ) -> Response:
        """Why a node, or a flow of it, is listed here or not: what every part says of it."""
        key = _key(node)

        def look(registry: Registry, clock: float) -> dict[str, Any]:
            asked = report.Question(node, flow, catalogue.offered(key))
            return report.explain(registry, asked, catalogue.rows([key]).get(key, ()), clock)

        return JSON(await runtime.inspect(look))

    @router.get("/convergence", **shapes.CONVERGENCE)
    async def get_convergence() -> Response:
        """How far every peer is behind, and how old what is known of every origin is."""
        return JSON(await runtime.inspect(report.convergence))

    return router


def _key(url: str) -> Key:
    try:
        return canonical(url)
    except ValueError as error:
        raise InvalidMessageError([{"loc": ["query", "node"], "msg": str(error), "type": "value_error"}]) from error
