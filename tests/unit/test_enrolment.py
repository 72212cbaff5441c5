"""Who may become a node, who is one, and who was: tokens once, replaced and removed hardware never again."""

import pytest

from fleets import (
    DAY,
    LATER_RUN,
    NODE_KEY,
    NOW,
    OTHER_KEY,
    PROTECTED,
    RUN,
    TOKEN,
    Hub,
    records,
    reported,
    request,
    told,
)
from heliograph.errors import NotFoundError, RefusedError, TrustError


@pytest.fixture
def hub(tmp_path):
    hub = Hub(tmp_path / "hub.sqlite")
    yield hub
    hub.database.close()


# --- tokens -----------------------------------------------------------------------------------------------------------


def test_a_token_enrols_its_node_and_the_assignment_names_its_key(hub):
    assignment = told(hub.enroll().statement)
    assert (assignment.site, assignment.node, assignment.key) == ("lab", "pi-1", NODE_KEY.keyid)
    assert (assignment.number, assignment.ring, assignment.realm) == (1, "general", "dev")
    node = hub.fleet.node("lab", "pi-1")
    assert (node.key, node.keyid, node.reported) == (NODE_KEY.public.raw, NODE_KEY.keyid, None)


def test_only_the_hash_of_a_token_is_kept(hub):
    hub.enrolment.add_token("lab", "pi-1", TOKEN, NOW, DAY)
    hub.database.close()
    assert all(TOKEN not in path.read_bytes() for path in hub.database.path.parent.glob("hub.sqlite*"))


def test_the_same_key_may_ask_again_with_its_token_because_the_answer_may_be_lost(hub):
    first = hub.enroll()
    again = hub.enrolment.enroll("lab", "pi-1", request(), NOW + 30 * DAY)
    assert again == first and told(again.statement).number == 1


@pytest.mark.parametrize(
    ("site", "node", "request_", "at", "words"),
    [
        ("lab", "pi-2", request(), NOW, "not its own"),
        ("shop", "pi-1", request(), NOW, "not its own"),
        ("lab", "pi-1", request(token=b"?" * 32), NOW, "not its own"),
        ("lab", "pi-1", request(), NOW + DAY + 1, "has expired"),
    ],
)
def test_a_token_of_another_node_unknown_or_expired_enrols_nobody(hub, site, node, request_, at, words):
    hub.enrolment.add_token("lab", "pi-1", TOKEN, NOW, DAY)
    with pytest.raises(RefusedError, match=words):
        hub.enrolment.enroll(site, node, request_, at)
    assert hub.fleet.nodes() == []


def test_a_used_token_enrols_no_other_key(hub):
    hub.enroll()
    with pytest.raises(RefusedError, match="used before"):
        hub.enrolment.enroll("lab", "pi-1", request(key=OTHER_KEY), NOW)
    assert hub.fleet.node("lab", "pi-1").key == NODE_KEY.public.raw


@pytest.mark.parametrize("life_s", [0, -1, 7 * DAY + 1])
def test_a_token_lives_at_most_a_week(hub, life_s):
    with pytest.raises(RefusedError, match="7 days"):
        hub.enrolment.add_token("lab", "pi-1", TOKEN, NOW, life_s)


def test_open_tokens_are_listed_until_they_are_used_revoked_or_expired(hub):
    for number, life_s in ((1, DAY), (2, 2 * DAY), (3, DAY)):
        hub.enrolment.add_token("lab", "pi-1", bytes([number]) * 32, NOW, life_s)
    hub.enrolment.add_token("lab", "pi-2", b"4" * 32, NOW, DAY, protected=True)
    hub.enrolment.enroll("lab", "pi-1", request(bytes([3]) * 32), NOW)
    listed = [(t.node, t.expires, t.protected) for t in hub.enrolment.open_tokens(NOW)]
    assert listed == [("pi-1", NOW + DAY, False), ("pi-1", NOW + 2 * DAY, False), ("pi-2", NOW + DAY, True)]
    assert [t.expires for t in hub.enrolment.open_tokens(NOW + DAY + 1)] == [NOW + 2 * DAY]
    assert hub.enrolment.revoke_tokens("lab", "pi-1") == 2
    assert [t.node for t in hub.enrolment.open_tokens(NOW)] == ["pi-2"]
    with pytest.raises(RefusedError, match="not its own"):
        hub.enrolment.enroll("lab", "pi-1", request(bytes([1]) * 32, OTHER_KEY), NOW)
    assert hub.enrolment.enroll("lab", "pi-1", request(bytes([3]) * 32), NOW).statement, "a used one isn't open"


def test_a_node_has_only_so_many_open_tokens(hub):
    for number in range(16):
        hub.enrolment.add_token("lab", "pi-1", bytes([number]) * 32, NOW, DAY)
    with pytest.raises(RefusedError, match="heliograph fleet token lab/pi-1 --revoke"):
        hub.enrolment.add_token("lab", "pi-1", bytes([16]) * 32, NOW, DAY)
    hub.enrolment.add_token("lab", "pi-2", bytes([16]) * 32, NOW, DAY)


# --- other hardware under the same name -------------------------------------------------------------------------------


def test_replaced_hardware_counts_no_more_and_what_it_told_stays(hub):
    hub.enroll()
    hub.fleet.take_reported("lab", "pi-1", reported(1))
    hub.fleet.take_records("lab", "pi-1", records(0, [(1, "a")] * 2))
    again = told(hub.enroll(key=OTHER_KEY, token=b"u" * 32).statement)
    assert (again.number, again.key) == (2, OTHER_KEY.keyid), "numbers go on"
    for take, statement in (
        (hub.fleet.take_reported, reported(2)),
        (hub.fleet.take_records, records(2, [(1, "a")])),
    ):
        with pytest.raises(TrustError):
            take("lab", "pi-1", statement)
    node = hub.fleet.node("lab", "pi-1")
    assert node.reported is None, "what the old key said is not what the new one runs"
    with pytest.raises(TrustError, match="says hello with key"):
        hub.fleet.check_hello(node, NODE_KEY.keyid)
    hub.fleet.check_hello(node, OTHER_KEY.keyid)
    assert hub.fleet.take_reported("lab", "pi-1", reported(3, run=LATER_RUN, key=OTHER_KEY)).n == 3
    assert hub.fleet.lanes("lab", "pi-1")["audit"]["kept"] == 2, "history stays"
    for key in (NODE_KEY, OTHER_KEY):
        with pytest.raises(RefusedError, match="used before"):
            hub.enrolment.enroll("lab", "pi-1", request(TOKEN, key), NOW)  # the first token again
    (former,) = hub.enrolment.former_keys("lab", "pi-1")
    assert (former.keyid, former.ended_at, former.why) == (NODE_KEY.keyid, NOW, "replaced")


def test_a_report_that_the_old_hardware_signed_is_not_the_news_of_a_run_to_the_new_one(hub):
    hub.enroll()
    hub.fleet.take_reported("lab", "pi-1", reported(1, run=RUN))
    hub.enroll(key=OTHER_KEY, token=b"u" * 32)
    with pytest.raises(TrustError):
        hub.fleet.take_reported("lab", "pi-1", reported(1, run=RUN, key=OTHER_KEY))  # its run, taken over
    assert hub.fleet.node("lab", "pi-1").reported is None


# --- removal ----------------------------------------------------------------------------------------------------------


def test_of_a_removed_node_nothing_counts_and_its_row_stays(hub):
    hub.enroll()
    hub.enroll("lab/pi-2", OTHER_KEY, b"2" * 32)
    hub.fleet.take_records("lab", "pi-1", records(0, [(1, "a")] * 2))
    hub.assignments.command("lab", "pi-1", "report", None, NOW)
    hub.enrolment.add_token("lab", "pi-1", b"u" * 32, NOW, DAY)
    hub.enrolment.remove("lab", "pi-1", NOW + 5)
    for take, statement in (
        (hub.fleet.take_reported, reported(2)),
        (hub.fleet.take_records, records(2, [(1, "a")])),
    ):
        with pytest.raises(RefusedError, match="was removed: its key counts no more"):
            take("lab", "pi-1", statement)
    assert [node.node for node in hub.fleet.nodes()] == ["pi-2"]
    assert [n.node for n in hub.fleet.nodes(removed_too=True)] == ["pi-1", "pi-2"]
    assert hub.fleet.node("lab", "pi-1", removed_too=True).removed_at == NOW + 5
    assert hub.fleet.lanes("lab", "pi-1")["audit"]["kept"] == 2
    (given,) = hub.assignments.given("lab", "pi-1")
    assert (given.done_at, given.ended_at) == (None, NOW + 5)
    assert hub.assignments.put("lab", "early")[0].node == "pi-2", "its assignments have ended"
    hub.fleet.count("lab", "pi-1", "refused", "was removed")
    assert hub.fleet.counts("lab", "pi-1")["refused"]["count"] == 1, "and what it sends is counted by its name"


@pytest.mark.parametrize("token", [TOKEN, b"u" * 32], ids=["the token it used", "a token that was open"])
def test_no_token_from_before_its_removal_brings_a_node_back(hub, token):
    hub.enroll()
    hub.enrolment.add_token("lab", "pi-1", b"u" * 32, NOW, DAY)
    hub.enrolment.remove("lab", "pi-1", NOW)
    with pytest.raises(RefusedError, match="token that"):
        hub.enrolment.enroll("lab", "pi-1", request(token), NOW)


def test_a_removed_name_may_be_enrolled_anew_and_begins_without_what_was_stated_of_it(hub):
    hub.enroll()
    hub.assignments.label("lab", "pi-1", {"kind": "till"})
    hub.assignments.pin("lab", "pi-1", "digits", "1.0.0")
    hub.assignments.relay("lab", "pi-1", "10.0.0.1")
    hub.enrolment.remove("lab", "pi-1", NOW)
    anew = told(hub.enroll(token=b"v" * 32).statement)
    assert (anew.number, anew.labels, anew.pins, anew.relay) == (5, {}, {}, None)
    assert [former.why for former in hub.enrolment.former_keys("lab", "pi-1")] == ["removed"]


def test_a_removed_name_of_ring_protected_is_enrolled_anew_as_what_its_site_is_by_then(hub):
    hub.assignments.put("lab", "protected")
    hub.enroll()
    hub.sign()
    hub.enrolment.remove("lab", "pi-1", NOW)
    hub.assignments.put("lab", "general")
    anew = told(hub.enroll(token=b"v" * 32).statement)
    assert anew.ring == "general", "nobody has to sign out of protected what is no node any more"


def test_a_node_that_is_not_there_is_not_removed(hub):
    for _ in range(2):
        with pytest.raises(NotFoundError, match="no node lab/pi-1"):
            hub.enrolment.remove("lab", "pi-1", NOW)
        if not hub.fleet.nodes(removed_too=True):
            hub.enroll()
            hub.enrolment.remove("lab", "pi-1", NOW)


# --- for ring protected -----------------------------------------------------------------------------------------------


def test_a_node_with_a_protected_token_is_assigned_by_protecteds_keys_alone(hub):
    enrolled = hub.enroll(protected=True)
    assert (enrolled.statement, enrolled.proposed) == (b"", 1)
    assert hub.enrolment.enroll("lab", "pi-1", request(), NOW).statement == b"", "asked again"
    assert hub.sign(keys=PROTECTED[:1]) is None, "one key is not enough"
    assert hub.enrolment.enroll("lab", "pi-1", request(), NOW).statement == b""
    done = hub.sign(keys=PROTECTED[1:])
    assert done is not None and told(done.statement).key == NODE_KEY.keyid
    assert hub.enrolment.enroll("lab", "pi-1", request(), NOW).statement == done.statement
    (changed,) = hub.assignments.label("lab", "pi-1", {"kind": "till"})
    assert changed.proposed == 2, "and so is every later one"


def test_a_token_for_a_site_in_protected_says_so_unasked(hub):
    hub.assignments.put("lab", "protected")
    assert hub.enrolment.add_token("lab", "pi-1", TOKEN, NOW, DAY)
    assert not hub.enrolment.add_token("shop", "pi-1", b"s" * 32, NOW, DAY)
    assert hub.enrolment.enroll("lab", "pi-1", request(), NOW).statement == b""


def test_hardware_replaced_in_protected_waits_for_protecteds_keys(hub):
    hub.assignments.put("lab", "protected")
    hub.enroll()
    hub.sign()
    swapped = hub.enroll(key=OTHER_KEY, token=b"u" * 32)
    assert (swapped.statement, swapped.proposed) == (b"", 2)
    with pytest.raises(TrustError):
        hub.fleet.take_reported("lab", "pi-1", reported(2))
    hub.sign()
    assert (hub.assignment().key, hub.assignment().number) == (OTHER_KEY.keyid, 2)
