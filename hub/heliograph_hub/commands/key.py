"""[IO] `heliograph key`."""

from pathlib import Path
from typing import Annotated

import typer

from heliograph_hub.client import HubClient
from heliograph_hub.commands.denying import deny
from heliograph_hub.commands.terminal import DenyKeys, Hub, Json, Reason, group, print_json, say, table, when

app = group("Make keys, sign with them, change whose count, and deny one that was stolen.")


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


@app.command("make")
def key_make(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Such as root-1.key; root-1.pub is written beside it.")],
    as_json: Json = False,
) -> None:
    """Make an Ed25519 key in a file, readable by you alone, and its public half beside it. Needs no hub.

    Example: heliograph key make offline/root-1.key
    """
    from secrets import token_bytes

    from heliograph_hub.keys import make_key

    public = make_key(file, token_bytes(32))
    if as_json:
        print_json({"keyid": public.keyid.hex(), "public": str(file.with_suffix(".pub"))})
        return
    say(f"{file} is secret and the only copy; {file.with_suffix('.pub')} is what the hub is given")
    print(public.keyid.hex())


@app.command("sign")
def key_sign(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="What hub sign-request, rollout or fleet request wrote.")
    ],
    key: Annotated[list[str], typer.Option("--key", metavar="FILE|URI", help="A key that is asked, repeatable.")],
    as_json: Json = False,
) -> None:
    """Sign what a file asks of your key, in the file itself, and say what it was. Needs no hub.

    Example: heliograph key sign approve.json --key approve-digits-1.key
    """
    from heliograph_hub.commands.requesting import sign_file

    sign_file(file, key, as_json)


@app.command("add")
def key_add(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="What hub sign-request wrote, signed.")],
    where: Hub = "",
    as_json: Json = False,
) -> None:
    """Hand in the signatures of a file; what has enough is published.

    Example: heliograph key add approve.json --hub ./hub
    """
    from heliograph_hub.commands.requesting import add_file

    add_file(file, where, as_json)


@app.command("rotate")
def key_rotate(
    role: Annotated[str, typer.Argument(metavar="ROLE", help="Such as root, timestamp, deny, approve-digits.")],
    add: Annotated[list[Path] | None, typer.Option("--add", metavar="PUBLIC", help="A .pub file; repeatable.")] = None,
    remove: Annotated[
        list[str] | None, typer.Option("--remove", metavar="KEYID", help="A key to take away; repeatable.")
    ] = None,
    threshold: Annotated[int | None, typer.Option("--threshold", min=1, help="So many must sign from now on.")] = None,
    drop: Annotated[bool, typer.Option("--drop", help="Forget the change that waits for signatures.")] = False,
    where: Hub = "",
    as_json: Json = False,
) -> None:
    """Change the keys of a role, or bring those of a new model; without --add and --remove, renew what it signs.

    Nothing counts before it is signed: heliograph hub sign-request gives the file. Changes that follow are added to it.

    Example: heliograph key rotate deny --add deny-3.pub --remove 3f9c1d22a0b7e614 --hub ./hub
    """
    from heliograph_hub.keys import load_public

    client = HubClient(where)
    if drop:
        answer = client.post("/v1/keys/rotations/drop", {})
        print_json(answer) if as_json else print("forgotten" if answer["dropped"] else "nothing waited")
        return
    added = [load_public(path).raw.hex() for path in add or []]
    body = {"role": role, "add": added, "remove": remove or [], "threshold": threshold}
    answer = client.post("/v1/keys/rotations", body)
    for line in answer["said"]:
        say(line)
    if as_json:
        print_json(answer)
        return
    print(f"change of {role} waits for signatures: heliograph hub sign-request --out FILE")


@app.command("log")
def key_log(
    limit: Annotated[int, typer.Option("--limit", min=1, max=1000, help="So many, the newest.")] = 100,
    where: Hub = "",
    as_json: Json = False,
) -> None:
    """List who did what at the hub and with which keys, newest first.

    Example: heliograph key log --limit 20 --hub ./hub
    """
    answer = HubClient(where).get(f"/v1/keys/log?limit={limit}")
    if as_json:
        print_json(answer)
        return
    table(
        ("number", "at", "who", "did", "keys"),
        [
            (str(d["number"]), when(d["at"]), d["who"], d["what"], ", ".join(k[:16] for k in d["keyids"]))
            for d in answer
        ],
    )


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
