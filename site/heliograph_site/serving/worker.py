"""A worker: one process, one model, one request at a time, over one socket.

It reads the model file once, checks the digest of the very bytes it then loads, and never opens it again; a sealed one
is opened into its memory only, by the leaf key that came with the request. It is forked by `forkserver`, which has
numpy and the runtime loaded; it ends when its socket or the forkserver does.
"""

import ctypes
import hashlib
import os
import signal
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from heliograph.errors import IntegrityError, RefusedError
from heliograph.source import Source
from heliograph.unix import forbid_core_dumps
from heliograph.wire import unpack
from heliograph_site.serving.frames import MAX_BODY_BYTES, MAX_HEAD_BYTES, PREFIX, frame_head
from heliograph_site.serving.inference import TensorSpec
from heliograph_site.serving.runtime import TfliteModel, UnrunnableError

_PR_SET_PDEATHSIG = 1
_PR_SET_NO_NEW_PRIVS = 38


class Model(Protocol):
    """What a worker needs of a runtime."""

    runtime: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    def run(self, inputs: Sequence[tuple[tuple[int, ...], memoryview]]) -> list[tuple[tuple[int, ...], bytes]]:
        """Outputs for inputs, in the model's order."""


def die_with_parent(parent: int) -> None:
    """Has the kernel kill this process when its parent dies; `parent` is the pid it had when forked. Linux only."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before the call
        os._exit(0)


def confine(parent: int) -> None:
    """Gives up what a worker never needs: new privileges, core dumps, life after its parent."""
    die_with_parent(parent)
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    forbid_core_dumps()


def main(sock: socket.socket) -> None:
    """Answers requests until the socket is closed."""
    model: Model | None = None
    while (frame := _receive(sock)) is not None:
        head, body = frame
        try:
            if head["op"] == "load":
                content = read_verified(Path(head["path"]), head["sha256"], head["length"], head["key"])
                model = TfliteModel(content, threads=head["threads"])
                del content  # the runtime keeps what it needs of it
                _send(
                    sock, {"runtime": model.runtime, "inputs": _specs(model.inputs), "outputs": _specs(model.outputs)}
                )
            else:
                assert model is not None, "infer before load"
                outputs = model.run(_inputs(head, body))
                _send(
                    sock,
                    {"shapes": [shape for shape, _ in outputs], "sizes": [len(data) for _, data in outputs]},
                    [data for _, data in outputs],
                )
        except IntegrityError as error:
            _send(sock, {"error": str(error), "kind": "integrity"})
        except UnrunnableError as error:
            _send(sock, {"error": str(error), "kind": "runtime"})
        except RefusedError as error:
            _send(sock, {"error": str(error), "kind": "refused"})
        except MemoryError:
            _send(sock, {"error": "out of memory", "kind": "memory"})


def read_verified(path: Path, sha256: bytes, length: int, key: bytes = b"") -> bytes:
    """The file's plain bytes, which are those the digest names: what is returned is what was hashed.

    `key` is the leaf key of the sealed blob that lies there; empty: the bytes lie there plain. What is opened is in
    this process's memory only, once.

    Raises:
        IntegrityError: they are not, or the file is missing.
    """
    try:
        with path.open("rb") as file:
            content = Source(file.fileno(), 0, key, length).read(0, length) if key else file.read(length + 1)
    except IntegrityError as error:
        raise IntegrityError(f"model file {sha256.hex()[:12]} is rotten: {error}") from error
    except OSError as error:
        raise IntegrityError(f"model file {sha256.hex()[:12]} can't be read: {error.strerror}") from error
    if len(content) != length or hashlib.sha256(content).digest() != sha256:
        raise IntegrityError(f"model file {sha256.hex()[:12]} is rotten: its {len(content)} bytes have another digest")
    return content


def _inputs(head: dict[str, Any], body: memoryview) -> list[tuple[tuple[int, ...], memoryview]]:
    at, inputs = 0, []
    for shape, size in zip(head["shapes"], head["sizes"], strict=True):
        inputs.append((tuple(shape), body[at : at + size]))
        at += size
    return inputs


def _specs(specs: tuple[TensorSpec, ...]) -> list[list[Any]]:
    return [[spec.name, spec.datatype, list(spec.shape)] for spec in specs]


def _receive(sock: socket.socket) -> tuple[dict[str, Any], memoryview] | None:
    prefix = _read(sock, PREFIX.size)
    if prefix is None:
        return None
    head_length, body_length = PREFIX.unpack(prefix)
    assert head_length <= MAX_HEAD_BYTES and body_length <= MAX_BODY_BYTES
    data = _read(sock, head_length + body_length)
    if data is None:
        return None
    return unpack(bytes(data[:head_length]), max_bytes=MAX_HEAD_BYTES), data[head_length:]


def _read(sock: socket.socket, length: int) -> memoryview | None:
    view = memoryview(bytearray(length))
    at = 0
    while at < length:
        count = sock.recv_into(view[at:])
        if count == 0:
            return None
        at += count
    return view


def _send(sock: socket.socket, head: dict[str, Any], parts: Sequence[bytes] = ()) -> None:
    sock.sendall(b"".join((frame_head(head, sum(map(len, parts))), *parts)))


def _prctl(option: int, value: int) -> None:
    prctl = getattr(ctypes.CDLL(None, use_errno=True), "prctl", None)
    if prctl is not None:  # another kernel than Linux: the closed socket ends the worker
        prctl(option, ctypes.c_ulong(value), ctypes.c_ulong(0), ctypes.c_ulong(0), ctypes.c_ulong(0))
