"""[IO] What `release deny` and `key deny` share."""

from typing import Any

from heliograph.errors import RefusedError
from heliograph_hub.client import HubClient
from heliograph_hub.commands.terminal import print_json, say


def deny(type_: str, asked: dict[str, Any], what: str, files: list[str], where: str, as_json: bool) -> None:
    """Has the hub word the denial, signs it here, and hands the signatures in."""
    from heliograph.protocol import DENIALS
    from heliograph.statement import signed_bytes
    from heliograph_hub.keys import open_keys

    keys = open_keys(files)
    client = HubClient(where)
    request = client.post("/v1/denials/requests", {"type": type_, **asked})
    for name in request["unknown"]:
        say(f"this hub knows nothing by {name[:16]}…: if that is mistyped, deny what was meant as well")
    for file, key in zip(files, keys, strict=True):
        if key.keyid.hex() not in request["keyids"]:
            raise RefusedError(
                f"{file} holds key {key.keyid.hex()[:16]}, which can't sign this denial: keys that count are "
                + ", ".join(keyid[:16] for keyid in request["keyids"])
            )
    payload = bytes.fromhex(request["payload"])
    DENIALS[type_].decode(payload)  # signed is a denial of this type, whatever the hub sent
    message = signed_bytes(type_, payload)
    signatures = {key.keyid.hex(): key.sign(message).hex() for key in keys}
    answer = client.post("/v1/denials", {"type": type_, "payload": request["payload"], "signatures": signatures})
    for line in answer["said"]:
        say(line)
    if request["have"]:
        say("signed was the denial there is, with its reason and time")
    if as_json:
        print_json(answer)
        return
    have, need = answer["have"], answer["need"]
    if answer["in_force_at"] is None:
        print(f"{what}: {have} of {need} signatures, {need - have} more to go; nothing is denied yet")
        return
    final = "final" if answer["final"] else "a node that has nothing else serves it on until a second key denies it"
    print(f"{what} is denied with {have} signature{'s' if have > 1 else ''}: {final}")
    if answer["denied"]:
        print("denied now: " + ", ".join(answer["denied"]))
