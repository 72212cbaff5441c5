"""Policies and configs through the commands that operators type, a hub as a process, and a broker that forgets."""

import json
from pathlib import Path

import pytest

from heliograph.lab import Realm
from terminals import typed

NIGHT = """\
ring = "general"
hold_max_s = 600

[[windows]]
opens = "0 2 * * *"
for_s = 7200

[[immediate]]
item = "safety filter"
converge_s = 3600
"""


@pytest.fixture(scope="module")
def realm(tmp_path_factory):
    with Realm(tmp_path_factory.mktemp("control")) as realm:
        realm.init()
        realm.start_hub()
        yield realm


def say(realm, *words):
    done = typed(*words, HELIOGRAPH_HUB=str(realm.hub_dir))
    assert done.returncode == 0, (words, done)
    return done.stdout


def ask(realm, *words):
    return json.loads(say(realm, *words, "--json"))


def _file(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text)
    return path


def test_a_policy_is_tried_set_shown_set_again_and_outlives_the_hub(realm, tmp_path):
    night = _file(tmp_path, "night.toml", NIGHT)
    tried = say(realm, "policy", "set", night, "--dry-run")
    assert tried.endswith("policy/general 1 would be signed; nothing was done\n"), tried
    assert ask(realm, "policy", "show") == []
    assert say(realm, "policy", "set", night).endswith("policy/general 1 is signed and announced\n")
    assert say(realm, "policy", "set", night) == "policy/general 1 says the same already: unchanged\n"
    shown = say(realm, "policy", "show", "general")
    assert shown.startswith("# policy/general 1 of ") and 'opens = "0 2 * * *"' in shown
    again = _file(tmp_path, "again.toml", shown)
    assert ask(realm, "policy", "set", again)["unchanged"]
    realm.kill_hub()
    realm.start_hub()
    assert say(realm, "policy", "show", "general") == shown
    changed = _file(tmp_path, "changed.toml", NIGHT.replace("600", "0"))
    answer = ask(realm, "policy", "set", changed, "--key", realm.hub_dir / "keys" / "policy.key")
    assert (answer["number"], answer["have"], answer["state"], answer["effects"]) == (2, 1, "in force", [])
    assert [(d["number"], d["state"]) for d in ask(realm, "policy", "show")][:2] == [
        (1, "superseded"),
        (2, "in force"),
    ]
    assert say(realm, "policy", "show", "general", "--number", "1").splitlines()[1:] == shown.splitlines()[1:]
    assert "safety filter everywhere until" in say(realm, "policy", "show", "general", "--missing")
    assert say(realm, "policy", "show", "canary") == (
        '# no policy is set for canary: every field is at its default\nring = "canary"\n'
    )


def test_what_an_operator_does_wrong_with_documents_is_said_in_one_line(realm, tmp_path):
    fine = _file(tmp_path, "fine.toml", 'ring = "early"\n')
    wrong_key = realm.hub_dir / "keys" / "assign.key"
    large = _file(tmp_path, "large.toml", 'ring = "early"\n# ' + "x" * 50_000)
    other = _file(tmp_path, "other.toml", 'ring = "early"\nmodel = "m"')
    nobodys = _file(tmp_path, "nobodys.toml", "generation = 1")
    faces = _file(tmp_path, "faces.toml", 'model = "faces"')
    # fmt: off
    wrong = [
        (2, "early.toml can't be read (No such file or directory)", "policy", "set", tmp_path / "early.toml"),
        (4, "large.toml exceeds 49152 bytes",                       "policy", "set", large),
        (4, "which can't sign policy/early: keys that count are",   "policy", "set", fine, "--key", wrong_key),
        (2, "policy has no field model",                            "policy", "set", other),
        (2, "config names no model",                                "config", "set", nobodys),
        (3, "no keys for config/faces in this realm",               "config", "set", faces),
        (2, "no ring 'moon': rings are",                            "policy", "show", "moon"),
        (3, "no policy/early 9",                                    "policy", "show", "early", "--number", "9"),
        (2, "--number 9 of which?",                                 "policy", "show", "--number", "9"),
        (3, "no model 'faces' in this realm",                       "config", "show", "faces"),
        (2, "--missing is of the policy that a ring has",           "policy", "show", "--missing"),
    ]
    # fmt: on
    for code, words, *arguments in wrong:
        told = typed(*arguments, HELIOGRAPH_HUB=str(realm.hub_dir))
        assert told.returncode == code and words in told.stderr, (arguments, told)
        assert told.stderr.startswith("heliograph: ") and told.stderr.count("\n") == 1
    assert not [d for d in ask(realm, "policy", "show") if d["scope"] == "early"]
