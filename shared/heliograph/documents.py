"""What goes inside statements and messages: one frozen model per document of the protocol.

Broadcast documents (hub to many) ignore fields they don't know, unless `crit` names one; what a node sends forbids
them. Models are parsed once, at the edge, from verified bytes, and trusted after. Which topic, which signer and which
direction a document has stands in `heliograph.protocol`, not here.
"""

from collections.abc import Iterable
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

import heliograph
from heliograph.blob import LEAF_BYTES, MAX_UNPAGED_BYTES
from heliograph.errors import IntegrityError, shown
from heliograph.names import Name, Ring
from heliograph.sealing import GRANT_BOX_BYTES
from heliograph.statement import KEYID_BYTES
from heliograph.wire import MAX_MESSAGE_BYTES, pack, unpack

DigestField = Annotated[bytes, Field(min_length=32, max_length=32)]
Digests = tuple[DigestField, ...]
Bytes = bytes
"""So that a field may be called `bytes`."""
KeyId = Annotated[bytes, Field(min_length=KEYID_BYTES, max_length=KEYID_BYTES)]
ShortDigest = Annotated[bytes, Field(min_length=16, max_length=16)]
Run = Annotated[bytes, Field(min_length=8, max_length=8)]
"""64 random bits drawn at each start of an agent; names its records and asks."""
Nonce = Annotated[bytes, Field(min_length=16, max_length=16)]
Handle = Annotated[bytes, Field(min_length=4, max_length=4)]
Count = Annotated[int, Field(ge=0, lt=1 << 63)]
At = Annotated[int, Field(ge=0, lt=1 << 40)]
"""Seconds since 1970, UTC."""
LAST_S = 253_402_300_799
"""The last second of the year 9999: `datetime` goes no further, an `At` does."""
Text = Annotated[str, Field(max_length=400), AfterValidator(shown)]
"""Words for people; read without control characters, whoever wrote them."""
MAX_DENIAL_BYTES = 1024
"""Largest statement of type `deny` or `deny-key`."""
DenialBytes = Annotated[bytes, Field(max_length=MAX_DENIAL_BYTES)]
ModelName = Name
Lane = Literal["incident", "audit", "metric", "sample"]
LANES: tuple[Lane, ...] = ("incident", "audit", "metric", "sample")
Phase = Literal["idle", "checking", "fetching", "staging", "activating", "proving", "rolling-back", "stuck"]
Verdict = Literal["proven", "unproven", "failed"]
WayKind = Literal["full", "delta", "relay"]
WAY_KINDS: tuple[WayKind, ...] = ("full", "delta", "relay")
COMMAND_KINDS = ("drill", "rollback", "report", "abort", "forget")
MAX_CHUNK_LEAVES = 8
MAX_CHUNK_BYTES = MAX_CHUNK_LEAVES * LEAF_BYTES
MAX_RANGES = 256
"""Ranges and pages in one want, either side."""


class Document(BaseModel):
    """Base of all: frozen; the subclass says whether unknown fields are ignored."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False, hide_input_in_errors=True)

    def encode(self) -> bytes:
        """msgpack bytes, fields in their declared order."""
        return pack(self.model_dump(mode="python"))

    @classmethod
    def decode(
        cls,
        data: bytes,
        *,
        max_bytes: int = MAX_MESSAGE_BYTES,
        max_containers: int | None = None,
        max_elements: int = 4096,
    ) -> Self:
        """Parses verified (or self-contained, bounded) bytes; what is larger than a message names all three bounds.

        Raises:
            IntegrityError: not this document, out of bounds, or a `crit` field this version doesn't know.
        """
        value = unpack(data, max_bytes=max_bytes, max_containers=max_containers, max_elements=max_elements)
        if not isinstance(value, dict):
            raise IntegrityError(f"{cls.__name__.lower()} is not a map")
        value = _plain(value, MAX_DEPTH)
        crit = value.get("crit", ())
        if isinstance(crit, tuple):
            known = {field.alias or name for name, field in cls.model_fields.items()}
            unknown = [str(name) for name in crit if not isinstance(name, str) or name not in known]
            if unknown:
                number = value.get("number")
                name = cls.__name__.lower() + (f" {number}" if type(number) is int else "")
                raise IntegrityError(f"{name} needs {_shown(unknown)}, which agent {heliograph.__version__} lacks")
        try:
            return cls.model_validate(value)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            where = _shown(first["loc"], ".")
            raise IntegrityError(f"{cls.__name__.lower()} field {where or '(whole)'}: {first['msg']}") from error


MAX_DEPTH = 16
"""Levels of arrays and maps in a document."""


def _plain(value: Any, depth: int) -> Any:
    """The value with every list as a tuple (msgpack knows only arrays), bounded in depth, of plain types only."""
    if isinstance(value, list | dict) and depth == 0:
        raise IntegrityError(f"document is nested deeper than {MAX_DEPTH}")
    if isinstance(value, list):
        return tuple(_plain(item, depth - 1) for item in value)
    if isinstance(value, dict):
        if not all(isinstance(key, str) for key in value):
            raise IntegrityError("document has a map key that is not text")
        return {key: _plain(item, depth - 1) for key, item in value.items()}
    if value is None or isinstance(value, bool | int | float | str | bytes):
        return value
    raise IntegrityError("document holds an extension type")


def _shown(parts: Iterable[object], joint: str = ", ") -> str:
    """Names from outside, on one line and short enough for a log."""
    return joint.join(map(str, parts)).encode("unicode_escape").decode()[:200]


class Part(Document):
    """A part of a broadcast document: unknown fields are ignored."""

    model_config = ConfigDict(frozen=True, strict=True, extra="ignore", hide_input_in_errors=True)


class Broadcast(Part):
    """A document that an older node may meet in a newer form; `crit` names the fields it must know to obey it."""

    crit: tuple[str, ...] = ()


class NodeScoped(Broadcast):
    """A broadcast document meant for one node and the key it has now."""

    realm: Name
    site: Name
    node: Name
    key: KeyId


# --- small parts ------------------------------------------------------------------------------------------------


class Denials(Part):
    """Digest over the set of denials a party holds (SHA-256 over sorted payload digests), and how many."""

    count: Count = 0
    digest: bytes = b""


class Heads(Part):
    """What is newest, as signed in the timestamp."""

    deny: Denials = Denials()
    policy: dict[Ring, Count] = {}
    config: dict[ModelName, Count] = {}
    directives: dict[Ring, DigestField] = {}


class Numbers(Document):
    """The newest numbered documents a node holds; what is newer comes in the reply."""

    policy: Count = 0
    config: dict[ModelName, Count] = {}
    directives: dict[ModelName, Count] = {}
    assignment: Count = 0


class Hardware(Document):
    """What a node can run, so that a release it can't is refused before it is fetched."""

    arch: Text
    memory_bytes: Count
    runtimes: dict[str, Text] = {}
    """Runtime name (`tflite`) to its version."""
    accelerators: tuple[Text, ...] = ("cpu",)


class Tuple(Document):
    """(release, config, policy) as activated together. Numbers are 0 where no document exists."""

    release: DigestField
    config: Count = 0
    policy: Count = 0


class Declined(Document):
    """A policy or config that this node holds and does not obey, and why."""

    document: Text
    """`policy`, or `config/<model>`."""
    number: Count
    reason: Text


class Spent(Document):
    """Bytes of content fetched, in the site's time zone; both begin again when the day or month does."""

    day: Count = 0
    month: Count = 0


class Refusal(Document):
    """A release this node will not be offered again except by a directive with a new number."""

    release: DigestField
    number: Count
    reason: Text


Refusals = tuple[Refusal, ...]
Texts = tuple[Text, ...]


class ModelReport(Document):
    """One model on one node."""

    phase: Phase
    tuple: Tuple | None = None
    since: At | None = None
    """When `tuple` was activated, by the node's estimate."""
    fallback: Tuple | None = None
    held: Digests = ()
    """Releases whose whole image stands verified on the node."""
    refused: Refusals = ()
    verdict: Verdict | None = None
    waiting: Text = ""
    """What `checking` or `fetching` waits for, in words; empty when it waits for nothing."""
    stale: Texts = ()
    """How it is further behind than policy allows, in words; empty when it isn't."""


class RecipeRef(Part):
    """Names a recipe: a blob without pages."""

    length: Annotated[int, Field(gt=0, le=MAX_UNPAGED_BYTES)]
    sha256: DigestField


class SealRef(Part):
    """Names a seal (`heliograph.sealing.Seal`): a blob without pages."""

    length: Annotated[int, Field(gt=0, le=MAX_UNPAGED_BYTES)]
    sha256: DigestField


class Way(Part):
    """One way to get one blob, and what it costs.

    `bytes` counts every byte of blob content that must cross the link: pages, leaves, the recipe and the seal.
    A delta names its `base` and `recipe`; a full way has neither. Digests are of plain bytes. Where there is a `seal`,
    what crosses the link are the sealed blobs that it names: of the blob itself, or of the recipe and its patch.
    """

    kind: WayKind
    blob: DigestField
    bytes: Count
    base: DigestField | None = None
    recipe: RecipeRef | None = None
    seal: SealRef | None = None

    @model_validator(mode="after")
    def _delta_is_complete(self) -> Self:
        if (self.kind == "delta") != (self.recipe is not None and self.base is not None):
            raise ValueError("a delta names base and recipe, other ways name neither")
        return self


def _of_known_kinds(ways: Any) -> Any:
    """Without ways of a kind that this version lacks: they are a newer hub's, and the others lead there too."""
    if not isinstance(ways, tuple):
        return ways
    kinds = [way.get("kind") if isinstance(way, dict) else None for way in ways]
    return tuple(way for way, kind in zip(ways, kinds, strict=True) if not isinstance(kind, str) or kind in WAY_KINDS)


class Grant(Part):
    """The key of one epoch of a model, sealed to the key of the node that this is for."""

    model: ModelName
    epoch: Annotated[int, Field(gt=0, lt=1 << 31)]
    box: Annotated[bytes, Field(min_length=GRANT_BOX_BYTES, max_length=GRANT_BOX_BYTES)]


class OlderDenials(Part):
    """Names the blob, without pages, that holds the denials for which `deny/all` had no room."""

    length: Annotated[int, Field(gt=0, le=MAX_UNPAGED_BYTES)]
    sha256: DigestField


class Command(Part):
    """A numbered order to one node, repeated until echoed: `drill`, `rollback`, `report`, `abort` or `forget`.

    A kind that is none of `COMMAND_KINDS` is a newer hub's: the node refuses that command in words, and obeys the rest.
    """

    number: Count
    kind: Name
    model: ModelName | None = None


class LaneReceipt(Part):
    """Every record of (run, lane) with a sequence number below `next` is committed at the hub."""

    run: Run
    lane: Lane
    next: Count


# --- unsigned messages --------------------------------------------------------------------------------------------


class Hello(Document):
    """Node to hub on every connect and check-in: who I am and what I have."""

    run: Run
    nonce: Nonce
    agent: Text
    schemas: dict[str, Count]
    hardware: Hardware
    tuf: dict[str, Count]
    """Version of each metadata role of the last complete set: `root`, `timestamp`, `snapshot`, `targets`, …"""
    deny: Denials = Denials()
    numbers: Numbers
    acked: dict[Lane, LaneReceipt] = {}
    lacks: Numbers = Numbers()
    """Older documents that it has use for: of each the newest published one up to this number; 0: none."""
    key: KeyId | None = None
    """Id of the key that this node has, so that hardware that was replaced isn't taken for what replaced it."""


class Ask(Document):
    """Node to hub: may I fetch this release, and which ways are there?"""

    run: Run
    n: Count
    model: ModelName
    release: DigestField
    bases: Annotated[tuple[DigestField, ...], Field(max_length=64)] = ()
    """Digests of blobs the node holds, verified, newest first."""
    free_bytes: Count
    link: Text = ""
    budget_left: Count | None = None


class Want(Document):
    """Asker to hub or relay, QoS 0: send these pages and runs of leaves of one blob."""

    handle: Handle
    blob: DigestField
    pages: tuple[Count, ...] = ()
    ranges: tuple[tuple[Count, Annotated[int, Field(gt=0, le=256)]], ...] = ()
    """(first leaf, count)."""
    answer: None = None


class Chunk(Document):
    """Hub or relay to asker, QoS 0: one page, or one run of whole leaves, of the blob the handle stands for."""

    handle: Handle
    page: Count | None = None
    offset: Annotated[int, Field(ge=0, lt=1 << 62, multiple_of=LEAF_BYTES)] | None = None
    bytes: Bytes

    @model_validator(mode="after")
    def _one_of(self) -> Self:
        if (self.page is None) == (self.offset is None):
            raise ValueError("a chunk has a page or an offset")
        return self


class Enroll(Document):
    """New node to hub, once: the token proves the operator meant it, the key is what counts from then on."""

    token: Annotated[bytes, Field(min_length=32, max_length=32, repr=False)]
    key: Annotated[bytes, Field(min_length=32, max_length=32)]
    """Ed25519 public key, raw."""
    nonce: Nonce
    csr: None = None


class Renew(Document):
    """Node to hub, signed by its key: certify this key for the broker, as one that I hold now."""

    realm: Name
    site: Name
    node: Name
    nonce: Nonce
    """Drawn by the node; comes back in the answer."""
    challenge: Nonce | None = None
    """The hub's, from its answer to one without it: so that nothing old can be said again."""


class DenyAll(Broadcast):
    """Hub to all nodes, retained: one list of denials, newest first, each believed by its own signatures alone."""

    statements: Annotated[tuple[DenialBytes, ...], Field(max_length=1024)] = ()
    older: OlderDenials | None = None
    """The rest of the list: a blob that holds a msgpack list of such statements."""


# --- documents carried by statements ------------------------------------------------------------------------------


class Directive(Broadcast):
    """What a ring is to run of one model: the ring duty itself."""

    realm: Name
    ring: Ring
    model: ModelName
    release: DigestField
    number: Count
    action: Literal["install", "hold", "return"]
    paced: bool = False
    not_before: At = 0
    expires: At


class Assignment(NodeScoped):
    """What one node is."""

    number: Count
    ring: Ring
    labels: Annotated[dict[Name, Text], Field(max_length=64)] = {}
    relay: Text | None = None
    pins: Annotated[dict[ModelName, Text], Field(max_length=256)] = {}
    commands: Annotated[tuple[Command, ...], Field(max_length=64)] = ()


class Deny(Broadcast):
    """These releases and recipes are not trusted any more, for good."""

    realm: Name
    releases: Annotated[Digests, Field(min_length=1, max_length=24)]
    """Digests of manifests or recipes."""
    reason: Text = ""
    at: At


class DenyKey(Broadcast):
    """Nothing that these keys signed or approved is trusted any more, except the digests in `keep`, for good."""

    realm: Name
    keys: Annotated[tuple[KeyId, ...], Field(min_length=1, max_length=24)]
    keep: Annotated[Digests, Field(max_length=24)] = ()
    reason: Text = ""
    at: At


class Offer(NodeScoped):
    """The answer to one ask: ways, or not yet, or never."""

    run: Run
    n: Count
    model: ModelName
    release: DigestField
    expires: At
    ways: Annotated[tuple[Way, ...], BeforeValidator(_of_known_kinds)] = ()
    later_s: Count | None = None
    never: bool = False
    reason: Text = ""
    grant: Grant | None = None
    """Opens what the seals of `ways` name; only with such ways."""


class Receipt(NodeScoped):
    """Sent after the hub's commit: these records are on disk there."""

    run: Run
    lane: Lane
    next: Count


class Certified(NodeScoped):
    """The answer to one `renew`: a challenge, or the certificate by which the broker lets the node in."""

    nonce: Nonce
    challenge: Nonce | None = None
    certificate: Annotated[bytes, Field(max_length=4096)] = b""
    """X.509, DER, for the node's key under the name `site/node`; empty beside a challenge."""
    expires: At = 0
    at: At = 0
    """When this was signed; 0: by a hub that didn't say."""


class Refused(NodeScoped):
    """The answer to one `enroll` whose token is no good."""

    nonce: Nonce
    reason: Text


class Reply(NodeScoped):
    """The answer to one hello: signed freshness, and all that is newer than what the node named."""

    nonce: Nonce
    at: At
    heads: Heads
    acked: tuple[LaneReceipt, ...] = ()
    documents: tuple[tuple[str, bytes], ...] = ()
    """(topic below `heliograph/v1/<realm>/`, payload), exactly as retained there; a reader treats them alike.
    The node's own assignment comes as (`assigned`, payload)."""
    more: bool = False
    """Another reply to the same hello follows."""


class Reported(Document):
    """What a node says it is and runs; enough for a restored hub to count on from."""

    realm: Name
    site: Name
    node: Name
    run: Run
    n: Count
    estimate: At
    agent: Text
    schemas: dict[str, Count]
    ring: Ring | None
    assignment: Count
    tuf: dict[str, Count]
    deny: Denials
    bytes_received: Count
    """MQTT payload bytes this node has received since it was enrolled."""
    policy: Count = 0
    """Number of the policy in force for what isn't one model's; 0: none."""
    declined: tuple[Declined, ...] = ()
    spent: Spent = Spent()
    done: Count = 0
    """Highest number of a command of its assignment that was carried out or refused."""
    clock: Text = ""
    """Why the node ignores its wall clock; empty: it may be right, or there is none."""
    models: dict[ModelName, ModelReport]


Row = tuple[Annotated[int, Field(gt=0)], Text, At, dict[str, Any]]
"""(count, kind, at, body): a record and how many sequence numbers it stands for (1, or more if merged or a gap)."""


class Records(Document):
    """A batch of one lane's records, contiguous from sequence number `first`.

    The next row's number is this row's number plus its count. A row of kind `gap` says that its count of records was
    lost to the byte cap, so that kept + merged + lost = written always holds.
    """

    realm: Name
    site: Name
    node: Name
    run: Run
    lane: Lane
    first: Count
    rows: tuple[Row, ...]
