"""The commands of a ledger: show, export, undo, check."""

from __future__ import annotations

import csv
import io
import json
import math
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fastreid_al.answers import Verdict
from fastreid_al.answers.ledger import Ledger
from fastreid_al.cli import run_main
from fastreid_al.errors import LedgerError
from fastreid_al.ledger import main
from tests.support.ledgers import keys, put


def run(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    main(words)
    return capsys.readouterr().out


def test_show_counts_and_names_contradictions(
    filled: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with Ledger.open(filled, keys()) as ledger:
        put(ledger, 0, 3, need=1)
        put(ledger, 8, 9, need=2)
    lines = dict(
        line.split(maxsplit=1)
        for line in run(capsys, "show", filled).splitlines()
        if line[0] != " "
    )
    assert lines["data"] == "set        market1501"
    assert lines["questions"] == "6 answered, last event 8"
    assert lines["undone"] == "1"
    assert lines["verdicts"] == "same 4, different 1, unsure 1"
    assert lines["annotators"] == "anna 5, bert 1"
    assert lines["reasons"] == "split 5, merge 1"
    assert lines["epochs"] == "3: 5, 4: 1"
    assert lines["pending"].startswith("1 ")
    assert lines["components"] == "1 of two or more images, the largest of 3"
    assert lines["cannot-links"] == "1 between components"
    assert lines["time"] == "9.0 s of answering"
    assert lines["contradictions"] == "1"
    text = run(capsys, "show", filled)
    assert "event 7 (train/0.jpg, train/3.jpg: same), against 1 2 3; set aside: 7" in text


def test_the_folder_of_a_run_stands_for_its_ledger(
    filled: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.json").write_text('{"dataset": "market1501"}')
    with pytest.raises(LedgerError, match="the run has not asked a question yet"):
        main(["show", str(folder)])
    shutil.copy(filled, folder / "answers.sqlite")
    for command in ("show", "check", "conflicts", "digest", "export"):
        of_file = run(capsys, command, str(folder / "answers.sqlite"))
        assert run(capsys, command, str(folder)) == of_file
    assert "event 7 undoes event 1 " in run(capsys, "undo", str(folder), "--event", "1")
    (folder / "config.json").write_text(
        json.dumps({"dataset": "market1501", "questions": {"ledger": filled}})
    )
    assert run(capsys, "show", str(folder)) == run(capsys, "show", filled)


def test_show_of_an_empty_ledger(file: str, capsys: pytest.CaptureFixture[str]) -> None:
    Ledger.open(file, keys()).close()
    assert "0 answered, last event 0" in run(capsys, "show", file)


def test_export_of_answers_holds_every_event(
    filled: str, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = list(csv.DictReader(io.StringIO(run(capsys, "export", filled))))
    assert [row["id"] for row in rows] == ["1", "2", "3", "4", "5", "6"]
    assert [row["undone"] for row in rows] == ["False"] * 4 + ["True", "False"]
    assert (rows[2]["left"], rows[2]["verdict"], rows[5]["undoes"]) == (
        "train/2.jpg",
        "different",
        "5",
    )
    lines = [
        json.loads(line) for line in run(capsys, "export", filled, "--format", "jsonl").splitlines()
    ]
    assert [line["undone_by"] for line in lines] == [None] * 4 + [6, None]
    assert lines[0]["shown"] == [[], []]
    as_of = run(capsys, "export", filled, "--as-of", "5", "--format=jsonl").splitlines()
    assert [json.loads(line)["undone"] for line in as_of] == [False] * 5
    with pytest.raises(SystemExit) as refused:
        main(["export", filled, "--as-of", "-1"])
    assert refused.value.code == 2 and "expected 0 or more" in capsys.readouterr().err


def test_export_of_the_closure_gives_each_pair_with_the_chain_that_proves_it(
    filled: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "closure.csv"
    assert run(capsys, "export", filled, "--what", "closure", "--out", str(out)) == ""
    rows = {
        tuple(Path(row[side]).stem for side in ("left", "right")): (row["verdict"], row["chain"])
        for row in csv.DictReader(out.open())
    }
    assert rows == {
        ("0", "1"): ("same", "1"),
        ("0", "2"): ("same", "1 2"),
        ("1", "2"): ("same", "2"),
        ("0", "3"): ("different", "1 2 3"),
        ("1", "3"): ("different", "2 3"),
        ("2", "3"): ("different", "3"),
    }
    evidence = {row["chain"]: float(row["evidence"]) for row in csv.DictReader(out.open())}
    # Who gave two answers, without a contradiction, is taken to err once in 52; who gave one, once
    # in 51. The log-odds that such an answer is right are ln(51) and ln(50).
    assert evidence["1"] == evidence["3"] == round(math.log(51), 2)
    assert evidence["2"] == round(math.log(50), 2)
    three = (51 / 52) ** 2 * 50 / 51
    assert evidence["1 2 3"] == round(math.log(three / (1 - three)), 2)
    early = run(
        capsys, "export", filled, "--what", "closure", "--as-of=1", "--format", "jsonl"
    ).splitlines()
    assert [json.loads(line)["chain"] for line in early] == [[1]]


def test_export_of_one_pair(filled: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["export", filled, "--what", "closure", "--format", "jsonl", "--pair", "train/3.jpg"]
    row = json.loads(run(capsys, *words, "train/0.jpg"))
    assert row == {
        "left": "train/3.jpg",
        "right": "train/0.jpg",
        "verdict": "different",
        "chain": [3, 2, 1],
        "evidence": 2.81,
    }
    assert run(capsys, *words, "train/4.jpg") == ""
    with pytest.raises(LedgerError, match=r"no answer is about 3\.jpg"):
        main([*words[:-1], "3.jpg", "train/0.jpg"])


def test_export_does_not_write_over_the_ledger(filled: str) -> None:
    with pytest.raises(LedgerError, match="is the ledger itself"):
        main(["export", filled, "--out", filled])
    with pytest.raises(LedgerError, match="could not write"):
        main(["export", filled, "--out", str(Path(filled).parent / "missing" / "x.csv")])


def test_undo_says_what_it_undid(filled: str, capsys: pytest.CaptureFixture[str]) -> None:
    said = run(capsys, "undo", filled, "--event", "3")
    assert said == "event 7 undoes event 3 (train/2.jpg, train/3.jpg: different)\n"
    assert "cannot-links    0" in run(capsys, "show", filled)


def test_undo_of_a_ledger_that_does_not_exist_makes_none(file: str) -> None:
    with pytest.raises(LedgerError, match="there is no ledger"):
        main(["undo", file, "--event", "3"])
    assert not Path(file).exists()


def test_check_of_a_whole_ledger_is_clean(filled: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "check", filled) == "clean\n"


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["show"],
        ["shwo", "x"],
        ["undo", "x"],
        ["undo", "x", "--event", "y"],
        ["export", "x", "--wat"],
        ["show", "x"],
    ],
)
def test_a_wrong_command_line_is_one_line_and_status_2(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_:
        run_main(lambda: main(words))
    assert exit_.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_closed_pipe_is_no_traceback(file: str) -> None:
    with Ledger.open(file, keys(3000)) as ledger:
        ledger._store._connection.exec_driver_sql("PRAGMA synchronous=OFF")
        ledger._store._connection.rollback()
        for i in range(1, 2000):
            put(ledger, 0, i)
    command = f"{sys.executable} -m fastreid_al.ledger export {file} --what closure | head -n 2"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=120)
    assert done.stdout.splitlines()[0] == "left,right,verdict,chain,evidence"
    assert done.stderr == ""


def test_contradicted_answers_have_less_evidence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = str(tmp_path / "many.sqlite")
    with Ledger.open(file, keys()) as ledger:
        for verdict in [Verdict.SAME] * 3 + [Verdict.DIFFERENT]:
            put(ledger, 0, 1, verdict)
        put(ledger, 2, 3)
        for _ in range(40):
            put(ledger, 4, 5)
    lines = run(capsys, "export", file, "--what=closure", "--format=jsonl").splitlines()
    evidence = {Path(row["left"]).stem: row["evidence"] for row in map(json.loads, lines)}
    # Forty answers to one question are limited to 30, which is valid JSON.
    assert evidence["4"] == 30
    assert 0 < evidence["2"] < 30
    # Three "same" and one "different" are different for the closure, against the evidence.
    assert evidence["0"] < -5
