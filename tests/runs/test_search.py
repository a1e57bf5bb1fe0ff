"""A search from queries to hits, its index, and what it says of queries that are unknown."""

from __future__ import annotations

import csv
import errno
import json
import os
import shutil
import stat
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fastreid_al.answers import ImageKeys, Ledger, Verdict
from fastreid_al.config import EvaluationConfig, SearchConfig
from fastreid_al.data import load
from fastreid_al.data.pixels import file_digests
from fastreid_al.engine.console import Reporter
from fastreid_al.errors import CheckpointError, DataError, SettingError, UserError, parse_printable
from fastreid_al.models import build_model
from fastreid_al.retrieval import feature_file, reference
from fastreid_al.retrieval.feature_file import read_table
from fastreid_al.retrieval.probability import calibration_error
from fastreid_al.runs import gallery_index, run_training, search, sureness, train
from fastreid_al.runs.evaluate import evaluate_file
from fastreid_al.runs.gallery_index import default_index
from fastreid_al.runs.search import search_gallery
from fastreid_al.search import main as search_main
from tests.support.image_sets import put_noise
from tests.support.tiny import tiny_config

#: Names that a gallery may hold.
ODD = ["a,b.png", 'quote".png', "two\nlines.png", os.fsdecode(b"byte\xff.png"), "=1+1.png"]


@pytest.fixture(scope="module")
def trained_run(_cache: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one epoch on the synthetic set."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "draw_curves", lambda *_: None)
        run_training(replace(tiny_config(folder), epochs=1))
    return folder


@pytest.fixture
def run(trained_run: Path, tmp_path: Path) -> Path:
    """A copy of the run, for one test."""
    return Path(shutil.copytree(trained_run, tmp_path / "run"))


@pytest.fixture
def options(run: Path, tmp_path: Path) -> SearchConfig:
    """Two queries in a gallery of twelve images, of which the first query is one."""
    gallery = tmp_path / "gallery"
    for seed, name in enumerate([*ODD, *(f"cam2/{number}.png" for number in range(7))]):
        put_noise(gallery, name, seed)
    put_noise(tmp_path / "query", "first.png", 0)
    put_noise(tmp_path / "query", "second.png", 99)
    out = str(tmp_path / "hits.csv")
    return SearchConfig(str(run), str(tmp_path / "query"), str(gallery), out, top=3)


def index_of(options: SearchConfig) -> Path:
    return default_index(Path(options.run), Path(options.gallery))


def extracted(patch: pytest.MonkeyPatch) -> list[str]:
    """Names of the gallery images that are extracted from now on."""
    names: list[str] = []
    original = gallery_index.add_features

    def counting(writer: object, trained: object, network: object, listed: object, *rest: object):
        names.extend(listed.names)  # type: ignore[attr-defined]
        return original(writer, trained, network, listed, *rest)  # type: ignore[arg-type]

    patch.setattr(gallery_index, "add_features", counting)
    return names


def test_the_table_has_five_columns_and_every_name_survives(options: SearchConfig) -> None:
    search_gallery(replace(options, top=12))
    with open(options.out, newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["query", "rank", "gallery", "similarity", "probability"]
    of_first = [row for row in rows[1:] if row[0].endswith("first.png")]
    assert [row[1] for row in of_first] == [str(rank) for rank in range(1, 13)]
    found = {parse_printable(row[2]) for row in of_first}
    assert found == {str(path) for path in Path(options.gallery).rglob("*.png")}
    similarity = [float(row[3]) for row in of_first]
    assert similarity == sorted(similarity, reverse=True)
    assert stat.S_IMODE(os.stat(options.out).st_mode) == 0o600


def test_a_copy_of_a_query_in_the_gallery_is_the_first_hit(options: SearchConfig) -> None:
    hits = search_gallery(options)
    assert [Path(hits.of(0)[0].gallery).name, hits.of(0)[0].rank] == [ODD[0], 1]
    assert hits.of(0)[0].similarity == pytest.approx(1, abs=1e-4)
    assert hits.of(1)[0].similarity < 1


def test_a_gallery_that_is_searched_with_itself_finds_every_image_first(
    options: SearchConfig,
) -> None:
    hits = search_gallery(replace(options, query=options.gallery, top=50))
    assert len(hits.queries) == 12
    assert all(hits.of(q)[0].gallery == path for q, path in enumerate(hits.queries))
    assert all(len(hits.of(q)) == 12 for q in range(12))


def test_a_path_that_a_spreadsheet_takes_for_a_formula_begins_with_a_dot(
    options: SearchConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(options.gallery)
    search_gallery(replace(options, query=ODD[4], gallery="."))
    assert Path(options.out).read_text().splitlines()[1].startswith("./=1+1.png,1,./=1+1.png,1.0")


def test_the_json_file_has_exact_names_and_the_search_as_a_whole(options: SearchConfig) -> None:
    out = str(Path(options.out).with_suffix(".json"))
    search_gallery(replace(options, out=out, top=12))
    found = json.loads(Path(out).read_text())
    assert found["gallery_images"] == 12 and len(found["queries"]) == 2
    names = {hit["gallery"] for hit in found["queries"][0]["hits"]}
    assert {os.fsencode(name) for name in names} == {
        os.fsencode(path) for path in Path(options.gallery).rglob("*.png")
    }


def test_the_page_holds_all_images_and_no_script(options: SearchConfig) -> None:
    put_noise(Path(options.gallery), "<script>alert(1)<!--.png", 0)
    out = Path(options.out).with_suffix(".html")
    search_gallery(replace(options, out=str(out)))
    page = out.read_text()
    assert page.startswith("<!DOCTYPE html>")
    assert page.count("data:image/webp;base64,") == 2 * (1 + 3)
    assert "<script" not in page and "&lt;script&gt;" in page
    assert 'src="http' not in page and "@import" not in page
    assert stat.S_IMODE(os.stat(out).st_mode) == 0o600


def test_an_image_that_is_added_is_extracted_and_no_other(
    options: SearchConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    search_gallery(options)
    assert stat.S_IMODE(os.stat(index_of(options)).st_mode) == 0o600
    before = read_table(index_of(options))
    names = extracted(monkeypatch)
    put_noise(Path(options.gallery), "new.png", 99)
    hits = search_gallery(replace(options, force=True))
    assert names == ["new.png"]
    assert Path(hits.of(1)[0].gallery).name == "new.png"
    after = read_table(index_of(options))
    assert len(after) == 13
    rows = [list(after.names).index(name) for name in before.names]
    assert torch.equal(after.features[rows], before.features)


def test_an_unchanged_gallery_is_not_extracted_and_its_index_not_written(
    options: SearchConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    (Path(options.gallery) / "broken.png").write_bytes(b"\x89PNG")
    first = search_gallery(options)
    before = os.stat(index_of(options))
    names = extracted(monkeypatch)
    again = search_gallery(replace(options, force=True))
    assert names == ["broken.png"]
    assert os.stat(index_of(options)).st_ino == before.st_ino
    assert np.array_equal(first.similarity, again.similarity)


def test_an_image_of_the_far_future_is_in_the_index(options: SearchConfig) -> None:
    os.utime(next(Path(options.gallery).rglob("*.png")), (10**10, 10**10))
    search_gallery(options)
    assert len(read_table(index_of(options))) == 12


def test_an_image_of_another_time_keeps_its_place_among_equal_hits(options: SearchConfig) -> None:
    search_gallery(options)
    names = list(read_table(index_of(options)).names)
    os.utime(Path(options.gallery, names[0]), (1, 1))
    search_gallery(replace(options, force=True))
    assert list(read_table(index_of(options)).names) == names


def test_removed_and_changed_images_leave_the_index(
    options: SearchConfig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    search_gallery(options)
    gallery = Path(options.gallery)
    (gallery / ODD[1]).unlink()
    # The same size and another content, at another time.
    shutil.copy(gallery / "cam2/1.png", gallery / "cam2/0.png")
    os.utime(gallery / "cam2/2.png", (1, 1))
    names = extracted(monkeypatch)
    capsys.readouterr()
    hits = search_gallery(replace(options, force=True, query=str(gallery / "cam2/1.png")))
    assert names == ["cam2/0.png"]
    assert {Path(hit.gallery).name for hit in hits.of(0)[:2]} == {"0.png", "1.png"}
    assert "10 unchanged, 1 new or changed, 1 removed" in capsys.readouterr().out
    fresh = replace(options, force=True, index=str(Path(options.out).with_name("i.safetensors")))
    assert np.allclose(
        np.sort(search_gallery(fresh).similarity),
        np.sort(search_gallery(replace(options, force=True)).similarity),
        atol=1e-5,
    )


def test_the_index_of_another_network_is_refused(options: SearchConfig) -> None:
    search_gallery(options)
    last = Path(options.run) / "last.pt"
    torch.manual_seed(5)
    torch.save(
        {
            "model": build_model("tiny", "none").state_dict(),
            "network": {"name": "tiny", "height": 48, "width": 24},
        },
        last,
    )
    again = replace(options, force=True)
    with pytest.raises(UserError, match=r"the index of another network.*remove or rename it"):
        search_gallery(again)
    search_gallery(replace(again, index=f"{options.run}/other.safetensors"))


def test_an_index_that_another_search_has_replaced_is_refused(
    options: SearchConfig, tmp_path: Path
) -> None:
    index = tmp_path / "index.safetensors"
    put_noise(tmp_path / "elsewhere", "x.png", 1)
    other = replace(options, gallery=str(tmp_path / "elsewhere"), index=str(index), force=True)
    search_gallery(other)
    content = index.read_bytes()
    index.unlink()

    class Late(Reporter):
        """Lets another search write the index just after this one has."""

        def line(self, text: str) -> None:
            if "gallery images in" in text:
                index.write_bytes(content)

    with pytest.raises(UserError, match="was replaced by another search"):
        search_gallery(replace(other, gallery=options.gallery), Late())


def test_an_index_of_another_gallery_a_damaged_one_and_other_files_are_refused(
    options: SearchConfig, tmp_path: Path
) -> None:
    index = str(tmp_path / "index.safetensors")
    named = replace(options, index=index, force=True)
    search_gallery(named)
    put_noise(tmp_path / "elsewhere", "x.png", 1)
    with pytest.raises(UserError, match="is the index of another gallery"):
        search_gallery(replace(named, gallery=str(tmp_path / "elsewhere")))
    content = Path(index).read_bytes()
    for damaged in (b"", content[:100], content[:-8], b"x" * len(content)):
        Path(index).write_bytes(damaged)
        with pytest.raises(DataError, match="as an index it cannot be used: remove or rename it"):
            search_gallery(named)
    shutil.copy(Path(options.run) / sureness.REFERENCE_FILE, index)
    with pytest.raises(UserError, match="is a file of features and not an index"):
        search_gallery(named)


def nothing(options: SearchConfig, key: str) -> SearchConfig:
    folder = Path(options.out).parent / "nothing"
    folder.mkdir()
    (folder / "notes.md").touch()
    return replace(options, **{key: str(folder)})


def unreadable(options: SearchConfig, key: str) -> SearchConfig:
    folder = Path(options.out).parent / "unreadable"
    folder.mkdir()
    (folder / "x.jpg").write_bytes(b"\xff\xd8\xff")
    return replace(options, **{key: str(folder)})


BAD: dict[str, tuple[Callable[[SearchConfig], SearchConfig], str]] = {
    "no gallery": (lambda o: replace(o, gallery="nowhere"), "folder nowhere does not exist"),
    "no query": (lambda o: replace(o, query="nowhere"), "nowhere does not exist; `query` is a"),
    "empty gallery": (lambda o: nothing(o, "gallery"), "no image at any depth.*`gallery`"),
    "empty query": (lambda o: nothing(o, "query"), "no image at any depth.*`query`"),
    "broken gallery": (lambda o: unreadable(o, "gallery"), "no readable image: there is no gall"),
    "broken query": (lambda o: unreadable(o, "query"), "no readable image: there is no query"),
    "suffix": (lambda o: replace(o, out="x.txt"), r"`out`: got 'x.txt', expected a name that ends"),
    "file there": (lambda o: replace(o, out=f"{o.run}/last.pt.csv"), "is not a folder|exists"),
    "no run": (lambda o: replace(o, run="nowhere"), "nowhere does not exist"),
    "no index folder": (lambda o: replace(o, index="no/where.safetensors"), "could not write"),
}


@pytest.mark.parametrize("what", BAD)
def test_what_cannot_be_searched_is_one_line(options: SearchConfig, what: str) -> None:
    (Path(options.run) / "last.pt.csv").touch()
    change, message = BAD[what]
    with pytest.raises(UserError, match=message) as raised:
        search_gallery(change(options))
    assert "\n" not in str(raised.value)
    assert not os.path.exists(options.out)


def test_a_folder_as_output_is_refused_before_the_search(
    options: SearchConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.mkdir(options.out)
    monkeypatch.setattr(search, "load_trained", None)
    with pytest.raises(UserError, match="is a folder; name a file with `out`"):
        search_gallery(options)


def test_a_run_without_a_checkpoint_is_refused(options: SearchConfig) -> None:
    (Path(options.run) / "last.pt").unlink()
    with pytest.raises(CheckpointError, match="has not saved a checkpoint yet"):
        search_gallery(options)


def test_one_query_is_counted_as_one(
    options: SearchConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    query = sorted(Path(options.query).iterdir())[0]
    search_gallery(replace(options, query=str(query), top=1))
    assert "1 hit of 1 query in" in capsys.readouterr().out


def test_an_unreadable_query_is_named_and_the_others_are_searched(
    options: SearchConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    (Path(options.query) / "broken.png").write_bytes(b"\x89PNG")
    assert len(search_gallery(options).queries) == 2
    assert "broken.png" in capsys.readouterr().out


def test_probability_and_unknown_queries_are_learnt_from_the_test_images(
    options: SearchConfig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(reference, "LEAST_IDENTITIES", 3)
    out = str(Path(options.out).with_suffix(".json"))
    search_main(
        [
            options.run,
            f"--query={options.query}",
            f"--gallery={options.gallery}",
            f"--out={out}",
            "--top=3",
            "--false-match-rate=0.3",
        ]
    )
    printed = capsys.readouterr().out
    assert "probability of a match: from" in printed and "test images of 6 identities" in printed
    assert "queries are unknown" in printed and "95 % interval" in printed
    found = json.loads(Path(out).read_text())
    low, high = found["unknown"]["false_match_interval"]
    assert low <= found["unknown"]["false_match_rate"] <= high
    for query in found["queries"]:
        best = query["hits"][0]
        assert query["unknown"] is (best["similarity"] < found["unknown"]["threshold"])
        assert 0 < best["probability"] < 1
    # The features of the test images are extracted once.
    made = os.stat(Path(options.run) / sureness.REFERENCE_FILE).st_ino
    search_gallery(replace(options, out=out, force=True))
    assert os.stat(Path(options.run) / sureness.REFERENCE_FILE).st_ino == made


def as_unlabelled(run: Path, folder: Path) -> list[str]:
    """Make the run one on an unlabelled folder; returns the names of its images."""
    images = load("synthetic", synthetic=tiny_config(run).synthetic, verbose=False)
    for record in images.train:
        folder.mkdir(exist_ok=True)
        shutil.copy(record.path, folder / f"{record.identity}-{record.path.name}")
    saved = json.loads((run / "config.json").read_text())
    saved |= {"dataset": "folder", "data_root": str(folder)}
    (run / "config.json").write_text(json.dumps(saved))
    return sorted(path.name for path in folder.iterdir())


def test_without_identities_and_answers_the_probability_is_empty(
    options: SearchConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    as_unlabelled(Path(options.run), tmp_path / "crops")
    hits = search_gallery(options)
    assert hits.probability is None and hits.is_unknown(0) is None
    assert Path(options.out).read_text().splitlines()[1].endswith(",")
    printed = capsys.readouterr().out
    assert "the probability of a match is not known" in printed
    assert "no query is marked as unknown" in printed


def test_answers_of_the_ledger_give_the_probability(
    options: SearchConfig,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    names = as_unlabelled(Path(options.run), tmp_path / "crops")
    keys = ImageKeys("folder", names, [""] * len(names))
    with Ledger.open(str(Path(options.run) / "answers.sqlite"), keys) as ledger:
        for left in range(0, 40):
            right = left + 1
            same = names[left].split("-")[0] == names[right].split("-")[0]
            verdict = Verdict.SAME if same else Verdict.DIFFERENT
            facts = {"annotator": "a", "asked_at": 0.0, "answered_at": 1.0, "epoch": 0}
            ledger.append(left, right, verdict, reason="merge", **facts)
            far = (left + 32) % len(names)
            ledger.append(left, far, Verdict.DIFFERENT, reason="merge", **facts)
    hits = search_gallery(options)
    assert hits.probability is not None and hits.unknown is None
    assert "from 80 answers about training images" in capsys.readouterr().out
    # Of many answers some are taken, evenly spaced.
    monkeypatch.setattr(sureness, "MOST_ANSWERS", 30)
    assert search_gallery(replace(options, force=True)).probability is not None
    assert "from 27 answers about training images" in capsys.readouterr().out


def test_answers_about_other_content_of_an_image_are_not_used(
    options: SearchConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = as_unlabelled(Path(options.run), tmp_path / "crops")
    digests = file_digests([tmp_path / "crops" / name for name in names], None)
    keys = ImageKeys("folder", names, digests)
    with Ledger.open(str(Path(options.run) / "answers.sqlite"), keys) as ledger:
        for left in range(0, 40):
            facts = {"annotator": "a", "asked_at": 0.0, "answered_at": 1.0, "epoch": 0}
            verdict = Verdict.SAME if left % 2 else Verdict.DIFFERENT
            ledger.append(left, left + 1, verdict, reason="merge", **facts)
    put_noise(tmp_path / "crops", names[5], 5)
    assert search_gallery(options).probability is not None
    assert "from 38 answers about training images" in capsys.readouterr().out


def test_images_of_the_run_that_are_gone_leave_the_probability_empty(
    options: SearchConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    as_unlabelled(Path(options.run), tmp_path / "crops")
    shutil.rmtree(tmp_path / "crops")
    assert search_gallery(options).probability is None
    assert "name their folder with `data_root`" in capsys.readouterr().out


def test_settings_outside_their_range_are_refused(options: SearchConfig) -> None:
    with pytest.raises(SettingError, match="`top`: got 5000"):
        search_gallery(replace(options, top=5000))


@pytest.mark.slow
def test_the_stated_rates_hold_for_synthetic_people_that_were_not_in_the_sample(
    tmp_path: Path,
) -> None:
    """Half of the test identities are the sample, the others the queries and the gallery."""
    config = tiny_config(tmp_path / "run")
    people = replace(
        config.synthetic,
        train_identities=64,
        train_images=960,
        test_identities=240,
        query_images=480,
        gallery_images=1920,
    )
    supervised = replace(
        config,
        method="supervised",
        epochs=8,
        evaluate_every=8,
        synthetic=people,
        batch=replace(config.batch, size=32, iterations=40),
        optimizer=replace(config.optimizer, lr=2e-3, step=6),
    )
    finished = run_training(supervised)
    saved = tmp_path / "features.safetensors"
    evaluate_file(
        EvaluationConfig(
            str(finished.folder / "last.pt"),
            "synthetic",
            synthetic=people,
            save_features=str(saved),
        )
    )
    tables = [read_table(saved, prefix) for prefix in ("query_", "gallery_")]
    features = torch.cat([table.features for table in tables])
    cameras = torch.cat([table.cameras for table in tables])
    labels = [table.identities for table in tables if table.identities is not None]
    identities = torch.cat(labels)
    numbers = identities.unique()
    covered, errors_of_probability = 0, []
    for seed in range(6):
        order = torch.randperm(len(numbers), generator=torch.Generator().manual_seed(seed))
        sampled = torch.isin(identities, numbers[order[:120]])
        rows, fresh = sampled.nonzero()[:, 0], (~sampled).nonzero()[:, 0]
        learnt = reference.learn_sureness(
            features[rows], identities[rows], cameras[rows], len(fresh), 0.1
        )
        assert learnt.threshold is not None and learnt.probability is not None
        every = torch.arange(len(features))[fresh]
        found = reference.search_sample(features, identities, cameras, every, fresh)
        _, low, high = learnt.threshold.false_match.in_gallery(learnt.threshold.growth)
        rate = float((found.impostor >= learnt.threshold.similarity).double().mean())
        covered += low <= rate <= high
        real = found.similarity.isfinite()
        stated = learnt.probability(
            found.similarity[real].numpy(), float(found.matches.double().mean()), len(fresh)
        )
        errors_of_probability.append(calibration_error(stated, found.same[real].numpy()))
    assert covered >= 4
    assert np.mean(errors_of_probability) < 0.03


def test_equal_hits_are_ordered_by_name_whatever_came_first_into_the_index(
    options: SearchConfig,
) -> None:
    gallery = Path(options.gallery)
    query = str(gallery / "m.png")
    put_noise(gallery, "m.png", 500)
    one = replace(options, query=query, top=4)
    assert Path(search_gallery(one).of(0)[0].gallery).name == "m.png"
    # Each copy comes into the index after the images that follow it by name.
    for name in ("z.png", "k.png", "a.png"):
        shutil.copy(query, gallery / name)
        hits = search_gallery(replace(one, force=True)).of(0)
    assert [Path(hit.gallery).name for hit in hits] == ["a.png", "k.png", "m.png", "z.png"]
    two = search_gallery(replace(one, force=True, top=2)).of(0)
    assert [Path(hit.gallery).name for hit in two] == ["a.png", "k.png"]


def test_a_run_that_cannot_be_written_is_searched(
    options: SearchConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    options = replace(options, index=str(tmp_path / "gallery.safetensors"))
    expected = search_gallery(options).probability
    assert expected is not None
    kept = Path(options.run) / sureness.REFERENCE_FILE
    kept.unlink()
    original = feature_file.replacing

    def read_only(path: Path) -> Any:
        if Path(path).parent == Path(options.run):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        return original(path)

    monkeypatch.setattr(feature_file, "replacing", read_only)
    capsys.readouterr()
    found = search_gallery(replace(options, force=True)).probability
    np.testing.assert_array_equal(found, expected)
    assert not kept.exists()
    assert f"{kept} cannot be written: every search" in capsys.readouterr().out


def test_more_matches_raise_the_odds_in_proportion(options: SearchConfig) -> None:
    odds = []
    for matches in (1.0, 4.0, 12.0, 50.0):
        found = search_gallery(replace(options, matches=matches, force=True)).probability
        assert found is not None
        odds.append(found / (1 - found))
    np.testing.assert_allclose(odds[1] / odds[0], (4 / 8) / (1 / 11), rtol=1e-6)
    # No image shows another identity; one is assumed.
    np.testing.assert_allclose(odds[2] / odds[0], 12 / (1 / 11), rtol=1e-6)
    np.testing.assert_array_equal(odds[3], odds[2])


def test_mirror_images_are_averaged_as_in_the_run(options: SearchConfig) -> None:
    plain = search_gallery(options)
    flipped = replace(options.engine, flip_features=True)
    asked = replace(options, index=f"{options.out}.safetensors", force=True)
    expected = search_gallery(replace(asked, engine=flipped))
    assert not np.array_equal(plain.similarity, expected.similarity)
    config = Path(options.run) / "config.json"
    config.write_text(json.dumps(with_flip(json.loads(config.read_text()))))
    found = search_gallery(asked)
    np.testing.assert_array_equal(found.similarity, expected.similarity)


def with_flip(config: dict[str, Any]) -> dict[str, Any]:
    """A configuration of a run whose features are those of mirror images too."""
    return {**config, "engine": {**config["engine"], "flip_features": True}}


def test_more_equal_hits_than_are_looked_at_are_in_the_order_of_their_names() -> None:
    n, top, k = 300, 5, 69
    bank = torch.nn.functional.normalize(torch.ones(n, 8))
    bank[7] = -bank[7]
    names = [f"{(i * 113) % n:03d}.png" for i in range(n)]
    expected = sorted((name for i, name in enumerate(names) if i != 7))[:top]
    rows = np.array([[i for i in range(n) if i != 7][-k:]])  # Any k of the equal ones.
    similarity = np.ones((1, k), np.float32)
    search.complete_ties(similarity, rows, top, bank[:1], bank, names)
    assert [names[row] for row in rows[0, :top]] == expected
    np.testing.assert_allclose(similarity[0, :top], 1, atol=1e-6)


def test_copies_of_an_image_beyond_those_looked_at_are_found_in_the_order_of_their_names(
    options: SearchConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    original = search.complete_ties

    def noting(similarity: Any, rows: Any, top: int, *rest: Any) -> None:
        asked.append(top)
        original(similarity, rows, top, *rest)

    monkeypatch.setattr(search, "_TIES", 1)
    monkeypatch.setattr(search, "complete_ties", noting)
    gallery = Path(options.gallery)
    for name in "edcba":
        shutil.copy(gallery / ODD[0], gallery / f"zz_{name}.png")
    few = search_gallery(replace(options, top=2))
    assert [Path(hit.gallery).name for hit in few.of(0)] == [ODD[0], "zz_a.png"]
    assert asked == [2]
