"""[IO] `heliograph key`."""

from typing import Annotated

import typer

from heliograph_hub.client import HubClient
from heliograph_hub.commands.denying import deny
from heliograph_hub.commands.terminal import DenyKeys, Hub, Json, Reason, group, print_json, table

app = group("Look at the realm's keys, and deny one that was stolen.")


@app.command("deny")
def key_deny(
    keyid: Annotated[str, typer.Argument(metavar="KEYID", help="64 hex digits, or the first 16 of a key in use.")],
    key: DenyKeys,
    keep: Annotated[
        list[str] | None,
        typer.Option("--keep", metavar="MODEL@VERSION", help="A release that stays good all the same; repeatable."),
    ] = None,
    reason: Reason = "",
    where: Hub = "",
    as_json: Json = False,
) -> None:
    """Deny a key for good: everything it signed or approved, except what is kept. Two keys of role deny-key.

    Example: heliograph key deny 3f9c1d22a0b7e614 --key a.key --key b.key --keep digits@1.0.0 --hub ./hub
    """
    asked = {"keys": [keyid.lower()], "keep": keep or [], "reason": reason}
    deny("deny-key", asked, f"key {keyid[:16]}", key, where, as_json)


@app.command("list")
def key_list(where: Hub = "", as_json: Json = False) -> None:
    """List the keys of every role, and which of them are denied.

    Example: heliograph key list --hub ./hub
    """
    answer = HubClient(where).get("/v1/keys")
    if as_json:
        print_json(answer)
        return
    table(
        ("role", "key id", "must sign", "denied"),
        [(k["role"], k["keyid"], str(k["threshold"]), "denied" if k["denied"] else "") for k in answer],
    )
