import json
import shutil
import stat
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest

from heliograph import trust, vouching
from heliograph.blob import sha256
from heliograph.documents import Assignment, Directive, Heads
from heliograph.errors import ConfigError, IntegrityError, NotFoundError, RefusedError, TrustError
from heliograph.names import Digest
from heliograph.protocol import topic
from heliograph.signing import PrivateKey
from heliograph_hub.authority import MAX_BEHIND_S, Authority, SigningRequest, SigningResult
from heliograph_hub.founding import init_realm
from heliograph_hub.keys import KeyDir, load_key
from realms import DAY, NOW

ONE, TWO = sha256(b"one"), sha256(b"two")
SIGN, APPROVE = "sign-digits", "approve-digits"


@pytest.fixture
def entropy(seed: int) -> Callable[[int], bytes]:
    return Random(seed).randbytes


MADE: dict[int, Path] = {}


@pytest.fixture
def folder(seed: int, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A realm with a model; made once, copied for each test."""
    if seed not in MADE:
        MADE[seed] = tmp_path_factory.mktemp("made") / "realm"
        draw = Random(seed).randbytes
        init_realm(MADE[seed], "demo", NOW, entropy=draw)
        Authority(MADE[seed]).add_model("digits", NOW, entropy=draw)
    return Path(shutil.copytree(MADE[seed], tmp_path / "realm"))


@pytest.fixture
def authority(folder: Path) -> Authority:
    return Authority(folder)


def ask(
    authority: Authority, role: str, version: str = "1.0.0", digest: Digest = ONE, now: int = NOW
) -> SigningRequest:
    return authority.request_signature(role, "digits", version, 1000, digest, now)


def give(authority: Authority, request: SigningRequest, key: str, now: int = NOW) -> SigningResult:
    private = load_key(authority.keys.path(key))
    return authority.add_signature(request.candidate, private.keyid, private.sign(request.data), now)


def release(authority: Authority, version: str = "1.0.0", digest: Digest = ONE, now: int = NOW) -> None:
    give(authority, ask(authority, SIGN, version, digest, now), SIGN, now)
    for key in ("approve-digits-1", "approve-digits-2"):
        give(authority, ask(authority, APPROVE, version, digest, now), key, now)


def node(authority: Authority, now: int = NOW) -> trust.TrustedSet:
    """What a node makes of what is published."""
    out = authority.publish_set(now, authority.set.heads)
    root = out[topic("root").build("demo", number=1)]
    return trust.with_set(trust.bootstrap(root, authority.root_digest), out[topic("set").build("demo")], now)


# --- the realm ----------------------------------------------------------------------------------------------------


def test_init_says_loudly_that_it_is_a_development_realm(tmp_path: Path) -> None:
    said = init_realm(tmp_path / "new", "demo", NOW)
    assert any("DEVELOPMENT REALM" in line and "all 21 private keys" in line for line in said)
    held = Authority(tmp_path / "new").set
    assert (held.realm, held.kind, held.is_fresh(NOW)) == ("demo", "development", True)
    thresholds = {
        role: held.role_keys(role)[0] for role in ("root", "targets", "timestamp", "ring-protected", "deny-key")
    }
    assert thresholds == {"root": 2, "targets": 2, "timestamp": 1, "ring-protected": 2, "deny-key": 2}
    assert {len(held.role_keys(role)[1]) for role in ("root", "targets")} == {3}


def test_expiries_are_those_of_the_table(authority: Authority) -> None:
    held = node(authority)
    assert held.fresh_until == NOW + 7 * DAY
    assert set(held.expired(NOW + 7 * DAY)) == {"timestamp", "snapshot"}
    assert set(held.expired(NOW + 180 * DAY)) == {"timestamp", "snapshot", SIGN, APPROVE}
    assert not {"root", "targets"} & set(held.expired(NOW + 365 * DAY))


def test_keys_are_readable_by_their_owner_only(folder: Path) -> None:
    assert stat.S_IMODE((folder / "keys").stat().st_mode) == 0o700
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (folder / "keys").iterdir()}
    assert len(modes) == 26
    assert set(modes.values()) == {0o600}


def test_a_realm_is_never_overwritten(folder: Path) -> None:
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(RefusedError, match="holds a realm already"):
        init_realm(folder, "demo", NOW)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_a_folder_with_other_things_in_it_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "letters.txt").write_text("dear")
    with pytest.raises(ConfigError, match="holds something else than a realm"):
        init_realm(tmp_path, "demo", NOW)
    with pytest.raises(ConfigError, match="holds something else"):
        init_realm(tmp_path / "letters.txt", "demo", NOW)
    assert [path.name for path in tmp_path.iterdir()] == ["letters.txt"]
    with pytest.raises(ConfigError, match="'Demo' is not a name"):
        init_realm(tmp_path / "new", "Demo", NOW)
    with pytest.raises(ConfigError, match="holds no realm: run hub init"):
        Authority(tmp_path)


class PowerCutError(Exception):
    pass


def until(cut: int, entropy: Callable[[int], bytes]) -> Callable[[int], bytes]:
    """Entropy that ends with a power cut before key number `cut`."""
    made = 0

    def draw(count: int) -> bytes:
        nonlocal made
        made += 1
        if made > cut:
            raise PowerCutError
        return entropy(count)

    return draw


@pytest.mark.parametrize("cut", [0, 1, 7, 20])
def test_an_interrupted_init_can_be_run_again(tmp_path: Path, cut: int, entropy: Callable[[int], bytes]) -> None:
    folder = tmp_path / "realm"
    with pytest.raises(PowerCutError):
        init_realm(folder, "demo", NOW, entropy=until(cut, entropy))
    kept = {path.name: path.read_bytes() for path in (folder / "keys").glob("*")} if cut else {}
    with pytest.raises(ConfigError, match="unfinished: run hub init again"):
        Authority(folder)
    with pytest.raises(ConfigError, match="holds the unfinished realm 'demo'"):
        init_realm(folder, "other", NOW)
    init_realm(folder, "demo", NOW, entropy=entropy)
    assert {name: (folder / "keys" / name).read_bytes() for name in kept} == kept
    assert Authority(folder).set.is_fresh(NOW)


def test_an_init_cut_off_at_its_last_step_is_finished_not_remade(folder: Path) -> None:
    state = (folder / "metadata" / "state").read_bytes()
    (folder / "init-unfinished").write_bytes(b"demo")
    init_realm(folder, "demo", NOW)
    assert (folder / "metadata" / "state").read_bytes() == state


def test_an_interrupted_add_model_can_be_run_again(tmp_path: Path, entropy: Callable[[int], bytes]) -> None:
    init_realm(tmp_path / "realm", "demo", NOW, entropy=entropy)
    with pytest.raises(PowerCutError):
        Authority(tmp_path / "realm").add_model("digits", NOW, entropy=until(2, entropy))
    authority = Authority(tmp_path / "realm")
    assert authority.set.models == ()
    said = authority.add_model("digits", NOW, entropy=entropy)
    assert "2 of 3 approve-digits keys approve" in said[0]
    assert node(authority).models == ("digits",)
    with pytest.raises(RefusedError, match="delegated already"):
        authority.add_model("digits", NOW)
    with pytest.raises(ConfigError, match="is not a name"):
        authority.add_model("../x", NOW)


def test_without_the_targets_keys_a_model_needs_the_ceremony(folder: Path) -> None:
    for number in (1, 3):
        (folder / "keys" / f"targets-{number}.key").unlink()
    with pytest.raises(RefusedError, match="needs the ceremony with the offline targets keys"):
        Authority(folder).add_model("faces", NOW)
    assert not (folder / "keys" / "sign-faces.key").exists()


def test_a_damaged_state_is_refused_not_guessed(folder: Path) -> None:
    path = folder / "metadata" / "state"
    path.write_bytes(path.read_bytes()[:-1] + b"\x00")
    with pytest.raises(IntegrityError, match="damaged"):
        Authority(folder)


# --- signing releases ---------------------------------------------------------------------------------------------


def test_a_release_is_published_when_each_duty_reaches_its_threshold(authority: Authority) -> None:
    request = ask(authority, SIGN)
    assert (request.have, request.need, request.note) == (0, 1, "")
    assert give(authority, request, SIGN).is_published
    assert authority.is_signed("digits", ONE)
    assert not authority.is_approved("digits", ONE)
    first = give(authority, ask(authority, APPROVE), "approve-digits-3")
    assert (first.have, first.need, first.is_published) == (1, 2, False)
    assert [state.have for state in authority.duties("digits", "1.0.0", ONE, NOW)] == [1, 1]
    assert node(authority).target("digits", ONE).listed_by == {SIGN}
    assert give(authority, ask(authority, APPROVE), "approve-digits-1").is_published
    assert node(authority).target("digits", ONE).listed_by == {SIGN, APPROVE}
    assert all(state.is_done for state in authority.duties("digits", "1.0.0", ONE, NOW))


def test_signatures_given_so_far_survive_a_restart(folder: Path) -> None:
    give(Authority(folder), ask(Authority(folder), APPROVE), "approve-digits-1")
    request = ask(Authority(folder), APPROVE)
    assert request.have == 1
    assert give(Authority(folder), request, "approve-digits-2").is_published
    assert Authority(folder).is_approved("digits", ONE)


def test_the_same_signature_twice_counts_once(authority: Authority) -> None:
    request = ask(authority, APPROVE)
    for _ in range(2):
        result = give(authority, request, "approve-digits-1")
        assert (result.have, result.is_published) == (1, False)
    give(authority, request, "approve-digits-2")
    version = authority.set.versions
    assert give(authority, request, "approve-digits-2").is_published
    assert authority.set.versions == version


def test_only_keys_of_the_role_count_and_only_over_these_bytes(authority: Authority) -> None:
    request = ask(authority, APPROVE)
    with pytest.raises(TrustError, match="is not one of the keys of approve-digits"):
        give(authority, request, SIGN)
    key = load_key(authority.keys.path("approve-digits-1"))
    with pytest.raises(TrustError, match="does not fit the bytes"):
        authority.add_signature(request.candidate, key.keyid, key.sign(request.data + b" "), NOW)
    with pytest.raises(TrustError, match="does not fit"):
        authority.add_signature(request.candidate, key.keyid, b"short", NOW)
    assert ask(authority, APPROVE).have == 0


def test_a_candidate_overtaken_by_another_release_loses_its_signatures_and_says_so(authority: Authority) -> None:
    slow = ask(authority, APPROVE, "1.0.0", ONE)
    give(authority, slow, "approve-digits-1")
    for key in ("approve-digits-1", "approve-digits-2"):
        give(authority, ask(authority, APPROVE, "1.1.0", TWO), key)
    assert [state.have for state in authority.duties("digits", "1.0.0", ONE, NOW)] == [0, 0]
    with pytest.raises(RefusedError, match="has gone stale and lost its signatures"):
        give(authority, slow, "approve-digits-2")
    again = ask(authority, APPROVE, "1.0.0", ONE)
    assert again.data != slow.data
    for key in ("approve-digits-1", "approve-digits-2"):
        give(authority, again, key)
    assert authority.is_approved("digits", ONE)
    assert authority.is_approved("digits", TWO)


def test_asking_again_for_a_stale_candidate_says_what_was_lost(authority: Authority) -> None:
    give(authority, ask(authority, APPROVE, "1.0.0", ONE), "approve-digits-1")
    for key in ("approve-digits-1", "approve-digits-2"):
        give(authority, ask(authority, APPROVE, "1.1.0", TWO), key)
    request = ask(authority, APPROVE, "1.0.0", ONE)
    assert "lost its signatures" in request.note
    assert request.have == 0


def test_a_version_never_gets_a_second_digest(authority: Authority) -> None:
    give(authority, ask(authority, SIGN), SIGN)
    for role in (SIGN, APPROVE):
        with pytest.raises(RefusedError, match="releases are immutable"):
            ask(authority, role, "1.0.0", TWO)
    with pytest.raises(RefusedError, match=r"lists digits@1\.0\.0 already"):
        ask(authority, SIGN)


def test_a_crash_between_publishing_and_tidying_up_is_harmless(folder: Path) -> None:
    authority = Authority(folder)
    request = ask(authority, SIGN)
    pending = folder / "metadata" / "pending" / f"{request.candidate}.json"
    content = pending.read_bytes()
    give(authority, request, SIGN)
    pending.write_bytes(content)
    assert give(Authority(folder), request, SIGN).is_published
    assert not pending.exists()
    release(Authority(folder), "1.1.0", TWO)
    assert Authority(folder).is_signed("digits", ONE)


@pytest.mark.parametrize("damage", [b"", b"{}", b"\xff\x00"])
def test_a_damaged_pending_file_is_made_anew(folder: Path, damage: bytes) -> None:
    request = ask(Authority(folder), APPROVE)
    (folder / "metadata" / "pending" / f"{request.candidate}.json").write_bytes(damage)
    assert ask(Authority(folder), APPROVE).data == request.data


def test_a_forged_signature_in_a_pending_file_does_not_count(folder: Path) -> None:
    authority = Authority(folder)
    request = ask(authority, APPROVE)
    give(authority, request, "approve-digits-1")
    path = folder / "metadata" / "pending" / f"{request.candidate}.json"
    content = json.loads(path.read_bytes())
    content["signatures"].append(
        {"keyid": load_key(authority.keys.path("approve-digits-2")).keyid.hex(), "sig": "00" * 64}
    )
    path.write_text(json.dumps(content))
    assert ask(Authority(folder), APPROVE).have == 1


@pytest.mark.parametrize(
    "candidate",
    ["", "x", "sign-digits", "sign-digits@", "sign-digits@../../x", "sign-faces@1.0.0", "assign@1.0.0", "@1.0.0"],
)
def test_a_candidate_that_was_never_asked_for_is_not_found(authority: Authority, candidate: str) -> None:
    with pytest.raises(NotFoundError, match="no candidate"):
        authority.add_signature(candidate, bytes(32), bytes(64), NOW)


def test_what_can_not_be_a_release_is_refused_at_once(authority: Authority) -> None:
    with pytest.raises(NotFoundError, match="no role sign-faces"):
        authority.request_signature("sign-faces", "faces", "1.0.0", 1000, ONE, NOW)
    with pytest.raises(NotFoundError, match="no role config-digits"):
        authority.request_signature("config-digits", "digits", "1.0.0", 1000, ONE, NOW)
    with pytest.raises(ConfigError, match="is not a release"):
        ask(authority, SIGN, "1.0")
    with pytest.raises(ConfigError, match="manifest of 2000000 bytes"):
        authority.request_signature(SIGN, "digits", "1.0.0", 2_000_000, ONE, NOW)
    with pytest.raises(NotFoundError, match="model faces is not delegated"):
        authority.duties("faces", "1.0.0", ONE, NOW)


def test_an_expired_duty_is_renewed_by_its_next_signature(authority: Authority) -> None:
    release(authority)
    later = NOW + 200 * DAY
    assert APPROVE in authority.set.expired(later)
    release(authority, "1.1.0", TWO, later)
    assert APPROVE not in authority.set.expired(later)
    assert node(authority, later).target("digits", ONE).listed_by == {SIGN, APPROVE}


# --- what goes out ------------------------------------------------------------------------------------------------


def test_a_clock_that_went_back_signs_no_earlier_time_than_the_last(folder: Path) -> None:
    authority = Authority(folder)
    authority.publish_set(NOW + DAY, Heads())
    published = (folder / "metadata" / "state").read_bytes()
    for now in (0, NOW - 365 * DAY, NOW, NOW + DAY - MAX_BEHIND_S - 1):
        for heads in (Heads(), Heads(directives={"canary": ONE})):
            with pytest.raises(RefusedError, match=r"this machine's clock says .*, and .* was signed before: set"):
                Authority(folder).publish_set(now, heads)
        with pytest.raises(RefusedError, match="set the clock"):
            release(Authority(folder), now=now)
    assert (folder / "metadata" / "state").read_bytes() == published, "what was signed before goes on being announced"
    assert Authority(folder).published()[topic("head").build("demo")] == authority.set.timestamp


def test_a_clock_that_was_corrected_by_a_little_signs_the_last_time_again(folder: Path) -> None:
    authority = Authority(folder)
    authority.publish_set(NOW + DAY, Heads())
    authority.publish_set(NOW + DAY - MAX_BEHIND_S, Heads(directives={"canary": ONE}))
    assert authority.set.at == NOW + DAY and authority.set.heads == Heads(directives={"canary": ONE})


def test_a_clock_of_2040_signs_nothing_as_root_and_targets_end_before(folder: Path) -> None:
    authority = Authority(folder)
    before = authority.published()
    with pytest.raises(TrustError, match="expired"):
        authority.publish_set(2_208_988_800, Heads())
    assert Authority(folder).published() == before


def test_what_is_published_stays_the_same_until_it_is_a_day_old_or_heads_change(folder: Path) -> None:
    authority = Authority(folder)
    first = authority.publish_set(NOW, Heads())
    assert authority.publish_set(NOW + DAY - 1, Heads()) == first
    assert Authority(folder).publish_set(NOW + DAY - 1, Heads()) == first
    renewed = authority.publish_set(NOW + DAY, Heads())
    assert renewed[topic("set").build("demo")] != first[topic("set").build("demo")]
    changed = authority.publish_set(NOW + DAY, Heads(directives={"canary": ONE}))
    assert Authority(folder).set.heads == Heads(directives={"canary": ONE})
    assert trust.with_head(node(authority, NOW + DAY), changed[topic("head").build("demo")], NOW + DAY) is False
    assert list(first) == [
        topic("head").build("demo"),
        topic("set").build("demo"),
        topic("root").build("demo", number=1),
    ]


def test_a_hub_that_was_off_for_a_month_publishes_a_fresh_set(folder: Path) -> None:
    assert node(Authority(folder), NOW + 30 * DAY).is_fresh(NOW + 30 * DAY)


def test_sizes_on_the_wire_stay_small(authority: Authority) -> None:
    release(authority)
    release(authority, "1.1.0", TWO)
    digests = {ring: sha256(ring.encode()) for ring in ("canary", "early", "general", "protected")}
    out = authority.publish_set(NOW, Heads(directives=digests))
    assert len(out[topic("head").build("demo")]) <= 1024
    assert len(out[topic("set").build("demo")]) <= 3400


def test_a_whole_release_is_admitted_by_a_node(authority: Authority) -> None:
    release(authority)
    order = Directive(
        realm="demo", ring="protected", model="digits", release=ONE, number=1, action="install", expires=NOW + DAY
    )
    signed = authority.sign_statement("ring-protected", "directive", order)
    assert vouching.admit(node(authority), signed, "protected", NOW).target.path == "digits/1.0.0"


def test_statements_are_signed_by_keys_that_are_here_or_not_at_all(folder: Path) -> None:
    authority = Authority(folder)
    document = Assignment(realm="demo", site="a", node="b", key=ONE, number=1, ring="canary")
    with pytest.raises(TrustError, match="delegated by nobody"):
        authority.sign_statement("ring-moon", "assignment", document)
    (folder / "keys" / "ring-protected-2.key").unlink()
    with pytest.raises(RefusedError, match=r"1 keys of role ring-protected are in .* it needs 2"):
        Authority(folder).sign_statement("ring-protected", "assignment", document)


# --- key files ----------------------------------------------------------------------------------------------------


def test_a_key_file_open_to_others_is_refused(folder: Path) -> None:
    path = folder / "keys" / f"{SIGN}.key"
    path.chmod(0o640)
    with pytest.raises(ConfigError, match="can be read by other users: chmod 600"):
        load_key(path)


def test_a_key_file_that_is_not_there_or_not_a_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not exist"):
        load_key(tmp_path / "no.key")
    with pytest.raises(ConfigError, match="is not a file"):
        load_key(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_key(tmp_path / "file" / "below.key")


def test_a_key_that_exists_is_never_made_again(tmp_path: Path, seed: int) -> None:
    rng = Random(seed)
    first = KeyDir(tmp_path / "keys").make("a", rng.randbytes)
    assert KeyDir(tmp_path / "keys").make("a", rng.randbytes).keyid == first.keyid
    other = PrivateKey.generate(rng.randbytes(32))
    found = KeyDir(tmp_path / "keys").find({first.keyid: first.public.raw, other.keyid: other.public.raw})
    assert [key.keyid for key in found] == [first.keyid]
