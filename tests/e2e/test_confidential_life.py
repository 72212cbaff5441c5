"""Confidential releases on a real node: served, updated by delta, booted without a hub; its disk tells nothing."""

from pathlib import Path
from typing import Any

from bundles import BASE, HEAD, digits_bundle, sample_request
from heliograph.errors import TransportError
from heliograph.lab import Realm, infer, wait_until
from heliograph_hub.client import HubClient
from heliograph_site.status import status as node_status
from sealed import leaks

NODE = "shop/till"


def publish(realm: Realm, bundle: Path, version: str) -> None:
    file = bundle / "release.toml"
    file.write_text(file.read_text().replace('fail_mode = "safe"\n', 'fail_mode = "safe"\nconfidential = true\n'))
    keys = realm.hub_dir / "keys"
    realm.cli("release", "add", bundle)
    realm.cli("release", "sign", f"digits@{version}", "--key", keys / "sign-digits.key")
    managers = [keys / f"approve-digits-{number}.key" for number in (1, 2)]
    realm.cli("release", "approve", f"digits@{version}", "--key", managers[0], "--key", managers[1])
    realm.cli("rollout", "start", f"digits@{version}")


def digits(realm: Realm) -> dict[str, Any]:
    return dict(node_status(realm.node_dir(NODE))["models"].get("digits", {}))


def is_at_rest_with(realm: Realm, version: str) -> bool:
    facts = digits(realm)
    return facts.get("phase") == "idle" and facts["active"] and facts["active"]["release"] == f"digits@{version}"


def answers(realm: Realm) -> Any:
    """The version that answers; empty: nobody does yet."""
    try:
        return infer(realm.url(NODE), "digits", sample_request())["model_version"]
    except TransportError:
        return ""


def test_a_node_lives_on_confidential_releases_and_its_disk_tells_nothing_of_them(tmp_path: Path) -> None:
    with Realm(tmp_path / "realm") as realm:
        realm.init()
        realm.start_hub()
        realm.cli("fleet", "assign", "shop", "canary")
        realm.join(NODE)
        realm.start_node(NODE)
        publish(realm, digits_bundle(tmp_path / "1.0.0", "1.0.0", BASE, soak_max_s=1), "1.0.0")
        wait_until(lambda: is_at_rest_with(realm, "1.0.0"), 90, "1.0.0 serves")
        publish(realm, digits_bundle(tmp_path / "1.1.0", "1.1.0", HEAD, soak_max_s=1), "1.1.0")
        wait_until(lambda: is_at_rest_with(realm, "1.1.0"), 90, "1.1.0 serves")
        assert answers(realm) == "1.1.0"
        rows = HubClient(str(realm.hub_dir)).get("/v1/releases/digits/1.1.0")["sites"]
        sent = next(row["bytes_sent"] for row in rows if row["site"] == "shop")
        assert sent < HEAD.stat().st_size / 2, "it came as a delta"

        realm.kill_node(NODE)
        realm.kill_hub()
        realm.start_node(NODE)
        wait_until(lambda: answers(realm) == "1.1.0", 90, "1.1.0 answers with the hub gone")
        files = [path for path in tmp_path.glob("1.*/**/*") if path.is_file() and path.name != "release.toml"]
        plain = [path.read_bytes() for path in files]
        assert len(plain) == 8
        assert leaks(realm.node_dir(NODE), plain) == []
