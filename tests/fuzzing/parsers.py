"""One table: each parser, the errors it may raise on any bytes, and good inputs to begin from.

`covers` names the functions that an entry exercises, as `module:qualified name`; a test finds every parse-like public
function of a pure module among them. Files that operators write are parsed from a folder in memory.
"""

import atexit
import base64
import json
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import zstandard
from tuf.api.metadata import Root, Snapshot, Targets, Timestamp

import golden
import modelfiles
import realms
from heliograph import deny, documents, metadata, names, protocol, sealing, statement, trust, vouching, wire
from heliograph.blob import LEAF_BYTES, Digest, check_page, describe, page_of, sha256, short_digest
from heliograph.delta import diff, numeric
from heliograph.delta import mixture as mixtures
from heliograph.delta import recipe as recipes
from heliograph.delta.dtypes import Dtype
from heliograph.delta.edits import Edit, Run, encoded, run_streams
from heliograph.delta.packing import lzma_packed
from heliograph.delta.patch import dictionary, rebuild_segment
from heliograph.delta.tensors import tables
from heliograph.documents import Chunk, Denials, Document
from heliograph.errors import ConfigError, HeliographError, IntegrityError, RefusedError, TrustError
from heliograph.lab.link import profile_from_toml
from heliograph.manifest import Manifest
from heliograph.metadata import heads_from_json, load
from heliograph.policy import config_from_table, policy_from_table
from heliograph.signing import PrivateKey, sign_statement
from heliograph.sketch import Sketch
from heliograph.toml import parse_toml
from heliograph.transfer import BlobFetch
from heliograph.wire import compress, pack
from heliograph.workflow import Workflow
from heliograph_hub import bundle, figures
from heliograph_hub.commands import carried, offline
from heliograph_site.folder import JOIN_PREFIX, JoinString, read_node_file
from heliograph_site.holdings import Sidecar
from heliograph_site.serving import golden as golden_files
from heliograph_site.serving import inference, tuned
from heliograph_site.serving.inference import RequestError

OURS = (TrustError, IntegrityError)
NOW = realms.NOW
SHM = Path("/dev/shm")


@dataclass(frozen=True)
class Parser:
    """One way in for bytes.

    Attributes:
        parse: takes any bytes; what it returns doesn't matter.
        errors: all that it may raise.
        seeds: inputs that it takes, to be spoilt.
        covers: the functions it stands for.
        max_bytes: longest input worth trying: beyond the parser's own bound nothing more happens.
        share: of the inputs tried, against 1.0 for the others; slow ones get fewer.
    """

    parse: Callable[[bytes], object]
    errors: tuple[type[HeliographError], ...]
    seeds: Callable[[], list[bytes]]
    covers: tuple[str, ...]
    max_bytes: int = 70_000
    share: float = 1.0


@cache
def _realm() -> tuple[realms.Realm, trust.TrustedSet, list[bytes], dict[str, bytes]]:
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


def _stated(name: str) -> bytes:
    return _realm()[3][name]


def _decoders() -> list[type[Document]]:
    found: dict[str, type[Document]] = {}
    waiting = [Document]
    while waiting:
        for kind in waiting.pop().__subclasses__():
            waiting.append(kind)
            if kind.__module__.startswith("heliograph"):
                found[f"{kind.__module__}.{kind.__name__}"] = kind
    return [found[name] for name in sorted(found)]


@cache
def _kinds() -> tuple[type[Document], ...]:
    return tuple(_decoders())


def _document(data: bytes) -> object:
    """The first byte says which."""
    kinds = _kinds()
    return kinds[data[0] % len(kinds)].decode(data[1:]) if data else None


def _document_seeds() -> list[bytes]:
    kinds = _kinds()
    examples = [*golden.DOCUMENTS.values(), golden.DENY, golden.DENY_KEY, golden.POLICY, golden.CONFIG]
    return [bytes([kinds.index(type(example))]) + example.encode() for example in examples]


@cache
def _delta() -> tuple[recipes.Recipe, bytes, bytes]:
    old = b"".join(sha256(bytes([n % 250, n // 250])) for n in range(3000))
    new = old[:40_000] + b"changed" * 300 + old[42_000:]
    recipe, patch = diff.make(old, new)
    return recipe, patch, old


def _first_recipe() -> bytes:
    return (Path(__file__).parents[1] / "data" / "golden" / "recipe.zst").read_bytes()


def _patch(data: bytes) -> object:
    """The first byte says how long the segment is to be, and whether it has a dictionary."""
    old = _delta()[2]
    length = 1 << (data[0] % 23 if data else 0)
    op, spans = (recipes.DICT, ((0, min(len(old), 60_000)),)) if data[:1] > b"\x80" else (recipes.FULL, ())
    segment = recipes.Segment(length, op, spans, (0, len(data[1:])), short_digest(bytes(length)))
    return rebuild_segment(segment, lambda at, size: old[at : at + size], data[1:])


_OPS = (
    recipes.SUB, recipes.SUB_RANS, recipes.XOR, recipes.SHUFFLE, recipes.TUPLES, recipes.XZ, recipes.EDITS,
    recipes.MIXED,
)  # fmt: skip


def _mixed(dtype: int, length: int, lanes: int) -> bytes:
    """Parameters of a mixture of blocks: 16 bits and 5 of some type."""
    parts = ((Dtype.F16, 2), (Dtype(1 + dtype % 14), 5))
    types = len({of for of, _ in parts})
    return mixtures.encode(mixtures.Mixture((mixtures.Stretch(length, parts),), (lanes % 6,) * types))


def _elements(data: bytes) -> object:
    """The first bytes say which operation, over which elements, how many bytes of them, and their second parameter."""
    op, dtype, size, param, *_ = data[:4].ljust(4, b"\0")
    op = _OPS[op % len(_OPS)]
    old = _delta()[2]
    length = 1 + 37 * size
    params = {
        recipes.TUPLES: bytes([param % 2]),
        recipes.EDITS: bytes([1 << param % 3, param % 2]),
        recipes.XZ: b"",
        recipes.MIXED: _mixed(dtype, length, param),
        recipes.SHUFFLE: bytes([1 + dtype % 14, param % 2]),
    }
    one = bytes([1 + dtype % 14]) + (bytes([param % 13]) if op == recipes.SUB_RANS else b"")
    spans: tuple[tuple[int, int], ...] = ((0, length),) if length <= 100 else ((0, 100), (7, length - 100))
    if op in (recipes.SHUFFLE, recipes.XZ):
        spans = ()
    segment = recipes.Segment(length, op, spans, (0, len(data[4:])), short_digest(bytes(length)), params.get(op, one))
    return rebuild_segment(segment, lambda at, count: old[at : at + count], data[4:])


def _elements_seeds() -> list[bytes]:
    new = bytes(1 + 37 * 60)
    old = _delta()[2][:100] + _delta()[2][7 : 7 + len(new) - 100]
    frame = zstandard.ZstdCompressor().compress

    def begin(op: int, dtype: Dtype, param: int = 0) -> bytes:
        return bytes([op, dtype - 1, 60, param])

    dtypes = (Dtype.I8, Dtype.I4, Dtype.BF16, Dtype.F32, Dtype.F64)
    coded = [begin(1, dtype, 2) + numeric.rans_patch(old, new, dtype, 2) for dtype in dtypes]
    subs = [begin(0, dtype) + frame(numeric.sub_plain(old, new, dtype)) for dtype in dtypes]
    xors = [begin(2, dtype) + frame(numeric.xor_plain(old, new, dtype)) for dtype in dtypes]
    moved = [
        begin(6, Dtype.U8, param)
        + pack(b"".join(run_streams([Run(0, 9, 2000, 212)], old, old[:9] + new[9:], 1 << param % 3)))
        for param, pack in ((0, frame), (1, lzma_packed), (2, frame))
    ]
    mixed = []
    for lanes in (0, 3):
        mixture = mixtures.parse(_mixed(Dtype.I8 - 1, len(new), lanes), len(new))
        mixed.append(begin(7, Dtype.I8, lanes) + numeric.mixed_patch(old, new, mixture))
    tuples = begin(4, Dtype.U8) + frame(encoded([Edit(0, 2000, 221)], old, new))
    return [
        *coded,
        *subs,
        *xors,
        *moved,
        *mixed,
        begin(3, Dtype.F32) + frame(new),
        tuples,
        begin(5, Dtype.U8) + lzma_packed(new),
    ]


def _patch_seeds() -> list[bytes]:
    out = bytes(1 << 16)
    by_dict = zstandard.ZstdCompressor(dict_data=dictionary(_delta()[2][:60_000]))
    return [b"\x10" + zstandard.ZstdCompressor().compress(out), b"\x94" + by_dict.compress(bytes(1 << 10))]


def _model_files() -> list[bytes]:
    arrays = [modelfiles.Array(f"layer.{n}", "F32", (4, n), bytes(16 * n)) for n in range(1, 9)]
    plain = [modelfiles.safetensors(arrays), modelfiles.gguf(arrays, words=["a", "b"]), modelfiles.tflite(arrays),
             modelfiles.tflite(arrays, is_outside=True), modelfiles.onnx(arrays, arrays, deep=3)]  # fmt: skip
    members = [(f"{number}.model", data) for number, data in enumerate(plain)]
    return [*plain, modelfiles.tar(members), modelfiles.zipped(members), modelfiles.zipped(members, is_large=True)]


_FILES = (Root, Timestamp, Snapshot, Targets)


def _metadata(data: bytes) -> object:
    which = data[0] if data else 0
    loaded = load(_FILES[which % 4], data[1:], "role", is_own_only=which < 128)
    if which % 4 == 1:
        return metadata.custom_of(loaded.signed)  # type: ignore[arg-type]
    return metadata.signed_bytes(loaded, "role")  # type: ignore[arg-type]


def _metadata_seeds() -> list[bytes]:
    stamp, snapshot, targets, *rest, root = _realm()[2]
    return [b"\0" + root, b"\1" + stamp, b"\2" + snapshot, b"\3" + targets, b"\x83" + rest[0]]


def _set_plain(data: bytes) -> object:
    return trust.with_set(_realm()[1], compress(data, 1), NOW)


def _set_seeds() -> list[bytes]:
    return [wire.decompress(_stated("set"), max_bytes=1 << 20)]


def _seal() -> sealing.Seal:
    blob, _ = sealing.describe_sealed(bytes(32), bytes(5000))
    return sealing.Seal("digits", 3, (blob,))


def _sealed_leaves(data: bytes) -> bytes:
    """A run of leaves, and a span of a blob that this would be."""
    leaves = -(-len(data) // LEAF_BYTES)
    length = max(0, len(data) - leaves * sealing.TAG_BYTES)
    sealing.open_span(bytes(32), length, length // 3, length // 3, lambda at, count: data[at : at + count])
    return sealing.open_range(bytes(32), 0, data)


def _sealed(body: bytes) -> bytes:
    return pack([1, sha256(body), body])


def _state(data: bytes) -> object:
    return trust.state_from_bytes(data[1:] if data[:1] == b"\0" else _sealed(data[1:]))


def _state_seeds() -> list[bytes]:
    state = trust.state_to_bytes(_realm()[1])
    return [b"\0" + state, b"\1" + wire.unpack(state, max_bytes=1 << 20)[2]]


def _trust(data: bytes) -> object:
    _, held, _, _ = _realm()
    which, data = data[0] % 4 if data else 0, data[1:]
    if which == 0:
        return trust.with_root(held, data)
    if which == 1:
        return trust.with_head(held, data, NOW)
    if which == 2:
        return trust.time_in_head(held, data)
    return trust.bootstrap(data, sha256(data))


def _trust_seeds() -> list[bytes]:
    stamp, *_, root = _realm()[2]
    return [b"\0" + root, b"\1" + stamp, b"\2" + stamp, b"\3" + root]


def _workflow(data: bytes) -> object:
    _, held, _, _ = _realm()
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


def _workflow_seeds() -> list[bytes]:
    stamp, snapshot, targets, *rest, root = _realm()[2]
    given = [root, stamp, stamp, stamp, snapshot, snapshot, targets, rest[0], targets]
    return [bytes([at]) + data for at, data in enumerate(given)]


def _denials(data: bytes) -> object:
    _, held, _, _ = _realm()
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


def _denial_seeds() -> list[bytes]:
    denial = _stated("deny")
    listed = documents.DenyAll(statements=(denial,)).encode()
    return [b"\0" + listed, b"\1" + denial, b"\2" + denial, b"\3" + listed, b"\4" + pack([denial])]


def _deny_state(data: bytes) -> object:
    return deny.DenySet.from_bytes(data[1:] if data[:1] == b"\0" else _sealed(data[1:]))


def _deny_state_seeds() -> list[bytes]:
    state = deny.DenySet().with_statement(_stated("deny"), _realm()[1]).to_bytes()
    return [b"\0" + state, b"\1" + wire.unpack(state, max_bytes=1 << 20)[2]]


def _statements(data: bytes) -> object:
    realm, held, _, _ = _realm()
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


def _statement_seeds() -> list[bytes]:
    realm, _, _, signed = _realm()
    own = sign_statement("reported", golden.REPORTED.encode(), [realm.keys["deny"][0]])
    return [b"\0" + signed["directive"], b"\1" + signed["directive"], b"\2" + own, b"\3" + signed["directive"]]


_POLICY = """ring = "canary"
hold_max_s = 5
[models.digits]
floor = "1.0.0"
[[windows]]
opens = "0 2 * * *"
for_s = 60
"""
_CONFIG = 'model = "digits"\ngeneration = 1\n[thresholds]\naccept = 0.5\n[pre]\nmode = "centre"\n'
_RELEASE = """model = "digits"
version = "1.0.0"
[golden]
inputs = "in.json"
outputs = "out.json"
[[gates]]
name = "p95-ms"
limit = 5
"""
_NODE = 'realm = "demo"\nsite = "s"\nnode = "n"\nhost = "h"\nport = 1883\nhttp_port = 0\nroot = "' + "0" * 64 + '"\n'
_PROFILE = 'note = "n"\nrate_bit_s = 1000\n[up]\ndelay_s = 0.5\n'


def _toml(data: bytes) -> object:
    which, data = data[0] % 3 if data else 0, data[1:]
    table = parse_toml(data, "file")
    if which == 0:
        return policy_from_table(table, realm="demo", number=1, at=1)
    if which == 1:
        return config_from_table(table, realm="demo", number=1, at=1)
    return profile_from_toml("x", data.decode())


@cache
def _folder() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="fuzz-", dir=SHM if SHM.is_dir() else None))
    atexit.register(shutil.rmtree, folder, True)
    tensor = {"name": "x", "datatype": "INT8", "shape": [2], "data": [1, 2]}
    (folder / "bundle").mkdir()
    (folder / "bundle" / "model.tflite").write_bytes(b"model")
    (folder / "bundle" / "in.json").write_text(json.dumps({"requests": [{"inputs": [tensor]}]}))
    (folder / "bundle" / "out.json").write_text(json.dumps({"responses": [{"outputs": [tensor]}]}))
    (folder / "node").mkdir()
    return folder


def _bundle(data: bytes) -> object:
    """release.toml, or one of the golden files."""
    folder = _folder() / "bundle"
    name = ("release.toml", "release.toml", "in.json", "out.json")[data[0] % 4 if data else 0]
    good = {path: path.read_bytes() for path in folder.iterdir()}
    (folder / "release.toml").write_text(_RELEASE)
    try:
        (folder / name).write_bytes(data[1:])
        return bundle.pack(folder)
    finally:
        for path, content in good.items():
            path.write_bytes(content)


def _bundle_seeds() -> list[bytes]:
    golden_in = (_folder() / "bundle" / "in.json").read_bytes()
    return [b"\0" + _RELEASE.encode(), b"\2" + golden_in, b"\3" + (_folder() / "bundle" / "out.json").read_bytes()]


def _node_file(data: bytes) -> object:
    (_folder() / "node" / "node.toml").write_bytes(data)
    return read_node_file(_folder() / "node")


def _carried(data: bytes) -> object:
    path = _folder() / "carried"
    path.write_bytes(data[1:])
    return (carried.read if data[:1] == b"\0" else offline.read)(path)


def _carried_seeds() -> list[bytes]:
    payload = golden.DIRECTIVE.encode().hex()
    row = {"payload": golden.DOCUMENTS["assigned"].encode().hex(), "signatures": {"00" * 32: "11" * 64}}
    assignments = {"format": 1, "type": "assignments", "site": "shop-7", "assignments": [row]}
    directive = {"format": 1, "type": "directive", "release": "digits@1.0.0", "payload": payload, "signatures": {}}
    return [b"\0" + json.dumps(assignments).encode(), b"\1" + json.dumps(directive).encode()]


def _join(data: bytes) -> object:
    if data[:1] == b"\0":  # past base64, which would spoil nearly all
        return JoinString.parse(JOIN_PREFIX + base64.urlsafe_b64encode(data[1:]).decode().rstrip("="))
    return JoinString.parse(data.decode("latin-1"))


def _join_seeds() -> list[bytes]:
    found = JoinString("host", 1883, "demo", "s", "n", bytes(32), bytes(32)).encode()
    body = found.removeprefix(JOIN_PREFIX)
    return [found.encode(), b"\0" + base64.urlsafe_b64decode(body + "=" * (-len(body) % 4))]


def _names(data: bytes) -> object:
    text = data.decode("latin-1")
    protocol.parse_topic(text, "demo")
    for parse in (names.parse_node, names.parse_release, lambda value: names.check_name(value, "model")):
        try:
            parse(text)
        except ConfigError:
            pass
    return protocol.below_realm(text)


def _request(data: bytes) -> object:
    """The first byte says whether the header that tells JSON from raw bytes came."""
    if data[:1] == b"\0":
        return inference.parse_request(data[1:])
    if data[:1] == b"\1":
        return inference.outputs_from_json(inference.json_object(data[1:], "answer"), memoryview(b""))
    header, _, body = data[1:].partition(b"\n")
    return inference.parse_request(body, header.decode("latin-1"))


def _request_seeds() -> list[bytes]:
    tensor = {"name": "x", "datatype": "FP32", "shape": [2, 2], "data": [[1.5, 2], [3, 4]]}
    plain = json.dumps({"id": "1", "inputs": [tensor], "outputs": [{"name": "y"}]}).encode()
    raw = {"name": "x", "datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": 6}}
    head = json.dumps({"inputs": [raw], "parameters": {"binary_data_output": True}}).encode()
    return [b"\0" + plain, b"\1" + json.dumps({"outputs": [tensor]}).encode(),
            b"\2" + str(len(head)).encode() + b"\n" + head + b"\2\0\0\0ab"]  # fmt: skip


def _golden_files(data: bytes) -> object:
    inputs, _, outputs = data.partition(b"\n\n")
    return golden_files.parse(inputs, outputs)


def _golden_seeds() -> list[bytes]:
    folder = _folder() / "bundle"
    return [(folder / "in.json").read_bytes() + b"\n\n" + (folder / "out.json").read_bytes()]


def _tuned(data: bytes) -> object:
    if data[:1] == b"\0":
        return tuned.opened(data[1:])
    return tuned.parse_tuned(inference.json_object(data[1:], "body"))


def _tuned_seeds() -> list[bytes]:
    signed = _realm()[0].sign("policy", "config", golden.CONFIG)
    return [b"\0" + signed, b"\1" + json.dumps(tuned.Tuned(1, 2).row()).encode()]


@cache
def _paged() -> tuple[bytes, bytes, tuple[bytes, ...]]:
    content = b"".join(sha256(bytes([n % 250, n // 250])) for n in range(2000))
    return content, *describe(content)


def _chunk(data: bytes) -> object:
    content, digest, pages = _paged()
    if data[:1] == b"\0":
        return check_page(data[1:], 0, len(content), pages)
    fetch = BlobFetch(names.Digest(digest), len(content), pages, b"hndl")
    fetch.accept(Chunk(handle=b"hndl", page=0, bytes=page_of(content)))
    return fetch.accept(Chunk.decode(data[1:]))


def _chunk_seeds() -> list[bytes]:
    content, _, _ = _paged()
    return [b"\0" + page_of(content), b"\1" + Chunk(handle=b"hndl", offset=4096, bytes=content[4096:12288]).encode(),
            b"\1" + Chunk(handle=b"hndl", page=0, bytes=page_of(content)).encode()]  # fmt: skip


def _raw(data: bytes) -> object:
    codes = inference.DATATYPES
    inference.check_raw("x", codes[data[0] % len(codes)] if data else "BYTES", (3,), data[1:])
    return None


def _figures(data: bytes) -> object:
    return figures.figures([(1, wire.unpack(data))])


def _heads(data: bytes) -> object:
    return heads_from_json(inference.json_object(data, "heads"))


# fmt: off
PARSERS: dict[str, Parser] = {
    "msgpack": Parser(wire.unpack, (IntegrityError,), lambda: [golden.POLICY.encode(), b"\x93\x01\x02\x03"],
                      ("heliograph.wire:unpack",)),
    "zstd": Parser(lambda data: wire.decompress(data, max_bytes=1 << 20), (IntegrityError,),
                   lambda: [compress(bytes(1 << 18)), compress(golden.POLICY.encode())],
                   ("heliograph.wire:decompress",)),
    "statement": Parser(statement.parse, (IntegrityError,), lambda: [_stated("directive"), _stated("deny")],
                        ("heliograph.statement:parse",)),
    "documents": Parser(_document, (IntegrityError,), _document_seeds, ("heliograph.documents:Document.decode",)),
    "manifest": Parser(lambda data: Manifest.parse(data, sha256(data), len(data)), (IntegrityError,),
                       lambda: [golden.MANIFEST.encode()],
                       ("heliograph.manifest:Manifest.parse", "heliograph.trust:Target.open_manifest"), 1 << 20),
    "recipe": Parser(recipes.parse, (IntegrityError,),
                     lambda: [recipes.encode(_delta()[0]), recipes.encode(recipes.with_patch(*_delta()[:2])[0]),
                              _first_recipe()],
                     ("heliograph.delta.recipe:parse",), 1 << 20),
    "recipe of format 1, unpacked": Parser(lambda data: recipes.parse(compress(data, 1)), (IntegrityError,),
                                           lambda: [wire.decompress(_first_recipe(), max_bytes=1 << 20)],
                                           ("heliograph.delta.recipe:parse",), 1 << 20),
    "seal": Parser(sealing.parse, (IntegrityError,), lambda: [sealing.encode(_seal())],
                   ("heliograph.sealing:parse",), 1 << 20),
    "seal, unpacked": Parser(lambda data: sealing.parse(compress(data, 1)), (IntegrityError,),
                             lambda: [wire.decompress(sealing.encode(_seal()), max_bytes=1 << 20)],
                             ("heliograph.sealing:parse",), 1 << 20),
    "sealed leaves": Parser(_sealed_leaves, (IntegrityError,), lambda: [sealing.seal_range(bytes(32), 0, bytes(9000))],
                            ("heliograph.sealing:open_leaf", "heliograph.sealing:open_range",
                             "heliograph.sealing:open_span"), 1 << 18),
    "sidecar": Parser(Sidecar.parse, (IntegrityError,),
                      lambda: [Sidecar("digits", 3, bytes(80), 700, Digest(bytes(32))).encode()],
                      ("heliograph_site.holdings:Sidecar.parse",)),
    "box": Parser(PrivateKey.generate(bytes(32)).open_box, (IntegrityError,),
                  lambda: [sealing.grant_box(bytes(32), PrivateKey.generate(bytes(32)).public.raw, bytes(32))],
                  ("heliograph.signing:PrivateKey.open_box",)),
    "patch of elements": Parser(_elements, (IntegrityError,), _elements_seeds, (
        "heliograph.delta.numeric:sub_rebuilt", "heliograph.delta.numeric:rans_rebuilt",
        "heliograph.delta.numeric:xor_rebuilt",
        "heliograph.delta.numeric:mixed_rebuilt", "heliograph.delta.numeric:shuffle_rebuilt",
        "heliograph.delta.rans:opened", "heliograph.delta.edits:rebuilt", "heliograph.delta.edits:run_rebuilt",
        "heliograph.delta.packing:unpacked"),
        1 << 14, 0.5),
    "patch": Parser(_patch, (IntegrityError,), _patch_seeds, ("heliograph.delta.patch:rebuild_segment",), 1 << 18),
    "tensor tables": Parser(tables, (), _model_files, (
        "heliograph.delta.tensors:tables", "heliograph.delta.tensors.table:View.read"), 1 << 17, 0.5),
    "metadata": Parser(_metadata, OURS, _metadata_seeds, (
        "heliograph.metadata:load", "heliograph.metadata:load_listed"), 1 << 20),
    "heads": Parser(_heads, (IntegrityError, RequestError),
                    lambda: [json.dumps(metadata.heads_to_json(protocol_heads())).encode()],
                    ("heliograph.metadata:heads_from_json",)),
    "set": Parser(lambda data: trust.with_set(_realm()[1], data, NOW), OURS, lambda: [_stated("set")],
                  ("heliograph.trust:with_set",)),
    "set, unpacked": Parser(_set_plain, OURS, _set_seeds, ("heliograph.trust:with_set",), 1 << 20),
    "roots and heads": Parser(_trust, OURS, _trust_seeds, (
        "heliograph.trust:with_root", "heliograph.trust:with_head", "heliograph.trust:bootstrap"), share=0.5),
    "trust state": Parser(_state, OURS, _state_seeds, ("heliograph.trust:state_from_bytes",), 1 << 20, 0.5),
    "workflow": Parser(_workflow, OURS, _workflow_seeds, tuple(f"heliograph.workflow:Workflow.{name}" for name in (
        "with_root", "with_timestamp", "with_timestamp_before", "open_timestamp", "with_snapshot",
        "with_snapshot_before", "with_targets", "with_delegated")), share=0.5),
    "denials": Parser(_denials, OURS, _denial_seeds, (
        "heliograph.deny:DenySet.with_list", "heliograph.deny:DenySet.with_statement", "heliograph.deny:DenySet.recall",
    )),
    "deny state": Parser(_deny_state, OURS, _deny_state_seeds, ("heliograph.deny:DenySet.from_bytes",), 1 << 20),
    "signed documents": Parser(_statements, OURS, _statement_seeds, (
        "heliograph.vouching:open_document", "heliograph.vouching:open_own")),
    "chunks": Parser(_chunk, (IntegrityError,), _chunk_seeds, ("heliograph.blob:check_page",)),
    "sketch": Parser(Sketch.decode, (IntegrityError,), lambda: [golden.file_bytes("sketch")],
                     ("heliograph.sketch:Sketch.decode",), 500),
    "figures": Parser(_figures, (IntegrityError,), lambda: [pack({"model": "digits", "release": bytes(32),
                      "requests": 3, "latency": golden.file_bytes("sketch"), "span": [1, 2]})], ()),
    "key file": Parser(lambda data: PrivateKey.from_json(data, "file"), (ConfigError,),
                       lambda: [PrivateKey.generate(bytes(32)).to_json()],
                       ("heliograph.signing:PrivateKey.from_json",)),
    "policy, config, profile": Parser(_toml, (ConfigError,), lambda: [
        b"\0" + _POLICY.encode(), b"\1" + _CONFIG.encode(), b"\2" + _PROFILE.encode()], (
        "heliograph.toml:parse_toml", "heliograph.policy:policy_from_table", "heliograph.policy:config_from_table",
        "heliograph.lab.link:profile_from_toml"), 1 << 18),
    "bundle": Parser(_bundle, (ConfigError, RefusedError), _bundle_seeds, (), 1 << 18, 0.1),
    "node.toml": Parser(_node_file, (ConfigError,), lambda: [_NODE.encode()], (), 1 << 18, 0.5),
    "carried files": Parser(_carried, (ConfigError,), _carried_seeds, (), 1 << 18, 0.5),
    "join string": Parser(_join, (ConfigError,), _join_seeds, ()),
    "names and topics": Parser(_names, (IntegrityError,), lambda: [b"heliograph/v1/demo/desired/canary", b"a@1.0.0"], (
        "heliograph.names:parse_node", "heliograph.names:parse_release", "heliograph.protocol:parse_topic")),
    "inference": Parser(_request, (RequestError,), _request_seeds, (
        "heliograph_site.serving.inference:parse_request", "heliograph_site.serving.inference:json_object",
        "heliograph_site.serving.inference:request_from_json", "heliograph_site.serving.inference:outputs_from_json",
    ), 1 << 20),
    "raw tensors": Parser(_raw, (RequestError,), lambda: [b"\x0c\1\0\0\0a\1\0\0\0b\1\0\0\0c"],
                          ("heliograph_site.serving.inference:check_raw",)),
    "golden files": Parser(_golden_files, (RefusedError,), _golden_seeds, ("heliograph_site.serving.golden:parse",),
                           1 << 20),
    "tuned": Parser(_tuned, (RequestError, IntegrityError), _tuned_seeds, (
        "heliograph_site.serving.tuned:opened", "heliograph_site.serving.tuned:parse_tuned")),
}
# fmt: on


def protocol_heads() -> documents.Heads:
    """Heads with something in every field."""
    digest = short_digest(b"") * 2
    return documents.Heads(
        deny=Denials(count=1, digest=digest), policy={"canary": 1}, config={"digits": 2}, directives={"canary": digest}
    )


def complaint(parser: Parser, data: bytes) -> Exception | None:
    """What a parser raises on these bytes, if it isn't one of its errors."""
    try:
        parser.parse(data)
    except parser.errors:
        return None
    except Exception as error:  # noqa: BLE001 - any other error of any kind is what is looked for
        return error
    return None
