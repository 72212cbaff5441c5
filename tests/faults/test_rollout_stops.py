"""Abort, pause and a site's budget with real processes: they reach nodes that fetch, and hold over a restart."""

import time
from pathlib import Path
from typing import Any

from heliograph_hub.client import HubClient
from heliograph_hub.commands.policy import policy_set
from heliograph_hub.commands.rollout import rollout_abort, rollout_pause, rollout_resume, rollout_start
from heliograph_site.status import status as node_status
from rigs import FIRST, THIRD, Rig, rig

RELEASE = f"digits@{THIRD}"
RATE = 20_000
IN_FLIGHT_BYTES = 64 * 1024
"""What may have left the hub, or be wanted already, when it is told to stop."""
OTHER = "shop/desk"


def _status(node: Rig) -> dict[str, Any]:
    return dict(HubClient(str(node.realm.hub_dir)).get(f"/v1/rollouts/digits/{THIRD}"))


def _sent(node: Rig) -> int:
    return int(_status(node)["bytes_sent"])


def _other(node: Rig) -> dict[str, Any]:
    models = node_status(node.realm.node_dir(OTHER))["models"]
    return dict(models.get("digits", {"phase": "", "waiting": ""}))


def _of_site(node: Rig) -> int:
    return int(HubClient(str(node.realm.hub_dir)).get(f"/v1/rollouts/digits/{FIRST}")["bytes_sent"])


def test_a_pause_and_an_abort_reach_a_node_in_the_middle_of_a_fetch(tmp_path: Path, prepared: Path) -> None:
    with rig(tmp_path / "realm", prepared, rate=RATE) as node:
        hub = str(node.realm.hub_dir)
        rollout_start(RELEASE, hub)
        node.until(lambda: node.phase() == "fetching" and _sent(node) > 0, "1.2.0 is on its way")

        rollout_pause(RELEASE, False, hub)
        paused_at = _sent(node)
        assert _status(node)["paused"] == {"let_running": False}
        time.sleep(1.5)  # time itself is looked at: in which 30 kB would have come
        assert _sent(node) == paused_at and node.phase() == "fetching", "it stands still and keeps what it has"
        rollout_resume(RELEASE, hub)
        node.until(lambda: _sent(node) > paused_at, "it goes on")

        before, began = _sent(node), time.monotonic()
        rollout_abort(RELEASE, None, hub)
        asked_s, at_hub = time.monotonic() - began, _sent(node)
        node.until(lambda: node.phase() == "idle", "the node stopped")
        took_s = time.monotonic() - began
        assert at_hub - before <= IN_FLIGHT_BYTES + RATE * asked_s
        assert _sent(node) == at_hub, "nothing is sent after the abort"
        assert node.active() == f"digits@{FIRST}"
        assert [ring["state"] for ring in _status(node)["rings"]][:3] == ["aborted"] * 3
        print(f"the node stopped after {took_s:.1f} s, {at_hub - before} bytes after the abort was asked for")

        rollout_start(RELEASE, hub)
        node.until(lambda: node.phase() == "fetching" and _sent(node) > at_hub, "a new number goes on with it")


def test_a_sites_budget_has_its_second_node_wait_also_after_the_hub_was_killed(tmp_path: Path, prepared: Path) -> None:
    """The first node had 1.0.0 just now, from a hub that has been stopped since."""
    with rig(tmp_path / "realm", prepared) as node:
        hub = str(node.realm.hub_dir)
        sites = HubClient(hub).get(f"/v1/rollouts/digits/{FIRST}")["sites"]
        assert [(row["site"], row["bytes_sent"] > 3_400_000) for row in sites] == [("shop", True)]
        file = tmp_path / "canary.toml"
        file.write_text('ring = "canary"\n[budget]\nmonth_bytes = 3600000\n')
        policy_set(file, where=hub)
        node.realm.join(OTHER)
        node.realm.start_node(OTHER)
        node.until(lambda: _other(node)["phase"] == "fetching", "something is left for this month")
        node.until(lambda: _of_site(node) >= 3_600_000, "and is taken")
        node.realm.kill_node(OTHER)
        node.realm.kill_hub()
        node.start_hub()
        node.realm.start_node(OTHER)
        node.until(
            lambda: "the hub says later: the next month" in _other(node)["waiting"], "nothing is left for this month"
        )
        assert _of_site(node) < 3_600_000 + (1 << 20), "no more than what was queued when it was spent"
