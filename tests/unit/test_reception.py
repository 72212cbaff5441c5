"""The hub's door: who is let in is told, who is refused is told why, but not as often as anybody likes."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from fleets import DAY, HUB_KEY, NODE_KEY, NOW, OTHER_KEY, TOKEN, Hub, request, told
from heliograph.documents import Document, Refused
from heliograph.errors import IntegrityError
from heliograph.signing import sign_statement
from heliograph.statement import parse
from heliograph_hub.reception import REFUSALS, REFUSALS_PER_S, Reception


class Door(Hub):
    """A hub's door, and how many signatures it cost."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.signed = 0
        self.reception = Reception("dev", b"r" * 32, ("127.0.0.1", 1883), self.enrolment, self.fleet, None, self._sign)

    def _sign(self, kind: str, document: Document) -> bytes:
        self.signed += 1
        return sign_statement(kind, document.encode(), [HUB_KEY])

    def told_at(self, now_s: float, number: int) -> int:
        """How many of so many who bring no good token are told so."""
        payload = request(b"?" * 32, OTHER_KEY).encode()
        answers = [self.reception.enroll("lab", "pi-1", payload, NOW, now_s) for _ in range(number)]
        assert all(answer.refused is not None for answer in answers), "told or not, all are counted"
        return sum(bool(answer.payload) for answer in answers)


@pytest.fixture
def door(tmp_path: Path) -> Iterator[Door]:
    made = Door(tmp_path / "hub.sqlite")
    yield made
    made.database.close()


def test_who_brings_no_good_token_is_told_why_under_the_key_it_named(door: Door) -> None:
    answer = door.reception.enroll("lab", "pi-1", request(b"?" * 32, OTHER_KEY).encode(), NOW, 5.0)
    assert answer.topic == "refused" and "not its own" in str(answer.refused)
    said = Refused.decode(parse(answer.payload).payload)
    assert (said.key, said.nonce, said.reason) == (OTHER_KEY.public.keyid, b"x" * 16, str(answer.refused))


def test_attack_a_flood_of_bad_tokens_costs_a_bounded_number_of_signatures_and_keeps_nobody_out(door: Door) -> None:
    assert door.told_at(5.0, 10 * REFUSALS) == REFUSALS == door.signed
    assert door.told_at(5.0, 10) == 0
    assert door.told_at(5.0 + 3.0 / REFUSALS_PER_S, 10) == 3
    assert door.told_at(1000.0, 10 * REFUSALS) == REFUSALS, "and after a pause as at first"
    door.enrolment.add_token("lab", "pi-1", TOKEN, NOW, DAY)
    answer = door.reception.enroll("lab", "pi-1", request().encode(), NOW, 1000.0)
    assert told(answer.payload).key == NODE_KEY.keyid


def test_a_name_that_is_taken_over_is_said_to_be_replaced(door: Door) -> None:
    for key, is_replaced in ((NODE_KEY, False), (OTHER_KEY, True)):
        token = bytes(key.public.raw)
        door.enrolment.add_token("lab", "pi-1", token, NOW, DAY)
        answer = door.reception.enroll("lab", "pi-1", request(token, key).encode(), NOW, 5.0)
        assert answer.is_replaced is is_replaced


def test_a_node_for_protected_is_told_nothing_yet(door: Door) -> None:
    said = door.reception.add_token("lab", "pi-1", TOKEN, DAY, NOW, protected=True)
    assert said[1:] == (NOW + DAY, True)
    answer = door.reception.enroll("lab", "pi-1", request().encode(), NOW, 5.0)
    assert (answer.payload, answer.refused) == (b"", None)


def test_what_is_no_request_is_no_refusal_either(door: Door) -> None:
    with pytest.raises(IntegrityError):
        door.reception.enroll("lab", "pi-1", b"hello", NOW, 5.0)
    assert door.signed == 0
