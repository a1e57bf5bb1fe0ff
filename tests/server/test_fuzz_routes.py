"""Whatever is sent to whichever route: no error of the server, and errors are one line of JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient

from tests.server.conftest import TASKS
from tests.support.labelling import Site

GET = [
    *("/", "/mine", "/people", "/contradictions", "/why", "/healthz", "/api/mine", "/api/people"),
    *("/api/contradictions", "/api/next?wait=0&ahead={}", "/api/proof?a={}&b={}", "/image/{}"),
    *("/api/proof?path_a={}&path_b={}", "/api/prospects?question={}", "/api/next?wait=0&idle={}"),
    *("/image/1?h={}", "/image/1?v={}", "/link/{}", "/static/{}", "/api/progress?once={}", "/{}"),
]
GET += ["/api/v1/{}", "/api/v{}/next", "/api/v1/image/{}", "/api/v1/proof?a={}&b={}"]
POST = [f"/api/{name}" for name in ("answers", "heartbeat", "skip", "release", "undo", "erase")]
POST += ["/api/v1/answers", "/api/v2/answers"]
FIELDS = ("task", "tasks", "token", "verdicts", "odd", "all_confirmed", "comment", "tags")
MORE = (
    "other_side",
    "page",
    "idle",
    "active_seconds",
    "idle_seconds",
    "shown",
    "event",
    "image",
    "reason",
)
NUMBERS = st.integers(-2, 20) | st.integers() | st.floats()
TEXTS = st.text(max_size=30) | st.sampled_from(["same", "different", "12345678", "1", "mixed"])
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
)
BODIES = st.dictionaries(st.sampled_from(FIELDS + MORE), VALUES) | VALUES


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder: Path = tmp_path_factory.mktemp("site")
    site = Site(folder, TASKS, local="anna")
    # An exception of a route is raised here.
    yield site.client()
    site.close()


def check(reply: Any) -> None:
    assert reply.status_code < 500, reply.text
    if reply.status_code >= 400 and "html" not in reply.headers["content-type"]:
        assert "\n" not in json.loads(reply.content)["error"]
    assert "Traceback" not in reply.text


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@example(path="/api/progress?once={}", words=["", ""])
@given(path=st.sampled_from(GET), words=st.lists(NUMBERS.map(str) | TEXTS, min_size=2, max_size=2))
def test_no_address_is_an_error_of_the_server(
    client: TestClient, path: str, words: list[str]
) -> None:
    safe = [quote(word.encode("utf-8", "surrogatepass")) for word in words]
    check(client.get(path.format(*safe) if "{" in path else path))


@settings(max_examples=250, deadline=None, suppress_health_check=list(HealthCheck))
@given(path=st.sampled_from(POST), body=BODIES)
def test_no_message_is_an_error_of_the_server(client: TestClient, path: str, body: Any) -> None:
    # `json.dumps` writes NaN and infinity, which are no JSON but which a body may hold.
    content = json.dumps(body).encode()
    check(client.post(path, content=content, headers={"content-type": "application/json"}))


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(path=st.sampled_from(POST), body=st.binary(max_size=200))
def test_no_bytes_are_an_error_of_the_server(client: TestClient, path: str, body: bytes) -> None:
    check(client.post(path, content=body, headers={"content-type": "application/json"}))


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    name=st.sampled_from(
        ["host", "origin", "cookie", "content-length", "content-type", "if-none-match"]
    ),
    value=st.text(st.characters(min_codepoint=32, max_codepoint=255), max_size=40),
    path=st.sampled_from(["/", "/api/people", "/image/1", "/api/undo"]),
)
def test_no_header_is_an_error_of_the_server(
    client: TestClient, name: str, value: str, path: str
) -> None:
    headers = [(name.encode(), value.encode("latin-1"))]
    if path == "/api/undo":
        check(client.post(path, content=b"{}", headers=headers))  # type: ignore[arg-type]
    else:
        check(client.get(path, headers=headers))  # type: ignore[arg-type]
