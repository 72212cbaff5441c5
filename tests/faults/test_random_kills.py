"""Whatever is killed and cut, in any order: when it is calm again all has converged, and every record came once."""

import os
import random
import time
from collections import Counter
from pathlib import Path

import pytest

from heliograph.objects import ObjectStore
from rigs import AGENT, FIRST, SERVER, THIRD, WORKER, Rig, rig

BLOWS = (AGENT, SERVER, WORKER, "node", "broker", "hub", "cut", "restore")


class Weather:
    """Blows, one after another, counted; what the operators wanted last is in `wanted`."""

    def __init__(self, node: Rig, rng: random.Random) -> None:
        self.node = node
        self.counts: Counter[str] = Counter()
        self.wanted = FIRST
        self._rng = rng

    def blow(self, blow: str) -> None:
        node = self.node
        match blow:
            case "node":
                node.restart_out_of_the_blue()
            case "hub":
                node.realm.kill_hub()
                node.start_hub()
            case "broker":
                node.realm.kill_broker()
            case "cut":
                node.road.cut()
            case "restore":
                node.road.restore()
            case _:
                pid = node.pid(blow)
                if pid is None:
                    return  # it is down already
                try:
                    os.kill(pid, 9)
                except ProcessLookupError:
                    return
        self.counts[blow] += 1

    def steer(self) -> None:
        """The operators change their mind."""
        wanted = THIRD if self.wanted == FIRST else FIRST
        self.node.roll_out(wanted)
        self.wanted = wanted
        self.counts["rollout"] += 1


@pytest.mark.timeout(600)
@pytest.mark.parametrize("seconds", [10, pytest.param(300, marks=pytest.mark.full)])
def test_after_random_kills_and_cuts_everything_converges(
    tmp_path: Path, prepared: Path, seed: int, seconds: int
) -> None:
    rng = random.Random(seed)
    with rig(tmp_path / "realm", prepared) as node:
        weather = Weather(node, rng)
        weather.steer()
        end, steer_at = time.monotonic() + seconds, time.monotonic() + seconds / 3
        while time.monotonic() < end:
            began = time.monotonic()
            weather.blow(rng.choice(BLOWS))
            if began > steer_at:
                steer_at += max(4.0, seconds / 20)
                weather.steer()
            time.sleep(max(0.0, rng.uniform(0.5, 1.5) - (time.monotonic() - began)))  # the pace of the weather
        node.road.restore()
        if weather.wanted == THIRD:
            weather.steer()
        node.await_rest(FIRST)  # kills may have had it refused: now it is the fallback for sure
        weather.steer()
        node.await_rest(THIRD)
        node.deny(f"digits@{THIRD}", 1)
        node.await_rest(FIRST)
        node.until(node.is_receipted, "every record is receipted")
        node.stop()
        records = node.check_records_once()
        check_store(node)
        print({"seconds": seconds, "blows": dict(weather.counts), "records": records})
    node.await_end()


def check_store(node: Rig) -> None:
    """Every object is what its name says, and none was ever found rotten."""
    store = ObjectStore(node.folder / "objects")
    held = list(store.list())
    assert held
    assert [digest.hex() for digest in held if not store.verify(digest)] == []
    assert not (node.folder / "objects" / "rotten").exists()
