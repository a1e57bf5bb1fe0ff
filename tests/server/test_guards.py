"""Security: host, origin, size, headers, links."""

from __future__ import annotations

import http.client
from pathlib import Path

import pytest

from fastreid_al.server.guards import LARGEST_BODY, is_loopback
from tests.support.labelling import Site, serving

JSON = {"content-type": "application/json"}


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost:8765", 200),
        ("localhost:9000", 200),
        ("127.0.0.1:8765", 200),
        ("[::1]:8765", 200),
        ("evil.example:8765", 421),
        ("192.168.0.7:8765", 421),
        ("localhost.evil.example", 421),
        ("", 421),
        ("[", 421),
    ],
)
def test_a_name_that_was_made_to_lead_here_is_refused(
    open_site: Site, host: str, status: int
) -> None:
    assert open_site.client().get("/", headers={"host": host}).status_code == status


def test_a_server_for_other_machines_is_known_by_its_addresses(tmp_path: Path) -> None:
    site = Site(tmp_path, [], host="0.0.0.0", public_url="https://labels.example.org")
    client = site.client()
    for host, status in (
        ("192.168.0.7:8765", 200),
        ("labels.example.org", 200),
        ("evil.example", 421),
    ):
        assert client.get("/healthz", headers={"host": host}).status_code == status
    site.close()


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        ("http://localhost:8765", 200),
        ("http://evil.example", 403),
        ("http://localhost:8000", 403),
        ("null", 403),
        ("http://[", 403),
    ],
)
def test_a_page_of_another_site_cannot_change_anything(
    open_site: Site, origin: str, status: int
) -> None:
    reply = open_site.client().post("/api/undo", json={}, headers={"origin": origin})
    assert reply.status_code == status


def bearer(token: str, **more: str) -> dict[str, str]:
    return {"authorization": f"Bearer {token}", **more}


def test_a_program_names_its_person_by_a_bearer_token(site: Site) -> None:
    client = site.client()
    token = site.person("anna")[1]
    for scheme in ("Bearer", "bearer", "BEARER "):
        reply = client.get("/api/v1/people", headers={"authorization": f"{scheme} {token}"})
        assert [person["name"] for person in reply.json()["people"]] == ["anna"]
    # It may send any origin.
    for origin in ("http://evil.example", "null"):
        headers = bearer(token, origin=origin)
        assert client.post("/api/v1/undo", json={}, headers=headers).status_code == 200
    assert "set-cookie" not in reply.headers


@pytest.mark.parametrize("token", ["", "wrong", "x" * 5000, "a b", "\xe9"])
def test_a_wrong_bearer_token_is_nobody(open_site: Site, token: str) -> None:
    """Also where whoever uses the machine needs no link, and where a right cookie comes with it."""
    known = open_site.client(open_site.person("ben")[1])
    for client in (open_site.client(), known):
        headers = {"authorization": f"Bearer {token}".encode("latin-1")}
        reply = client.get("/api/v1/people", headers=headers)
        assert (reply.status_code, reply.headers["www-authenticate"]) == (401, "Bearer")
        assert client.post("/api/v1/undo", json={}, headers=headers).status_code == 401


def test_wrong_bearer_tokens_are_limited(site: Site) -> None:
    client = site.client()
    statuses = [
        client.get("/api/v1/people", headers=bearer(f"wrong{i}")).status_code for i in range(25)
    ]
    assert statuses == [401] * 20 + [429] * 5


@pytest.mark.parametrize("of", ["cross-site", "same-site"])
def test_a_browser_on_another_page_is_refused_whatever_token_it_has(site: Site, of: str) -> None:
    client = site.client()
    token = site.person("anna")[1]
    headers = bearer(token, origin="http://evil.example", **{"sec-fetch-site": of})
    assert client.post("/api/v1/undo", json={}, headers=headers).status_code == 403
    # A browser asks first whether it may send such a header, and is not told so.
    asking = {
        "origin": "http://evil.example",
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization",
    }
    reply = client.options("/api/v1/undo", headers=asking)
    assert reply.status_code >= 400
    assert not any(name.startswith("access-control") for name in reply.headers)


def test_a_cookie_does_not_replace_the_origin(site: Site) -> None:
    client = site.client(site.person("anna")[1])
    origin = {"origin": "http://evil.example"}
    for headers in (origin, {**origin, "authorization": "Basic YTpi"}):
        assert client.post("/api/v1/undo", json={}, headers=headers).status_code == 403
    # The password of a proxy is not a token of this server.
    reply = client.get("/api/v1/people", headers={"authorization": "Basic YTpi"})
    assert reply.status_code == 200


def test_what_a_form_can_send_is_refused(open_site: Site) -> None:
    client = open_site.client()
    for kind in ("text/plain", "application/x-www-form-urlencoded", ""):
        reply = client.post("/api/undo", content=b"{}", headers={"content-type": kind})
        assert reply.status_code == 415


@pytest.mark.parametrize("size", [LARGEST_BODY, 10_000_000])
def test_large_bodies_are_refused_whatever_they_say(open_site: Site, size: int) -> None:
    client = open_site.client()
    large = b'{"x": "' + b"a" * size + b'"}'
    assert client.post("/api/undo", content=large, headers=JSON).status_code == 413
    # Sent in parts, without a length.
    parts = (large[i : i + 4096] for i in range(0, len(large), 4096))
    assert client.post("/api/undo", content=parts, headers=JSON).status_code == 413
    wrong = {**JSON, "content-length": "-5"}
    assert client.post("/api/undo", content=b"{}", headers=wrong).status_code == 400


@pytest.mark.parametrize("is_chunked", [False, True])
def test_a_client_that_sends_a_large_body_reads_why_it_is_refused(
    open_site: Site, is_chunked: bool
) -> None:
    parts = [b"a" * 100_000] * 100
    headers = JSON if is_chunked else {**JSON, "Content-Length": "10000000"}
    with serving(open_site) as running:
        # It reads the answer when all is sent.
        client = http.client.HTTPConnection("localhost", running.port, timeout=20)
        client.request("POST", "/api/undo", iter(parts), headers, encode_chunked=is_chunked)
        reply = client.getresponse()
        assert reply.status == 413 and b"65,536 bytes" in reply.read()
        client.close()


@pytest.mark.parametrize("path", ["/", "/api/people", "/image/0", "/static/annotate.js", "/no"])
def test_every_answer_has_the_headers(open_site: Site, path: str) -> None:
    headers = open_site.client().get(path).headers
    policy = headers["content-security-policy"]
    assert "default-src 'self'" in policy and "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"


@pytest.mark.parametrize(
    "path", ["/api/next", "/api/mine", "/api/people", "/api/progress", "/image/0"]
)
def test_without_a_link_nothing_is_shown(site: Site, path: str) -> None:
    reply = site.client().get(path)
    assert reply.status_code == 401
    assert "personal link" in reply.json()["error"]


def test_a_link_sets_a_cookie_that_scripts_and_other_sites_cannot_use(site: Site) -> None:
    client = site.client()
    assert client.get("/").status_code == 401
    reply = client.get(f"/link/{site.person('anna')[1]}")
    cookie = reply.headers["set-cookie"].lower()
    assert "httponly" in cookie and "samesite=strict" in cookie and "path=/" in cookie
    assert client.get("/").status_code == 200
    assert "anna" in client.get("/").text


def test_wrong_links_are_limited_but_known_people_go_on(site: Site) -> None:
    known = site.client(site.person("anna")[1])
    other = site.client()
    statuses = [other.get(f"/link/wrong{i}").status_code for i in range(25)]
    assert statuses[:20] == [404] * 20
    assert statuses[20:] == [429] * 5
    assert known.get("/api/people").status_code == 200
    # The line says what to do.
    page = other.get("/link/wrong").text
    assert "wait a minute, then open your personal link again" in page


def test_the_password_of_a_proxy_shuts_out_nobody_with_a_cookie(site: Site) -> None:
    client = site.client(site.person("anna")[1])
    for header in ("Basic YTpi", "Digest username=a", "Negotiate abc", "", "Bearer"):
        reply = client.get("/api/people", headers={"authorization": header})
        assert reply.status_code == (401 if header == "Bearer" else 200), header


def test_a_thousand_wrong_links_shut_out_nobody_who_is_known(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = site.client(site.person("anna")[1])
    statuses = [client.get(f"/link/{'wrong' * 8}{i}").status_code for i in range(1000)]
    assert (statuses.count(404), statuses.count(429)) == (20, 980)
    # Also after the time for which the ledger is not asked again.
    monkeypatch.setattr("fastreid_al.server.access._KNOWN", 0.0)
    assert client.get("/api/people").status_code == 200
    assert client.get("/link/wrong").status_code == 429
    # After a minute, a wrong link is told to be wrong again.
    monkeypatch.setattr("fastreid_al.server.access._WINDOW", 0.0)
    assert client.get("/link/wrong").status_code == 404


def test_a_disabled_person_is_refused(site: Site) -> None:
    person, token = site.person("anna")
    site.service.disable(person)
    assert site.client().get(f"/link/{token}").status_code == 404


@pytest.mark.parametrize(
    ("host", "own"),
    [("localhost", True), ("127.8.0.1", True), ("::1", True), ("0.0.0.0", False), ("a.b", False)],
)
def test_loopback_addresses(host: str, own: bool) -> None:
    assert is_loopback(host) is own
