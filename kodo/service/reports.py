"""The routes that explain: why something is listed or not, and how far the others are."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from pydantic import Field

from kodo.cache import Cache
from kodo.core import report
from kodo.core.registry import Registry
from kodo.errors import InvalidMessageError
from kodo.models import canonical
from kodo.runtime import Runtime
from kodo.service.endpoint import Asked
from kodo.service.routes import JSON


class ExplainAsked(Asked):
    """What is to be explained."""

    node: str | None = Field(None, description="the url of a node")
    flow: str | None = Field(None, description="the path or the name of a flow, of this node or of any")


def add_reports(router: APIRouter, runtime: Runtime, cache: Cache) -> None:
    """Add the routes of reports, over one runtime."""
    catalogue = cache.catalogue

    @router.get("/explain")
    async def get_explain(_: Request, asked: Annotated[ExplainAsked, Query()]) -> Response:
        """Why a node, a flow of it, or a flow of any node, is listed here or not: what every part says of it."""
        node, flow = asked.node, asked.flow
        report.question(node, flow)
        if node is not None:
            _check(node)
            return JSON(await runtime.inspect(partial(one, node, flow)))
        offering = await runtime.read_aside(partial(catalogue.offering, flow or "", report.MANY + 1))
        return JSON(await runtime.inspect(partial(several, flow or "", offering)))

    def known(node: str) -> report.Known:
        key = canonical(node)
        return report.Known(node, catalogue.rows([key]).get(key, ()), catalogue.offered(key))

    def one(node: str, flow: str | None, registry: Registry, clock: float) -> dict[str, Any]:
        return report.explain(registry, known(node), flow, clock)

    def several(flow: str, offering: list[str], registry: Registry, clock: float) -> dict[str, Any]:
        return report.explain_flow(registry, flow, list(map(known, offering)), clock)

    @router.get("/convergence")
    async def get_convergence(_: Request) -> Response:
        """How far every peer is behind, and how old what is known of every origin is."""
        return JSON(await runtime.inspect(partial(report.convergence, why=runtime.contacts.why)))


def _check(url: str) -> None:
    try:
        canonical(url)
    except ValueError as error:
        raise InvalidMessageError([{"loc": ["query", "node"], "msg": str(error), "type": "value_error"}]) from error
