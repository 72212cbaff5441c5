"""A node's key sealed by a TPM: opened by that one alone. The TPM is swtpm's, one process each."""

import asyncio
import contextlib
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest

from agents import QUICK, Hub, Node
from heliograph.errors import ConfigError
from heliograph.signing import PrivateKey
from heliograph_site.agent import Agent
from heliograph_site.folder import JoinString
from heliograph_site.identity import SEALED_KEY_FILE, TpmKey, keep_in, key_store
from heliograph_site.joining import join
from heliograph_site.status import status as node_status
from heliograph_site.tpm import seal, unseal
from waits import eventually, until

KEY = PrivateKey.generate(b"test-only key, sealed by a TPM!!")
has_tpm = pytest.mark.skipif(
    shutil.which("swtpm") is None or shutil.which("tpm2_create") is None,
    reason="swtpm and tpm2-tools are not installed (on Debian: apt-get install swtpm tpm2-tools)",
)


@contextlib.contextmanager
def machine(folder: Path) -> Iterator[None]:
    """While it lasts this is a machine with a TPM whose state is in the folder."""
    folder.mkdir(exist_ok=True)
    at = folder / "sock"
    argv = ["swtpm", "socket", "--tpm2", "--tpmstate", f"dir={folder}", "--flags", "not-need-init,startup-clear"]
    argv += ["--server", f"type=unixio,path={at}", "--ctrl", f"type=unixio,path={at}.ctrl"]
    process = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    before = os.environ.get("TPM2TOOLS_TCTI")
    os.environ["TPM2TOOLS_TCTI"] = f"swtpm:path={at}"
    try:
        eventually(at.exists, "swtpm starts")
        yield
    finally:
        process.terminate()
        process.wait(60)
        del os.environ["TPM2TOOLS_TCTI"]
        if before is not None:
            os.environ["TPM2TOOLS_TCTI"] = before


@pytest.fixture
def short() -> Iterator[Path]:
    """A folder whose path leaves room for the name of a socket."""
    with tempfile.TemporaryDirectory(prefix="h-") as name:
        yield Path(name)


@has_tpm
def test_attack_a_copied_folder_holds_no_key_for_another_machines_tpm(short: Path) -> None:
    folder = short / "node"
    folder.mkdir()
    with machine(short / "here"):
        keep_in("tpm", KEY).write(folder)
        assert TpmKey(folder).load().to_seed() == KEY.to_seed()
    assert [path.name for path in folder.iterdir()] == [SEALED_KEY_FILE]
    content = (folder / SEALED_KEY_FILE).read_bytes()
    assert KEY.to_seed() not in content and KEY.to_seed().hex().encode() not in content
    assert (folder / SEALED_KEY_FILE).stat().st_mode & 0o777 == 0o600
    assert key_store(folder, "tpm").keyid() == KEY.keyid, "known without any TPM"
    with machine(short / "elsewhere"), pytest.raises(ConfigError, match="sealed on another machine"):
        TpmKey(folder).load()
    with machine(short / "here"):
        for _ in range(4):  # a TPM has room for three keys at a time
            assert TpmKey(folder).load().keyid == KEY.keyid, "after the machine was switched off and on"


@has_tpm
def test_a_node_joins_and_runs_with_its_key_in_the_tpm_and_a_copy_of_its_folder_does_not_start_elsewhere(
    short: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hub, folder = Hub(tmp_path, has_tls=True), short / "node"

    async def runs() -> None:
        async with Node(folder).running() as agent:
            await until(lambda: agent.is_up, "inside by the certificate of the sealed key")

    try:
        string = hub.token(capsys, "lab/n1")
        with machine(short / "here"):
            asyncio.run(join(string, folder, 0, Random(1), QUICK, kept_in="tpm"))
            assert not (folder / "node.key").exists() and (folder / SEALED_KEY_FILE).exists()
            asyncio.run(runs())
        with machine(short / "elsewhere"), pytest.raises(ConfigError, match="sealed on another machine"):
            Agent(folder)
        assert node_status(folder)["link"] == "down", "to look at it needs no key"
    finally:
        hub.stop()


@has_tpm
def test_a_sealed_key_that_was_exchanged_is_refused(short: Path) -> None:
    with machine(short / "here"):
        keep_in("tpm", KEY).write(short)
        path = short / SEALED_KEY_FILE
        content = json.loads(path.read_bytes())
        other = seal(b"another key, that the TPM opens.")
        assert unseal(other, "it") == b"another key, that the TPM opens."
        content["sealed"] = {"public": other.public.hex(), "private": other.private.hex()}
        path.write_text(json.dumps(content))
        with pytest.raises(ConfigError, match="what is sealed in it is not its key"):
            TpmKey(short).load()


@has_tpm
def test_without_a_tpm_nothing_is_sent_and_one_sentence_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TPM2TOOLS_TCTI", f"swtpm:path={tmp_path}/none")
    # No hub answers there: who sent anything would have to say so.
    string = JoinString("127.0.0.1", 1, "demo", "lab", "n1", b"t" * 32, b"r" * 32)
    with pytest.raises(ConfigError, match=r"^the TPM can't be used \(.*\): check that there is a TPM 2.0 [^\n]*$"):
        asyncio.run(join(string, tmp_path / "node", 0, Random(1), kept_in="tpm"))
    assert not (tmp_path / "node").exists()


def test_without_the_tools_one_sentence_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match=r"^tpm2_createprimary is not installed: [^\n]*apt-get install tpm2-tools"):
        keep_in("tpm", KEY)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"{", "is damaged"),
        (b"[" * 5000, "is damaged"),
        (b"{}", "is no sealed key"),
        (b'{"format": 2}', "has format 2, this version reads 1"),
        (b'{"format":1,"keytype":"ed25519","scheme":"ed25519","public":"%s","sealed":{"public":"zz","private":""}}'
         % (b"0" * 64), "is no sealed key"),
        (None, "can't be read"),
    ],
)  # fmt: skip
def test_a_sealed_key_file_that_is_none_is_refused_in_one_sentence(
    tmp_path: Path, content: bytes | None, said: str
) -> None:
    if content is not None:
        (tmp_path / SEALED_KEY_FILE).write_bytes(content)
    for read in (TpmKey(tmp_path).load, TpmKey(tmp_path).keyid):
        with pytest.raises(ConfigError, match=said):
            read()
