"""The page of a run, also of one that lacks answers, queries, epochs or images."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
import torch

from fastreid_al.answers import Closure, ImageKeys, Ledger, Verdict
from fastreid_al.config import (
    OracleConfig,
    QuestionConfig,
    ReportConfig,
    RunConfig,
)
from fastreid_al.engine.network import Network
from fastreid_al.errors import CheckpointError, LedgerError, UserError
from fastreid_al.report import main as report_main
from fastreid_al.reports.results import RunResults
from fastreid_al.runs import run_training, train
from fastreid_al.runs.report import write_report
from fastreid_al.runs.trained import config_of_run
from tests.support.image_sets import put_noise
from tests.support.ledgers import put
from tests.support.pages import Page
from tests.support.tiny import tiny_config


@pytest.fixture(scope="module")
def finished(
    _cache: None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[RunConfig, RunConfig]]:
    """Two runs of two epochs with questions to an oracle that errs, of different seeds."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "draw_curves", lambda *_: None)
        runs = []
        for seed in (0, 1):
            config = replace(
                tiny_config(folder / f"run{seed}"),
                epochs=2,
                seed=seed,
                ask="random",
                questions=QuestionConfig(start=1, per_epoch=40),
                oracle=OracleConfig(error=0.3),
            )
            run_training(config)
            runs.append(config)
        contradict(folder / "run0" / "answers.sqlite")
        yield runs[0], runs[1]


def contradict(file: Path) -> None:
    """Add an answer of a person that contradicts what follows from two others."""
    with Ledger.open(str(file), write=False) as ledger:
        closure = Closure.replay(ledger.answers())
        paths = ledger.images()
    joined = next(images for images in closure.components().values() if len(images) > 2)
    pairs = combinations(joined, 2)
    a, b = next(pair for pair in pairs if not closure.answered(*pair))
    names = list(paths.values())
    rows = [names.index(paths[image]) for image in (a, b)]
    with Ledger.open(str(file), ImageKeys("synthetic", names, [])) as ledger:
        put(ledger, *rows, Verdict.DIFFERENT, annotator="anna <b>", epoch=2)


def made(config: RunConfig, tmp_path: Path, **options: object) -> Page:
    """The page of a run."""
    out = tmp_path / "report.html"
    settings = ReportConfig(str(config.run_dir), str(out))
    write_report(replace(settings, **options))  # type: ignore[arg-type]
    return Page(out.read_text())


def assert_complete(page: Page) -> None:
    """What holds for each page: it loads nothing, its headings are in order, pictures have text."""
    levels = [level for level, _ in page.headings]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(b - a <= 1 for a, b in pairwise(levels))
    tags = {tag for tag, _ in page.attributes}
    assert {"main", "nav", "header", "footer"} <= tags
    assert not tags & {"script", "iframe", "img", "object", "embed", "form"}
    for tag, attributes in page.attributes:
        assert not any(name.startswith("on") for name in attributes)
        for name in ("href", "src"):
            if attributes.get(name) is not None:
                assert str(attributes[name]).startswith(("#", "data:"))
        if attributes.get("role") == "img" and tag != "svg":
            assert attributes["aria-label"]
    assert re.findall(r"url\((?!data:image/webp;base64,)", page.source) == []
    assert "default-src 'none'; img-src data:; style-src 'unsafe-inline'" in page.source
    ids = [a["id"] for _, a in page.attributes if a.get("id")]
    assert len(ids) == len(set(ids))
    links = {str(a["href"])[1:] for t, a in page.attributes if t == "a"}
    assert links <= set(ids)


def test_a_run_with_questions_shows_every_section(
    finished: tuple[RunConfig, RunConfig], tmp_path: Path
) -> None:
    config = finished[0]
    page = made(config, tmp_path, queries=2)
    assert_complete(page)
    last = json.loads((Path(str(config.run_dir)) / "metrics.jsonl").read_text().splitlines()[-1])
    summary = page.section("Summary")
    assert "2 of 2" in summary and "64 train, 12 query, 36 gallery" in summary
    assert f"last, epoch 2 {100 * last['mAP']:.1f}" in summary
    assert f"{last['questions_total']} , strategy random".replace(" ,", ",") in summary
    cost = page.section("Cost of the answers")
    assert f"oracle {last['questions_total']}" in cost and "anna <b> 1" in cost
    clusters = page.section("Clusters, least coherent first")
    found = [float(x) for x in re.findall(r"coherence (\d\.\d+)", clusters)]
    assert found and found == sorted(found)
    assert re.search(r"By the true identities \d+ of \d+ clusters mix people", clusters)
    queries = page.section("Queries")
    assert [h for h in ("Worst", "Median", "Best") if f"{h} queries" in queries] == [
        "Worst",
        "Median",
        "Best",
    ]
    assert queries.count("average precision") >= 6
    for word in ("\u2713", "\u2717", "right", "wrong", "ignored"):
        assert word in queries
    questions = page.section("Questions")
    assert f"All {last['questions_total'] + 1} answers of the ledger" in questions
    assert "What follows from the answers" in questions and "Proof, events" in questions
    assert "contradicts what follows from" in questions
    assert re.search(
        r"by oracle, \d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC, epoch 2, (split|merge)", questions
    )
    settings = page.section("Settings and versions")
    assert "questions.per_epoch 40" in settings and "torch" in settings


def test_two_runs_are_compared_by_settings_curves_and_queries(
    finished: tuple[RunConfig, RunConfig], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "both.html"
    folders = [str(config.run_dir) for config in finished]
    report_main([*folders, "--out", str(out), "--queries", "1", "--clusters", "3"])
    assert "both.html" in capsys.readouterr().out
    page = Page(out.read_text())
    assert_complete(page)
    differences = page.section("Settings that differ")
    assert "seed 0 1" in differences and "epochs" not in differences
    scores = page.section("Difference of scores")
    means = [
        100 * json.loads((Path(f) / "metrics.jsonl").read_text().splitlines()[-1])["mAP"]
        for f in folders
    ]
    found = re.search(r"mAP ([\d.]+) ([\d.]+) ([+-][\d.]+) ([+-][\d.]+) to ([+-][\d.]+)", scores)
    assert found is not None
    a, b, mean, low, high = map(float, found.groups())
    assert (a, b) == pytest.approx(means, abs=0.051)
    assert mean == pytest.approx(means[1] - means[0], abs=0.0051)
    assert low <= mean <= high
    assert "12 queries" in scores
    changed = page.section("Queries that changed most")
    assert changed.count("points of average precision") in (1, 2)
    assert "Summary of run0" in page.text and "Summary of run1" in page.text
    # Both runs show the same images: each is embedded once.
    rules = re.findall(r"base64,([^)]*)", page.source)
    assert len(rules) == len(set(rules))


def test_a_run_without_a_checkpoint_is_compared_by_what_it_has(
    finished: tuple[RunConfig, RunConfig], tmp_path: Path
) -> None:
    early = tmp_path / "run0"
    early.mkdir()
    for name in ("config.json", "metrics.jsonl"):
        shutil.copy(Path(str(finished[0].run_dir)) / name, early)
    page = made(finished[0], tmp_path, other=str(early), clusters=1, queries=1, questions=1)
    assert_complete(page)
    assert "Both runs have the same settings." in page.section("Settings that differ")
    assert "The runs have no ranked query in common." in page.section("Difference of scores")
    # Folders of one name are told apart by the folder above.
    above = Path(str(finished[0].run_dir)).parent.name
    assert f"{above}/run0 and {tmp_path.name}/run0" in page.text


def test_a_page_without_names_and_faces(
    finished: tuple[RunConfig, RunConfig], tmp_path: Path
) -> None:
    plain = made(finished[0], tmp_path)
    page = made(finished[0], tmp_path, anonymise=True, force=True)
    assert_complete(page)
    text = page.text
    assert "annotator 2" in text and "by oracle" not in text and "anna" not in text
    assert "by oracle" in plain.text
    assert str(Path(str(finished[0].run_dir)).parent) not in text
    crops = [set(re.findall(r"base64,([^)]*)", p.source)) for p in (plain, page)]
    assert len(crops[0]) > 50 and not crops[0] & crops[1]


def test_a_run_without_questions_and_clusters_has_a_page(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # No image is in a cluster.
    monkeypatch.setattr(
        "fastreid_al.runs.report.labels_of_run",
        lambda run, images, found, reporter: torch.full((len(found.records),), -1),
    )
    run_training(replace(config, epochs=1))
    page = made(config, tmp_path)
    assert_complete(page)
    for line in (
        "No question was asked.",
        "There are no clusters to show.",
        "No cluster has three images or more.",
        "There are no two clusters to compare.",
        "There are no answers to show.",
    ):
        assert line in page.text


def test_a_run_that_was_stopped_before_its_first_epoch_has_a_page(
    config: RunConfig, tmp_path: Path
) -> None:
    finished = run_training(replace(config, epochs=1))
    for name in ("last.pt", "best.pt"):
        (finished.folder / name).unlink()
    (finished.folder / "metrics.jsonl").write_text('{"epoch": 0, "mAP": 0.1}\n{"epoch": 1, "lo')
    page = made(config, tmp_path)
    assert_complete(page)
    assert "The run has saved no checkpoint" in page.section("Summary")
    assert "0 of 1" in page.section("Summary")
    (finished.folder / "metrics.jsonl").unlink()
    (finished.folder / "versions.json").write_text("[" * 100_000)
    page = made(config, tmp_path, force=True)
    assert "No epoch was completed." in page.text


@pytest.fixture
def unlabelled(config: RunConfig, tmp_path: Path) -> RunConfig:
    """A run on a folder without identities and cameras, one image of which has a difficult name."""
    names = ["<script>alert(1)<&script>.jpg", "\udcff'\".jpg", *(f"{i}.jpg" for i in range(22))]
    for seed, name in enumerate(names):
        put_noise(tmp_path / "set", "new.jpg", seed=seed)
        os.rename(
            tmp_path / "set/new.jpg", os.fsencode(tmp_path / "set") + b"/" + os.fsencode(name)
        )
    config = replace(config, dataset="folder", data_root=str(tmp_path / "set"), epochs=1)
    run_training(config)
    return config


def test_an_unlabelled_folder_has_a_page_whose_names_are_text(
    unlabelled: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "fastreid_al.runs.report.labels_of_run",
        lambda run, images, found, reporter: torch.arange(len(found.records)) // 4,
    )
    page = made(unlabelled, tmp_path)
    assert_complete(page)
    assert "<script>" not in page.source
    assert "&lt;script&gt;alert(1)" in page.source
    assert "\\xff&#39;" in page.source
    assert "There are no ranked queries." in page.text
    assert "No evaluation was made." in page.text
    clusters = page.section("Clusters, least coherent first")
    assert not any(word in clusters for word in ("true identities", "one identity", "✓", "✗"))


def test_images_that_are_gone_are_frames_and_a_line(unlabelled: RunConfig, tmp_path: Path) -> None:
    folder = Path(unlabelled.data_root)
    (folder / "3.jpg").write_bytes(b"broken")
    page = made(unlabelled, tmp_path)
    assert "1 training images cannot be read and are left out" in page.section("Summary")
    shutil.rmtree(folder)
    page = made(unlabelled, tmp_path, force=True)
    assert_complete(page)
    assert "The images cannot be read: " in page.section("Summary")
    assert "`data_root`" in page.section("Summary")
    assert str(tmp_path) in page.section("Summary")
    page = made(unlabelled, tmp_path, force=True, anonymise=True)
    assert "The images cannot be read." in page.section("Summary")
    assert str(tmp_path) not in page.source
    # A folder that the user names is not passed over.
    with pytest.raises(UserError, match="elsewhere"):
        made(unlabelled, tmp_path, force=True, data_root=str(tmp_path / "elsewhere"))


def test_a_question_about_a_file_outside_the_set_shows_no_picture(
    finished: tuple[RunConfig, RunConfig], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(str(finished[0].run_dir), run)
    put_noise(tmp_path, "secret.jpg", seed=0)
    engine = sa.create_engine(f"sqlite:///{run / 'answers.sqlite'}")
    with engine.begin() as connection:
        # The database refuses to change a path. Whoever owns it can take this away.
        connection.execute(sa.text("drop trigger images_keep"))
        connection.execute(
            sa.text("update images set path = :path where id = 0"),
            {"path": str(tmp_path / "secret.jpg")},
        )
    engine.dispose()
    page = made(replace(finished[0], run_dir=str(run)), tmp_path)
    assert f"{tmp_path / 'secret.jpg'}, cannot be read" in page.source


def test_a_run_with_mirror_images_is_shown_by_them(
    finished: tuple[RunConfig, RunConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    shutil.copytree(str(finished[0].run_dir), run)
    saved = json.loads((run / "config.json").read_text())
    saved["engine"]["flip_features"] = True
    (run / "config.json").write_text(json.dumps(saved))
    flips = []
    plain = Network.feature_pass

    def noting(self: Network, *args: Any, **more: Any) -> Any:
        flips.append(args[3])
        return plain(self, *args, **more)

    monkeypatch.setattr(Network, "feature_pass", noting)
    made(replace(finished[0], run_dir=str(run)), tmp_path)
    assert flips == [True, True, True]


@pytest.mark.parametrize(
    "line",
    [
        '{"epoch": 1, "questions_total": null}',
        '{"epoch": 1, "questions": NaN, "mAP": "high", "rank1": [1]}',
        f'{{"epoch": {10**400}, "loss": 1}}',
    ],
)
def test_values_that_no_run_writes_are_left_out(
    finished: tuple[RunConfig, RunConfig], tmp_path: Path, line: str
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    shutil.copy(Path(str(finished[0].run_dir)) / "config.json", run)
    (run / "metrics.jsonl").write_text(f'{line}\n{{"epoch": 2, "mAP": 0.25}}\n')
    page = made(replace(finished[0], run_dir=str(run)), tmp_path)
    assert_complete(page)
    assert "last, epoch 2 25.0" in page.section("Summary")


def test_a_page_is_small_for_many_clusters_and_replaces_nothing_unasked(
    finished: tuple[RunConfig, RunConfig], tmp_path: Path
) -> None:
    page = made(finished[0], tmp_path, clusters=0, queries=0, questions=0)
    assert_complete(page)
    assert "There are no answers to show." in page.text
    with pytest.raises(UserError, match=r"report.html exists.*`force`"):
        made(finished[0], tmp_path)
    with pytest.raises(UserError, match=r"`out`: got page.pdf, expected a name that ends in .html"):
        made(finished[0], tmp_path, out=str(tmp_path / "page.pdf"))
    with pytest.raises(UserError, match="is not a folder"):
        made(finished[0], tmp_path, out=str(tmp_path / "no" / "page.html"))


def test_what_is_no_run_is_one_line(
    finished: tuple[RunConfig, RunConfig], config: RunConfig, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match="does not exist; name the folder of a run"):
        made(replace(config, run_dir=str(tmp_path / "none")), tmp_path)
    with pytest.raises(CheckpointError, match=r"has no config\.json"):
        made(replace(config, run_dir=str(tmp_path)), tmp_path)
    run = tmp_path / "run"
    shutil.copytree(str(finished[0].run_dir), run)
    (run / "answers.sqlite").write_bytes(b"no ledger" * 500)
    with pytest.raises(LedgerError) as caught:
        made(replace(config, run_dir=str(run)), tmp_path)
    assert "\n" not in str(caught.value)
    (run / "answers.sqlite").unlink()
    (run / "last.pt").write_bytes(b"no weights")
    with pytest.raises(UserError) as damaged:
        made(replace(config, run_dir=str(run)), tmp_path)
    assert "\n" not in str(damaged.value)
    assert not list(tmp_path.glob("*.html"))


def test_a_password_of_a_ledger_is_not_shown(
    finished: tuple[RunConfig, RunConfig], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(str(finished[0].run_dir), run)
    saved = json.loads((run / "config.json").read_text())
    saved["questions"]["ledger"] = f"postgresql://anna:topsecret@localhost/{'x' * 5}"
    (run / "config.json").write_text(json.dumps(saved))
    shown = RunResults("x", config_of_run(run / "config.json"), [], {}).settings()
    assert shown["questions.ledger"] == "postgresql://anna:***@localhost/xxxxx"


def test_a_full_disk_is_one_line_and_leaves_no_half_page(
    finished: tuple[RunConfig, RunConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    run = tmp_path / "run"
    run.mkdir()
    shutil.copy(Path(str(finished[0].run_dir)) / "config.json", run)
    monkeypatch.setattr("fastreid_al.files.NewFile.write", fail)
    with pytest.raises(UserError, match=r"could not write .*No space left.*name another file"):
        made(replace(finished[0], run_dir=str(run)), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
