"""The access list and the broker's configuration are what the table says, and the committed copies are up to date."""

from pathlib import Path

import pytest

from heliograph import connection
from heliograph.acl import EXAMPLE_REALM, acl_text
from heliograph.errors import ConfigError
from heliograph.mosquitto import EXAMPLE_DOORS, EXAMPLE_FOLDER, MAX_PACKET_BYTES, Listener, configuration
from heliograph.protocol import TOPICS, Topic

FOLDER = Path(__file__).parents[2] / "mosquitto"


def may(text: str, user: str, access: str, topic: str) -> bool:
    """What Mosquitto answers, by its manual: patterns are for everybody, topic lines for the user named before."""
    current = ""
    for line in text.splitlines():
        words = line.split()
        if not words or words[0] == "#":
            continue
        if words[0] == "user":
            current = words[1]
            continue
        kind, allowed, pattern = words
        if allowed == "deny":
            if current == user and matches(pattern, topic):
                return False
            continue
        if (kind == "pattern" or current == user) and access in allowed and matches(pattern.replace("%u", user), topic):
            return True
    return False


def matches(pattern: str, topic: str) -> bool:
    wanted, got = pattern.split("/"), topic.split("/")
    if wanted[-1] == "#":
        return got[: len(wanted) - 1] == wanted[:-1]
    return len(wanted) == len(got) and all(want in ("+", have) for want, have in zip(wanted, got, strict=True))


def full(row: Topic, site: str = "lab", node: str = "press") -> str:
    return row.build("r1", site=site, node=node, ring="canary", model="digits", number=1)


@pytest.mark.parametrize("row", TOPICS, ids=lambda row: row.name)
def test_every_row_gives_each_party_exactly_what_it_needs(row: Topic) -> None:
    nodes, enroll = acl_text("r1"), acl_text("r1", "enroll")
    topic = full(row)
    assert may(nodes, "hub", "write", topic)
    assert may(nodes, "hub", "read", topic)
    assert may(nodes, "lab/press", "write", topic) == (row.sender == "own")
    assert may(nodes, "lab/press", "read", topic) == (row.reader in ("own", "node"))
    # Another node, even of the same site, writes nothing here, and reads only what is for all.
    assert not may(nodes, "lab/lathe", "write", topic)
    assert may(nodes, "lab/lathe", "read", topic) == (row.reader == "node")
    assert may(enroll, "lab/press", "write", topic) == (row.sender == "new")
    assert may(enroll, "lab/press", "read", topic) == (
        row.name in ("head", "set", "root", "assigned", "certified", "refused")
    )
    assert not may(enroll, "lab/lathe", "write", topic)


@pytest.mark.parametrize("row", TOPICS, ids=lambda row: row.name)
def test_another_realm_is_out_of_reach(row: Topic) -> None:
    text = acl_text("r2")
    for access in ("read", "write"):
        assert not may(text, "lab/press", access, full(row))
        assert not may(text, "hub", access, full(row))


@pytest.mark.parametrize("row", TOPICS, ids=lambda row: row.name)
def test_a_removed_node_reaches_nothing_and_its_neighbours_all_that_they_did(row: Topic) -> None:
    before, after = acl_text("r1"), acl_text("r1", removed=["lab/press", "lab/lathe-2"])
    for access in ("read", "write"):
        assert not may(after, "lab/press", access, full(row))
        for user in ("hub", "lab/lathe"):
            assert may(after, user, access, full(row)) == may(before, user, access, full(row))


@pytest.mark.parametrize("user", ["lab", "lab/press/x", "lab/press\ntopic readwrite #", "#", "", "lab/+"])
def test_a_name_that_no_node_has_gets_into_no_list(user: str) -> None:
    with pytest.raises(ConfigError, match="user"):
        acl_text("r1", removed=[user])


@pytest.mark.parametrize("realm", ["", "a/b", "+", "#", "A", "a\n"])
def test_a_realm_that_is_no_name_makes_no_list(realm: str) -> None:
    with pytest.raises(ConfigError, match="realm"):
        acl_text(realm)


def test_the_committed_copies_are_what_the_code_generates() -> None:
    assert (FOLDER / "acl.conf").read_text() == acl_text(EXAMPLE_REALM)
    assert (FOLDER / "acl-enroll.conf").read_text() == acl_text(EXAMPLE_REALM, "enroll")
    assert (FOLDER / "hub.conf").read_text() == configuration(EXAMPLE_FOLDER, *EXAMPLE_DOORS)


def test_a_listener_with_passwords_lets_nobody_in_without() -> None:
    text = configuration("/x", Listener(1, password_file="/p", acl_file="/a"), Listener(2, "10.0.0.1"))
    first, second = text.split("listener ")[-2:]
    assert "allow_anonymous false\npassword_file /p\nacl_file /a\n" in first
    assert second == "2 10.0.0.1\nallow_anonymous true\n"
    assert "\nuser " not in text


def test_broker_and_client_agree_on_the_largest_packet() -> None:
    assert connection.MAX_PACKET_BYTES == MAX_PACKET_BYTES
