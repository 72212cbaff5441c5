"""Which chunk goes to whom next: turns, rates, bounds."""

import pytest

from heliograph.blob import LEAF_BYTES, sha256
from heliograph.documents import MAX_CHUNK_BYTES, Want
from heliograph.sender import Bucket, Sender

HANDLE = b"\0\0\0\1"
BLOB = sha256(b"blob")


def want(*ranges: tuple[int, int], pages: tuple[int, ...] = (), handle: bytes = HANDLE) -> Want:
    return Want(handle=handle, blob=BLOB, pages=pages, ranges=ranges)


def drain(sender: Sender[str], now: float = 0.0) -> list[tuple[str, int | None, int, int]]:
    sends = []
    while (send := sender.next(now)) is not None:
        sends.append((send.node, send.page, send.offset, send.length))
    return sends


def test_askers_are_served_in_turn_and_each_in_the_order_it_asked() -> None:
    sender: Sender[str] = Sender()
    sender.take("a", want((0, 2), (2, 2), (4, 2)), 0.0)
    sender.take("b", want((9, 1), pages=(3,)), 0.0)
    assert drain(sender) == [
        ("a", None, 0, 8192),
        ("b", 3, 0, 4096),
        ("a", None, 8192, 8192),
        ("b", None, 9 * 4096, 4096),
        ("a", None, 16384, 8192),
    ]
    assert sender.next_time(0.0) is None


def test_a_long_range_is_cut_to_the_largest_chunk() -> None:
    sender: Sender[str] = Sender()
    assert sender.take("a", want((0, 20)), 0.0) == 3
    assert [length for *_, length in drain(sender)] == [MAX_CHUNK_BYTES, MAX_CHUNK_BYTES, 4 * LEAF_BYTES]


def test_what_is_queued_is_not_queued_twice_but_goes_to_the_newest_handle() -> None:
    sender: Sender[str] = Sender()
    assert sender.take("a", want((0, 2)), 0.0) == 1
    assert sender.take("a", want((0, 2), handle=b"new!"), 0.0) == 0
    send = sender.next(0.0)
    assert send is not None
    assert send.handle == b"new!"
    assert sender.next(0.0) is None
    assert sender.repeated == 1


def test_a_greedy_asker_loses_its_oldest_and_costs_nobody_else() -> None:
    sender: Sender[str] = Sender(queue_chunks=10)
    sender.take("calm", want((0, 1)), 0.0)
    for turn in range(50):
        sender.take("greedy", want(*((turn * 100 + at, 1) for at in range(0, 100, 2))), 0.0)
    assert sender.queued == 11
    assert sender.dropped == 50 * 50 - 10
    sends = drain(sender)
    assert ("calm", None, 0, 4096) in sends[:2]
    assert sends[-1] == ("greedy", None, 4998 * 4096, 4096)


def test_the_rate_of_each_asker_and_of_all_is_kept() -> None:
    sender: Sender[str] = Sender(total_bytes_per_s=100_000, node_bytes_per_s=40_000, queue_chunks=1000)
    for node in ("a", "b", "c"):
        sender.take(node, want(*((at, 2) for at in range(0, 512, 2))), 0.0)
    sent = {"a": 0, "b": 0, "c": 0}
    now = 0.0
    while now <= 20.0:
        send = sender.next(now)
        if send is None:
            following = sender.next_time(now)
            assert following is not None
            assert following > now
            now = following
        else:
            sent[send.node] += send.length
    for length in sent.values():
        assert length == pytest.approx(100_000 * 20 / 3, rel=0.12)
    lonely: Sender[str] = Sender(total_bytes_per_s=100_000, node_bytes_per_s=40_000, queue_chunks=1000)
    lonely.take("a", want(*((at, 2) for at in range(0, 512, 2))), 0.0)
    first = len(drain(lonely, 0.0)) * 8192
    later = len(drain(lonely, 2.0)) * 8192
    assert first <= 2 * MAX_CHUNK_BYTES + 8192
    assert later <= 2 * 40_000 + 8192


def test_asking_in_small_portions_does_not_outrun_the_rate() -> None:
    sender: Sender[str] = Sender(node_bytes_per_s=10_000)
    sent = 0
    for turn in range(100):
        sender.take("a", want((turn * 2, 2)), turn * 0.1)
        sent += sum(length for *_, length in drain(sender, turn * 0.1))
    assert sent <= 10_000 * 10 + 2 * MAX_CHUNK_BYTES + 8192


def test_nothing_is_sent_to_an_asker_that_left() -> None:
    sender: Sender[str] = Sender()
    sender.take("a", want((0, 2)), 0.0)
    sender.forget("a")
    sender.forget("never seen")
    assert sender.next(0.0) is None
    assert sender.queued == 0


def test_a_bucket_lets_a_chunk_larger_than_its_rate_pass_and_then_waits_for_the_debt() -> None:
    bucket = Bucket(1000.0, burst_bytes=1000)
    assert bucket.ready_at(0.0) == 0.0
    bucket.take(5000)
    ready = bucket.ready_at(0.0)
    assert ready == pytest.approx(4.0, abs=0.01)
    assert bucket.ready_at(ready) == ready
