"""Denials: any order gives the same set, each attack that has a name, and bytes from anywhere."""

import random
import time
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from heliograph import deny, trust
from heliograph.blob import sha256
from heliograph.deny import DenySet, encode_list, list_digest, older_blob
from heliograph.documents import Denials, Deny, DenyAll, DenyKey, Heads, OlderDenials
from heliograph.errors import IntegrityError, TrustError
from heliograph.signing import PrivateKey, sign_statement
from heliograph.statement import Statement, encode, parse
from heliograph.wire import pack, unpack
from realms import Realm

GOLDEN = Path(__file__).parents[1] / "data" / "golden" / "deny-set.bin"
BAD, WORSE, GOOD, RECIPE = (sha256(name) for name in (b"bad", b"worse", b"good", b"recipe"))
STOLEN, HONEST = sha256(b"stolen key"), sha256(b"honest key")
NOBODY = PrivateKey.generate(bytes(32))
NO_HEAD = Denials()


@cache
def realm(seed: int = 1, name: str = "demo") -> Realm:
    return Realm(seed, name)


@cache
def trusted(seed: int = 1, name: str = "demo") -> trust.TrustedSet:
    one = realm(seed, name)
    return trust.with_set(one.bootstrap(), one.publish().pack(), one.now)


def denied(
    *releases: bytes, keys: tuple[int, ...] = (0,), of: Realm | None = None, at: int = 5, reason: str = ""
) -> bytes:
    one = of or realm()
    document = Deny(realm=one.name, releases=releases, reason=reason, at=at)
    return sign_statement("deny", document.encode(), [one.keys["deny"][i] for i in keys])


def denied_key(*keyids: bytes, keep: tuple[bytes, ...] = (), keys: tuple[int, ...] = (0, 1)) -> bytes:
    document = DenyKey(realm=realm().name, keys=keyids, keep=keep, at=6)
    return sign_statement("deny-key", document.encode(), [realm().keys["deny-key"][i] for i in keys])


def head_of(statements: list[bytes]) -> Denials:
    digests = {sha256(parse(statement).payload) for statement in statements}
    return Denials(count=len(digests), digest=list_digest(digests))


def listed(*statements: bytes) -> bytes:
    return encode_list(statements)[0]


def garbled(statement: bytes) -> bytes:
    """The same denial with its first signature broken."""
    read = parse(statement)
    (keyid, signature), *rest = read.signatures
    return encode(Statement(read.type, read.payload, ((keyid, bytes(64 - len(signature)) + signature[::-1]), *rest)))


# --- what a denial says -------------------------------------------------------------------------------------------


def test_a_release_is_denied_by_its_digest_and_no_other_is() -> None:
    one = DenySet().with_statement(denied(BAD, RECIPE, reason="wrong labels"), trusted())
    found = one.is_denied(BAD)
    assert found is not None and found.document is not None and found.document.reason == "wrong labels"
    assert one.is_recipe_denied(RECIPE) == one.forbids(BAD) == found
    assert one.is_denied(GOOD) is one.is_recipe_denied(GOOD) is one.forbids(GOOD, [STOLEN]) is None


def test_everything_a_denied_key_vouched_for_is_denied_except_what_is_kept() -> None:
    one = DenySet().with_statement(denied_key(STOLEN, keep=(GOOD,)), trusted())
    assert one.is_denied(BAD, [HONEST, STOLEN]) is not None
    assert one.is_final(BAD, [STOLEN]), "it took two signatures"
    assert one.is_denied(GOOD, [STOLEN]) is one.is_denied(BAD, [HONEST]) is None
    assert not one.is_final(GOOD, [STOLEN])
    assert one.is_key_denied(STOLEN) and not one.is_key_denied(HONEST)


def _lax() -> tuple[Realm, trust.TrustedSet]:
    """A realm in which one signature denies a key."""
    one = Realm(9)

    def loosen(signed: Any) -> None:
        signed.delegations.roles["deny-key"].threshold = 1

    return one, trust.with_set(one.bootstrap(), one.publish(edit={"targets": loosen}).pack(), one.now)


def test_a_key_denied_by_one_signature_ends_nothing_for_good_whatever_the_realm_allows() -> None:
    one, lax = _lax()

    def by(number: int, at: int = 6) -> bytes:
        document = DenyKey(realm=one.name, keys=(STOLEN,), at=at)
        return sign_statement("deny-key", document.encode(), [one.keys["deny-key"][number]])

    once = DenySet().with_statement(by(0), lax)
    assert once.is_denied(BAD, [STOLEN]) and not once.is_final(BAD, [STOLEN])
    assert not once.with_statement(by(0, at=7), lax).is_final(BAD, [STOLEN]), "one person twice is one person"
    assert once.with_statement(by(1), lax).is_final(BAD, [STOLEN])
    assert once.with_statement(by(1, at=7), lax).is_final(BAD, [STOLEN]), "in two denials of it too"


def test_a_key_denied_by_two_stays_so_finally_when_one_newer_key_signs_it_again() -> None:
    one, before, after = _rotated("deny-key")
    document = DenyKey(realm=one.name, keys=(STOLEN,), at=6).encode()
    signed_before = sign_statement("deny-key", document, Realm(1).keys["deny-key"][:2])
    held = DenySet().with_statement(signed_before, before).with_trusted(after)
    assert held.is_final(BAD, [STOLEN])
    again = held.with_statement(sign_statement("deny-key", document, one.keys["deny-key"][:1]), after)
    assert again != held and again.is_final(BAD, [STOLEN])
    assert DenySet.from_bytes(again.to_bytes()).is_final(BAD, [STOLEN])


def test_what_one_denial_keeps_another_may_still_deny() -> None:
    one = DenySet().with_statement(denied_key(STOLEN, keep=(GOOD,)), trusted())
    assert one.with_statement(denied(GOOD), trusted()).is_denied(GOOD, [STOLEN]) is not None
    assert one.with_statement(denied_key(STOLEN), trusted()).is_denied(GOOD, [STOLEN]) is not None


def test_a_second_signature_makes_a_denial_final_in_the_same_statement_or_another() -> None:
    once = DenySet().with_statement(denied(BAD), trusted())
    assert once.is_denied(BAD) and not once.is_final(BAD)
    for second in (denied(BAD, keys=(1,)), denied(BAD, keys=(0, 1)), denied(BAD, WORSE, keys=(1,), at=99)):
        assert once.with_statement(second, trusted()).is_final(BAD)
    again = once.with_statement(denied(BAD, at=99), trusted())
    assert again.count == 2 and not again.is_final(BAD), "one person twice is one person"


def test_a_denial_counts_at_any_age_whatever_the_clock_says() -> None:
    for at in (0, realm().now - 10**9, realm().now + 10**9, (1 << 40) - 1):
        assert DenySet().with_statement(denied(BAD, at=at), trusted()).is_denied(BAD)
    for now in (0, realm().now + 10**9):  # the set has expired, and 1970
        old = trust.with_set(realm().bootstrap(), realm().publish().pack(), realm().now)
        assert not old.is_fresh(realm().now + 10**9) or now == 0
        assert DenySet().with_statement(denied(BAD), old).is_denied(BAD)


def test_a_denial_of_one_release_is_189_bytes_and_of_one_key_296() -> None:
    now = realm().now
    key_denial = DenyKey(realm="demo", keys=(STOLEN,), at=now)
    sizes = [
        len(denied(BAD, at=now)),
        len(sign_statement("deny-key", key_denial.encode(), realm().keys["deny-key"][:2])),
        len(listed(denied(BAD, at=now))),
    ]
    assert sizes == [189, 296, 217]


# --- order --------------------------------------------------------------------------------------------------------

EVERY = (
    [denied(sha256(b"%d" % n), keys=(n % 2,), at=n) for n in range(8)]
    + [denied(sha256(b"%d" % n), keys=(1,), at=n) for n in range(4)]
    + [denied(BAD, WORSE, keys=(0, 1)), denied_key(STOLEN), denied_key(HONEST, keep=(GOOD,), keys=(1, 2))]
    + [denied_key(STOLEN, keys=(0, 2)), denied_key(STOLEN, keys=(0, 1, 2))]
)


def _all_in_order() -> DenySet:
    one = DenySet()
    for statement in EVERY:
        one = one.with_statement(statement, trusted())
    return one


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_order_with_duplicates_replays_and_subsets_gives_the_same_set(data: st.DataObject) -> None:
    whole = _all_in_order()
    one = DenySet()
    order = data.draw(st.permutations(EVERY)) + data.draw(st.lists(st.sampled_from(EVERY), max_size=8))
    while order:
        size = data.draw(st.integers(1, len(order)))
        part, order = order[:size], order[size:]
        one = (
            one.with_list(listed(*part), trusted(), head_of(EVERY))
            if data.draw(st.booleans())
            else one.with_statement(part[0], trusted()).with_list(listed(*part[1:]), trusted(), NO_HEAD)
        )
        if data.draw(st.booleans()):
            one = DenySet.from_bytes(one.to_bytes())
    assert one == whole
    assert (one.count, one.digest, one.final) == (whole.count, whole.digest, whole.final)
    assert one.holds_all(head_of(EVERY))


def test_a_thousand_shuffled_orders_and_replays_converge_in_bounded_time() -> None:
    some = EVERY[::2]
    whole, rng, begun = DenySet(), random.Random(3), time.process_time()
    for statement in some:
        whole = whole.with_statement(statement, trusted())
    for _ in range(1000):
        order = [*some, *rng.choices(some, k=5)]
        rng.shuffle(order)
        one = DenySet()
        for at in range(0, len(order), 4):
            one = one.with_list(listed(*order[at : at + 4]), trusted(), NO_HEAD)
        assert one == whole
        assert one.holds_all(whole.head)
    assert time.process_time() - begun < 60


def test_a_subset_is_a_subset_and_grows_only() -> None:
    rng = random.Random(4)
    one = DenySet()
    for _ in range(40):
        before = one
        one = one.with_list(listed(*rng.sample(EVERY, 3)), trusted(), NO_HEAD)
        assert before.denials.keys() <= one.denials.keys() and before.final <= one.final
        for release in (BAD, WORSE, *(sha256(b"%d" % n) for n in range(8))):
            assert one.is_denied(release) is not None or before.is_denied(release) is None
            assert one.is_final(release) or not before.is_final(release)


# --- attacks, by name ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("role", ["deny-key", "timestamp", "ring-canary", "sign-digits", "approve-digits", "root"])
def test_attack_a_key_of_another_role_denies(role: str) -> None:
    document = Deny(realm="demo", releases=(GOOD,), at=5)
    statement = sign_statement("deny", document.encode(), realm().keys[role])
    with pytest.raises(TrustError, match="signed by 0 keys of deny, it needs 1"):
        DenySet().with_statement(statement, trusted())
    assert DenySet().with_list(listed(statement), trusted(), NO_HEAD) == DenySet().with_trusted(trusted())


def test_attack_a_stranger_denies_under_the_id_of_a_key_that_may() -> None:
    document = Deny(realm="demo", releases=(GOOD,), at=5).encode()
    (_, forged), *_ = parse(sign_statement("deny", document, [NOBODY])).signatures
    statement = encode(Statement("deny", document, ((realm().keys["deny"][0].keyid, forged),)))
    with pytest.raises(TrustError):
        DenySet().with_statement(statement, trusted())


def test_attack_a_denial_is_replayed_into_another_realm_that_shares_its_keys() -> None:
    twin = Realm(1)
    twin.name, twin.roots = "other", []
    twin.rotate()
    other = trust.with_set(twin.bootstrap(), twin.publish().pack(), twin.now)
    assert other.realm == "other" and other.statement_keys("deny") == trusted().statement_keys("deny")
    with pytest.raises(TrustError, match="is for realm demo, not for realm other"):
        DenySet().with_statement(denied(GOOD), other)
    one = DenySet().with_list(listed(denied(GOOD)), other, head_of([denied(GOOD)]))
    assert one.holds_all(head_of([denied(GOOD)])), "a list that the timestamp names never blocks for good"
    assert one.count == 0 and one.forbids(GOOD) is None


@pytest.mark.parametrize("keys", [(0,), (1,), (2,)])
def test_attack_one_stolen_deny_key_key_denies_a_key_alone(keys: tuple[int, ...]) -> None:
    with pytest.raises(TrustError, match="signed by 1 keys of deny-key, it needs 2"):
        DenySet().with_statement(denied_key(HONEST, keys=keys), trusted())
    one = DenySet().with_list(listed(denied_key(HONEST, keys=keys)), trusted(), NO_HEAD)
    assert one.count == 0 and one.forbids(GOOD, [HONEST]) is None


def test_attack_one_signature_stands_twice_for_the_threshold_of_two() -> None:
    read = parse(denied_key(HONEST, keys=(0,)))
    (keyid, signature), *_ = read.signatures
    twice = pack([1, "deny-key", read.payload, [[keyid, signature], [keyid, signature]]])
    with pytest.raises(IntegrityError, match="names a key twice"):
        DenySet().with_statement(twice, trusted())


def test_attack_a_denial_of_releases_is_passed_off_as_one_of_keys() -> None:
    both = pack({"realm": "demo", "releases": [GOOD], "keys": [HONEST], "at": 5})
    with pytest.raises(IntegrityError, match="reads as deny and as deny-key"):
        DenySet().with_statement(sign_statement("deny", both, realm().keys["deny"]), trusted())
    read = parse(denied(GOOD))
    with pytest.raises(TrustError):
        DenySet().with_statement(encode(Statement("deny-key", read.payload, read.signatures)), trusted())


def test_attack_a_denial_is_taken_off_the_list_again() -> None:
    one = DenySet().with_list(listed(denied(BAD), denied(WORSE)), trusted(), NO_HEAD)
    for rest in ([denied(WORSE)], [], [denied(GOOD)]):
        after = one.with_list(listed(*rest), trusted(), head_of(rest))
        assert after.is_denied(BAD) is not None
        assert after.holds_all(head_of(rest)), "holding more never blocks"


def test_attack_the_list_is_withheld_and_nothing_new_is_activated() -> None:
    head = head_of([denied(BAD), denied(WORSE)])
    one = DenySet().with_list(listed(denied(WORSE)), trusted(), head)
    assert not DenySet().holds_all(head) and not one.holds_all(head)
    assert one.is_denied(WORSE) is not None, "what came is in force all the same"
    assert one.with_statement(denied(BAD), trusted()).holds_all(head)
    assert DenySet().holds_all(NO_HEAD), "before the first denial nothing is missing"


def test_attack_as_many_other_denials_stand_for_those_that_the_timestamp_names() -> None:
    head = head_of([denied(BAD), denied(WORSE)])
    one = DenySet().with_list(listed(denied(GOOD), denied(RECIPE), denied(WORSE)), trusted(), head)
    assert one.count > head.count and not one.holds_all(head)


def test_attack_a_list_names_older_ones_that_exist_nowhere() -> None:
    statements = [denied(BAD), denied(WORSE)]
    payload = DenyAll(statements=tuple(statements), older=OlderDenials(length=1 << 20, sha256=GOOD)).encode()
    assert DenySet().with_list(payload, trusted(), head_of(statements)).holds_all(head_of(statements))


def test_a_list_that_is_newer_than_the_timestamp_is_in_force_at_once() -> None:
    old, new = head_of([denied(BAD)]), head_of([denied(BAD), denied(WORSE)])
    one = DenySet().with_list(listed(denied(BAD), denied(WORSE)), trusted(), old)
    assert one.is_denied(WORSE) is not None
    assert one.holds_all(new), "when the timestamp comes it names what is held"
    # The list that the older timestamp names was never seen whole, so it is asked for, and that is enough.
    assert one.with_list(listed(denied(BAD)), trusted(), old).holds_all(old)


def test_attack_signatures_are_garbled_on_the_way_so_that_the_list_seems_held() -> None:
    broken, head = garbled(denied(BAD)), head_of([denied(BAD)])
    one = DenySet().with_list(listed(broken), trusted(), head)
    assert one.holds_all(head), "one that can't be verified never blocks other releases"
    assert one.forbids(BAD) is not None, "but what it names is not activated: the timestamp vouches for the words"
    assert one.is_denied(BAD) is None and not one.is_final(BAD), "and nobody is moved off what runs"
    assert one.head != head, "so the hub sends the list again"
    assert one.with_list(listed(denied(BAD)), trusted(), head).is_denied(BAD) is not None
    assert one.with_list(listed(denied(BAD)), trusted(), head).with_list(listed(broken), trusted(), head).head == head


def test_attack_a_list_is_garbled_before_the_timestamp_that_names_it_comes() -> None:
    statements = [denied(BAD), denied(WORSE)]
    head = head_of(statements)
    garbled_first = DenySet().with_list(listed(garbled(statements[0]), statements[1]), trusted(), NO_HEAD)
    assert garbled_first.count == 1 and not garbled_first.holds_all(head), "a list counts as held only if all of it is"
    assert garbled_first.with_list(listed(*statements), trusted(), NO_HEAD).holds_all(head)


def test_attack_one_stolen_key_of_each_role_together_end_what_only_two_of_one_may() -> None:
    statements = [denied(BAD), denied_key(STOLEN, keys=(0,))]
    held = DenySet().with_list(listed(*statements), trusted(), head_of(statements))
    assert len(held.denials) == 2 and held.is_denied(BAD, [STOLEN])
    assert not held.is_final(BAD, [STOLEN]), "a denial of a key that doesn't verify ends nothing"


def test_attack_a_denial_of_a_key_comes_under_the_wrong_type_so_that_it_says_nothing() -> None:
    read, head = parse(denied_key(STOLEN)), head_of([denied_key(STOLEN)])
    for type_ in ("deny", "gossip"):
        one = DenySet().with_list(listed(encode(Statement(type_, read.payload, read.signatures))), trusted(), head)
        assert one.forbids(BAD, [STOLEN]) is not None


def test_what_does_not_verify_is_kept_only_while_the_list_that_is_named_has_it() -> None:
    strange = sign_statement("deny", Deny(realm="demo", releases=(WORSE,), at=5).encode(), [NOBODY])
    named, bare = head_of([denied(BAD), strange]), head_of([denied(BAD)])
    assert DenySet().with_list(listed(denied(BAD), strange), trusted(), bare).unverified == ()
    one = DenySet().with_list(listed(denied(BAD), strange), trusted(), named)
    assert [found.statement for found in one.unverified] == [strange]
    assert one.holds_all(named) and one.count == 1
    after = one.with_list(listed(denied(BAD)), trusted(), bare)
    assert after.unverified == () and after.forbids(WORSE) is None and after.is_denied(BAD) is not None


def test_a_denial_of_a_later_form_is_held_and_blocks_nothing() -> None:
    later = sign_statement("deny", pack({"realm": "demo", "sites": ["shop"], "crit": ["sites"]}), realm().keys["deny"])
    one = DenySet().with_list(listed(later), trusted(), head_of([later]))
    assert one.holds_all(head_of([later])) and one.count == 0
    assert DenySet.from_bytes(one.to_bytes()) == one


def test_attack_a_stolen_deny_key_floods_the_set_and_the_named_list_still_fits() -> None:
    flood = [denied(*(sha256(b"%d" % n),), at=n) for n in range(260)]
    one = DenySet()
    for at in range(0, len(flood), 130):
        one = one.with_list(listed(*flood[at : at + 130]), trusted(), NO_HEAD)
    assert one.count == 260
    full = deny.DenySet(
        {sha256(b"%d" % n): next(iter(one.denials.values())) for n in range(deny.MAX_DENIALS - deny.MAX_LISTED)},
        judged_by=one.judged_by,
    )
    with pytest.raises(IntegrityError, match="no room is left"):
        full.with_statement(denied(BAD), trusted())
    assert full.with_list(listed(denied(BAD)), trusted(), NO_HEAD).is_denied(BAD) is None
    assert full.with_list(listed(denied(BAD)), trusted(), head_of([denied(BAD)])).is_denied(BAD) is not None


# --- keys that change ---------------------------------------------------------------------------------------------


def _rotated(*roles: str) -> tuple[Realm, trust.TrustedSet, trust.TrustedSet]:
    one = Realm(1)
    before = trust.with_set(one.bootstrap(), one.publish().pack(), one.now)
    for role in roles:
        one.keys[role] = [one.new_key() for _ in one.keys[role]]
    return one, before, trust.with_set(before, one.publish().pack(), one.now)


def test_a_denial_outlives_the_key_that_signed_it_but_its_signature_makes_nothing_final_any_more() -> None:
    one, before, after = _rotated("deny")
    held = DenySet().with_statement(denied(BAD), before).with_trusted(after)
    assert held.is_denied(BAD) is not None and held.count == 1
    signed_again = denied(BAD, of=one)
    both = held.with_statement(signed_again, after)
    assert both.is_denied(BAD) and not both.is_final(BAD), "the same person's old and new key"
    assert both.with_statement(denied(BAD, keys=(1,), of=one), after).is_final(BAD)
    final = DenySet().with_statement(denied(BAD, keys=(0, 1)), before).with_trusted(after)
    assert final.is_final(BAD), "what was final stays final"
    with pytest.raises(TrustError):
        DenySet().with_statement(denied(BAD), after)
    assert held.with_statement(denied(BAD), after) == held, "a replay of what is held changes nothing"


def test_what_did_not_verify_does_when_the_set_brings_its_keys() -> None:
    one, before, after = _rotated("deny", "deny-key")
    statement = denied(BAD, of=one)
    early = DenySet().with_list(listed(statement), before, head_of([statement]))
    assert early.count == 0
    assert early.with_trusted(after).is_denied(BAD) is not None
    assert early.with_trusted(after) == DenySet().with_statement(statement, after)


def test_without_a_set_nothing_verifies_and_nothing_held_is_lost() -> None:
    empty = realm().bootstrap()
    with pytest.raises(TrustError):
        DenySet().with_statement(denied(BAD), empty)
    held = DenySet().with_statement(denied(BAD, keys=(0, 1)), trusted())
    assert held.with_trusted(empty).is_denied(BAD) and held.with_trusted(empty).is_final(BAD)


# --- lists too long for one message -------------------------------------------------------------------------------


def _many(count: int) -> list[bytes]:
    return [denied(sha256(b"%d" % n), at=n, reason="x" * 100) for n in range(count)]


def test_a_list_too_long_for_one_message_names_a_blob_with_the_older_ones() -> None:
    statements = _many(300)
    payload, blob = encode_list(statements)
    assert len(payload) <= deny.MAX_LIST_BYTES - 100 and blob is not None
    assert older_blob(payload) == OlderDenials(length=len(blob), sha256=sha256(blob))
    head = head_of(statements)
    part = DenySet().with_list(payload, trusted(), head)
    assert 150 < part.count < 300 and part.is_denied(sha256(b"0")) is not None, "the newest are in force at once"
    assert not part.holds_all(head)
    whole = part.with_list(payload, trusted(), head, blob)
    assert whole.holds_all(head) and whole.head == head
    assert older_blob(listed(denied(BAD))) is None and encode_list(statements[:10])[1] is None


def test_a_blob_that_is_not_the_one_named_is_refused() -> None:
    payload, blob = encode_list(_many(300))
    assert blob is not None
    for wrong in (blob[:-1], blob + b"x", bytes(len(blob)), b""):
        with pytest.raises(IntegrityError, match="not the older denials"):
            DenySet().with_list(payload, trusted(), NO_HEAD, wrong)
    with pytest.raises(IntegrityError, match="not the older denials"):
        DenySet().with_list(listed(denied(BAD)), trusted(), NO_HEAD, blob)
    for content in (pack([1, 2]), pack({"a": b"x"}), pack([[b"x"]]), b"\xc1"):
        named = DenyAll(older=OlderDenials(length=len(content), sha256=sha256(content))).encode()
        with pytest.raises(IntegrityError):
            DenySet().with_list(named, trusted(), NO_HEAD, content)


def test_a_list_longer_than_any_hub_makes_is_refused() -> None:
    tiny = encode(Statement("deny", b"", ()))
    blob = pack([tiny] * deny.MAX_LISTED)
    payload = DenyAll(statements=(tiny,), older=OlderDenials(length=len(blob), sha256=sha256(blob))).encode()
    with pytest.raises(IntegrityError, match="a list has at most 2048"):
        DenySet().with_list(payload, trusted(), NO_HEAD, blob)
    with pytest.raises(IntegrityError, match="a list has at most 2048"):
        encode_list([tiny] * (deny.MAX_LISTED + 1))


# --- bytes --------------------------------------------------------------------------------------------------------


def test_the_stored_row_reads_back_and_every_flipped_bit_is_found() -> None:
    one = _all_in_order().with_list(listed(garbled(denied(GOOD))), trusted(), head_of([denied(GOOD)]))
    data = one.to_bytes()
    read = DenySet.from_bytes(data)
    assert read == one and read.lists == one.lists and read.to_bytes() == data
    assert DenySet.from_bytes(DenySet().to_bytes()) == DenySet()
    for at in random.Random(5).sample(range(len(data) * 8), 400):
        flipped = bytearray(data)
        flipped[at // 8] ^= 1 << at % 8
        with pytest.raises(IntegrityError):
            DenySet.from_bytes(bytes(flipped))


def test_a_row_of_a_newer_version_is_refused_by_name() -> None:
    with pytest.raises(IntegrityError, match="has format 2, this version reads 1"):
        DenySet.from_bytes(pack([2, bytes(32), b""]))


@pytest.mark.parametrize(
    "change", [{"denials": [b"x"]}, {"denials": 5}, {"final": b"x"}, {"lists": "x"}, {"denials": [5]}]
)
def test_a_row_whose_fields_make_no_sense_is_damaged(change: dict[str, object]) -> None:
    body = pack({"denials": [], "final": b"", "judged_by": b"", "lists": b""} | change)
    with pytest.raises(IntegrityError):
        DenySet.from_bytes(pack([1, sha256(body), body]))


def test_a_golden_row_reads_as_the_set_it_was() -> None:
    held = DenySet.from_bytes(GOLDEN.read_bytes())
    assert held.is_final(BAD) and held.is_denied(WORSE, [STOLEN]) is not None and held.count == 2
    assert held == DenySet().with_list(listed(denied(BAD, keys=(0, 1)), denied_key(STOLEN)), trusted(), NO_HEAD)
    assert held.to_bytes() == GOLDEN.read_bytes()


def test_statements_recalled_from_storage_are_in_force_whatever_keys_are_now() -> None:
    _, before, after = _rotated("deny")
    held = DenySet().with_statement(denied(BAD), before)
    for now in (before, after):
        assert DenySet.recall([denied(BAD)], now) == held.with_trusted(now)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=300) | st.recursive(
    st.none() | st.binary(max_size=40) | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["statements", "older"]), inner),
).map(lambda value: _packed(value)))  # fmt: skip
def test_hostile_bytes_are_our_errors_and_change_nothing(data: bytes) -> None:
    held = DenySet().with_statement(denied(BAD), trusted())
    for take in (
        lambda: held.with_list(data, trusted(), NO_HEAD),
        lambda: held.with_statement(data, trusted()),
        lambda: held.with_list(DenyAll(statements=(data,)).encode(), trusted(), NO_HEAD),
        lambda: DenySet.from_bytes(data),
        lambda: older_blob(data),
    ):
        try:
            after = take()
        except (IntegrityError, TrustError):
            continue
        assert not isinstance(after, DenySet) or after.denials in (held.denials, {})


def _packed(value: object) -> bytes:
    try:
        return pack(value)
    except (OverflowError, ValueError):
        return b""


def test_every_flipped_bit_of_a_statement_is_found() -> None:
    statement = denied(BAD)
    for at in range(len(statement) * 8):
        flipped = bytearray(statement)
        flipped[at // 8] ^= 1 << at % 8
        with pytest.raises((IntegrityError, TrustError)):
            DenySet().with_statement(bytes(flipped), trusted())


def test_a_hostile_list_of_full_size_costs_bounded_time() -> None:
    signers = realm().keys["deny"]
    fill = [Statement("deny", b"%d" % n, tuple((key.keyid, bytes(64)) for key in signers)) for n in range(280)]
    payload = DenyAll(statements=tuple(map(encode, fill))).encode()
    assert deny.MAX_LIST_BYTES * 0.9 < len(payload) <= deny.MAX_LIST_BYTES
    begun = time.process_time()
    after = DenySet().with_list(payload, trusted(), NO_HEAD)
    assert time.process_time() - begun < 2 and after.count == 0


def test_the_head_in_the_timestamp_is_that_of_the_set() -> None:
    one = Realm(1)
    held = DenySet().with_statement(denied(BAD), trusted())
    one.heads = Heads(deny=held.head)
    published = trust.with_set(one.bootstrap(), one.publish().pack(), one.now)
    assert held.holds_all(published.heads.deny) and not DenySet().holds_all(published.heads.deny)
    assert DenySet().head == Denials() == Heads().deny
    digests = sorted(sha256(parse(statement).payload) for statement in (denied(BAD), denied(WORSE)))
    both = held.with_statement(denied(WORSE), trusted())
    assert both.digest == sha256(b"".join(digests)) and both.count == 2
    assert unpack(both.to_bytes())[0] == 1
