"""The exported identities of whole runs: complete, repeatable, and in agreement with the ledger."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from fastreid_al import cli
from fastreid_al.answers import Closure, ImageKeys, Ledger, Verdict
from fastreid_al.config import ExportConfig, OracleConfig, QuestionConfig, RunConfig
from fastreid_al.data import load
from fastreid_al.distributed.world import World
from fastreid_al.engine import Interrupted
from fastreid_al.errors import CheckpointError, LedgerError, UserError
from fastreid_al.labels.table import COLUMNS
from fastreid_al.runs import export_labels as export_module
from fastreid_al.runs import run_training, train
from fastreid_al.runs.export import export_run
from fastreid_al.runs.find_labels import load_saved
from fastreid_al.synthetic.dataset import cached_synthetic
from tests.support.ledgers import put
from tests.support.process_pool import Pool
from tests.support.tiny import SYNTHETIC, elsewhere, stop_after

Export = Callable[..., Path]
Rows = list[dict[str, str]]


@pytest.fixture
def crops(tmp_path: Path) -> Path:
    """The training images of the tiny set in one folder, without identities."""
    folder = tmp_path / "crops"
    folder.mkdir()
    for path in sorted((cached_synthetic(SYNTHETIC) / "train").rglob("*.jpg")):
        shutil.copy(path, folder)
    return folder


@pytest.fixture
def unlabelled(config: RunConfig, crops: Path) -> RunConfig:
    """A run of one epoch on them."""
    return replace(config, dataset="folder", data_root=str(crops), epochs=1, evaluate_every=0)


@pytest.fixture
def asking(config: RunConfig) -> RunConfig:
    questions = QuestionConfig(start=1, per_epoch=15, k_max_rule="root")
    return replace(config, ask="gain", questions=questions, evaluate_every=0)


@pytest.fixture
def export(tmp_path: Path) -> Export:
    """Export a run into a file or folder of a name, and return its path."""

    def export(run: str | Path | None, name: str = "out.csv", what: str = "labels", **more: object):
        out = tmp_path / name
        export_run(ExportConfig(str(run), what, str(out), device="cpu", **more))  # type: ignore[arg-type]
        return out

    return export


def rows(table: Path) -> Rows:
    with open(table, encoding="utf-8", errors="surrogateescape", newline="") as file:
        return list(csv.DictReader(file))


def keys_of(run: RunConfig) -> ImageKeys:
    images = load(run.dataset, run.data_root, synthetic=run.synthetic, verbose=False)
    names = [record.path.relative_to(images.root).as_posix() for record in images.train]
    return ImageKeys(images.name, names, [""] * len(names))


def check_answers(table: Rows, run: RunConfig) -> Closure:
    """Each must-link component has one identity, and each cannot-link pair two."""
    keys = keys_of(run)
    with Ledger.open(f"{run.run_dir}/answers.sqlite", keys, write=False) as ledger:
        closure = Closure.replay(ledger.answers())
    identity = {row["path"]: row["identity"] for row in table}
    for root, images in closure.components().items():
        of_root = {identity[keys.names[image]] for image in images}
        assert len(of_root) == 1
        assert len(images) == 1 or of_root != {"-1"}
        for other in closure.cannot_links(root):
            of_other = {identity[keys.names[i]] for i in closure.components()[other]}
            assert not (of_root & of_other) - {"-1"}
    return closure


def test_a_run_writes_the_table_that_an_export_gives(asking: RunConfig, export: Export) -> None:
    run_training(asking)
    first = export(asking.run_dir, "first.csv")
    assert first.read_bytes() == Path(str(asking.run_dir), "labels.csv").read_bytes()
    assert first.read_bytes() == export(asking.run_dir, "second.csv").read_bytes()
    table = rows(first)
    assert tuple(table[0]) == COLUMNS and len(table) == SYNTHETIC.train_images
    closure = check_answers(table, asking)
    assert closure.answers()
    sizes: dict[str, int] = {}
    for row in table:
        sizes[row["identity"]] = sizes.get(row["identity"], 0) + 1
    for row in table:
        alone = row["identity"] == "-1"
        assert row["cluster_size"] == ("1" if alone else str(sizes[row["identity"]]))
        assert 0 <= float(row["confidence"]) <= 1
        assert (row["margin"] == "") == alone
        assert row["source"] in ("model", "implied", "answered")
    assert {row["source"] for row in table if row["identity"] != "-1"} > {"answered"}


@pytest.mark.parametrize("error", [0.1, None])
def test_answers_that_may_be_wrong_are_weighed(
    asking: RunConfig, export: Export, error: float | None
) -> None:
    questions = replace(asking.questions, expected_error=error)
    asking = replace(asking, questions=questions, oracle=OracleConfig(error=0.2))
    run_training(asking)
    made = Path(str(asking.run_dir), "labels.csv").read_bytes()
    assert export(asking.run_dir).read_bytes() == made


def test_linkage_takes_the_answers_as_cuts_and_mirror_images_count(
    asking: RunConfig, export: Export
) -> None:
    cluster = replace(asking.cluster, algorithm="linkage", join=0.1, camera_norm="centre")
    engine = replace(asking.engine, flip_features=True)
    asking = replace(asking, cluster=cluster, engine=engine)
    run_training(asking)
    table = export(asking.run_dir)
    assert table.read_bytes() == Path(str(asking.run_dir), "labels.csv").read_bytes()
    check_answers(rows(table), asking)


def test_new_answers_count_while_another_process_writes_them(
    unlabelled: RunConfig, export: Export
) -> None:
    run_training(unlabelled)
    before = rows(export(unlabelled.run_dir, "before.csv"))
    alone = [i for i, row in enumerate(before) if row["identity"] == "-1"][:2]
    with Ledger.open(f"{unlabelled.run_dir}/answers.sqlite", keys_of(unlabelled)) as ledger:
        put(ledger, *alone)
        after = rows(export(unlabelled.run_dir, "after.csv"))
        first, second = (after[i] for i in alone)
        assert first["identity"] == second["identity"] != "-1"
        assert first["source"] == "answered" and first["confidence"] == "1.0000"
        event = put(ledger, *alone, Verdict.DIFFERENT)
        apart = rows(export(unlabelled.run_dir, "apart.csv"))
        assert [apart[i]["review"] for i in alone] == ["yes", "yes"]
        ledger.undo(event, "anna")
    again = export(unlabelled.run_dir, "again.csv")
    assert rows(again) == after
    # A new identity has a number that no other ever had.
    used = {row["identity"] for row in before}
    assert first["identity"] not in used
    assert int(first["identity"]) > max(map(int, used))


def test_images_that_cannot_be_read_have_a_row(
    unlabelled: RunConfig, crops: Path, export: Export, capsys: pytest.CaptureFixture[str]
) -> None:
    run_training(unlabelled)
    broken = sorted(crops.iterdir())[3]
    broken.write_bytes(b"broken")
    capsys.readouterr()
    table = rows(export(unlabelled.run_dir))
    assert len(table) == SYNTHETIC.train_images
    row = next(row for row in table if row["path"] == broken.name)
    assert list(row.values())[1:] == ["-1", row["camera"], "0", "0.0000", "", "", "no"]
    assert "1 train image(s) could not be read" in capsys.readouterr().out


def test_names_of_any_bytes_are_exported(
    unlabelled: RunConfig, crops: Path, export: Export
) -> None:
    odd = ["a,b.jpg", 'c"d.jpg', "e\nf.jpg", "g\udce9.jpg"]
    for path, name in zip(sorted(crops.iterdir()), odd, strict=False):
        path.rename(crops / name)
    run_training(unlabelled)
    assert set(odd) < {row["path"] for row in rows(export(unlabelled.run_dir))}


def test_moved_and_renamed_images_keep_their_identities(
    unlabelled: RunConfig, crops: Path, tmp_path: Path, export: Export
) -> None:
    run_training(unlabelled)
    before = rows(export(unlabelled.run_dir, "before.csv"))
    moved = tmp_path / "elsewhere"
    crops.rename(moved)
    with pytest.raises(UserError, match=r"were moved, name their folder with `data_root`"):
        export(unlabelled.run_dir, "missing.csv")
    # Other names, in another order.
    for number, path in enumerate(sorted(moved.iterdir(), reverse=True)):
        path.rename(moved / f"{number:03d}_{path.name}")
    after = rows(export(unlabelled.run_dir, "after.csv", data_root=str(moved)))
    old = {row["path"]: row["identity"] for row in before}
    kept = [row["identity"] == old[row["path"].split("_", 1)[1]] for row in after]
    assert len(kept) == SYNTHETIC.train_images and sum(kept) > 0.9 * len(kept)
    # The order of the images changes the clusters at their edges at most, not the numbers.
    assert {row["identity"] for row in after} <= {row["identity"] for row in before}


def test_other_images_than_those_of_the_run_are_noticed(
    unlabelled: RunConfig, crops: Path, export: Export, capsys: pytest.CaptureFixture[str]
) -> None:
    run_training(unlabelled)
    Image.new("RGB", (24, 48), "red").save(crops / "new.jpg")
    table = rows(export(unlabelled.run_dir))
    assert any(row["path"] == "new.jpg" for row in table)
    assert "the run was not trained on 1 of 65 images" in capsys.readouterr().out
    for number, path in enumerate(sorted(crops.iterdir())):
        Image.new("RGB", (24, 48), (number, 2 * number, 3)).save(path)
    with pytest.raises(UserError, match="the run was trained on none of its 65 images"):
        export(unlabelled.run_dir, "other.csv")


def test_a_set_with_one_readable_image_has_no_identity(
    unlabelled: RunConfig, crops: Path, export: Export
) -> None:
    run_training(unlabelled)
    for path in sorted(crops.iterdir())[1:]:
        path.write_bytes(b"broken")
    assert {row["identity"] for row in rows(export(unlabelled.run_dir))} == {"-1"}
    sorted(crops.iterdir())[0].write_bytes(b"broken")
    with pytest.raises(UserError, match="no training image can be read"):
        export(unlabelled.run_dir, "none.csv")


def test_one_identity_of_most_images_is_a_warning(
    unlabelled: RunConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    n = SYNTHETIC.train_images
    run = replace(unlabelled, method="nnct")
    run_training(run)
    assert "one identity holds" not in capsys.readouterr().out
    cluster = replace(run.cluster, eps=0.97)
    run_training(replace(run, cluster=cluster, run_dir=f"{run.run_dir}-wide"))
    assert re.search(rf"one identity holds \d+ of {n} images", capsys.readouterr().out)


def test_supervised_runs_export_the_true_identities(config: RunConfig, export: Export) -> None:
    config = replace(config, method="supervised", epochs=1, evaluate_every=0)
    run_training(config)
    table = rows(export(config.run_dir))
    images = load("synthetic", synthetic=config.synthetic, verbose=False)
    assert [int(row["identity"]) for row in table] == [r.identity for r in images.train]
    assert {row["source"] for row in table} == {"given"}
    assert {row["confidence"] for row in table} == {"1.0000"}


def test_nnct_runs_are_clustered_by_the_settings_of_ucal(
    config: RunConfig, export: Export, capsys: pytest.CaptureFixture[str]
) -> None:
    config = replace(config, method="nnct", epochs=1, evaluate_every=0)
    run_training(config)
    table = export(config.run_dir)
    assert "nnct has no clusters" in capsys.readouterr().out
    assert table.read_bytes() == Path(str(config.run_dir), "labels.csv").read_bytes()


def test_a_run_that_was_stopped_in_its_first_epoch_is_exported(
    config: RunConfig, export: Export, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        stop_after(patch, 2)
        with pytest.raises(Interrupted):
            run_training(config)
    assert not Path(str(config.run_dir), "labels.csv").exists()
    assert len(rows(export(config.run_dir))) == SYNTHETIC.train_images


def _train_on_ranks(world: World, config: RunConfig, cache: str) -> None:
    os.environ["FASTREID_AL_CACHE"] = cache
    train.draw_curves = lambda *_: None  # type: ignore[assignment]
    run_training(config, world=world)


def test_a_run_of_several_ranks_is_exported(pool: Pool, config: RunConfig, export: Export) -> None:
    config = replace(config, epochs=1, evaluate_every=0)
    pool.run(_train_on_ranks, 2, config, os.environ["FASTREID_AL_CACHE"])
    folder = Path(str(config.run_dir))
    assert rows(folder / "labels.csv") == rows(export(folder))
    assert len(rows(folder / "labels.csv")) == SYNTHETIC.train_images
    saved = load_saved(folder)
    assert saved.threshold is not None and len(saved.digests) == SYNTHETIC.train_images


def test_a_run_without_a_checkpoint_is_refused(config: RunConfig, export: Export) -> None:
    run_training(replace(config, epochs=1))
    Path(str(config.run_dir), "last.pt").unlink()
    with pytest.raises(CheckpointError, match="the run has not saved a checkpoint yet"):
        export(config.run_dir)


def test_an_output_that_exists_is_refused_before_anything_is_computed(
    unlabelled: RunConfig, tmp_path: Path, export: Export, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_training(unlabelled)
    (tmp_path / "mine.csv").write_text("mine")
    (tmp_path / "folder").mkdir()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "photo.jpg").touch()

    def fail(*_: object, **__: object) -> None:
        raise AssertionError("computed")

    with monkeypatch.context() as patch:
        patch.setattr(export_module, "load_trained", fail)
        with pytest.raises(UserError, match=r"exists: name another file, or replace it with"):
            export(unlabelled.run_dir, "mine.csv")
        for force in (False, True):
            with pytest.raises(UserError, match=r"is a folder; name a file"):
                export(unlabelled.run_dir, "folder", force=force)
        with pytest.raises(UserError, match=r"holds photo.jpg, which no export wrote"):
            export(unlabelled.run_dir, "full", "imagefolder", force=True)
        with pytest.raises(UserError, match="is not a folder"):
            export(unlabelled.run_dir, "mine.csv", "market1501", force=True)
        with pytest.raises(UserError, match=r"`like`: .* is not a file"):
            export(unlabelled.run_dir, like=str(tmp_path / "missing.csv"))
        with pytest.raises(UserError, match="not a table of identities"):
            export(unlabelled.run_dir, like=str(tmp_path / "mine.csv"))
    assert (tmp_path / "mine.csv").read_text() == "mine"
    assert len(rows(export(unlabelled.run_dir, "mine.csv", force=True))) == SYNTHETIC.train_images


def test_a_missing_ledger_is_one_line(asking: RunConfig, export: Export) -> None:
    run_training(replace(asking, epochs=2))
    ledger = Path(str(asking.run_dir), "answers.sqlite")
    ledger.rename(ledger.with_suffix(".away"))
    with pytest.raises(LedgerError, match=r"there is no ledger .* which held .* answers"):
        export(asking.run_dir)


def test_the_numbers_of_another_table_are_kept(unlabelled: RunConfig, export: Export) -> None:
    run_training(unlabelled)
    table = export(unlabelled.run_dir)
    changed = table.with_name("changed.csv")
    text = table.read_text().splitlines()
    moved = [line.split(",") for line in text[1:]]
    for line in moved:
        line[1] = str(int(line[1]) + 500) if line[1] != "-1" else "-1"
    changed.write_text("\n".join([text[0], *map(",".join, moved)]) + "\n")
    kept = export(unlabelled.run_dir, "kept.csv", like=str(changed))
    assert kept.read_text() == changed.read_text()


@pytest.mark.parametrize("what", ["imagefolder", "market1501", "fiftyone", "label-studio"])
def test_every_form_of_an_unlabelled_run_is_written(
    unlabelled: RunConfig, export: Export, what: str
) -> None:
    run_training(unlabelled)
    table = rows(export(unlabelled.run_dir))
    clustered = sum(row["identity"] != "-1" for row in table)
    out = export(unlabelled.run_dir, "form", what, copy="link")
    if what == "fiftyone":
        assert len(rows(out)) == len(table)
    elif what == "label-studio":
        assert len(json.loads(out.read_text())) == len(table)
    else:
        named = {"imagefolder": clustered, "market1501": len(table)}
        assert len(list(out.rglob("*.jpg"))) == named[what]
        # Written again over the first.
        export(unlabelled.run_dir, "form", what, force=True)


def test_folders_are_not_written_among_the_images(
    unlabelled: RunConfig, crops: Path, export: Export
) -> None:
    run_training(unlabelled)
    with pytest.raises(UserError, match="would be read as images of the set"):
        export(unlabelled.run_dir, "crops/out", "imagefolder")
    assert not (crops / "out").exists()


def test_the_command_line_writes_the_table(
    unlabelled: RunConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_training(unlabelled)
    out = tmp_path / "labels.csv"
    words = ["export", str(unlabelled.run_dir), "--what", "labels", "--out", str(out)]
    cli.main(words)
    assert len(rows(out)) == SYNTHETIC.train_images
    assert f"wrote {out}" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        cli.main(words)
    assert "replace it with --force" in capsys.readouterr().err


def test_a_failure_of_the_table_does_not_lose_the_run(
    unlabelled: RunConfig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> None:
        raise torch.OutOfMemoryError("too little memory")

    monkeypatch.setattr(train, "find_labels", fail)
    finished = run_training(unlabelled)
    assert (finished.folder / "last.pt").exists()
    assert not (finished.folder / "labels.csv").exists()
    assert "labels.csv could not be made (too little memory)" in capsys.readouterr().out


def test_a_resumed_run_keeps_the_numbers(unlabelled: RunConfig) -> None:
    run_training(unlabelled)
    table = Path(str(unlabelled.run_dir), "labels.csv")
    first = table.read_bytes()
    text = table.read_text().replace(",0,", ",77,")
    table.write_text(text)
    run_training(unlabelled, resume=True)
    assert table.read_text().splitlines()[0] == first.decode().splitlines()[0]
    numbers = {row["identity"] for row in rows(table)}
    assert "77" in numbers and "0" not in numbers


def test_the_number_of_an_identity_that_vanished_is_not_given_again(
    unlabelled: RunConfig, export: Export
) -> None:
    run_training(unlabelled)
    table = Path(str(unlabelled.run_dir), "labels.csv")
    count = len({row["identity"] for row in rows(table)} - {"-1"})
    alone = [i for i, row in enumerate(rows(table)) if row["identity"] == "-1"][:4]
    with Ledger.open(f"{unlabelled.run_dir}/answers.sqlite", keys_of(unlabelled)) as ledger:
        event = put(ledger, *alone[:2])
        export(unlabelled.run_dir, "run/labels.csv", force=True)
        assert rows(table)[alone[0]]["identity"] == str(count)
        ledger.undo(event, "anna")
        export(unlabelled.run_dir, "run/labels.csv", force=True)
        assert rows(table)[alone[0]]["identity"] == "-1"
        put(ledger, *alone[2:])
    for name in ("one.csv", "two.csv"):
        assert rows(export(unlabelled.run_dir, name))[alone[2]]["identity"] == str(count + 1)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"next_identity": "x"}', "\0"])
def test_a_damaged_number_of_the_next_identity_is_ignored(
    unlabelled: RunConfig, export: Export, content: str
) -> None:
    run_training(unlabelled)
    Path(str(unlabelled.run_dir), "labels.json").write_text(content)
    made = Path(str(unlabelled.run_dir), "labels.csv").read_bytes()
    assert export(unlabelled.run_dir).read_bytes() == made


def test_a_folder_with_a_table_and_no_run_is_refused(unlabelled: RunConfig) -> None:
    folder = Path(str(elsewhere(unlabelled, "mine").run_dir))
    folder.mkdir()
    (folder / "labels.csv").write_text("mine")
    with pytest.raises(CheckpointError, match=r"holds labels.csv, which a run would overwrite"):
        run_training(elsewhere(unlabelled, "mine"))
