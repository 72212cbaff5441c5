"""What a release is: its files and digests, what it needs, what it promises, where it came from.

A manifest is canonical: msgpack with sorted keys, no clock, so that packing the same bundle twice gives the same
digest. That digest *is* the release. Operators write `release.toml` with the same names, less what is computed
(`length`, `sha256`, `pages`); `release add` fills those in and refuses what is missing, unsafe or inconsistent.
"""

import re
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from heliograph.blob import MAX_UNPAGED_BYTES, page_count, sha256
from heliograph.documents import Broadcast, Count, DigestField, Part, ShortDigest, Text
from heliograph.errors import IntegrityError
from heliograph.fields import rows
from heliograph.names import Digest, Name, Version
from heliograph.wire import pack

MANIFEST_VERSION: Literal[1] = 1
ADDED = frozenset({"confidential"})
"""Fields that came after 0.1."""
MAX_CONTAINERS = 4096
"""Maps and arrays in a manifest: 1000 files with their pages and 20 variants need 2100."""
_PART = r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"
FILE_NAME_PATTERN = rf"^{_PART}(/{_PART}){{0,3}}$"
"""Letters, digits, `.`, `_`, `-`; up to 4 parts; no part begins with a dot, so no traversal."""
FileName = Annotated[str, Field(pattern=FILE_NAME_PATTERN, max_length=200)]


class File(Part):
    """One file of the bundle: a blob and its name."""

    name: FileName
    length: Annotated[int, Field(ge=0, le=1 << 40)]
    sha256: DigestField
    pages: tuple[ShortDigest, ...]
    """One 16-byte page digest per MiB."""

    @model_validator(mode="after")
    def _pages_fit(self) -> Self:
        if len(self.pages) != page_count(self.length):
            raise ValueError(f"{self.name} of {self.length} bytes has {len(self.pages)} page digests")
        return self


class Variant(Part):
    """One form of the release for one kind of hardware; a node runs the first variant that fits it."""

    name: Name
    files: tuple[FileName, ...]
    """What this variant loads; the first is the model itself."""
    runtime: Literal["tflite", "onnx"] = "tflite"
    min_runtime: Text = "0"
    arch: tuple[Text, ...] = ()
    """Machine names (`x86_64`, `aarch64`); empty: any."""
    accelerator: Literal["cpu", "gpu", "npu"] = "cpu"
    memory_bytes: Count = 0
    """What a worker needs, measured as PSS; 0: not stated."""


class Schema(Part):
    """The feature schema the model was trained on, and the generations of it that it still accepts."""

    feature: Text = ""
    generations: tuple[Count, ...] = ()


class Span(Part):
    """Document numbers a release may meet: `min` to `max`, both included; max None: any newer."""

    min: Count = 0
    max: Count | None = None


class Compatible(Part):
    """Which config and policy numbers this release may be activated with."""

    config: Span = Span()
    policy: Span = Span()


class Provenance(Part):
    """Where the release came from: digests or addresses that people can follow."""

    build: Text = ""
    dataset: Text = ""
    evaluation: Text = ""
    card: Text = ""
    source: Text = ""


GATES: dict[str, str] = {
    "p95-ms": "milliseconds that 95 % of the answers took at most",
    "p99-ms": "the same for 99 %",
    "p95-ratio": "p95 as a multiple of that of the release which answered before",
    "error-share": "failed requests as a share of all, 0 to 1",
    "cold-start-ms": "milliseconds from asking for a worker to a loaded model",
    "memory-bytes": "PSS of the worker",
}
"""What a gate can be called. Each holds while what was measured is at most its limit."""
MEASURED_ONCE = frozenset({"cold-start-ms"})


class Gate(Part):
    """A condition for being proven: what `name` measures is at most `limit`, in at least `min_samples`.

    Any name parses, so that an older node can decline a newer release in words.
    """

    name: Name
    limit: float
    min_samples: Count = 1


class Soak(Part):
    """How long probation lasts: at least `min_s` under traffic; after `max_s` the verdict is `unproven`."""

    min_s: Count = 60
    max_s: Count = 3600


class Golden(Part):
    """Golden files: inputs, and the outputs that they must give, as Open Inference Protocol v2 JSON.

    `inputs` names a bundle file `{"requests": [infer request, …]}`, `outputs` one `{"responses": [infer response, …]}`
    of the same length. `tolerance` is the largest absolute difference per element.
    """

    inputs: FileName
    outputs: FileName
    tolerance: Annotated[float, Field(ge=0)] = 0.0


class Evaluation(Part):
    """A bundled evaluation set and the floor its metric must reach on the node."""

    data: FileName
    metric: Name = "accuracy"
    floor: float


class Manifest(Broadcast):
    """A release. Its digest is the SHA-256 of `encode()`."""

    format: Literal[1] = MANIFEST_VERSION
    model: Name
    version: Version
    files: Annotated[tuple[File, ...], Field(min_length=1, max_length=1000)]
    variants: Annotated[tuple[Variant, ...], Field(min_length=1, max_length=20)]
    feature_schema: Schema = Field(default=Schema(), alias="schema")
    compatible: Compatible = Compatible()
    provenance: Provenance = Provenance()
    gates: tuple[Gate, ...] = ()
    soak: Soak = Soak()
    golden: Golden
    evaluation: Evaluation | None = None
    fail_mode: Literal["closed", "safe"] = "safe"
    min_agent: Text = "0"
    confidential: bool = False
    """Files, recipes and patches are sent, and kept on nodes, as sealed blobs only (`heliograph.sealing`)."""

    @model_validator(mode="after")
    def _names_agree(self) -> Self:
        names = [file.name for file in self.files]
        folded = [name.casefold() for name in names]
        if len(set(folded)) != len(folded):
            twice = next(name for name in names if folded.count(name.casefold()) > 1)
            raise ValueError(f"file {twice} collides with another of the same name in other case")
        folders = {name[:at] for name in folded for at, letter in enumerate(name) if letter == "/"}
        if folders & set(folded):
            raise ValueError(f"file {min(folders & set(folded))} collides with a folder of the same name")
        used = [self.golden.inputs, self.golden.outputs, *([self.evaluation.data] if self.evaluation else [])]
        used += [name for variant in self.variants for name in variant.files]
        for name in used:
            if name not in names:
                raise ValueError(f"{name} is named but is not among the files")
        if any(not variant.files for variant in self.variants):
            raise ValueError("a variant names no files")
        if self.soak.min_s > self.soak.max_s:
            raise ValueError(f"soak.min_s {self.soak.min_s} exceeds soak.max_s {self.soak.max_s}")
        if self.confidential and "confidential" not in self.crit:
            raise ValueError("a confidential release names confidential in crit, so that no older agent fetches it")
        return self

    def encode(self) -> bytes:
        """Canonical bytes: msgpack, keys sorted at every level.

        What came after 0.1 stands there only where it isn't the default: a bundle keeps its digest for ever.
        """
        later = {name for name in ADDED if getattr(self, name) == type(self).model_fields[name].default}
        return pack(_sorted(self.model_dump(mode="python", by_alias=True, exclude=later)))

    @property
    def release(self) -> str:
        """`model@version`."""
        return f"{self.model}@{self.version}"

    def file(self, name: str) -> File:
        """The file called `name`; names were checked when the manifest was parsed."""
        return next(file for file in self.files if file.name == name)

    @classmethod
    def parse(cls, data: bytes, digest: bytes, length: int) -> Self:
        """Parses a manifest whose length and digest a TUF target states; checked first.

        Raises:
            IntegrityError: other bytes than stated, or not a manifest this version can run.
        """
        if len(data) != length or len(data) > MAX_UNPAGED_BYTES or sha256(data) != digest:
            raise IntegrityError(f"manifest of {len(data)} bytes is not the signed one of {length} bytes")
        return cls.decode(
            data, max_bytes=MAX_UNPAGED_BYTES, max_containers=MAX_CONTAINERS, max_elements=MAX_UNPAGED_BYTES // 18
        )


def manifest_digest(manifest: Manifest) -> Digest:
    """The release's digest."""
    return sha256(manifest.encode())


def is_safe_file_name(name: str) -> bool:
    """Whether a bundle may hold a file of this name."""
    return re.fullmatch(FILE_NAME_PATTERN.strip("^$"), name) is not None and len(name) <= 200


def _sorted(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _sorted(value[key]) for key in sorted(value)}
    if isinstance(value, list | tuple):
        return [_sorted(item) for item in value]
    return value


# fmt: off
#: What each field of release.toml means, in the operator's words. A test compares the keys with the models.
MEANINGS: dict[str, str] = {
    "crit":                     "fields an agent must know to run this release",
    "model":                    "the line of releases this one belongs to",
    "version":                  "major.minor.patch; a version once added never changes",
    "files[]":                  "the bundle's files; left out: every file in the folder but release.toml",
    "files[].name":             "path in the folder: letters, digits, '.', '_', '-', up to 4 parts",
    "variants[]":               "forms for different hardware, the first that fits runs; left out: the only model file",
    "variants[].name":          "what the form is called",
    "variants[].files":         "what it loads; the first is the model itself",
    "variants[].runtime":       "what runs it",
    "variants[].min_runtime":   "oldest version of that runtime",
    "variants[].arch":          "machine names such as x86_64, aarch64; empty: any",
    "variants[].accelerator":   "what it needs besides the processor",
    "variants[].memory_bytes":  "what a worker needs; 0: not stated",
    "schema":                   "the features the model was trained on",
    "schema.feature":           "name of the feature schema",
    "schema.generations":       "generations of it that are still accepted",
    "compatible":               "numbered documents this release may be activated with",
    "compatible.config":        "config numbers",
    "compatible.config.min":    "the lowest",
    "compatible.config.max":    "the highest; left out: any newer",
    "compatible.policy":        "policy numbers",
    "compatible.policy.min":    "the lowest",
    "compatible.policy.max":    "the highest; left out: any newer",
    "provenance":               "where the release came from: digests or addresses to follow",
    "provenance.build":         "the build that made it",
    "provenance.dataset":       "the data it was trained on",
    "provenance.evaluation":    "the report that judged it",
    "provenance.card":          "its model card",
    "provenance.source":        "the code that made it",
    "gates[]":                  "conditions for being proven on a node",
    "gates[].name":             "p95-ms, p99-ms, p95-ratio, error-share, cold-start-ms or memory-bytes",
    "gates[].limit":            "the most that it may be",
    "gates[].min_samples":      "measurements needed before it is judged",
    "soak":                     "how long probation lasts",
    "soak.min_s":               "seconds under traffic at least",
    "soak.max_s":               "seconds after which the verdict is 'unproven'",
    "golden":                   "inputs whose outputs are known: checked on the node before it serves",
    "golden.inputs":            "file of {\"requests\": [...]}, Open Inference Protocol v2 JSON",
    "golden.outputs":           "file of {\"responses\": [...]}, as many as requests",
    "golden.tolerance":         "largest absolute difference per element",
    "evaluation":               "a bundled evaluation set and what it must reach on the node",
    "evaluation.data":          "file of the set",
    "evaluation.metric":        "what is computed",
    "evaluation.floor":         "the least it must reach",
    "fail_mode":                "with no release left to serve: 'closed' stops, 'safe' serves on with an alarm",
    "min_agent":                "oldest agent that may run this release",
    "confidential":             "true: sent and kept sealed, so that only nodes can read the files",
}
# fmt: on
COMPUTED = frozenset({"format", "length", "sha256", "pages"})
"""Fields of a manifest that `release add` fills in."""
OPTIONAL = frozenset({"files[]", "variants[]"})
"""Tables that a manifest must have and `release.toml` may leave out."""


def explain() -> list[tuple[str, str, str, str]]:
    """(field, type, default, meaning) of every field of `release.toml`, in the models' order.

    The default is `required`, or the value in TOML's spelling; empty for tables.
    """
    return [
        (field, kind, "" if field in OPTIONAL else default, MEANINGS[field])
        for field, kind, default in rows(Manifest, COMPUTED)
    ]
