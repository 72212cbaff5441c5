"""What operators state of nodes: a number up for each change, none without one, protected by its own keys alone."""

import pytest

from fleets import DAY, HUB_KEY, NODE_KEY, NOW, OTHER_KEY, PROTECTED, Hub, request, signature, told
from heliograph.documents import Assignment, Command
from heliograph.errors import NotFoundError, RefusedError, TrustError
from heliograph.signing import PrivateKey
from heliograph.statement import parse
from heliograph_hub.assigning import is_time_zone
from heliograph_hub.assignment import MAX_AHEAD


@pytest.fixture
def hub(tmp_path):
    hub = Hub(tmp_path / "hub.sqlite")
    hub.enroll()
    yield hub
    hub.database.close()


def test_assigning_a_site_numbers_up_every_node_of_it_and_no_other(hub):
    for token, name in ((b"1" * 32, "lab/a"), (b"2" * 32, "shop/a")):
        hub.enroll(name, token=token)
    done = {change.node: told(change.statement) for change in hub.assignments.put("lab", "canary")}
    assert {(node, a.number, a.ring) for node, a in done.items()} == {("a", 2, "canary"), ("pi-1", 2, "canary")}
    assert [(n.site, n.node, n.ring, n.assignment) for n in hub.fleet.nodes()] == [
        ("lab", "a", "canary", 2), ("lab", "pi-1", "canary", 2), ("shop", "a", "general", 1),
    ]  # fmt: skip


def test_a_site_is_assigned_before_its_first_node(hub):
    assert hub.assignments.put("shop", "early") == []
    assert told(hub.enroll("shop/a", token=b"1" * 32).statement).ring == "early"


def test_labels_of_a_site_are_its_nodes_and_a_nodes_own_stand_before_them(hub):
    hub.enroll("lab/a", token=b"1" * 32)
    assert len(hub.assignments.label("lab", None, {"time-zone": "Europe/Lisbon", "floor": "1"})) == 2
    (changed,) = hub.assignments.label("lab", "a", {"floor": "2", "kind": "till"})
    assert told(changed.statement).labels == {"time-zone": "Europe/Lisbon", "floor": "2", "kind": "till"}
    assert hub.assignment().labels == {"time-zone": "Europe/Lisbon", "floor": "1"}
    hub.assignments.label("lab", "a", {"floor": None})
    assert hub.assignment("lab/a").labels["floor"] == "1", "the site's again"
    assert hub.assignments.labels()["lab", "a"] == hub.assignment("lab/a").labels
    hub.assignments.label("lab", None, {"floor": None})
    assert "floor" not in hub.assignment("lab/a").labels


@pytest.mark.parametrize(
    "state",
    [
        lambda a: a.put("lab", "early"),
        lambda a: a.label("lab", None, {"floor": "1"}),
        lambda a: a.label("lab", "pi-1", {"floor": "1"}),
        lambda a: a.pin("lab", "pi-1", "digits", "1.0.0"),
        lambda a: a.relay("lab", "pi-1", "10.0.0.1:1884"),
        lambda a: a.command("lab", "pi-1", "drill", "digits", NOW)[1],
    ],
    ids=["ring", "site's label", "label", "pin", "relay", "command"],
)
def test_the_same_stated_again_gives_no_new_assignment(hub, state):
    assert [change.number for change in state(hub.assignments)] == [2]
    assert state(hub.assignments) == []
    assert hub.assignment().number == 2


def test_a_pin_is_one_version_of_a_model_until_it_is_lifted(hub):
    hub.assignments.pin("lab", "pi-1", "digits", "1.0.0")
    hub.assignments.pin("lab", "pi-1", "faces", "2.0.0")
    hub.assignments.pin("lab", "pi-1", "digits", "1.1.0")
    assert hub.assignment().pins == {"digits": "1.1.0", "faces": "2.0.0"}
    hub.assignments.pin("lab", "pi-1", "digits", None)
    assert hub.assignment().pins == {"faces": "2.0.0"}


def test_a_command_is_repeated_until_its_node_says_that_it_is_done(hub):
    for number, (kind, model) in enumerate((("drill", "digits"), ("report", None), ("drill", "faces")), 1):
        assert hub.assignments.command("lab", "pi-1", kind, model, NOW)[0] == number
    hub.assignments.label("lab", "pi-1", {"floor": "1"})
    assert hub.assignment().commands == (
        Command(number=1, kind="drill", model="digits"),
        Command(number=2, kind="report"),
        Command(number=3, kind="drill", model="faces"),
    )
    (changed,) = hub.assignments.done("lab", "pi-1", 2, NOW + 7)
    assert [command.number for command in told(changed.statement).commands] == [3]
    assert hub.assignments.done("lab", "pi-1", 2, NOW + 9) == [], "said again"
    given = hub.assignments.given("lab", "pi-1")
    assert [(g.number, g.done_at) for g in given] == [(3, None), (2, NOW + 7), (1, NOW + 7)]
    assert hub.assignments.command("lab", "pi-1", "drill", "digits", NOW)[0] == 4, (
        "given once more, a number of its own"
    )


def test_nothing_is_stated_of_a_node_that_is_not_there(hub):
    for state in (
        lambda: hub.assignments.label("lab", "pi-9", {"floor": "1"}),
        lambda: hub.assignments.pin("lab", "pi-9", "digits", "1.0.0"),
        lambda: hub.assignments.relay("lab", "pi-9", "10.0.0.1"),
        lambda: hub.assignments.command("lab", "pi-9", "report", None, NOW),
    ):
        with pytest.raises(NotFoundError, match="no node lab/pi-9"):
            state()


@pytest.mark.parametrize(
    ("state", "words"),
    [
        (lambda a: a.label("lab", "pi-1", {f"k{n}": "v" for n in range(33)}), "33 labels, at most 32"),
        (lambda a: a.label("lab", None, {f"k{n}": "v" for n in range(33)}), "33 labels, at most 32"),
        (lambda a: a.label("shop", None, {f"k{n}": "v" for n in range(33)}), "33 labels, at most 32"),
        (lambda a: [a.pin("lab", "pi-1", f"m{n}", "1.0.0") for n in range(65)], "65 pins, at most 64"),
        (
            lambda a: [a.command("lab", "pi-1", "drill", f"m{n}", NOW) for n in range(17)],
            "17 commands that wait, at most 16",
        ),
    ],
)
def test_what_is_too_much_is_refused_and_nothing_of_it_stated(hub, state, words):
    with pytest.raises(RefusedError, match=words):
        state(hub.assignments)
    before = hub.assignment()
    (changed,) = hub.assignments.relay("lab", "pi-1", "10.0.0.1")
    assert told(changed.statement) == before.model_copy(update={"number": before.number + 1, "relay": "10.0.0.1"})


def test_only_names_of_time_zones_are_time_zones():
    for name in ("Europe/Lisbon", "UTC", "America/Argentina/Ushuaia"):
        assert is_time_zone(name)
    for name in ("Europe", "Europe/Atlantis", "../../etc/passwd", "/etc/localtime", "", "\0"):
        assert not is_time_zone(name)


# --- protected --------------------------------------------------------------------------------------------------------


def test_into_protected_and_out_of_it_leads_only_what_both_its_keys_signed(hub):
    (proposed,) = hub.assignments.put("lab", "protected")
    assert (proposed.number, proposed.proposed) == (1, 2)
    assert (hub.fleet.node("lab", "pi-1").ring, hub.assignment().ring) == ("general", "general"), "until then"
    assert hub.sign(keys=PROTECTED[:1]) is None and hub.assignment().ring == "general"
    assert hub.sign(keys=PROTECTED[1:]) is not None
    assert (hub.assignment().ring, hub.assignment().number) == ("protected", 2)
    assert {keyid for keyid, _ in parse(hub.fleet.node("lab", "pi-1").assigned).signatures} == {
        key.keyid for key in PROTECTED
    }, "the hub's own key is not among them"
    (away,) = hub.assignments.put("lab", "general")
    assert away.proposed == 3 and hub.fleet.node("lab", "pi-1").ring == "protected"
    hub.sign()
    assert hub.assignment().ring == "general"
    (freely,) = hub.assignments.put("lab", "early")
    assert (freely.number, freely.proposed) == (4, None), "outside the hub's key is enough again"


def test_signatures_that_do_not_count_are_refused_by_name(hub):
    hub.assignments.put("lab", "protected")
    (proposal,) = hub.assignments.proposals("lab")
    for key in (HUB_KEY, NODE_KEY, PrivateKey.generate(b"z" * 32)):
        with pytest.raises(TrustError, match="not one of the keys of ring protected"):
            hub.assignments.add_signatures(proposal.payload, {key.keyid: signature(key, proposal.payload)})
    other = proposal.document.model_copy(update={"ring": "canary"}).encode()
    for payload, signed in ((proposal.payload, other), (other, proposal.payload)):
        with pytest.raises(TrustError, match="does not fit the assignment of lab/pi-1"):
            hub.assignments.add_signatures(payload, {PROTECTED[0].keyid: signature(PROTECTED[0], signed)})
    both = {key.keyid: signature(key, other) for key in PROTECTED}
    with pytest.raises(RefusedError, match="not the one that waits"):
        hub.assignments.add_signatures(other, both)  # signed by all, but nobody stated it here
    assert hub.assignments.proposals("lab")[0].signatures == ()


def test_the_same_signature_twice_is_one(hub):
    hub.assignments.put("lab", "protected")
    for _ in range(2):
        assert hub.sign(keys=PROTECTED[:1]) is None
    assert len(hub.assignments.proposals("lab")[0].signatures) == 1


def test_what_is_stated_while_signatures_are_awaited_needs_them_anew_under_a_new_number(hub):
    hub.assignments.put("lab", "protected")
    hub.sign(keys=PROTECTED[:1])
    (first,) = hub.assignments.proposals("lab")
    hub.assignments.label("lab", "pi-1", {"floor": "1"})
    (second,) = hub.assignments.proposals("lab")
    assert (first.document.number, second.document.number, second.signatures) == (2, 3, ())
    with pytest.raises(RefusedError, match="that is 3: heliograph fleet request lab"):
        hub.assignments.add_signatures(first.payload, {key.keyid: signature(key, first.payload) for key in PROTECTED})
    hub.assignments.put("lab", "general")
    assert hub.assignments.proposals("lab") == []
    assert hub.assignment().number == 4, "no number that people may have signed is used for anything else"


def test_handed_in_again_a_signed_assignment_is_in_force_all_the_same(hub):
    hub.assignments.put("lab", "protected")
    (proposal,) = hub.assignments.proposals("lab")
    hub.sign()
    signed = {key.keyid: signature(key, proposal.payload) for key in PROTECTED}
    done, given = hub.assignments.add_signatures(proposal.payload, signed)
    assert given is not None and given.number == 2 and len(done.signatures) == 2


def test_stated_back_to_what_is_in_force_nothing_waits_any_more(hub):
    hub.assignments.put("lab", "protected")
    hub.sign()
    hub.assignments.label("lab", "pi-1", {"floor": "1"})
    assert len(hub.assignments.proposals("lab")) == 1
    (same,) = hub.assignments.label("lab", "pi-1", {"floor": None})
    assert (same.number, same.proposed) == (2, None) and hub.assignments.proposals("lab") == []


def test_a_command_done_in_protected_asks_nobody_for_a_signature(hub):
    hub.assignments.put("lab", "protected")
    hub.sign()
    hub.assignments.command("lab", "pi-1", "report", None, NOW)
    hub.sign()
    assert hub.assignments.done("lab", "pi-1", 1, NOW) == [] == hub.assignments.proposals("lab")
    assert hub.assignments.given("lab", "pi-1")[0].done_at == NOW


def test_a_stolen_hub_key_signs_nobody_out_of_protected(hub):
    hub.assignments.put("lab", "protected")
    hub.sign()
    before = hub.fleet.node("lab", "pi-1").assigned
    for state in (
        lambda: hub.assignments.put("lab", "canary"),
        lambda: hub.assignments.label("lab", "pi-1", {"floor": "1"}),
        lambda: hub.assignments.pin("lab", "pi-1", "digits", "1.0.0"),
        lambda: hub.assignments.command("lab", "pi-1", "rollback", "digits", NOW),
    ):
        state()
        assert hub.fleet.node("lab", "pi-1").assigned == before


def test_every_assignment_is_for_the_key_that_its_node_has(hub):
    hub.enrolment.add_token("lab", "pi-1", b"u" * 32, NOW, DAY)
    hub.enrolment.enroll("lab", "pi-1", request(b"u" * 32, OTHER_KEY), NOW)
    hub.assignments.put("lab", "early")
    assert hub.assignment().key == OTHER_KEY.keyid
    assert isinstance(hub.assignment(), Assignment)


def test_a_hub_with_an_older_copy_states_what_a_node_is_behind_the_number_that_the_node_has(hub):
    (changed,) = hub.assignments.follow("lab", "pi-1", 7)
    assert (changed.number, told(changed.statement)) == (8, hub.assignment())
    assert hub.assignments.follow("lab", "pi-1", 7) == [], "it is on its way"
    assert hub.assignments.follow("lab", "pi-1", 8) == []
    assert hub.assignments.follow("lab", "pi-1", 8 + MAX_AHEAD + 1) == [], "no node uses its numbers up"


def test_a_node_in_protected_that_is_ahead_of_an_older_copy_waits_for_its_keys_once(hub):
    hub.assignments.put("lab", "protected")
    assert hub.sign().number == 2
    (proposed,) = hub.assignments.follow("lab", "pi-1", 7)
    assert (proposed.number, proposed.proposed) == (2, 8), "though what is stated is in force here already"
    assert hub.assignments.follow("lab", "pi-1", 7) == []
    assert hub.sign().number == 8


def test_a_command_is_numbered_behind_those_that_its_node_says_it_has_done(hub):
    assert hub.assignments.command("lab", "pi-1", "report", None, NOW, 5)[0] == 6
    assert hub.assignments.command("lab", "pi-1", "drill", "digits", NOW, 1 << 62)[0] == 7


# --- after a rotation -------------------------------------------------------------------------------------------------


def test_what_the_assign_key_signed_is_signed_again_as_it_is_once_that_is_rotated(hub):
    hub.assignments.put("lab", "early")
    before = hub.assignment()
    assert hub.assignments.sign_again(lambda data, role: role == "assign") == [], (
        "while its key counts, nothing is done"
    )
    (again,) = hub.assignments.sign_again(lambda data, role: False)
    assert told(again.statement) == before == hub.assignment(), "under the same number: who has it has nothing new"
    assert parse(again.statement).signatures


def test_an_assignment_of_protected_is_proposed_anew_once_its_keys_are_rotated(hub):
    hub.assignments.put("lab", "protected")
    (waiting,) = hub.assignments.proposals("lab")
    hub.assignments.add_signatures(waiting.payload, {key.keyid: signature(key, waiting.payload) for key in PROTECTED})
    number = hub.assignment().number
    assert hub.assignments.sign_again(lambda data, role: role == "ring-protected") == []
    assert hub.assignments.proposals("lab") == []
    assert hub.assignments.sign_again(lambda data, role: False) == [], "no online key says what a protected node is"
    (again,) = hub.assignments.proposals("lab")
    assert (again.document.ring, again.document.number, again.signatures) == ("protected", number + 1, ())
    assert hub.assignments.sign_again(lambda data, role: False) == [] and len(hub.assignments.proposals("lab")) == 1
