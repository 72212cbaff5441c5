"""A real hub, real Mosquitto, real nodes: what is cut, killed or restarted resumes, and every record arrives once."""

import sqlite3
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from bundles import BASE, HEAD, digits_bundle, sample_request
from heliograph.errors import TransportError
from heliograph.lab import Realm, infer, wait_until
from heliograph_hub.client import HubClient
from heliograph_site.outbox import OUTBOX_FILE, Outbox
from heliograph_site.status import status as node_status
from rigs import Road

MODEL = "digits"
RATE = 400_000
FULL = BASE.stat().st_size


@contextmanager
def running(folder: Path) -> Iterator[Realm]:
    with Realm(folder, rate_bytes_per_s=RATE) as realm:
        realm.init()
        realm.start_hub()
        yield realm


def publish(realm: Realm, folder: Path, version: str, model: Path) -> None:
    keys = realm.hub_dir / "keys"
    realm.cli("release", "add", digits_bundle(folder / version, version, model))
    realm.cli("release", "sign", f"{MODEL}@{version}", "--key", keys / f"sign-{MODEL}.key")
    managers = [keys / f"approve-{MODEL}-{number}.key" for number in (1, 2)]
    realm.cli("release", "approve", f"{MODEL}@{version}", "--key", managers[0], "--key", managers[1])
    realm.cli("rollout", "start", f"{MODEL}@{version}")


def model(realm: Realm, node: str) -> dict[str, Any]:
    return dict(node_status(realm.node_dir(node))["models"].get(MODEL, {}))


def serves(realm: Realm, node: str, version: str) -> bool:
    try:
        answer = infer(realm.url(node), MODEL, sample_request())
    except TransportError:
        return False
    active = model(realm, node).get("active") or {}
    return bool(answer["model_version"] == version and active.get("release") == f"{MODEL}@{version}")


def sent(realm: Realm, node: str) -> int:
    return int(HubClient(str(realm.hub_dir)).get(f"/v1/fleet/{node}")["bytes_sent"])


def test_a_fetch_resumes_after_a_cut_and_after_a_power_cut_and_sends_little_twice(tmp_path: Path) -> None:
    node = "shop/till"
    with running(tmp_path / "realm") as realm:
        road = Road(realm.port)
        try:
            realm.cli("fleet", "assign", "shop", "canary")
            realm.join(node, port=road.proxy.port)
            realm.start_node(node)
            publish(realm, tmp_path, "1.0.0", BASE)
            wait_until(lambda: sent(realm, node) > FULL // 5, 90, "a fifth of the image is sent")
            road.cut()
            wait_until(lambda: node_status(realm.node_dir(node))["link"] == "down", 90, "the node sees the cut")
            assert model(realm, node)["phase"] == "fetching", "an outage is waited out"
            road.restore()
            wait_until(lambda: sent(realm, node) > FULL // 2, 90, "half of the image is sent")
            realm.kill_node(node)
            assert model(realm, node)["phase"] == "fetching"
            realm.start_node(node)
            wait_until(lambda: serves(realm, node, "1.0.0"), 90, "1.0.0 serves")
            # What was on its way at the two cuts, and what was not yet flushed at the kill, may cross again: no more.
            assert FULL <= sent(realm, node) < 1.5 * FULL
        finally:
            road.close()


def test_every_record_arrives_once_whatever_is_killed(tmp_path: Path) -> None:
    node = "shop/till"
    with running(tmp_path / "realm") as realm:
        road = Road(realm.port)
        try:
            realm.cli("fleet", "assign", "shop", "canary")
            realm.join(node, port=road.proxy.port)
            realm.start_node(node)
            publish(realm, tmp_path, "1.0.0", BASE)
            wait_until(lambda: serves(realm, node, "1.0.0"), 90, "1.0.0 serves")
            for blow in ("cut", "node", "hub", "broker", "node without a hub"):
                match blow:
                    case "cut":
                        road.cut()
                        realm.kill_node(node)
                        realm.start_node(node)
                        wait_until(lambda: serves(realm, node, "1.0.0"), 90, "serving without a link")
                        road.restore()
                    case "node":
                        realm.kill_node(node)
                        realm.start_node(node)
                        wait_until(lambda: node_status(realm.node_dir(node))["link"] == "up", 90, "the link is up")
                    case "hub":
                        realm.kill_hub()
                        realm.start_hub()
                    case "broker":
                        realm.kill_broker()
                    case _:
                        realm.kill_hub()
                        realm.kill_node(node)
                        realm.start_node(node)
                        wait_until(lambda: serves(realm, node, "1.0.0"), 90, "serving with neither hub nor broker")
                        # The server answers by itself: the agent may have come up later and written nothing yet.
                        wait_until(lambda: waiting(realm, node) > 0, 90, "the restart itself is a record")
                        realm.start_hub()
            publish(realm, tmp_path, "1.1.0", HEAD)
            wait_until(lambda: serves(realm, node, "1.1.0"), 90, "1.1.0 serves")
            wait_until(lambda: settled(realm, node), 90, "every record is receipted")
            realm.stop_node(node)
            check_records_once(realm, node)
        finally:
            road.close()


def waiting(realm: Realm, node: str) -> int:
    return int(node_status(realm.node_dir(node))["outbox"]["audit"]["kept"])


def settled(realm: Realm, node: str) -> bool:
    status = node_status(realm.node_dir(node))
    idle = status["models"][MODEL]["phase"] == "idle"
    return idle and all(
        lane["kept"] == 0 and lane["next_seq"] == lane["acked_seq"] for lane in status["outbox"].values()
    )


def check_records_once(realm: Realm, node: str) -> None:
    """The hub's rows of each (run, lane) are numbered from 0 without a hole, and are all that the node wrote."""
    site, name = node.split("/")
    with closing(sqlite3.connect(f"file:{realm.hub_dir / 'hub.sqlite'}?mode=ro", uri=True)) as database:
        rows = database.execute(
            "SELECT hex(run), lane, seq, count, kind FROM records WHERE site = ? AND node = ? ORDER BY run, lane, seq",
            (site, name),
        ).fetchall()
    assert rows
    expected: dict[tuple[str, str], int] = {}
    for run, lane, seq, count, kind in rows:
        assert kind != "gap", "nothing was lost"
        assert seq == expected.get((run, lane), 0), f"{lane} of {run}: {seq} is missing or double"
        expected[run, lane] = seq + count
    arrived: Counter[str] = Counter()
    for (_, lane), count in expected.items():
        arrived[lane] += count
    with Outbox(realm.node_dir(node) / OUTBOX_FILE, None) as outbox:
        ledgers = outbox.status().items()
    # What it wrote while it was being stopped waits for its next start.
    told = {lane: ledger.written - ledger.kept for lane, ledger in ledgers if ledger.written}
    assert told == arrived, "every record that the node ever wrote is at the hub"
    audit = HubClient(str(realm.hub_dir)).get(f"/v1/fleet/{node}/records/audit")
    assert [row["body"].get("event") for row in audit].count("Passed") == 2
