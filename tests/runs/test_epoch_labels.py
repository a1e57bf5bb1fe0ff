"""The labels of an epoch that a run kept, beside the answers that they were made from."""

from __future__ import annotations

import csv
import io
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fastreid_al import ledger as command
from fastreid_al.answers import Closure, Ledger, Verdict
from fastreid_al.config import QuestionConfig, RunConfig
from fastreid_al.engine.checkpoint import load_checkpoint
from fastreid_al.errors import UserError
from fastreid_al.runs import run_training


def exported(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[dict[str, int], str]:
    """Identity by path, and the line on standard error."""
    capsys.readouterr()
    command.main(["export", *words, "--what", "labels"])
    written = capsys.readouterr()
    rows = csv.DictReader(io.StringIO(written.out))
    return {row["path"]: int(row["identity"]) for row in rows}, written.err


def test_the_labels_of_an_epoch_are_exported_with_the_answers_they_follow(
    config: RunConfig, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    questions = QuestionConfig(start=1, per_epoch=15)
    config = replace(config, epochs=3, ask="gain", questions=questions)
    run = str(run_training(config).folder)
    last, line = exported(capsys, run)
    saved = load_checkpoint(Path(run) / "last.pt")
    assert list(last.values()) == saved["method"]["labels"].tolist()
    assert line.startswith("epoch 3: ") and "0 are not" in line
    earlier, line = exported(capsys, run, "--epoch", "2")
    assert earlier.keys() == last.keys() and earlier != last
    # They agree with what follows from the answers of that epoch, and not with later ones.
    with Ledger.open(f"{run}/answers.sqlite", write=False) as ledger:
        names = ledger.images()
        event = int(line.split("up to event ")[1].split(";")[0])
        assert 0 < event < ledger.last_event()
        closure = Closure.replay(ledger.answers(as_of=event))
    components: dict[int, set[int]] = defaultdict(set)
    for root, images in closure.components().items():
        components[root] = {earlier[names[image]] for image in images}
        assert len(components[root]) == 1
    for root, found in components.items():
        for other in closure.cannot_links(root):
            assert found == {-1} or found != components[other]
    with pytest.raises(UserError, match="no labels of epoch 1; it keeps those of epochs 2 to 3"):
        exported(capsys, run, "--epoch", "1")
    out = tmp_path / "labels.jsonl"
    assert exported(capsys, run, "--format", "jsonl", "--out", str(out))[0] == {}
    assert out.read_text().count("identity") == len(last)


def test_labels_of_another_ledger_are_refused(
    config: RunConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    questions = QuestionConfig(start=1, per_epoch=4)
    config = replace(config, epochs=2, ask="random", questions=questions)
    run = run_training(config).folder
    (run / "answers.sqlite").unlink()
    Ledger.open(str(run / "answers.sqlite")).close()
    with pytest.raises(UserError, match="ends at event 0"):
        exported(capsys, str(run))
    with pytest.raises(UserError, match="is not the folder of a run"):
        exported(capsys, str(run / "answers.sqlite"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--what", "labels", "--as-of", "3"], "--what labels takes --epoch"),
        (["--what", "closure", "--epoch", "3"], "set --what to labels"),
    ],
)
def test_options_of_another_export_are_refused(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        command.main(["export", "runs/mine", *words])
    assert message in capsys.readouterr().err


def test_an_answer_that_the_labels_do_not_follow_is_counted(tmp_path: Path) -> None:
    from fastreid_al.engine.epoch_labels import EpochLabels
    from fastreid_al.runs.epoch_labels import Agreement, agreement_with
    from tests.support.ledgers import keys, put

    url = str(tmp_path / "answers.sqlite")
    with Ledger.open(url, keys(6)) as ledger:
        for pair, verdict in (((0, 1), "same"), ((2, 3), "different"), ((4, 5), "same")):
            event = put(ledger, *pair, Verdict(verdict))
        put(ledger, 1, 5, Verdict.DIFFERENT)
    names = [f"train/{i}.jpg" for i in range(6)]
    found = EpochLabels(names, torch.tensor([0, 0, 1, 2, 1, -1]), event)
    assert agreement_with(url, found) == Agreement(2, 1)
