"""Remembers what pure functions of bytes said before, so that a world costs milliseconds.

The same signed bytes are verified, parsed and asked about thousands of times in worlds that share a realm. What is
remembered here takes bytes and frozen values and gives frozen values; nothing is skipped that was not done once.
Only so much is remembered as a few worlds need, so that a process stays small however many it lives.
"""

import gc
from functools import lru_cache, wraps
from typing import Any

from heliograph import metadata, statement, trust, vouching, workflow
from heliograph.deny import DenySet
from heliograph.documents import Chunk, Document
from heliograph.manifest import Manifest
from heliograph.signing import PublicKey
from heliograph.trust import TrustedSet
from heliograph_site import belief, papers

MANY = 1 << 12
SETS = 1 << 8
"""Whole sets, which are large."""
SLOT_S = 600
"""Time as with_set sees it goes in steps: no file of a world expires within one."""


def install() -> None:
    """Puts the memory in front of the functions: once in a process, and in none that does anything but live worlds."""
    if hasattr(PublicKey.is_signature, "cache_info"):
        return
    PublicKey.is_signature = lru_cache(MANY)(PublicKey.is_signature)  # type: ignore[method-assign]
    _remember_metadata()
    parse = lru_cache(MANY)(statement.parse)
    statement.parse = belief.parse = papers.parse = parse  # type: ignore[attr-defined]
    vouching._signers = _by_keys(vouching._signers, MANY)
    vouching._reaches = _by_keys(vouching._reaches, MANY)
    vouching._open = _by_keys(vouching._open, MANY)
    _remember_documents()
    Manifest.parse = staticmethod(lru_cache(MANY)(Manifest.parse))  # type: ignore[method-assign]
    DenySet.from_bytes = staticmethod(lru_cache(SETS)(DenySet.from_bytes))  # type: ignore[method-assign]
    belief.state_from_bytes = lru_cache(SETS)(belief.state_from_bytes)  # type: ignore[attr-defined]
    with_set = lru_cache(SETS)(belief.with_set)  # type: ignore[attr-defined]
    belief.with_set = lambda current, packed, now: with_set(current, packed, now - now % SLOT_S)  # type: ignore[attr-defined]
    gc.freeze()
    gc.set_threshold(100_000, 50, 100)  # worlds make much and keep little of it


def _remember_metadata() -> None:
    plain, known = metadata.load, lru_cache(SETS)(metadata.load)
    verify_role = _by_identity(metadata.verify_role, 1 << 10)
    custom_of = _by_identity(metadata.custom_of, SETS)
    signed_bytes = _by_identity(metadata.signed_bytes, SETS)

    def load(kind: Any, data: bytes, name: str, *, is_own_only: bool = True) -> Any:
        return known(kind, data, name) if is_own_only else plain(kind, data, name, is_own_only=False)

    for module in (metadata, trust, workflow):
        module.load, module.verify_role = load, verify_role  # type: ignore[attr-defined]
    for module in (metadata, trust):
        module.signed_bytes, module.custom_of = signed_bytes, custom_of  # type: ignore[attr-defined]

    trust._unpack_set = lru_cache(SETS)(trust._unpack_set)
    trust._listed = _by_identity(trust._listed, SETS)


def _remember_documents() -> None:
    """All but chunks: no two of those are alike."""
    plain = Document.decode.__func__  # type: ignore[attr-defined]
    known = lru_cache(MANY)(plain)

    def decode(cls: type[Document], /, data: bytes, **bounds: int) -> Document:
        return plain(cls, data, **bounds) if cls is Chunk else known(cls, data, **bounds)  # type: ignore[no-any-return]

    Document.decode = classmethod(decode)  # type: ignore[method-assign, assignment]


def _by_identity(function: Any, many: int) -> Any:
    """Remembers by which objects were given, not by what they say; texts go by what they say."""
    memory: dict[tuple[Any, ...], Any] = {}

    @wraps(function)
    def asked(*args: Any) -> Any:
        key = tuple([arg if type(arg) is str else id(arg) for arg in args])
        known = memory.get(key)
        if known is None:
            if len(memory) >= many:
                memory.clear()
            known = memory[key] = (args, function(*args))  # holding them keeps their ids from being used again
        return known[1]

    return asked


def _by_keys(function: Any, many: int) -> Any:
    """The same for what a set says by the keys in its root and targets alone: other sets with the same two say so too.

    Names go by what they say, as texts do.
    """
    memory: dict[tuple[Any, ...], Any] = {}

    @wraps(function)
    def asked(current: TrustedSet, *args: Any) -> Any:
        files = current._files
        root, targets = files["root"], files.get("targets")
        words = [arg if type(arg) is str else tuple(arg.items()) if type(arg) is dict else id(arg) for arg in args]
        key = (id(root), id(targets), *words)
        known = memory.get(key)
        if known is None:
            if len(memory) >= many:
                memory.clear()
            known = memory[key] = (root, targets, args, function(current, *args))
        return known[3]

    return asked
