"""Drills and rollbacks that people order, under load: real processes, and nobody who asks sees any of it."""

from pathlib import Path

from heliograph.cli import main
from heliograph.lab import wait_until
from heliograph_hub.client import HubClient
from rigs import FIRST, NODE, THIRD, Load, rig


def command(hub: Path, *args: str) -> None:
    """Orders something, once all that was ordered before is known to be done."""
    client = HubClient(str(hub))

    def is_done() -> bool:
        return all(given["state"] == "done" for given in client.get(f"/v1/fleet/{NODE}")["commands"])

    wait_until(is_done, 60, "nothing is under way")
    assert main(["fleet", "command", NODE, *args, "--hub", str(hub)]) == 0


def test_a_drill_under_load_fails_no_request_and_one_that_a_kill_cuts_short_leaves_what_is_committed(
    tmp_path: Path, prepared: Path
) -> None:
    with rig(tmp_path / "realm", prepared) as node, Load(node.realm.url(NODE)) as load:
        hub = node.realm.hub_dir
        command(hub, "drill", "digits")
        node.until(lambda: len(node.records("audit", "ordered")) == 1, "there is nothing to go back to, and it says so")
        assert node.records("audit", "ordered")[0]["outcome"] == (
            "refused: digits has nothing to fall back to, by the fallback rule"
        )
        node.roll_out(THIRD)
        node.await_rest(THIRD)
        answered = load.answers(FIRST)
        command(hub, "drill", "digits")
        node.until(lambda: len(node.records("audit", "drill")) == 1, "the drill is over")
        [drill] = node.records("audit", "drill")
        assert drill["passed"] and drill["failed"] == 0 and drill["number"] == 2
        assert drill["back_ms"] > 0 and drill["forward_ms"] > 0
        node.await_rest(THIRD)
        assert load.answers(FIRST) > answered, "the fallback answered for a while"
        assert node.model()["refused"] == [] and (node.model()["fallback"] or {})["release"] == f"digits@{FIRST}"
        assert node.records("incident", "rolled-back") == [], "a drill is no incident"
        assert load.failures() == [], "nobody who asked saw any of it"
        command(hub, "drill", "digits")
        node.until(lambda: node.answer() == FIRST or node.records("audit", "ordered")[2:], "it has begun")
        node.restart_out_of_the_blue()
        node.await_rest(THIRD)
        node.until(lambda: len(node.records("audit", "ordered")) == 3, "it is told how it ended, and not repeated")
        command(hub, "rollback", "digits")
        node.await_rest(FIRST)
        assert [r["reason"] for r in node.model()["refused"]] == ["rolled back by command 4"]
        node.until(node.is_receipted, "every record is receipted")
        assert [body["number"] for body in node.records("audit", "ordered")] == [1, 2, 3, 4], "each once"
