"""[IO] Every subject of the API as one ASGI application."""

from typing import TYPE_CHECKING

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.routing import Route

from heliograph.errors import HeliographError
from heliograph_hub.api.assignments import Assignments
from heliograph_hub.api.control import Documents
from heliograph_hub.api.denials import Denials
from heliograph_hub.api.fleet import Fleet
from heliograph_hub.api.gaps import Gaps
from heliograph_hub.api.guard import guarded
from heliograph_hub.api.keys import Keys
from heliograph_hub.api.log import logged
from heliograph_hub.api.messages import endpoint, on_error, on_http_error
from heliograph_hub.api.realm import Realm
from heliograph_hub.api.releases import Releases
from heliograph_hub.api.rollouts import Rollouts
from heliograph_hub.api.timeline import Timeline
from heliograph_hub.operators import Tokens

if TYPE_CHECKING:
    from heliograph_hub.service import Service

SUBJECTS = (Realm, Keys, Releases, Denials, Documents, Rollouts, Assignments, Gaps, Fleet, Timeline)


def application(service: "Service", tokens: Tokens | None = None) -> Starlette:
    """The API as an ASGI application: the owner's, or, with `tokens`, for those who bring one."""
    return Starlette(
        routes=[
            Route(
                path,
                endpoint(logged(service, method, path, action))
                if tokens is None
                else guarded(method, path, logged(service, method, path, action), tokens),
                methods=[method],
            )
            for subject in SUBJECTS
            for method, path, action in subject(service).routes()
        ],
        exception_handlers={HeliographError: on_error, HTTPException: on_http_error},
    )
