import dataclasses

import pytest

from heliograph.deadlines import DEADLINES, Deadlines


def test_the_table_has_the_agreed_values() -> None:
    assert dataclasses.asdict(DEADLINES) == {
        "offer_s": 60,
        "chunk_base_s": 5,
        "chunk_rtts": 4,
        "activation_s": 60,
        "rollback_s": 60,
        "receipt_s": 30,
        "check_in_s": 15 * 60,
        "report_wait_s": 60,
        "reply_s": 30,
        "publish_s": 30,
        "enroll_s": 30,
        "token_s": 7 * 24 * 3600,
        "session_s": 24 * 3600,
        "silent_check_ins": 2,
    }


def test_nothing_that_waits_for_the_road_can_fail_by_time() -> None:
    names = {field.name for field in dataclasses.fields(Deadlines)}
    assert not names & {"checking_s", "fetching_s", "download_s", "connect_s"}


def test_a_test_may_shorten_its_own_table_and_nobody_may_change_the_shared_one() -> None:
    assert Deadlines(offer_s=0.1).receipt_s == DEADLINES.receipt_s
    with pytest.raises(dataclasses.FrozenInstanceError):
        DEADLINES.offer_s = 1.0
