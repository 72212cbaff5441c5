"""[IO] `heliograph release`."""

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import typer

from heliograph.errors import ConfigError, RefusedError
from heliograph.names import check_name, parse_release
from heliograph_hub.client import HubClient
from heliograph_hub.commands.denying import deny
from heliograph_hub.commands.terminal import (
    DenyKeys,
    Hub,
    Json,
    Keys,
    Reason,
    ReleaseName,
    denied_line,
    group,
    of_needed,
    print_json,
    say,
    show_making,
    table,
)

app = group("Add, sign, approve, deny and look at releases.")


@app.command("add")
def release_add(
    folder: Annotated[Path | None, typer.Argument(metavar="DIR", help="A folder with release.toml and files.")] = None,
    where: Hub = "",
    explain: Annotated[bool, typer.Option("--explain", help="Print the fields of release.toml and stop.")] = False,
    as_json: Json = False,
) -> None:
    """Make an immutable release of a folder: packed, named by digest, kept by the hub. Runs no model.

    Example: heliograph release add ./digits-1.0.0 --hub ./hub
    """
    if explain:
        _explain(as_json)
        return
    if folder is None:
        raise ConfigError("no folder named: heliograph release add DIR (or --explain)")
    answer = HubClient(where).post("/v1/releases", {"dir": str(folder.absolute())})
    for line in answer["said"]:
        say(line)
    if as_json:
        print_json(answer)
        return
    state = "added" if answer["new"] else "was there already, unchanged:"
    say(f"{answer['release']} {state} {answer['files']} files, {answer['bytes']} bytes")
    print(answer["digest"])


def _explain(as_json: bool) -> None:
    from heliograph.manifest import explain

    rows = explain()
    if as_json:
        print_json([dict(zip(("field", "type", "default", "meaning"), row, strict=True)) for row in rows])
        return
    table(("field of release.toml", "type", "default", "meaning"), rows)
    say("computed, not written: format, and length, sha256 and pages of each file; files may be a list of names")


@app.command("sign")
def release_sign(name: ReleaseName, key: Keys, where: Hub = "", as_json: Json = False) -> None:
    """Sign a release: this build is what it says. One key of role sign-MODEL.

    Example: heliograph release sign digits@1.0.0 --key hub/keys/sign-digits.key --hub ./hub
    """
    _do_duty("sign", name, key, where, as_json)


@app.command("approve")
def release_approve(name: ReleaseName, key: Keys, where: Hub = "", as_json: Json = False) -> None:
    """Approve a release: it may run. Two of three keys of role approve-MODEL, together or one after the other.

    Example: heliograph release approve digits@1.0.0 --key a.key --key b.key --hub ./hub
    """
    _do_duty("approve", name, key, where, as_json)


def _do_duty(duty: str, name: str, files: Iterable[str], where: str, as_json: bool) -> None:
    from heliograph_hub.keys import open_keys

    model, version = parse_release(name)
    keys = open_keys(files)
    client = HubClient(where)
    answer: dict[str, Any] = {}
    for file, key in zip(files, keys, strict=True):
        request = client.post(f"/v1/releases/{model}/{version}/requests", {"duty": duty})
        if request["done"]:
            answer = request
            break
        if key.keyid.hex() not in request["keyids"]:
            raise RefusedError(
                f"{file} holds key {key.keyid.hex()[:16]}, which can't {duty} {model}: keys that count are "
                + ", ".join(keyid[:16] for keyid in request["keyids"])
            )
        signature = key.sign(bytes.fromhex(request["bytes"])).hex()
        answer = client.post(
            f"/v1/candidates/{request['candidate']}", {"keyid": key.keyid.hex(), "signature": signature}
        )
        for line in answer.get("said", []):
            say(line)
    if as_json:
        print_json(answer)
        return
    verb = {"sign": "signed", "approve": "approved"}[duty]
    have, need = answer["have"], answer["need"]
    print(f"{name} is {verb}" if answer["done"] else f"{name}: {have} of {need} signatures, {need - have} more to go")


@app.command("deny")
def release_deny(
    name: Annotated[
        str, typer.Argument(metavar="MODEL@VERSION|DIGEST", help="A release, or the digest of a release or recipe.")
    ],
    key: DenyKeys,
    reason: Reason = "",
    where: Hub = "",
    as_json: Json = False,
) -> None:
    """Deny a release or recipe for good: nothing new starts it and nodes go back to their fallback.

    One key of role deny is enough; a second one, together or later, stops it also on nodes that have nothing else.

    Example: heliograph release deny digits@1.1.0 --key hub/keys/deny-1.key --reason "wrong labels" --hub ./hub
    """
    deny("deny", {"releases": [name], "reason": reason}, name, key, where, as_json)


@app.command("rekey")
def release_rekey(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A model with confidential releases.")],
    where: Hub = "",
    as_json: Json = False,
) -> None:
    """Begin a new epoch: all confidential releases of a model are sealed anew, by a key that nobody was granted yet.

    Removing or replacing a node does this by itself. What a node holds already it can read for ever.

    Example: heliograph release rekey digits --hub ./hub
    """
    answer = HubClient(where).post(f"/v1/releases/{check_name(model, 'model')}/rekey", {})
    if as_json:
        print_json(answer)
        return
    print(
        f"epoch {answer['epoch']} of {model} has begun: {', '.join(answer['releases'])} are sealed anew when asked for"
    )


@app.command("list")
def release_list(where: Hub = "", as_json: Json = False) -> None:
    """List all releases and how far they are signed and approved.

    Example: heliograph release list --hub ./hub
    """
    answer = HubClient(where).get("/v1/releases")
    if as_json:
        print_json(answer)
        return
    table(
        ("release", "digest", "signed", "approved", "files", "bytes", "confidential", "denied"),
        [
            (
                r["release"],
                r["digest"][:16],
                of_needed(r["signed"]),
                of_needed(r["approved"]),
                str(r["files"]),
                str(r["bytes"]),
                _confidential(r),
                denied_line(r["denied"]),
            )
            for r in answer
        ],
    )


@app.command("show")
def release_show(name: ReleaseName, where: Hub = "", as_json: Json = False) -> None:
    """Show one release: its files, who signed, what deltas to it cost or how far they are, what each site was sent.

    Example: heliograph release show digits@1.1.0 --hub ./hub
    """
    model, version = parse_release(name)
    answer = HubClient(where).get(f"/v1/releases/{model}/{version}")
    if as_json:
        print_json(answer)
        return
    print(f"{answer['release']}  {answer['digest']}")
    if answer["denied"]:
        print(f"DENIED {denied_line(answer['denied'])}")
    signed, approved = of_needed(answer["signed"]), of_needed(answer["approved"])
    print(f"signed {signed}, approved {approved}, in full {answer['full_bytes']} bytes")
    if answer["confidential"]:
        print(f"confidential, {_confidential(answer)}")
    table(("file", "bytes", "sha256"), [(f["name"], str(f["length"]), f["sha256"]) for f in answer["files"]])
    if answer["deltas"]:
        table(
            ("delta of", "from", "costs", "full costs", "offered"),
            [
                (
                    d["file"],
                    ", ".join(d["from"]),
                    str(d["bytes"]),
                    str(d["full_bytes"]),
                    "yes" if d["offered"] else "no",
                )
                for d in answer["deltas"]
            ],
        )
    show_making(answer["making"])
    if answer["costs"]:
        table(("node holds", "bytes to fetch"), [(held, str(cost)) for held, cost in answer["costs"].items()])
    if answer["sites"]:
        table(("site", "bytes sent"), [(s["site"], str(s["bytes_sent"])) for s in answer["sites"]])


def _confidential(release: dict[str, Any]) -> str:
    """Under which epoch a release is offered; empty if it is public."""
    if not release["confidential"]:
        return ""
    return f"epoch {release['epoch']}" if release["epoch"] else "not sealed yet"
