"""The emulated link in virtual time: rate, delay, chance, queue, outages; and the profiles that come with it."""

import random
from collections.abc import Callable

import pytest

from heliograph.errors import ConfigError, NotFoundError
from heliograph.lab import load_profile, profile_names
from heliograph.lab.link import Direction, Link, Outages, Profile, Shape, profile_from_toml


def never() -> float:
    return 1.0


def direction(draw: Callable[[], float] = never, **shape: float) -> Direction:
    return Direction(Shape(**shape), draw)  # type: ignore[arg-type]


def test_packets_leave_at_the_rate_one_after_the_other_and_arrive_a_delay_later() -> None:
    way = direction(rate_bit_s=8000, delay_s=0.5)
    assert [way.offer(1000, 10.0) for _ in range(3)] == [11.5, 12.5, 13.5]
    assert way.offer(100, 20.0) == 20.6, "an idle link keeps nobody waiting"


def test_a_link_without_a_rate_only_delays() -> None:
    way = direction(delay_s=0.25)
    assert [way.offer(1_000_000, 1.0), way.offer(1, 1.0)] == [1.25, 1.25]


def test_what_does_not_fit_into_the_queue_is_dropped_at_its_tail_and_room_comes_with_time() -> None:
    way = direction(rate_bit_s=8000, buffer_bytes=2500)
    assert [way.offer(1000, 0.0) for _ in range(3)] == [1.0, 2.0, None]
    assert way.offer(400, 0.0) == 2.4, "a smaller one still fits"
    assert way.overflowed == 1
    assert way.offer(1000, 1.5) == 3.4
    assert (way.packets, way.bytes) == (4, 3400), "what was dropped used nothing up"


def test_chance_loses_its_share_by_the_seed_and_what_is_lost_has_used_the_rate(seed: int) -> None:
    def arrivals(number: int) -> list[float | None]:
        way = direction(random.Random(number).random, rate_bit_s=8_000_000, loss_share=0.05)
        return [way.offer(1000, turn * 0.01) for turn in range(20_000)]

    first = arrivals(seed)
    lost = first.count(None)
    assert 0.04 < lost / len(first) < 0.06
    assert arrivals(seed) == first
    assert arrivals(seed + 1) != first
    unlucky = direction(iter([0.0, 0.9]).__next__, rate_bit_s=8000, loss_share=0.5)
    assert [unlucky.offer(1000, 0.0), unlucky.offer(1000, 0.0)] == [None, 2.0]
    assert unlucky.lost == 1


def test_a_delay_that_gets_shorter_lets_nobody_overtake() -> None:
    way = direction(delay_s=2.0)
    slow = way.offer(100, 0.0)
    way.shape = Shape(delay_s=0.1)
    assert slow == way.offer(100, 0.5) == 2.0
    assert way.offer(100, 3.0) == 3.1


def test_outages_come_when_they_are_due_and_end() -> None:
    outages = Outages(first_s=15, every_s=40, length_s=10)
    down = [second for second in range(100) if outages.is_down(second)]
    assert down == [*range(15, 25), *range(55, 65), *range(95, 100)]
    after = 0.0
    changes = []
    for _ in range(5):
        after += outages.next_change_s(after)
        changes.append(after)
    assert changes == [15, 25, 55, 65, 95]


def link(outages: Outages | None = None, began: float = 0.0) -> Link:
    shape = Shape(rate_bit_s=8000, delay_s=1.0)
    return Link(Profile("test", "", shape, shape, outages), never, began)


def test_a_link_that_is_down_loses_what_is_put_on_it_and_what_would_arrive_meanwhile() -> None:
    road = link(Outages(10, 100, 5), began=1000.0)
    early = road.offer(road.down, 1000, 1001.0)
    assert early == 1003.0 and road.arrives(road.down, early)
    late = road.offer(road.down, 1000, 1009.5)
    assert late == 1011.5 and not road.arrives(road.down, late)
    assert road.offer(road.up, 1000, 1012.0) is None
    assert road.offer(road.up, 1000, 1015.0) == 1017.0
    assert (road.down.unheard, road.up.unheard) == (1, 1)


def test_a_cut_lasts_until_it_is_restored_and_empties_the_queue() -> None:
    road = link()
    for _ in range(5):
        road.offer(road.up, 1000, 0.0)
    road.cut()
    assert not road.is_up(0.5)
    assert road.offer(road.up, 1000, 1e6) is None
    road.restore()
    assert road.offer(road.up, 1000, 2.0) == 4.0, "nothing waits that was lost"


def test_restoring_does_not_end_an_outage_and_another_profile_counts_its_own_from_then() -> None:
    road = link(Outages(0, 100, 50))
    road.cut()
    road.restore()
    assert not road.is_up(10.0)
    road.reshape(Profile("next", "", Shape(), Shape(delay_s=3.0), Outages(5, 100, 50)), 10.0)
    assert road.is_up(14.0) and not road.is_up(15.0)
    assert road.offer(road.down, 1000, 11.0) == 14.0


def test_the_profiles_are_what_their_notes_say() -> None:
    found = {name: load_profile(name) for name in profile_names()}
    assert set(found) == {"sat64", "m256", "cut1m", "lossy", "lan", "shop2m"}
    rates = {name: (profile.down.rate_bit_s, profile.rtt_s, profile.down.loss_share) for name, profile in found.items()}
    assert rates == {
        "sat64": (64_000, 0.6, 0.0),
        "m256": (256_000, 0.3, 0.02),
        "cut1m": (1_000_000, 0.1, 0.0),
        "lossy": (1_000_000, 0.12, 0.05),
        "lan": (100_000_000, 0.002, 0.0),
        "shop2m": (2_000_000, 0.05, 0.0),
    }
    assert found["cut1m"].outages == Outages(15, 40, 10)
    assert all(profile.outages is None for name, profile in found.items() if name != "cut1m")
    assert found["shop2m"].up.rate_bit_s == 512_000
    for profile in found.values():
        assert profile.note
        # A queue shorter than what is on its way would starve TCP; one longer than four seconds is no link we know.
        for shape in (profile.up, profile.down):
            assert shape.rate_bytes_per_s * profile.rtt_s < shape.buffer_bytes <= 4 * shape.rate_bytes_per_s


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("rate_bit_s = ", "not TOML"),
        ("rate = 5", "rate is unknown, known are buffer_bytes"),
        ("rate_bit_s = -1", "rate_bit_s is -1"),
        ("rate_bit_s = true", "rate_bit_s is True"),
        ("delay_s = inf", "delay_s is inf"),
        ("delay_s = nan", "delay_s is nan"),
        ("loss_share = 1.0", "loss_share is 1"),
        ("[up]\nspeed = 1", "up.speed is unknown"),
        ("down = 3", "are tables"),
        ("[outages]\nfirst_s = 1", "needs first_s"),
        ("[outages]\nfirst_s = 1\nevery_s = 5\nlength_s = 5", "shorter"),
    ],
)
def test_a_wrong_profile_is_refused_and_says_where(text: str, told: str) -> None:
    with pytest.raises(ConfigError, match="profile mine") as error:
        profile_from_toml("mine", text)
    assert told in str(error.value)


def test_a_name_nobody_knows_is_told_with_those_that_are_known() -> None:
    with pytest.raises(NotFoundError, match=r"no profile moon: use one of cut1m, lan, .*\.toml"):
        load_profile("moon")
    with pytest.raises(NotFoundError, match="can't be read"):
        load_profile("/nowhere/moon.toml")
