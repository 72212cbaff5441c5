"""[IO] What `policy` and `config` share: simulate, ask, sign, show."""

import json
import re
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import typer

from heliograph.errors import ConfigError, RefusedError, TrustError
from heliograph.policy import MAX_DOCUMENT_BYTES, Config, Policy, config_from_table, policy_from_table
from heliograph.toml import parse_toml
from heliograph_hub.client import HubClient
from heliograph_hub.commands.terminal import print_json, say, table, when

_BARE = re.compile(r"[A-Za-z0-9_-]+")
_STATES = {
    "takes": "takes it",
    "held": "holds it back",
    "falls-back": "takes it with its fallback",
    "flagged": "has nothing that fits, serves on flagged",
    "stopped": "has nothing that fits, STOPS",
    "passed-over": "keeps it unused",
    "declined": "declines it, and goes on as it is",
}


def set_document(
    kind: str, file: Path, keys: list[str], *, where: str, is_dry: bool, is_agreed: bool, as_json: bool
) -> None:
    """Has the hub simulate the file, asks if a node would stop, then has it signed and published."""
    text = read_file(kind, file)
    client = HubClient(where)
    asked = client.post("/v1/documents/requests", {"kind": kind, "text": text})
    for line in asked["warnings"]:
        say(f"warning: {line}")
    name = f"{kind}/{asked['scope']} {asked['number']}"
    if asked["unchanged"] or is_dry:
        if as_json:
            print_json(asked)
        elif asked["unchanged"]:
            print(f"{name} says the same already: unchanged")
        else:
            _print_effects(asked)
            print(f"{name} would be signed; nothing was done")
        return
    if not as_json:
        _print_effects(asked)
    stopped = sorted({effect["node"] for effect in asked["effects"] if effect["loses_service"]})
    if stopped and not is_agreed:
        _ask(name, stopped)
    signatures = _sign(kind, text, asked, keys)
    answer = client.post("/v1/documents", {"kind": kind, "payload": asked["payload"], "signatures": signatures})
    for line in answer["said"]:
        say(line)
    if as_json:
        print_json(answer | {"effects": asked["effects"], "warnings": asked["warnings"]})
        return
    have, need = answer["have"], answer["need"]
    if answer["state"] == "waiting":
        print(f"{name}: {have} of {need} signatures, {need - have} more to go; nothing is announced yet")
    else:
        print(f"{name} is signed and announced")


def show_document(kind: str, scope: str | None, number: int | None, where: str, as_json: bool) -> None:
    """One document as a file that `set` takes, or the list of all."""
    client = HubClient(where)
    if scope is None:
        if number is not None:
            what = {"policy": "RING", "config": "MODEL"}[kind]
            raise ConfigError(f"--number {number} of which? heliograph {kind} show {what} --number {number}")
        answer = client.get(f"/v1/documents/{kind}")
        if as_json:
            print_json(answer)
            return
        if not answer:
            print(f"no {kind} is set yet, every field is at its default: heliograph {kind} set FILE")
            return
        table(
            ({"policy": "ring", "config": "model"}[kind], "number", "state", "signed", "at"),
            [(d["scope"], str(d["number"]), d["state"], f"{d['have']} of {d['need']}", when(d["at"])) for d in answer],
        )
        return
    answer = client.get(f"/v1/documents/{kind}/{scope}" + (f"/{number}" if number is not None else ""))
    if as_json:
        print_json(answer)
        return
    if answer["number"] == 0:
        print(f"# no {kind} is set for {scope}: every field is at its default")
    else:
        signed = f"{answer['have']} of {answer['need']} signatures"
        print(f"# {kind}/{scope} {answer['number']} of {when(answer['at'])} UTC, {answer['state']}, {signed}")
    print(as_toml(answer["content"]), end="")


def as_toml(content: dict[str, Any]) -> str:
    """A document's content as TOML: plain fields first, then a table for each that has fields of its own."""
    plain = {key: value for key, value in content.items() if not isinstance(value, dict)}
    tables = {key: value for key, value in content.items() if isinstance(value, dict)}
    lines = [f"{_key(key)} = {_value(value)}" for key, value in plain.items()]
    for key, inner in tables.items():
        if inner and all(isinstance(value, dict) for value in inner.values()):
            for name, below in inner.items():
                lines += ["", f"[{_key(key)}.{_key(name)}]"]
                lines += [f"{_key(field)} = {_value(value)}" for field, value in below.items()]
        else:
            lines += ["", f"[{_key(key)}]", *(f"{_key(field)} = {_value(value)}" for field, value in inner.items())]
    return "".join(f"{line}\n" for line in lines)


# --- inside ---------------------------------------------------------------------------------------------------------


def read_file(kind: str, file: Path) -> str:
    """The text of an operator's file.

    Raises:
        ConfigError, RefusedError: it can't be read, is too large, or is no text.
    """
    try:
        with file.open("rb") as opened:
            data = opened.read(MAX_DOCUMENT_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"{file} can't be read ({error.strerror}): name a TOML file") from error
    if len(data) > MAX_DOCUMENT_BYTES:
        raise RefusedError(f"{kind} file {file} exceeds {MAX_DOCUMENT_BYTES} bytes: say less in it")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise ConfigError(f"{file} is not text: name a TOML file") from error


def _sign(kind: str, text: str, asked: dict[str, Any], files: list[str]) -> dict[str, str]:
    """Signatures by the named keys; with none named, the hub signs with those that it holds."""
    from heliograph.statement import signed_bytes
    from heliograph_hub.keys import open_keys

    keys = open_keys(files)
    for file, key in zip(files, keys, strict=True):
        if key.keyid.hex() not in asked["keyids"]:
            raise RefusedError(
                f"{file} holds key {key.keyid.hex()[:16]}, which can't sign {kind}/{asked['scope']}: "
                "keys that count are " + ", ".join(keyid[:16] for keyid in asked["keyids"])
            )
    # Signed is what the file says, whatever the hub sent.
    payload = bytes.fromhex(asked["payload"])
    sent = (Policy if kind == "policy" else Config).decode(payload)
    make = policy_from_table if kind == "policy" else config_from_table
    if make(parse_toml(text, kind), realm=sent.realm, number=sent.number, at=sent.at) != sent:
        raise TrustError(f"the hub sent another {kind} than the file states: nothing was signed")
    message = signed_bytes(kind, payload)
    return {key.keyid.hex(): key.sign(message).hex() for key in keys}


def _ask(name: str, stopped: list[str]) -> None:
    question = f"{name} stops {len(stopped)} node{'s' if len(stopped) > 1 else ''}: {', '.join(stopped[:20])}"
    if not sys.stdin.isatty():
        raise RefusedError(f"{question}; --yes signs it all the same")
    try:
        is_agreed = typer.confirm(f"{question}. Sign it all the same?", err=True)
    except typer.Abort:  # Ctrl-C, or the end of what was typed
        is_agreed = False
        say("")
    if not is_agreed:
        raise RefusedError(f"{name} was not signed")


def _print_effects(asked: dict[str, Any]) -> None:
    effects = asked["effects"]
    if not effects:
        print("no node that has reported is affected")
        return
    rows = []
    for effect in effects:
        state = _STATES[effect["state"]]
        if effect["until"] is not None:
            state += f" until {when(effect['until'])}, then {_STATES[effect['finally']]}"
        # What ends a reason that says more is said already.
        said = effect["why"]
        why = "; ".join(one for one in said if not any(other != one and other.endswith(one) for other in said))
        rows.append((effect["node"], effect["model"], _tuple(effect["before"]), _tuple(effect["after"]), state, why))
    table(("node", "model", "serves", "will serve", "it", "why"), rows)
    counts = Counter(_STATES[effect["state"]] for effect in effects)
    silent = sum(effect["silent"] for effect in effects)
    print(", ".join(f"{count} {state}" for state, count in counts.items()) + (f"; {silent} silent" if silent else ""))


def _tuple(value: dict[str, Any] | None) -> str:
    if value is None:
        return "nothing"
    return f"{value['release'] or value['digest'][:16]}, config {value['config']}, policy {value['policy']}"


def _key(key: str) -> str:
    return key if _BARE.fullmatch(key) else _value(key)


def _value(value: Any) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{_key(key)} = {_value(inner)}" for key, inner in value.items()) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(_value(inner) for inner in value) + "]"
    # JSON's text is TOML's, but for DEL, which TOML wants escaped.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
