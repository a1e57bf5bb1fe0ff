"""Answers from elsewhere are imported whole or not at all."""

from __future__ import annotations

import csv
import json
import os
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from sqlalchemy import select

from fastreid_al.answers import imports, report
from fastreid_al.answers.closure import Closure
from fastreid_al.answers.database import IMAGES, PEOPLE, QUESTIONS
from fastreid_al.answers.imports import import_answers
from fastreid_al.answers.ledger import ImageKeys, Ledger, Origin, insert_event
from fastreid_al.answers.question import Verdict
from fastreid_al.cli import run_main
from fastreid_al.data.cache import digest_of
from fastreid_al.errors import LedgerError
from fastreid_al.ledger import main
from tests.support.ledgers import keys, put

SAME, DIFFERENT, UNSURE = Verdict.SAME, Verdict.DIFFERENT, Verdict.UNSURE
HEADER = "left,right,verdict,annotator,answered_at,seconds,comment\n"


def table(tmp_path: Path, text: str | bytes, name: str = "answers.csv") -> str:
    path = tmp_path / name
    path.write_bytes(text.encode("utf-8", "surrogateescape") if isinstance(text, str) else text)
    return str(path)


def answers(url: str) -> list[tuple[Any, ...]]:
    """Paths, verdict and who of each answer in force, in the order of the ledger."""
    with Ledger.open(url, write=False) as ledger:
        return [
            (e.left, e.right, e.verdict, e.annotator)
            for e in ledger.events()
            if e.kind == "answer" and e.undone_by is None
        ]


def refused(url: str, path: str, **more: Any) -> str:
    """Return the error of an import; nothing was written."""
    before = dump(url)
    with pytest.raises(LedgerError) as caught:
        import_answers(url, path, **more)
    assert dump(url) == before
    line = str(caught.value)
    assert "\n" not in line
    return line


def dump(url: str) -> list[str]:
    if not os.path.exists(url):
        return []
    connection = sqlite3.connect(url)
    try:
        return list(connection.iterdump())
    finally:
        connection.close()


def image_set(root: Path, names: list[str]) -> ImageKeys:
    """Make small images of different content."""
    for number, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (2, 2), (number, 1, 2)).save(root / name)
    return ImageKeys("folder", names, [digest_of((root / n).read_bytes()) for n in names])


def test_a_table_is_imported_with_who_and_when(filled: str, tmp_path: Path) -> None:
    lines = (
        "train/1.jpg,./train/4.jpg,same,cleo,2026-03-01T09:30:00+01:00,2.5,same coat\n"
        '\ntrain/2.jpg,train/9.jpg,Not-Comparable,,,,"two\nlines"\n'
    )
    with Ledger.open(filled, keys()) as ledger:
        put(ledger, 8, 9)
    done = import_answers(filled, table(tmp_path, HEADER + lines), annotator="nobody")
    assert done == ["imported 2 answers by cleo 1, nobody 1"]
    with Ledger.open(filled, write=False) as ledger:
        *_, first, second = ledger.events()
        assert ledger.integrity() == []
    assert (first.left, first.right, first.verdict) == ("train/1.jpg", "train/4.jpg", "same")
    assert (first.annotator, first.answered_at, first.asked_at) == (
        *("cleo", 1772353800.0, 1772353797.5),
    )
    assert (first.kind, first.source, first.reason) == ("answer", "import", "import")
    assert (first.comment, second.comment) == ("same coat", "two\nlines")
    assert (second.verdict, second.annotator) == ("not comparable", "nobody")
    assert second.answered_at == second.asked_at > 1.7e9


@pytest.mark.parametrize("delimiter", [";", "\t"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_table_of_an_office_program_is_the_same_table(
    filled: str, tmp_path: Path, delimiter: str, encoding: str
) -> None:
    text = HEADER + "train/1.jpg,train/4.jpg,same,anna,2026-03-01T09:30:00Z,2.5,é\n"
    other = text.replace(",", delimiter).replace("\n", "\r\n").encode(encoding)
    import_answers(filled, table(tmp_path, other, "other.csv"))
    found = answers(filled)
    assert found[-1] == ("train/1.jpg", "train/4.jpg", SAME, "anna")
    import_answers(filled, table(tmp_path, text))
    assert answers(filled) == found


def test_damaged_utf_16_is_one_line(filled: str, tmp_path: Path) -> None:
    assert "is damaged" in refused(filled, table(tmp_path, b"\xff\xfeabc"))


def test_importing_twice_adds_nothing(filled: str, tmp_path: Path) -> None:
    line = "train/1.jpg,train/4.jpg,same,cleo,1000,2,\n"
    other = "train/1.jpg,train/5.jpg,different,,,,\n"
    path = table(tmp_path, HEADER + line + other + line)
    assert import_answers(filled, path)[1] == "1 were there already"
    before = dump(filled)
    assert import_answers(filled, path) == ["imported 0 answers", "3 were there already"]
    # Columns in another order, and further answers.
    text = (
        "verdict,right,left,answered_at,annotator,seconds\n"
        "SAME,train/4.jpg,train/1.jpg,1000,cleo,2\nsame,train/5.jpg,train/4.jpg,,,\n"
    )
    assert dump(filled) == before
    assert import_answers(filled, table(tmp_path, text))[0] == "imported 1 answers by import 1"


def test_an_answer_that_was_taken_back_is_not_imported_again(filled: str, tmp_path: Path) -> None:
    path = table(tmp_path, "left,right,verdict\ntrain/1.jpg,train/4.jpg,same\n")
    import_answers(filled, path)
    main(["undo", filled, "--event", "7"])
    assert import_answers(filled, path)[0] == "imported 0 answers"


def test_an_import_works_while_a_run_trains(filled: str, tmp_path: Path) -> None:
    path = table(tmp_path, "left,right,verdict\ntrain/1.jpg,train/4.jpg,same\n")
    with Ledger.open(filled, keys()) as trainer:
        import_answers(filled, path)
        assert trainer.answers()[-1][1:4] == (1, 4, SAME)
        put(trainer, 1, 8)
        root = tmp_path / "set"
        image_set(root, ["new.png"])
        path = table(tmp_path, "left,right,verdict\ntrain/1.jpg,new.png,same\n")
        assert "in use by" in refused(filled, path, data_root=str(root))
        assert "name another ledger (1 images are" in refused(filled, path, data_root=str(root))
    import_answers(filled, path, data_root=str(root))


def test_images_are_found_by_content_and_new_ones_are_added(file: str, tmp_path: Path) -> None:
    root = tmp_path / "set"
    names = ["a.png", "b.png", "c.png", "d/e.png"]
    known = image_set(root, names)
    with Ledger.open(file, known) as ledger:
        put(ledger, 0, 1)
    (root / "a.png").rename(root / "renamed.png")
    # Another image took the name of one that the ledger knows.
    (root / "b.png").rename(root / "old_b.png")
    Image.new("RGB", (3, 3), (9, 9, 9)).save(root / "b.png")
    path = table(
        tmp_path,
        "left,right,verdict\nrenamed.png,old_b.png,same\n"
        f"b.png,renamed.png,different\n{root}/d/e.png,b.png,same\n",
    )
    done = import_answers(file, path, data_root=str(root))
    assert done == ["imported 3 answers by import 3", "added 2 images"]
    now = ["b.png", "c.png", "d/e.png", "old_b.png", "renamed.png"]
    digests = [digest_of((root / name).read_bytes()) for name in now]
    with Ledger.open(file, ImageKeys("folder", now, digests)) as ledger:
        found = [(now[a.left], now[a.right]) for a in ledger.answers()]
        assert ledger.integrity() == []
    assert found == [
        *[("renamed.png", "old_b.png")] * 2,
        *[("b.png", "renamed.png"), ("d/e.png", "b.png")],
    ]


def test_a_ledger_is_made_for_answers_before_the_first_run(file: str, tmp_path: Path) -> None:
    root = tmp_path / "set"
    known = image_set(root, ["a.png", "b.png", "c.png"])
    path = table(tmp_path, "left,right,verdict\na.png,b.png,same\nc.png,b.png,different\n")
    assert "there is no ledger" in refused(file, path)
    import_answers(file, path, data_root=str(root))
    with Ledger.open(file, known) as ledger:
        assert [a[1:4] for a in ledger.answers()] == [(0, 1, SAME), (2, 1, DIFFERENT)]
        assert ledger.dataset() == "folder"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty, expected a header line"),
        ("left|right|verdict\n", "line 1: unknown column 'left|right|verdict'"),
        ("left,right,verdikt\n", "line 1: unknown column 'verdikt'; did you mean verdict?"),
        ("left,right\n", "line 1: column verdict is missing"),
        ("left,right,verdict,left\n", "line 1: column left occurs twice"),
        (HEADER + "train/1.jpg,train/2.jpg,same\n", "line 2: got 3 cells, expected 7"),
        (HEADER + "\n1.jpg,train/2.jpg,same,,,,\n", "line 3: unknown image '1.jpg'"),
        (HEADER + "../x,train/2.jpg,same,,,,\n", "line 2: unknown image '../x'"),
        (HEADER + ",train/2.jpg,same,,,,\n", "line 2: got left '', expected the path"),
        (HEADER + "train/1.jpg,train/1.jpg,same,,,,\n", "got image train/1.jpg twice"),
        (HEADER + "train/1.jpg,train/2.jpg,yes,,,,\n", "line 2: unknown verdict 'yes', expected"),
        (HEADER + "train/1.jpg,train/2.jpg,same,,soon,,\n", "line 2: got answered_at 'soon'"),
        (HEADER + "train/1.jpg,train/2.jpg,same,,-1,,\n", "line 2: got answered_at '-1'"),
        (HEADER + "train/1.jpg,train/2.jpg,same,,1,nan,\n", "line 2: got seconds 'nan'"),
        (HEADER + "train/1.jpg,train/2.jpg,same,,1,-2,\n", "line 2: got seconds '-2'"),
        (HEADER + 'train/1.jpg,"train/2.jpg\n', "line 2: got no line of CSV"),
        (HEADER + f"train/1.jpg,train/2.jpg,same,,,,{'x' * 10_001}\n", "at most 10,000"),
    ],
)
def test_a_wrong_line_is_named_and_nothing_is_written(
    filled: str, tmp_path: Path, text: str, message: str
) -> None:
    # Right lines before the wrong one are not written either.
    if text.startswith(HEADER):
        text = text + "train/1.jpg,train/4.jpg,same,,,,\n"
    assert message in refused(filled, table(tmp_path, text))


def test_a_file_that_cannot_be_read_is_one_line(filled: str, tmp_path: Path) -> None:
    assert "cannot be read (No such file" in refused(filled, str(tmp_path / "none.csv"))
    assert "cannot be read (Is a directory)" in refused(filled, str(tmp_path))
    path = table(tmp_path, HEADER)
    assert "is not a folder" in refused(filled, path, data_root=str(tmp_path / "none"))


def test_a_new_image_must_be_an_image_in_the_folder(filled: str, tmp_path: Path) -> None:
    root = tmp_path / "set"
    image_set(root, ["a.png"])
    (root / "notes.txt").write_text("left,right")
    Image.new("RGB", (2, 2)).save(tmp_path / "outside.png")
    for name in ("notes.txt", "none.png", "../outside.png", str(tmp_path / "outside.png"), "."):
        path = table(tmp_path, f"left,right,verdict\na.png,{name},same\n")
        assert "there is no such image in" in refused(filled, path, data_root=str(root))


def test_an_import_that_fails_in_the_middle_leaves_the_ledger(
    filled: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def insert_once(connection: Any, event: dict[str, Any]) -> int:
        if event["right_id"] == event["left_id"] + 2:
            raise LedgerError("the disk is full")
        return insert_event(connection, event)

    monkeypatch.setattr(imports, "insert_event", insert_once)
    root = tmp_path / "set"
    image_set(root, ["a.png", "b.png", "c.png"])
    path = table(tmp_path, "left,right,verdict\na.png,b.png,same\na.png,c.png,same\n")
    assert "the disk is full" in refused(filled, path, data_root=str(root))


def test_a_ledger_in_postgresql_takes_answers(database: str, tmp_path: Path) -> None:
    root = tmp_path / "set"
    known = image_set(root, ["a.png", "b.png", "c.png"])
    text = "left,right,verdict,annotator,comment\na.png,b.png,same,\udcff,\udcfe\n"
    path = table(tmp_path, text + "a.png,c.png,different,,\n")
    with Ledger.open(database, known) as ledger:
        put(ledger, 0, 1)
        with pytest.raises(LedgerError, match="in use by"):
            import_answers(database, path, data_root=str(root))
        put(ledger, 0, 2)
        for count in (2, 0):
            done = import_answers(database, path, data_root=str(root))
            assert done[0].startswith(f"imported {count} answers")
        assert len(ledger.answers()) == 4
        assert ledger.integrity() == []


def test_an_erased_image_is_refused(filled: str, tmp_path: Path) -> None:
    with Ledger.open(filled, role="command") as ledger, ledger.store.writing() as connection:
        connection.execute(
            IMAGES.update().where(IMAGES.c.path == "train/1.jpg"), {"erased_at": 5.0}
        )
    path = table(tmp_path, "left,right,verdict\ntrain/2.jpg,train/1.jpg,same\n")
    assert "line 2: image train/1.jpg was erased on request" in refused(filled, path)


def test_names_of_any_bytes_are_found(file: str, tmp_path: Path) -> None:
    names = ["\udcff.jpg", "'a.jpg", " b.jpg", "c\n.jpg", "=d.jpg"]
    with Ledger.open(file, ImageKeys("folder", names, [""] * 5)) as ledger:
        for right in range(1, 5):
            put(ledger, 0, right)
    out = tmp_path / "export.csv"
    report.export(file, "answers", "csv", str(out))
    assert import_answers(file, str(out)) == ["imported 0 answers", "4 were there already"]
    path = tmp_path / "own.csv"
    with open(path, "w", newline="", encoding="utf-8", errors="surrogateescape") as stream:
        csv.writer(stream).writerows(
            [["left", "right", "verdict"], *([names[1], name, "same"] for name in names[2:])]
        )
    import_answers(file, str(path))
    assert [a[:2] for a in answers(file)[-3:]] == [("'a.jpg", name) for name in names[2:]]


def queued(ledger: Ledger, left: int, right: int) -> int:
    """Publish a question, and return its number."""
    with ledger.store.writing() as connection, ledger.numbering(connection, left, right) as ids:
        values = {
            **{"run": "first", "epoch": 2, "left_id": ids[left], "right_id": ids[right]},
            **{"left_images": "[]", "right_images": "[]", "reason": "merge"},
            **{"known_event": 0, "status": "answered", "made_at": 0.0},
        }
        return connection.execute(QUESTIONS.insert(), values).inserted_primary_key[0]


def of_people(file: str) -> None:
    """A ledger with everything that an export has columns for."""
    with Ledger.open(file, keys()) as ledger:
        put(ledger, 0, 1, need=2, score=0.25, similarity=0.75)
        put(ledger, 2, 3, need=2, confirms=1, reason="confirm")
        ledger.undo(put(ledger, 4, 5), "anna")
        question = queued(ledger, 5, 6)
        for name, verdict in (("anna", SAME), ("bert", DIFFERENT), ("cleo", SAME)):
            origin = Origin(
                "web", question, 1, f"gesture {name}", f"token {name}", 0.5, 'a, "b"\n\'c', "mixed"
            )
            put(ledger, 5, 6, verdict, annotator=name, answered_at=102.7, origin=origin)
        put(ledger, 5, 9, DIFFERENT, reason="member", origin=Origin("web", question, 1, "gesture"))
        put(ledger, 7, 8, UNSURE, epoch=None)


def test_an_export_comes_back_into_another_ledger(file: str, tmp_path: Path) -> None:
    of_people(file)
    out = str(tmp_path / "export.csv")
    report.export(file, "answers", "csv", out)
    other = str(tmp_path / "other.sqlite")
    with Ledger.open(other, keys()) as ledger:
        for image in range(1, 10):
            ledger.undo(put(ledger, 0, image, UNSURE, annotator="zoe"), "zoe")
        with ledger.store.writing() as connection:
            values = {"name": "bert", "role": "annotate", "made_at": 0.0}
            connection.execute(PEOPLE.insert(), values)
    done = import_answers(other, out)
    assert done == [
        "imported 7 answers by anna 5, bert 1, cleo 1",
        "left out 2 that are undone, skipped, or no answers",
    ]
    with Ledger.open(file, write=False) as before, Ledger.open(other, write=False) as after:
        assert after.integrity() == []
        old = [e for e in before.events() if e.kind == "answer" and e.undone_by is None]
        new = [e for e in after.events() if e.kind == "answer" and e.undone_by is None]
        kept = (
            *("left", "right", "verdict", "annotator", "asked_at", "answered_at", "epoch"),
            *("reason", "score", "similarity", "need", "gesture", "idle", "comment", "tags"),
        )
        for one, two in zip(old, new, strict=True):
            assert [getattr(one, name) for name in kept] == [getattr(two, name) for name in kept]
            assert two.source == "import"
        assert {e.annotator: e.person for e in new} == {"anna": None, "bert": 1, "cleo": None}
        # The same answers hold: votes are combined, and the merge is confirmed.
        verdicts = [a.verdict for a in before.answers()]
        assert sorted(verdicts) == sorted(a.verdict for a in after.answers())
        with after.store.reading() as connection:
            (settled,) = connection.execute(select(QUESTIONS)).all()
        assert (settled.status, settled.settled_event) == ("answered", new[2].id)
    with Ledger.open(file, keys(), write=False) as before:
        closed = Closure.replay(before.answers())
    with Ledger.open(other, keys(), write=False) as after:
        opened = Closure.replay(after.answers())
    pairs = [(i, j) for i in range(10) for j in range(i)]
    assert [closed.verdict(*p) for p in pairs] == [opened.verdict(*p) for p in pairs]
    assert opened.verdict(0, 1) is opened.verdict(2, 3) is opened.verdict(5, 6) is SAME
    # Neither the export nor what was made of it adds anything to either ledger.
    report.export(other, "answers", "csv", out)
    for url in (file, other):
        assert import_answers(url, out)[0] == "imported 0 answers"


def test_a_vote_that_is_added_later_joins_its_question(file: str, tmp_path: Path) -> None:
    of_people(file)
    out = tmp_path / "export.csv"
    report.export(file, "answers", "csv", str(out))
    other = str(tmp_path / "other.sqlite")
    with Ledger.open(other, keys()) as ledger:
        for image in range(1, 10):
            ledger.undo(put(ledger, 0, image, UNSURE, annotator="zoe"), "zoe")
    rows = list(csv.DictReader(out.open(newline="")))
    columns = list(rows[0])
    for kept in (rows[:6], rows):
        with open(tmp_path / "part.csv", "w", newline="") as stream:
            writer = csv.DictWriter(stream, columns)
            writer.writeheader()
            writer.writerows(kept)
        import_answers(other, str(tmp_path / "part.csv"))
    with Ledger.open(other, keys(), write=False) as ledger:
        assert [a.verdict for a in ledger.answers() if {a.left, a.right} == {5, 6}] == [SAME]


def task(*annotations: Any, **data: Any) -> dict[str, Any]:
    images = {"left": "/data/local-files/?d=train/1.jpg", "right": "train/4.jpg"}
    return {"id": 1, "data": {**images, **data}, "annotations": list(annotations)}


def annotation(choice: str = "Same", **more: Any) -> dict[str, Any]:
    result = [{"type": "choices", "from_name": "verdict", "value": {"choices": [choice]}}]
    return {"id": 5, "completed_by": 3, "result": result, **more}


def test_an_export_of_label_studio_is_imported(filled: str, tmp_path: Path) -> None:
    note = {"type": "textarea", "from_name": "comment", "value": {"text": ["same bag", "blurred"]}}
    first = annotation(created_at="2026-03-01T08:30:00.250000Z", lead_time=2.25)
    first["result"].append(note)
    tasks = [
        task(first, annotation("Different", completed_by={"id": 4, "email": "bert@example.com"})),
        task(annotation(was_cancelled=True), annotation() | {"result": []}),
        {"data": {"image1": "train/2.jpg", "image2": "train/5.jpg"}, "annotations": []},
    ]
    path = table(tmp_path, json.dumps(tasks), "tasks.json")
    for count in (2, 0):
        done = import_answers(filled, path, "label-studio")
        assert done[0].startswith(f"imported {count} answers")
        assert done[-1] == "left out 2 that are undone, skipped, or no answers"
    with Ledger.open(filled, write=False) as ledger:
        *_, one, two = ledger.events()
    assert (one.left, one.right, one.verdict) == ("train/1.jpg", "train/4.jpg", "same")
    assert (one.annotator, one.comment) == ("user 3", "same bag\nblurred")
    assert (one.answered_at, one.asked_at) == (1772353800.25, 1772353798.0)
    assert (two.verdict, two.annotator) == ("different", "bert@example.com")


def test_an_address_of_label_studio_may_begin_with_the_folder_of_the_set(
    filled: str, tmp_path: Path
) -> None:
    root = tmp_path / "my set"
    image_set(root, ["train/1.jpg", "train/4.jpg"])
    address = "/data/local-files/?d=my%20set/train/1.jpg"
    path = table(tmp_path, json.dumps([task(annotation(), left=address)]), "tasks.json")
    import_answers(filled, path, "label-studio", data_root=str(root))
    assert answers(filled)[-1][:3] == ("train/1.jpg", "train/4.jpg", "same")
    other = address.replace("my%20set", "other")
    path = table(tmp_path, json.dumps([task(annotation(), left=other)]), "tasks.json")
    message = "unknown image 'other/train/1.jpg'"
    assert message in refused(filled, path, form="label-studio", data_root=str(root))


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        ("[\n{]", "tasks.json, line 2: got no JSON"),
        ("[" * 100_000, "tasks.json: got no JSON that can be read"),
        ({}, "tasks.json: got no list"),
        ([3], "task 1: got no data and annotations"),
        ([task(), {"left": "a", "right": "b", "choice": "Same"}], "task 2: got no data"),
        ([{"data": {"image": "a"}, "annotations": []}], "task 1: got data without two images"),
        ([task(left="s3://bucket/a.jpg")], "task 1, left: got 's3://bucket/a.jpg', expected"),
        ([task(left=["a"])], "task 1, left: got"),
        ([task(annotation(), left="a.jpg")], "task 1, annotation 1: unknown image 'a.jpg'"),
        ([task(annotation("Left"))], "task 1, annotation 1: unknown verdict 'Left'"),
        ([task(annotation(completed_by=[]))], "annotation 1: got a completed_by"),
        ([task(annotation(completed_by=-(10**30)))], "annotation 1: got a completed_by"),
        ([task(annotation(created_at="now"))], "annotation 1: got answered_at 'now'"),
        ([task(annotation(lead_time="NaN"))], "annotation 1: got seconds 'NaN'"),
        ([task(annotation() | {"result": [1]})], "annotation 1: got a result without a value"),
        ([task(annotation() | {"result": None})], "annotation 1: got no result"),
        (
            [task(annotation() | {"result": annotation()["result"] * 2})],
            "annotation 1: got 2 results of Choices, expected one",
        ),
    ],
)
def test_a_wrong_task_is_named_and_nothing_is_written(
    filled: str, tmp_path: Path, tasks: Any, message: str
) -> None:
    text = tasks if isinstance(tasks, str) else json.dumps(tasks)
    path = table(tmp_path, text, "tasks.json")
    assert message in refused(filled, path, form="label-studio")


def test_the_command_imports(
    filled: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = table(tmp_path, "left,right,verdict\ntrain/1.jpg,train/4.jpg,same\n")
    main(["import", filled, "--from", path, "--annotator", "dora"])
    assert capsys.readouterr().out == "imported 1 answers by dora 1\n"
    assert answers(filled)[-1] == ("train/1.jpg", "train/4.jpg", "same", "dora")
    path = table(tmp_path, "left,right,verdict\nnew.jpg,train/4.jpg,same\n")
    with pytest.raises(SystemExit):
        run_main(lambda: main(["import", filled, "--from", path]))
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "give --data-root to add images" in error
    with pytest.raises(SystemExit):
        main(["import", filled])
    assert "--from is required" in capsys.readouterr().err


CELLS = st.one_of(
    st.sampled_from(
        [
            *("train/1.jpg", "train/2.jpg", "same", "different", "", "'", "1e400", "nan", "1"),
            *("left", "right", "verdict", "id", "kind", "answer", "undone", "2026-01-01", "-5"),
            *("seconds", "answered_at", "9999-12-31T23:59:59", "0001-01-01", "\\x00", "confirms"),
        ]
    ),
    st.text(max_size=8),
)
QUIET = settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def succeeds_or_says_why(url: str, path: str, **more: Any) -> None:
    before = dump(url)
    error = ""
    try:
        import_answers(url, path, **more)
    except LedgerError as caught:
        error = str(caught)
    if error:
        assert "\n" not in error
        assert dump(url) == before
        return
    with Ledger.open(url, write=False) as ledger:
        assert ledger.integrity() == []
    after = dump(url)
    assert import_answers(url, path, **more)[0] == "imported 0 answers"
    assert dump(url) == after


@QUIET
@given(content=st.binary(max_size=80))
def test_any_bytes_are_imported_or_refused(filled: str, tmp_path: Path, content: bytes) -> None:
    for form in ("csv", "label-studio"):
        succeeds_or_says_why(filled, table(tmp_path, content), form=form)


@QUIET
@given(
    more=st.lists(
        st.sampled_from(
            [
                *("seconds", "answered_at", "annotator", "comment", "id", "kind", "need"),
                *("confirms", "question", "tags", "gesture", "epoch", "idle", "undone"),
                *("asked_at", "score"),
            ]
        ),
        unique=True,
        max_size=4,
    ),
    rows=st.lists(st.lists(CELLS, min_size=4, max_size=4), max_size=3),
)
def test_any_table_is_imported_or_refused(
    filled: str, tmp_path: Path, more: list[str], rows: list[list[str]]
) -> None:
    path = tmp_path / "answers.csv"
    with open(path, "w", newline="", encoding="utf-8", errors="surrogatepass") as stream:
        writer = csv.writer(stream)
        writer.writerow(["left", "right", "verdict", *more])
        for number, row in enumerate(rows):
            pair = ["train/1.jpg", f"train/{2 + number}.jpg", "same"]
            writer.writerow([*pair, *row[: len(more)]])
    succeeds_or_says_why(filled, str(path))


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | CELLS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(CELLS, inner, max_size=3),
    max_leaves=5,
)


@QUIET
@given(value=JSON_VALUES, at=st.sampled_from(["completed_by", "created_at", "lead_time", "result"]))
def test_any_annotation_is_imported_or_refused(
    filled: str, tmp_path: Path, value: Any, at: str
) -> None:
    for tasks in (
        [task(annotation(**{at: value}))],
        [task(annotation() | {"result": [{"type": "choices", "value": value}]})],
        [task(annotation(), left=value)],
        [task(value)],
        value,
    ):
        path = table(tmp_path, json.dumps(tasks), "tasks.json")
        succeeds_or_says_why(filled, path, form="label-studio")
