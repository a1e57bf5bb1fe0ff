"""Whole runs that ask: what they record, how they stop and resume, and what they refuse."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastreid_al.annotators import Oracle
from fastreid_al.answers import Ledger, Question, QuitAsking, Verdict
from fastreid_al.config import OracleConfig, QuestionConfig, RunConfig
from fastreid_al.engine import Interrupted
from fastreid_al.engine.console import percent
from fastreid_al.errors import LedgerError, UserError
from fastreid_al.runs import run_training
from fastreid_al.synthetic.dataset import cached_synthetic
from tests.support.tiny import SYNTHETIC, elsewhere, same_weights, weights

PAGE = Path(__file__).parents[2] / "docs/run_folder.md"
COST = ("questions", "share", "answering_seconds")


@pytest.fixture
def asking(config: RunConfig) -> RunConfig:
    return replace(config, ask="gain", questions=QuestionConfig(start=1, per_epoch=15))


def answers(run: str | Path) -> list[tuple[object, ...]]:
    with Ledger.open(str(Path(run) / "answers.sqlite"), write=False) as ledger:
        return [(e.epoch, e.left, e.right, e.verdict) for e in ledger.events()]


def test_cost_and_cluster_quality_are_recorded_and_drawn_in_the_figure(
    asking: RunConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    history = run_training(asking).history
    lines = [
        json.loads(line)
        for line in (Path(asking.run_dir) / "metrics.jsonl").read_text().splitlines()
    ]
    assert lines == history
    assert "questions" not in history[1]
    asked = history[2:]
    for record in asked:
        assert 0 < record["questions"] <= 15
        assert {
            "drafted_pair_precision",
            "drafted_pair_recall",
            "drafted_class_purity",
            "drafted_cross_camera_recall",
            "remembered",
            "contradictions",
        } <= record.keys()
    for what in COST:
        assert asked[-1][f"{what}_total"] == pytest.approx(sum(r[what] for r in asked))
    n = SYNTHETIC.train_images
    assert asked[-1]["share_total"] == asked[-1]["questions_total"] / (n * (n - 1) / 2)
    assert len(answers(asking.run_dir)) == asked[-1]["questions_total"]
    said = capsys.readouterr().out
    assert f"{asked[-1]['questions_total']} questions (" in said
    assert "% of all pairs" in said
    last = asked[-1]
    before, after = last["drafted_class_purity"], last["class_purity"]
    assert f"class purity {percent(before)} -> {percent(after)} % completeness" in said
    assert Image.open(Path(asking.run_dir) / "curves.png").width > 2500  # six panels
    documented = set(re.findall(r"`(\w+)[\w.]*`", PAGE.read_text()))
    assert {key for record in history for key in record} <= documented


@pytest.mark.parametrize("strategy", ["ucal", "spal", "random"])
def test_every_strategy_trains(asking: RunConfig, strategy: str) -> None:
    history = run_training(replace(asking, ask=strategy, epochs=2)).history
    assert history[-1]["questions"] <= 15


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{"budget": 0}, {"per_epoch": 0}, {"start": 9}])
def test_without_a_question_the_run_is_the_base(
    asking: RunConfig, settings: dict, capsys: pytest.CaptureFixture[str]
) -> None:
    run_training(elsewhere(asking, "base", ask="none"))
    run_training(replace(asking, questions=replace(asking.questions, **settings)))
    assert same_weights(weights(asking.run_dir), weights(Path(asking.run_dir).parent / "base"))
    assert answers(asking.run_dir) == []
    assert ("no question will be asked" in capsys.readouterr().out) == ("start" in settings)


@pytest.mark.slow
def test_an_annotator_who_is_always_unsure_does_not_stop_the_training(asking: RunConfig) -> None:
    run_training(elsewhere(asking, "base", ask="none"))
    history = run_training(replace(asking, oracle=OracleConfig(unsure=1.0))).history
    assert history[-1]["answered_unsure"] == history[-1]["questions"] > 0
    assert same_weights(weights(asking.run_dir), weights(Path(asking.run_dir).parent / "base"))


@pytest.mark.slow
@pytest.mark.parametrize("after", [0, 7, 20])
def test_leaving_while_asked_then_resuming_ends_in_the_same_weights(
    asking: RunConfig,
    after: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run_training(elsewhere(asking, "whole"))
    original, given = Oracle.answer, [0]

    def answer(self: Oracle, question: Question) -> Verdict:
        given[0] += 1
        if given[0] == after + 1:
            raise QuitAsking("the annotator left")
        return original(self, question)

    with monkeypatch.context() as patch:
        patch.setattr(Oracle, "answer", answer)
        with pytest.raises(Interrupted) as stopped:
            run_training(asking)
    assert stopped.value.signum == 0
    assert "stopped asking in epoch" in capsys.readouterr().out
    assert len(answers(asking.run_dir)) == after
    run_training(asking, resume=True)
    whole = Path(asking.run_dir).parent / "whole"
    assert same_weights(weights(asking.run_dir), weights(whole))
    assert answers(asking.run_dir) == answers(whole)


def test_closed_standard_input_ends_the_run_with_every_answer_kept(
    asking: RunConfig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = replace(asking, annotator="terminal")
    monkeypatch.setattr("sys.stdin", io.StringIO("s\nd\nu\n"))
    with pytest.raises(Interrupted):
        run_training(config)
    assert "standard input was closed" in capsys.readouterr().out
    assert [verdict for *_, verdict in answers(config.run_dir)] == ["same", "different", "unsure"]
    assert Image.open(Path(config.run_dir) / "question.png").size
    with Ledger.open(str(Path(config.run_dir) / "answers.sqlite"), write=False) as ledger:
        assert all(len(side) >= 1 for event in ledger.events() for side in event.shown)
    monkeypatch.setattr("sys.stdin", io.StringIO("d\n" * 100))
    run_training(config, resume=True)
    pairs = [pair for _, *pair, _ in answers(config.run_dir)]
    assert len(pairs) == len({tuple(sorted(p)) for p in pairs})


@pytest.mark.slow
def test_answers_of_another_run_are_replayed(asking: RunConfig) -> None:
    run_training(asking)
    first = Path(asking.run_dir)
    settings = replace(asking.questions, replay=str(first / "answers.sqlite"))
    again = elsewhere(asking, "again", annotator="replay", questions=settings)
    run_training(again)
    assert same_weights(weights(again.run_dir), weights(first))
    assert answers(again.run_dir) == answers(first)


@pytest.mark.slow
def test_a_ledger_that_another_run_filled_is_known_and_not_counted(asking: RunConfig) -> None:
    run_training(asking)
    shared = str(Path(asking.run_dir) / "answers.sqlite")
    known = answers(asking.run_dir)
    later = elsewhere(
        asking, "later", questions=replace(asking.questions, ledger=shared, start=0, per_epoch=3)
    )
    history = run_training(later).history
    fresh = answers(asking.run_dir)[len(known) :]
    assert len(fresh) == history[-1]["questions_total"] <= 9
    assert not {frozenset(pair) for _, *pair, _ in fresh} & {
        frozenset(pair) for _, *pair, _ in known
    }


def test_a_second_trainer_on_one_ledger_is_refused(asking: RunConfig, tmp_path: Path) -> None:
    shared = replace(
        asking, questions=replace(asking.questions, ledger=str(tmp_path / "shared.sqlite"))
    )
    with (
        Ledger.open(str(tmp_path / "shared.sqlite")),
        pytest.raises(LedgerError, match="in use by process"),
    ):
        run_training(shared)


@pytest.mark.slow
def test_questions_can_be_turned_on_and_off_on_resume(
    asking: RunConfig,
) -> None:
    run_training(replace(asking, ask="none", epochs=1))
    run_training(replace(asking, epochs=2), resume=True)
    run_training(replace(asking, ask="none", epochs=3), resume=True)
    history = run_training(
        replace(asking, ask="ucal", oracle=OracleConfig(error=0.1), epochs=4), resume=True
    ).history
    assert (
        0
        < history[2]["questions_total"]
        <= history[4]["questions_total"]
        == len(answers(asking.run_dir))
    )


@pytest.fixture
def copied(asking: RunConfig, tmp_path: Path) -> RunConfig:
    """The tiny set as files that a test may change."""
    root = tmp_path / "MSMT17_V1"
    shutil.copytree(cached_synthetic(SYNTHETIC), root)
    return replace(asking, dataset="msmt17", data_root=str(root))


def test_renamed_images_are_found_by_content_and_removed_ones_are_counted(
    copied: RunConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    run_training(copied)
    ledger = str(Path(copied.run_dir) / "answers.sqlite")
    *_, (_, left, right, _) = answers(copied.run_dir)
    with Ledger.open(ledger, write=False) as opened:
        in_all = len(opened.answers())
    lists = [Path(copied.data_root) / f"list_{split}.txt" for split in ("train", "val")]
    names = {left: left.replace("_0.jpg", "_9.jpg"), right: None}
    for path in lists:
        lines = path.read_text().splitlines()
        kept = []
        for line in lines:
            name, _, number = line.partition(" ")
            full = next((n for n in names if n.endswith(name)), None)
            if full is None:
                kept.append(line)
            elif names[full] is not None:
                kept.append(f"{name.replace('_0.jpg', '_9.jpg')} {number}")
        path.write_text("\n".join(kept) + "\n")
    moved = Path(copied.data_root) / left
    moved.rename(moved.with_name(moved.name.replace("_0.jpg", "_9.jpg")))
    capsys.readouterr()
    later = elsewhere(copied, "later", questions=replace(copied.questions, ledger=ledger), epochs=2)
    run_training(later)
    said = capsys.readouterr().out
    about_removed = sum(right in (a, b) for _, a, b, _ in answers(copied.run_dir)[:in_all])
    assert f"{in_all} answers in" in said
    assert f"{about_removed} of them are about images that are not in this set" in said


@pytest.mark.slow
def test_a_ledger_of_another_image_set_is_refused_with_both_names(
    asking: RunConfig, copied: RunConfig
) -> None:
    run_training(asking)
    other = elsewhere(
        copied,
        "other",
        questions=replace(copied.questions, ledger=f"{asking.run_dir}/answers.sqlite"),
    )
    with pytest.raises(LedgerError, match=r"synthetic.*msmt17|msmt17.*synthetic"):
        run_training(other)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": "supervised"}, "`method` supervised asks no questions"),
        ({"annotator": "replay"}, "`questions.replay`"),
        ({"oracle": OracleConfig(error=1.5)}, "`oracle.error`"),
        (
            {"questions": QuestionConfig(budget=-1)},
            "`questions.budget`: got -1, expected 0 or more",
        ),
        (
            {"questions": QuestionConfig(merge_share=2.0)},
            "`questions.merge_share`: got 2.0, expected 0 to 1",
        ),
        ({"questions": QuestionConfig(ledger="/dev/null/all.sqlite")}, "/dev/null/all.sqlite"),
    ],
)
def test_questions_that_cannot_work_are_refused_in_one_line(
    asking: RunConfig, change: dict, message: str
) -> None:
    with pytest.raises(UserError) as refused:
        run_training(replace(asking, **change))
    assert message in str(refused.value)
    assert len(str(refused.value).splitlines()) == 1


def test_an_oracle_for_unlabelled_images_is_refused(asking: RunConfig, tmp_path: Path) -> None:
    for i in range(20):
        Image.fromarray(np.full((40, 20, 3), 12 * i, np.uint8)).save(tmp_path / f"{i}.png")
    with pytest.raises(UserError, match="terminal asks one person"):
        run_training(replace(asking, dataset="folder", data_root=str(tmp_path)))


@pytest.mark.parametrize("gone", ["missing", pytest.param("empty", marks=pytest.mark.slow)])
def test_a_missing_ledger_under_a_checkpoint_with_answers_is_refused(
    asking: RunConfig, gone: str
) -> None:
    asking = replace(asking, questions=replace(asking.questions, start=0, per_epoch=5))
    run_training(replace(asking, epochs=1))
    ledger = Path(str(asking.run_dir)) / "answers.sqlite"
    ledger.unlink()
    if gone == "empty":
        ledger.touch()
    with pytest.raises(LedgerError, match="has 5 answers") as refused:
        run_training(asking, resume=True)
    assert str(ledger) in str(refused.value) and ledger.exists() == (gone == "empty")
    if gone == "missing":
        history = run_training(replace(asking, ask="none"), resume=True).history
        assert history[-1]["epoch"] == asking.epochs


def test_a_damaged_name_of_the_run_is_refused(asking: RunConfig) -> None:
    run_training(replace(asking, epochs=1))
    for content in (b"", b"\xff\xfe", b"x" * 32):
        (Path(str(asking.run_dir)) / "run_name").write_bytes(content)
        with pytest.raises(UserError, match="run_name does not hold the name"):
            run_training(asking, resume=True)


def test_a_set_whose_names_are_not_utf_8_is_asked_about_and_resumed(
    asking: RunConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(0)
    for who in range(6):
        parent = os.fsencode(tmp_path) + b"/set/train/\xd0\xd0%d" % who
        os.makedirs(parent)
        for shot in range(4):
            pixels = rng.integers(0, 255, (48, 24, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(os.fsdecode(parent + b"/\xd5\xd5_c%d_\n.png" % shot))
    with open(os.fsencode(tmp_path) + b"/set/train/\xd0\xd00/\x1b[2J\xff_c1.png", "wb") as bad:
        bad.write(b"no image")
    asking = replace(asking, dataset="folder", data_root=str(tmp_path / "set"), evaluate_every=0)
    asking = replace(asking, questions=replace(asking.questions, start=0, per_epoch=4))
    run_training(replace(asking, epochs=1))
    run_training(asking, resume=True)
    told = capsys.readouterr().out
    assert r"\xd0\xd00/\x1b[2J\xff_c1.png: not an image" in told and "\x1b" not in told
    asked = answers(asking.run_dir)
    assert len(asked) == 12 and all("\udcd0\udcd0" in str(left) for _, left, _, _ in asked)
