"""Yesterday's database on a node's disk: the hub sees what went back, and alarms; rotations and replays raise none."""

from pathlib import Path
from typing import Any

import pytest

from fleets import LATER_RUN, NODE_KEY, OTHER_KEY, RUN, Hub, reported
from heliograph.documents import Denials, Hardware, Hello, Numbers
from heliograph_hub.fleet import ReplayError

TUF = {"root": 3, "timestamp": 40, "snapshot": 30, "targets": 5, "sign-digits": 7}
DENY = Denials(count=2, digest=bytes(32))
YESTERDAY = {"root": 3, "timestamp": 39, "snapshot": 29, "targets": 5, "sign-digits": 6}
NAME = ("lab", "pi-1")


def hello(
    run: bytes = LATER_RUN, tuf: dict[str, int] | None = None, deny: Denials = DENY, assignment: int = 4
) -> Hello:
    return Hello(
        run=run, nonce=bytes(16), agent="0.1.0", schemas={}, hardware=Hardware(arch="x86_64", memory_bytes=1),
        tuf=TUF if tuf is None else tuf, deny=deny, numbers=Numbers(assignment=assignment), key=NODE_KEY.keyid,
    )  # fmt: skip


@pytest.fixture
def hub(tmp_path: Path) -> Hub:
    """It knows a node that reported today."""
    hub = Hub(tmp_path / "hub.db")
    hub.enroll()
    hub.fleet.take_reported(*NAME, reported(1, tuf=TUF, deny=DENY, assignment=4))
    return hub


def alarm(hub: Hub) -> str:
    return hub.fleet.alarms().get(NAME, (0, ""))[1]


def test_yesterdays_database_restored_on_a_node_raises_an_alarm_that_says_what_went_back(hub: Hub) -> None:
    hub.fleet.watch(hub.fleet.node(*NAME), hello(tuf=YESTERDAY, deny=Denials(count=1, digest=bytes(32)), assignment=3))
    assert alarm(hub) == (
        "sign-digits metadata from 7 to 6; snapshot metadata from 30 to 29; timestamp metadata from 40 to 39; "
        "denials held from 2 to 1; assignment from 4 to 3"
    )
    assert hub.fleet.counts(*NAME) == {}, "shown as what it is"


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"tuf": TUF | {"root": 2}}, "root metadata from 3 to 2"),
        ({"tuf": {"root": 3}}, "timestamp metadata 40 is gone"),
        ({"deny": Denials()}, "denials held from 2 to 0"),
        ({"assignment": 0}, "assignment from 4 to 0"),
    ],
)
def test_each_thing_that_goes_back_is_seen(hub: Hub, changes: dict[str, Any], says: str) -> None:
    hub.fleet.watch(hub.fleet.node(*NAME), hello(**changes))
    assert says in alarm(hub)


def test_what_a_node_signed_itself_raises_the_alarm_too(hub: Hub) -> None:
    hub.fleet.take_reported(*NAME, reported(1, run=LATER_RUN, tuf=YESTERDAY, deny=DENY, assignment=4))
    assert "timestamp metadata from 40 to 39" in alarm(hub)


def test_a_node_that_goes_on_raises_nothing(hub: Hub) -> None:
    hub.fleet.watch(hub.fleet.node(*NAME), hello())
    hub.fleet.watch(hub.fleet.node(*NAME), hello(tuf={**TUF, "timestamp": 41, "approve-digits": 1}))
    hub.fleet.take_reported(*NAME, reported(2, tuf={**TUF, "timestamp": 41}, deny=DENY, assignment=4))
    assert alarm(hub) == ""


def test_a_rotation_by_root_or_targets_may_take_back_what_its_keys_signed(hub: Hub) -> None:
    hub.fleet.watch(hub.fleet.node(*NAME), hello(tuf={"root": 4}, deny=Denials(), assignment=0))
    hub.fleet.watch(hub.fleet.node(*NAME), hello(tuf={**TUF, "targets": 6}, assignment=1))
    assert alarm(hub) == ""


def test_an_old_hello_or_report_replayed_by_the_broker_raises_nothing(hub: Hub) -> None:
    hub.fleet.watch(hub.fleet.node(*NAME), hello(run=RUN, tuf=YESTERDAY, deny=Denials(), assignment=0))
    with pytest.raises(ReplayError):
        hub.fleet.take_reported(*NAME, reported(1, tuf=YESTERDAY))
    assert alarm(hub) == ""


def test_the_alarm_stands_until_the_node_is_enrolled_anew(hub: Hub) -> None:
    hub.fleet.watch(hub.fleet.node(*NAME), hello(tuf=YESTERDAY))
    hub.fleet.take_reported(*NAME, reported(1, run=LATER_RUN, tuf=TUF, deny=DENY, assignment=4))
    assert hub.fleet.alarms()[NAME][0] == 1
    hub.enroll(key=OTHER_KEY, token=b"u" * 32)
    assert alarm(hub) == ""
