"""The command `annotate`: what it finds, what it refuses, and how it ends."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
from PIL import Image

from fastreid_al.answers.ledger import Ledger
from fastreid_al.answers.service import AnswerService
from fastreid_al.answers.tasks import Submission
from fastreid_al.config import AnnotationConfig
from fastreid_al.engine.console import Reporter
from fastreid_al.errors import UserError
from fastreid_al.runs import annotate
from fastreid_al.runs.annotate import find_source, open_pictures, serve_annotation
from fastreid_al.server.pictures import Pictures, UnshownError
from fastreid_al.server.roster import add_known_answers, have_links, renew_link
from tests.support.labelling import draw_images, fill_ledger, pairs


@pytest.fixture
def options(tmp_path: Path) -> AnnotationConfig:
    """A ledger without its run, and its images."""
    records = draw_images(tmp_path / "images", 8)
    ledger = str(tmp_path / "answers.sqlite")
    fill_ledger(ledger, records, tmp_path / "images", pairs(3))
    return AnnotationConfig(ledger, data_root=str(tmp_path / "images"), port=0)


def start(options: AnnotationConfig, *more: str) -> tuple[subprocess.Popen[str], list[str]]:
    """Start the command, and return its first lines."""
    words = ["fastreid_al.annotate", options.run, "--port", str(options.port)]
    words += ["--data-root", str(options.data_root), *more]
    process = subprocess.Popen(
        [sys.executable, "-m", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    lines = []
    assert process.stdout is not None
    for line in process.stdout:
        lines.append(line.strip())
        if "Ctrl-C" in line:
            break
    return process, lines


def wait_for(url: str) -> httpx.Response:
    for _ in range(100):
        try:
            return httpx.get(url)
        except httpx.HTTPError:
            time.sleep(0.1)
    raise AssertionError("the server did not start")


def test_the_command_serves_its_links_and_ends_at_ctrl_c(options: AnnotationConfig) -> None:
    process, lines = start(options, "--people", "anna,ben:admin")
    try:
        links = re.findall(
            r"questions for (\w+): (http://localhost:\d+)/link/(\S+)", "\n".join(lines)
        )
        assert [name for name, _, _ in links] == ["anna", "ben"]
        url = links[0][1]
        assert any(f"ssh -L {url.rpartition(':')[2]}:" in line for line in lines)
        assert wait_for(f"{url}/healthz").status_code == 200
        assert httpx.get(url).status_code == 401
        with httpx.Client(base_url=url) as client:
            assert client.get(f"/link/{links[0][2]}").status_code == 200
            task = client.get("/api/next?wait=0").json()["task"]
            assert client.get(f"/image/{task['left']['image']}").status_code == 200
            # A stream that is open must not hold the server.
            with client.stream("GET", "/api/progress") as stream:
                next(stream.iter_lines())
                process.send_signal(signal.SIGINT)
                rest, _ = process.communicate(timeout=30)
        assert "every answer is kept" in rest
        assert "Traceback" not in rest
        assert process.returncode == 0
    finally:
        process.kill()


def test_what_was_acknowledged_outlasts_a_server_that_is_killed(options: AnnotationConfig) -> None:
    acknowledged = []
    for _ in range(2):
        process, lines = start(options)
        try:
            url = lines[0].rpartition(" ")[2]
            wait_for(f"{url}/healthz")
            task = httpx.get(f"{url}/api/next?wait=0").json()["task"]
            verdicts = {str(task["items"][0]["question"]): "same"}
            body = {"task": task["id"], "token": f"token-{task['id']:04d}", "verdicts": verdicts}
            reply = httpx.post(f"{url}/api/answers", json=body)
            acknowledged += reply.json()["events"]
        finally:
            process.kill()
            process.wait()
    with Ledger.open(options.run, write=False) as ledger:
        assert [answer.event for answer in ledger.answers()] == acknowledged == [1, 2]


def test_without_people_whoever_is_here_answers(options: AnnotationConfig) -> None:
    process, lines = start(options)
    try:
        found = re.search(r"questions for \S+: (http://\S+)", lines[0])
        assert found is not None
        assert wait_for(f"{found[1]}/").status_code == 200
    finally:
        process.kill()
        process.wait()


def refused(options: AnnotationConfig) -> str:
    with pytest.raises(UserError) as caught:
        serve_annotation(options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_cannot_be_served_is_one_line(options: AnnotationConfig, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert "`port`" in refused(replace(options, port=taken.getsockname()[1]))
    assert "`host`" in refused(replace(options, host="no such host"))
    assert "`data_root`" in refused(replace(options, data_root=None))
    assert "`data_root`" in refused(replace(options, data_root=str(tmp_path / "none")))
    assert "does not exist" in refused(replace(options, run=str(tmp_path / "none")))
    assert "config.json" in refused(replace(options, run=str(tmp_path)))
    assert "`people`" in refused(replace(options, people="anna:boss"))
    assert "personal links" in refused(replace(options, host="0.0.0.0"))
    assert "`public_url`" in refused(replace(options, public_url="labels"))


def test_a_ledger_of_other_images_is_refused(options: AnnotationConfig, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    # None has the content of an image of the ledger, which would be found.
    for name in ("first.jpg", "second.jpg"):
        Image.new("RGB", (32, 64), (1, 2, 3)).save(other / name)
    line = refused(replace(options, data_root=str(other)))
    assert "none of the 8 images" in line and "such as 000.jpg" in line and "`data_root`" in line


def test_images_that_were_moved_or_are_missing_are_said(
    options: AnnotationConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    root = Path(str(options.data_root))
    (root / "deeper").mkdir()
    for name in ("000.jpg", "001.jpg"):
        (root / name).rename(root / "deeper" / name)
    (root / "002.jpg").unlink()
    annotate._check_images(options.run, Pictures(root), Reporter())
    said = capsys.readouterr().out
    assert "2 of 8 images have another name now, found by content" in said
    assert "1 of 8 images are missing, such as 002.jpg" in said


def test_a_second_server_of_one_ledger_is_one_line(options: AnnotationConfig) -> None:
    with AnswerService.open(options.run):
        assert "is in use by process" in refused(options)


def test_the_ledger_of_a_run_is_found_by_its_folder(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"dataset": "synthetic"}')
    options = AnnotationConfig(str(tmp_path))
    with pytest.raises(UserError, match="has not asked"):
        find_source(options)
    (tmp_path / "answers.sqlite").touch()
    for run in (tmp_path, tmp_path / "answers.sqlite"):
        source = find_source(AnnotationConfig(str(run)))
        assert source.ledger == str(tmp_path / "answers.sqlite")
        assert source.config is not None and source.config.dataset == "synthetic"


def test_the_images_of_a_run_are_found_by_its_configuration(tmp_path: Path) -> None:
    draw_images(tmp_path / "images" / "c1", 4)
    config = {
        "dataset": "folder",
        "data_root": str(tmp_path / "gone"),
        "camera_pattern": "c([0-9])",
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    options = AnnotationConfig(str(tmp_path), data_root=str(tmp_path / "images"))
    (tmp_path / "answers.sqlite").touch()
    pictures = open_pictures(find_source(options), options, Reporter())
    assert pictures.caption("c1/000.jpg") == "camera 1"
    assert pictures.picture("c1/000.jpg", "", None).media_type == "image/jpeg"
    with pytest.raises(UnshownError, match="not in the set"):
        pictures.picture("c1/none.jpg", "", None)


def test_a_missing_package_is_one_line(
    options: AnnotationConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("uvicorn", "fastreid_al.server.serve"):
        monkeypatch.setitem(sys.modules, name, None)
    assert "fastreid_al[web]" in refused(options)


def test_known_answers_are_added_once(options: AnnotationConfig, tmp_path: Path) -> None:
    file = tmp_path / "gold.csv"
    file.write_text("left,right,verdict\n000.jpg,001.jpg,same\n002.jpg,003.jpg,different\n")
    assert add_known_answers(options.run, file) == 2
    assert add_known_answers(options.run, file) == 0
    with AnswerService.open(options.run, gold_share=1.0) as service:
        anna = service.person_named("anna")
        # They belong to the run that is asked about, but do not count as its questions.
        assert (service.progress(anna).run, service.progress(anna).open) == ("run", 3)
        task = service.next_task(anna)
        assert task is not None
        verdict = {0: "same", 2: "different"}[task.left]
        service.submit(anna, Submission(task.id, "token", {task.items[0].question: verdict}))
        (figures,) = service.people()
        assert (figures.gold_right, figures.gold_asked) == (1, 1)
    with Ledger.open(options.run, write=False) as ledger:
        assert ledger.answers() == []
    for text, error in (
        ("left,right\n", "columns"),
        ("left,right,verdict\n000.jpg,001.jpg,maybe\n", "line 2"),
        ("left,right,verdict\n000.jpg,x.jpg,same\n", "x.jpg"),
    ):
        file.write_text(text)
        with pytest.raises(UserError, match=error):
            add_known_answers(options.run, file)
    with pytest.raises(UserError, match="cannot be read"):
        add_known_answers(options.run, tmp_path / "none.csv")


def test_a_new_link_ends_the_old_one(options: AnnotationConfig) -> None:
    assert not have_links(options.run)
    with AnswerService.open(options.run) as service:
        _, old = service.add_person("anna")
        assert have_links(options.run)
        new = renew_link(options.run, "anna")
        assert service.person_of_token(old) is None
        assert service.person_of_token(new) is not None
