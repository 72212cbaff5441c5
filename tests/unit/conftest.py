"""What the unit tests of trust share: a realm, and what a node of it holds."""

import pytest

from heliograph import trust
from heliograph.trust import TrustedSet
from realms import NOW, Realm


@pytest.fixture
def realm(seed: int) -> Realm:
    """A realm with no release yet."""
    return Realm(seed)


@pytest.fixture
def held(realm: Realm) -> TrustedSet:
    """What a node holds that has taken the realm's first set, with release 1.0.0 signed and approved."""
    realm.list_release("1.0.0", b"one")
    return trust.with_set(realm.bootstrap(), realm.publish().pack(), NOW)
