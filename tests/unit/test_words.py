"""What commands say of what is wanted, allowed and held: one sentence, what to do next, and an exit code."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import bundles
from heliograph.cli import main
from heliograph.documents import Enroll, Records
from heliograph.signing import PrivateKey, sign_statement
from heliograph.wire import pack
from heliograph_hub.api.application import application
from heliograph_hub.founding import init_hub
from heliograph_hub.service import Service
from heliograph_site.folder import NodeFile, write_key
from heliograph_site.journal import JOURNAL_FILE, Journal
from listening import served

NOW = 1_795_000_000
KEY = PrivateKey.generate(b"k" * 32)
Say = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Service, str, Path]]:
    folder = tmp_path_factory.mktemp("words")
    init_hub(folder / "hub", "test", int(time.time()))
    service = Service(folder / "hub", 1)
    service.begin()
    service.enrolment.add_token("lab", "pi-1", b"t" * 32, NOW, 60)
    service.enrolment.enroll("lab", "pi-1", Enroll(token=b"t" * 32, key=KEY.public.raw, nonce=b"n" * 16), NOW)
    with served(application(service)) as url:
        yield service, url, folder
    service.database.close()


@pytest.fixture
def say(hub: tuple[Service, str, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Say:
    """Types a command: its exit code, what it printed, and what it said besides."""
    monkeypatch.setenv("HELIOGRAPH_HUB", hub[1])

    def typed(*args: str | Path) -> tuple[int, str, str]:
        code = main([str(arg) for arg in args])
        out, err = capsys.readouterr()
        return code, out, err

    return typed


def write_node(folder: Path) -> None:
    """The files of lab/pi-1 that a joined node has, without its journal."""
    file = NodeFile(realm="test", site="lab", node="pi-1", host="::1", port=1883, root="0" * 64)
    (folder / "node.toml").write_bytes(file.encode())
    write_key(folder, KEY)


@pytest.mark.parametrize("kind", ["policy", "config"])
def test_where_nothing_is_set_yet_it_is_said_how_to(say: Say, kind: str) -> None:
    told = f"no {kind} is set yet, every field is at its default: heliograph {kind} set FILE\n"
    assert say(kind, "show") == (0, told, "")
    assert say(kind, "show", "--json") == (0, "[]\n", "")


def test_what_is_stated_of_a_site_without_nodes_counts_and_is_said_to_be_of_none(say: Say) -> None:
    new = "site shpo has no nodes yet; the first comes by heliograph fleet token shpo/NODE\n"
    assert say("fleet", "assign", "shpo", "canary") == (0, "site shpo is in ring canary: nothing to send now\n", new)
    assert say("fleet", "label", "shpo", "kind=till") == (0, "shpo has kind=till: nothing to send now\n", new)
    assert say("fleet", "label", "lab", "kind=lab") == (0, "lab has kind=lab: 1 node assigned anew\n", "")
    assert say("fleet", "label", "lab", "kind=lab") == (0, "lab has kind=lab: nothing to send now\n", "")


def test_tokens_are_counted_when_they_are_revoked(say: Say) -> None:
    say("fleet", "token", "lab/pi-2")
    assert say("fleet", "token", "lab/pi-2", "--revoke")[1] == "revoked: 1 open token of lab/pi-2\n"
    assert say("fleet", "token", "lab/pi-2", "--revoke")[1] == "revoked: 0 open tokens of lab/pi-2\n"


def test_into_protected_and_a_rollout_there_each_step_names_the_next(say: Say, hub: tuple[Service, str, Path]) -> None:
    folder = hub[2]
    keys, file = folder / "hub" / "keys", folder / "lab.json"
    signed = ("--key", keys / "ring-protected-1.key", "--key", keys / "ring-protected-2.key")
    ask = "heliograph fleet request lab --out FILE"
    done = f"site lab is in ring protected once ring protected's keys have signed for 1 node: {ask}\n"
    assert say("fleet", "assign", "lab", "protected") == (0, done, "")
    assert f"{file}: 1 assignment of lab to sign" in say("fleet", "request", "lab", "--out", file)[1]
    assert f"{file}: 1 assignment signed" in say("fleet", "sign", file, "--key", keys / "deny-1.key")[1]
    code, _, err = say("fleet", "add", file)
    assert (code, err.count("\n")) == (4, 1)
    assert "sign what heliograph fleet request lab/pi-1 writes anew, by those alone" in err
    say("fleet", "request", "lab", "--out", file)
    shown = say("key", "sign", file, *signed[:2])[1]
    assert "lab/pi-1" in shown and "protected" in shown and "1 thing signed" in shown, "who signs sees what"
    say("fleet", "sign", file, *signed)
    assert "into ring protected: in force" in say("fleet", "add", file)[1]

    name, file = "digits@1.0.0", folder / "protected.json"
    say("release", "add", bundles.digits_bundle(folder / "digits", "1.0.0"))
    say("release", "sign", name, "--key", keys / "sign-digits.key")
    say("release", "approve", name, *(a for n in (1, 2) for a in ("--key", keys / f"approve-digits-{n}.key")))
    say("rollout", "start", name)
    assert f"{name} is PAUSED" in say("rollout", "pause", name)[1]
    assert "PAUSED" not in say("rollout", "abort", name)[1]
    say("rollout", "start", name)
    say("rollout", "promote", name, "--to", "general")
    assert f"heliograph rollout sign {file} --key FILE" in say("rollout", "request", name, "--out", file)[1]
    (digest,) = (row.digest.hex() for row in hub[0].registry.all())
    forged = folder / "forged.json"
    forged.write_text(file.read_text().replace(name, "digits@9.9.9"))
    for command in ("key", "rollout"):
        said = say(command, "sign", forged, *signed[:2])[2]
        assert f"  install, digest {digest}\n" in said and "  the file calls it digits@9.9.9\n" in said
    assert (
        f"1 signature: heliograph rollout add {file}" in say("rollout", "sign", file, "--key", keys / "deny-1.key")[1]
    )
    code, _, err = say("rollout", "add", file)
    assert code == 4
    assert f"sign what heliograph rollout request {name} writes anew, by those alone" in err


@pytest.mark.parametrize("command", ["rollout", "fleet"])
def test_a_file_that_is_another_is_named_and_nothing_is_lost(say: Say, tmp_path: Path, command: str) -> None:
    file = tmp_path / "other.toml"
    file.write_text('ring = "canary"\n')
    what = f"heliograph: {file} is not what {command} request writes: name its file, or ask again\n"
    assert say(command, "add", file) == (2, "", what)
    assert file.read_text() == 'ring = "canary"\n'


def test_what_came_of_a_command_is_shown_with_it_whatever_else_the_node_records(
    say: Say, hub: tuple[Service, str, Path]
) -> None:
    service = hub[0]
    say("fleet", "command", "lab/pi-1", "report")
    number = service.assignments.given("lab", "pi-1")[0].number
    refused = {"by": "hub", "number": number, "outcome": "refused: nothing to\x1b[31m fall back to"}
    rows = tuple(
        (1, "ordered", NOW, body)
        for body in (
            refused,
            {"by": "site", "number": number, "outcome": "mine"},
            {"by": "hub", "number": [number]},
            {},
        )
    )
    made = Records(realm="test", site="lab", node="pi-1", run=b"r" * 8, lane="audit", first=0, rows=rows)
    service.fleet.take_records("lab", "pi-1", sign_statement("records", made.encode(), [KEY]))
    code, out, _ = say("fleet", "show", "lab/pi-1")
    assert code == 0
    (line,) = (line for line in out.splitlines() if line.startswith(f"command {number} report: waiting"))
    assert line.endswith(" UTC: refused: nothing to[31m fall back to")


def test_a_site_that_names_no_model_of_its_node_is_told_which_there_are(say: Say, tmp_path: Path) -> None:
    write_node(tmp_path)
    Journal(tmp_path / JOURNAL_FILE).close()
    code, _, err = say("node", "hold", "digits", tmp_path)
    assert (code, err) == (3, "heliograph: there is no model 'digits' on this node: it has none yet\n")
    code, _, err = say("node", "hold", "digits", tmp_path / "absent")
    assert code == 2 and "is not a node's folder" in err


@pytest.mark.parametrize(
    ("waiting", "note"),
    [("", "held by the site: stocktaking"), ("held by the site: stocktaking", "held by the site: stocktaking")],
)
def test_what_a_site_holds_is_said_once(say: Say, tmp_path: Path, waiting: str, note: str) -> None:
    write_node(tmp_path)
    with Journal(tmp_path / JOURNAL_FILE) as journal:
        journal.save_state("holds", pack({"digits": "by the site: stocktaking"}))
        journal.save_waiting({"digits": waiting})
    code, out, _ = say("node", "status", tmp_path)
    words = " ".join(out.split())
    assert (code, words.count(note)) == (0, 1)


@pytest.mark.parametrize("leave", ["ctrl-c", "ctrl-d", "n"])
def test_whoever_leaves_the_question_has_signed_nothing_and_is_told_so(leave: str) -> None:
    asks = (
        "from heliograph.errors import RefusedError\n"
        "from heliograph_hub.commands.documents import _ask\n"
        "try:\n    _ask('policy/canary 1', ['lab/pi-1'])\n"
        "except RefusedError as error:\n    print(error)\n"
    )
    ours, theirs = os.openpty()
    asking = subprocess.Popen(
        [sys.executable, "-c", asks], stdin=theirs, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    try:
        assert asking.stderr is not None
        said = b""
        while b"[y/N]" not in said and (more := os.read(asking.stderr.fileno(), 4096)):
            said += more
        assert b"stops 1 node: lab/pi-1. Sign it all the same?" in said
        if leave == "ctrl-c":
            asking.send_signal(signal.SIGINT)
        else:
            os.write(ours, {"ctrl-d": b"\x04", "n": b"n\n"}[leave])
        out, _ = asking.communicate(timeout=60)
    finally:
        asking.kill()
        asking.wait()
        os.close(ours)
        os.close(theirs)
    assert out.strip() == b"policy/canary 1 was not signed"  # the prompt ends in a space
