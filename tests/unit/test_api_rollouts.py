"""Rollouts as operators meet them: the commands, the API between, and the file that goes to protected's keys."""

import json
import time

import pytest

from heliograph.blob import sha256
from heliograph.documents import Directive
from heliograph.errors import ConfigError, NotFoundError, RefusedError
from heliograph.objects import ObjectStore
from heliograph_hub.api.application import application
from heliograph_hub.client import HubClient
from heliograph_hub.commands.release import release_add, release_approve, release_sign
from heliograph_hub.commands.rollout import (
    rollout_abort,
    rollout_add,
    rollout_pause,
    rollout_promote,
    rollout_request,
    rollout_resume,
    rollout_return,
    rollout_sign,
    rollout_start,
)
from heliograph_hub.founding import init_hub
from heliograph_hub.service import Service
from listening import served

NAME = "digits@1.0.0"
TENSOR = {"name": "x", "shape": [1], "datatype": "INT8", "data": [1]}


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """A hub with one release, signed and approved: its URL and its folder."""
    folder = tmp_path_factory.mktemp("rollouts")
    init_hub(folder / "hub", "test", int(time.time()))
    service = Service(folder / "hub", 1)
    service.begin()
    bundle = folder / "bundle"
    bundle.mkdir()
    (bundle / "model.tflite").write_bytes(b"model")
    (bundle / "in.json").write_text(json.dumps({"requests": [{"inputs": [TENSOR]}]}))
    (bundle / "out.json").write_text(json.dumps({"responses": [{"outputs": [TENSOR]}]}))
    golden = '[golden]\ninputs = "in.json"\noutputs = "out.json"\n'
    (bundle / "release.toml").write_text(f'model = "digits"\nversion = "1.0.0"\n{golden}')
    keys = folder / "hub" / "keys"
    with served(application(service)) as url:
        release_add(bundle, url)
        release_sign(NAME, [str(keys / "sign-digits.key")], url)
        release_approve(NAME, [str(keys / "approve-digits-1.key"), str(keys / "approve-digits-2.key")], url)
        yield url, keys
    service.database.close()


def _states(url):
    rings = HubClient(url).get("/v1/rollouts/digits/1.0.0")["rings"]
    return [ring["state"] for ring in rings], [ring["number"] for ring in rings]


def test_a_rollout_goes_to_protected_by_a_file_and_is_paused_aborted_and_returned_on_the_way(hub, tmp_path, capsys):
    url, keys = hub
    with pytest.raises(NotFoundError, match="no rollout"):
        rollout_pause(NAME, where=url)
    rollout_start(NAME, url)
    rollout_pause(NAME, where=url)
    assert _states(url) == (["paused", "waiting", "waiting", "offline"], [1, 1, 1, None])
    assert "digits@1.0.0 is PAUSED" in capsys.readouterr().out
    with pytest.raises(RefusedError, match="is paused: heliograph rollout resume"):
        rollout_promote(NAME, None, url)
    rollout_resume(NAME, url)
    rollout_resume(NAME, url)
    assert "digits@1.0.0 was not paused" in capsys.readouterr().err
    file = tmp_path / "protected.json"
    with pytest.raises(RefusedError, match="not released to ring general yet"):
        rollout_request(NAME, file, "install", url)
    rollout_promote(NAME, "general", url)
    with pytest.raises(ConfigError, match="no action 'explode'"):
        rollout_request(NAME, file, "explode", url)
    rollout_request(NAME, file, "install", url)
    with pytest.raises(RefusedError, match="has no signatures"):
        rollout_add(file, url)
    rollout_sign(file, [str(keys / "ring-protected-1.key")])
    told = capsys.readouterr().err
    assert "ring protected, model digits:\n  install, digest " in told and "the file calls it digits@1.0.0\n" in told
    rollout_add(file, url)
    assert capsys.readouterr().out == "install digits@1.0.0: 1 of 2 signatures, 1 more to go\n"
    assert _states(url)[0][3] == "waiting"
    rollout_sign(file, [str(keys / "ring-protected-2.key")])
    rollout_add(file, url)
    assert capsys.readouterr().out.endswith("install digits@1.0.0: ring protected is told\n")
    assert _states(url)[0] == ["released"] * 4

    rollout_abort(NAME, None, url)
    told = capsys.readouterr()
    assert _states(url) == (["aborted", "aborted", "aborted", "released"], [2, 2, 2, 2])
    assert "rollout request digits@1.0.0 --action hold --out FILE" in told.err
    assert "released, hold has 0 of 2 signatures" in told.out
    rollout_abort(NAME, None, url)
    assert "was aborted there already" in capsys.readouterr().err and _states(url)[1] == [2, 2, 2, 2]
    rollout_return(NAME, "canary", url)
    assert _states(url) == (["returned", "aborted", "aborted", "released"], [3, 2, 2, 2])
    rollout_request(NAME, file, "hold", url)
    rollout_sign(file, [str(keys / "ring-protected-1.key"), str(keys / "ring-protected-2.key")])
    rollout_add(file, url)
    assert _states(url)[0][3] == "aborted"
    rollout_start(NAME, url)
    assert _states(url) == (["released", "waiting", "waiting", "aborted"], [4, 3, 3, 2])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda value: value | {"format": 2}, "of format 2"),
        (lambda value: value | {"payload": "00"}, "is not what rollout request writes"),
        (lambda value: value | {"release": "faces@1.0.0"}, "names a release of faces, and holds a directive of digits"),
        (lambda value: value | {"signatures": []}, "is not what rollout request writes"),
        (lambda value: [value], "is not what rollout request writes"),
    ],
)
def test_a_file_that_was_changed_on_the_way_is_not_signed(tmp_path, change, words):
    payload = Directive(
        realm="test", ring="protected", model="digits", release=b"r" * 32, number=1, action="install", expires=1
    ).encode()
    value = {"format": 1, "type": "directive", "release": NAME, "payload": payload.hex(), "signatures": {}}
    file = tmp_path / "protected.json"
    file.write_text(json.dumps(change(value)))
    with pytest.raises(ConfigError, match=words):
        rollout_sign(file, [str(tmp_path / "absent.key")])


def test_only_protecteds_directives_are_signed_by_file(hub, tmp_path):
    _, keys = hub
    payload = Directive(
        realm="test", ring="canary", model="digits", release=b"r" * 32, number=1, action="install", expires=1
    ).encode()
    value = {"format": 1, "type": "directive", "release": NAME, "payload": payload.hex(), "signatures": {}}
    file = tmp_path / "canary.json"
    file.write_text(json.dumps(value))
    with pytest.raises(RefusedError, match="a directive of ring canary, not of protected"):
        rollout_sign(file, [str(keys / "ring-canary.key")])


def test_a_release_whose_full_image_nobody_has_is_not_published_and_goes_no_further(hub):
    url, keys = hub
    objects = ObjectStore(keys.parent / "objects")
    path = objects.path(sha256(b"model"))
    for publish in (lambda: rollout_start(NAME, url), lambda: rollout_promote(NAME, None, url)):
        path.unlink()
        with pytest.raises(RefusedError, match=r"model\.tflite of digits@1\.0\.0 is missing on the hub or has rotted"):
            publish()
        objects.put(b"model")
        publish()
