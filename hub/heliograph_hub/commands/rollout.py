"""[IO] `heliograph rollout`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from heliograph.errors import ConfigError, RefusedError
from heliograph.names import RINGS, parse_release
from heliograph_hub.client import HubClient
from heliograph_hub.commands import offline
from heliograph_hub.commands.terminal import (
    Hub,
    Json,
    ReleaseName,
    count,
    denied_line,
    group,
    print_json,
    say,
    show_making,
    table,
)

app = group("Take a release through the rings.")

RequestFile = Annotated[Path, typer.Argument(metavar="FILE", help="What `rollout request` wrote.")]


@app.command("start")
def rollout_start(name: ReleaseName, where: Hub = "", as_json: Json = False) -> None:
    """Start a rollout: directives are signed for canary, early and general, and canary's is released.

    Example: heliograph rollout start digits@1.0.0 --hub ./hub
    """
    parse_release(name)
    _show_rollout(HubClient(where).post("/v1/rollouts", {"release": name}), as_json)


@app.command("promote")
def rollout_promote(
    name: ReleaseName,
    to: Annotated[str | None, typer.Option("--to", metavar="RING", help="Release every ring up to this one.")] = None,
    where: Hub = "",
    as_json: Json = False,
) -> None:
    """Release a rollout to its next ring.

    Example: heliograph rollout promote digits@1.0.0 --to general --hub ./hub
    """
    model, version = parse_release(name)
    if to is not None and to not in RINGS:
        raise ConfigError(f"no ring {to!r}: rings are {', '.join(RINGS)}")
    _show_rollout(HubClient(where).post(f"/v1/rollouts/{model}/{version}/promote", {"to": to}), as_json)


@app.command("pause")
def rollout_pause(
    name: ReleaseName,
    let_running: Annotated[bool, typer.Option("--let-running", help="Nodes that had begun to fetch may end.")] = False,
    where: Hub = "",
    as_json: Json = False,
) -> None:
    """Have a rollout stand still: no ring more is released, nobody begins to fetch, and fetches stop where they are.

    What a node holds whole is still activated and judged there, and whoever serves it goes on; abort and return do
    more. A rollout that is started again is paused no more.

    Example: heliograph rollout pause digits@1.1.0 --let-running --hub ./hub
    """
    _post(name, "pause", {"let_running": let_running}, where, as_json)


@app.command("resume")
def rollout_resume(name: ReleaseName, where: Hub = "", as_json: Json = False) -> None:
    """Have a paused rollout go on. Nodes that waited ask again within a minute, in a large fleet within 15.

    Example: heliograph rollout resume digits@1.1.0 --hub ./hub
    """
    _post(name, "resume", {}, where, as_json)


@app.command("abort")
def rollout_abort(
    name: ReleaseName,
    ring: Annotated[str | None, typer.Option("--ring", metavar="RING", help="Only in this ring.")] = None,
    where: Hub = "",
    as_json: Json = False,
) -> None:
    """Abort a rollout: nodes stop to fetch it and start it no more; who serves it goes on. All that was signed is void.

    Example: heliograph rollout abort digits@1.1.0 --hub ./hub
    """
    _stop(name, "abort", ring, where, as_json)


@app.command("return")
def rollout_return(
    name: ReleaseName,
    ring: Annotated[str | None, typer.Option("--ring", metavar="RING", help="Only in this ring.")] = None,
    where: Hub = "",
    as_json: Json = False,
) -> None:
    """Return from a release: as abort, and whoever serves it serves its fallback again.

    Example: heliograph rollout return digits@1.1.0 --ring canary --hub ./hub
    """
    _stop(name, "return", ring, where, as_json)


@app.command("status")
def rollout_status(name: ReleaseName, where: Hub = "", as_json: Json = False) -> None:
    """Show each ring of a rollout: its state, which nodes serve, refused, are silent or wait and for what, and bytes.

    Proven, of those that serve it, is where it came through its probation: only that is success.

    Example: heliograph rollout status digits@1.0.0 --hub ./hub
    """
    model, version = parse_release(name)
    _show_rollout(HubClient(where).get(f"/v1/rollouts/{model}/{version}"), as_json)


# --- ring protected ---------------------------------------------------------------------------------------------------


@app.command("request")
def rollout_request(
    name: ReleaseName,
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="Where the file is written.")],
    action: Annotated[str, typer.Option("--action", help="install, hold or return.")] = "install",
    where: Hub = "",
    as_json: Json = False,
) -> None:
    """Write protected's directive to a file, for its offline keys to sign. The last step of a rollout, or its abort.

    Example: heliograph rollout request digits@1.1.0 --out protected.json --hub ./hub
    """
    model, version = parse_release(name)
    answer = HubClient(where).post(f"/v1/rollouts/{model}/{version}/requests", {"action": action})
    offline.write(out, offline.File(answer["release"], bytes.fromhex(answer["payload"]), {}))
    if as_json:
        print_json(answer)
        return
    say(f"{answer['have']} of {answer['need']} signatures are here; keys that count:")
    for keyid in answer["keyids"]:
        say(f"  {keyid}")
    what = f"{action} {name} in ring protected, directive {answer['number']}"
    print(f"{out}: {what}, to sign: heliograph rollout sign {out} --key FILE")


@app.command("sign")
def rollout_sign(
    file: RequestFile,
    key: Annotated[list[str], typer.Option("--key", metavar="FILE|URI", help="A key of ring protected; repeatable.")],
    as_json: Json = False,
) -> None:
    """Sign what `rollout request` wrote, in the file itself. Needs no hub: carry the file to the key, and back.

    Example: heliograph rollout sign protected.json --key ring-protected-1.key
    """
    from heliograph_hub.keys import open_keys

    held = offline.read(file)
    for one in open_keys(key):
        held = held.signed_by(one)
    offline.write(file, held)
    if as_json:
        print_json({"signatures": [keyid.hex() for keyid in held.signatures]})
        return
    for line in held.words():
        say(line)
    print(f"{file} has {count(len(held.signatures), 'signature')}: heliograph rollout add {file}")


@app.command("add")
def rollout_add(file: RequestFile, where: Hub = "", as_json: Json = False) -> None:
    """Hand in the signatures of a file; with the last one needed, ring protected is told.

    Example: heliograph rollout add protected.json --hub ./hub
    """
    held = offline.read(file)
    model, version = parse_release(held.release)
    signatures = {keyid.hex(): signature.hex() for keyid, signature in held.signatures.items()}
    if not signatures:
        raise RefusedError(f"{file} has no signatures: heliograph rollout sign {file} --key FILE")
    body = {"payload": held.payload.hex(), "signatures": signatures}
    answer = HubClient(where).post(f"/v1/rollouts/{model}/{version}/signatures", body)
    if as_json:
        print_json(answer)
        return
    have, need = answer["have"], answer["need"]
    done = "ring protected is told" if answer["released"] else f"{have} of {need} signatures, {need - have} more to go"
    print(f"{answer['action']} {held.release}: {done}")


# --- printing ---------------------------------------------------------------------------------------------------------


def _stop(name: str, verb: str, ring: str | None, where: str, as_json: bool) -> None:
    if ring is not None and ring not in RINGS:
        raise ConfigError(f"no ring {ring!r}: rings are {', '.join(RINGS)}")
    _post(name, verb, {"ring": ring}, where, as_json)


def _post(name: str, verb: str, body: dict[str, Any], where: str, as_json: bool) -> None:
    model, version = parse_release(name)
    _show_rollout(HubClient(where).post(f"/v1/rollouts/{model}/{version}/{verb}", body), as_json)


def _show_rollout(answer: dict[str, Any], as_json: bool) -> None:
    for line in answer["said"]:
        say(line)
    if as_json:
        print_json(answer)
        return
    if answer["denied"]:
        print(f"{answer['release']} is DENIED {denied_line(answer['denied'])}")
    if answer["paused"] and any(ring["state"] == "paused" for ring in answer["rings"]):
        print(f"{answer['release']} is PAUSED" + (", who had begun may end" if answer["paused"]["let_running"] else ""))
    table(
        ("ring", "state", "number", "serving", "proven", "refused", "silent", "under way"),
        [
            (
                r["ring"],
                _state(r),
                "" if r["number"] is None else str(r["number"]),
                *(str(len(r[key])) for key in ("serving", "proven", "refused", "silent", "under_way")),
            )
            for r in answer["rings"]
        ],
    )
    for ring in answer["rings"]:
        for refusal in ring["refused"]:
            print(f"{refusal['node']} refused: {refusal['reason']}")
        for waiting in ring["waiting"]:
            print(f"{waiting['node']} waits: {waiting['reason']}")
    show_making(answer["making"])
    if answer["sites"]:
        table(("site", "bytes sent"), [(s["site"], str(s["bytes_sent"])) for s in answer["sites"]])


def _state(ring: dict[str, Any]) -> str:
    asked = ring["signatures"]
    return f"{ring['state']}" + (
        f", {asked['action']} has {asked['have']} of {asked['need']} signatures" if asked else ""
    )
