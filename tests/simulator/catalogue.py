"""The realm that all worlds share: keys, signed metadata, releases with their bytes. Made once in a process.

Releases of each model by version: what they turn out to be is their `kind`. Metadata comes in steps; each lists one
more release than the step before, in two forms that differ in who approved. Nothing here is random.
"""

import random
from dataclasses import dataclass, replace
from functools import cache, lru_cache

from heliograph import trust
from heliograph.blob import page_of, sha256, short_digest
from heliograph.delta.diff import make
from heliograph.delta.recipe import Recipe, encode
from heliograph.documents import Denials, Heads, RecipeRef, Way
from heliograph.manifest import Compatible, File, Golden, Manifest, Schema, Span, Variant
from heliograph.names import Digest
from heliograph.signing import PrivateKey, sign_statement
from heliograph.trust import TrustedSet
from heliograph.wire import compress, pack
from heliograph_hub import ceremony
from heliograph_hub.ceremony import MODEL_ROLES, STATEMENT_ROLES, TUF_ROLES
from heliograph_site.memory import FailMode

REALM = "sim"
NOW = 1_795_000_000
MODELS = ("alpha", "beta")
FAIL_MODE: dict[str, FailMode] = {"alpha": "safe", "beta": "closed"}
# good; golden outputs wrong; turns bad in probation; does not fit any node; approved by nobody; its delta leads astray
KINDS = ("good", "good", "golden", "slow", "good", "astray", "unfit", "unapproved", "good")
# What fits no document at all fits every world; policies state other ranges.
COMPATIBLE = {2: Compatible(policy=Span(max=3)), 5: Compatible(config=Span(max=4))}
NODES = (("north", "a"), ("south", "b"), ("north", "c"))
LEAF = 4096


@dataclass(frozen=True)
class Release:
    """One release, as the makers of this world know it."""

    model: str
    version: str
    kind: str
    digest: Digest
    manifest: bytes
    files: tuple[Digest, ...]
    ways: tuple[Way, ...]

    @property
    def size(self) -> int:
        return len(self.manifest) + sum(len(blobs()[digest]) for digest in self.files)

    def __str__(self) -> str:
        return f"{self.model}@{self.version}({self.kind})"


@cache
def key(name: str) -> PrivateKey:
    return PrivateKey.generate(sha256(f"key {name}".encode()))


@cache
def keys(role: str, count: int) -> tuple[PrivateKey, ...]:
    return tuple(key(f"{role}-{number}") for number in range(count))


def staffed(role: str) -> tuple[PrivateKey, ...]:
    duty = role.split("-")[0]
    staffing = (TUF_ROLES | STATEMENT_ROLES).get(role) or MODEL_ROLES[duty]
    return keys(role, staffing.keys)


def signers(role: str) -> tuple[PrivateKey, ...]:
    duty = role.split("-")[0]
    staffing = (TUF_ROLES | STATEMENT_ROLES).get(role) or MODEL_ROLES[duty]
    return staffed(role)[: staffing.threshold]


@lru_cache(1 << 12)
def signed(type_: str, payload: bytes, by: tuple[PrivateKey, ...]) -> bytes:
    return sign_statement(type_, payload, by)


@cache
def _made() -> tuple[dict[Digest, bytes], dict[Digest, Release]]:
    found: dict[Digest, bytes] = {}
    releases: dict[Digest, Release] = {}
    for model in MODELS:
        rng = random.Random(f"weights of {model}")
        golden = rng.randbytes(1500)
        weights = bytearray(rng.randbytes(7 * LEAF + 100))
        before: bytes | None = None
        for number, kind in enumerate(KINDS, 1):
            at = rng.randrange(len(weights) - 3000)
            weights[at : at + 2000] = rng.randbytes(2000)
            content = bytes(weights)
            named = (("w.bin", content), ("golden.json", golden))
            manifest = Manifest(
                model=model,
                version=f"1.{number}.0",
                files=tuple(
                    File(name=name, length=len(blob), sha256=sha256(blob), pages=(short_digest(page_of(blob)),))
                    for name, blob in named
                ),
                variants=(
                    Variant(name="d", files=("w.bin",), runtime="tflite", arch=("sparc",) if kind == "unfit" else ()),
                ),
                golden=Golden(inputs="golden.json", outputs="golden.json", tolerance=0.0),
                fail_mode=FAIL_MODE[model],
                compatible=COMPATIBLE.get(number, Compatible()),
                schema=Schema(generations=(1, 2) if number == 9 else ()),
            )
            data = manifest.encode()
            ways = [Way(kind="full", blob=sha256(blob), bytes=len(blob)) for blob in (content, golden)]
            if before is not None:
                # A recipe that is in perfect order and makes something else.
                target = bytes(reversed(content)) if kind == "astray" else content
                recipe, patch = make(before, target)
                if kind == "astray":
                    recipe = _as_if_for(recipe, content)
                packed = encode(recipe)
                found[sha256(packed)], found[recipe.patch_sha256] = packed, patch
                ref = RecipeRef(length=len(packed), sha256=sha256(packed))
                way = Way(kind="delta", blob=sha256(content), bytes=len(patch) // 4, base=sha256(before), recipe=ref)
                ways.append(way)
            for blob in (content, golden, data):
                found[sha256(blob)] = blob
            releases[sha256(data)] = Release(
                model, f"1.{number}.0", kind, sha256(data), data, (sha256(content), sha256(golden)), tuple(ways)
            )
            before = content
    return found, releases


def _as_if_for(recipe: Recipe, content: bytes) -> Recipe:
    return replace(recipe, target=sha256(content), target_length=len(content))


def blobs() -> dict[Digest, bytes]:
    """Every blob that the hub serves, by digest."""
    return _made()[0]


def releases() -> dict[Digest, Release]:
    """Every release, by digest."""
    return _made()[1]


@cache
def manifest(digest: Digest) -> Manifest:
    data = releases()[digest].manifest
    return Manifest.parse(data, digest, len(data))


@cache
def of(model: str, number: int) -> Release:
    """The model's release of this number, from 1 on."""
    return next(r for r in releases().values() if r.model == model and r.version == f"1.{number}.0")


# --- metadata ---------------------------------------------------------------------------------------------------------

STEPS = len(KINDS)
"""Metadata of step n lists the first n + 1 releases of each model."""


@cache
def root() -> bytes:
    public = {role: [k.public for k in staffed(role)] for role in TUF_ROLES}
    return ceremony.sign(ceremony.make_root(REALM, "development", 1, public, TUF_ROLES, NOW), signers("root"))


@cache
def targets() -> bytes:
    top = ceremony.make_targets(1, NOW)
    for role, staffing in STATEMENT_ROLES.items():
        ceremony.delegate(top.signed, role, [k.public for k in staffed(role)], staffing.threshold, [])
    for model in MODELS:
        by_duty = {duty: [k.public for k in staffed(f"{duty}-{model}")] for duty in MODEL_ROLES}
        ceremony.delegate_model(top.signed, model, by_duty)
    return ceremony.sign(top, signers("targets"))


def approvers(form: int, model: str) -> tuple[PrivateKey, ...]:
    """Form 0: the first two of three; form 1: the last two."""
    return staffed(f"approve-{model}")[form : form + 2]


def listed(step: int, duty: str) -> frozenset[Digest]:
    """The releases that a duty lists at a step."""
    shown = [of(model, number) for model in MODELS for number in range(1, min(step + 1, STEPS) + 1)]
    return frozenset(r.digest for r in shown if not (r.kind == "unapproved" and duty == "approve"))


@cache
def files(step: int, form: int) -> tuple[int, bytes, dict[str, bytes]]:
    """Version and bytes of the snapshot, and the delegated files."""
    number = 2 * step + form + 1
    delegated: dict[str, bytes] = {}
    for model in MODELS:
        for duty in ("sign", "approve"):
            entries = {}
            for digest in listed(step, duty):
                release = releases()[digest]
                if release.model == model:
                    path = f"{model}/{release.version}"
                    entries[path] = ceremony.make_target(path, len(release.manifest), digest)
            role = f"{duty}-{model}"
            by = approvers(form, model) if duty == "approve" else signers(role)
            delegated[role] = ceremony.sign(ceremony.make_duty(number, entries, NOW), by)
    named = {"targets": (1, targets()), **{role: (number, data) for role, data in delegated.items()}}
    # Good for all nights: it is remembered. Timestamps are signed anew and last as long as they should.
    snapshot = ceremony.sign(ceremony.make_snapshot(number, named, NOW + 60 * 86_400), signers("snapshot"))
    return number, snapshot, delegated


Numbered = tuple[tuple[tuple[str, int], ...], tuple[tuple[str, int], ...]]
"""Newest numbers of policies by ring and of configs by model."""


@lru_cache(1 << 8)
def packed_set(
    version: int, step: int, form: int, denials: tuple[int, bytes], at: int, papers: Numbered = ((), ())
) -> tuple[bytes, bytes]:
    """`tuf/head` and `tuf/set`."""
    number, snapshot, delegated = files(step, form)
    deny = Denials(count=denials[0], digest=denials[1])
    heads = Heads(deny=deny, policy=dict(papers[0]), config=dict(papers[1]))  # type: ignore[arg-type]
    stamp = ceremony.sign(ceremony.make_timestamp(version, (number, snapshot), heads, at), signers("timestamp"))
    content = {"format": 1, "timestamp": stamp, "snapshot": snapshot, "targets": targets(), "delegated": delegated}
    return stamp, compress(pack(content), level=1)  # `trust.pack_set` takes its time to make it small


@cache
def first_trust() -> TrustedSet:
    return trust.bootstrap(root(), sha256(root()))
