"""What may be stated of a node, as tables."""

import pytest

from heliograph.documents import Command
from heliograph.errors import ConfigError, RefusedError
from heliograph_hub.assignment import (
    Wanted,
    assignment,
    check_relay,
    command_kind,
    label_changes,
    needs_protected,
)

ZONES = {"Europe/Lisbon", "UTC"}


def made(wanted, number=3):
    return assignment("dev", "lab", "pi-1", b"k" * 32, number, wanted)


def test_an_assignment_says_what_is_stated_in_order_of_names():
    wanted = Wanted(
        "early", {"b": "2", "a": "1"}, "10.0.0.7", {"y": "2.0.0", "x": "1.0.0"}, (Command(number=4, kind="report"),)
    )
    said = made(wanted)
    assert (said.number, said.ring, said.relay, said.commands[0].number) == (3, "early", "10.0.0.7", 4)
    assert (list(said.labels), list(said.pins)) == (["a", "b"], ["x", "y"])
    assert (
        made(Wanted("early", {"a": "1", "b": "2"}, "10.0.0.7", {"x": "1.0.0", "y": "2.0.0"}, wanted.commands)) == said
    )


@pytest.mark.parametrize(
    ("ring", "wanted", "for_protected", "needs"),
    [
        (None, "general", False, False),
        ("general", "early", False, False),
        (None, "protected", False, True),
        ("general", "protected", False, True),
        ("protected", "protected", False, True),
        ("protected", "general", False, True),
        (None, "general", True, True),
        ("general", "early", True, True),
    ],
)
def test_into_protected_within_it_and_out_of_it_its_keys_sign(ring, wanted, for_protected, needs):
    assert needs_protected(ring, wanted, for_protected=for_protected) is needs


@pytest.mark.parametrize(
    ("pairs", "changes"),
    [
        (["kind=till"], {"kind": "till"}),
        (["kind="], {"kind": None}),
        (["a=b=c", "time-zone=Europe/Lisbon"], {"a": "b=c", "time-zone": "Europe/Lisbon"}),
        (["time-zone="], {"time-zone": None}),
    ],
)
def test_labels_are_pairs_and_an_empty_value_takes_one_away(pairs, changes):
    assert label_changes(pairs, ZONES.__contains__) == changes


@pytest.mark.parametrize(
    ("pairs", "words"),
    [
        ([], "no label is given"),
        (["kind"], "'kind' is not KEY=VALUE"),
        (["Kind=till"], "label 'Kind' is not a name"),
        (["=till"], "label '' is not a name"),
        (["a=1", "a=2"], "label a is given twice"),
        (["a=" + "x" * 121], "label a has a value"),
        (["a=one\ntwo"], "label a has a value"),
        (["a=\x1b[2J"], "label a has a value"),
        (["time-zone=Atlantis"], "label time-zone: 'Atlantis' is no IANA time zone"),
    ],
)
def test_what_is_no_label_is_refused_by_its_key(pairs, words):
    with pytest.raises(ConfigError, match=words):
        label_changes(pairs, ZONES.__contains__)


@pytest.mark.parametrize(("kind", "model"), [("drill", "digits"), ("report", None), ("forget", None), ("forget", "x")])
def test_a_command_has_the_model_that_it_needs(kind, model):
    assert command_kind(kind, model) == kind


@pytest.mark.parametrize(
    ("kind", "model", "words"),
    [
        ("reboot", None, "no command 'reboot': commands are drill, rollback, report, abort, forget"),
        ("drill", None, "command drill is about one model"),
        ("rollback", None, "command rollback is about one model"),
        ("abort", None, "command abort is about one model"),
        ("report", "digits", "about the whole node: leave digits out"),
    ],
)
def test_a_command_without_its_model_or_with_one_too_many_is_refused(kind, model, words):
    with pytest.raises(ConfigError, match=words):
        command_kind(kind, model)


def test_relays_are_addresses():
    for good in ("10.0.0.7", "relay.shop", "relay.shop:1884", "a"):
        assert check_relay(good) == good
    for bad in ("", "a b", "relay:", "relay:0", "relay:70000", "a:x", "-a", "a/b", "a:1:2", "a" * 300, "a\n"):
        with pytest.raises(ConfigError, match="is not HOST or HOST:PORT"):
            check_relay(bad)


def test_the_longest_assignment_there_may_be_fits_and_one_beyond_the_bytes_does_not():
    labels = {f"{n:02d}" + "k" * 38: "v" * 120 for n in range(32)}
    assert made(Wanted("early", labels))
    pins = {f"{n:02d}" + "m" * 38: "1.0.0" for n in range(64)}
    assert made(Wanted("early", labels, None, pins))
    with pytest.raises(RefusedError, match="at most 12288 go"):
        made(Wanted("early", dict.fromkeys(labels, "\U0001f600" * 120)))
