"""Serving a confidential release: opened in the worker's memory by one leaf key, and readable nowhere else."""

from collections.abc import Iterator
from pathlib import Path

import pytest

import bundles
from heliograph.blob import Digest, sha256
from heliograph.sealing import leaf_key
from heliograph.signing import PrivateKey
from heliograph_hub.bundle import pack
from heliograph_site.folder import KEY_FILE, NodeFile, write_key
from heliograph_site.slots import Slots
from sealed import NODE_KEY, Vault, leaks
from servers import Node
from waits import eventually

INFER = "/v2/models/digits/infer"
VAULT = Vault()


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bundles.digits_bundle(tmp_path_factory.mktemp("bundles") / "1.0.0", "1.0.0")


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    node = Node(tmp_path / "node")
    file = NodeFile(realm="lab", site="shop", node="n1", host="127.0.0.1", port=1, root="00" * 32)
    (node.folder / "node.toml").write_bytes(file.encode())
    write_key(node.folder, NODE_KEY)
    yield node
    node.stop()


def install(node: Node, bundle: Path) -> tuple[Digest, dict[str, bytes]]:
    """Puts a release there as a finished fetch would, sealed: its manifest's digest, and what must not be seen."""
    packed = pack(bundle)
    manifest = packed.manifest.model_copy(update={"confidential": True, "crit": ("confidential",)})
    slots = Slots(node.folder, NODE_KEY.open_box)
    plain = {}
    for file in manifest.files:
        plain[file.name] = packed.paths[file.name].read_bytes()
        path = slots.path(file.sha256, "part")
        path.write_bytes(VAULT.sealed(plain[file.name]))
        slots.settle_sealed(file, path, VAULT.grant())
    return node.store.put(manifest.encode()), plain


def test_a_server_alone_boots_a_confidential_release_and_shows_nothing_of_it(node: Node, bundle: Path) -> None:
    release, plain = install(node, bundle)
    node.point(release)
    node.start()
    worker = node.wait_ready()["worker"]
    status, _, answer = node.ask("POST", INFER, bundles.sample_request())
    assert (status, answer["model_version"]) == (200, "1.0.0")
    model = plain["model.tflite"]
    assert leaks(node.folder, plain.values()) == []
    (node.folder / "copy").write_bytes(model)
    assert leaks(node.folder, plain.values()) == ["copy"]
    keys = (VAULT.epoch_key, leaf_key(VAULT.epoch_key, sha256(model)))
    assert node.process is not None
    for pid in (node.process.pid, node.status()["forkserver"], worker):
        for name in ("cmdline", "environ"):
            told = Path(f"/proc/{pid}/{name}").read_bytes()
            assert not any(key in told or key.hex().encode() in told for key in keys)
        limits = Path(f"/proc/{pid}/limits").read_text().splitlines()
        core = next(line for line in limits if line.startswith("Max core file size"))
        assert core.split()[4:6] == ["1", "1"], "what is opened goes to no file and no program when it crashes"
    log = node.log.read_bytes()
    assert not any(key in log or key.hex().encode() in log for key in keys)
    open_files = [str(path.readlink()) for path in Path(f"/proc/{worker}/fd").iterdir()]
    assert not any("/objects/" in path for path in open_files), "it was read once"


@pytest.mark.parametrize("rotten", ["model.tflite", "golden/outputs.json"])
def test_rotten_sealed_bytes_are_never_served(node: Node, bundle: Path, rotten: str) -> None:
    release, plain = install(node, bundle)
    path = node.store.path(sha256(VAULT.sealed(plain[rotten])))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    node.point(release)
    node.start()
    said = eventually(lambda: (d := node.digits())["state"] == "failed" and d, "the server to say so")
    assert "rotte" in said["reason"]
    assert node.ask("POST", INFER, bundles.sample_request())[0] == 503


def test_what_is_sealed_to_another_key_is_not_served_and_said_so(node: Node, bundle: Path) -> None:
    release, _ = install(node, bundle)
    write_key(node.folder, PrivateKey.generate(b"o" * 32))
    node.point(release)
    node.start()
    said = eventually(lambda: (d := node.digits())["state"] == "failed" and d, "the server to say so")
    assert "model.tflite is not held, or not sealed to this node's key" in said["reason"]


def test_a_key_that_cannot_be_had_just_now_is_no_fault_of_the_release(node: Node, bundle: Path) -> None:
    release, _ = install(node, bundle)
    (node.folder / KEY_FILE).rename(node.folder / "away")
    node.point(release)
    node.start()
    said = eventually(lambda: (d := node.digits())["state"] == "restarting" and d, "the server to say so")
    assert "digits@1.0.0 is sealed" in said["reason"] and KEY_FILE in said["reason"]
    (node.folder / "away").rename(node.folder / KEY_FILE)
    node.wait_ready()
    assert node.ask("POST", INFER, bundles.sample_request())[0] == 200


def test_a_public_and_a_confidential_release_are_switched_to_and_back(node: Node, bundle: Path) -> None:
    sealed, _ = install(node, bundle)
    public = node.install(bundles.digits_bundle(node.folder / "2.0.0", "2.0.0", bundles.HEAD))
    node.point(public)
    node.start()
    node.wait_ready()
    measured = node.check(sealed)
    assert measured["golden_max_error"] <= 2.0
    for release, version in ((sealed, "1.0.0"), (public, "2.0.0")):
        node.serve(release)
        assert node.ask("POST", INFER, bundles.sample_request())[2]["model_version"] == version
