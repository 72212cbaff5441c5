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

import golden
from fuzzing.deltas import (
    a_delta,
    apply_patch,
    elements_seeds,
    first_recipe,
    mixture_seeds,
    model_files,
    patch_seeds,
    read_mixture,
    rebuild_elements,
)
from fuzzing.trusted import (
    NOW,
    OURS,
    a_realm,
    denial_seeds,
    deny_state_seeds,
    metadata_seeds,
    read_denials,
    read_deny_state,
    read_metadata,
    read_set,
    read_state,
    read_statements,
    read_trust,
    run_workflow,
    set_seeds,
    state_seeds,
    stated,
    statement_seeds,
    trust_seeds,
    workflow_seeds,
)
from heliograph import documents, metadata, names, protocol, sealing, statement, trust, wire
from heliograph.blob import LEAF_BYTES, Digest, check_page, describe, page_of, sha256, short_digest
from heliograph.delta import recipe as recipes
from heliograph.delta.tensors import tables
from heliograph.documents import Chunk, Denials, Document
from heliograph.errors import ConfigError, HeliographError, IntegrityError, RefusedError
from heliograph.lab.link import profile_from_toml
from heliograph.manifest import Manifest
from heliograph.metadata import heads_from_json
from heliograph.policy import config_from_table, policy_from_table
from heliograph.signing import PrivateKey
from heliograph.sketch import Sketch
from heliograph.toml import parse_toml
from heliograph.transfer import BlobFetch
from heliograph.wire import compress, pack
from heliograph_hub import bundle, figures
from heliograph_hub.commands import carried, offline
from heliograph_site.folder import JOIN_PREFIX, JoinString, read_node_file
from heliograph_site.holdings import Sidecar
from heliograph_site.serving import golden as golden_files
from heliograph_site.serving import inference, tuned
from heliograph_site.serving.inference import RequestError

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


def _seal() -> sealing.Seal:
    blob, _ = sealing.describe_sealed(bytes(32), bytes(5000))
    return sealing.Seal("digits", 3, (blob,))


def _sealed_leaves(data: bytes) -> bytes:
    """A run of leaves, and a span of a blob that this would be."""
    leaves = -(-len(data) // LEAF_BYTES)
    length = max(0, len(data) - leaves * sealing.TAG_BYTES)
    sealing.open_span(bytes(32), length, length // 3, length // 3, lambda at, count: data[at : at + count])
    return sealing.open_range(bytes(32), 0, data)


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
    signed = a_realm()[0].sign("policy", "config", golden.CONFIG)
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
    "statement": Parser(statement.parse, (IntegrityError,), lambda: [stated("directive"), stated("deny")],
                        ("heliograph.statement:parse",)),
    "documents": Parser(_document, (IntegrityError,), _document_seeds, ("heliograph.documents:Document.decode",)),
    "manifest": Parser(lambda data: Manifest.parse(data, sha256(data), len(data)), (IntegrityError,),
                       lambda: [golden.MANIFEST.encode()],
                       ("heliograph.manifest:Manifest.parse", "heliograph.trust:Target.open_manifest"), 1 << 20),
    "recipe": Parser(recipes.parse, (IntegrityError,),
                     lambda: [recipes.encode(a_delta()[0]), recipes.encode(recipes.with_patch(*a_delta()[:2])[0]),
                              first_recipe()],
                     ("heliograph.delta.recipe:parse",), 1 << 20),
    "recipe of format 1, unpacked": Parser(lambda data: recipes.parse(compress(data, 1)), (IntegrityError,),
                                           lambda: [wire.decompress(first_recipe(), max_bytes=1 << 20)],
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
    "patch of elements": Parser(rebuild_elements, (IntegrityError,), elements_seeds, (
        "heliograph.delta.numeric:sub_rebuilt", "heliograph.delta.numeric:rans_rebuilt",
        "heliograph.delta.numeric:xor_rebuilt",
        "heliograph.delta.numeric:mixed_rebuilt", "heliograph.delta.numeric:shuffle_rebuilt",
        "heliograph.delta.rans:opened", "heliograph.delta.edits:rebuilt", "heliograph.delta.edits:run_rebuilt",
        "heliograph.delta.packing:unpacked"),
        1 << 14, 0.5),
    "mixture": Parser(read_mixture, (IntegrityError,), mixture_seeds, ("heliograph.delta.mixture:parse",), 4098),
    "patch": Parser(apply_patch, (IntegrityError,), patch_seeds, ("heliograph.delta.patch:rebuild_segment",), 1 << 18),
    "tensor tables": Parser(tables, (), model_files, (
        "heliograph.delta.tensors:tables", "heliograph.delta.tensors.table:View.read"), 1 << 17, 0.5),
    "metadata": Parser(read_metadata, OURS, metadata_seeds, (
        "heliograph.metadata:load", "heliograph.metadata:load_listed"), 1 << 20),
    "heads": Parser(_heads, (IntegrityError, RequestError),
                    lambda: [json.dumps(metadata.heads_to_json(protocol_heads())).encode()],
                    ("heliograph.metadata:heads_from_json",)),
    "set": Parser(lambda data: trust.with_set(a_realm()[1], data, NOW), OURS, lambda: [stated("set")],
                  ("heliograph.trust:with_set",)),
    "set, unpacked": Parser(read_set, OURS, set_seeds, ("heliograph.trust:with_set",), 1 << 20),
    "roots and heads": Parser(read_trust, OURS, trust_seeds, (
        "heliograph.trust:with_root", "heliograph.trust:with_head", "heliograph.trust:bootstrap"), share=0.5),
    "trust state": Parser(read_state, OURS, state_seeds, ("heliograph.trust:state_from_bytes",), 1 << 20, 0.5),
    "workflow": Parser(run_workflow, OURS, workflow_seeds, tuple(f"heliograph.workflow:Workflow.{name}" for name in (
        "with_root", "with_timestamp", "with_timestamp_before", "open_timestamp", "with_snapshot",
        "with_snapshot_before", "with_targets", "with_delegated")), share=0.5),
    "denials": Parser(read_denials, OURS, denial_seeds, (
        "heliograph.deny:DenySet.with_list", "heliograph.deny:DenySet.with_statement", "heliograph.deny:DenySet.recall",
    )),
    "deny state": Parser(read_deny_state, OURS, deny_state_seeds, ("heliograph.deny:DenySet.from_bytes",), 1 << 20),
    "signed documents": Parser(read_statements, OURS, statement_seeds, (
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
