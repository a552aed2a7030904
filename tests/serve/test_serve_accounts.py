"""Who may come in, and who may see what: a test for every known hole of servers like this one."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import httpx
import pytest
from fastapi.routing import APIRoute
from starlette.routing import Route
from typer.testing import CliRunner

from danlu.align.preferences import PreferenceStore
from danlu.cli import app as verbs
from danlu.errors import UserError
from danlu.serve import Options, Reach, page, run_server
from danlu.serve.limits import Door
from danlu.serve.store import ServeStore

GREET = [{"role": "user", "content": "greet"}]
ASK = {"model": "knows", "messages": GREET, "max_tokens": 2}
STRANGERS_MAY = {"/healthz", "/readyz", "/api/login", *(route.path for route in page.routes().routes)}


@pytest.fixture
def client(guarded):
    with httpx.Client(base_url=guarded.live.url, timeout=30) as opened:
        yield opened


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


def every(routes) -> Iterator[Route | APIRoute]:
    """All routes, those of routers within too; a kind that is not known here is an error, not an omission."""
    for route in routes:
        if isinstance(route, (APIRoute, Route)):
            yield route
        else:
            yield from every(route.original_router.routes)


def paths(app) -> list[tuple[str, str]]:
    """Every method of every path of the application, with something in the place of each name."""
    return [
        (method, re.sub(r"\{.*?\}", "x", route.path))
        for route in every(app.routes)
        for method in sorted(route.methods or {"GET"})
    ]


def test_auth_gaps_every_route_is_closed_to_strangers_but_those_on_the_list(guarded, client):
    tried = paths(guarded.live.app)
    sample = {("POST", "/api/chat"), ("GET", "/api/operator/keys"), ("GET", "/v1/models"), ("GET", "/openapi.json")}
    assert sample <= {*tried}
    for method, path in tried:
        answer = client.request(method, path, json={} if method in ("POST", "PATCH", "PUT") else None)
        if path in STRANGERS_MAY:
            assert answer.status_code in (200, 400, 401, 503), (method, path)
        else:
            assert answer.status_code == 401, (method, path, answer.text)
            assert method == "HEAD" or answer.json()["error"]["code"] == "invalid_api_key"
            assert answer.headers["www-authenticate"] == "Bearer"
    for path in ("/nothing", "/metrics", "/api", "//api/info", "/api/info/", "/healthz/x", "/healthz/..%2fv1/models"):
        assert client.get(path).status_code == 401, path


@pytest.mark.parametrize("key", ["x", "danlu-0123456789abcdef-" + "A" * 43, "\u00e9"])
def test_auth_gaps_a_wrong_key_is_a_strangers(client, key):
    headers = {"authorization": f"Bearer {key}".encode("latin-1")}
    answer = client.get("/v1/models", headers=headers)
    assert answer.status_code == 401
    assert f"{key}" == "x" or key not in answer.text


def test_auth_gaps_keys_have_scopes(guarded, client):
    for path in ("/api/operator/keys", "/metrics", "/api/runs", "/api/operator/nothing"):
        refused = client.get(path, headers=bearer(guarded.alice))
        assert refused.status_code == 403, path
        assert refused.json()["error"]["code"] == "insufficient_scope"
    assert client.get("/v1/models", headers=bearer(guarded.alice)).status_code == 200
    only = guarded.kept.people.add_key("watcher", scopes=("operator",))[1]
    assert client.get("/api/operator/keys", headers=bearer(only)).status_code == 200
    assert client.get("/v1/models", headers=bearer(only)).status_code == 403


def test_auth_gaps_operators_make_and_end_keys_and_it_is_noted(guarded, client):
    operator = bearer(guarded.operator)
    made = client.post("/api/operator/keys", json={"owner": "dora", "label": "phone"}, headers=operator)
    assert made.status_code == 201
    key, identity = made.json()["key"], made.json()["id"]
    assert client.get("/api/me", headers=bearer(key)).json()["owner"] == "dora"
    listed = client.get("/api/operator/keys", headers=operator)
    assert key not in listed.text
    assert identity in [row["id"] for row in listed.json()["keys"]]
    assert client.delete(f"/api/operator/keys/{identity}", headers=operator).status_code == 204
    assert client.get("/api/me", headers=bearer(key)).status_code == 401, "a revoked key ends at once"
    noted = [(row["actor"], row["action"], row["target"]) for row in guarded.kept.audited(2)]
    assert noted == [("operator", "key.revoke", identity), ("operator", "key.add", identity)]
    assert client.post("/api/operator/keys", json={"owner": "a b"}, headers=operator).status_code == 400
    assert client.delete("/api/operator/keys/nothing", headers=operator).status_code == 404


def compared(client: httpx.Client, key: str) -> dict:
    with client.stream("POST", "/api/compare", json={"models": ["knows"], "messages": GREET, "max_tokens": 2},
                       headers=bearer(key)) as answer:  # fmt: skip
        events = [json.loads(line[6:]) for line in answer.iter_lines() if line]
    return {**events[0], **events[-1]}


def test_object_level_access_nobody_reaches_what_is_somebody_elses(guarded, client):
    shown = compared(client, guarded.alice)
    conversation, place = shown["conversation"], f"/api/conversations/{shown['conversation']}"
    say = {"model": "knows", "content": "greet", "max_tokens": 2}
    said = client.post("/api/chat", json=say | {"conversation": conversation}, headers=bearer(guarded.alice))
    message = json.loads(said.text.split("\n")[0][6:])["user"]
    before = client.get(place, headers=bearer(guarded.alice)).json()
    matrix = [
        ("GET", place, None),
        ("PATCH", place, {"title": "mine"}),
        ("DELETE", place, None),
        ("POST", f"{place}/messages", {"parent": message, "role": "assistant", "content": "x"}),
        ("POST", "/api/chat", say | {"conversation": conversation}),
        ("POST", "/api/chat", {"model": "knows", "conversation": conversation, "parent": message}),
        ("POST", "/api/compare", {"models": ["knows"], "messages": GREET, "conversation": conversation}),
        ("POST", "/api/vote", {"comparison": shown["comparison"], "choice": "left", "rater": "alice"}),
    ]
    for intruder in (guarded.bob, guarded.operator):
        for method, path, body in matrix:
            answer = client.request(method, path, json=body, headers=bearer(intruder))
            assert answer.status_code == 404, (method, path, answer.text)
            assert answer.json()["error"]["code"] == "not_found"
        listed = client.get("/api/conversations", headers=bearer(intruder)).json()["conversations"]
        assert conversation not in [row["id"] for row in listed]
    assert client.get(place, headers=bearer(guarded.alice)).json() == before
    own = guarded.kept.dialogues.start("bob")
    stolen = say | {"conversation": own, "parent": message}
    assert client.post("/api/chat", json=stolen, headers=bearer(guarded.bob)).status_code == 404
    vote = {"comparison": shown["comparison"], "choice": "left", "rater": "bob"}
    assert client.post("/api/vote", json=vote, headers=bearer(guarded.alice)).status_code == 200
    assert guarded.live.store.all()[-1].rater == "alice", "a vote is its caller's, whatever name it gives"
    assert client.delete(place, headers=bearer(guarded.alice)).status_code == 204


def test_csrf_a_cookie_needs_the_header_of_a_page_that_was_loaded_from_here(guarded, client):
    guarded.kept.people.add_user("erin", "correct horse")
    assert client.post("/api/login", json={"user": "erin", "password": "wrong horse"}).status_code == 401
    answer = client.post("/api/login", json={"user": "erin", "password": "correct horse"})
    assert answer.status_code == 200
    cookie = answer.headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=strict" in cookie
    assert answer.json()["owner"] == "erin"
    token = {"x-csrf-token": answer.json()["csrf"]}
    assert client.get("/api/me").json() == answer.json()
    for headers in ({}, {"x-csrf-token": ""}, {"x-csrf-token": "0" * 64}):
        assert client.post("/v1/chat/completions", json=ASK, headers=headers).json()["error"]["code"] == "csrf"
        assert client.delete("/api/conversations/x", headers=headers).status_code == 403
    assert client.post("/v1/chat/completions", json=ASK, headers=token).status_code == 200
    assert client.get("/api/operator/keys").status_code == 403
    assert client.post("/api/logout", json={}, headers=token).status_code == 204
    assert client.get("/api/me").status_code == 401
    assert client.get("/api/me", headers={"cookie": cookie.partition(";")[0]}).status_code == 401


def test_a_key_logs_in_a_page_too_until_it_is_revoked(guarded, client):
    identity, key = guarded.kept.people.add_key("frank")
    assert client.post("/api/login", json={"key": f"{key}x"}).status_code == 401
    assert client.post("/api/login", json={"key": key}).json()["owner"] == "frank"
    assert client.get("/api/me").status_code == 200
    guarded.kept.people.revoke_key(identity)
    assert client.get("/api/me").status_code == 401


def test_passwords_are_not_guessed(guarded, client):
    tries = [client.post("/api/login", json={"user": "grace", "password": "x"}).status_code for _ in range(12)]
    assert tries[:10] == [401] * 10
    assert tries[-1] == 429


def test_open_by_default_only_on_this_machine_and_until_there_is_a_key(live):
    assert httpx.get(f"{live.url}/api/me").json() == {"owner": "", "scopes": ["chat", "operator"], "csrf": ""}
    kept = ServeStore(live.store.database)
    identity, key = kept.people.add_key("alice")
    try:
        assert httpx.get(f"{live.url}/v1/models").status_code == 401
        assert httpx.get(f"{live.url}/v1/models", headers=bearer(key)).status_code == 200
        assert httpx.get(f"{live.url}/api/conversations", headers=bearer(key)).json()["conversations"] == []
    finally:
        kept.people.revoke_key(identity)
    assert httpx.get(f"{live.url}/v1/models", headers=bearer("any")).status_code == 200


@pytest.mark.parametrize("reach", [Reach("0.0.0.0"), Reach("::"), Reach(names=("chat.example.org",))], ids=str)
def test_open_by_default_others_are_not_let_in_while_nobody_has_a_key(model_dirs, tmp_path, reach):
    for accounts, told in (("--run runs/k", "--run runs/k"), ("", f"--db {tmp_path / 'p.db'}")):
        with pytest.raises(UserError, match=f"nobody has a key; make one first: danlu keys add NAME {told}, or"):
            run_server(model_dirs, tmp_path / "p.db", 0, None, Options(reach=reach, accounts=accounts))


def test_open_by_default_the_last_key_does_not_open_a_server_that_others_reach(tmp_path):
    from starlette.testclient import TestClient

    from danlu.serve.accounts import Accounts
    from danlu.serve.rates import Rates

    async def inner(scope, receive, send):
        raise AssertionError("a stranger came in")

    kept = ServeStore(PreferenceStore(tmp_path / "p.db").database)
    app = Accounts(inner, kept, Rates(), closed=True)
    assert TestClient(app).get("/v1/models").status_code == 401


@pytest.mark.parametrize(
    ("reach", "host", "origin", "status"),
    [
        (Reach(), "192.168.1.5", None, 403),
        (Reach("0.0.0.0"), "192.168.1.5:8000", None, 200),
        (Reach("0.0.0.0"), "[fe80::1]:8000", None, 200),
        (Reach("0.0.0.0"), "rebound.evil.test", None, 403),
        (Reach("0.0.0.0"), "192.168.1.5", "http://192.168.1.5:8000", 200),
        (Reach("0.0.0.0"), "192.168.1.5", "http://6.6.6.6", 403),
        (Reach("0.0.0.0"), "192.168.1.5", "null", 403),
        (Reach(names=("Chat.example.org",)), "chat.example.org", "https://chat.example.org", 200),
        (Reach(names=("chat.example.org",)), "chat.example.org", "https://localhost", 403),
        (Reach(names=("chat.example.org",)), "other.example.org", None, 403),
        (Reach(names=("chat.example.org",)), "192.168.1.5", None, 403),
        (Reach(), "localhost:8000", "http://127.0.0.1:8000", 200),
    ],
    ids=str,
)
def test_open_by_default_names_are_let_in_by_name(reach, host, origin, status):
    from starlette.responses import PlainTextResponse
    from starlette.testclient import TestClient

    headers = {"host": host} | ({"origin": origin} if origin else {})
    assert TestClient(Door(PlainTextResponse("in"), reach)).get("/", headers=headers).status_code == status


def test_keys_and_users_from_the_command_line(tmp_path):
    database = ["--db", str(tmp_path / "p.db")]

    def danlu(*words: str, said: str = "") -> str:
        done = CliRunner().invoke(verbs, [*words, *database], input=said)
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            raise done.exception
        assert done.exit_code == 0, done.output
        return done.stdout

    kept = ServeStore(tmp_path / "p.db")
    earlier = kept.dialogues.start("")
    key = danlu("keys", "add", "alice", "--label", "laptop", "--requests", "7", "--adopt").strip().split("\n")[-1]
    caller = kept.people.by_key(key)
    assert caller is not None
    assert (caller.owner, caller.requests, caller.scopes) == ("alice", 7, frozenset({"chat"}))
    assert kept.dialogues.owns("alice", earlier)
    assert caller.key in danlu("keys", "list")
    assert key not in danlu("keys", "list")
    danlu("keys", "revoke", caller.key)
    assert "revoked" in danlu("keys", "list")
    danlu("users", "add", "bob", "--operator", said="correct horse\n")
    assert kept.people.log_in("bob", "correct horse")
    assert "bob  chat+operator" in danlu("users", "list")
    with pytest.raises(UserError, match="did you mean 'bob'"):
        danlu("users", "remove", "bobb")
    danlu("users", "remove", "bob")
    assert danlu("users", "list") == ""
    database[:] = ["--run", str(tmp_path / "none")]
    with pytest.raises(UserError, match="does not exist; say what is served with --run"):
        danlu("keys", "list")
