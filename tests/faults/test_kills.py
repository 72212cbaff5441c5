"""SIGKILL to each process of a node in each phase that matters: what goes on serving and what comes back, and where."""

import time
from pathlib import Path

import pytest

from rigs import AGENT, FIRST, FORKSERVER, SECOND, SERVER, WORKER, Load, Rig, rig

ALL = (WORKER, FORKSERVER, AGENT, SERVER)


def strike_and_recover(node: Rig, load: Load, name: str, version: str) -> int:
    """Kills one process under load and waits until all is back; returns how many requests failed.

    All of them did while that process, or the one that stands on it, was down.
    """
    phase, struck = node.phase(), time.monotonic()
    old = node.strike(name)
    node.until(lambda: node.pid(name) not in (None, old), f"another {name} runs")
    node.until(lambda: node.answer() == version, f"{version} answers after the {name} was killed in {phase}")
    back = time.monotonic()
    node.until(lambda: load.answers(version, back) >= 5, "it goes on answering")
    # A request that was admitted before may still be told so after another was answered.
    assert [asked for asked in load.failures(back) if asked.began > back] == [], f"{name} in {phase}"
    failed = len(load.failures(struck))
    if name == AGENT:
        assert failed == 0, "serving doesn't stand on the agent"
    return failed


def strike_all(node: Rig, load: Load, names: tuple[str, ...]) -> dict[str, int]:
    """At rest, then while 1.1.0 is fetched and the link is cut, which is waited out; at last 1.1.0 is on probation."""
    failed = {f"idle {name}": strike_and_recover(node, load, name, FIRST) for name in ALL}
    node.until(node.is_up, "the link is up")
    node.roll_out(SECOND)
    node.until(lambda: node.phase() == "fetching", "1.1.0 is on its way")
    node.road.cut()
    for name in names:
        failed[f"fetching {name}"] = strike_and_recover(node, load, name, FIRST)
        # Killed, an agent begins anew with the offer, for which it needs the link.
        assert node.phase() in ("fetching", "checking"), "an outage is waited out"
    node.road.restore()
    node.until(lambda: node.phase() == "proving", "1.1.0 is on probation")
    return failed


@pytest.mark.parametrize("names", [(AGENT,), pytest.param(ALL, marks=pytest.mark.full)], ids=["agent", "all"])
def test_one_process_killed_at_rest_or_while_fetching_costs_only_its_own_requests(
    tmp_path: Path, prepared: Path, names: tuple[str, ...]
) -> None:
    with rig(tmp_path / "realm", prepared, rate=200_000) as node, Load(node.realm.url("shop/till")) as load:
        failed = strike_all(node, load, names)
        print({"requests": len(load.asked), "failed": failed})
    node.await_end()


@pytest.mark.full
def test_the_server_and_what_stands_on_it_may_die_on_probation_and_the_agent_once(
    tmp_path: Path, prepared: Path
) -> None:
    with rig(tmp_path / "realm", prepared) as node, Load(node.realm.url("shop/till"), rate=8) as load:
        node.roll_out(SECOND)
        node.until(lambda: node.phase() == "proving" and node.answer() == SECOND, "1.1.0 is on probation")
        failed: dict[str, int] = {}
        for name in (WORKER, SERVER):
            failed[name] = strike_and_recover(node, load, name, SECOND)
            assert node.phase() == "proving"
        node.until(lambda: "Healthy" in node.events(), "its worker was seen healthy")
        failed[AGENT] = strike_and_recover(node, load, AGENT, SECOND)
        assert node.phase() == "proving", "once is forgiven"
        node.until(lambda: "RestartedHealthy" in node.log(), "the agent took it up")
        began = time.monotonic()
        node.strike(AGENT)
        node.await_rest(FIRST)
        refused = node.model()["refused"]
        assert [(r["release"], r["reason"]) for r in refused] == [
            ("digits@1.1.0", "the node stopped again during its probation")
        ]
        assert load.failures(began) == [], "the standby was warm"
        print({"requests": len(load.asked), "failed": failed})
    node.await_end()


def test_a_power_cut_on_probation_is_forgiven_once_and_the_second_ends_it_without_a_hub(
    tmp_path: Path, prepared: Path
) -> None:
    with rig(tmp_path / "realm", prepared) as node:
        node.roll_out(SECOND)
        node.until(lambda: "Healthy" in node.events(), "1.1.0 is on probation, and its worker healthy")
        node.road.cut()
        node.restart_out_of_the_blue()
        node.until(lambda: node.answer() == SECOND and node.pid(AGENT), "1.1.0 answers again")
        node.until(lambda: "RestartedHealthy" in node.log(), "the agent took it up")
        assert (node.phase(), node.active()) == ("proving", "digits@1.1.0"), "probation goes on"
        node.restart_out_of_the_blue()
        node.await_rest(FIRST)
        assert [r["reason"] for r in node.model()["refused"]] == ["the node stopped again during its probation"]
        node.road.restore()
        node.until(lambda: node.is_up() and node.is_receipted(), "every record is receipted")
        moves = [event for event in node.events() if event.startswith("Restarted")]
        assert moves[-2:] == ["RestartedHealthy", "RestartedAgain"]
        node.check_records_once()
        assert node.rests_on(FIRST), "its directive, heard again, brings it back no more"
