"""The synthetic set has MSMT17's layout, every query a match, and is written atomically."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from fastreid_al.config import MSMT17_SIZE, SyntheticConfig
from fastreid_al.synthetic import dataset
from fastreid_al.synthetic.dataset import cached_synthetic, write_synthetic

SMALL = SyntheticConfig(10, 120, 9, 30, 80, cameras=4, height=48)


def lines(folder: Path, part: str) -> list[tuple[str, int, int]]:
    """(path, identity, camera) of each line of a list."""
    rows = []
    for line in (folder / f"list_{part}.txt").read_text().splitlines():
        path, identity = line.split(" ")
        rows.append((path, int(identity), int(Path(path).name.split("_")[2])))
    return rows


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("synthetic") / "MSMT17_V1"
    write_synthetic(folder, SMALL, workers=1)
    return folder


def test_lists_have_the_configured_images_and_each_file_once(small: Path) -> None:
    train, val, query, gallery = (
        lines(small, part) for part in ("train", "val", "query", "gallery")
    )
    assert (len(train) + len(val), len(query), len(gallery)) == (120, 30, 80)
    assert len(val) == round(120 * 2373 / 32_621)
    for split, rows in (("train", train + val), ("test", query + gallery)):
        on_disk = sorted(
            str(path.relative_to(small / split)) for path in (small / split).rglob("*.jpg")
        )
        assert on_disk == sorted(path for path, _, _ in rows)
    assert {identity for _, identity, _ in train + val} == set(range(10))
    assert (
        {identity for _, identity, _ in query}
        == {identity for _, identity, _ in gallery}
        == set(range(9))
    )


def test_file_names_carry_identity_index_and_camera(small: Path) -> None:
    for path, identity, camera in lines(small, "train") + lines(small, "gallery"):
        folder, name = path.split("/")
        fields = name.removesuffix(".jpg").split("_")
        assert folder == fields[0] == f"{identity:04d}"
        assert [len(field) for field in fields[1:3]] == [3, 2] and 1 <= camera <= SMALL.cameras
        assert fields[3] == "0303morning" and len(fields) == 6


def test_images_have_the_configured_height_and_about_half_as_width(small: Path) -> None:
    for path, _, _ in lines(small, "query"):
        width, height = Image.open(small / "test" / path).size
        assert height == 48 and 0.38 * 48 <= width <= 0.53 * 48


def test_queries_have_a_match_from_another_camera_and_their_own(small: Path) -> None:
    gallery = {(identity, camera) for _, identity, camera in lines(small, "gallery")}
    for _, identity, camera in lines(small, "query"):
        assert any(other == identity and seen != camera for other, seen in gallery)
        assert (identity, camera) in gallery


def test_the_plan_of_msmt17_has_its_counts_and_its_variety() -> None:
    plan = dataset._plan(MSMT17_SIZE)
    assert Counter(shot.part for shot in plan) == {
        "train": 30_248,
        "val": 2373,
        "query": 11_659,
        "gallery": 82_161,
    }
    assert len({(shot.split, shot.path(0)) for shot in plan}) == 126_441
    images = Counter(shot.identity for shot in plan if shot.split == "train")
    cameras = {(shot.identity, shot.camera) for shot in plan if shot.split == "train"}
    seen = Counter(identity for identity, _ in cameras)
    assert len(images) == 1041 and max(images.values()) > 2 * min(images.values())
    assert min(seen.values()) >= 2 and max(seen.values()) <= 6


def test_the_usual_cast_keeps_the_name_of_the_cached_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dataset, "write_synthetic", lambda *_, **__: None)
    usual, strong = (
        cached_synthetic(replace(SMALL, cast=cast), tmp_path).parent.name for cast in (1.0, 4.0)
    )
    assert usual == "synthetic-v1-10-120-9-30-80-4-48-0-0943d606"
    assert strong.startswith("synthetic-v1-10-120-9-30-80-4-48-0-4.0-")


@pytest.mark.slow
def test_two_processes_write_the_same_files_as_one(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dataset, "SMALL_SET", 1)
    write_synthetic(tmp_path / "set", SMALL, workers=2)
    assert contents(tmp_path / "set") == contents(small)


def test_progress_counts_up_to_the_whole_set(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    write_synthetic(
        tmp_path / "set",
        SMALL,
        workers=1,
        on_progress=lambda done, total: seen.append((done, total)),
    )
    assert seen == sorted(seen) and seen[-1] == (230, 230)


def test_an_interrupted_writer_leaves_nothing(tmp_path: Path) -> None:
    def interrupt(done: int, total: int) -> None:
        assert not (tmp_path / "set").exists()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_synthetic(tmp_path / "set", SMALL, workers=1, on_progress=interrupt)
    assert list(tmp_path.iterdir()) == []


def test_a_set_that_another_process_finished_first_stays(tmp_path: Path) -> None:
    def win(done: int, total: int) -> None:
        (tmp_path / "set").mkdir(exist_ok=True)
        (tmp_path / "set" / "list_train.txt").write_text("first\n")

    write_synthetic(tmp_path / "set", SMALL, workers=1, on_progress=win)
    assert contents(tmp_path) == {"set/list_train.txt": b"first\n"}


def test_a_folder_with_contents_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="not empty"):
        write_synthetic(tmp_path, SMALL)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cameras": 1}, "cameras must be 2 or more"),
        ({"height": 16}, "height must be 32 or more"),
        ({"cast": -1.0}, "cast must be 0 or more, got -1.0"),
        ({"cast": float("nan")}, "cast must be 0 or more"),
        ({"train_identities": 0}, "1 or more"),
        ({"train_images": 19}, "train_images must be 2 or more for each of 10"),
        ({"query_images": 8}, "query_images must be 1 or more for each of 9"),
        ({"gallery_images": 17}, "gallery_images must be 2 or more for each of 9"),
    ],
)
def test_an_impossible_set_is_refused_in_one_line(
    change: dict[str, float], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message) as error:
        cached_synthetic(replace(SMALL, **change), tmp_path)
    assert "\n" not in str(error.value) and list(tmp_path.iterdir()) == []


def test_the_smallest_set_can_be_written_into_an_empty_folder(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    write_synthetic(tmp_path / "set", SyntheticConfig(1, 2, 1, 1, 2, cameras=2, height=32))
    assert len(lines(tmp_path / "set", "train") + lines(tmp_path / "set", "val")) == 2
    assert {camera for _, _, camera in lines(tmp_path / "set", "gallery")} == {1, 2}


def test_the_cache_is_written_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTREID_AL_CACHE", str(tmp_path))
    calls: list[int] = []
    config = replace(SMALL, height=32)
    first = cached_synthetic(config, on_progress=lambda done, total: calls.append(done))
    rendered = len(calls)
    assert first.name == "MSMT17_V1" and first.parent.parent == tmp_path and rendered > 0
    assert cached_synthetic(config, on_progress=lambda done, total: calls.append(done)) == first
    assert len(calls) == rendered
    assert cached_synthetic(replace(config, seed=1)) != first
