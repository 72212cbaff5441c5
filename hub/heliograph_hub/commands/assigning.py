"""[IO] `heliograph fleet`: what operators state of sites and nodes."""

from pathlib import Path
from typing import Annotated, Any

import typer

from heliograph.errors import ConfigError, RefusedError
from heliograph.names import RINGS, check_name, parse_node, parse_release
from heliograph_hub.assignment import check_relay, command_kind
from heliograph_hub.client import HubClient
from heliograph_hub.commands import carried
from heliograph_hub.commands.terminal import Hub, Json, count, print_json, say, table, when

NodeName = Annotated[str, typer.Argument(metavar="SITE/NODE")]
Place = Annotated[str, typer.Argument(metavar="SITE[/NODE]")]
Carrier = Annotated[Path, typer.Argument(metavar="FILE", help="What `fleet request` wrote.")]


def add_to(app: typer.Typer) -> None:
    """Puts these commands into the group."""
    for name, command in (
        ("token", token),
        ("tokens", tokens),
        ("assign", assign),
        ("label", label),
        ("pin", pin),
        ("relay", relay),
        ("command", command_),
        ("remove", remove),
        ("request", request),
        ("sign", sign),
        ("add", add),
    ):
        app.command(name)(command)


def token(
    name: NodeName,
    days: Annotated[float, typer.Option("--days", min=0.0001, max=7.0, help="How long it can be used.")] = 7.0,
    protected: Annotated[
        bool, typer.Option("--protected", help="The node takes an assignment only from ring protected's keys.")
    ] = False,
    revoke: Annotated[bool, typer.Option("--revoke", help="Make the node's open tokens worthless instead.")] = False,
    where: Hub = "",
    as_json: Json = False,
) -> None:
    """Print the join string that enrols one node once: a secret, for `heliograph node join`.

    A name that is enrolled already gets new hardware by it: the old key counts no more once the new one has joined.

    Example: heliograph fleet token lab/pi-1 --hub ./hub
    """
    site, node = parse_node(name)
    client = HubClient(where)
    if revoke:
        answer = client.post("/v1/fleet/tokens/revoke", {"site": site, "node": node})
        print_json(answer) if as_json else print(f"revoked: {count(answer['revoked'], 'open token')} of {name}")
        return
    body = {"site": site, "node": node, "life_s": int(days * 86400), "protected": protected}
    answer = client.post("/v1/fleet/tokens", body)
    say(f"enrols {name} once, until {when(answer['expires'])} UTC; keep it secret")
    if answer["protected"]:
        say(f"it says protected: once the node has asked, its assignment is signed by heliograph fleet request {site}")
    if answer["replaces"]:
        say(f"{name} is enrolled with key {answer['replaces'][:16]}: that counts no more once the new hardware joined")
    print_json(answer) if as_json else print(answer["join"])


def tokens(where: Hub = "", as_json: Json = False) -> None:
    """List the tokens that can still be used; the tokens themselves are not kept.

    Example: heliograph fleet tokens --hub ./hub
    """
    answer = HubClient(where).get("/v1/fleet/tokens")
    if as_json:
        print_json(answer)
        return
    rows = [
        (f"{t['site']}/{t['node']}", when(t["expires"]), "protected" if t["protected"] else "", t["id"]) for t in answer
    ]
    table(("node", "until (UTC)", "says", "begins"), rows)


def assign(
    site: Annotated[str, typer.Argument(metavar="SITE")],
    ring: Annotated[str, typer.Argument(metavar="RING", help="canary, early, general or protected.")],
    where: Hub = "",
    as_json: Json = False,
) -> None:
    """Put a site, with all its nodes, into a ring. Into protected and out of it its keys have to sign.

    Example: heliograph fleet assign lab canary --hub ./hub
    """
    check_name(site, "site")
    if ring not in RINGS:
        raise ConfigError(f"no ring {ring!r}: rings are {', '.join(RINGS)}")
    client = HubClient(where)
    answer = client.post("/v1/fleet/assignments", {"site": site, "ring": ring})
    _say_if_new(client, site, answer)
    _say_changed(answer, f"site {site} is in ring {ring}", as_json)


def label(
    name: Place,
    labels: Annotated[list[str], typer.Argument(metavar="KEY=VALUE…", help="KEY= takes a label away.")],
    where: Hub = "",
    as_json: Json = False,
) -> None:
    """Label a node, or a site with all its nodes. `time-zone` is where its windows and budgets are counted.

    Example: heliograph fleet label lab time-zone=Europe/Lisbon kind=lab --hub ./hub
    """
    site, node = _place(name)
    client = HubClient(where)
    answer = client.post("/v1/fleet/labels", {"site": site, "node": node, "labels": labels})
    _say_if_new(client, site, answer)
    shown = " ".join(f"{key}={value}" for key, value in sorted(answer["labels"].items())) or "no labels"
    _say_changed(answer, f"{name} has {shown}", as_json)


def pin(
    name: NodeName,
    release: Annotated[str | None, typer.Argument(metavar="MODEL@VERSION")] = None,
    clear: Annotated[str | None, typer.Option("--clear", metavar="MODEL", help="Lift the pin of this model.")] = None,
    where: Hub = "",
    as_json: Json = False,
) -> None:
    """Let a node start no other version of a model than one. A pin admits nothing that its ring isn't told.

    Example: heliograph fleet pin lab/pi-1 digits@1.0.0 --hub ./hub
    """
    site, node = parse_node(name)
    if (release is None) == (clear is None):
        raise ConfigError("name either MODEL@VERSION or --clear MODEL")
    body = {"clear": check_name(clear, "model")} if clear is not None else {"release": "@".join(_release(release))}
    answer = HubClient(where).post(f"/v1/fleet/{site}/{node}/pins", body)
    for line in answer["said"]:
        say(line)
    done = f"{name} is pinned to {release}" if release else f"{name} is free to run any version of {clear}"
    _say_changed(answer, done, as_json)


def relay(
    name: NodeName,
    address: Annotated[str | None, typer.Argument(metavar="HOST[:PORT]")] = None,
    clear: Annotated[bool, typer.Option("--clear", help="Take content from the hub again.")] = False,
    where: Hub = "",
    as_json: Json = False,
) -> None:
    """Name the relay that a node takes content from; what it trusts doesn't change.

    Example: heliograph fleet relay lab/pi-1 10.0.0.7 --hub ./hub
    """
    site, node = parse_node(name)
    if (address is None) != clear:
        raise ConfigError("name either HOST or --clear")
    body = {"relay": None if address is None else check_relay(address)}
    answer = HubClient(where).post(f"/v1/fleet/{site}/{node}/relay", body)
    _say_changed(answer, f"{name} takes content from {address or 'the hub'}", as_json)


def command_(
    name: NodeName,
    kind: Annotated[str, typer.Argument(metavar="COMMAND", help="drill, rollback, report, abort or forget.")],
    model: Annotated[str | None, typer.Argument(metavar="MODEL", help="For drill, rollback and abort.")] = None,
    where: Hub = "",
    as_json: Json = False,
) -> None:
    """Have a node do something once: it is told until it says that it is done, as `fleet show` tells.

    drill: roll back on purpose and forward again; rollback: serve the fallback; abort: stop the fetch; report: send
    everything now; forget: drop spare files.

    Example: heliograph fleet command lab/pi-1 drill digits --hub ./hub
    """
    site, node = parse_node(name)
    command_kind(kind, model)
    answer = HubClient(where).post(f"/v1/fleet/{site}/{node}/commands", {"kind": kind, "model": model})
    what = f"command {answer['number']} of {name}: {kind}{' ' + model if model else ''}"
    _say_changed(answer, what if answer["new"] else f"{what} waits already", as_json)


def remove(name: NodeName, where: Hub = "", as_json: Json = False) -> None:
    """End a node: its key counts no more. Says what stays on the device.

    Example: heliograph fleet remove lab/pi-1 --hub ./hub
    """
    site, node = parse_node(name)
    answer = HubClient(where).post(f"/v1/fleet/{site}/{node}/remove", {})
    if as_json:
        print_json(answer)
        return
    print(f"{name} is removed, its key {answer['key'][:16]} counts no more; on the device:")
    for line in answer["remains"]:
        print(f"  {line}")


# --- ring protected ---------------------------------------------------------------------------------------------------


def request(
    name: Place,
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="Where the file is written.")],
    where: Hub = "",
    as_json: Json = False,
) -> None:
    """Write the assignments that wait for ring protected's offline keys to a file.

    Example: heliograph fleet request lab --out lab.json --hub ./hub
    """
    site, node = _place(name)
    answer = HubClient(where).post("/v1/fleet/requests", {"site": site, "node": node})
    rows = [carried.Carried(bytes.fromhex(row["payload"]), {}) for row in answer["assignments"]]
    carried.write(out, site, rows)
    if as_json:
        print_json(answer)
        return
    say(f"{answer['need']} of these keys have to sign: {', '.join(keyid[:16] for keyid in answer['keyids'])}")
    if answer["more"]:
        say(f"{answer['more']} more wait: ask again once these are signed")
    carried.show(rows)
    print(f"{out}: {count(len(rows), 'assignment')} of {name} to sign: heliograph fleet sign {out} --key FILE")


def sign(
    file: Carrier,
    key: Annotated[list[str], typer.Option("--key", metavar="FILE|URI", help="A key of ring protected; repeatable.")],
    as_json: Json = False,
) -> None:
    """Sign what `fleet request` wrote, in the file itself. Needs no hub: carry the file to the key, and back.

    Example: heliograph fleet sign lab.json --key ring-protected-1.key
    """
    from heliograph_hub.keys import open_keys

    site, rows = carried.read(file)
    keys = open_keys(key)
    for one in keys:
        rows = [row.signed_by(one) for row in rows]
    carried.write(file, site, rows)
    if as_json:
        print_json({"signed": len(rows), "keys": [one.keyid.hex() for one in keys]})
        return
    carried.show(rows)
    print(f"{file}: {count(len(rows), 'assignment')} signed: heliograph fleet add {file}")


def add(file: Carrier, where: Hub = "", as_json: Json = False) -> None:
    """Hand in the signatures of a file; with the last one needed each node is told.

    Example: heliograph fleet add lab.json --hub ./hub
    """
    _, rows = carried.read(file)
    if not all(row.signatures for row in rows):
        raise RefusedError(f"{file} has no signatures: heliograph fleet sign {file} --key FILE")
    client = HubClient(where)
    answers = []
    for row in rows:
        signatures = {keyid.hex(): signature.hex() for keyid, signature in row.signatures.items()}
        answers.append(client.post("/v1/fleet/signatures", {"payload": row.payload.hex(), "signatures": signatures}))
    if as_json:
        print_json(answers)
        return
    for one in answers:
        state = "in force" if one["done"] else f"{one['have']} of {one['need']} signatures"
        print(f"{one['site']}/{one['node']}: assignment {one['number']} into ring {one['ring']}: {state}")


# --- printing ---------------------------------------------------------------------------------------------------------


def _say_if_new(client: HubClient, site: str, answer: dict[str, Any]) -> None:
    """Says so if what was stated is of a site without nodes: it may be a slip of the pen."""
    if not answer["nodes"] and not answer["waiting"] and all(n["site"] != site for n in client.get("/v1/fleet")):
        say(f"site {site} has no nodes yet; the first comes by heliograph fleet token {site}/NODE")


def _say_changed(answer: dict[str, Any], done: str, as_json: bool) -> None:
    if as_json:
        print_json(answer)
        return
    nodes, waiting = answer["nodes"], answer["waiting"]
    if nodes or not waiting:
        print(f"{done}: " + (f"{count(len(nodes), 'node')} assigned anew" if nodes else "nothing to send now"))
    if waiting:
        ask = f"heliograph fleet request {answer['site']} --out FILE"
        print(f"{done} once ring protected's keys have signed for {count(len(waiting), 'node')}: {ask}")


def _place(name: str) -> tuple[str, str | None]:
    if "/" in name:
        return parse_node(name)
    return check_name(name, "site"), None


def _release(name: str | None) -> tuple[str, str]:
    assert name is not None  # either this or --clear
    return parse_release(name)
