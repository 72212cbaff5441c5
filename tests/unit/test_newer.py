"""A conversation with a hub, and then with a node, as a newer version might be: whole lives, not single messages."""

import asyncio
from pathlib import Path
from typing import Any

from conversation import MODEL, NAMES, REALM, Conversation
from ends import SEED
from heliograph.protocol import STATEMENTS, below_realm, parse_topic, topic
from heliograph.signing import PrivateKey, sign_statement
from heliograph.statement import parse
from heliograph.wire import pack, unpack
from recorder import STEPS_1, Recorder

SCOPE = NAMES | {"ring": "canary", "model": MODEL}
DANCE = 70
WEATHER = {"rain": [1, 2.5, None], "map": b"\x00"}


class NewerHub(Recorder):
    """The hub says in everything more than this version knows, and says some things that are wholly unknown."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._set["command"] = DANCE  # done is what was refused, too

    def _sign(self, type_: str, payload: bytes) -> bytes:
        authority = self.hub.service.authority
        role = STATEMENTS.get(type_, "recipes").format(**SCOPE)
        threshold, keys = authority.set.statement_keys(role)
        return sign_statement(type_, payload, authority.keys.find(keys)[:threshold])

    def _grown(self, data: bytes) -> bytes:
        """A statement with more in it, signed anew."""
        statement = parse(data)
        payload: dict[str, Any] = unpack(statement.payload) | {"weather": WEATHER}
        match statement.type:
            case "offer":
                mesh = [{"kind": "mesh", "blob": way["blob"], "bytes": 1, "peers": [3]} for way in payload["ways"]]
                known = [way | {"hops": 2, "recipe": _more(way["recipe"])} for way in payload["ways"]]
                payload["ways"] = mesh + known
            case "reply":
                payload["heads"] |= {"weather": {"canary": 7}}
                documents = [[below, self._document(below, document)] for below, document in payload["documents"]]
                payload["documents"] = [["weather/canary", b"rain"], *documents]
            case "assignment":
                payload["commands"] = [*payload["commands"], {"number": DANCE, "kind": "dance", "tempo": 3}]
            case "directive":
                payload["blink"] = True
        return self._sign(statement.type, pack(payload))

    def _document(self, below: str, payload: bytes) -> bytes:
        if below == "assigned":
            return self._grown(payload)
        found = parse_topic(f"heliograph/v1/{REALM}/{below}", REALM)
        assert found is not None
        match found[0].payload:
            case "statement":
                return self._grown(payload)
            case "statements":
                other = unpack(parse(unpack(payload)[0]).payload) | {"model": "faces", "action": "blink"}
                return pack([self._sign("directive", pack(other)), *map(self._grown, unpack(payload))])
            case "message" if below == "deny/all":
                return pack(unpack(payload) | {"weather": WEATHER})
        return payload

    async def _hub_says(self, full: str, payload: bytes) -> None:
        below = below_realm(full)
        if below.endswith("/down/reply"):
            await super()._hub_says(f"heliograph/v1/{REALM}/weather/canary", b"rain")
            await super()._hub_says(topic("offer").build(REALM, **NAMES), self._sign("weather", pack(WEATHER)))
        await super()._hub_says(full, self._document(below, payload))


def _more(recipe: Any) -> Any:
    return recipe and recipe | {"weather": 1}


def records(made: Conversation, lane: str) -> list[tuple[str, dict[str, Any]]]:
    """(kind, body) of all that the node recorded in a lane."""
    batches = [unpack(parse(line.payload).payload) for line in made.lines if line.what.endswith("/up/records")]
    return [(row[1], row[3]) for batch in batches if batch["lane"] == lane for row in batch["rows"]]


def incidents(made: Conversation) -> list[tuple[str, str]]:
    """(kind, reason) of all that the node recorded as not obeyed."""
    return [(kind, body.get("reason", "")) for kind, body in records(made, "incident")]


def test_with_a_newer_hub_a_node_lives_on_as_with_its_own_and_says_what_it_did_not_understand(tmp_path: Path) -> None:
    made = asyncio.run(NewerHub(tmp_path).record(STEPS_1))  # ends only where the node serves what it is to
    told = incidents(made)
    assert {kind for kind, _ in told if kind.startswith("message-")} == {"message-unknown", "message-refused"}
    reasons = " / ".join(reason for _, reason in told)
    assert "no such topic in this version" in reasons
    assert "unknown type 'weather'" in reasons
    assert "directive field action" in reasons
    (ordered,) = [body for kind, body in records(made, "audit") if kind == "ordered"]
    assert "'dance' is no command that this version knows" in str(ordered)


class NewerNode(Recorder):
    """The node reads more than this version of the hub writes, and says so; it has learned no new fields yet."""

    async def _node_says(self, full: str, payload: bytes) -> None:
        kind = below_realm(full).rpartition("/")[2]
        if kind in ("hello", "reported"):
            document = unpack(parse(payload).payload if kind == "reported" else payload)
            schemas = {name: number + 3 for name, number in document["schemas"].items()} | {"weather": 2}
            grown = pack(document | {"agent": "9.4.1", "schemas": schemas})
            payload = sign_statement(kind, grown, [PrivateKey.generate(SEED)]) if kind == "reported" else grown
        await super()._node_says(full, payload)


def test_a_newer_node_that_reads_more_is_served_by_this_hub_like_any_other(tmp_path: Path) -> None:
    node = NewerNode(tmp_path)
    made = asyncio.run(node.record(STEPS_1))
    assert node.refused == {}
    assert not [reason for kind, reason in incidents(made) if kind.startswith("message-")]
    hellos = [unpack(line.payload) for line in made.lines if line.what.endswith("/up/hello")]
    assert {hello["agent"] for hello in hellos} == {"9.4.1"}
