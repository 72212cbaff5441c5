"""One case, at least, for each clause of TUF's client workflow (specification 1.0, section 5) that a core can keep."""

from collections.abc import Callable

import pytest
from tuf.api.metadata import MetaFile

from conformance.repository import LIFE_S, NOW, Repository, age, at
from heliograph.errors import HeliographError, IntegrityError, TrustError
from heliograph.workflow import MAX_DELEGATIONS, Search, Workflow


@pytest.fixture
def repository(seed: int) -> Repository:
    """A repository with version 1 of everything published."""
    return Repository(seed)


def find(flow: Workflow, repository: Repository, path: str) -> tuple[bool, list[str]]:
    """Whether the target is found, and the roles that were looked at, in order."""
    search, visited = Search(path), []
    while (pair := search.next()) is not None:
        role, by = pair
        visited.append(role)
        if role != "targets":
            flow = flow.with_delegated(role, by, repository.published[role])
        search.visit(flow.targets_of(role).signed)
    return search.found is not None, visited


# --- 5.3 root -----------------------------------------------------------------------------------------------------


def test_5_3_3_a_root_must_be_exactly_the_next_version(repository: Repository) -> None:
    flow = repository.begin()
    repository.root.version += 1
    skipped = repository.next_root()
    with pytest.raises(TrustError, match="does not follow"):
        flow.with_root(skipped)


def test_5_3_5_a_root_of_the_same_or_an_older_version_is_refused(repository: Repository) -> None:
    flow = repository.begin().with_root(repository.next_root())
    with pytest.raises(TrustError, match="does not follow"):
        flow.with_root(repository.published["root"])
    with pytest.raises(TrustError, match="does not follow"):
        flow.with_root(repository.sign("root", repository.root))


def test_5_3_4_the_keys_of_the_root_held_must_have_signed_the_next(repository: Repository) -> None:
    flow = repository.begin()
    repository.replace_key("root")
    with pytest.raises(TrustError, match="by the keys of root 1"):
        flow.with_root(repository.next_root())


def test_5_3_4_the_keys_of_the_next_root_must_have_signed_it_too(repository: Repository) -> None:
    flow = repository.begin()
    old = repository.replace_key("root")
    with pytest.raises(TrustError, match="by its own keys"):
        flow.with_root(repository.next_root(by=[old]))


def test_5_3_4_a_root_signed_by_both_is_taken(repository: Repository) -> None:
    flow = repository.begin()
    old = repository.replace_key("root")
    flow = flow.with_root(repository.next_root(by=[old, *repository.keys["root"]]))
    assert flow.root.signed.version == 2


@pytest.mark.parametrize("which", ["old", "new"])
def test_5_3_4_one_signature_below_a_threshold_is_too_few(repository: Repository, which: str) -> None:
    second = repository.new_key()
    repository.root.add_key(second.public.tuf_key(), "root")
    repository.keys["root"].append(second)
    if which == "old":
        repository.root.roles["root"].threshold = 2
        flow = repository.begin()
        repository.root.roles["root"].threshold = 1
    else:
        flow = repository.begin()
        repository.root.roles["root"].threshold = 2
    with pytest.raises(TrustError, match="it needs 2"):
        flow.with_root(repository.next_root(by=[second]))


def test_5_3_4_the_same_key_twice_counts_once(repository: Repository) -> None:
    key = repository.keys["timestamp"][0]
    repository.root.roles["timestamp"].keyids.append(key.keyid.hex())
    repository.root.roles["timestamp"].threshold = 2
    with pytest.raises(HeliographError):
        repository.begin().with_timestamp(repository.published["timestamp"], NOW)


def test_5_3_9_an_expired_root_still_authenticates_its_successor(repository: Repository) -> None:
    age(repository.root)
    flow = repository.begin()
    repository.root.expires = at(NOW + LIFE_S)
    flow.with_root(repository.next_root()).require_root_unexpired(NOW)


def test_5_3_10_nothing_goes_on_under_an_expired_newest_root(repository: Repository) -> None:
    age(repository.root)
    with pytest.raises(TrustError, match="expired"):
        repository.begin().require_root_unexpired(NOW)


@pytest.mark.parametrize("role", ["timestamp", "snapshot"])
def test_5_3_11_a_rotation_of_either_online_key_forgets_both_files(repository: Repository, role: str) -> None:
    repository.timestamp.version = repository.snapshot.version = 1000  # as a thief would have it
    repository.publish()
    flow = repository.taken(repository.begin())
    repository.replace_key(role)
    flow = flow.with_root(repository.next_root())
    assert flow.timestamp is None
    assert flow.snapshot is None
    repository.timestamp.version = repository.snapshot.version = 2
    repository.publish()
    assert repository.taken(flow).timestamp is not None


def test_5_3_11_a_root_that_rotates_nothing_forgets_nothing(repository: Repository) -> None:
    flow = repository.taken(repository.begin())
    after = flow.with_root(repository.next_root())
    assert after.files().keys() == flow.files().keys()


def test_5_3_11_targets_that_the_new_keys_did_not_sign_are_forgotten(repository: Repository) -> None:
    repository.delegate("targets", "a", ["*"])
    repository.bump("targets", "a")
    flow = repository.taken(repository.begin()).with_delegated("a", "targets", repository.published["a"])
    repository.replace_key("targets")
    flow = flow.with_root(repository.next_root())
    assert flow.targets is None
    assert not flow.delegated


# --- 5.4 timestamp ------------------------------------------------------------------------------------------------


def test_5_4_2_a_timestamp_must_be_signed_by_the_roots_timestamp_keys(repository: Repository) -> None:
    wrong = repository.sign("timestamp", repository.timestamp, [repository.keys["snapshot"][0]])
    with pytest.raises(TrustError, match="signed by 0"):
        repository.begin().with_timestamp(wrong, NOW)


def test_5_4_3_1_an_older_timestamp_is_refused(repository: Repository) -> None:
    old = repository.published["timestamp"]
    repository.timestamp.version += 1
    repository.seal()
    flow = repository.begin().with_timestamp(repository.published["timestamp"], NOW)
    with pytest.raises(TrustError, match="older"):
        flow.with_timestamp(old, NOW)


def test_5_4_3_1_a_timestamp_of_the_version_held_is_passed_over(repository: Repository) -> None:
    flow = repository.begin().with_timestamp(repository.published["timestamp"], NOW)
    repository.snapshot.version = 7
    repository.seal()
    assert flow.with_timestamp(repository.published["timestamp"], NOW).timestamp is flow.timestamp


def test_5_4_3_2_a_newer_timestamp_may_not_name_an_older_snapshot(repository: Repository) -> None:
    repository.bump()
    flow = repository.begin().with_timestamp(repository.published["timestamp"], NOW)
    repository.snapshot.version -= 1
    repository.timestamp.version += 1
    repository.seal()
    with pytest.raises(TrustError, match="snapshot of version 1 is older"):
        flow.with_timestamp(repository.published["timestamp"], NOW)


def test_5_4_4_an_expired_timestamp_is_refused(repository: Repository) -> None:
    with pytest.raises(TrustError, match="expired"):
        repository.begin().with_timestamp(repository.published["timestamp"], NOW + LIFE_S)
    repository.begin().with_timestamp(repository.published["timestamp"], NOW + LIFE_S - 1)


def test_an_expired_timestamp_held_before_still_says_what_may_not_go_back(repository: Repository) -> None:
    old = repository.published["timestamp"]
    repository.bump()
    held = repository.begin().with_timestamp_before(repository.published["timestamp"])
    repository.timestamp.expires = at(NOW + 10 * LIFE_S)
    with pytest.raises(TrustError, match="older"):
        held.with_timestamp(old, NOW + LIFE_S)


# --- 5.5 snapshot -------------------------------------------------------------------------------------------------


def test_5_5_2_a_snapshot_must_have_the_digest_that_the_timestamp_names(repository: Repository) -> None:
    flow = repository.begin().with_timestamp(repository.published["timestamp"], NOW)
    repository.snapshot.meta["x.json"] = MetaFile(1)
    with pytest.raises(IntegrityError, match="not the one that was signed for"):
        flow.with_snapshot(repository.sign("snapshot", repository.snapshot), NOW)


def test_5_5_2_a_snapshot_longer_than_the_timestamp_names_is_refused(repository: Repository) -> None:
    repository.timestamp.snapshot_meta = MetaFile(1, length=len(repository.published["snapshot"]) - 1)
    stamp = repository.sign("timestamp", repository.timestamp)
    with pytest.raises(IntegrityError):
        repository.begin().with_timestamp(stamp, NOW).with_snapshot(repository.published["snapshot"], NOW)


def test_5_5_3_a_snapshot_must_be_signed_by_the_roots_snapshot_keys(repository: Repository) -> None:
    wrong = repository.sign("snapshot", repository.snapshot, [repository.keys["timestamp"][0]])
    repository.timestamp.snapshot_meta = MetaFile.from_data(1, wrong, ["sha256"])
    flow = repository.begin().with_timestamp(repository.sign("timestamp", repository.timestamp), NOW)
    with pytest.raises(TrustError, match="signed by 0"):
        flow.with_snapshot(wrong, NOW)


def test_5_5_4_a_snapshot_must_have_the_version_that_the_timestamp_names(repository: Repository) -> None:
    repository.timestamp.snapshot_meta = MetaFile(2)
    flow = repository.begin().with_timestamp(repository.sign("timestamp", repository.timestamp), NOW)
    with pytest.raises(TrustError, match="version"):
        flow.with_snapshot(repository.published["snapshot"], NOW)


def test_5_5_5_a_snapshot_may_not_list_an_older_file(repository: Repository) -> None:
    repository.bump("targets")
    flow = repository.taken(repository.begin())
    repository.targets["targets"].version -= 1
    repository.bump()
    flow = flow.with_timestamp(repository.published["timestamp"], NOW)
    with pytest.raises(TrustError, match="older"):
        flow.with_snapshot(repository.published["snapshot"], NOW)


def test_5_5_5_a_snapshot_may_not_drop_a_file(repository: Repository) -> None:
    repository.snapshot.meta["a.json"] = MetaFile(1)
    repository.seal()
    flow = repository.taken(repository.begin())
    del repository.snapshot.meta["a.json"]
    repository.bump()
    flow = flow.with_timestamp(repository.published["timestamp"], NOW)
    with pytest.raises(TrustError, match="no longer lists"):
        flow.with_snapshot(repository.published["snapshot"], NOW)


def test_5_5_6_an_expired_snapshot_is_refused(repository: Repository) -> None:
    age(repository.snapshot)
    repository.seal()
    flow = repository.begin().with_timestamp(repository.published["timestamp"], NOW)
    with pytest.raises(TrustError, match="expired"):
        flow.with_snapshot(repository.published["snapshot"], NOW)


def test_a_snapshot_held_before_is_current_only_while_it_is_the_one_named(repository: Repository) -> None:
    held = repository.published["snapshot"]
    flow = repository.begin().with_timestamp(repository.published["timestamp"], NOW)
    assert not flow.is_snapshot_current(NOW)
    assert flow.with_snapshot_before(held).is_snapshot_current(NOW)
    assert not flow.with_snapshot_before(held).is_snapshot_current(NOW + LIFE_S)
    repository.bump()
    newer = repository.begin().with_timestamp(repository.published["timestamp"], NOW)
    assert not newer.with_snapshot_before(held).is_snapshot_current(NOW)


def test_a_snapshot_comes_after_a_timestamp_and_targets_after_a_snapshot(repository: Repository) -> None:
    with pytest.raises(TrustError, match="no timestamp"):
        repository.begin().with_snapshot(repository.published["snapshot"], NOW)
    with pytest.raises(TrustError, match="no snapshot"):
        repository.begin().with_targets(repository.published["targets"], NOW)


# --- 5.6 targets --------------------------------------------------------------------------------------------------

Spoil = Callable[[Repository], bytes]


def _other_bytes(repository: Repository) -> bytes:
    repository.add_target("targets", "x", b"x")
    return repository.sign("targets", repository.targets["targets"])


def _wrong_key(repository: Repository) -> bytes:
    data = repository.sign("targets", repository.targets["targets"], [repository.keys["root"][0]])
    repository.snapshot.meta["targets.json"] = MetaFile.from_data(1, data, ["sha256"])
    repository.seal()
    return data


def _other_version(repository: Repository) -> bytes:
    repository.snapshot.meta["targets.json"] = MetaFile(2)
    repository.seal()
    return repository.published["targets"]


def _expired(repository: Repository) -> bytes:
    age(repository.targets["targets"])
    repository.publish()
    return repository.published["targets"]


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        pytest.param(_other_bytes, "not the one that was signed for", id="5.6.2-digest"),
        pytest.param(_wrong_key, "signed by 0", id="5.6.3-signatures"),
        pytest.param(_other_version, "version", id="5.6.4-version"),
        pytest.param(_expired, "expired", id="5.6.5-expiry"),
    ],
)
def test_5_6_targets_are_what_the_snapshot_lists_signed_and_in_time(
    repository: Repository, spoil: Spoil, why: str
) -> None:
    data = spoil(repository)
    flow = repository.begin().with_timestamp(repository.published["timestamp"], NOW)
    flow = flow.with_snapshot(repository.published["snapshot"], NOW)
    with pytest.raises(HeliographError, match=why):
        flow.with_targets(data, NOW)


def test_5_6_3_a_delegated_file_is_verified_by_the_keys_of_whoever_delegates_it(repository: Repository) -> None:
    repository.delegate("targets", "a", ["*"])
    repository.delegate("targets", "b", ["*"])
    repository.delegate("b", "c", ["*"])
    repository.delegate("a", "c", ["*"])  # with a key that c's file is not signed by, once this is the other's
    signed_for_b, repository.keys["c"] = repository.keys["c"], [repository.new_key()]
    delegations = repository.targets["b"].delegations
    assert delegations is not None
    assert delegations.roles is not None
    delegations.roles["c"].keyids = [repository.keys["c"][0].keyid.hex()]
    delegations.keys = {key.keyid.hex(): key.public.tuf_key() for key in repository.keys["c"]}
    repository.keys["c"] = signed_for_b
    repository.bump("targets", "a", "b", "c")
    flow = repository.taken(repository.begin())
    flow = flow.with_delegated("a", "targets", repository.published["a"])
    flow = flow.with_delegated("b", "targets", repository.published["b"])
    flow = flow.with_delegated("c", "a", repository.published["c"])
    with pytest.raises(TrustError, match="signed by 0"):
        flow.with_delegated("c", "b", repository.published["c"])


def test_5_6_a_role_that_nobody_delegates_or_lists_is_refused(repository: Repository) -> None:
    flow = repository.taken(repository.begin())
    with pytest.raises(TrustError, match="does not list"):
        flow.version_listed("a")
    with pytest.raises(TrustError):
        flow.with_delegated("a", "targets", repository.published["targets"])
    with pytest.raises(TrustError, match="no metadata of role 'b'"):
        flow.with_delegated("a", "b", repository.published["targets"])


# --- 5.6.7 the search ---------------------------------------------------------------------------------------------


def test_5_6_7_delegations_are_walked_in_order_depth_first(repository: Repository) -> None:
    for by, role in [("targets", "a"), ("targets", "b"), ("a", "c"), ("a", "d")]:
        repository.delegate(by, role, ["*"])
    repository.bump(*repository.targets)
    flow = repository.taken(repository.begin())
    assert find(flow, repository, "x") == (False, ["targets", "a", "c", "d", "b"])


def test_5_6_7_the_first_role_that_lists_the_target_answers(repository: Repository) -> None:
    for role in ("a", "b"):
        repository.delegate("targets", role, ["*"])
        repository.add_target(role, "x", role.encode())
    repository.bump(*repository.targets)
    flow = repository.taken(repository.begin())
    assert find(flow, repository, "x") == (True, ["targets", "a"])


def test_5_6_7_2_1_a_terminating_delegation_ends_the_search(repository: Repository) -> None:
    repository.delegate("targets", "a", ["*"], is_terminating=True)
    repository.delegate("targets", "b", ["*"])
    repository.add_target("b", "x", b"x")
    repository.bump(*repository.targets)
    flow = repository.taken(repository.begin())
    assert find(flow, repository, "x") == (False, ["targets", "a"])


def test_5_6_7_2_1_a_terminating_delegation_ends_the_whole_search_not_only_its_branch(repository: Repository) -> None:
    repository.delegate("targets", "a", ["*"])
    repository.delegate("targets", "b", ["*"])
    repository.delegate("a", "c", ["*"], is_terminating=True)
    repository.bump(*repository.targets)
    flow = repository.taken(repository.begin())
    assert find(flow, repository, "x") == (False, ["targets", "a", "c"])


def test_5_6_7_2_a_role_is_asked_only_for_paths_that_it_is_trusted_with(repository: Repository) -> None:
    repository.delegate("targets", "a", ["models/*"])
    repository.delegate("targets", "b", ["files/?.bin"])
    repository.add_target("a", "files/x.bin", b"x")
    repository.bump(*repository.targets)
    flow = repository.taken(repository.begin())
    assert find(flow, repository, "files/x.bin") == (False, ["targets", "b"])
    assert find(flow, repository, "models/deep/x.bin") == (False, ["targets"])


def test_5_6_7_1_a_role_is_looked_at_once_even_in_a_circle(repository: Repository) -> None:
    repository.delegate("targets", "a", ["*"])
    repository.delegate("a", "b", ["*"])
    delegations = repository.targets["b"].delegations = repository.targets["targets"].delegations
    assert delegations is not None
    repository.bump(*repository.targets)
    flow = repository.taken(repository.begin())
    assert find(flow, repository, "x") == (False, ["targets", "a", "b"])


def test_5_6_7_1_the_search_is_bounded(repository: Repository) -> None:
    by = "targets"
    for number in range(MAX_DELEGATIONS + 8):
        repository.delegate(by, f"r{number}", ["*"])
        by = f"r{number}"
    repository.add_target(by, "x", b"x")
    repository.bump(*repository.targets)
    found, visited = find(repository.taken(repository.begin()), repository, "x")
    assert not found
    assert len(visited) == MAX_DELEGATIONS + 1


def test_hash_bins_are_walked_like_any_delegation(repository: Repository) -> None:
    repository.delegate_bins(2)
    for role in list(repository.targets):
        if role != "targets":
            repository.add_target(role, "x", b"x")
    repository.bump(*repository.targets)
    found, visited = find(repository.taken(repository.begin()), repository, "x")
    assert found
    assert len(visited) == 2


def test_a_realm_takes_no_hash_bins_and_no_keys_but_ours(repository: Repository) -> None:
    repository.delegate_bins(2)
    repository.bump(*repository.targets)
    flow = Workflow(repository.begin().root)
    flow = flow.with_timestamp(repository.published["timestamp"], NOW)
    flow = flow.with_snapshot(repository.published["snapshot"], NOW)
    with pytest.raises(IntegrityError, match="wrong type or out of bounds"):
        flow.with_targets(repository.published["targets"], NOW)
