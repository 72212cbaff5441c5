"""A release that gives every golden output and is slow: a real node under load takes it back by itself."""

import http.client
import json
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

from bundles import BASE, HEAD, SLOW, digits_bundle, images, run_directly, sample_request, slow_bundle
from heliograph.lab import Realm, wait_until
from heliograph_hub.client import HubClient
from heliograph_site.status import status as node_status

NODE = "shop/till"


class Load:
    """Callers who never stop asking, each at most `rate` times a second."""

    def __init__(self, url: str, callers: int = 2, rate: float = 40.0) -> None:
        self.versions: Counter[str] = Counter()
        self.failures: list[str] = []
        self._address = url.removeprefix("http://")
        self._pause_s = 1 / rate
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._run) for _ in range(callers)]

    def __enter__(self) -> "Load":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def _run(self) -> None:
        body = json.dumps(sample_request()).encode()
        connection = http.client.HTTPConnection(self._address, timeout=30)
        while not self._over.wait(self._pause_s):
            connection.request("POST", "/v2/models/digits/infer", body)
            answer = connection.getresponse()
            data = answer.read()
            if answer.status == 200:
                self.versions[json.loads(data)["model_version"]] += 1
            else:
                self.failures.append(f"{answer.status} {data[:200]!r}")
        connection.close()


def publish(realm: Realm, bundle: Path, version: str) -> None:
    keys = realm.hub_dir / "keys"
    realm.cli("release", "add", bundle)
    realm.cli("release", "sign", f"digits@{version}", "--key", keys / "sign-digits.key")
    managers = [keys / f"approve-digits-{number}.key" for number in (1, 2)]
    realm.cli("release", "approve", f"digits@{version}", "--key", managers[0], "--key", managers[1])
    realm.cli("rollout", "start", f"digits@{version}")


def records(realm: Realm, lane: str, kind: str) -> list[dict[str, Any]]:
    rows = HubClient(str(realm.hub_dir)).get(f"/v1/fleet/{NODE}/records/{lane}")
    return [row["body"] for row in rows if row["kind"] == kind]


def digits(realm: Realm) -> dict[str, Any]:
    return dict(node_status(realm.node_dir(NODE))["models"].get("digits", {}))


def is_receipted(realm: Realm) -> bool:
    """Whether the hub has every record: incidents go before all else."""
    return all(lane["kept"] == 0 for lane in node_status(realm.node_dir(NODE))["outbox"].values())


def test_the_slow_model_gives_the_same_outputs_many_times_slower() -> None:
    batch = images(10)
    head, slow = HEAD.read_bytes(), SLOW.read_bytes()
    began = time.process_time()
    right = run_directly(head, batch)
    quick_s = time.process_time() - began
    assert (run_directly(slow, batch) == right).all()
    assert time.process_time() - began - quick_s > 8 * quick_s


def test_a_release_that_is_right_but_slow_is_rolled_back_by_itself_without_a_failed_request(tmp_path: Path) -> None:
    with Realm(tmp_path / "realm") as realm:
        realm.init()
        realm.start_hub()
        realm.cli("fleet", "assign", "shop", "canary")
        realm.join(NODE)
        realm.start_node(NODE)
        publish(realm, digits_bundle(tmp_path / "1.0.0", "1.0.0", BASE, soak_max_s=60), "1.0.0")
        wait_until(lambda: digits(realm).get("phase") == "proving", 90, "1.0.0 is on probation")
        with Load(realm.url(NODE)) as load:
            wait_until(lambda: digits(realm)["verdict"] == "proven", 90, "1.0.0 is proven")
            wait_until(lambda: load.versions["1.0.0"] > 150, 90, "1.0.0 answers")
            publish(realm, slow_bundle(tmp_path / "1.2.0", "1.2.0"), "1.2.0")
            wait_until(lambda: bool(digits(realm)["refused"]), 90, "1.2.0 is refused")
            wait_until(lambda: digits(realm)["phase"] == "idle", 90, "the node is at rest")
            wait_until(lambda: bool(records(realm, "incident", "rolled-back")), 90, "the hub knows")
            before = load.versions["1.0.0"]
            wait_until(lambda: load.versions["1.0.0"] > before + 50, 90, "1.0.0 answers again")
            assert load.failures == []
        wait_until(lambda: is_receipted(realm), 90, "the hub knows all of it")
        facts = digits(realm)
        assert (facts["active"]["release"], facts["verdict"]) == ("digits@1.0.0", "proven")
        refused = facts["refused"][0]
        assert refused["release"] == "digits@1.2.0"
        assert refused["reason"].startswith("p95 ") and " ms over its limit of 60 ms in " in refused["reason"]

        [incident] = records(realm, "incident", "rolled-back")
        assert incident["reason"] == refused["reason"]
        assert incident["from"] == refused["digest"] and incident["release"] == facts["active"]["digest"]
        assert incident["failed"] == 0
        assert incident["answered"] + incident["in_flight"] == load.versions["1.2.0"] > 0, "and none after"
        assert 1000 < incident["detect_ms"] < 60_000, "20 slow answers at least, and within its probation"
        assert 0 < incident["restore_ms"] < 3000 and incident["duration_ms"] < 1000, "the standby was warm"
        print({name: incident[name] for name in ("detect_ms", "restore_ms", "duration_ms", "answered", "in_flight")})
        switches = records(realm, "audit", "switched")
        assert [switch["failed"] for switch in switches] == [0, 0]
        verdicts = records(realm, "audit", "verdict")
        assert sorted(verdict["verdict"] for verdict in verdicts) == ["failed", "proven"]
        failed = next(verdict for verdict in verdicts if verdict["verdict"] == "failed")
        tripped = [row for row in failed["evidence"] if row[-1]]
        assert tripped[0][0] == "p95-ms" and tripped[0][2] > 60 and tripped[0][3] >= 20
