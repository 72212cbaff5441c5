"""Remembers what pure functions of bytes said before, so that a world costs milliseconds.

The same signed bytes are verified, parsed and asked about thousands of times in worlds that share a realm. What is
remembered here takes bytes and frozen values and gives frozen values; nothing is skipped that was not done once.
"""

import gc
from functools import lru_cache, wraps
from typing import Any

from heliograph import metadata, statement, trust, vouching
from heliograph.documents import Document
from heliograph.signing import PublicKey
from heliograph.trust import TrustedSet
from heliograph_site import belief

MANY = 1 << 16
SLOT_S = 600
"""Time as with_set sees it goes in steps: no file of a world expires within one."""


def install() -> None:
    """Puts the memory in front of the functions: once in a process, and in none that does anything but live worlds."""
    if hasattr(PublicKey.is_signature, "cache_info"):
        return
    PublicKey.is_signature = lru_cache(MANY)(PublicKey.is_signature)  # type: ignore[method-assign]
    for name in ("signers", "target", "releases", "statement_keys", "why_not_listed"):
        setattr(TrustedSet, name, _by_identity(getattr(TrustedSet, name)))
    TrustedSet.heads = property(_by_identity(TrustedSet.heads.fget))  # type: ignore[method-assign, assignment, attr-defined]
    for module in (metadata, trust):
        module.load = lru_cache(MANY)(module.load)  # type: ignore[attr-defined]
        module.signed_bytes = _by_identity(module.signed_bytes)
    statement.parse = lru_cache(MANY)(statement.parse)
    vouching._signers = _by_identity(vouching._signers)
    plain = Document.decode.__func__  # type: ignore[attr-defined]
    Document.decode = classmethod(lru_cache(MANY)(plain))  # type: ignore[method-assign, assignment]
    belief.state_from_bytes = lru_cache(1 << 10)(belief.state_from_bytes)  # type: ignore[attr-defined]
    with_set = lru_cache(1 << 10)(belief.with_set)  # type: ignore[attr-defined]
    belief.with_set = lambda current, packed, now: with_set(current, packed, now - now % SLOT_S)  # type: ignore[attr-defined]
    gc.freeze()
    gc.set_threshold(100_000, 50, 100)  # worlds make much and keep little of it


def _by_identity(function: Any) -> Any:
    """Remembers per object, in the object's own turn: an equal set asks anew."""
    memory: dict[tuple[Any, ...], Any] = {}

    @wraps(function)
    def asked(self: Any, *args: Any) -> Any:
        key = (id(self), *args)
        if key not in memory:
            if len(memory) > MANY:
                memory.clear()
            memory[key] = (self, function(self, *args))  # holding `self` keeps its id from being used again
        return memory[key][1]

    return asked
