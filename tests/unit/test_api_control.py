"""Policies and configs as operators and nodes meet them: the API's answers, and what a hub tells nodes of them."""

import asyncio
import time
import tomllib

import httpx
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route

from heliograph import documents as doc
from heliograph import vouching
from heliograph.errors import RefusedError, TrustError
from heliograph.policy import Policy, policy_from_table
from heliograph.protocol import parse_topic
from heliograph.signing import PrivateKey, sign_statement
from heliograph.statement import signed_bytes
from heliograph_hub.api.application import application
from heliograph_hub.commands.documents import as_toml
from heliograph_hub.commands.policy import policy_set
from heliograph_hub.founding import init_hub
from heliograph_hub.keys import load_key
from heliograph_hub.service import Service
from listening import served

HARDWARE = doc.Hardware(arch="aarch64", memory_bytes=1 << 30, runtimes={})
NODE = PrivateKey.generate(b"k" * 32)
POLICY = 'ring = "general"\nhold_max_s = 60\n'


class Hub:
    """A hub's service and API, without processes."""

    def __init__(self, folder):
        self.folder = folder / "hub"
        init_hub(self.folder, "test", int(time.time()))
        self.open()

    def open(self):
        self.service = Service(self.folder, 1)
        self.service.begin()

    def again(self):
        self.service.database.close()
        self.open()

    def _ask(self, method, path, body=None):
        async def ask():
            transport = httpx.ASGITransport(application(self.service))
            async with httpx.AsyncClient(transport=transport, base_url="http://hub") as client:
                return await client.request(method, path, json=body)

        answer = asyncio.run(ask())
        return answer.status_code, answer.json()

    def get(self, path):
        code, answer = self._ask("GET", path)
        assert code == 200, answer
        return answer

    def refused(self, path, body=None):
        code, answer = self._ask("POST" if body is not None else "GET", path, body)
        assert code >= 400, answer
        return answer["kind"], answer["error"]

    def request(self, text, kind="policy"):
        code, answer = self._ask("POST", "/v1/documents/requests", {"kind": kind, "text": text})
        assert code == 200, answer
        return answer

    def set(self, text, kind="policy"):
        asked = self.request(text, kind)
        given = {"kind": kind, "payload": asked["payload"], "signatures": {}}
        code, answer = self._ask("POST", "/v1/documents", given)
        assert code == 200, answer
        return answer

    def enrol(self, node="pi-1"):
        token = node.encode().ljust(32, b"t")
        self.service.add_token("lab", node, 60)
        self.service.enrolment.add_token("lab", node, token, 1, 60)
        enroll = doc.Enroll(token=token, key=NODE.public.raw, nonce=b"n" * 16)
        self.service.enrolment.enroll("lab", node, enroll, 1)

    def report(self, **models):
        reported = doc.Reported(
            realm="test", site="lab", node="pi-1", run=b"r" * 8, n=1, estimate=1, agent="0", schemas={}, ring="general",
            assignment=1, tuf={}, deny=doc.Denials(), bytes_received=0, models=models,
        )  # fmt: skip
        self.service.fleet.take_reported("lab", "pi-1", sign_statement("reported", reported.encode(), [NODE]))

    def told(self, lacks=None, **numbers):
        """(topic, number) of the documents that come with a reply, each believed by its own signature."""
        numbers = {"assignment": self.service.fleet.node("lab", "pi-1").assignment} | numbers
        hello = doc.Hello(
            run=b"r" * 8, nonce=b"n" * 16, agent="0", schemas={}, hardware=HARDWARE, numbers=doc.Numbers(**numbers),
            tuf=self.service.authority.set.versions, lacks=doc.Numbers(**(lacks or {})),
        )  # fmt: skip
        found = []
        for reply in self.service.replies(self.service.fleet.node("lab", "pi-1"), hello, ()):
            for below, payload in reply.documents:
                if not below.startswith(("policy/", "config/")):
                    continue
                row, names = parse_topic(f"heliograph/v1/test/{below}", "test")
                document = vouching.open_document(self.service.authority.set, payload, row, names)
                found.append((below, document.number))
                if document.number == self.service.control.newest(row.name)[below.split("/")[1]].number:
                    assert payload == self.service.announcing.retained[f"heliograph/v1/test/{below}"]
        return found


@pytest.fixture
def hub(tmp_path):
    hub = Hub(tmp_path)
    yield hub
    hub.service.database.close()


def test_asking_changes_nothing_and_setting_announces_before_it_answers(hub):
    asked = hub.request(POLICY)
    assert (asked["number"], asked["state"], asked["unchanged"], asked["have"], asked["need"]) == (
        1,
        "new",
        False,
        0,
        1,
    )
    assert hub.get("/v1/documents/policy") == [] and hub.service.authority.set.heads.policy == {}
    done = hub.set(POLICY)
    assert (done["number"], done["state"], done["said"]) == (1, "in force", [])
    assert "heliograph/v1/test/policy/general" in hub.service.announcing.retained
    assert hub.service.authority.set.heads.policy == {"general": 1}
    again = hub.request('hold_max_s = 60 # the same\nring = "general"\n')
    assert (again["number"], again["unchanged"], again["effects"]) == (1, True, [])
    assert hub.set(POLICY + "cadence_s = 5\n")["number"] == 2
    states = [(d["number"], d["state"]) for d in hub.get("/v1/documents/policy")]
    assert states == [(1, "superseded"), (2, "in force")]
    hub.again()
    assert [(d["number"], d["state"]) for d in hub.get("/v1/documents/policy")] == states


def test_a_document_is_shown_as_the_file_that_sets_it(hub):
    hub.set(POLICY + '[models.digits]\nfloor = "1.0.0"\n')
    shown = hub.get("/v1/documents/policy/general")
    assert shown["content"] == {"ring": "general", "hold_max_s": 60, "models": {"digits": {"floor": "1.0.0"}}}
    assert hub.request(as_toml(shown["content"]))["unchanged"]
    assert hub.get("/v1/documents/policy/general/1") == shown
    assert hub.get("/v1/documents/policy/early")["number"] == 0
    assert hub.get("/v1/documents/config") == []


def test_a_config_needs_its_model_and_is_signed_by_the_models_own_role(hub):
    words = "no keys for config/digits in this realm: the first release of a model brings them"
    kind, error = hub.refused("/v1/documents/requests", {"kind": "config", "text": 'model = "digits"'})
    assert kind == "NotFoundError" and words in error
    hub.service.authority.add_model("digits", int(time.time()))
    assert hub.set('model = "digits"\n[thresholds]\nalarm = 0.5\n', "config")["number"] == 1
    statement = hub.service.announcing.retained["heliograph/v1/test/config/digits"]
    row, names = parse_topic("heliograph/v1/test/config/digits", "test")
    assert vouching.open_document(hub.service.authority.set, statement, row, names).thresholds == {"alarm": 0.5}
    assert hub.get("/v1/documents/config/digits")["content"] == {"model": "digits", "thresholds": {"alarm": 0.5}}
    assert hub.refused("/v1/documents/config/faces")[1].startswith("no model 'faces' in this realm")


# fmt: off
REFUSED = [
    # kind, file, family, words
    ("policy", "ring", "ConfigError", "policy is not TOML"),
    ("policy", "hold_max_s = 1", "ConfigError", 'policy names no ring: write ring = "..."'),
    ("policy", 'ring = "moon"', "ConfigError", "policy field ring: Input should be 'canary', 'early', 'general'"),
    ("policy", 'ring = "early"\nspeed = 1', "ConfigError", "policy has no field speed"),
    ("policy", 'ring = "early"\nnumber = 3', "ConfigError", "policy field number is filled in when it is set"),
    ("policy", 'ring = "early"\n[[windows]]\nopens = "61 * * * *"\nfor_s = 60', "ConfigError", "windows.0.opens: "),
    ("policy", 'ring = "early"\n[[models.digits.gates]]\nname = "speed"\nlimit = 1.0', "ConfigError",
     "policy field models.digits.gates: no gate is called speed: p95-ms"),
    ("policy", 'ring = "early"\n[models.digits]\nfloor = "1"', "ConfigError", "policy field models.digits.floor"),
    ("policy", 'ring = "early"\n[telemetry]\nredact = [' + '"' + '", "'.join(["x" * 399] * 130) + '"]', "RefusedError",
     "exceeds 49152: say less in it"),
    ("config", 'model = "digits"\n[thresholds]\nlow = nan', "ConfigError", "config field thresholds"),
    ("config", 'model = "No!"', "ConfigError", "config field model"),
    ("order", 'ring = "early"', "NotFoundError", "no documents of kind 'order': kinds are policy, config"),
]
# fmt: on


@pytest.mark.parametrize(("kind", "text", "family", "words"), REFUSED, ids=[row[3] for row in REFUSED])
def test_a_file_that_will_not_do_is_refused_with_document_and_field(hub, kind, text, family, words):
    got, error = hub.refused("/v1/documents/requests", {"kind": kind, "text": text})
    assert got == family and words in error and "\n" not in error, error
    assert hub.get("/v1/documents/policy") == []


def test_what_this_realm_has_not_got_is_only_warned_of(hub):
    text = 'ring = "early"\n[models.faces]\nfloor = "1.0.0"\n[models.digits.security]\n"1.2.0" = 2026-01-01T00:00:00Z\n'
    assert hub.request(text)["warnings"] == [
        "policy field models.faces: this realm has no model faces yet",
        "policy field models.digits: this realm has no model digits yet",
    ]
    hub.service.authority.add_model("digits", int(time.time()))
    assert hub.request(text)["warnings"][1] == (
        "policy field models.digits.security: this realm has no release digits@1.2.0 yet"
    )


def test_signatures_brought_by_file_count_and_those_of_other_keys_do_not(hub):
    asked = hub.request(POLICY)
    payload = bytes.fromhex(asked["payload"])

    def given(name):
        key = load_key(hub.folder / "keys" / f"{name}.key")
        signature = key.sign(signed_bytes("policy", payload)).hex()
        return {"kind": "policy", "payload": payload.hex(), "signatures": {key.keyid.hex(): signature}}

    assert hub.refused("/v1/documents", given("assign"))[1].endswith("is not one of the keys of policy")
    assert "heliograph/v1/test/policy/general" not in hub.service.announcing.retained
    code, answer = hub._ask("POST", "/v1/documents", given("policy"))
    assert (code, answer["state"]) == (200, "in force")
    assert hub.refused("/v1/documents", {"kind": "policy", "payload": payload.hex()})[1].startswith("signatures must")


def test_a_reply_brings_what_is_newer_and_the_older_one_that_is_asked_for_by_number(hub):
    hub.enrol()
    hub.service.authority.add_model("digits", int(time.time()))
    for seconds in (1, 2, 3):
        hub.set(f'ring = "general"\nhold_max_s = {seconds}\n')
    hub.set('ring = "early"\n')
    for generation in (1, 2):
        hub.set(f'model = "digits"\ngeneration = {generation}\n', "config")
    general, digits = "policy/general", "config/digits"
    assert hub.told() == [(general, 3)], "no directive names digits, nor does the node"
    assert hub.told(policy=3) == []
    assert hub.told(policy=3, config={"digits": 0}) == [(digits, 2)]
    assert hub.told(policy=3, config={"digits": 2}) == []
    assert hub.told({"policy": 2}, policy=3) == [(general, 2)]
    assert hub.told({"policy": 2, "config": {"digits": 1}}, policy=3) == [(general, 2), (digits, 1), (digits, 2)]
    assert hub.told({"config": {"digits": 1}}, policy=3, config={"digits": 2}) == [(digits, 1)]
    assert hub.told({"policy": 9}, policy=3) == [(general, 3)], "the newest up to that number"
    assert hub.told({"policy": 9, "config": {"faces": 4}}) == [(general, 3)], "once is enough"
    assert hub.told(policy=7) == [], "a number that this hub never gave"
    assert hub.told(policy=7, assignment=0) == [(general, 3)], "it may have come from a ring with higher numbers"
    hub.again()
    assert hub.told({"policy": 1}, policy=3) == [(general, 1)]


def test_who_is_affected_is_told_before_anything_is_signed_and_numbers_pass_those_reported(hub):
    hub.enrol()
    serving = doc.ModelReport(phase="idle", tuple=doc.Tuple(release=b"r" * 32, config=4, policy=6))
    hub.report(digits=serving)
    asked = hub.request('ring = "general"\nhold_max_s = 0\nfail_mode = "closed"\n[models.digits]\nfloor = "9.0.0"\n')
    assert asked["number"] == 7, "6 was given by a hub that this one was restored for"
    (effect,) = asked["effects"]
    assert (effect["node"], effect["state"], effect["loses_service"]) == ("lab/pi-1", "stopped", True)
    assert effect["before"] == {"release": None, "digest": (b"r" * 32).hex(), "config": 4, "policy": 6}
    assert effect["after"] is None and "models.digits.floor of policy 7 wants 9.0.0" in effect["why"][0]
    assert hub.get("/v1/documents/policy") == []
    assert hub.request('ring = "early"\n')["effects"] == []


def test_who_has_not_taken_an_urgent_policy_is_read_from_the_hub(hub):
    hub.enrol()
    assert hub.get("/v1/convergence/general") == {"ring": "general", "number": 0, "immediate": [], "missing": []}
    hub.set(POLICY + '[[immediate]]\nitem = "safety filter"\nconverge_s = 600\n')
    answer = hub.get("/v1/convergence/general")
    assert [item["item"] for item in answer["immediate"]] == ["safety filter"]
    assert [(m["node"], m["number"], m["why"]) for m in answer["missing"]] == [("lab/pi-1", 0, "it has never reported")]
    hub.report(digits=doc.ModelReport(phase="idle", tuple=doc.Tuple(release=b"r" * 32, policy=1)))
    assert hub.get("/v1/convergence/general")["missing"] == []


# --- the commands -----------------------------------------------------------------------------------------------------


def test_a_policy_that_stops_a_node_is_signed_only_if_that_is_agreed_to(hub, tmp_path, capsys):
    hub.enrol()
    hub.report(digits=doc.ModelReport(phase="idle", tuple=doc.Tuple(release=b"r" * 32)))
    file = tmp_path / "strict.toml"
    file.write_text('ring = "general"\nhold_max_s = 60\nfail_mode = "closed"\n[models.digits]\nfloor = "9.0.0"\n')
    with served(application(hub.service)) as url:
        with pytest.raises(RefusedError, match=r"policy/general 1 stops 1 node: lab/pi-1; --yes signs it all"):
            policy_set(file, where=url)
        assert hub.get("/v1/documents/policy") == []
        told = capsys.readouterr()
        assert "models.digits.floor of policy 1 wants 9.0.0" in told.out and "STOPS" in told.out
        assert "warning: policy field models.digits: this realm has no model digits yet" in told.err
        policy_set(file, yes=True, where=url)
        assert capsys.readouterr().out.endswith("policy/general 1 is signed and announced\n")
    assert [d["state"] for d in hub.get("/v1/documents/policy")] == ["in force"]


@pytest.mark.parametrize("with_key", [True, False])
def test_nothing_is_signed_but_what_the_file_says_whatever_the_hub_sends(hub, tmp_path, with_key):
    file = tmp_path / "mild.toml"
    file.write_text(POLICY)
    asked = hub.request(POLICY)
    other = Policy(realm="test", ring="general", number=1, at=1, hold_max_s=60, fail_mode="closed")
    signed = []

    async def answer(request):
        signed.append(request.url.path)
        return JSONResponse(asked | {"payload": other.encode().hex()})

    app = Starlette(routes=[Route("/v1/documents/requests", answer, methods=["POST"])])
    with served(app) as url, pytest.raises(TrustError, match="the hub sent another policy than the file states"):
        policy_set(file, [str(hub.folder / "keys" / "policy.key")] if with_key else None, where=url)
    assert signed == ["/v1/documents/requests"]


# --- as a file ------------------------------------------------------------------------------------------------------

names = st.text(st.sampled_from("abz019-"), min_size=1, max_size=8)
versions = st.sampled_from(["1.0.0", "2.10.3"])
text = st.text(max_size=20)


@given(
    redact=st.lists(text, max_size=3),
    day=st.none() | st.integers(0, 1 << 62),
    models=st.dictionaries(names, st.dictionaries(versions, st.integers(0, 1 << 39), max_size=2), max_size=2),
    gate=st.floats(allow_nan=False, allow_infinity=False),
    item=text,
)
@example(redact=["\x7f\n\"'\\"], day=None, models={}, gate=1e-300, item="\u2028\U0001f600")
def test_any_policy_survives_being_shown_and_set_again(redact, day, models, gate, item):
    table = {
        "ring": "general",
        "budget": {} if day is None else {"day_bytes": day},
        "telemetry": {"redact": redact},
        "immediate": [{"item": item, "converge_s": 1}],
        "models": {
            model: {"security": security, "gates": [{"name": "p95-ms", "limit": gate}], "floor": "1.0.0"}
            for model, security in models.items()
        },
        "limits": {"realtime": {"queue": 3}},
    }
    made = policy_from_table(table, realm="test", number=1, at=1)
    content = made.model_dump(mode="json", exclude_defaults=True, exclude={"realm", "number", "at"})
    assert policy_from_table(tomllib.loads(as_toml(content)), realm="test", number=1, at=1) == made
