"""What an ask is answered, by policy, pause, pace and budget; and what of a want is queued."""

import json
from dataclasses import replace
from zoneinfo import ZoneInfo

import pytest

from heliograph.documents import Ask, Spent, Want
from heliograph.names import Digest
from heliograph.objects import ObjectStore
from heliograph.policy import Budget, ModelRules, Pacing, Policy
from heliograph.sender import Sender
from heliograph_hub.admission import Admission
from heliograph_hub.database import Database
from heliograph_hub.distribution import Distribution, Purpose, answer
from heliograph_hub.fleet import Node
from heliograph_hub.ledger import Ledger
from heliograph_hub.pacing import MAX_LATER_S, MIN_LATER_S
from heliograph_hub.recipes import Recipes
from heliograph_hub.registry import Registry
from heliograph_hub.rollout import Paused, Signed

NOON = 1_800_014_400  # 2027-01-15 12:00 UTC
UTC = ZoneInfo("UTC")
A = Node("shop", "a", "canary", b"k" * 32, b"i" * 32, 1, b"", NOON, NOON, None, None, None)
B = replace(A, node="b")
FAR = replace(A, site="far", node="c")
TENSOR = {"name": "x", "shape": [1], "datatype": "INT8", "data": [1]}
HANDLE = b"hndl"


class Hub:
    """Two releases, the newer one directed to canary; everything but time is kept on disk."""

    def __init__(self, folder):
        self.path = folder / "hub.sqlite"
        self.objects = ObjectStore(folder / "objects")
        self.policy = {}
        self.said = ()
        self.number, self.action = 1, "install"
        self.restart()
        for version in ("1.0.0", "1.1.0"):
            bundle = folder / version
            bundle.mkdir()
            (bundle / "model.tflite").write_bytes(version.encode() * 20_000)
            (bundle / "in.json").write_text(json.dumps({"requests": [{"inputs": [TENSOR]}]}))
            (bundle / "out.json").write_text(json.dumps({"responses": [{"outputs": [TENSOR]}]}))
            golden = '[golden]\ninputs = "in.json"\noutputs = "out.json"\n'
            (bundle / "release.toml").write_text(f'model = "digits"\nversion = "{version}"\n{golden}')
            self.registry.add(bundle, NOON)
        self.old, self.new = self.registry.all()

    def restart(self):
        """As if it had been killed."""
        self.database = Database(self.path)
        self.registry = Registry(self.database, self.objects)
        self.ledger = Ledger(self.database, lambda site, node, model: None)
        self.admission = Admission(
            self.ledger,
            lambda ring: Policy(realm="dev", ring=ring, number=1, at=0, **self.policy),
            lambda site: UTC,
            lambda: 0.5,
            lambda site: self.said if site == "shop" else (),
        )

    @property
    def told(self):
        return {"canary": {"digits": Signed("canary", "digits", self.number, self.new.digest, self.action, True)}}

    def ask(self, node, now=NOON):
        ask = Ask(run=b"r" * 8, n=1, model="digits", release=self.new.digest, free_bytes=1 << 30)
        return answer(
            self.registry, Recipes(self.registry), "dev", node, ask, self.told, now, 0.0, None, self.admission
        )

    def send(self, node, count, now=NOON):
        self.ledger.note_sent(node.site, node.node, node.ring, self.new.digest, count, now)


@pytest.fixture
def hub(tmp_path):
    made = Hub(tmp_path)
    yield made
    made.database.close()


def _kind(offer):
    assert (offer.ways != ()) + (offer.later_s is not None) + offer.never == 1, "exactly one answer"
    assert offer.later_s is None or MIN_LATER_S <= offer.later_s <= MAX_LATER_S
    return "ways" if offer.ways else "later" if offer.later_s is not None else "never"


@pytest.mark.parametrize(
    ("policy", "of_a", "of_b", "of_far", "words"),
    [
        ({}, "ways", "ways", "ways", ""),
        ({"models": {"digits": ModelRules(floor="1.1.0")}}, "ways", "ways", "ways", ""),
        ({"models": {"digits": ModelRules(floor="1.1.1")}}, "never", "never", "never", "below the floor 1.1.1"),
        ({"models": {"other": ModelRules(floor="1.1.1")}}, "ways", "ways", "ways", ""),
        ({"pacing": Pacing(nodes_at_once=1)}, "ways", "later", "later", "1 of 1 nodes at once"),
        ({"pacing": Pacing(nodes_per_hour=2)}, "ways", "ways", "later", "2 of 2 nodes an hour"),
        ({"pacing": Pacing(bytes_per_hour=1000)}, "ways", "later", "later", "bytes an hour"),
        ({"budget": Budget(day_bytes=1000)}, "ways", "later", "ways", "the next day"),
        ({"budget": Budget(month_bytes=1000)}, "ways", "later", "ways", "the next month"),
    ],
)
def test_what_policy_says_is_what_the_next_node_is_told_also_after_a_restart(hub, policy, of_a, of_b, of_far, words):
    hub.policy = policy
    offers = {}
    for node in (A, B, FAR):
        offers[node.node] = hub.ask(node)
        hub.restart()
    assert [_kind(offer) for offer in offers.values()] == [of_a, of_b, of_far]
    assert _kind(hub.ask(A)) == of_a, "who was let in goes on"
    put_off = [offer.reason for offer in offers.values() if not offer.ways]
    assert all(words in reason for reason in put_off)


def test_a_pause_puts_off_who_has_not_begun_and_who_has_unless_they_may_end(hub):
    assert _kind(hub.ask(A)) == "ways"
    hub.ledger.pause(Paused("digits", hub.new.digest), NOON)
    assert [_kind(hub.ask(node)) for node in (A, B)] == ["later", "later"]
    assert "the rollout of digits@1.1.0 is paused" in hub.ask(A).reason
    hub.ledger.pause(Paused("digits", hub.new.digest, lets_running=True), NOON)
    hub.restart()
    assert [_kind(hub.ask(node)) for node in (A, B)] == ["ways", "later"]
    hub.ledger.resume(hub.new.digest)
    assert [_kind(hub.ask(node)) for node in (A, B)] == ["ways", "ways"]


def test_the_budget_of_a_site_is_what_it_was_sent_in_its_day_whoever_took_it(hub):
    hub.policy = {"budget": Budget(day_bytes=1000)}
    hub.send(A, 999)
    assert _kind(hub.ask(B)) == "ways", "something is left"
    hub.send(A, 1)
    hub.ledger.flush()
    hub.restart()
    assert [_kind(hub.ask(node)) for node in (A, B, FAR)] == ["later", "later", "ways"]
    assert hub.ask(A).later_s > 600, "it is a long time until the day turns"
    assert _kind(hub.ask(A, NOON + 12 * 3600)) == "ways"


def test_what_a_sites_nodes_say_that_came_counts_where_the_hub_knows_of_less(hub):
    hub.policy = {"budget": Budget(day_bytes=1000)}
    hub.said = ((Spent(day=600, month=600), NOON - 60), (Spent(day=400, month=400), NOON - 60))
    assert [_kind(hub.ask(node)) for node in (A, FAR)] == ["later", "ways"]
    assert hub.admission.is_spent(A, NOON, 10.0)
    hub.said = ((Spent(day=1000, month=1000), NOON - 86_400),)
    assert _kind(hub.ask(A)) == "ways", "that was yesterday"


@pytest.mark.parametrize("action", ["hold", "return"])
def test_what_is_held_or_returned_is_put_off_and_not_refused(hub, action):
    hub.action = action
    assert _kind(hub.ask(A)) == "later"


# --- wants ------------------------------------------------------------------------------------------------------------


def _open(hub, ring="canary"):
    return hub.admission.is_open(ring, hub.new.digest, hub.told)


def test_content_goes_only_to_rings_that_install_it_now(hub):
    assert _open(hub) and not _open(hub, "early")
    hub.ledger.pause(Paused("digits", hub.new.digest), NOON)
    assert not _open(hub)
    hub.ledger.pause(Paused("digits", hub.new.digest, lets_running=True), NOON)
    assert _open(hub)
    hub.action = "hold"
    assert not _open(hub)


def test_a_want_is_for_the_release_that_the_ring_installs_among_those_that_share_the_blob(hub):
    shared = Digest(hub.registry.manifest(hub.new).file("in.json").sha256)
    own = Digest(hub.registry.manifest(hub.old).file("model.tflite").sha256)
    assert set(hub.registry.owners(shared)) == {hub.old.digest, hub.new.digest}
    assert hub.admission.purpose(A, hub.registry.owners(shared), hub.told) == hub.new.digest
    assert hub.admission.purpose(A, hub.registry.owners(own), hub.told) == hub.old.digest
    for owners in ((hub.old.digest, hub.new.digest), (hub.new.digest, hub.old.digest)):
        assert hub.admission.purpose(A, owners, hub.told) == hub.new.digest, "in whatever order they are known"
    assert hub.registry.owners(hub.new.digest) == (hub.new.digest,), "its manifest"
    assert hub.admission.purpose(A, hub.registry.owners(Digest(b"?" * 32)), hub.told) is None


def test_recipe_and_patch_belong_to_the_release_that_they_lead_to(hub):
    base, target = (Digest(hub.registry.manifest(r).file("model.tflite").sha256) for r in (hub.old, hub.new))
    assert hub.registry.owners(target) == (hub.new.digest,)
    delta = hub.registry.make_recipe(base, target, NOON)
    assert hub.registry.owners(delta.recipe) == hub.registry.owners(delta.patch) == (hub.new.digest,)


def test_a_site_whose_budget_is_spent_is_sent_nothing_more_until_its_day_turns(hub):
    hub.policy = {"budget": Budget(day_bytes=1000)}
    hub.send(A, 1000)
    assert hub.admission.is_spent(B, NOON, 10.0) and not hub.admission.is_spent(FAR, NOON, 10.0)
    hub.send(FAR, 1000)
    assert hub.admission.is_spent(FAR, NOON, 10.1), "at once, not only when it is looked up again"
    assert not hub.admission.is_spent(B, NOON + 12 * 3600, 20.0)
    hub.policy = {}
    assert not hub.admission.is_spent(B, NOON, 30.0)


def test_what_is_queued_for_a_stopped_release_is_dropped_and_nothing_else(hub):
    sent = []
    distribution = Distribution(hub.registry, Sender(), lambda *told: sent.append(told))
    old, new = (Digest(hub.registry.manifest(r).file("model.tflite").sha256) for r in (hub.old, hub.new))
    for node, blob, release in (("a", new, hub.new), ("a", old, hub.old), ("b", new, hub.new)):
        want = Want(handle=HANDLE, blob=blob, ranges=((0, 16),))
        distribution.take("shop", node, want, 0.0, Purpose(release.digest, "canary"))
    assert distribution.drop(lambda purpose: purpose.release == hub.new.digest) == 4
    left = []
    while (outgoing := distribution.next(0.0)) is not None:
        left.append(outgoing)
    assert [(o.node, o.content_bytes) for o in left] == [("a", 32_768), ("a", 32_768)]
    assert {told[2].release for told in sent} == {hub.old.digest} and sum(told[3] for told in sent) == 65_536
    assert distribution.next_time(0.0) is None
