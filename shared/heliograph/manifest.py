"""What a release is: its files and digests, what it needs, what it promises, where it came from.

A manifest is canonical: msgpack with sorted keys, no clock, so that packing the same bundle twice gives the same
digest. That digest *is* the release. Operators write `release.toml` with the same names, less what is computed
(`length`, `sha256`, `pages`); `release add` fills those in and refuses what is missing, unsafe or inconsistent.
"""

import re
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from heliograph.blob import MAX_UNPAGED_BYTES, page_count, sha256
from heliograph.documents import Broadcast, Count, DigestField, Document, Part, ShortDigest, Text
from heliograph.errors import IntegrityError
from heliograph.names import Digest, Name, Version
from heliograph.wire import pack

MANIFEST_VERSION: Literal[1] = 1
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


class Gate(Part):
    """A condition for being proven: `name` at most (or at least) `limit` over at least `min_samples`."""

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

    @model_validator(mode="after")
    def _names_agree(self) -> Self:
        names = [file.name for file in self.files]
        folded = [name.casefold() for name in names]
        if len(set(folded)) != len(folded):
            twice = next(name for name in names if folded.count(name.casefold()) > 1)
            raise ValueError(f"file {twice} collides with another of the same name in other case")
        used = [self.golden.inputs, self.golden.outputs, *([self.evaluation.data] if self.evaluation else [])]
        used += [name for variant in self.variants for name in variant.files]
        for name in used:
            if name not in names:
                raise ValueError(f"{name} is named but is not among the files")
        if any(not variant.files for variant in self.variants):
            raise ValueError("a variant names no files")
        if self.soak.min_s > self.soak.max_s:
            raise ValueError(f"soak.min_s {self.soak.min_s} exceeds soak.max_s {self.soak.max_s}")
        return self

    def encode(self) -> bytes:
        """Canonical bytes: msgpack, keys sorted at every level."""
        return pack(_sorted(self.model_dump(mode="python", by_alias=True)))

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
        return cls.decode(data, max_bytes=MAX_UNPAGED_BYTES)


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


def explain() -> list[tuple[str, str, str]]:
    """(field, type, meaning) of every field of `release.toml`, from the models themselves."""
    rows: list[tuple[str, str, str]] = []
    computed = {"length", "sha256", "pages", "format"}

    def walk(model: type[Document], prefix: str) -> None:
        for name, field in model.model_fields.items():
            shown = prefix + (field.alias or name)
            if name in computed:
                continue
            inner = _model_in(field.annotation)
            if inner is not None:
                many = "tuple" in str(field.annotation)
                rows.append((shown + ("[]" if many else ""), "table", (inner.__doc__ or "").split("\n")[0]))
                walk(inner, shown + ("[]." if many else "."))
            else:
                default = "required" if field.is_required() else f"default {field.default!r}"
                rows.append((shown, _type_name(field.annotation), default))

    walk(Manifest, "")
    return rows


def _model_in(annotation: Any) -> type[Document] | None:
    if isinstance(annotation, type) and issubclass(annotation, Document):
        return annotation
    for inner in getattr(annotation, "__args__", ()):
        found = _model_in(inner)
        if found is not None:
            return found
    return None


def _type_name(annotation: Any) -> str:
    text = annotation.__name__ if isinstance(annotation, type) else str(annotation)
    return re.sub(r"typing\.|Annotated\[(\w+)[^\]]*\]+", r"\1", text)
