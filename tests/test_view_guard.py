"""The guard: hostile requests get a 4xx and change nothing, and a token opens only what it was made for."""

from __future__ import annotations

import http.client
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cai.errors import UserError
from cai.view import open_door
from cai.view.guard import CSP
from tests.report_fixture import make_run
from tests.view_fixture import Answer, Served, content_of, serving


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    make_run(folder / "one", n_train=10, n_held_out=8)
    (folder / "secret.txt").write_text("nobody may read this", encoding="utf-8")
    outside = folder.parent / f"{folder.name}-outside"
    make_run(outside, n_train=8, n_held_out=8)
    (folder / "linked").symlink_to(outside)
    return folder


@pytest.fixture(scope="module")
def served(folder: Path) -> Iterator[Served]:
    with serving(folder, reviewers=("anna",)) as served:
        drawn = served.post("/runs/one/review/draw", {"estimate": 6, "value": 2})
        assert drawn.status == 200, drawn.text
        yield served


VOTE = "/runs/one/review/vote"
UNDO = "/runs/one/review/undo"
Request = Callable[[Served], Answer]


def _get(path: str, **headers: str) -> Request:
    return lambda s: s.ask("GET", path, {"Cookie": s.cookie()} | {k.replace("_", "-"): v for k, v in headers.items()})


def _undo(**changes: str | None) -> Request:
    return lambda s: s.post(UNDO, {}, **changes)


def _method(name: str, path: str = UNDO) -> Request:
    return lambda s: s.ask(
        name,
        path,
        {
            "Cookie": s.cookie(),
            "Origin": s.origin,
            "X-Cai-View": "1",
            "Content-Type": "application/json",
            "Content-Length": "2",
        },
        b"{}",
    )


def _raw(served: Served, request: bytes) -> Answer:
    """Send bytes as they are, for what no client library would send."""
    with socket.create_connection(("127.0.0.1", served.port), timeout=60) as link:
        link.sendall(request)
        answer = http.client.HTTPResponse(link)
        answer.begin()
        return Answer(answer.status, dict(answer.getheaders()), answer.read().decode("utf-8", "replace"))


def _line(target: str) -> Request:
    return lambda s: _raw(
        s,
        (
            f"GET {target} HTTP/1.1\r\nHost: 127.0.0.1:{s.port}\r\nCookie: {s.cookie()}\r\nConnection: close\r\n\r\n"
        ).encode("latin-1"),
    )


HOSTILE: dict[str, Request] = {
    "another host": _get("/", Host="evil.test"),
    "another port": _get("/", Host="127.0.0.1:1"),
    "no port": _get("/", Host="127.0.0.1"),
    "host with a user": lambda s: s.ask("GET", "/", {"Cookie": s.cookie(), "Host": f"127.0.0.1:{s.port}@evil.test"}),
    "host with a dot": lambda s: s.ask("GET", "/", {"Cookie": s.cookie(), "Host": f"localhost.:{s.port}"}),
    "two hosts": lambda s: s.ask("GET", "/", {"Cookie": s.cookie(), "Host": [f"127.0.0.1:{s.port}", "evil.test"]}),
    "no host": lambda s: _raw(s, f"GET / HTTP/1.1\r\nCookie: {s.cookie()}\r\nConnection: close\r\n\r\n".encode()),
    "absolute target": lambda s: _raw(
        s,
        (
            f"GET http://evil.test/ HTTP/1.1\r\nHost: evil.test\r\nCookie: {s.cookie()}\r\nConnection: close\r\n\r\n"
        ).encode(),
    ),
    "read from another origin": _get("/json/", Origin="http://evil.test"),
    "read from origin null": _get("/json/", Origin="null"),
    "read from our host over https": lambda s: _get("/json/", Origin=f"https://127.0.0.1:{s.port}")(s),
    "embedded by another site": _get("/json/", Sec_Fetch_Site="cross-site", Sec_Fetch_Mode="no-cors"),
    "fetched by a sibling site": _get("/json/", Sec_Fetch_Site="same-site", Sec_Fetch_Mode="cors"),
    "no cookie": lambda s: s.ask("GET", "/runs/one", {}),
    "a made-up cookie": lambda s: s.ask("GET", "/runs/one", {"Cookie": f"cai_view_{s.port}={'0' * 64}"}),
    "the token as cookie": lambda s: s.ask(
        "GET", "/", {"Cookie": f"cai_view_{s.port}={s.opened.urls['owner'].partition('=')[2]}"}
    ),
    "a wrong token": lambda s: s.ask("GET", "/?token=guess", {}),
    "two tokens": lambda s: s.ask("GET", f"{s.opened.urls['owner'].removeprefix(s.origin)}&token=x", {}),
    "websocket": _get(
        "/", Upgrade="websocket", Connection="Upgrade", Sec_WebSocket_Key="x", Sec_WebSocket_Version="13"
    ),
    "write without origin": _undo(Origin=None),
    "write from null": _undo(Origin="null"),
    "write from another origin": _undo(Origin="http://evil.test"),
    "write without our header": _undo(X_Cai_View=None),
    "write with another value": _undo(X_Cai_View="2"),
    "write as text": _undo(Content_Type="text/plain"),
    "write as a form": _undo(Content_Type="application/x-www-form-urlencoded"),
    "write without a type": _undo(Content_Type=None),
    "write without cookie": _undo(Cookie=None),
    "write with the token in the URL": lambda s: s.post(
        f"{UNDO}?token={s.opened.urls['owner'].partition('=')[2]}", {}, Cookie=None
    ),
    "write cross-site": _undo(Sec_Fetch_Site="cross-site"),
    "write by GET": _get(UNDO),
    "write by HEAD": _method("HEAD"),
    "write by PUT": _method("PUT"),
    "write by DELETE": _method("DELETE"),
    "preflight": _method("OPTIONS"),
    "post to a page": lambda s: s.post("/runs/one", {}),
    "too long": lambda s: s.post(VOTE, b'{"item_id": "' + b"x" * 100_000 + b'"}'),
    "no length": lambda s: s.post(UNDO, b"", Content_Length=None, Transfer_Encoding="chunked"),
    "no JSON": lambda s: s.post(UNDO, b"{"),
    "deep JSON": lambda s: s.post(UNDO, b"[" * 30_000),
    "an unknown field": lambda s: s.post(UNDO, {"reviewer": "anna"}),
    "a vote for somebody else": lambda s: s.post(
        VOTE, {"item_id": "b2:" + "0" * 40, "side": "left", "reviewer": "ben"}
    ),
    "a vote on nothing": lambda s: s.post(VOTE, {"item_id": "b2:" + "0" * 40, "side": "left"}),
    "a path for an id": lambda s: s.post(VOTE, {"item_id": "../../../etc/passwd", "side": "left"}),
    "a made-up side": lambda s: s.post(VOTE, {"item_id": "b2:" + "0" * 40, "side": "constructor"}),
    "parent folder": _line("/runs/../secret.txt"),
    "parent folder, encoded": _line("/runs/%2e%2e/secret.txt"),
    "parent folder, encoded twice": _line("/runs/%252e%252e/secret.txt"),
    "parent in a name": _line("/runs/..%2fsecret.txt"),
    "an absolute path": _line("/runs/%2fetc%2fpasswd"),
    "a NUL": _line("/runs/one%00"),
    "a backslash": _line("/static/..%5c..%5cguard.py"),
    "our own source": _line("/static/../guard.py"),
    "a link out of the folder": _get("/runs/linked"),
    "no such text": _get("/runs/one/text/..%2f..%2fsecret.txt"),
    "reviewer reads the trail": lambda s: s.get("/runs/one/decisions", "anna"),
    "reviewer reads it as JSON": lambda s: s.get("/json/runs/one/decisions", "anna"),
    "reviewer reads the overview": lambda s: s.get("/runs/one", "anna"),
    "reviewer reads the report": lambda s: s.get("/runs/one/report", "anna"),
    "reviewer draws": lambda s: s.post("/runs/one/review/draw", {"estimate": 1, "value": 0}, "anna"),
    "reviewer overrides": lambda s: s.post(
        "/runs/one/override", {"comparison_id": "b2:" + "0" * 40, "label": "a", "reason": "x"}, "anna"
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_request_is_refused_and_changes_nothing(name: str, served: Served, folder: Path) -> None:
    before = content_of(folder / "one")
    answer = HOSTILE[name](served)
    assert 400 <= answer.status < 500, answer
    assert "nobody may read this" not in answer.text
    assert content_of(folder / "one") == before


def test_there_are_at_least_25_hostile_requests() -> None:
    assert len(HOSTILE) >= 25


def test_the_token_becomes_a_strict_cookie_and_leaves_the_address(served: Served) -> None:
    path = served.opened.urls["owner"].removeprefix(served.origin)
    answer = served.ask("GET", f"/runs/one/decisions?{path.partition('?')[2]}&q=rice&page=2", {})
    assert (answer.status, answer.headers["location"]) == (303, "/runs/one/decisions?q=rice&page=2")
    cookie = answer.headers["set-cookie"].lower()
    assert "httponly" in cookie and "samesite=strict" in cookie and "path=/" in cookie
    assert path.partition("token=")[2].lower() not in cookie


def test_the_redirect_cannot_be_led_to_another_host(served: Served) -> None:
    token = served.opened.urls["owner"].partition("token=")[2]
    for path in ("//evil.test", "///evil.test/x"):
        answer = served.ask("GET", f"{path}?token={token}", {})
        assert answer.headers.get("location", "/").startswith("/") and "//" not in answer.headers.get("location", "/")


@pytest.mark.parametrize("path", ["/", "/runs/one", "/static/view.css", "/json/", "/nothing", "/runs/one/report"])
def test_every_answer_carries_the_policy(path: str, served: Served) -> None:
    headers = served.get(path).headers
    policy = headers["content-security-policy"]
    assert policy == CSP or "sandbox" in policy
    assert "unsafe" not in policy.replace("style-src 'unsafe-inline'; sandbox", "")
    assert headers["x-content-type-options"] == "nosniff"
    assert "server" not in headers


def test_a_refusal_carries_the_policy_too(served: Served) -> None:
    assert served.ask("GET", "/", {"Host": "evil.test"}).headers["content-security-policy"] == CSP


def test_a_draw_without_a_number_takes_what_there_is(tmp_path: Path) -> None:
    make_run(tmp_path / "one", n_train=6, n_held_out=2)
    with serving(tmp_path) as served:
        drawn = served.post("/runs/one/review/draw", {"estimate": None, "value": 3, "by_principle": False}).json
        assert drawn["queues"]["estimate"] == drawn["population"] > 0
        assert served.post("/runs/one/review/draw", {"estimate": 1, "value": 0}).status == 409


def test_reading_every_page_changes_nothing(served: Served, folder: Path) -> None:
    before = content_of(folder / "one")
    row = served.get("/json/runs/one/decisions").json["decisions"][0]
    pages = ("", "/decisions", "/constitution", "/review", f"/trail/{row['comparison']}", f"/decision/{row['id']}")
    for page in pages:
        assert served.get(f"/runs/one{page}").status == 200, page
        assert served.get(f"/json/runs/one{page}").status == 200, page
    assert content_of(folder / "one") == before


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.1.5", "::", "example.org", "127.0.0.1.evil.test"])
def test_an_address_others_can_reach_needs_a_token_and_encryption(host: str) -> None:
    for token, tls in ((None, False), ("x" * 40, False), (None, True)):
        with pytest.raises(UserError, match="which others can reach"):
            open_door(host, 0, owner="owner", token=token, tls=tls)


@pytest.mark.parametrize("token", ["short", "x" * 30 + "\n", "é" * 40])
def test_a_weak_token_is_refused(token: str) -> None:
    with pytest.raises(UserError, match="CAI_VIEW_TOKEN"):
        open_door("127.0.0.1", 0, owner="owner", token=token)


def test_tokens_differ_between_visitors_and_starts() -> None:
    found = set()
    for _ in range(3):
        opened = open_door("127.0.0.1", 0, owner="owner", reviewers=["anna", "ben"])
        opened.listening.close()
        found |= set(opened.urls.values())
        found |= set(opened.door.tokens)
    assert len(found) == 18


def test_an_address_that_cannot_be_had_is_told_also_where_there_is_no_ipv6(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="99999: cannot listen"):
        open_door("127.0.0.1", 99_999, owner="owner")

    def none(*_: object) -> socket.socket:
        raise OSError(97, "Address family not supported by protocol")

    monkeypatch.setattr("cai.view.socket.socket", none)
    with pytest.raises(UserError, match="::1:0: cannot listen .Address family not supported"):
        open_door("::1", 0, owner="owner")
