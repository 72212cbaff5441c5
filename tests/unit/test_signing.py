import hashlib
import json
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from securesystemslib.exceptions import UnverifiedSignatureError
from securesystemslib.signer import Key, Signature
from tuf.api.metadata import Metadata, Root

from heliograph import statement as envelope
from heliograph.errors import ConfigError, TrustError
from heliograph.signing import PrivateKey, PublicKey, TufKey, sign_statement, verify_own


@pytest.fixture
def key(seed: int) -> PrivateKey:
    return PrivateKey.generate(random.Random(seed).randbytes(32))


def test_signatures_are_those_of_rfc_8032() -> None:
    """Source: RFC 8032 section 7.1, test 2."""
    key = PrivateKey.generate(bytes.fromhex("4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb"))
    assert key.public.raw.hex() == "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c"
    assert key.sign(b"\x72").hex() == (
        "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da"
        "085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00"
    )


def test_a_key_id_is_the_digest_of_the_keys_canonical_json(key: PrivateKey) -> None:
    canonical = f'{{"keytype":"ed25519","keyval":{{"public":"{key.public.raw.hex()}"}},"scheme":"ed25519"}}'
    assert key.keyid == hashlib.sha256(canonical.encode()).digest()


def test_tuf_metadata_reads_ed25519_keys_as_ours_and_verifies_with_them(key: PrivateKey) -> None:
    root = Metadata(Root())
    root.signed.add_key(key.public.tuf_key(), "root")
    root.sign(key.signer())
    read: Metadata[Root] = Metadata.from_bytes(root.to_bytes())
    assert isinstance(read.signed.keys[key.keyid.hex()], TufKey)
    read.verify_delegate("root", read)
    assert key.signer().public_key == read.signed.keys[key.keyid.hex()]


@pytest.mark.parametrize("text", ["", "zz" * 64, "00" * 63, "00" * 64, "00" * 65, 7, None])
def test_any_malformed_signature_is_simply_unverified(key: PrivateKey, text: str) -> None:
    with pytest.raises(UnverifiedSignatureError):
        key.public.tuf_key().verify_signature(Signature(key.keyid.hex(), text), b"data")


@given(st.binary(max_size=80), st.binary(max_size=80))
def test_no_noise_is_a_signature(noise: bytes, data: bytes) -> None:
    assert not PrivateKey.generate(bytes(32)).public.is_signature(data, noise)


def test_a_signature_fits_its_data_and_its_key_only(key: PrivateKey) -> None:
    other = PrivateKey.generate(key.keyid)
    assert key.public.is_signature(b"data", key.sign(b"data"))
    assert not key.public.is_signature(b"date", key.sign(b"data"))
    assert not other.public.is_signature(b"data", key.sign(b"data"))


def test_weak_public_keys_verify_nothing() -> None:
    """The neutral point as a key would accept one signature for every message."""
    neutral = PublicKey(b"\x01" + bytes(31))
    assert not neutral.is_signature(b"anything", b"\x01" + bytes(63))


def test_a_key_id_that_is_not_the_keys_digest_is_refused(key: PrivateKey) -> None:
    with pytest.raises(ValueError, match="not the digest"):
        Key.from_dict("00" * 32, key.public.tuf_key().to_dict())


def test_a_statement_is_signed_once_by_each_key(key: PrivateKey) -> None:
    other = PrivateKey.generate(key.keyid)
    statement = envelope.parse(sign_statement("records", b"payload", [key, other, key]))
    assert {keyid for keyid, _ in statement.signatures} == {key.keyid, other.keyid}
    assert verify_own(statement, key.public.raw, "records") == b"payload"


def test_a_nodes_own_statement_counts_for_its_key_type_and_payload_only(key: PrivateKey) -> None:
    other = PrivateKey.generate(key.keyid)
    statement = envelope.parse(sign_statement("records", b"payload", [key]))
    with pytest.raises(TrustError, match="not signed by its node's key"):
        verify_own(statement, other.public.raw, "records")
    with pytest.raises(TrustError, match="expected 'reported'"):
        verify_own(statement, key.public.raw, "reported")
    claimed = envelope.Statement("records", b"other payload", statement.signatures)
    with pytest.raises(TrustError, match="not signed"):
        verify_own(claimed, key.public.raw, "records")
    with pytest.raises(TrustError, match="public key of 3 bytes"):
        verify_own(statement, b"abc", "records")


def test_a_key_file_gives_the_same_key_back(key: PrivateKey) -> None:
    assert PrivateKey.from_json(key.to_json(), "a.key").sign(b"x") == key.sign(b"x")


def test_a_key_never_shows_its_private_half(key: PrivateKey) -> None:
    private = json.loads(key.to_json())["private"]
    assert private not in repr(key)
    assert private not in str(key.signer())


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "not JSON"),
        (b"[" * 4000, "not JSON"),
        (b"{}", "needs keytype, scheme, private and public"),
        (b"[]", "needs keytype"),
        (b'{"format": 2}', "has key format 2, this version reads 1"),
        (b" " * 5000, "5000 bytes"),
        (b'{"keytype":"rsa","scheme":"x","private":"00","public":"00"}', "no Ed25519 key file"),
    ],
)
def test_a_wrong_key_file_is_named_with_its_fault(content: bytes, says: str) -> None:
    with pytest.raises(ConfigError, match=says) as caught:
        PrivateKey.from_json(content, "keys/a.key")
    assert "keys/a.key" in str(caught.value)


def test_halves_of_two_keys_are_no_key(key: PrivateKey) -> None:
    content = json.loads(key.to_json())
    content["public"] = PrivateKey.generate(key.keyid).public.raw.hex()
    with pytest.raises(ConfigError, match="don't belong together"):
        PrivateKey.from_json(json.dumps(content).encode(), "a.key")
    with pytest.raises(ConfigError, match="seed of 3 bytes"):
        PrivateKey.generate(b"abc")
