"""A node's folder: what `node join` wrote, where everything lies, and who may run on it.

`node.toml` says who the node is and where its broker and its applications find each other; `node.key` (0600) is its
identity. The agent holds `agent.lock` while it runs. Source: FORMATS.md, "node.toml" and "join string".
"""

import base64
import binascii
import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from heliograph.errors import ConfigError, IntegrityError
from heliograph.names import Name
from heliograph.objects import write_durably
from heliograph.signing import MAX_KEY_FILE_BYTES, PrivateKey
from heliograph.toml import MAX_TOML_BYTES, parse_toml
from heliograph.wire import pack, unpack

NODE_FILE = "node.toml"
KEY_FILE = "node.key"
LOCK_FILE = "agent.lock"
JOIN_PREFIX = "heliograph1:"
MAX_JOIN_CHARS = 4096
Port = Annotated[int, Field(ge=1, le=65535)]
HexDigest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
KeptIn = Literal["file", "tpm"]
"""Where a node's key is kept: in a file of its folder, or in one that only this machine's TPM opens."""


class NodeFile(BaseModel):
    """The content of `node.toml`."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    format: Literal[1] = 1
    realm: Name
    site: Name
    node: Name
    host: Annotated[str, Field(min_length=1, max_length=253)]
    """Of the broker."""
    port: Port
    root: HexDigest
    """SHA-256 of the first root metadata: the trust anchor."""
    protected: bool = False
    """The token said that this node is for ring protected: its assignments need that ring's threshold, for ever."""
    ca: Annotated[str, Field(pattern=r"^([0-9a-f]{64})?$")] = ""
    """SHA-256 of the certificate of the broker's CA; empty: the broker has no TLS."""
    enroll_port: Annotated[int, Field(ge=0, le=65535)] = 0
    """Where the broker lets in who has no certificate, or none that still counts."""
    http_host: str = "127.0.0.1"
    http_port: Annotated[int, Field(ge=0, le=65535)] = 0
    """Where the Open Inference Protocol is served; 0: the system chooses at each start."""
    key_store: KeptIn = "file"
    """Where the node's key is kept."""

    def encode(self) -> bytes:
        """The file's bytes."""
        lines = [f"{name} = {json.dumps(value)}" for name, value in self.model_dump().items()]
        return ("# Written by `heliograph node join`.\n" + "\n".join(lines) + "\n").encode()


@dataclass(frozen=True, slots=True)
class JoinString:
    """All that a new node needs, to paste or scan: no trust on first use.

    Attributes:
        host, port: of the broker.
        token: 32 bytes, good once.
        root: SHA-256 of the realm's root metadata.
        protected: the node takes an assignment only at the threshold of ring protected.
        pin: SHA-256 of the certificate of the broker's CA; empty: it has no TLS.
        enroll_port: where new nodes come in, if it has.
    """

    host: str
    port: int
    realm: str
    site: str
    node: str
    token: bytes = field(repr=False)
    root: bytes
    protected: bool = False
    pin: bytes = b""
    enroll_port: int = 0

    def encode(self) -> str:
        """`heliograph1:` and the base64url of a msgpack array: version 2, or 1 for a broker without TLS."""
        rest: list[object] = [self.pin, self.enroll_port] if self.pin else [None]
        rest += [True] * self.protected
        version = 2 if self.pin else 1
        fields = [version, self.host, self.port, self.realm, self.site, self.node, self.token, self.root, *rest]
        return JOIN_PREFIX + base64.urlsafe_b64encode(pack(fields)).decode().rstrip("=")

    @classmethod
    def parse(cls, text: str) -> Self:
        """Reads what `fleet token` printed.

        Raises:
            ConfigError: not a join string, a damaged one, or one of a newer version.
        """
        text = text.strip()
        if len(text) > MAX_JOIN_CHARS:
            raise ConfigError(f"not a join string: it has {len(text)} characters, at most {MAX_JOIN_CHARS} are read")
        if not text.startswith(JOIN_PREFIX):
            raise ConfigError(f"not a join string: it begins with {JOIN_PREFIX!r}; copy all that `fleet token` printed")
        body = text.removeprefix(JOIN_PREFIX)
        try:
            fields = unpack(base64.b64decode(body + "=" * (-len(body) % 4), altchars=b"-_", validate=True))
        except (binascii.Error, ValueError, IntegrityError) as error:
            raise ConfigError("the join string is damaged: copy all that `fleet token` printed") from error
        match fields:
            case [1, str(host), int(port), str(realm), str(site), str(node), bytes(token), bytes(root), None, *rest]:
                if len(token) == 32 and len(root) == 32 and (not rest or (len(rest) == 1 and rest[0] is True)):
                    found = cls(host, port, realm, site, node, token, root, bool(rest))
                    found.node_file(0)  # checks the names and the address
                    return found
            case [
                2,
                str(host),
                int(port),
                str(realm),
                str(site),
                str(node),
                bytes(token),
                bytes(root),
                bytes(pin),
                int(enroll_port),
                *rest,
            ]:
                if (
                    len(token) == len(root) == len(pin) == 32
                    and enroll_port
                    and (not rest or (len(rest) == 1 and rest[0] is True))
                ):
                    found = cls(host, port, realm, site, node, token, root, bool(rest), pin, enroll_port)
                    found.node_file(0)
                    return found
            case [int(version), *_] if version not in (1, 2):
                raise ConfigError(
                    f"the join string is of version {version}, this version reads 1 and 2: use a newer one"
                )
        raise ConfigError("the join string is damaged: copy all that `fleet token` printed")

    def node_file(self, http_port: int, kept_in: KeptIn = "file") -> NodeFile:
        """What `node.toml` will say.

        Raises:
            ConfigError: a name, the address or the port is out of range.
        """
        try:
            return NodeFile(
                realm=self.realm,
                site=self.site,
                node=self.node,
                host=self.host,
                port=self.port,
                root=self.root.hex(),
                protected=self.protected,
                ca=self.pin.hex(),
                enroll_port=self.enroll_port,
                http_port=http_port,
                key_store=kept_in,
            )
        except ValidationError as error:
            raise ConfigError(f"the join string doesn't hold: {_first(error)}") from error


def read_node_file(folder: Path) -> NodeFile:
    """What `node.toml` says.

    Raises:
        ConfigError: no such folder, or the file is unusable.
    """
    path = folder / NODE_FILE
    try:
        with path.open("rb") as file:
            return NodeFile.model_validate(parse_toml(file.read(MAX_TOML_BYTES + 1), str(path)))
    except FileNotFoundError:
        raise ConfigError(f"{folder} is not a node's folder: run `heliograph node join` first") from None
    except OSError as error:
        raise ConfigError(f"{path} can't be read: {error}") from error
    except ValidationError as error:
        raise ConfigError(f"{path}: {_first(error)}") from error


def read_key(folder: Path) -> PrivateKey:
    """The node's identity.

    Raises:
        ConfigError: missing or unusable.
    """
    path = folder / KEY_FILE
    try:
        with path.open("rb") as file:
            return PrivateKey.from_json(file.read(MAX_KEY_FILE_BYTES + 1), str(path))
    except OSError as error:
        raise ConfigError(f"{path} can't be read: {error.strerror}; without it the node must join anew") from error


def write_key(folder: Path, key: PrivateKey) -> None:
    """Writes the node's identity, readable by its owner only."""
    write_durably(folder / KEY_FILE, key.to_json(), mode=0o600)


@contextmanager
def agent_lock(folder: Path) -> Iterator[None]:
    """Held by the one agent of a folder.

    Raises:
        ConfigError: another agent holds it.
    """
    with (folder / LOCK_FILE).open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(f"an agent runs on {folder} already: stop it first, or look with `node status`") from None
        yield


def is_agent_running(folder: Path) -> bool:
    """Whether an agent holds the folder's lock."""
    try:
        fd = os.open(folder / LOCK_FILE, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


def _first(error: ValidationError) -> str:
    first = error.errors(include_url=False, include_input=False)[0]
    return f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}"
