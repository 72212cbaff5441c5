"""[IO] The door of the API for those who are not the hub's owner: a token, a role, and what that may do."""

from collections.abc import Awaitable, Callable
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from heliograph_hub.api.messages import Action, Answer, endpoint, now
from heliograph_hub.operators import DUTIES, ROUTES, Tokens

_BEARER = "bearer "


class NotAllowedError(Exception):
    """The role may not do this."""


def guarded(method: str, path: str, action: Action, tokens: Tokens) -> Callable[[Request], Awaitable[Response]]:
    """An action as an endpoint for whoever brings a token whose role may use it. Nothing is read before that."""
    allowed = ROUTES.get((method, path), frozenset())

    async def answer(request: Request) -> Response:
        given = request.headers.get("authorization", "")
        role = tokens.role(given[len(_BEARER) :], now()) if given.lower().startswith(_BEARER) else None
        if role is None:
            return _refuse(401, "no token, or one that has ended: get another with `heliograph hub token ROLE`")
        if role not in allowed:
            return _refuse(403, f"role {role} may not {method} {path}; {_who(allowed)}")

        request.state.role = role

        async def checked(request: Request, body: dict[str, Any]) -> Answer:
            duty = _duty(path, request, body)
            if duty is not None and role not in DUTIES.get(duty, frozenset()):
                raise NotAllowedError(f"role {role} may not {duty} releases")
            return await action(request, body)

        try:
            return await endpoint(checked)(request)
        except NotAllowedError as error:
            return _refuse(403, str(error))

    return answer


def _duty(path: str, request: Request, body: dict[str, Any]) -> str | None:
    """The duty that a request is about; None: about none."""
    if path.endswith("/candidates/{candidate}"):
        return str(request.path_params["candidate"]).partition("-")[0]
    if path == "/v1/releases/{model}/{version}/requests":
        return str(body.get("duty"))
    return None


def _who(allowed: frozenset[str]) -> str:
    return f"that is for {' and '.join(sorted(allowed))}" if allowed else "that is the hub's owner's alone"


def _refuse(status: int, why: str) -> Response:
    return JSONResponse({"error": why, "kind": "RefusedError"}, status)
