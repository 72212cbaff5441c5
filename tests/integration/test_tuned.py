"""What a release serves with: its config reaches programs through the server, and never goes with another release."""

import asyncio
import json
import threading
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path

import pytest

import bundles
from heliograph.errors import RefusedError
from heliograph.policy import Config
from heliograph.signing import PrivateKey, sign_statement
from heliograph_site.journal import Journal, Paper
from heliograph_site.memory import Memory, Pointer
from heliograph_site.serving.tuned import tuned
from servers import PATIENCE_S, Node

REQUEST = bundles.sample_request()


def config(number: int) -> Config:
    return Config(realm="t", model="digits", number=number, at=0, generation=3, thresholds={"sure": number / 100})


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("bundles")
    return {
        "1.0.0": bundles.digits_bundle(root / "1.0.0", "1.0.0", bundles.BASE),
        "1.1.0": bundles.digits_bundle(root / "1.1.0", "1.1.0", bundles.HEAD),
    }


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    node = Node(tmp_path / "node")
    yield node
    node.stop()


def test_a_server_that_boots_alone_serves_with_the_config_of_the_committed_tuple(
    node: Node, folders: dict[str, Path]
) -> None:
    release = node.install(folders["1.0.0"])
    key = PrivateKey.generate(b"k" * 32)
    with Journal(node.folder / "journal.sqlite") as journal:
        journal.save(Memory("digits", active=Pointer(release, 1, config=7, policy=4)))
        for number in (6, 7, 8):
            statement = sign_statement("config", config(number).encode(), [key])
            journal.shelve(Paper("config", "digits", number, statement, 1))
    node.start()
    node.wait_ready()
    status, headers, said = node.ask("GET", "/v2/models/digits/config")
    assert status == 200
    assert said == {
        "name": "digits", "version": "1.0.0", "release": release.hex(), "config": 7, "policy": 4, "generation": 3,
        "thresholds": {"sure": 0.07}, "flags": {}, "pre": {}, "post": {},
    }  # fmt: skip
    assert (headers["heliograph-config"], headers["heliograph-policy"]) == ("7", "4")
    _, headers, _ = node.ask("POST", "/v2/models/digits/infer", REQUEST)
    assert (headers["heliograph-config"], headers["heliograph-policy"]) == ("7", "4")
    row = node.digits()
    assert (row["config"], row["policy"], row["tuned"]) == (7, 4, tuned(7, 4, config(7)).digest)


def test_without_documents_a_model_serves_with_number_0_and_defaults(node: Node, folders: dict[str, Path]) -> None:
    node.point(node.install(folders["1.0.0"]))
    node.start()
    node.wait_ready()
    _, headers, said = node.ask("GET", "/v2/models/digits/config")
    assert (said["config"], said["policy"], said["thresholds"], said["generation"]) == (0, 0, {}, None)
    assert headers["heliograph-config"] == "0"
    status, _, said = node.ask("GET", "/v2/models/nothing/config")
    assert (status, said["reason"]) == (404, "unknown-model")


def test_what_answers_is_tuned_in_place_and_nothing_else_is(node: Node, folders: dict[str, Path]) -> None:
    old, new = node.install(folders["1.0.0"]), node.install(folders["1.1.0"])
    node.point(old)
    node.start()
    node.wait_ready()
    worker = node.digits()["worker"]
    asyncio.run(node.control.tune("digits", old, tuned(9, 2, config(9))))
    assert node.ask("GET", "/v2/models/digits/config")[2]["thresholds"] == {"sure": 0.09}
    assert node.digits()["worker"] == worker
    with pytest.raises(RefusedError, match="not what answers"):
        asyncio.run(node.control.tune("digits", new, tuned(10, 2, config(10))))
    assert node.digits()["config"] == 9


def test_no_answer_is_of_one_release_with_the_config_of_another(node: Node, folders: dict[str, Path]) -> None:
    old, new = node.install(folders["1.0.0"]), node.install(folders["1.1.0"])
    node.point(old)
    node.start()
    node.wait_ready()
    asyncio.run(node.control.serve("digits", old, tuned=tuned(1, 1, config(1))))
    seen: list[tuple[str, str, str]] = []
    said: list[tuple[str, int, float]] = []
    faults: list[str] = []
    stop = threading.Event()
    address = node.address

    def load() -> None:
        connection = HTTPConnection(address, timeout=PATIENCE_S)
        while not stop.is_set():
            connection.request("POST", "/v2/models/digits/infer", json.dumps(REQUEST))
            answer = connection.getresponse()
            answer.read()
            if answer.status != 200:
                faults.append(str(answer.status))
                continue
            names = ("heliograph-release", "heliograph-config", "heliograph-policy")
            release, number, policy = (str(answer.headers[name]) for name in names)
            seen.append((release, number, policy))
            connection.request("GET", "/v2/models/digits/config")
            got = json.loads(connection.getresponse().read())
            said.append((got["release"], got["config"], got["thresholds"]["sure"]))

    threads = [threading.Thread(target=load) for _ in range(3)]
    for thread in threads:
        thread.start()
    turns = ((new, 2), (old, 1), (new, 2), (old, 1), (new, 2))
    for release, number in turns:
        node.check(release)
        asyncio.run(node.control.serve("digits", release, tuned=tuned(number, number, config(number))))
        count = len(seen)
        while len(seen) < count + 20 and all(thread.is_alive() for thread in threads):
            stop.wait(0.001)
    stop.set()
    for thread in threads:
        thread.join()
    assert faults == []
    assert set(seen) == {(old.hex(), "1", "1"), (new.hex(), "2", "2")}
    assert set(said) == {(old.hex(), 1, 0.01), (new.hex(), 2, 0.02)}
