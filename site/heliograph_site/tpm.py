"""[IO] A secret that only this machine's TPM 2.0 gives back, through the programs of tpm2-tools.

Rule 1: what is sealed is bound to the TPM alone, not to what was booted: an upgrade of the system locks no node out.
    The parent key is made anew from the TPM's own seed at each use; nothing is written into the TPM.
Rule 2: the secret goes through pipes only, never through a file or an argument.
Rule 3: which TPM is what tpm2-tools find by themselves (`/dev/tpmrm0`), or `TPM2TOOLS_TCTI` in the environment.

It is sealed at rest only: whoever owns the process that uses it, or listens on the wires to the TPM, can read it.
"""

import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from heliograph.errors import ConfigError

MAX_SECRET_BYTES = 128
MAX_PART_BYTES = 1024
TOOL_TIMEOUT_S = 60.0
"""Old parts take seconds for a key."""
_PARENT = ("-C", "o", "-G", "ecc256:aes128cfb", "-g", "sha256", "-c", "parent")
_ATTRIBUTES = "fixedtpm|fixedparent|userwithauth|noda"
"""Only in this TPM; and no lock-out of others keeps the node from its own."""


@dataclass(frozen=True, slots=True)
class Sealed:
    """What the TPM made of a secret, as TPM2B_PUBLIC and TPM2B_PRIVATE; worth nothing elsewhere."""

    public: bytes
    private: bytes


def seal(secret: bytes) -> Sealed:
    """Has the secret (1 to 128 bytes) sealed. Blocks, some seconds at worst.

    Raises:
        ConfigError: there are no tools or no TPM, or this user may not use it.
    """
    assert 1 <= len(secret) <= MAX_SECRET_BYTES, "more doesn't fit"
    with tempfile.TemporaryDirectory(prefix="heliograph-tpm-") as name:
        folder = Path(name)
        _make_parent(folder)
        parts = ("-u", "public", "-r", "private")
        _must(folder, "tpm2_create", "-C", "parent", "-a", _ATTRIBUTES, "-i", "-", *parts, of=secret)
        return Sealed((folder / "public").read_bytes(), (folder / "private").read_bytes())


def unseal(sealed: Sealed, where: str) -> bytes:
    """The secret again; `where` names in messages what holds it. Blocks.

    Raises:
        ConfigError: as `seal`, or it was sealed by another TPM, or by this one before it was cleared.
    """
    with tempfile.TemporaryDirectory(prefix="heliograph-tpm-") as name:
        folder = Path(name)
        (folder / "public").write_bytes(sealed.public)
        (folder / "private").write_bytes(sealed.private)
        _make_parent(folder)
        done = _run(folder, "tpm2_load", "-C", "parent", "-u", "public", "-r", "private", "-c", "sealed")
        if done.returncode:
            raise ConfigError(
                f"{where} can't be opened by this machine's TPM: it was sealed on another machine, or the TPM was "
                "cleared since; the node must join anew"
            )
        return _must(folder, "tpm2_unseal", "-c", "sealed")


def _make_parent(folder: Path) -> None:
    _must(folder, "tpm2_createprimary", *_PARENT)


def _must(folder: Path, *argv: str, of: bytes = b"") -> bytes:
    done = _run(folder, *argv, of=of)
    if done.returncode:
        told = [line for line in done.stderr.decode(errors="replace").splitlines() if line.startswith("ERROR: ")]
        why = told[0].removeprefix("ERROR: ")[:200] if told else f"{argv[0]} ended with {done.returncode}"
        raise ConfigError(
            f"the TPM can't be used ({why}): check that there is a TPM 2.0 and that this user may open /dev/tpmrm0 "
            "(group tss), or keep the key in a file: --key-store file"
        )
    return done.stdout


def _run(folder: Path, *argv: str, of: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    """One tool; what it left in a TPM that nobody manages the memory of is put out at once."""
    try:
        done = subprocess.run(argv, cwd=folder, input=of, capture_output=True, timeout=TOOL_TIMEOUT_S)
        flush = ("tpm2_flushcontext", "--transient-object")
        subprocess.run(flush, cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, timeout=TOOL_TIMEOUT_S)
    except FileNotFoundError:
        raise ConfigError(
            f"{argv[0]} is not installed: a key in the TPM needs tpm2-tools (on Debian: apt-get install tpm2-tools), "
            "or keep the key in a file: --key-store file"
        ) from None
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ConfigError(f"the TPM doesn't answer: {error}") from error
    return done
