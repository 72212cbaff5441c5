"""[IO] Writing what offline keys are to sign, signing it, handing it in: one file for every role."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from heliograph.errors import ConfigError, RefusedError
from heliograph.names import parse_release
from heliograph_hub import request
from heliograph_hub.client import HubClient
from heliograph_hub.commands import carried, offline
from heliograph_hub.commands.documents import read_file
from heliograph_hub.commands.terminal import count, print_json, say
from heliograph_hub.keys import SigningKey, open_keys
from heliograph_hub.request import METADATA, Ask, Group


def request_signatures(
    wanted: Mapping[str, list[str]],
    documents: Mapping[str, list[Path]],
    reason: str,
    out: Path,
    where: str,
    as_json: bool,
) -> None:
    """Writes all that waits, and what is wanted besides, to a file."""
    client = HubClient(where)
    asks = [request.from_plain(row) for row in client.get("/v1/keys/requests")]
    for duty in ("sign", "approve"):
        asks += [ask for name in wanted[duty] for ask in _duty(client, duty, name)]
    if wanted["deny"]:
        asks.append(_denial(client, {"type": "deny", "releases": wanted["deny"], "reason": reason}))
    if wanted["deny-key"]:
        asks.append(_denial(client, {"type": "deny-key", "keys": wanted["deny-key"], "keep": [], "reason": reason}))
    for kind, files in documents.items():
        asks += [ask for file in files for ask in _document(client, kind, file)]
    asks = list({ask.name: ask for ask in asks}.values())
    if not asks:
        print("nothing waits for signatures")
        return
    request.write(out, client.get("/v1/hub")["realm"], asks)
    if as_json:
        print_json([request.to_plain(ask) for ask in asks])
        return
    for ask in asks:
        say(f"{ask.name}: {count(ask.lacks, 'signature')} of {ask.role} to come")
    print(f"{out}: {count(len(asks), 'thing')} to sign: heliograph key sign {out} --key FILE")


def sign_file(path: Path, named: list[str], as_json: bool) -> None:
    """Signs what any of the files that carry signatures asks of these keys, in the file itself; says what it was."""
    kind, keys = request.type_of(path), open_keys(named)
    match kind:
        case "directive":
            held = offline.read(path)
            for key in keys:
                held = held.signed_by(key)
            offline.write(path, held)
            for line in held.words():
                say(line)
            signed = 1
        case "assignments":
            site, rows = carried.read(path)
            for key in keys:
                rows = [row.signed_by(key) for row in rows]
            carried.write(path, site, rows)
            if not as_json:
                carried.show(rows)
            signed = len(rows)
        case _:
            signed = _sign_request(path, keys, named)
    if as_json:
        print_json({"signed": signed, "keys": [key.keyid.hex() for key in keys]})
    else:
        print(f"{path}: {count(signed, 'thing')} signed: carry it back, heliograph key add {path}")


def add_file(path: Path, where: str, as_json: bool) -> None:
    """Hands in the signatures of a file of `hub sign-request`."""
    if request.type_of(path) != "request":
        what = {"directive": "rollout", "assignments": "fleet"}[request.type_of(path)]
        raise ConfigError(f"{path} is of heliograph {what} request: heliograph {what} add {path}")
    realm, asks = request.read(path)
    client = HubClient(where)
    own = client.get("/v1/hub")["realm"]
    if realm != own:
        raise ConfigError(f"{path} is of realm {realm}, this hub is of {own}")
    signed = [ask for ask in asks if ask.signatures]
    if not signed:
        raise RefusedError(f"{path} has no signatures: heliograph key sign {path} --key FILE")
    answers = [_hand_in(client, ask) for ask in signed]
    if as_json:
        print_json(answers)
        return
    for ask, answer in zip(signed, answers, strict=True):
        for line in answer.get("said", []):
            say(line)
        lacks = answer.get("lacks", answer.get("need", 0) - answer.get("have", 0))
        print(f"{ask.name}: " + (f"{count(lacks, 'signature')} more to come" if lacks > 0 else "has all it needs"))


def _sign_request(path: Path, keys: list[SigningKey], named: list[str]) -> int:
    realm, asks = request.read(path)
    signed, counts = request.sign(asks, keys)
    for where, key in zip(named, keys, strict=True):
        if not counts.get(key.keyid):
            raise RefusedError(
                f"{where} holds key {key.keyid.hex()[:16]}, which {path} asks nothing of: it asks "
                + ", ".join(sorted({ask.role for ask in asks}))
            )
    request.write(path, realm, signed)
    theirs = [ask for ask in signed if any(key.keyid in ask.keyids for key in keys)]
    for ask in theirs:
        for line in ask.words():
            say(line)
    return len(theirs)


def _duty(client: HubClient, duty: str, name: str) -> list[Ask]:
    model, version = parse_release(name)
    asked = client.post(f"/v1/releases/{model}/{version}/requests", {"duty": duty})
    if asked["done"]:
        say(f"{name} needs nothing more to {duty} it")
        return []
    for line in asked["said"]:
        say(line)
    content = b'{"signatures":[],"signed":' + bytes.fromhex(asked["bytes"]) + b"}"
    group = Group(asked["need"], frozenset(bytes.fromhex(keyid) for keyid in asked["keyids"]))
    return [Ask(asked["role"], METADATA, asked["candidate"], content, (group,), {})]


def _denial(client: HubClient, body: dict[str, Any]) -> Ask:
    asked = client.post("/v1/denials/requests", body)
    group = Group(asked["need"], frozenset(bytes.fromhex(keyid) for keyid in asked["keyids"]))
    kind = asked["type"]
    return Ask(kind, kind, f"{kind} {asked['id'][:16]}", bytes.fromhex(asked["payload"]), (group,), {})


def _document(client: HubClient, kind: str, file: Path) -> list[Ask]:
    asked = client.post("/v1/documents/requests", {"kind": kind, "text": read_file(kind, file)})
    name = f"{kind}/{asked['scope']} {asked['number']}"
    for line in asked["warnings"]:
        say(f"warning: {line}")
    stopped = sorted({effect["node"] for effect in asked["effects"] if effect["loses_service"]})
    if stopped:
        say(f"warning: {name} stops {count(len(stopped), 'node')}: {', '.join(stopped[:20])}")
    if asked["unchanged"]:
        say(f"{name} says the same already")
        return []
    group = Group(asked["need"], frozenset(bytes.fromhex(keyid) for keyid in asked["keyids"]))
    role = "policy" if kind == "policy" else f"config-{asked['scope']}"
    return [Ask(role, kind, name, bytes.fromhex(asked["payload"]), (group,), {})]


def _hand_in(client: HubClient, ask: Ask) -> dict[str, Any]:
    signatures = {keyid.hex(): signature.hex() for keyid, signature in ask.signatures.items()}
    payload = ask.content.hex()
    answer: dict[str, Any] = {}
    match ask.kind:
        case "deny" | "deny-key":
            answer = client.post("/v1/denials", {"type": ask.kind, "payload": payload, "signatures": signatures})
        case "policy" | "config":
            answer = client.post("/v1/documents", {"kind": ask.kind, "payload": payload, "signatures": signatures})
        case _ if "@" in ask.name:
            for keyid, signature in signatures.items():
                if not answer.get("done"):
                    answer = client.post(f"/v1/candidates/{ask.name}", {"keyid": keyid, "signature": signature})
        case kind:
            body = {"name": ask.name, "kind": kind, "content": payload, "signatures": signatures}
            answer = client.post("/v1/keys/signatures", body)
    return answer
