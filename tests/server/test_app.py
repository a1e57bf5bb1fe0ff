"""The routes: what the page asks and sends."""

from __future__ import annotations

import asyncio
import io
import json
import re
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from PIL import Image
from starlette.routing import Route
from starlette.testclient import TestClient

from fastreid_al.answers.ledger import Ledger
from fastreid_al.errors import LedgerError
from fastreid_al.server import app
from tests.support.labelling import Site


def next_task(client: TestClient, ahead: int = 0, wait: int = 0) -> Any:
    return client.get(f"/api/next?wait={wait}&ahead={ahead}").json()["task"]


def send(client: TestClient, task: Any, verdict: str = "same", token: str = "", **more: Any) -> Any:
    verdicts = {str(item["question"]): verdict for item in task["items"]}
    token = token or f"token-{task['id']:04d}"
    body = {"task": task["id"], "token": token, "verdicts": verdicts, **more}
    return client.post("/api/answers", json=body)


def test_answers_reach_the_ledger_under_the_name_of_the_person(open_site: Site) -> None:
    client = open_site.client()
    task = next_task(client)
    open_site.ahead = 10.0
    reply = send(client, task, active_seconds=2.5, comment="dark", tags=["bad crop", "mixed"])
    assert reply.status_code == 200
    assert reply.json()["status"] == "recorded"
    (event,) = open_site.events()
    assert (event.annotator, event.verdict, event.source) == ("anna", "same", "web")
    assert (event.comment, event.tags) == ("dark", "bad crop,mixed")
    assert event.answered_at - event.asked_at == pytest.approx(2.5)


def test_seconds_that_no_time_passed_for_are_not_counted(open_site: Site) -> None:
    client = open_site.client()
    for seconds in (80_000, -5, 1e300, 10**400):
        assert send(client, next_task(client), active_seconds=seconds).status_code == 200
    assert all(event.answered_at - event.asked_at < 60 for event in open_site.events())


def test_the_same_token_is_written_once(open_site: Site) -> None:
    client = open_site.client()
    task = next_task(client)
    first, second = (send(client, task).json() for _ in range(2))
    assert (first["status"], second["status"]) == ("recorded", "repeated")
    assert first["events"] == second["events"]
    assert len(open_site.events()) == 1


def test_two_people_never_get_the_same_question(site: Site) -> None:
    clients = [site.client(site.person(name)[1]) for name in ("anna", "ben")]
    seen: list[int] = []
    for _ in range(2):
        tasks = [next_task(client) for client in clients]
        seen += [task["id"] for task in tasks]
        for client, task in zip(clients, tasks, strict=True):
            assert send(client, task).status_code == 200
    assert len(seen) == len(set(seen)) == 4
    assert next_task(clients[0]) is None


def test_a_page_that_waits_looks_often_at_first_and_seldom_later(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = Site(tmp_path, [], local="anna")
    client = site.client()
    now = 0.0
    pauses: list[float] = []

    async def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds
        pauses.append(seconds)

    monkeypatch.setattr(app.time, "monotonic", lambda: now)
    monkeypatch.setattr(app.anyio, "sleep", sleep)
    assert next_task(client, wait=20) is None
    monkeypatch.undo()
    # After an answer, the trainer makes the next question at once.
    assert pauses[0] < 0.05
    # Each look is a transaction.
    assert len(pauses) < 50
    assert max(pauses) == 1.0
    assert sum(pauses) == pytest.approx(20)
    site.close()


def test_a_task_is_loaded_beforehand_and_a_reload_shows_the_first_again(open_site: Site) -> None:
    client = open_site.client()
    first, second = next_task(client), next_task(client, ahead=1)
    assert first["id"] != second["id"]
    assert next_task(client)["id"] == first["id"]


def test_a_sheet_is_one_decision_and_undo_takes_all_of_it_back(open_site: Site) -> None:
    client = open_site.client()
    for _ in range(2):
        send(client, next_task(client))
    sheet = next_task(client)
    assert sheet["sheet"] is True
    assert [item["members"] for item in sheet["items"]] == [[], [8], []]
    verdicts = dict(
        zip(
            (str(i["question"]) for i in sheet["items"]),
            ("same", "different", "unsure"),
            strict=True,
        )
    )
    body = {"task": sheet["id"], "token": "token-sheet", "verdicts": verdicts}
    assert len(client.post("/api/answers", json=body).json()["events"]) == 3
    undone = client.post("/api/undo", json={}).json()
    assert undone["task"]["id"] == sheet["id"]
    assert [event.kind for event in open_site.events()] == ["answer"] * 5 + ["undo"] * 3


def test_odd_thumbnails_and_confirmed_ones_are_answers_too(open_site: Site) -> None:
    client = open_site.client()
    for _ in range(3):
        send(client, next_task(client))
    task = next_task(client)
    assert (task["left"]["members"], task["items"][0]["members"]) == ([11, 12], [14])
    send(client, task, odd=[11], all_confirmed=True, shown=[11, 12])
    *_, pair, odd, confirmed = open_site.events()
    assert (pair.reason, odd.reason, odd.verdict) == ("merge", "member", "different")
    # 14 was not on the screen, so that nothing is said of it.
    assert (confirmed.reason, confirmed.verdict) == ("member", "same")


def test_skip_puts_a_task_behind_the_others_and_release_gives_it_to_others(site: Site) -> None:
    anna, ben = (site.client(site.person(name)[1]) for name in ("anna", "ben"))
    first = next_task(anna)
    assert anna.post("/api/skip", json={"task": first["id"]}).status_code == 200
    second = next_task(anna)
    assert second["id"] != first["id"]
    assert anna.post("/api/release", json={"tasks": [second["id"]]}).status_code == 200
    assert {next_task(ben)["id"], next_task(ben, 1)["id"]} == {first["id"], second["id"]}
    assert anna.post("/api/heartbeat", json={"tasks": [first["id"]]}).json() == {
        "lost": [first["id"]]
    }


def test_similarity_and_kind_are_hidden_unless_asked_for(tmp_path: Any) -> None:
    for name, options, shown in (
        ("blind", {}, False),
        ("open", {"show_similarity": True}, True),
    ):
        site = Site(tmp_path / name, [[([0], [1])]], local="anna", **options)
        task = next_task(site.client())
        assert all((key in task) is shown for key in ("similarity", "probability", "reason"))
        assert "gold" not in json.dumps(task)
        site.close()


def test_captions_say_camera_and_time_but_never_the_name_of_the_file(open_site: Site) -> None:
    task = next_task(open_site.client())
    assert task["images"]["1"]["caption"] == "camera 1, 12:01, track 0"
    assert ".jpg" not in json.dumps(task)


def test_an_image_is_encoded_again_without_its_metadata(open_site: Site) -> None:
    client = open_site.client()
    with Image.open(open_site.records[0].path) as image:
        exif = image.getexif()
        exif[0x010E] = "a secret place"
    reply = client.get("/image/0?h=96")
    assert reply.headers["content-type"] == "image/jpeg"
    with Image.open(io.BytesIO(reply.content)) as shown:
        assert shown.size == (48, 96)
        assert not shown.getexif()
    # Never enlarged.
    with Image.open(io.BytesIO(client.get("/image/0?h=1500").content)) as large:
        assert large.size == (64, 128)


def test_an_image_whose_file_has_changed_is_not_shown(open_site: Site) -> None:
    open_site.records[0].path.write_bytes(open_site.records[1].path.read_bytes())
    reply = open_site.client().get("/image/0")
    assert reply.status_code == 404
    assert "other content" in reply.json()["error"]


def test_an_erased_image_is_gone_and_only_an_admin_erases(site: Site) -> None:
    anna = site.client(site.person("anna")[1])
    boss = site.client(site.person("boss", "admin")[1])
    assert anna.post("/api/erase", json={"image": 1, "reason": "asked"}).status_code == 403
    assert anna.get("/image/1").status_code == 200
    reply = boss.post("/api/erase", json={"image": 1, "reason": "asked"})
    assert reply.status_code == 200
    assert reply.headers["clear-site-data"] == '"cache"'
    assert anna.get("/image/1").status_code == 410
    assert all("1" not in task["images"] for task in (next_task(anna), next_task(anna, 1)))


def test_a_browser_asks_each_time_whether_it_may_show_an_image_that_it_keeps(site: Site) -> None:
    anna = site.client(site.person("anna")[1])
    boss = site.client(site.person("boss", "admin")[1])
    first = anna.get("/image/1?h=96")
    assert first.headers["cache-control"] == "private, no-cache"
    known = {"if-none-match": first.headers["etag"]}
    again = anna.get("/image/1?h=96", headers=known)
    assert (again.status_code, again.content) == (304, b"")
    assert again.headers["etag"] == first.headers["etag"]
    # Another size, another image, and made-up tags are other content.
    for path, tag in (
        ("/image/1?h=384", known["if-none-match"]),
        ("/image/2?h=96", known["if-none-match"]),
        ("/image/1?h=96", '"0123456789abcdef-96"'),
    ):
        assert anna.get(path, headers={"if-none-match": tag}).status_code == 200
    assert boss.post("/api/erase", json={"image": 1, "reason": "asked"}).status_code == 200
    assert anna.get("/image/1?h=96", headers=known).status_code == 410


def test_figures_of_others_are_for_admins(site: Site) -> None:
    anna = site.client(site.person("anna")[1])
    boss = site.client(site.person("boss", "admin")[1])
    send(anna, next_task(anna))
    assert [p["name"] for p in anna.get("/api/people").json()["people"]] == ["anna"]
    assert [p["name"] for p in boss.get("/api/people").json()["people"]] == ["anna", "boss"]


def contradict(site: Site) -> TestClient:
    """Answer 0 = 1, 1 = 2, and 0 different from 2."""
    client = site.client()
    for verdict in ("same", "same", "different"):
        reply = send(client, next_task(client), verdict)
    assert reply.json()["contradiction"] == [1, 2]
    return client


def test_a_contradiction_is_told_at_once_and_listed_with_suspects(tmp_path: Any) -> None:
    site = Site(tmp_path, [[([0], [1])], [([1], [2])], [([0], [2])]], local="anna")
    client = contradict(site)
    (found,) = client.get("/api/contradictions").json()["contradictions"]
    assert found["answer"]["event"] == 3
    assert [step["event"] for step in found["against"]] == [1, 2]
    assert found["answer"]["people"] == ["anna"]
    assert {s["event"] for s in found["suspects"]} == {1, 2, 3}
    proof = client.get("/api/proof?a=0&b=2").json()
    assert [step["event"] for step in proof["events"]] == [3]
    assert (proof["verdict"], proof["pair"]) == ("different", [0, 2])
    # Taken back in place, the question is asked again.
    assert client.post("/api/undo", json={"event": 3}).json()["undone"] is True
    assert client.get("/api/contradictions").json()["contradictions"] == []
    assert next_task(client)["items"][0]["image"] == 2
    assert [d["undone"] for d in client.get("/api/mine").json()["decisions"]] == [
        True,
        False,
        False,
    ]
    site.close()


def test_a_pair_is_proved_by_numbers_and_by_paths(tmp_path: Any) -> None:
    site = Site(tmp_path, [[([0], [1])], [([1], [2])], [([3], [4])]], local="anna")
    client = site.client()
    for verdict in ("same", "different"):
        send(client, next_task(client), verdict)
    found = client.get("/api/proof?a=0&b=2").json()
    assert found["verdict"] == "different"
    assert [(s["event"], s["people"], s["epoch"]) for s in found["events"]] == [
        (1, ["anna"], 3),
        (2, ["anna"], 3),
    ]
    paths = {"path_a": "000.jpg", "path_b": "002.jpg"}
    assert client.get("/api/proof", params=paths).json() == found
    unknown = client.get("/api/proof?a=3&b=4").json()
    assert (unknown["verdict"], unknown["events"]) == (None, [])
    for query, status in (
        ("a=0&b=999", 409),
        ("a=0&path_b=nothing.jpg", 409),
        ("a=0&path_b=", 409),
        ("a=0", 400),
        ("a=0&b=002.jpg", 400),
    ):
        reply = client.get(f"/api/proof?{query}")
        assert reply.status_code == status
        assert "\n" not in reply.json()["error"]
    site.close()


def test_the_proof_of_a_pair_is_told_after_the_own_answer_about_it(open_site: Site) -> None:
    client = open_site.client()
    task = next_task(client)
    (item,) = task["items"]
    url = f"/api/proof?a={item['image']}&b={task['left']['image']}"
    reply = client.get(url)
    assert reply.status_code == 409
    assert reply.json()["error"] == "you have a question about these images: answer it first"
    send(client, task)
    assert client.get(url).status_code == 200


def test_before_the_answer_nothing_tells_what_earlier_answers_imply(tmp_path: Any) -> None:
    chain = [[([0], [1])], [([1], [2])], [([0], [2])]]
    for name, shown, effect in (("blind", False, "new"), ("open", True, "contradiction")):
        site = Site(tmp_path / name, chain, local="anna", show_similarity=shown)
        client = site.client()
        for _ in range(2):
            send(client, next_task(client))
        task = next_task(client)
        (item,) = task["items"]
        assert item["prospects"]["different"]["effect"] == effect
        assert item["prospects"]["different"]["against"] == ([1, 2] if shown else [])
        again = client.get(f"/api/prospects?question={item['question']}").json()
        assert again == item["prospects"]
        assert client.get("/api/prospects?question=99").status_code == 409
        site.close()


def test_an_image_of_the_other_side_is_two_answers(open_site: Site) -> None:
    client = open_site.client()
    for _ in range(3):
        send(client, next_task(client))
    task = next_task(client)
    assert "take the mark back" in send(client, task, "same", other_side=[11]).json()["error"]
    assert send(client, task, "different", other_side=[11]).status_code == 200
    *_, one, other = open_site.events()
    assert (one.left, one.right, one.verdict) == ("010.jpg", "011.jpg", "different")
    assert (other.left, other.right, other.verdict) == ("013.jpg", "011.jpg", "same")
    assert client.get("/api/mine").json()["decisions"][0]["other_side"] == [11]


def test_a_page_that_is_loaded_anew_keeps_what_its_old_one_gives_back_late(site: Site) -> None:
    client = site.client(site.person("anna")[1])
    task = client.get("/api/next?wait=0&page=old").json()["task"]
    assert client.get("/api/next?wait=0&page=new").json()["task"] == task
    release = {"tasks": [task["id"]], "page": "old"}
    assert client.post("/api/release", json=release).status_code == 200
    assert send(client, task).status_code == 200
    second = client.get("/api/next?wait=0&page=new").json()["task"]
    release = {"tasks": [second["id"]], "page": "new"}
    assert client.post("/api/release", json=release).status_code == 200
    assert send(client, second).status_code == 409


def test_the_question_that_was_shown_is_given_back_last(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = site.client(site.person("anna")[1])
    tasks = [next_task(client, ahead)["id"] for ahead in range(2)]
    released: list[int] = []
    release = site.service.release

    def note(person: Any, task: int) -> None:
        released.append(task)
        release(person, task)

    monkeypatch.setattr(site.service, "release", note)
    assert client.post("/api/release", json={"tasks": tasks}).status_code == 200
    assert released == tasks[::-1]


def test_a_page_that_nobody_uses_makes_nobody_present(site: Site) -> None:
    anna, token = site.person("anna")
    client = site.client(token)

    def seen() -> float | None:
        return client.get("/api/people").json()["people"][0]["seen_at"]

    task = next_task(client)
    used = seen()
    assert used is not None
    for _ in range(3):
        body = {"tasks": [task["id"]], "idle": 500}
        assert client.post("/api/heartbeat", json=body).json() == {"lost": []}
        assert client.get("/api/next?wait=0&idle=500").status_code == 200
    assert seen() == used
    assert site.service.progress(anna).decided == 0


def test_nobody_takes_back_the_answers_of_others_but_an_admin(site: Site) -> None:
    anna, ben = (site.client(site.person(name)[1]) for name in ("anna", "ben"))
    boss = site.client(site.person("boss", "admin")[1])
    send(anna, next_task(anna))
    assert ben.post("/api/undo", json={"event": 1}).status_code == 409
    assert ben.post("/api/undo", json={}).json() == {"task": None, "undone": False}
    assert boss.post("/api/undo", json={"event": 1}).status_code == 200


def test_progress_counts_what_is_answered(open_site: Site) -> None:
    client = open_site.client()
    send(client, next_task(client))
    found = client.get("/api/progress?once=1").json()
    assert (found["answered"], found["open"], found["decided"]) == (1, 5, 1)
    assert found["total"] == 6


def test_every_page_is_served_and_names_no_other_server(open_site: Site) -> None:
    client = open_site.client()
    for path in ("/", "/mine", "/contradictions", "/why", "/people"):
        reply = client.get(path)
        assert reply.status_code == 200
        assert "<script>" not in reply.text and "style=" not in reply.text
        assert "http" not in reply.text
    for name in ("annotate.js", "style.css", "icon.svg"):
        assert client.get(f"/static/{name}").status_code == 200
    assert client.get("/static/../app.py").status_code == 404
    assert client.get("/static/%2e%2e/app.py").status_code == 404


def test_the_page_about_requests_lists_every_route(site: Site) -> None:
    text = (Path(__file__).parents[2] / "docs" / "annotate.md").read_text()
    listed = {
        (method, re.sub(r"/image/\d+", "/image/{id}", path))
        for method, path in re.findall(r"`(GET|POST) (/[\w/]+)", text)
    }
    routes = {
        (method, route.path)
        for route in site.app().routes
        if isinstance(route, Route) and route.path.startswith(("/api/v1/", "/healthz"))
        for method in (route.methods or set()) - {"HEAD"}
    }
    assert listed == routes


#: Fields of version 1. Fields may be added. One that is gone, or means something else, needs
#: version 2.
TASK = {"id", "sheet", "number", "total", "left", "items", "images"}
FIELDS = {
    "people": {"people"},
    "mine": {"decisions"},
    "contradictions": {"contradictions"},
    "proof?a=0&b=1": {"events"},
    "progress?once=1": {"epoch", "answered", "open", "total", "rate", "eta_seconds", "outlook"},
}


def test_version_1_has_the_fields_that_are_stated(site: Site) -> None:
    client = site.client()
    token = site.person("anna", "admin")[1]
    # A program needs no cookie, and may come from anywhere.
    client.headers["authorization"] = f"Bearer {token}"
    client.headers["origin"] = "http://program.example"
    task = client.get("/api/v1/next?wait=0").json()["task"]
    assert set(task) >= TASK
    assert set(task["left"]) >= {"image", "members"}
    assert set(task["items"][0]) >= {"question", "image", "members", "pairs"}
    assert set(task["images"][str(task["left"]["image"])]) >= {"version", "caption"}
    assert client.get(f"/api/v1/image/{task['left']['image']}?h=96").status_code == 200
    assert client.post("/api/v1/heartbeat", json={"tasks": [task["id"]]}).json() == {"lost": []}
    verdicts = {str(item["question"]): "same" for item in task["items"]}
    body = {"task": task["id"], "token": "a1b2c3d4", "verdicts": verdicts}
    reply = client.post("/api/v1/answers", json=body).json()
    assert set(reply) >= {"events", "status", "contradiction", "effect"}
    assert set(reply["effect"]) >= {"joined", "pairs", "apart", "cuts"}
    for path, fields in FIELDS.items():
        assert set(client.get(f"/api/v1/{path}").json()) >= fields
    undone = client.post("/api/v1/undo", json={"event": reply["events"][0]}).json()
    assert undone["undone"] is True
    following = client.get("/api/v1/next?wait=0").json()["task"]["id"]
    assert client.post("/api/v1/skip", json={"task": following}).json() == {}
    assert client.post("/api/v1/release", json={"tasks": []}).json() == {}
    assert client.post("/api/v1/erase", json={"image": 3, "reason": "asked"}).json() == {}
    assert [event.annotator for event in site.events()] == ["anna"] * 3


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_another_version_is_refused_and_the_known_one_named(site: Site, method: str) -> None:
    client = site.client()
    for path, error in (
        ("/api/v2/next", "got version 2 of the requests, this server knows version 1: /api/v1/..."),
        ("/api/v1/nothing", f"version 1 has no {method} /nothing"),
        (
            f"/api/v{'9' * 5000}/next",
            f"got version {'9' * 20} of the requests, this server knows version 1: /api/v1/...",
        ),
    ):
        reply = client.request(method, path, json={})
        assert (reply.status_code, reply.json()) == (404, {"error": error})


def test_healthz_needs_no_person(site: Site) -> None:
    assert site.client().get("/healthz").json() == {"status": "ok"}


def test_the_words_of_the_page_are_those_of_the_noun(tmp_path: Any) -> None:
    site = Site(tmp_path, [], local="anna", noun="<b>cow</b>")
    assert "Same &lt;b&gt;cow&lt;/b&gt;?" in site.client().get("/").text
    site.close()


@pytest.mark.parametrize(
    ("body", "error"),
    [
        ({}, "token"),
        ({"token": "short"}, "token"),
        ({"token": "12345678"}, "verdicts"),
        ({"token": "12345678", "verdicts": {"1": "maybe"}}, "verdicts"),
        ({"token": "12345678", "verdicts": {"x": "same"}}, "verdicts"),
        ({"token": "12345678", "verdicts": {"1": "same"}}, "task"),
        ({"token": "12345678", "verdicts": {"1": "same"}, "task": -1}, "task"),
        ({"token": "12345678", "verdicts": {"1": "same"}, "task": True}, "task"),
        ({"token": "12345678", "verdicts": {"1": "same"}, "task": 1, "tags": ["ugly"]}, "tags"),
        ({"token": "12345678", "verdicts": {"1": "same"}, "task": 1, "odd": "1"}, "odd"),
        ({"token": "12345678", "verdicts": {"1": "same"}, "task": 1, "comment": 5}, "comment"),
        ({"token": "12345678", "verdicts": {"1": "same"}, "task": 1, "active_seconds": "1"}, "act"),
        ([], "object"),
    ],
)
def test_a_wrong_submission_is_one_line(open_site: Site, body: Any, error: str) -> None:
    reply = open_site.client().post("/api/answers", json=body)
    assert reply.status_code == 400
    assert error in reply.json()["error"]
    assert "\n" not in reply.json()["error"]


def test_what_was_not_given_out_is_refused(open_site: Site) -> None:
    client = open_site.client()
    for task in (1, 999, 2**53 - 1):
        body = {"task": task, "token": "12345678", "verdicts": {"1": "same"}}
        assert client.post("/api/answers", json=body).status_code == 409
    assert open_site.events() == []


@pytest.mark.parametrize(
    "path", ["../secret.jpg", "/etc/passwd", "000.jpg", "..%2f..%2fsecret.jpg"]
)
def test_a_path_in_place_of_a_number_is_refused(open_site: Site, path: str) -> None:
    (open_site.pictures._root / "../secret.jpg").write_bytes(open_site.records[0].path.read_bytes())
    client = open_site.client()
    for quoted in (path, quote(path, safe=""), quote(quote(path, safe=""), safe="")):
        reply = client.get(f"/image/{quoted}")
        assert reply.status_code in (400, 404)
        assert reply.headers["content-type"] == "application/json"
    assert client.get("/api/proof", params={"a": path, "b": 1}).status_code == 400
    for name in ("skip", "release", "heartbeat", "erase", "answers"):
        body = {"task": path, "tasks": [path], "image": path, "reason": "x", "token": "12345678"}
        reply = client.post(f"/api/{name}", json={**body, "verdicts": {"1": "same"}})
        assert reply.status_code == 400
        assert "\n" not in reply.json()["error"]
    assert open_site.events() == []


def test_an_image_that_is_gone_is_one_line_and_its_question_can_be_answered(
    open_site: Site,
) -> None:
    client = open_site.client()
    task = next_task(client)
    open_site.records[0].path.unlink()
    reply = client.get("/image/0?h=96")
    assert reply.status_code == 404
    assert reply.json()["error"] == (
        "image 0: the file of the image cannot be read, and no other file has its content"
    )
    assert client.get("/image/1?h=96").status_code == 200
    assert send(client, task, "not comparable").json()["status"] == "recorded"


def test_a_request_that_is_broken_off_is_no_error_of_the_server(open_site: Site) -> None:
    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "http.disconnect"}

    async def send_back(message: Any) -> None:
        sent.append(message)

    scope = {
        **{"type": "http", "http_version": "1.1", "method": "POST", "scheme": "http"},
        **{"path": "/api/undo", "raw_path": b"/api/undo", "query_string": b"", "root_path": ""},
        "headers": [(b"host", b"localhost:8765"), (b"content-type", b"application/json")],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 8765),
    }
    asyncio.run(open_site.app()(scope, receive, send_back))
    assert sent[0]["status"] == 400


def test_an_error_says_whether_the_ledger_is_away(
    open_site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = open_site.client()
    task = next_task(client)

    def lost(*_: object) -> None:
        raise LedgerError("the connection was lost")

    for name in ("submit", "people", "next_task"):
        monkeypatch.setattr(open_site.service, name, lost)
    assert send(client, task).status_code == 503
    assert client.get("/api/next?wait=0").status_code == 503
    monkeypatch.undo()
    assert send(client, task).json()["status"] == "recorded"


def test_a_ledger_of_another_role_may_be_open_meanwhile(open_site: Site) -> None:
    with Ledger.open(open_site.url) as trainer:
        client = open_site.client()
        send(client, next_task(client))
        assert len(trainer.answers()) == 1
