"""What the control process makes of single messages, with no link and nothing running."""

import asyncio
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tuf.api.metadata import Root

from golden import MANIFEST
from heliograph import trust
from heliograph.blob import sha256
from heliograph.documents import Assignment, Heads, Numbers, Offer, OlderDenials, Reply
from heliograph.errors import TransportError, TrustError
from heliograph.manifest import Compatible, Span
from heliograph.metadata import load
from heliograph.policy import Config, Policy, Telemetry
from heliograph.protocol import topic
from heliograph.signing import PrivateKey
from heliograph.wire import pack
from heliograph_hub import ceremony
from heliograph_site.agent import TICK_S, Agent
from heliograph_site.folder import NodeFile
from heliograph_site.happenings import Failed, Passed, Staged, Started
from heliograph_site.identity import keep_in
from heliograph_site.inbox import LinkChanged, LookAgain, Ticked
from heliograph_site.joining import put_in_place
from heliograph_site.journal import Held, Paper
from heliograph_site.machine import step
from heliograph_site.memory import Memory, Pointer, Target
from heliograph_site.pulse import Pulse
from heliograph_site.serving.tuned import Tuned
from realms import MODEL, NOW, Realm
from waits import turns

KEY = PrivateKey.generate(b"k" * 32)
NAMES: dict[str, Any] = {"realm": "demo", "site": "shop", "node": "till", "key": KEY.keyid}
NONCE = b"n" * 16
YEAR_2040 = 2_208_988_800


@pytest.fixture
def agent(tmp_path: Path, realm: Realm) -> Iterator[Agent]:
    trusted = trust.with_set(realm.bootstrap(), realm.publish().pack(), NOW)
    assignment = realm.sign("assign", "assignment", Assignment(**NAMES, number=1, ring="canary"))
    file = NodeFile(realm="demo", site="shop", node="till", host="127.0.0.1", port=1, root="0" * 64)
    put_in_place(tmp_path / "till", file.encode(), keep_in("file", KEY), trusted, Held("assignment", "", 1, assignment))
    agent = Agent(tmp_path / "till")
    agent._link.nonce = NONCE
    yield agent
    agent.journal.close()
    agent.outbox.close()


def take(agent: Agent, payload: bytes) -> None:
    asyncio.run(agent._hearing.on_document(topic("reply").build("demo", site="shop", node="till"), payload))


def reply(realm: Realm, nonce: bytes = NONCE, at: int = NOW + 60) -> bytes:
    signed: bytes = realm.sign("timestamp", "reply", Reply(**NAMES, nonce=nonce, at=at, heads=Heads()))
    return signed


def test_whatever_order_a_reply_has_denials_are_read_first_policy_second_and_desired_state_third(
    agent: Agent, realm: Realm
) -> None:
    below = ("desired/canary", "policy/canary", "deny/all")
    document = Reply(**NAMES, nonce=NONCE, at=NOW, heads=Heads(), documents=tuple((name, b"junk") for name in below))
    take(agent, realm.sign("timestamp", "reply", document))
    batch = agent.outbox.batch("incident", 9999)
    assert batch is not None
    read = [str(body["where"]).removeprefix("heliograph/v1/demo/") for _, kind, _, body in batch.rows if kind]
    assert read[::-1] == ["deny/all", "policy/canary", "desired/canary"], "incidents are handed out newest first"


def test_the_hub_is_heard_when_it_answers_and_when_it_signs_anew(agent: Agent, realm: Realm) -> None:
    take(agent, reply(realm))
    heard_at = agent._time.heard_at
    assert NOW + 60 <= heard_at <= agent.now()
    agent._time.heard(YEAR_2040)
    assert agent._time.heard_at <= agent.now(), "what is signed ahead of time proves nothing of later"
    agent._time.heard(NOW)
    assert agent._time.heard_at >= heard_at, "it never goes back"
    assert agent.journal.heard_at() == agent._time.heard_at, "and is on disk"


def test_only_the_reply_to_the_last_hello_tells_the_time(agent: Agent, realm: Realm) -> None:
    with pytest.raises(TrustError, match="a reply to no hello of ours"):
        take(agent, reply(realm, b"o" * 16))
    assert agent.now() < NOW + 60
    take(agent, reply(realm))
    assert NOW + 60 <= agent.now() < NOW + 120
    with pytest.raises(TrustError, match="a reply to no hello of ours"):
        take(agent, reply(realm, at=NOW + 600))


def test_a_reply_that_comes_after_the_next_hello_brings_its_news_and_tells_no_time(agent: Agent, realm: Realm) -> None:
    async def greeted_again() -> None:
        with pytest.raises(TransportError):  # there is no link: the hello counts all the same
            await agent._link._hello()

    asyncio.run(greeted_again())
    policy = realm.sign("policy", "policy", Policy(realm="demo", ring="canary", number=4, at=NOW))
    late = Reply(**NAMES, nonce=NONCE, at=NOW + 600, heads=Heads(), documents=(("policy/canary", policy),))
    before = agent.now(), agent._time.heard_at
    take(agent, realm.sign("timestamp", "reply", late))
    assert agent._belief.rules.policy(4).number == 4 and agent._incidents.count == 0
    assert agent.now() < before[0] + 300 and agent._time.heard_at == before[1]
    assert agent._link.nonce is not None, "the last hello still waits"


def test_what_a_power_cut_left_half_written_goes_when_the_agent_starts(agent: Agent, tmp_path: Path) -> None:
    half = tmp_path / "till" / "objects" / ".0123456789abcdef.part"
    half.write_bytes(b"half")
    again = Agent(tmp_path / "till")
    again.journal.close()
    again.outbox.close()
    assert not half.exists()


@pytest.mark.parametrize("is_late", [True, False])
def test_only_the_reply_to_the_last_hello_says_that_no_policy_lies_between_what_it_brings_and_what_was_asked_for(
    agent: Agent, realm: Realm, is_late: bool
) -> None:
    if is_late:
        agent._link._earlier.append(b"o" * 16)
    agent._belief.rules.asked(Numbers(policy=7))  # by the last hello; the one before may have asked for 5
    policy = realm.sign("policy", "policy", Policy(realm="demo", ring="canary", number=4, at=NOW))
    nonce = b"o" * 16 if is_late else NONCE
    document = Reply(**NAMES, nonce=nonce, at=NOW + 60, heads=Heads(), documents=(("policy/canary", policy),))
    take(agent, realm.sign("timestamp", "reply", document))
    (paper,) = [paper for paper in agent.journal.papers() if paper.kind == "policy"]
    assert (paper.number, paper.newest_until) == (4, 0 if is_late else 7)


def test_what_a_directive_means_is_looked_at_again_by_the_time_that_a_reply_told(agent: Agent, realm: Realm) -> None:
    looked_at: list[int] = []

    async def derive_all() -> None:
        looked_at.append(agent.now())

    agent._machines.derive_all = derive_all  # type: ignore[method-assign]  # when it is asked for is what is tested
    take(agent, reply(realm))
    assert looked_at and looked_at[-1] >= NOW + 60


def test_a_stolen_timestamp_key_can_not_reply_a_far_year(agent: Agent, realm: Realm) -> None:
    take(agent, reply(realm, at=YEAR_2040))
    assert agent.now() <= NOW + ceremony.LIFE_S["targets"] + 60 < YEAR_2040


def test_a_far_time_that_a_stolen_timestamp_key_replied_ends_with_its_rotation(agent: Agent, realm: Realm) -> None:
    take(agent, reply(realm, at=YEAR_2040))
    assert agent.now() > NOW + 300 * 86_400
    root, files = realm.rotate("timestamp"), realm.publish().pack()
    documents = (("tuf/root/2", root), ("tuf/set", files))
    asyncio.run(agent._hearing.on_document(topic("root").build("demo", number=2), root))
    assert agent.now() < NOW
    agent._link.nonce = NONCE
    told = Reply(**NAMES, nonce=NONCE, at=NOW + 60, heads=Heads(), documents=documents)
    take(agent, realm.sign("timestamp", "reply", told))
    assert NOW + 60 <= agent.now() < NOW + 120 and agent._time.heard_at <= agent.now()
    assert agent._belief.trusted.is_complete


@pytest.mark.parametrize("signers", ["strangers", "the new keys alone", "one of the old and the new"])
def test_attack_a_next_root_in_a_reply_that_the_known_root_does_not_vouch_for_changes_nothing(
    agent: Agent, realm: Realm, signers: str
) -> None:
    old, strangers = realm.signers("root"), [PrivateKey.generate(b"s" * 32)]
    good = realm.rotate("root", "targets")
    new = realm.signers("root")
    who = {"strangers": strangers, "the new keys alone": new, "one of the old and the new": [*old[:1], *new]}[signers]
    unsigned = load(Root, good, "root")
    unsigned.signatures.clear()
    forged = ceremony.sign(unsigned, who)

    def told(root: bytes) -> bytes:
        agent._link.nonce = NONCE
        document = Reply(**NAMES, nonce=NONCE, at=NOW + 60, heads=Heads(), documents=(("tuf/root/2", root),))
        signed: bytes = realm.sign("timestamp", "reply", document)
        return signed

    before = agent._belief.trusted, agent.journal.trusted()
    take(agent, told(forged))
    assert (agent._belief.trusted, agent.journal.trusted()) == before and agent._incidents.count == 1
    take(agent, told(good))
    assert agent._belief.trusted.versions["root"] == 2, "with all the signatures it needs it is taken"


def test_attack_a_reply_of_an_unknown_timestamp_key_is_refused_whatever_root_it_carries(
    agent: Agent, realm: Realm
) -> None:
    before = agent._belief.trusted, agent.journal.trusted(), agent.now()
    root = realm.rotate("timestamp")
    told = Reply(**NAMES, nonce=NONCE, at=NOW + 60, heads=Heads(), documents=(("tuf/root/2", root),))
    with pytest.raises(TrustError, match="signed by 0 keys of timestamp"):
        take(agent, realm.sign("timestamp", "reply", told))
    assert (agent._belief.trusted, agent.journal.trusted()) == before[:2] and agent.now() < before[2] + 60


def test_a_head_tells_that_the_hub_is_there_only_when_it_is_sent_now_and_signed(agent: Agent, realm: Realm) -> None:
    head = agent._belief.trusted.timestamp
    forged = realm.publish(signers={"timestamp": []}).timestamp
    assert head is not None

    async def scenario() -> None:
        lost: asyncio.Future[Offer] = asyncio.get_running_loop().create_future()
        agent._link._asks[1] = lost, float("-inf")  # an ask of long ago
        full = topic("head").build("demo")
        await agent._hearing.on_document(full, head, is_live=False)
        with pytest.raises(TrustError):
            await agent._hearing.on_document(full, forged, is_live=True)
        assert not lost.done()
        await agent._hearing.on_document(full, head, is_live=True)
        assert isinstance(lost.exception(), TransportError)

    asyncio.run(scenario())


def test_of_the_lists_that_wait_for_the_reply_only_the_newest_of_the_own_ring_is_kept(agent: Agent) -> None:
    async def scenario() -> None:
        own = topic("desired").build("demo", ring="canary")
        for payload in (b"old", b"new"):
            await agent._hearing.on_document(own, payload)
        for n in range(300):
            await agent._hearing.on_document(topic("desired").build("demo", ring=f"ring-{n}"), bytes(1000))
        assert agent._hearing._missed == {own: b"new"}, "a broker may send what it likes"

    asyncio.run(scenario())


def test_a_link_that_was_up_when_the_power_failed_is_down_until_it_is_up_again(agent: Agent) -> None:
    agent.journal.save_link(True)

    async def scenario() -> None:
        async with asyncio.TaskGroup() as agent._group:
            consuming = agent._group.create_task(agent._consume())
            await turns(10)  # until it has begun
            assert agent.journal.link() == "down"
            consuming.cancel()

    asyncio.run(scenario())


def test_a_reply_is_late_by_the_connection_that_is_up_and_by_no_earlier_one(agent: Agent) -> None:
    async def scenario() -> None:
        async with asyncio.TaskGroup() as agent._group:
            consuming = agent._group.create_task(agent._consume())
            waiting = []
            for is_up in (True, False, True):
                await agent._inbox.put(LinkChanged(is_up))
                await turns(10)  # the consumer takes it
                assert agent._hearing._late is not None
                waiting.append(agent._hearing._late)
            async with asyncio.timeout(5):
                await asyncio.wait({waiting[0]})  # it would have told that the reply is late, counted from the first
            assert waiting[0].cancelled() and not waiting[2].done()
            for task in (consuming, waiting[2]):
                task.cancel()

    asyncio.run(scenario())


def test_what_a_newer_list_of_denials_lacks_is_fetched_instead_of_what_the_older_one_lacked(agent: Agent) -> None:
    asked: list[bytes] = []

    async def small(digest: bytes, length: int) -> bytes:
        asked.append(digest)
        if digest == sha256(b"old"):
            await asyncio.Event().wait()  # nobody has it any more
        return b"new"

    async def scenario() -> None:
        agent._downloads.small = small  # type: ignore[method-assign]  # a road on which only the newer one is had
        async with asyncio.TaskGroup() as agent._group:
            for content in (b"old", b"old", b"new"):
                agent._hearing._fetch_older(OlderDenials(length=len(content), sha256=sha256(content)))
                await turns(1)
            async with asyncio.timeout(5):
                assert getattr(await agent._inbox.get(), "blob", None) == b"new"

    asyncio.run(scenario())
    assert asked == [sha256(b"old"), sha256(b"new")]


def test_who_vouches_when_a_release_is_activated_is_kept_with_it_beside_who_did_when_it_was_admitted(
    agent: Agent, realm: Realm
) -> None:
    release = realm.list_release("1.0.0", b"manifest")
    agent._belief.take(topic("set"), {}, realm.publish().pack())
    directive = realm.sign("ring-canary", "directive", realm.directive(release))
    agent._belief.take(topic("desired"), {"ring": "canary"}, pack([directive]))
    since_gone = b"g" * 32
    memory = Memory(MODEL, "activating", 4, Target(release, 1, f"{MODEL}/1.0.0", (since_gone,)))
    agent._machines.memories[MODEL] = memory
    for heard in (Staged(4), Failed(4, "no")):
        assert agent._machines.as_heard(MODEL, heard) == heard and agent._machines.memories[MODEL] == memory
    passed = agent._machines.as_heard(MODEL, Passed(4, NOW))
    assert passed == Passed(4, NOW)
    active = step(agent._machines.memories[MODEL], passed)[0].active
    now = {key.keyid for duty in ("sign", "approve") for key in realm.signers(f"{duty}-{MODEL}")}
    assert active is not None and set(active.vouchers) == {since_gone} | now
    agent._machines.memories[MODEL] = replace(memory, target=Target(b"o" * 32, 1))
    heard = agent._machines.as_heard(MODEL, Passed(4, NOW))
    assert heard == Passed(4, NOW, waits_for="the release that the newest directive names")
    target = agent._machines.memories[MODEL].target
    assert target is not None and target.vouchers == ()


def test_what_may_not_leave_the_site_is_left_out_from_the_first_record_after_a_start_on(
    agent: Agent, realm: Realm, tmp_path: Path
) -> None:
    rules = {"lanes": ("incident", "audit"), "redact": ("reason",)}
    document = Policy(realm="demo", ring="canary", number=1, at=NOW, telemetry=Telemetry(**rules))
    agent._belief.take(topic("policy"), {"ring": "canary"}, realm.sign("policy", "policy", document))
    agent.journal.save(Memory(MODEL, "checking", 3, Target(b"r" * 32, 1, f"{MODEL}/1.0.0"), policy=1))
    agent.outbox.close()
    again = Agent(tmp_path / "till")

    async def scenario() -> None:
        async with asyncio.TaskGroup() as again._group:
            await again._machines.begin(Started(True))
            for task in again._machines._running.values():
                task.cancel()

    asyncio.run(scenario())
    batch = again.outbox.batch("audit", 9999)
    assert batch is not None
    assert {(kind, "reason" in body) for _, kind, _, body in batch.rows} == {("transition", False)}
    again.record("metric", "count", {})
    assert again.outbox.batch("metric", 9999) is None
    again.journal.close()
    again.outbox.close()


def test_what_a_policy_says_of_telemetry_counts_as_soon_as_it_is_taken(agent: Agent, realm: Realm) -> None:
    document = Policy(realm="demo", ring="canary", number=1, at=NOW, telemetry=Telemetry(lanes=("audit",)))
    full = topic("policy").build("demo", ring="canary")

    async def scenario() -> None:
        async with asyncio.TaskGroup() as agent._group:
            consuming = agent._group.create_task(agent._consume())
            await agent.on_message(full, realm.sign("policy", "policy", document), False)
            await turns(50)  # the consumer takes it
            consuming.cancel()

    asyncio.run(scenario())
    agent.record("incident", "broken", {})
    assert agent.outbox.batch("incident", 9999) is None


def test_the_server_is_given_the_numbers_of_the_pointer_until_it_has_them(agent: Agent) -> None:
    tuned: list[tuple[bytes, int, int]] = []

    class Server:
        async def tune(self, model: str, release: bytes, row: Any) -> None:
            tuned.append((release, row.config, row.policy))

    agent._watch._server = Server()  # type: ignore[assignment]  # of a server, what this asks
    active = Pointer(b"a" * 32, NOW, config=4, policy=2)
    agent._machines.memories[MODEL] = Memory(MODEL, active=active)
    for had in (Tuned(3, 2), Tuned(4, 1), Tuned(4, 2)):
        asyncio.run(agent._watch.retune({MODEL: {"active": active.release.hex(), "tuned": had.digest}}))
    asyncio.run(agent._watch.retune({MODEL: {"active": "ff" * 32, "tuned": Tuned(3, 2).digest}}))
    assert tuned == [(active.release, 4, 2)] * 2, "not what has them already, nor another release"


def test_attack_a_number_that_a_stolen_config_key_used_up_serves_its_successors_content(
    agent: Agent, realm: Realm
) -> None:
    tuned: list[Any] = []

    class Server:
        async def tune(self, model: str, release: bytes, row: Tuned) -> None:
            tuned.append(row.content["thresholds"])

    def take_config(sure: float) -> None:
        document = Config(realm="demo", model=MODEL, number=5, at=NOW, thresholds={"sure": sure})
        signed = realm.sign(f"config-{MODEL}", "config", document)
        asyncio.run(agent._hearing.on_document(topic("config").build("demo", model=MODEL), signed))

    agent._watch._server = Server()  # type: ignore[assignment]  # of a server, what this asks
    active = Pointer(b"a" * 32, NOW, config=5)
    agent._machines.memories[MODEL] = Memory(MODEL, active=active)
    take_config(0.0)
    row = {MODEL: {"active": active.release.hex(), "tuned": agent.tuned(MODEL).digest}}
    asyncio.run(agent._watch.retune(row))
    asyncio.run(agent._hearing.on_document(topic("root").build("demo", number=2), realm.rotate(f"config-{MODEL}")))
    asyncio.run(agent._hearing.on_document(topic("set").build("demo"), realm.publish().pack()))
    take_config(0.9)
    agent._machines.memories[MODEL] = Memory(MODEL, active=active)
    asyncio.run(agent._watch.retune(row))
    assert tuned == [{"sure": 0.9}], "the number is the same, what it says is another"


def test_an_older_document_is_asked_for_once_and_taken_when_it_comes(agent: Agent, realm: Realm) -> None:
    fits = MANIFEST.model_copy(update={"model": MODEL, "compatible": Compatible(config=Span(min=2, max=4))})
    agent._belief.rules._load_manifest = lambda release: fits
    agent._machines.memories[MODEL] = Memory(MODEL, active=Pointer(b"a" * 32, NOW))
    config = {n: realm.sign(f"config-{MODEL}", "config", Config(realm="demo", model=MODEL, number=n, at=NOW))
              for n in (3, 7)}  # fmt: skip
    row, names = topic("config"), {"model": MODEL}
    realm.list_release("1.0.0", b"manifest")
    agent._belief.take(topic("set"), {}, realm.publish().pack())
    agent._belief.take(row, names, config[7])
    assert not agent._belief.take(row, names, config[3]).models, "nobody asked for it"
    agent._hearing.ask_for_older()
    assert agent._link._hello_now.is_set()
    assert agent.hello(NONCE).lacks == Numbers(config={MODEL: 4})
    agent._link._hello_now.clear()
    agent._hearing.ask_for_older()
    assert not agent._link._hello_now.is_set(), "it was asked for already"
    assert agent._belief.take(row, names, config[3]).models


def test_what_came_under_a_time_that_counts_no_more_came_when_that_is_seen(agent: Agent, tmp_path: Path) -> None:
    agent.journal.shelve(Paper("config", MODEL, 1, b"statement", YEAR_2040))
    agent.outbox.close()
    again = Agent(tmp_path / "till")
    assert [paper.came <= again.now() for paper in again.journal.papers()] == [True]
    again.journal.close()
    again.outbox.close()


def test_time_passes_as_often_as_a_sign_of_life_is_asked_for(agent: Agent) -> None:
    agent._pulse = Pulse(None, 0.01)

    async def scenario() -> None:
        ticking = asyncio.ensure_future(agent._tick())
        async with asyncio.timeout(TICK_S / 2):
            assert isinstance(await agent._inbox.get(), Ticked)
        ticking.cancel()

    asyncio.run(scenario())


def test_a_sign_of_life_is_given_whenever_the_consumer_goes_round_and_none_where_a_model_is_stuck(agent: Agent) -> None:
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    agent._pulse = Pulse(writer, 30, 300)

    async def scenario() -> list[bytes]:
        consumer = asyncio.ensure_future(agent._consume())
        await turns(5)
        heard = [os.read(reader, 99)]
        for _ in range(3):
            await agent._inbox.put(LookAgain())
        await turns(5)
        heard.append(os.read(reader, 99))
        never_ends = asyncio.ensure_future(asyncio.Event().wait())
        agent._machines._ending[MODEL] = {never_ends: float("-inf")}  # type: ignore[dict-item]  # a task is a task
        await agent._inbox.put(LookAgain())
        await turns(5)
        with pytest.raises(BlockingIOError):
            os.read(reader, 99)
        consumer.cancel()
        never_ends.cancel()
        return heard

    assert asyncio.run(scenario()) == [b"\0", b"\0\0\0"]
    batch = agent.outbox.batch("incident", 9999)
    assert batch is not None
    kept = [(kind, body["reason"]) for _, kind, _, body in batch.rows]
    assert kept == [("agent-silent", "the agent gave no sign of life for 300 s, and was killed")]
    os.close(reader)
    os.close(writer)
