"""What is refused before the token is spent, and what a realm that joins is judged by."""

import asyncio
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest

from heliograph.blob import sha256
from heliograph.documents import Assignment, Enroll, Refused
from heliograph.errors import ConfigError, IntegrityError, RefusedError
from heliograph.protocol import topic
from heliograph.signing import PrivateKey
from heliograph_site.folder import JoinString
from heliograph_site.identity import keep_in
from heliograph_site.joining import _Ceremony, join
from heliograph_site.reckoning import BUILT_AT
from realms import DAY, NOW, Realm

KEY = PrivateKey.generate(b"k" * 32)
NAMES: dict[str, Any] = {"site": "lab", "node": "n1"}
SCOPE: dict[str, Any] = NAMES | {"realm": "demo", "key": KEY.keyid}


def joining(realm: Realm) -> _Ceremony:
    """A node that joins this realm and has heard its root and its set."""
    string = JoinString("127.0.0.1", 1, realm.name, "lab", "n1", b"t" * 32, sha256(realm.roots[0]))
    ceremony = _Ceremony(string, KEY)
    hear(ceremony, "root", realm.roots[0], number=1)
    hear(ceremony, "set", realm.publish().pack())
    return ceremony


def hear(ceremony: _Ceremony, name: str, payload: bytes, **names: Any) -> None:
    asyncio.run(ceremony.on_message(topic(name).build("demo", **names), payload, True))


def test_attack_a_set_that_had_expired_before_this_version_was_made_joins_nobody() -> None:
    ceremony = joining(replace(Realm(3), now=BUILT_AT - 8 * DAY))
    assert not ceremony.ready.is_set()
    why = ceremony.why_not_ready(1.0)
    assert isinstance(why, IntegrityError) and "expired" in str(why)
    assert joining(replace(Realm(3), now=BUILT_AT - 6 * DAY)).ready.is_set()


def test_attack_a_set_that_had_expired_when_the_hub_signed_its_answer_joins_nobody() -> None:
    realm = Realm(3)
    ceremony = joining(realm)
    ceremony.require_fresh(0)  # by a hub that doesn't say when
    ceremony.require_fresh(NOW + 7 * DAY - 1)
    with pytest.raises(IntegrityError, match=r"of realm demo expired at .*: somebody keeps newer metadata back"):
        ceremony.require_fresh(NOW + 7 * DAY)
    realm.now += 7 * DAY
    hear(ceremony, "set", realm.publish().pack())
    ceremony.require_fresh(NOW + 7 * DAY)


def test_a_refused_token_is_told_at_once_by_the_hubs_signature_over_this_very_question() -> None:
    realm = Realm(3)
    ceremony = joining(realm)
    refused = Refused(**SCOPE, nonce=ceremony.nonce, reason="lab/n1 brought a token that has expired")
    other = refused.model_copy(update={"nonce": b"o" * 16})
    theirs = refused.model_copy(update={"key": b"k" * 32})
    for role, document in (("recipes", refused), ("assign", other), ("assign", theirs)):
        hear(ceremony, "refused", realm.sign(role, "refused", document), **NAMES)
        assert not ceremony.answered.is_set()
    hear(ceremony, "refused", realm.sign("assign", "refused", refused), **NAMES)
    assert ceremony.answered.is_set()
    with pytest.raises(RefusedError, match=r"^lab/n1 brought a token that has expired; print a new one with `heli"):
        ceremony.require_enrolled()
    assignment = Assignment(**SCOPE, number=1, ring="canary")
    hear(ceremony, "assigned", realm.sign("assign", "assignment", assignment), **NAMES)
    ceremony.require_enrolled()
    hear(ceremony, "refused", realm.sign("assign", "refused", refused), **NAMES)
    ceremony.require_enrolled()  # what was answered already is not taken back


def test_a_folder_that_can_not_be_made_is_told_before_anything_is_sent(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    # No hub answers there: who sent anything would have to say so.
    string = JoinString("127.0.0.1", 1, "demo", "lab", "n1", b"t" * 32, b"r" * 32)
    with pytest.raises(ConfigError, match=r"node can't be made .*: choose a folder you may write to"):
        asyncio.run(join(string, tmp_path / "file" / "node", 0, Random(1)))
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_no_secret_of_joining_shows_in_what_a_log_or_a_traceback_would_print() -> None:
    token, seed = b"t" * 32, b"s" * 32
    string = JoinString("127.0.0.1", 1, "demo", "lab", "n1", token, b"r" * 32)
    request = Enroll(token=token, key=PrivateKey(seed).public.raw, nonce=bytes(16))
    for said in (repr(string), repr(request), str(request), repr(keep_in("file", PrivateKey(seed)))):
        assert "t" * 8 not in said and seed.hex() not in said and token.hex() not in said
