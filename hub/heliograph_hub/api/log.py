"""[IO] Writes down who did what: every request that changed something, once it has succeeded."""

from typing import TYPE_CHECKING, Any

from starlette.requests import Request

from heliograph_hub.api.messages import Action, Answer, now

if TYPE_CHECKING:
    from heliograph_hub.service import Service

FIELDS = ("release", "duty", "role", "ring", "to", "site", "node", "kind", "model", "version", "type", "name")
"""Of a request's body; the rest is content, or could be secret."""


def logged(service: "Service", method: str, action: Action) -> Action:
    """The same action; what it did is in the log before it answers."""
    if method != "POST":
        return action

    async def noted(request: Request, body: dict[str, Any]) -> Answer:
        answer = await action(request, body)
        if not request.url.path.endswith("/requests"):  # those only give out what is to be signed
            words = [f"{field}={body[field]}" for field in FIELDS if isinstance(body.get(field), str)]
            what = " ".join([request.url.path.removeprefix("/v1/"), *words])
            service.duties.note(now(), getattr(request.state, "role", "owner"), what, keyids_in(body))
        return answer

    return noted


def keyids_in(body: dict[str, Any]) -> list[bytes]:
    """Whose signatures a request brought; the action has checked them."""
    given = body.get("signatures")
    named = [*(given if isinstance(given, dict) else []), *([body["keyid"]] if "keyid" in body else [])]
    return [bytes.fromhex(keyid) for keyid in named]
