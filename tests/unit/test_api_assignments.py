"""What the operator API answers to statements about nodes, without a broker: nothing of it needs one."""

import asyncio

import pytest

import bundles
from heliograph import documents as doc
from heliograph.errors import ConfigError, IntegrityError, NotFoundError, RefusedError
from heliograph.signing import PrivateKey
from heliograph.wire import pack
from heliograph_hub.api.assignments import Assignments
from heliograph_hub.api.gaps import Gaps
from heliograph_hub.founding import init_realm
from heliograph_hub.service import Service

NOW = 1_795_000_000
KEY = PrivateKey.generate(b"k" * 32)


@pytest.fixture
def service(tmp_path):
    init_realm(tmp_path / "hub", "test", NOW)
    service = Service(tmp_path / "hub", 1)
    bundle = bundles.digits_bundle(tmp_path / "digits", "1.0.0")
    service.registry.add(bundle, NOW)
    service.authority.add_model("digits", NOW)
    service.enrolment.add_token("lab", "pi-1", b"t" * 32, NOW, 60)
    service.enrolment.enroll("lab", "pi-1", doc.Enroll(token=b"t" * 32, key=KEY.public.raw, nonce=b"n" * 16), NOW)
    yield service
    service.database.close()


def ask(coroutine):
    return asyncio.run(coroutine)


def test_a_pin_that_no_directive_names_is_kept_and_said_to_admit_nothing(service):
    answer = ask(Assignments(service).pin("lab", "pi-1", {"release": "digits@1.0.0"}))
    assert answer["said"] == [
        "no directive of ring general names digits@1.0.0: a pin admits nothing, so the node starts nothing new of "
        "digits until one does"
    ]
    assert service.assignments.pins() == {("lab", "pi-1"): {"digits": "1.0.0"}}


@pytest.mark.parametrize(
    ("state", "error", "words"),
    [
        (lambda a: a.pin("lab", "pi-1", {"release": "digits@9.0.0"}), NotFoundError, "no release digits@9.0.0"),
        (lambda a: a.pin("lab", "pi-9", {"release": "digits@1.0.0"}), NotFoundError, "no node lab/pi-9"),
        (lambda a: a.pin("lab", "pi-1", {"clear": "No!"}), ConfigError, "is not a name"),
        (lambda a: a.label({"site": "lab", "labels": ["time-zone=Mars"]}), ConfigError, "no IANA time zone"),
        (lambda a: a.label({"site": "lab", "node": "pi-9", "labels": ["a=1"]}), NotFoundError, "no node lab/pi-9"),
        (lambda a: a.relay("lab", "pi-1", {"relay": "a b"}), ConfigError, "is not HOST"),
        (lambda a: a.command("lab", "pi-1", {"kind": "drill", "model": "faces"}), NotFoundError, "no model 'faces'"),
        (lambda a: a.command("lab", "pi-1", {"kind": "drill"}), ConfigError, "about one model"),
        (lambda a: a.assign({"site": "lab", "ring": "moon"}), NotFoundError, "no ring 'moon'"),
        (lambda a: a.request({"site": "lab"}), NotFoundError, "waits for protected's signatures"),
        (lambda a: a.add_signatures({"payload": "00", "signatures": {}}), ConfigError, "a map of key ids"),
    ],
)
def test_what_is_wrong_is_refused_by_name_and_nothing_is_stated(service, state, error, words):
    before = service.fleet.node("lab", "pi-1")
    with pytest.raises(error, match=words):
        ask(state(Assignments(service)))
    assert service.fleet.node("lab", "pi-1") == before


def test_a_removed_node_is_said_to_keep_what_it_has(service):
    answer = ask(Assignments(service).remove("lab", "pi-1"))
    assert answer["remains"][0] == "it has never reported: what it holds is not known"
    assert answer["key"] == KEY.keyid.hex()
    with pytest.raises(RefusedError, match="was removed"):
        ask(Assignments(service).command("lab", "pi-1", {"kind": "report"}))
    assert ask(Gaps(service).show_drift())["nodes"] == 0


def test_a_node_that_never_reported_is_silent_and_level_with_nothing(service):
    assert ask(Gaps(service).show_drift())["never_reported"] == ["lab/pi-1"]
    stale = ask(Gaps(service).show_stale())
    assert [(row["node"], row["last_heard"]) for row in stale["silent"]] == [("pi-1", None)]
    assert stale["behind"] == []


def test_an_assignment_from_elsewhere_with_more_than_any_hub_states_is_malformed():
    whole = {"realm": "test", "site": "lab", "node": "pi-1", "key": b"k" * 32, "number": 1, "ring": "general"}
    assert doc.Assignment.decode(pack(whole)).labels == {}
    for extra in (
        {"labels": {f"k{n}": "v" for n in range(65)}},
        {"pins": {f"m{n}": "1.0.0" for n in range(257)}},
        {"commands": [{"number": n, "kind": "report"} for n in range(65)]},
    ):
        with pytest.raises(IntegrityError, match="at most"):
            doc.Assignment.decode(pack(whole | extra))
