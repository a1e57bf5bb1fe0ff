"""Features of a folder, an image, a list or a manifest, written into a file part by part."""

from __future__ import annotations

import errno
import itertools
import os
import stat
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from fastreid_al import files
from fastreid_al.config import EvaluationConfig, ExtractionConfig, RunConfig
from fastreid_al.data import load
from fastreid_al.data.cache import digest_of
from fastreid_al.errors import DataError, SettingError, UserError
from fastreid_al.extract import main as extract_main
from fastreid_al.models import build_model
from fastreid_al.retrieval.feature_file import read_table
from fastreid_al.runs import feature_stream, run_training
from fastreid_al.runs.evaluate import evaluate_file
from fastreid_al.runs.extract import extract_images
from fastreid_al.runs.features_file import read_features
from tests.support.image_sets import put_noise
from tests.support.tiny import MODEL

#: Names that a folder may hold.
ODD = ["a,b_c3.png", 'quote".png', "two\nlines.png", os.fsdecode(b"byte\xff.png"), "z/same_c1.png"]


@pytest.fixture
def weights(tmp_path: Path) -> str:
    torch.manual_seed(0)
    torch.save(build_model(MODEL, "none").state_dict(), tmp_path / "weights.pt")
    return str(tmp_path / "weights.pt")


@pytest.fixture
def options(tmp_path: Path, weights: str) -> ExtractionConfig:
    """The features of five images with odd names."""
    for seed, name in enumerate(ODD):
        put_noise(tmp_path / "images", name, seed)
    out = str(tmp_path / "features.safetensors")
    images = str(tmp_path / "images")
    return ExtractionConfig(weights, images, out, model=MODEL, height=32, width=16)


def test_a_folder_is_written_in_sorted_order_with_names_of_any_bytes(
    options: ExtractionConfig,
) -> None:
    assert extract_images(options) == 5
    table = read_table(Path(options.out))
    assert list(table.names) == sorted(ODD)
    assert table.cameras.tolist() == [
        3 if "c3" in n else 1 if "c1" in n else -1 for n in table.names
    ]
    assert torch.allclose(table.features.norm(dim=1), torch.ones(5), atol=1e-5)
    for row, name in enumerate(table.names):
        content = (Path(options.images) / name).read_bytes()
        assert table.entry(row).digest == digest_of(content)
    assert stat.S_IMODE(os.stat(options.out).st_mode) == 0o600


def test_other_programs_read_the_file_with_the_safetensors_package(
    options: ExtractionConfig,
) -> None:
    extract_images(options)
    tensors = load_file(options.out)
    assert tensors["features"].shape == (5, 64) and tensors["features"].dtype == torch.float32
    offsets, names = tensors["name_offsets"].tolist(), tensors["names"].numpy().tobytes()
    found = [names[a:b] for a, b in itertools.pairwise(offsets)]
    assert found == sorted(map(os.fsencode, ODD))


def test_the_metadata_says_which_network_made_the_features(options: ExtractionConfig) -> None:
    extract_images(options)
    about = read_table(Path(options.out)).about
    assert (about["model"], about["height"], about["width"]) == (MODEL, "32", "16")
    assert (about["stage"], about["flip"], about["precision"]) == ("bn", "false", "float32")
    flipped = replace(options, force=True, engine=replace(options.engine, flip_features=True))
    extract_images(flipped)
    assert read_table(Path(options.out)).about["model_digest"] != about["model_digest"]


def test_parts_give_the_rows_of_one_part(
    options: ExtractionConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    extract_images(options)
    whole = read_table(Path(options.out))
    monkeypatch.setattr(feature_stream, "PART", 2)
    extract_images(replace(options, force=True))
    parts = read_table(Path(options.out))
    assert list(parts.names) == list(whole.names)
    assert torch.allclose(parts.features, whole.features, atol=1e-5)


def test_unreadable_images_are_named_and_left_out(
    options: ExtractionConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    (Path(options.images) / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    assert extract_images(options) == 5
    printed = capsys.readouterr().out
    assert "1 input image(s) could not be read" in printed and "broken.png" in printed
    assert "broken.png" not in list(read_table(Path(options.out)).names)


def test_a_list_keeps_its_order_and_images_that_stand_in_it_twice(
    options: ExtractionConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [f"images/{name}" for name in (ODD[4], ODD[0], ODD[4])]
    (tmp_path / "list.txt").write_text("\r\n".join([*lines, "", "images/missing.png"]))
    assert extract_images(replace(options, images=str(tmp_path / "list.txt"))) == 3
    table = read_table(Path(options.out))
    assert list(table.names) == lines
    assert table.cameras.tolist() == [1, 3, 1]
    assert torch.equal(table.features[0], table.features[2])
    assert "missing.png: No such file or directory" in capsys.readouterr().out


def test_a_manifest_keeps_the_order_of_its_lines_and_its_columns(
    options: ExtractionConfig, tmp_path: Path
) -> None:
    file = tmp_path / "images" / "table.csv"
    file.write_text('path,identity,camera,split\n"a,b_c3.png",bo,7,gallery\nz/same_c1.png,al,2,\n')
    extract_images(replace(options, images=str(file)))
    table = read_table(Path(options.out))
    assert list(table.names) == ["a,b_c3.png", "z/same_c1.png"]
    assert table.cameras.tolist() == [7, 2]
    assert table.identities is not None and table.identities.tolist() == [1, 0]


def test_one_image_is_enough(options: ExtractionConfig) -> None:
    assert extract_images(replace(options, images=f"{options.images}/{ODD[0]}")) == 1
    table = read_table(Path(options.out))
    assert list(table.names) == [ODD[0]] and table.cameras.tolist() == [3]


def empty_folder(root: Path) -> Path:
    (root / "empty").mkdir()
    (root / "empty" / "notes.md").write_text("nothing")
    return root / "empty"


def empty_list(root: Path) -> Path:
    (root / "empty.txt").write_text("\n\n")
    return root / "empty.txt"


def broken_image(root: Path) -> Path:
    (root / "broken.jpg").write_bytes(b"\xff\xd8\xff")
    return root / "broken.jpg"


def empty_table(root: Path) -> Path:
    (root / "empty.csv").write_text("path\n")
    return root / "empty.csv"


def pipe(root: Path) -> Path:
    os.mkfifo(root / "pipe.txt")
    return root / "pipe.txt"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (pipe, "is neither a file nor a folder; name another with `images`"),
        (empty_folder, "holds no image at any depth; name another folder with `images`"),
        (empty_list, "lists no image; write one path a line"),
        (empty_table, "lists no image; add a line for each"),
        (broken_image, "holds no readable image: there is nothing to write"),
        (lambda root: root / "nowhere", "does not exist; `images` is a folder, an image"),
    ],
)
def test_no_image_is_one_line_and_no_file(
    options: ExtractionConfig, tmp_path: Path, make: Callable[[Path], Path], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        extract_images(replace(options, images=str(make(tmp_path))))
    assert not any(".tmp" in name or "features" in name for name in os.listdir(tmp_path))


def test_a_file_is_replaced_with_force_only(options: ExtractionConfig) -> None:
    extract_images(options)
    with pytest.raises(UserError, match="exists: name another file, or replace it with `force`"):
        extract_images(options)
    extract_images(replace(options, force=True))
    with pytest.raises(SettingError, match=r"`out`: got 'x.npz', expected a file whose name ends"):
        extract_images(replace(options, out="x.npz"))


def test_a_full_disk_is_one_line_and_keeps_the_old_file(
    options: ExtractionConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    extract_images(options)
    before = Path(options.out).read_bytes()

    def full(self: files.NewFile, content: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(files.NewFile, "write", full)
    with pytest.raises(UserError, match=r"No space left on device.*another disk with `out`"):
        extract_images(replace(options, force=True))
    assert Path(options.out).read_bytes() == before


def test_the_folder_of_a_run_and_the_features_of_its_evaluation(
    config: RunConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    finished = run_training(replace(config, epochs=1))
    saved = tmp_path / "evaluated.safetensors"
    evaluate_file(
        EvaluationConfig(
            str(finished.folder / "last.pt"),
            "synthetic",
            synthetic=config.synthetic,
            save_features=str(saved),
        )
    )
    evaluated = read_table(saved)
    assert evaluated.identities is not None and len(evaluated) == config.synthetic.train_images
    gallery = read_table(saved, "gallery_")
    assert len(gallery) == config.synthetic.gallery_images
    rows, identities, cameras = read_features(saved)
    assert torch.allclose(rows, evaluated.features, atol=1e-6)
    assert torch.equal(identities, evaluated.identities)
    assert cameras is not None and torch.equal(cameras, evaluated.cameras)
    # The same network, image by image.
    folder = finished.folder
    names = list(gallery.names)[:5]
    root = load("synthetic", synthetic=config.synthetic, verbose=False).root
    (tmp_path / "some.txt").write_text("".join(f"{root / name}\n" for name in names))
    out = tmp_path / "some.safetensors"
    extract_main([f"--checkpoint={folder}", f"--images={tmp_path}/some.txt", f"--out={out}"])
    assert "5 features of 64 values" in capsys.readouterr().out
    some = read_table(out)
    assert torch.allclose(some.features, gallery.features[:5], atol=1e-5)
    assert some.about["model_digest"] == gallery.about["model_digest"]


def test_a_file_that_exists_is_not_replaced_by_an_evaluation(
    options: ExtractionConfig, tmp_path: Path
) -> None:
    (tmp_path / "old.safetensors").write_text("precious")
    saved = str(tmp_path / "old.safetensors")
    with pytest.raises(UserError, match="exists"):
        evaluate_file(EvaluationConfig(options.checkpoint, model=MODEL, save_features=saved))
    assert (tmp_path / "old.safetensors").read_text() == "precious"
