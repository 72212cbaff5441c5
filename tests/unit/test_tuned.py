"""What the control socket may state of a release's documents, and what programs are given of a config."""

from typing import Any

import pytest

from heliograph.policy import Config
from heliograph_site.serving.inference import RequestError
from heliograph_site.serving.tuned import FIELDS, MAX_CONTENT_BYTES, Tuned, parse_tuned, tuned

DEFAULTS = {"generation": None, "thresholds": {}, "flags": {}, "pre": {}, "post": {}}


def test_what_is_sent_is_what_is_read() -> None:
    config = Config(
        realm="r", model="m", number=4, at=1, generation=2, thresholds={"sure": 0.5}, flags={"on": True},
        pre={"scale": 2}, post={"label": "x"},
    )  # fmt: skip
    sent = tuned(4, 3, config)
    assert parse_tuned(sent.row()) == sent
    assert set(sent.content) == set(FIELDS) and sent.content["pre"] == {"scale": 2}
    assert dict(sent.headers) == {"heliograph-config": "4", "heliograph-policy": "3"}


def test_without_documents_everything_is_at_its_default() -> None:
    assert parse_tuned({"model": "m", "release": "0"}) == Tuned() == tuned(0, 0, None)
    assert Tuned().content == DEFAULTS


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({"config": -1}, "number of a document"),
        ({"config": True}, "number of a document"),
        ({"policy": "4"}, "number of a document"),
        ({"policy": 1 << 63}, "number of a document"),
        ({"content": []}, "content does not hold"),
        ({"content": {"flags": {}}}, "content does not hold"),
        ({"content": {**DEFAULTS, "more": 1}}, "content does not hold"),
        ({"content": {**DEFAULTS, "pre": {"a": "x" * MAX_CONTENT_BYTES}}}, "more than"),
    ],
)
def test_what_is_of_another_form_is_refused(body: dict[str, Any], says: str) -> None:
    with pytest.raises(RequestError, match=says):
        parse_tuned(body)
