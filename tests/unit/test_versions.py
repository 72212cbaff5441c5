"""Older and newer versions of ourselves, message by message: what is ignored, what is refused, and in which words."""

import asyncio
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from conversation import REALM
from ends import HubEnd
from golden import DOCUMENTS, MANIFEST
from heliograph import documents as doc
from heliograph import trust
from heliograph.delta.recipe import RECIPE_FORMAT
from heliograph.documents import Document
from heliograph.errors import IntegrityError, TrustError
from heliograph.manifest import Gate, Manifest
from heliograph.protocol import SCHEMAS, STATEMENTS, TOPICS, Topic, topic
from heliograph.signing import PrivateKey, sign_statement
from heliograph.versions import is_older, numbers_of, reads, why_too_old
from heliograph.vouching import UnknownTypeError
from heliograph.wire import pack, unpack
from heliograph_hub.distribution import _reads_recipes
from heliograph_site.agent import Agent
from heliograph_site.folder import NodeFile
from heliograph_site.gates import unknown_gates
from heliograph_site.hardware import why_unfit
from heliograph_site.identity import keep_in
from heliograph_site.joining import put_in_place
from heliograph_site.journal import Held
from realms import MODEL, NOW, Realm

KEY = PrivateKey.generate(b"k" * 32)
NODE: dict[str, Any] = {"site": "shop-7", "node": "till-1"}
NAMES = NODE | {"ring": "canary", "model": MODEL}
NONCE = b"n" * 16
FROM_HUB = [row for row in TOPICS if row.sender == "hub" and row.statement and row.document]
FROM_NODE = [row for row in TOPICS if row.sender == "own" and row.document]
each_statement = pytest.mark.parametrize("row", FROM_HUB, ids=[row.name for row in FROM_HUB])
each_node_message = pytest.mark.parametrize("row", FROM_NODE, ids=[row.name for row in FROM_NODE])


# --- comparing ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("older", "newer"),
    [("0.1.0", "0.2.0"), ("0.9", "0.10"), ("1", "1.0.1"), ("", "0.0.1"), ("1.2.3", "2"), ("0.1.0", "0.1.0.1")],
)
def test_of_two_versions_the_one_with_the_smaller_numbers_is_older(older: str, newer: str) -> None:
    assert is_older(older, newer)
    assert not is_older(newer, older)


@pytest.mark.parametrize(("one", "other"), [("1", "1.0.0"), ("0", ""), ("v1.2", "1.2"), ("1.2.3.4.5", "1.2.3.4")])
def test_versions_that_differ_in_nothing_that_counts_are_the_same_age(one: str, other: str) -> None:
    assert not is_older(one, other)
    assert not is_older(other, one)
    assert numbers_of(one) == numbers_of(other)


def test_an_agent_that_is_too_old_says_so_with_the_document_its_number_and_both_versions() -> None:
    assert why_too_old("policy 7 of ring canary", "0.3.0", "0.2.9") == (
        "policy 7 of ring canary needs agent 0.3.0, this is 0.2.9"
    )
    assert why_too_old("policy 7 of ring canary", "0.3.0", "0.3.0") is None
    assert why_too_old("policy 7 of ring canary", "0") is None


def test_what_is_not_named_in_schemas_is_read_in_its_first_version() -> None:
    assert reads({}, "recipe", 1) and not reads({}, "recipe", 2)
    assert reads({"recipe": 2}, "recipe", 2) and not reads({"recipe": 2}, "recipe", 3)


# --- a newer hub, an older node -----------------------------------------------------------------------------------


@pytest.fixture
def agent(tmp_path: Path, realm: Realm) -> Iterator[Agent]:
    trusted = trust.with_set(realm.bootstrap(), realm.publish().pack(), NOW)
    held: Any = doc.Assignment(realm="demo", **NODE, key=KEY.keyid, number=1, ring="canary")
    assignment = realm.sign("assign", "assignment", held)
    file = NodeFile(realm="demo", **NODE, host="127.0.0.1", port=1, root="0" * 64)
    put_in_place(tmp_path / "till", file.encode(), keep_in("file", KEY), trusted, Held("assignment", "", 1, assignment))
    agent = Agent(tmp_path / "till")
    agent._link.nonce = NONCE
    agent._hearing._is_back = True
    yield agent
    agent.journal.close()
    agent.outbox.close()


def example(row: Topic) -> Document:
    """The golden document of a row, meant for this node."""
    document = DOCUMENTS.get(row.name) or DOCUMENTS[row.statement or row.name]
    changes: dict[str, Any] = {"key": KEY.keyid} if isinstance(document, doc.NodeScoped) else {}
    if isinstance(document, doc.Reply):
        changes |= {"nonce": NONCE, "documents": (), "more": False}
    if "ring" in type(document).model_fields and row.name != "assigned":
        changes["ring"] = "canary"
    return document.model_copy(update=changes)


def scope(row: Topic) -> dict[str, str]:
    return {name: NAMES[name] for name in re.findall(r"\{(\w+)\}", row.pattern)}


def newer(realm: Realm, row: Topic, **more: Any) -> bytes:
    """The statement of a row with these fields in addition, as a newer hub signs it."""
    assert row.statement is not None
    payload = pack(unpack(example(row).encode()) | more)
    return sign_statement(row.statement, payload, realm.signers(STATEMENTS[row.statement].format(**NAMES)))


def tell(agent: Agent, name: str, payload: bytes, **names: str) -> list[tuple[str, str]]:
    """Gives the agent a message; returns (kind, reason) of what it recorded as not obeyed."""
    full = name if name.startswith("heliograph/") else topic(name).build("demo", **(scope(topic(name)) | names))
    before = agent._incidents.count
    asyncio.run(agent._hearing.guard(full, agent._hearing.on_document(full, payload)))
    batch = agent.outbox.batch("incident", 60_000)
    rows = batch.rows if batch is not None else ()
    count = agent._incidents.count - before
    return [(kind, str(body["reason"])) for _, kind, _, body in rows][len(rows) - count :]


@each_statement
def test_a_field_that_a_node_does_not_know_changes_nothing_of_what_the_hub_signed(
    agent: Agent, realm: Realm, row: Topic
) -> None:
    read = agent._belief.open(row, scope(row), newer(realm, row, weather={"rain": [1, 2]}))
    assert read == example(row)


@each_statement
def test_a_field_that_a_node_must_know_and_does_not_has_the_document_refused_by_name(
    agent: Agent, realm: Realm, row: Topic
) -> None:
    statement = newer(realm, row, weather=1, crit=["weather"])
    with pytest.raises(IntegrityError, match=r"needs weather, which agent [0-9.]+ lacks") as caught:
        agent._belief.open(row, scope(row), statement)
    number = getattr(example(row), "number", None)
    assert row.statement is not None
    assert str(caught.value).startswith(row.statement + (f" {number}" if number is not None else ""))


@each_statement
def test_a_statement_type_that_a_node_does_not_know_is_told_apart_from_a_forged_one(
    agent: Agent, realm: Realm, row: Topic
) -> None:
    assert row.statement is not None
    statement = sign_statement("weather", pack({"rain": 1}), realm.signers(STATEMENTS[row.statement].format(**NAMES)))
    with pytest.raises(UnknownTypeError, match="unknown type 'weather'"):
        agent._belief.open(row, scope(row), statement)
    forged = sign_statement(row.statement, example(row).encode(), [KEY])
    with pytest.raises(TrustError) as caught:
        agent._belief.open(row, scope(row), forged)
    assert not isinstance(caught.value, UnknownTypeError)


@pytest.mark.parametrize(
    "below", ["weather/canary", "node/shop-7/till-1/down/weather", "node/shop-7/till-1/up/hello", "tuf/root/1/x"]
)
def test_a_topic_that_a_node_does_not_know_is_counted_and_changes_nothing(agent: Agent, below: str) -> None:
    told = tell(agent, f"heliograph/v1/demo/{below}", b"\x00")
    assert [kind for kind, _ in told] == ["message-unknown"]
    assert "this version" in told[0][1]


def test_of_a_list_of_directives_those_that_are_understood_count_and_the_others_are_said(
    agent: Agent, realm: Realm
) -> None:
    row = topic("desired")
    good = newer(realm, row, weather=1)
    fields: tuple[dict[str, Any], ...] = (
        {"model": "faces", "action": "blink"},
        {"model": "hands", "crit": ["weather"]},
    )
    others = [newer(realm, row, **more) for more in fields]
    told = tell(agent, "desired", pack([others[0], good, others[1]]))
    assert agent._belief.models == (MODEL,)
    assert told == []
    told = tell(agent, "desired", pack(others))
    assert len(told) == 1 and "needs weather" in told[0][1]


def test_an_assignment_with_a_command_of_an_unknown_kind_still_says_what_the_node_is(
    agent: Agent, realm: Realm
) -> None:
    commands = [{"number": 8, "kind": "dance"}, {"number": 9, "kind": "report", "tempo": 3}]
    read = agent._belief.open(topic("assigned"), NODE, newer(realm, topic("assigned"), commands=commands))
    assert isinstance(read, doc.Assignment)
    assert [(c.number, c.kind, c.kind in doc.COMMAND_KINDS) for c in read.commands] == [
        (8, "dance", False), (9, "report", True)
    ]  # fmt: skip


def test_of_the_ways_in_an_offer_those_that_a_node_knows_are_left(agent: Agent, realm: Realm) -> None:
    row = topic("offer")
    ways = unpack(example(row).encode())["ways"]
    mesh = {"kind": "mesh", "blob": b"b" * 32, "bytes": 1, "peers": [1, 2]}
    read = agent._belief.open(row, NODE, newer(realm, row, ways=[mesh, *(way | {"hops": 3} for way in ways)]))
    assert read == example(row)


def test_a_reply_with_documents_of_unknown_topics_brings_the_others(agent: Agent, realm: Realm) -> None:
    documents = [
        ["weather/canary", b"rain"],
        ["desired/canary", pack([newer(realm, topic("desired"))])],
        ["node/shop-7/till-1/down/mood", b"good"],
    ]

    async def scenario() -> None:
        payload = newer(realm, topic("reply"), documents=documents, mood="good")
        await agent._hearing.on_document(topic("reply").build("demo", **NODE), payload)

    asyncio.run(scenario())
    assert agent._belief.models == (MODEL,)
    assert agent._incidents.count == 2


@pytest.mark.parametrize(
    ("name", "more", "said"),
    [
        ("policy", {"min_agent": "9.1"}, "policy 5 needs agent 9.1, this is "),
        ("config", {"min_agent": "9.1"}, "config 3 needs agent 9.1, this is "),
        ("policy", {"weather": 1, "crit": ["weather"]}, "policy 5 needs weather, which agent "),
        ("config", {"weather": 1, "crit": ["weather"]}, "config 3 needs weather, which agent "),
        ("policy", {"authority": "nobody"}, "policy field authority: "),
        ("config", {"thresholds": "high"}, "config field thresholds: "),
    ],
)
def test_a_policy_or_config_that_an_agent_can_not_obey_is_declined_and_told_with_its_number(
    agent: Agent, realm: Realm, name: str, more: dict[str, Any], said: str
) -> None:
    row = topic(name)
    number = getattr(example(row), "number", 0)
    assert tell(agent, name, newer(realm, row, weather=1)) == []
    assert agent._belief.rules.declined() == ()
    assert tell(agent, name, newer(realm, row, **more, number=number + 1)) == []
    (declined,) = agent._belief.rules.declined()
    assert (declined.document, declined.number) == (name if name == "policy" else f"config/{MODEL}", number + 1)
    assert declined.reason.startswith(said)
    in_force = agent._belief.rules.policy(number) if name == "policy" else agent._belief.rules.config(MODEL, number)
    assert in_force.number == number, "what it had is still held"


def test_metadata_with_more_in_it_than_a_node_knows_is_believed_like_any_other(agent: Agent, realm: Realm) -> None:
    def grow(signed: Any) -> None:
        signed.unrecognized_fields["custom"]["heads"]["weather"] = {"canary": 3}
        signed.unrecognized_fields["custom"]["mood"] = "good"

    before = agent.metadata_versions["timestamp"]
    assert tell(agent, "set", realm.publish(edit={"timestamp": grow}).pack()) == []
    assert agent.metadata_versions["timestamp"] == before + 1


def test_a_release_for_newer_agents_is_declined_with_its_name_and_both_versions() -> None:
    here = doc.Hardware(arch="x86_64", memory_bytes=1 << 30, runtimes={"tflite": "2.14.0"})
    asks = MANIFEST.model_copy(update={"min_agent": "7.1"})
    assert re.fullmatch(r"digits@1\.4\.0 needs agent 7\.1, this is [0-9.]+", why_unfit(asks, here) or "")
    assert why_unfit(MANIFEST.model_copy(update={"min_agent": "0.0.1"}), here) is None


def test_a_manifest_says_by_crit_or_format_that_an_older_agent_must_not_run_it() -> None:
    data = unpack(MANIFEST.encode())
    assert Manifest.decode(pack(data | {"weather": 1})) == MANIFEST
    with pytest.raises(IntegrityError, match=r"^manifest needs weather, which agent [0-9.]+ lacks$"):
        Manifest.decode(pack(data | {"weather": 1, "crit": ["weather"]}))
    with pytest.raises(IntegrityError, match="format"):
        Manifest.decode(pack(data | {"format": 2}))
    assert unknown_gates(MANIFEST.model_copy(update={"gates": (Gate(name="mood", limit=1.0),)})) == ("mood",)


# --- a newer node, an older hub -----------------------------------------------------------------------------------


class Hub:
    """A hub that has enrolled this node."""

    def __init__(self, folder: Path) -> None:
        self.heard: list[str] = []
        self.end = HubEnd(folder, self._hear)
        self.names = {"site": "shop", "node": "till"}
        fresh: Any = {"token": bytes(32), "key": KEY.public.raw, "nonce": bytes(16)}

        async def begin() -> None:
            self.end.service.begin()
            await self.end.operate("assign shop canary")
            await self.end.operate("token", bytes(32))
            await self.end.take(topic("enroll").build(REALM, **self.names), doc.Enroll(**fresh).encode())

        asyncio.run(begin())

    async def _hear(self, full: str, payload: bytes) -> None:
        self.heard.append(full.rpartition("/")[2])

    def message(self, row: Topic, more: dict[str, Any]) -> bytes:
        """The golden message of a row with these fields in addition, as a newer node sends it."""
        about = {"realm": REALM} | self.names if "realm" in unpack(DOCUMENTS[row.name].encode()) else {}
        payload = pack(unpack(DOCUMENTS[row.name].encode()) | about | more)
        return sign_statement(row.statement, payload, [KEY]) if row.statement else payload

    def counts(self) -> dict[str, dict[str, Any]]:
        return self.end.service.fleet.counts("shop", "till")

    def tell(self, below: str, payload: bytes) -> list[str]:
        """Gives the hub a message of the node; returns what it answered."""
        self.heard.clear()
        asyncio.run(self.end.take(f"heliograph/v1/{REALM}/node/shop/till/up/{below}", payload))
        return list(self.heard)


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    found = Hub(tmp_path)
    yield found
    found.end.close()


@each_node_message
def test_a_field_that_a_hub_does_not_know_is_refused_counted_and_named_and_the_next_message_is_taken(
    hub: Hub, row: Topic
) -> None:
    before = hub.end.service.fleet.node("shop", "till").reported
    assert hub.tell(row.name, hub.message(row, {"weather": 1})) == []
    assert hub.counts()["malformed"]["count"] == 1
    assert re.match(f"{row.name}: {row.name} field weather: ", hub.counts()["malformed"]["last"])
    assert hub.end.service.fleet.node("shop", "till").reported == before
    hub.tell("hello", hub.message(topic("hello"), {"key": KEY.keyid}))
    assert hub.heard == ["reply"]


def test_a_statement_type_or_a_topic_that_a_hub_does_not_know_is_counted_with_its_node(hub: Hub) -> None:
    assert hub.tell("reported", sign_statement("weather", pack({"rain": 1}), [KEY])) == []
    assert set(hub.counts()) == {"of no use to this version"}
    assert hub.counts()["of no use to this version"]["count"] == 1
    assert hub.tell("weather", b"\x00") == []
    assert hub.end.service.fleet.uncounted()["on unknown topics"]["count"] == 1


def test_a_node_may_read_more_than_the_hub_writes(hub: Hub) -> None:
    schemas = {name: version + 1 for name, version in SCHEMAS.items()} | {"weather": 1}
    assert hub.tell("hello", hub.message(topic("hello"), {"schemas": schemas, "agent": "9.0", "key": KEY.keyid})) == [
        "reply"
    ]
    hub.tell("reported", hub.message(topic("reported"), {"schemas": schemas, "agent": "9.0"}))
    told = hub.end.service.fleet.node("shop", "till").reported
    assert told is not None and told.schemas == schemas
    assert hub.counts() == {}


def test_a_lane_that_a_hub_does_not_know_is_refused_alone(hub: Hub) -> None:
    assert hub.tell("records", hub.message(topic("records"), {"lane": "mood"})) == []
    assert "lane" in hub.counts()["malformed"]["last"]
    assert hub.tell("records", hub.message(topic("records"), {})) == ["receipt"]


def test_a_node_that_does_not_read_the_recipes_of_this_hub_is_sent_full_files(hub: Hub) -> None:
    fleet = hub.end.service.fleet
    assert not _reads_recipes(fleet.node("shop", "till")), "one that has not reported yet reads the first version"
    hub.tell("reported", hub.message(topic("reported"), {"schemas": SCHEMAS}))
    assert _reads_recipes(fleet.node("shop", "till"))
    hub.tell(
        "reported", hub.message(topic("reported"), {"n": 10_000, "schemas": SCHEMAS | {"recipe": RECIPE_FORMAT - 1}})
    )
    assert not _reads_recipes(fleet.node("shop", "till"))
