"""How a request reaches the function that answers it: its parameters are checked by one model, and that is all.

FastAPI looks for each parameter and dependency by itself, and keeps what they may have opened until the answer is sent:
longer than kodo takes for a page that it keeps. Its routes stay, and what it says of them in `/openapi.json`.
"""

from __future__ import annotations

from asyncio import CancelledError
from collections.abc import Callable, Coroutine
from inspect import signature
from typing import Any, get_type_hints

from fastapi import Request, Response
from fastapi.routing import APIRoute
from pydantic import BaseModel, ConfigDict, ValidationError
from starlette.routing import request_response

from kodo.errors import InvalidMessageError, UnavailableError
from kodo.service.faults import parameter_faults


class Asked(BaseModel):
    """The parameters of a route; what it does not know is left alone, and of one that comes twice the last counts."""

    model_config = ConfigDict(frozen=True)


class Endpoint(APIRoute):
    """A route whose function takes the request, and as `asked` the model of its parameters if it has any.

    Parameters that are not of the model's form are refused with `InvalidMessageError`, and what is under way for too
    long when the service ends with `UnavailableError`.
    """

    def __init__(self, path: str, endpoint: Callable[..., Any], **options: Any) -> None:
        """As FastAPI's, which makes one for each function that is decorated."""
        if list(signature(endpoint).parameters)[1:] not in ([], ["asked"]):
            raise TypeError(f"expected {endpoint.__name__} to take the request, and `asked` if it has parameters")
        super().__init__(path, endpoint, **options)
        self.app = request_response(self.get_route_handler())

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """What FastAPI asks of a class of routes: a function of the request alone."""
        answer, model = self.endpoint, get_type_hints(self.endpoint).get("asked")

        async def handle(request: Request) -> Response:
            try:
                answered: Response = await answer(request, *(() if model is None else (_asked(model, request),)))
            except CancelledError as error:
                # So uvicorn ends what has not come to its end by itself; it would take this for a fault of ours.
                raise UnavailableError("expected this to be done before the service ends; ask again later") from error
            return answered

        return handle


def _asked(model: type[BaseModel], request: Request) -> BaseModel:
    try:
        return model.model_validate(dict(request.query_params))
    except ValidationError as error:
        raise InvalidMessageError(parameter_faults(error)) from error
