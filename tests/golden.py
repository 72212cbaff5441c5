"""One example of every format that crosses the link or a restart, and the files that hold their bytes.

`python tests/golden.py` writes the files that are missing. A file that exists is never written again: bytes that were
sent once must be read for ever, so changing one is a decision (shared/DECISIONS.md), not a test repair.
"""

from pathlib import Path

from heliograph import documents as doc
from heliograph import manifest as man
from heliograph import policy as pol
from heliograph.documents import Document
from heliograph.statement import Statement, encode
from heliograph.wire import pack

FOLDER = Path(__file__).parent / "data" / "golden"

RUN, NONCE, HANDLE = bytes(range(8)), bytes(range(16)), b"\x01\x02\x03\x04"
KEY, KEY_2 = bytes(range(32)), bytes(range(32, 64))
RELEASE, OLDER, BLOB, BASE, RECIPE, SEAL = (bytes([n]) * 32 for n in (0xA1, 0xA0, 0xB1, 0xB0, 0xC1, 0xC2))
AT = 1_795_000_000
NODE = {"realm": "demo", "site": "shop-7", "node": "till-1"}
SCOPE = NODE | {"key": KEY}

DIRECTIVE = doc.Directive(
    realm="demo", ring="canary", model="digits", release=RELEASE, number=7, action="install", expires=AT + 86_400
)
LANE_RECEIPT = doc.LaneReceipt(run=RUN, lane="audit", next=12)
DENIALS = doc.Denials(count=2, digest=bytes([0xD1]) * 32)

CERTIFIED = doc.Certified(**SCOPE, nonce=NONCE, certificate=bytes(range(250)), expires=AT + 30 * 86_400, at=AT)
DENY = doc.Deny(realm="demo", releases=(RELEASE, RECIPE), reason="wrong labels", at=AT)
DENY_KEY = doc.DenyKey(realm="demo", keys=(KEY,), keep=(OLDER,), reason="stolen", at=AT)

POLICY = pol.Policy(
    realm="demo",
    ring="early",
    number=4,
    at=AT,
    min_agent="0.1.0",
    hold_max_s=0,
    fail_mode="closed",
    max_offline_s=7 * 86_400,
    at_max_offline="fall-back",
    unproven="return",
    authority="central",
    cadence_s=86_400,
    windows=(pol.Window(opens="0 2 * * 1-5", for_s=7_200), pol.Window(opens="30 4 * * 6", for_s=60, guards=("fetch",))),
    budget=pol.Budget(day_bytes=2_000_000, month_bytes=20_000_000, full="wait"),
    pacing=pol.Pacing(nodes_at_once=10, nodes_per_hour=60, bytes_per_hour=1 << 30),
    staleness=pol.Staleness(max_minor_behind=2, within_s=604_800, security_within_s=86_400),
    telemetry=pol.Telemetry(lanes=("incident", "audit"), redact=("who", "audit.why"), keep_days=90),
    limits={"realtime": pol.Limits(concurrency=2, queue=8, deadline_ms=150), "batch": pol.Limits(queue=0)},
    immediate=(pol.Immediate(item="safety filter of digits", converge_s=900),),
    drills=pol.Drills(every_days=90),
    models={
        "digits": pol.ModelRules(
            floor="1.2.0",
            security={"1.4.1": AT - 3_600},
            gates=(man.Gate(name="p95-ms", limit=15.0, min_samples=100),),
            compatible={"1.4.0": man.Compatible(config=man.Span(min=2, max=9), policy=man.Span(min=4))},
            authority="hybrid",
            fail_mode="safe",
            max_offline_s=3_600,
            at_max_offline="stop",
            unproven="extend",
            cadence_s=0,
        ),
        "faces": pol.ModelRules(),
    },
)
CONFIG = pol.Config(
    realm="demo",
    model="digits",
    number=2,
    at=AT,
    generation=1,
    thresholds={"accept": 0.85},
    flags={"show-alternatives": False},
    pre={"invert": True, "gain": 1.5, "size": 16, "mode": "centre"},
    post={"top": 3},
)

DOCUMENTS: dict[str, Document] = {
    "policy": POLICY,
    "config": CONFIG,
    "deny": DENY,
    "deny-key": DENY_KEY,
    "deny-all": doc.DenyAll(
        statements=(
            encode(Statement("deny-key", DENY_KEY.encode(), ((KEY, bytes([5]) * 64), (KEY_2, bytes([6]) * 64)))),
            encode(Statement("deny", DENY.encode(), ((KEY, bytes([5]) * 64),))),
        ),
        older=doc.OlderDenials(length=400, sha256=BLOB),
    ),
    "directive": DIRECTIVE,
    "assigned": doc.Assignment(
        **SCOPE,
        number=3,
        ring="early",
        labels={"kind": "till"},
        pins={"digits": "1.0.0"},
        commands=(doc.Command(number=1, kind="drill", model="digits"), doc.Command(number=2, kind="report")),
    ),
    "offer": doc.Offer(
        **SCOPE,
        run=RUN,
        n=5,
        model="digits",
        release=RELEASE,
        expires=AT + 60,
        ways=(
            doc.Way(kind="full", blob=BLOB, bytes=41_000),
            doc.Way(
                kind="delta",
                blob=BLOB,
                bytes=4_100,
                base=BASE,
                recipe=doc.RecipeRef(length=210, sha256=RECIPE),
                seal=doc.SealRef(length=190, sha256=SEAL),
            ),
        ),
        grant=doc.Grant(model="digits", epoch=3, box=bytes(range(80))),
    ),
    "receipt": doc.Receipt(**SCOPE, run=RUN, lane="incident", next=4),
    "reply": doc.Reply(
        **SCOPE,
        nonce=NONCE,
        at=AT,
        heads=doc.Heads(
            deny=DENIALS, policy={"canary": 1}, config={"digits": 2}, directives={"canary": bytes([0xE1]) * 32}
        ),
        acked=(LANE_RECEIPT,),
        documents=(("desired/canary", b"\x90"), ("assigned", b"\x01\x02")),
        more=True,
    ),
    "chunk": doc.Chunk(handle=HANDLE, offset=8192, bytes=bytes(range(256)) * 2),
    "chunk-page": doc.Chunk(handle=HANDLE, page=1, bytes=bytes(range(16)) * 3),
    "hello": doc.Hello(
        run=RUN,
        nonce=NONCE,
        agent="0.1.0",
        schemas={"statement": 1, "manifest": 1, "recipe": 1, "records": 1},
        hardware=doc.Hardware(arch="aarch64", memory_bytes=1 << 30, runtimes={"tflite": "2.14.0"}),
        tuf={"root": 1, "timestamp": 9, "snapshot": 4, "targets": 2},
        deny=DENIALS,
        numbers=doc.Numbers(policy=1, config={"digits": 2}, directives={"digits": 6}, assignment=3),
        acked={"audit": LANE_RECEIPT},
        lacks=doc.Numbers(policy=1, config={"digits": 1}),
    ),
    "ask": doc.Ask(
        run=RUN, n=5, model="digits", release=RELEASE, bases=(BASE,), free_bytes=1 << 33, link="2g", budget_left=10**6
    ),
    "want": doc.Want(handle=HANDLE, blob=BLOB, pages=(0, 2), ranges=((0, 4), (300, 8))),
    "reported": doc.Reported(
        **NODE,
        run=RUN,
        n=6,
        estimate=AT,
        agent="0.1.0",
        schemas={"statement": 1},
        ring="canary",
        assignment=3,
        tuf={"root": 1, "timestamp": 9},
        deny=DENIALS,
        bytes_received=123_456,
        policy=1,
        declined=(doc.Declined(document="config/digits", number=3, reason="config 3 needs agent 9, this is 0.1.0"),),
        spent=doc.Spent(day=4_000, month=90_000),
        done=2,
        clock="the wall clock is 86400 s behind the time by what was signed: it is ignored",
        models={
            "digits": doc.ModelReport(
                phase="proving",
                tuple=doc.Tuple(release=RELEASE, config=2, policy=1),
                since=AT - 3_600,
                fallback=doc.Tuple(release=OLDER),
                held=(OLDER, RELEASE),
                refused=(doc.Refusal(release=BLOB, number=5, reason="golden outputs differ by 3"),),
                verdict="unproven",
                stale=("2 minor versions behind",),
            ),
            "faces": doc.ModelReport(phase="checking", waiting="no offer yet"),
        },
    ),
    "records": doc.Records(
        **NODE,
        run=RUN,
        lane="metric",
        first=40,
        rows=((1, "latency", AT, {"p95_ms": 4.5, "n": 100}), (3, "gap", AT, {})),
    ),
    "enroll": doc.Enroll(token=KEY_2, key=KEY, nonce=NONCE),
    "renew": doc.Renew(**NODE, nonce=NONCE, challenge=NONCE[::-1]),
    "certified": CERTIFIED,
    "refused": doc.Refused(**SCOPE, nonce=NONCE, reason="shop-7/till-1 brought a token that has expired"),
}

MANIFEST = man.Manifest(
    model="digits",
    version="1.4.0",
    files=(
        man.File(name="model.tflite", length=(1 << 20) + 1, sha256=BLOB, pages=(bytes([1]) * 16, bytes([2]) * 16)),
        man.File(name="golden/inputs.json", length=0, sha256=BASE, pages=()),
        man.File(name="golden/outputs.json", length=9, sha256=RECIPE, pages=(bytes([3]) * 16,)),
    ),
    variants=(man.Variant(name="int8", files=("model.tflite",), min_runtime="2.14", arch=("aarch64", "x86_64")),),
    schema=man.Schema(feature="image-16x16", generations=(1, 2)),
    compatible=man.Compatible(config=man.Span(min=1, max=4)),
    provenance=man.Provenance(dataset="UCI optical digits"),
    gates=(man.Gate(name="p95-ms", limit=20.0, min_samples=50),),
    golden=man.Golden(inputs="golden/inputs.json", outputs="golden/outputs.json", tolerance=1.0),
    evaluation=man.Evaluation(data="golden/inputs.json", floor=0.95),
)

CONFIDENTIAL = man.Manifest.model_validate(
    MANIFEST.model_dump(by_alias=True) | {"confidential": True, "crit": ("confidential",)}
)

STATEMENT = Statement("directive", DIRECTIVE.encode(), ((KEY, bytes([5]) * 64), (KEY_2, bytes([6]) * 64)))
DESIRED = pack([encode(STATEMENT)])
"""Payload of `desired/<ring>`: a list of envelopes."""


FILES = {"certified": "certified-2", "hello": "hello-2", "reported": "reported-3", "offer": "offer-2"}
"""File stem of what grew since its first golden file was written; of all else it is the name."""
REPORTED = DOCUMENTS["reported"]
assert isinstance(REPORTED, doc.Reported)
OFFER = DOCUMENTS["offer"]
assert isinstance(OFFER, doc.Offer)
EARLIER: dict[str, Document] = {
    "hello": DOCUMENTS["hello"].model_copy(update={"lacks": doc.Numbers()}),
    "offer": OFFER.model_copy(
        update={"ways": tuple(way.model_copy(update={"seal": None}) for way in OFFER.ways), "grant": None}
    ),
    "certified": CERTIFIED.model_copy(update={"at": 0}),
    "reported-2": REPORTED.model_copy(update={"clock": ""}),
    "reported": REPORTED.model_copy(
        update={
            "policy": 0,
            "declined": (),
            "spent": doc.Spent(),
            "done": 0,
            "clock": "",
            "models": {name: model.model_copy(update={"stale": ()}) for name, model in REPORTED.models.items()},
        }
    ),
}
"""File stem to what this version reads in bytes that only earlier ones wrote: what came since has its default."""


def encoded() -> dict[str, bytes]:
    """File stem to the bytes this version writes."""
    rest = {
        "manifest": MANIFEST.encode(),
        "manifest-2": CONFIDENTIAL.encode(),
        "statement": encode(STATEMENT),
        "desired": DESIRED,
    }
    return {FILES.get(name, name): document.encode() for name, document in DOCUMENTS.items()} | rest


def stored(name: str) -> bytes:
    """The bytes of an example as this version writes it."""
    return file_bytes(FILES.get(name, name))


def file_bytes(stem: str) -> bytes:
    """The bytes of a golden file."""
    return (FOLDER / f"{stem}.msgpack").read_bytes()


def main() -> None:
    """Writes the golden files that are missing."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, data in encoded().items():
        path = FOLDER / f"{name}.msgpack"
        if not path.exists():
            path.write_bytes(data)
            print(f"wrote {path.name}: {len(data)} bytes")


if __name__ == "__main__":
    main()
