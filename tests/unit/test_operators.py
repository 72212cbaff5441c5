"""Which role may do what at the hub's API, and for how long a token says a role."""

import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from starlette.routing import Route

from heliograph.errors import ConfigError, RefusedError
from heliograph.signing import PrivateKey
from heliograph_hub.api.application import application
from heliograph_hub.api.log import TOLD
from heliograph_hub.founding import init_hub
from heliograph_hub.operators import DUTIES, MAX_TOKENS, ROLES, ROUTES, TOKEN_LIFE_S, Tokens
from heliograph_hub.service import Service

OWNERS_ALONE = {("POST", "/v1/tokens")}
NOW = 1_795_000_000


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    import asyncio

    init_hub(tmp_path / "hub", "demo", int(time.time()))

    async def make() -> Service:
        return Service(tmp_path / "hub", 1)

    made = asyncio.run(make())
    yield made
    made.database.close()


def routes(service: Service) -> set[tuple[str, str]]:
    found = set()
    for route in application(service).routes:
        assert isinstance(route, Route) and route.methods is not None
        found |= {(method, route.path) for method in route.methods - {"HEAD"}}
    return found


def test_every_route_has_its_roles_or_is_the_owners_alone(service: Service) -> None:
    assert routes(service) == ROUTES.keys() | OWNERS_ALONE
    assert not ROUTES.keys() & OWNERS_ALONE


def test_who_only_looks_changes_nothing_and_everybody_may_look() -> None:
    for (method, path), roles in ROUTES.items():
        assert roles and roles <= set(ROLES)
        assert (method == "GET") == ("viewer" in roles), path
        if method == "GET":
            assert roles == set(ROLES), path


def test_no_role_can_both_sign_and_approve() -> None:
    assert set(DUTIES) == {"sign", "approve"}
    assert not DUTIES["sign"] & DUTIES["approve"]
    duties = DUTIES["sign"] | DUTIES["approve"]
    for (method, path), roles in ROUTES.items():
        if "rollouts" in path and method == "POST":
            assert not roles & duties, "nor does either of them roll out"


def test_changes_of_keys_are_securitys_and_the_owners_and_nobody_elses() -> None:
    changing = {path: roles for (method, path), roles in ROUTES.items() if method == "POST" and "/keys/" in path}
    assert set(changing) == {"/v1/keys/rotations", "/v1/keys/rotations/drop", "/v1/keys/signatures"}
    assert set(changing.values()) == {frozenset({"security"})}
    assert not any("security" in roles for roles in DUTIES.values()), "who changes keys signs and approves nothing"


def test_a_token_says_its_role_for_a_quarter_of_an_hour_and_is_not_kept() -> None:
    tokens = Tokens()
    token, ends = tokens.add("approver", NOW, b"e" * 32)
    assert ends == NOW + TOKEN_LIFE_S == NOW + 900
    assert [tokens.role(token, at) for at in (NOW, ends - 1, ends)] == ["approver", "approver", None]
    for wrong in ("", token[:-1], token + "A", token.lower()):
        assert tokens.role(wrong, NOW) is None
    assert token.encode() not in repr(vars(tokens)).encode()
    with pytest.raises(ConfigError, match="no role 'owner': roles are viewer, releaser"):
        tokens.add("owner", NOW, b"e" * 32)


def test_tokens_are_bounded_and_those_that_ended_make_room() -> None:
    tokens = Tokens()
    for number in range(MAX_TOKENS):
        tokens.add("viewer", NOW, number.to_bytes(32, "big"))
    with pytest.raises(RefusedError, match="wait until some have ended"):
        tokens.add("viewer", NOW, b"x" * 32)
    tokens.add("viewer", NOW + TOKEN_LIFE_S, b"x" * 32)


def ask(service: Service, method: str, path: str, token: str | None, body: dict[str, Any]) -> SimpleNamespace:
    import asyncio

    async def request() -> SimpleNamespace:
        headers = {} if token is None else {"authorization": f"Bearer {token}"}
        transport = httpx.ASGITransport(application(service, service.operators))
        async with httpx.AsyncClient(transport=transport, base_url="https://hub", headers=headers) as client:
            answer = await client.request(method, path, json=body)
        content = answer.json()
        return SimpleNamespace(status=answer.status_code, error=content["error"] if answer.is_error else "")

    return asyncio.run(request())


@pytest.mark.parametrize("role", [*ROLES, None, "ended"])
def test_each_role_gets_as_far_as_the_table_says_at_every_route(service: Service, role: str | None) -> None:
    import time

    now = int(time.time())
    token = None
    if role is not None:
        at = now - TOKEN_LIFE_S - 1 if role == "ended" else now
        token, _ = service.operators.add("operator" if role == "ended" else role, at, b"e" * 32)
    for method, path in sorted(routes(service)):
        full = path.replace("{candidate}", "neither-digits@1").replace("{number:int}", "1")
        for name in ("model", "version", "kind", "scope", "ring", "site", "node", "lane"):
            full = full.replace("{" + name + "}", "x1")
        answer = ask(service, method, full, token, {})
        if role in (None, "ended"):
            assert answer.status == 401, path
        elif role not in ROUTES.get((method, path), frozenset()):
            assert answer.status == 403 and f"role {role} may not {method} {path}" in answer.error
        elif "{candidate}" in path or (method == "POST" and path.endswith("releases/{model}/{version}/requests")):
            assert answer.status == 403 and "may not" in answer.error, "of no duty"
        else:
            assert answer.status not in (401, 403), path


@pytest.mark.parametrize(("role", "may"), [("releaser", "sign"), ("approver", "approve"), ("operator", None)])
def test_signatures_of_a_duty_are_taken_from_its_role_only(service: Service, role: str, may: str | None) -> None:
    import time

    token, _ = service.operators.add(role, int(time.time()), b"e" * 32)
    for duty in ("sign", "approve"):
        for path, body in (
            ("/v1/releases/digits/1.0.0/requests", {"duty": duty}),
            (f"/v1/candidates/{duty}-digits@1.0.0", {}),
        ):
            assert (ask(service, "POST", path, token, body).status == 403) == (duty != may)


def test_of_each_route_that_takes_something_the_log_knows_what_to_tell(service: Service) -> None:
    taking = {path for method, path in routes(service) if method == "POST"}
    assert TOLD.keys() == taking
    assert {path for path, told in TOLD.items() if told is None} == {
        path for path in taking if path.endswith("/requests")
    }


@pytest.mark.parametrize("odd", [{"keyid": 1}, {"keyid": "zz"}, {"signatures": {"zz": ""}}, {"name": "a\nb"}])
def test_attack_no_field_keeps_an_act_out_of_the_log_or_puts_something_into_it(
    service: Service, odd: dict[str, Any]
) -> None:
    token, _ = service.operators.add("security", int(time.time()), b"e" * 32)
    forged = {"keyid": "ab" * 32, "signatures": {"cd" * 32: "00" * 64}, "release": "digits@9.9.9", "model": "x"}
    for body in (odd, forged):
        before = service.duties.newest(1)
        assert ask(service, "POST", "/v1/keys/rotations/drop", token, body).status == 200
        (done,) = service.duties.newest(1)
        assert done not in before
        assert (done.who, done.what, done.keyids) == ("security", "keys/rotations/drop", ())


def test_the_log_tells_what_was_changed_in_one_line_whatever_its_words(service: Service) -> None:
    token, _ = service.operators.add("operator", int(time.time()), b"e" * 32)
    assert ask(service, "POST", "/v1/fleet/tokens", token, {"site": "s", "node": "n", "life_s": 60}).status == 200
    assert service.duties.newest(1)[0].what == "fleet/tokens site=s node=n"
    kept = service.authority.set.role_keys("deny")[1]
    security, _ = service.operators.add("security", int(time.time()), b"f" * 32)
    gone, new = next(iter(kept)).hex(), PrivateKey.generate(b"n" * 32).public
    body = {"role": "deny", "add": [new.raw.hex()], "remove": [gone]}
    assert ask(service, "POST", "/v1/keys/rotations", security, body).status == 200
    what = service.duties.newest(1)[0].what
    assert what == f"keys/rotations role=deny remove={gone} added={new.keyid.hex()[:16]}"


@pytest.mark.parametrize("query", ["limit=-1", "limit=x", "before=-1", "limit=\u0663", "before=" + "9" * 40])
def test_numbers_that_the_log_is_asked_for_are_bounded(service: Service, query: str) -> None:
    token, _ = service.operators.add("viewer", int(time.time()), b"e" * 32)
    assert ask(service, "GET", f"/v1/keys/log?{query}", token, {}).status == 400
    assert ask(service, "GET", "/v1/keys/log?limit=99999&before=" + "9" * 25, token, {}).status == 200
