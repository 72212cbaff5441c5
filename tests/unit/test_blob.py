import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from heliograph.blob import (
    LEAF_BYTES,
    LEAVES_PER_PAGE,
    PAGE_SPAN_BYTES,
    SHORT_DIGEST_BYTES,
    Pager,
    check_page,
    describe,
    leaf_count,
    page_count,
    page_of,
    sha256,
    short_digest,
)
from heliograph.errors import IntegrityError


def test_the_geometry_is_the_one_that_was_agreed() -> None:
    assert (LEAF_BYTES, LEAVES_PER_PAGE, PAGE_SPAN_BYTES, SHORT_DIGEST_BYTES) == (4096, 256, 1 << 20, 16)


@pytest.mark.parametrize(
    ("length", "leaves", "pages"),
    [
        (0, 0, 0),
        (1, 1, 1),
        (4096, 1, 1),
        (4097, 2, 1),
        (1 << 20, 256, 1),
        ((1 << 20) + 1, 257, 2),
        (20_000_000, 4883, 20),
    ],
)
def test_leaves_and_pages_are_counted_with_a_short_last_one(length: int, leaves: int, pages: int) -> None:
    assert (leaf_count(length), page_count(length)) == (leaves, pages)


def test_a_known_blob_has_known_digests() -> None:
    data = bytes(range(256)) * 17  # 4352 bytes: one whole leaf and a short one
    digest, pages = describe(data)
    assert digest == hashlib.sha256(data).digest() == sha256(data)
    page = hashlib.sha256(data[:4096]).digest()[:16] + hashlib.sha256(data[4096:]).digest()[:16]
    assert page_of(data) == page
    assert pages == (hashlib.sha256(page).digest()[:16],)
    assert pages[0].hex() == "fee0667191c72bf56fc4ae3f7b78b190"


@given(st.lists(st.integers(0, 400_000), max_size=8))
def test_however_a_stream_is_cut_the_digests_are_the_same(cuts: list[int]) -> None:
    data = hashlib.sha256(repr(cuts).encode()).digest() * (sum(cuts) // 32 + 1)
    data = data[: sum(cuts)]
    pager = Pager()
    at = 0
    for cut in cuts:
        pager.feed(memoryview(data)[at : at + cut])
        at += cut
    assert pager.length == len(data)
    assert pager.finish() == describe(data)


def test_an_empty_blob_has_a_digest_and_no_pages() -> None:
    assert describe(b"") == (hashlib.sha256().digest(), ())


def test_a_true_page_gives_its_leaf_digests_and_any_other_is_refused() -> None:
    data = bytes(PAGE_SPAN_BYTES) + b"x" * 5000
    _, pages = describe(data)
    first, last = page_of(data[:PAGE_SPAN_BYTES]), page_of(data[PAGE_SPAN_BYTES:])
    assert check_page(first, 0, len(data), pages) == (short_digest(bytes(LEAF_BYTES)),) * 256
    assert len(check_page(last, 1, len(data), pages)) == 2
    for page, index in [(last, 0), (first, 1), (first, 2), (first, -1), (first[:-1], 0), (b"", 0), (first + b"x", 0)]:
        with pytest.raises(IntegrityError):
            check_page(page, index, len(data), pages)


def test_a_page_whose_digest_fits_but_whose_leaf_count_does_not_is_refused() -> None:
    page = page_of(bytes(8192))
    with pytest.raises(IntegrityError, match="expected 16"):
        check_page(page, 0, 4096, (short_digest(page),))
