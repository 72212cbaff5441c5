"""Attacks on the AND of duties and on statements, by whoever holds some of the keys."""

from dataclasses import replace
from typing import Any

import pytest

from heliograph import statement as envelope
from heliograph import trust, vouching
from heliograph.blob import sha256
from heliograph.documents import Assignment, Directive, Receipt, Reply
from heliograph.errors import RefusedError, TrustError
from heliograph.protocol import topic
from heliograph.signing import sign_statement
from heliograph.statement import Statement
from heliograph.trust import TrustedSet
from heliograph.vouching import UnknownTypeError
from heliograph.wire import unpack
from heliograph_hub import ceremony
from realms import DAY, MODEL, NOW, Realm

SIGN, APPROVE = f"sign-{MODEL}", f"approve-{MODEL}"


# --- duties -------------------------------------------------------------------------------------------------------


def admit(world: Realm, release: bytes, **changes: Any) -> vouching.AdmissibleTarget:
    held = trust.with_set(world.bootstrap(), world.publish().pack(), NOW)
    return vouching.admit(
        held, world.sign("ring-canary", "directive", world.directive(release, **changes)), "canary", NOW
    )


def test_signed_but_not_approved_is_not_admissible(realm: Realm) -> None:
    with pytest.raises(TrustError, match=f"is not approved: {APPROVE} does not list digits/1.0.0"):
        admit(realm, realm.list_release("1.0.0", b"one", SIGN))


def test_approved_but_not_signed_is_not_admissible(realm: Realm) -> None:
    with pytest.raises(TrustError, match=f"is not signed: {SIGN} does not list digits/1.0.0"):
        admit(realm, realm.list_release("1.0.0", b"one", APPROVE))


def test_signed_and_approved_with_different_digests_is_not_admissible(realm: Realm) -> None:
    signed = realm.list_release("1.0.0", b"one", SIGN)
    approved = realm.list_release("1.0.0", b"another", APPROVE)
    with pytest.raises(TrustError, match=r"is not approved: .* with another length or digest"):
        admit(realm, signed)
    with pytest.raises(TrustError, match=r"is not signed: .* with another length or digest"):
        admit(realm, approved)


def test_signed_and_approved_with_different_lengths_is_not_admissible(realm: Realm) -> None:
    release = realm.list_release("1.0.0", b"one", SIGN)
    realm.list_release("1.0.0", b"one", APPROVE, length=1001)
    with pytest.raises(TrustError, match="with another length or digest"):
        admit(realm, release)


def test_two_validly_signed_releases_swapped_are_not_admissible(realm: Realm) -> None:
    for role, contents in ((SIGN, (b"one", b"two")), (APPROVE, (b"two", b"one"))):
        realm.list_release("1.0.0", contents[0], role)
        realm.list_release("1.1.0", contents[1], role)
    for content in (b"one", b"two"):
        with pytest.raises(TrustError, match=r"is not (signed|approved)"):
            admit(realm, sha256(content))


def test_what_only_the_top_level_targets_lists_is_nobodys_duty(realm: Realm) -> None:
    target = ceremony.make_target(f"{MODEL}/1.0.0", 1000, sha256(b"one"))
    files = realm.publish(edit={"targets": lambda signed: signed.targets.update({target.path: target})})
    held = trust.with_set(realm.bootstrap(), files.pack(), NOW)
    assert held.target(MODEL, sha256(b"one")) is None
    order = realm.sign("ring-canary", "directive", realm.directive(sha256(b"one")))
    with pytest.raises(TrustError, match="is not signed"):
        vouching.admit(held, order, "canary", NOW)


def test_a_duty_can_not_list_another_models_release(realm: Realm) -> None:
    path = "faces/1.0.0"
    for role in (SIGN, APPROVE):
        realm.listed[role][path] = ceremony.make_target(path, 1000, sha256(b"face"))
    held = trust.with_set(realm.bootstrap(), realm.publish().pack(), NOW)
    assert held.releases(MODEL) == ()
    assert held.target("faces", sha256(b"face")) is None


def test_a_duty_lists_only_within_the_paths_delegated_to_it(realm: Realm) -> None:
    def narrow(signed: Any) -> None:
        signed.delegations.roles[APPROVE].paths = [f"{MODEL}/1.*"]

    inside, outside = realm.list_release("1.0.0", b"one"), realm.list_release("2.0.0", b"two")
    held = trust.with_set(realm.bootstrap(), realm.publish(edit={"targets": narrow}).pack(), NOW)
    assert vouching.admit(held, realm.sign("ring-canary", "directive", realm.directive(inside)), "canary", NOW)
    with pytest.raises(TrustError, match="is not approved"):
        vouching.admit(held, realm.sign("ring-canary", "directive", realm.directive(outside)), "canary", NOW)


@pytest.mark.parametrize("version", ["evil", "1.0", "01.0.0", "1.0.0\n", "", "..", "1.0.0/x", "1.0.0-rc1"])
def test_a_path_that_is_no_version_lists_nothing(realm: Realm, version: str) -> None:
    realm.list_release(version, b"odd")
    good = realm.list_release("1.0.0", b"one")
    held = trust.with_set(realm.bootstrap(), realm.publish().pack(), NOW)
    assert [target.sha256 for target in held.releases(MODEL)] == [good]
    assert held.target(MODEL, sha256(b"odd")) is None


def test_what_a_duty_delegates_further_does_not_count(realm: Realm) -> None:
    accomplice = realm.new_key()

    def delegate(signed: Any) -> None:
        signed.delegations = ceremony.make_targets(1, NOW).signed.delegations
        ceremony.delegate(signed, "sign-faces", [accomplice.public], 1, ["faces/*"])

    held = trust.with_set(realm.bootstrap(), realm.publish(edit={SIGN: delegate}).pack(), NOW)
    with pytest.raises(TrustError, match="delegated by nobody"):
        held.role_keys("sign-faces")


@pytest.mark.parametrize("stolen", [SIGN, APPROVE, "ring-canary", "timestamp", "snapshot", "assign", "recipes", "root"])
def test_one_stolen_key_admits_nothing(realm: Realm, stolen: str) -> None:
    """The thief forges what the key can, the hub is fooled into publishing it, and operations into directing it."""
    good, evil = realm.list_release("1.0.0", b"one"), sha256(b"evil")
    held = trust.with_set(realm.bootstrap(), realm.publish().pack(), NOW)
    target = ceremony.make_target(f"{MODEL}/6.6.6", 1000, evil)
    add = {role: lambda signed: signed.targets.update({target.path: target}) for role in (SIGN, APPROVE)}
    key = realm.keys[stolen][:1]
    taken = []
    for forged in ((SIGN, APPROVE), (SIGN,), (APPROVE,)):
        files = realm.publish(edit={role: add[role] for role in forged}, signers=dict.fromkeys(forged, key))
        try:
            held = trust.with_set(held, files.pack(), NOW)
            taken.append(forged)
        except TrustError:
            continue
    assert taken == ([(SIGN,)] if stolen == SIGN else [])
    with pytest.raises(TrustError, match=r"is not (signed|approved)"):
        vouching.admit(held, realm.sign("ring-canary", "directive", realm.directive(evil)), "canary", NOW)
    honest = trust.with_set(held, realm.publish().pack(), NOW)
    order = realm.sign("ring-canary", "directive", realm.directive(good))
    assert vouching.admit(honest, order, "canary", NOW).target.sha256 == good


# --- directives and other statements ------------------------------------------------------------------------------


def test_a_release_that_no_directive_names_is_not_admissible(realm: Realm) -> None:
    realm.list_release("1.0.0", b"one")
    with pytest.raises(TrustError, match="is not signed"):
        admit(realm, sha256(b"unheard of"))


@pytest.mark.parametrize(
    ("changes", "error", "says"),
    [
        ({"expires": NOW}, TrustError, "is not directed: directive 1 expired"),
        ({"action": "hold"}, RefusedError, "says hold"),
        ({"action": "return"}, RefusedError, "says return"),
        ({"not_before": NOW + 1}, RefusedError, "may be installed from"),
        ({"not_before": (1 << 40) - 1}, RefusedError, "may be installed from second 1099511627775 on"),
        ({"realm": "other"}, TrustError, "is for realm other"),
        ({"ring": "early"}, TrustError, "is for ring early"),
    ],
)
def test_a_directive_directs_only_what_it_says(
    realm: Realm, changes: dict[str, Any], error: type[Exception], says: str
) -> None:
    release = realm.list_release("1.0.0", b"one")
    assert admit(realm, release).target.sha256 == release
    with pytest.raises(error, match=says):
        admit(realm, release, **changes)


def test_a_directive_of_another_ring_directs_nothing_here(realm: Realm, held: TrustedSet) -> None:
    early = realm.sign("ring-early", "directive", realm.directive(sha256(b"one"), ring="early"))
    assert vouching.admit(held, early, "early", NOW)
    with pytest.raises(TrustError, match="signed by 0 keys of ring-canary"):
        vouching.admit(held, early, "canary", NOW)


def test_protected_needs_both_its_keys(realm: Realm, held: TrustedSet) -> None:
    order = realm.directive(sha256(b"one"), ring="protected").encode()
    one = sign_statement("directive", order, realm.keys["ring-protected"][:1])
    with pytest.raises(TrustError, match="signed by 1 keys of ring-protected, it needs 2"):
        vouching.admit(held, one, "protected", NOW)
    assert vouching.admit(held, sign_statement("directive", order, realm.keys["ring-protected"]), "protected", NOW)


def assignment(world: Realm, **changes: Any) -> Assignment:
    fields: dict[str, Any] = {"realm": world.name, "site": "shop", "node": "till", "key": b"k" * 32, "number": 1}
    return Assignment(**(fields | {"ring": "canary"} | changes))


def open_assignment(held: TrustedSet, data: bytes, **scope: Any) -> Any:
    reader = {"site": "shop", "node": "till", "key": b"k" * 32} | scope
    return vouching.open_document(held, data, topic("assigned"), {"site": "shop", "node": "till"}, **reader)


def test_a_statement_of_one_type_is_worth_nothing_as_another(realm: Realm, held: TrustedSet) -> None:
    """Offer and receipt are signed by the same role: only the type under the signature keeps them apart."""
    receipt = Receipt(realm="demo", site="shop", node="till", key=b"k" * 32, run=b"r" * 8, lane="audit", next=3)
    genuine = envelope.parse(realm.sign("recipes", "receipt", receipt))
    renamed = envelope.encode(Statement("offer", genuine.payload, genuine.signatures))
    with pytest.raises(TrustError, match="'offer' is signed by 0 keys of recipes"):
        vouching.open_document(held, renamed, topic("offer"), {}, site="shop", node="till", key=b"k" * 32)
    with pytest.raises(TrustError, match="receipt statement came on topic"):
        vouching.open_document(
            held, envelope.encode(genuine), topic("offer"), {}, site="shop", node="till", key=b"k" * 32
        )


@pytest.mark.parametrize(
    "changes", [{"site": "depot"}, {"node": "till-2"}, {"key": b"o" * 32}, {"realm": "other"}], ids=str
)
def test_a_statement_for_another_node_key_or_realm_is_refused(
    realm: Realm, held: TrustedSet, changes: dict[str, Any]
) -> None:
    assert open_assignment(held, realm.sign("assign", "assignment", assignment(realm))) == assignment(realm)
    with pytest.raises(TrustError, match="is for "):
        open_assignment(held, realm.sign("assign", "assignment", assignment(realm, **changes)))


def test_a_protected_node_takes_an_assignment_only_at_protecteds_threshold(realm: Realm, held: TrustedSet) -> None:
    away = assignment(realm, ring="canary")
    with pytest.raises(TrustError, match="signed by 0 keys of ring-protected, it needs 2"):
        open_assignment(held, realm.sign("assign", "assignment", away), is_protected=True)
    signed = sign_statement("assignment", away.encode(), realm.keys["ring-protected"])
    assert open_assignment(held, signed, is_protected=True) == away


@pytest.mark.parametrize("is_protected", [False, True])
def test_no_key_but_protecteds_own_leads_into_protected(realm: Realm, held: TrustedSet, is_protected: bool) -> None:
    into = assignment(realm, ring="protected")
    both = realm.keys["ring-protected"]
    for keys in (realm.keys["assign"], both[:1], [*realm.keys["assign"], both[0]]):
        with pytest.raises(TrustError, match="it needs"):
            open_assignment(held, sign_statement("assignment", into.encode(), keys), is_protected=is_protected)
    assert open_assignment(held, sign_statement("assignment", into.encode(), both), is_protected=is_protected) == into


def test_protecteds_threshold_may_assign_what_one_key_could(realm: Realm, held: TrustedSet) -> None:
    signed = sign_statement("assignment", assignment(realm).encode(), realm.keys["ring-protected"])
    assert open_assignment(held, signed) == assignment(realm)


def test_unknown_and_reserved_types_are_told_apart_from_attacks(realm: Realm, held: TrustedSet) -> None:
    with pytest.raises(UnknownTypeError, match="unknown type 'weather'"):
        vouching.open_document(held, sign_statement("weather", b"", []), topic("desired"), {"ring": "canary"})
    reserved = replace(topic("desired"), document=None)
    with pytest.raises(UnknownTypeError, match="reserved"):
        vouching.open_document(held, sign_statement("directive", b"", []), reserved, {"ring": "canary"})


@pytest.mark.parametrize("role", ["root", "snapshot", "targets", SIGN, APPROVE, "nobody", "ring-moon", ""])
def test_roles_that_sign_no_statements_verify_none(realm: Realm, held: TrustedSet, role: str) -> None:
    keys = realm.keys.get(role, []) + realm.keys["root"]
    with pytest.raises(TrustError):
        vouching.verify(held, envelope.parse(sign_statement("directive", b"x", keys)), role)


def test_a_reply_is_signed_by_the_timestamp_key_of_root(realm: Realm, held: TrustedSet) -> None:
    reply = Reply(realm="demo", site="shop", node="till", key=b"k" * 32, nonce=b"n" * 16, at=NOW, heads=realm.heads)
    reader = {"site": "shop", "node": "till", "key": b"k" * 32}
    row = topic("reply")
    assert vouching.open_document(held, realm.sign("timestamp", "reply", reply), row, {}, **reader) == reply
    with pytest.raises(TrustError, match="keys of timestamp"):
        vouching.open_document(held, realm.sign("recipes", "reply", reply), row, {}, **reader)


# --- expired duties -----------------------------------------------------------------------------------------------


def test_an_expired_duty_blocks_what_is_new_and_keeps_what_was_seen_in_time(realm: Realm, held: TrustedSet) -> None:
    one = sha256(b"one")
    later = NOW + 181 * DAY
    realm.now = later

    def old(signed: Any) -> None:
        signed.expires = signed.expires.replace(year=2027, month=1)

    two = realm.list_release("1.1.0", b"two")
    updated = trust.with_set(held, realm.publish(edit={APPROVE: old}).pack(), later)
    assert updated.late == {(APPROVE, f"{MODEL}/1.1.0")}
    restored = trust.state_from_bytes(trust.state_to_bytes(updated))
    orders = {
        release: realm.sign("ring-canary", "directive", realm.directive(release, expires=later + DAY))
        for release in (one, two)
    }
    assert vouching.admit(restored, orders[one], "canary", later).target.version == "1.0.0"
    with pytest.raises(TrustError, match=r"is not approved: .* since its file expired"):
        vouching.admit(restored, orders[two], "canary", later)
    repeated = trust.with_set(restored, realm.publish(edit={APPROVE: old}).pack(), later)
    assert repeated.late == updated.late
    again = trust.with_set(repeated, realm.publish().pack(), later)
    assert vouching.admit(again, orders[two], "canary", later).target.version == "1.1.0"


def test_a_directive_is_a_directive(realm: Realm) -> None:
    """What the other tests sign is what the protocol carries."""
    order = realm.directive(b"d" * 32)
    assert Directive.decode(unpack(realm.sign("ring-canary", "directive", order))[2]) == order
