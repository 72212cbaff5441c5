"""What is fuzzed of trust: metadata, sets, statements and denials, of a realm that vouches for the good ones."""

from collections.abc import Callable
from functools import cache

from tuf.api.metadata import Root, Snapshot, Targets, Timestamp

import golden
import realms
from heliograph import deny, documents, metadata, protocol, trust, vouching, wire
from heliograph.blob import sha256
from heliograph.documents import Denials
from heliograph.errors import IntegrityError, TrustError
from heliograph.metadata import load
from heliograph.signing import sign_statement
from heliograph.wire import compress, pack
from heliograph.workflow import Workflow

OURS = (TrustError, IntegrityError)
NOW = realms.NOW
_FILES = (Root, Timestamp, Snapshot, Targets)


@cache
def a_realm() -> tuple[realms.Realm, trust.TrustedSet, list[bytes], dict[str, bytes]]:
    """A realm, a set of it, its next files, and statements of it."""
    realm = realms.Realm(7)
    release = realm.list_release("1.0.0", b"manifest")
    first = realm.publish()
    held = trust.with_set(realm.bootstrap(), first.pack(), NOW)
    realm.list_release("1.1.0", b"another")
    files = realm.publish()
    root = realm.rotate("timestamp")
    directive = realm.directive(release)
    denial = documents.Deny(realm=realm.name, releases=(release,), reason="wrong", at=NOW)
    signed = {
        "directive": realm.sign("ring-canary", "directive", directive),
        "deny": realm.sign("deny", "deny", denial),
        "set": files.pack(),
        "root": root,
    }
    return realm, held, [files.timestamp, files.snapshot, files.targets, *files.delegated.values(), root], signed


def stated(name: str) -> bytes:
    return a_realm()[3][name]


def _sealed(body: bytes) -> bytes:
    return pack([1, sha256(body), body])


def read_metadata(data: bytes) -> object:
    which = data[0] if data else 0
    loaded = load(_FILES[which % 4], data[1:], "role", is_own_only=which < 128)
    if which % 4 == 1:
        return metadata.custom_of(loaded.signed)  # type: ignore[arg-type]
    return metadata.signed_bytes(loaded, "role")  # type: ignore[arg-type]


def metadata_seeds() -> list[bytes]:
    stamp, snapshot, targets, *rest, root = a_realm()[2]
    return [b"\0" + root, b"\1" + stamp, b"\2" + snapshot, b"\3" + targets, b"\x83" + rest[0]]


def read_set(data: bytes) -> object:
    return trust.with_set(a_realm()[1], compress(data, 1), NOW)


def set_seeds() -> list[bytes]:
    return [wire.decompress(stated("set"), max_bytes=1 << 20)]


def read_state(data: bytes) -> object:
    return trust.state_from_bytes(data[1:] if data[:1] == b"\0" else _sealed(data[1:]))


def state_seeds() -> list[bytes]:
    state = trust.state_to_bytes(a_realm()[1])
    return [b"\0" + state, b"\1" + wire.unpack(state, max_bytes=1 << 20)[2]]


def read_trust(data: bytes) -> object:
    _, held, _, _ = a_realm()
    which, data = data[0] % 4 if data else 0, data[1:]
    if which == 0:
        return trust.with_root(held, data)
    if which == 1:
        return trust.with_head(held, data, NOW)
    if which == 2:
        return trust.time_in_head(held, data)
    return trust.bootstrap(data, sha256(data))


def trust_seeds() -> list[bytes]:
    stamp, *_, root = a_realm()[2]
    return [b"\0" + root, b"\1" + stamp, b"\2" + stamp, b"\3" + root]


def run_workflow(data: bytes) -> object:
    _, held, _, _ = a_realm()
    which, data = data[0] if data else 0, data[1:]
    flow = trust._workflow(held) if which < 128 else Workflow(load(Root, held.root, "root"), is_own_only=False)
    steps: list[Callable[[], object]] = [
        lambda: flow.with_root(data),
        lambda: flow.with_timestamp(data, NOW),
        lambda: flow.with_timestamp_before(data),
        lambda: flow.open_timestamp(data),
        lambda: flow.with_snapshot(data, NOW),
        lambda: flow.with_snapshot_before(data),
        lambda: flow.with_targets(data, NOW),
        lambda: flow.with_delegated(f"sign-{realms.MODEL}", "targets", data),
        lambda: flow.is_listed("targets", data),
    ]
    step = which % len(steps)
    if which >= 128 and step > 4:
        return None  # nothing is held to hang it on
    return steps[step]()


def workflow_seeds() -> list[bytes]:
    stamp, snapshot, targets, *rest, root = a_realm()[2]
    given = [root, stamp, stamp, stamp, snapshot, snapshot, targets, rest[0], targets]
    return [bytes([at]) + data for at, data in enumerate(given)]


def read_denials(data: bytes) -> object:
    _, held, _, _ = a_realm()
    which, data = data[0] % 5 if data else 0, data[1:]
    empty = deny.DenySet()
    if which == 0:
        return empty.with_list(data, held, Denials())
    if which == 1:
        return empty.with_statement(data, held)
    if which == 2:
        return deny.DenySet.recall([data], held)
    if which == 3:
        return deny.older_blob(data)
    listed = documents.DenyAll(older=documents.OlderDenials(length=max(1, len(data)), sha256=sha256(data)))
    return empty.with_list(listed.encode(), held, Denials(), data)


def denial_seeds() -> list[bytes]:
    denial = stated("deny")
    listed = documents.DenyAll(statements=(denial,)).encode()
    return [b"\0" + listed, b"\1" + denial, b"\2" + denial, b"\3" + listed, b"\4" + pack([denial])]


def read_deny_state(data: bytes) -> object:
    return deny.DenySet.from_bytes(data[1:] if data[:1] == b"\0" else _sealed(data[1:]))


def deny_state_seeds() -> list[bytes]:
    state = deny.DenySet().with_statement(stated("deny"), a_realm()[1]).to_bytes()
    return [b"\0" + state, b"\1" + wire.unpack(state, max_bytes=1 << 20)[2]]


def read_statements(data: bytes) -> object:
    realm, held, _, _ = a_realm()
    which, data = data[0] % 4 if data else 0, data[1:]
    if which == 0:
        return vouching.admit(held, data, "canary", NOW)
    if which == 1:
        return vouching.open_document(
            held, data, protocol.topic("desired"), {"ring": "canary"}, site="s", node="n", key=bytes(32)
        )
    names_of = {"site": "shop-7", "node": "till-1"}
    key = realm.keys["deny"][0].public.raw
    if which == 2:
        return vouching.open_own(data, protocol.topic("reported"), names_of, realm="demo", public_key=key)
    return vouching.counted(held, data, "ring-canary")


def statement_seeds() -> list[bytes]:
    realm, _, _, signed = a_realm()
    own = sign_statement("reported", golden.REPORTED.encode(), [realm.keys["deny"][0]])
    return [b"\0" + signed["directive"], b"\1" + signed["directive"], b"\2" + own, b"\3" + signed["directive"]]
