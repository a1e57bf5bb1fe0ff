"""Features in memory: the same for a path, an image and an array, from any number of threads."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fastreid_al.config import ExtractionConfig
from fastreid_al.errors import CheckpointError, DataError, DivergedError, SettingError, WeightsError
from fastreid_al.infer import Embedder
from fastreid_al.models import build_model
from fastreid_al.retrieval.feature_file import read_table
from fastreid_al.runs.extract import extract_images
from tests.support.image_sets import put_noise
from tests.support.tiny import MODEL


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    torch.manual_seed(0)
    file = tmp_path_factory.mktemp("weights") / "weights.pt"
    torch.save(build_model(MODEL, "none").state_dict(), file)
    return str(file)


@pytest.fixture(scope="module")
def embedder(weights: str) -> Embedder:
    return Embedder(weights, "cpu", model=MODEL, height=48, width=24)


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Images of several sizes, modes and orientations."""
    folder = tmp_path_factory.mktemp("images")
    random = np.random.default_rng(0)
    for number in range(4):
        put_noise(folder, f"{number}.png", number)
    noise = random.integers(0, 256, (40, 30, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(noise).save(folder / "turned.jpg", exif=exif)
    Image.fromarray(noise[..., 0]).save(folder / "grey.png")
    deep = random.integers(0, 65536, (20, 20), dtype=np.uint16)
    Image.fromarray(deep).save(folder / "deep.png")
    Image.fromarray(noise).convert("CMYK").save(folder / "cmyk.tif")
    Image.fromarray(noise).quantize(16).save(folder / "palette.gif")
    return sorted(map(str, folder.iterdir()))


def test_attributes_describe_the_network(embedder: Embedder) -> None:
    assert (embedder.dim, embedder.height, embedder.width) == (64, 48, 24)
    assert len(embedder.digest) == 64


def test_a_path_and_the_image_of_it_have_the_same_bits(
    embedder: Embedder, paths: list[str]
) -> None:
    opened = [Image.open(path) for path in paths]
    features = embedder(paths)
    assert features.shape == (len(paths), 64) and features.dtype == torch.float32
    assert torch.equal(features, embedder(opened))
    assert torch.allclose(features.norm(dim=1), torch.ones(len(paths)), atol=1e-5)
    assert torch.equal(embedder(paths[0]), embedder(Image.open(paths[0])))
    assert torch.equal(embedder(Path(paths[0])), embedder([paths[0]]))


def test_arrays_have_the_features_of_their_images(embedder: Embedder, paths: list[str]) -> None:
    some = [path for path in paths if path.endswith(("0.png", "1.png"))]
    arrays = [np.array(Image.open(path)) for path in some]
    expected = embedder(some)
    assert torch.equal(embedder(arrays), expected)
    assert torch.equal(embedder(np.stack(arrays)), expected)
    assert torch.equal(embedder(torch.from_numpy(np.stack(arrays))), expected)
    assert torch.equal(embedder([x[..., ::-1] for x in arrays], color="bgr"), expected)
    assert torch.equal(embedder(arrays[0]), embedder(some[0]))
    assert not torch.allclose(embedder(arrays, color="bgr"), expected, atol=1e-3)
    grey = next(path for path in paths if path.endswith("grey.png"))
    assert torch.equal(embedder(np.array(Image.open(grey))), embedder(grey))
    assert torch.equal(embedder(np.array(Image.open(grey)), color="bgr"), embedder(grey))


def test_the_features_are_those_of_extract(
    embedder: Embedder, weights: str, paths: list[str], tmp_path: Path
) -> None:
    out = str(tmp_path / "x.safetensors")
    folder = str(Path(paths[0]).parent)
    extract_images(ExtractionConfig(weights, folder, out, model=MODEL, height=48, width=24))
    table = read_table(Path(out))
    assert [Path(path).name for path in paths] == list(table.names)
    assert torch.allclose(embedder(paths), table.features, atol=1e-6)
    assert table.about["model_digest"] == embedder.digest


def test_eight_threads_get_the_same_bits(embedder: Embedder, paths: list[str]) -> None:
    expected = embedder(paths)
    shared = [Image.open(path) for path in paths]
    with ThreadPoolExecutor(8) as pool:
        calls = [pool.submit(embedder, shared if turn % 2 else paths) for turn in range(32)]
        assert all(torch.equal(call.result(), expected) for call in calls)


def test_batches_do_not_change_the_rows(weights: str, paths: list[str]) -> None:
    small = Embedder(weights, "cpu", model=MODEL, height=48, width=24, batch=2)
    large = Embedder(weights, "cpu", model=MODEL, height=48, width=24)
    assert torch.allclose(small(paths), large(paths), atol=1e-6)


def test_no_image_is_no_row(embedder: Embedder) -> None:
    assert embedder([]).shape == (0, 64)
    assert embedder(np.empty((0, 8, 8, 3), np.uint8)).shape == (0, 64)


BAD: list[tuple[Any, str]] = [
    (np.zeros((8, 8, 3), np.float32), "image 0: got dtype float32, expected uint8"),
    (torch.zeros(8, 8, 3, dtype=torch.bfloat16), "image 0: got dtype torch.bfloat16, expected"),
    (np.zeros((8, 8), np.uint16), "image 0: got dtype uint16, expected uint8"),
    (np.zeros((3, 8, 8), np.uint8), r"image 0: got shape \(3, 8, 8\), expected \(H, W, 3\)"),
    (np.zeros((8, 8, 4), np.uint8), r"got shape \(8, 8, 4\)"),
    (np.zeros((0, 8, 3), np.uint8), r"got shape \(0, 8, 3\)"),
    (np.zeros((2, 3, 8, 8), np.uint8), r"image 0: got shape \(3, 8, 8\)"),
    (np.zeros((1, 1, 1, 1, 1), np.uint8), r"got shape \(1, 1, 1, 1, 1\)"),
    ([np.zeros((8, 8, 3), np.uint8), None], "image 1: got NoneType, expected a path"),
    (3, "images: got int, expected a path"),
    (None, "images: got NoneType"),
    (b"abc", "images: got bytes"),
    ({"a": 1}, "images: got dict"),
]


@pytest.mark.parametrize(("images", "message"), BAD)
def test_what_is_no_image_is_refused(embedder: Embedder, images: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message) as raised:
        embedder(images)
    assert "\n" not in str(raised.value)


def test_features_that_are_not_finite_are_refused(
    weights: str, paths: list[str], tmp_path: Path
) -> None:
    state = torch.load(weights)
    name = next(name for name, value in state.items() if value.is_floating_point())
    state[name].fill_(3e38)
    torch.save(state, tmp_path / "diverged.pt")
    diverged = Embedder(tmp_path / "diverged.pt", "cpu", model=MODEL, height=48, width=24)
    with pytest.raises(DivergedError, match=r"diverged\.pt are not finite"):
        diverged(paths[0])


def test_an_unreadable_file_is_named(embedder: Embedder, tmp_path: Path) -> None:
    (tmp_path / "x.jpg").write_bytes(b"\xff\xd8\xff")
    with pytest.raises(DataError, match=r"x.jpg cannot be read as an image"):
        embedder([str(tmp_path / "x.jpg")])
    with pytest.raises(DataError, match=r"nowhere.jpg cannot be read as an image \(No such file"):
        embedder("nowhere.jpg")
    (tmp_path / "short.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(50))
    with pytest.raises(DataError, match="not an image"):
        embedder(tmp_path / "short.png")


def test_arguments_that_fit_nothing_are_refused(weights: str, embedder: Embedder) -> None:
    with pytest.raises(ValueError, match="color: got 'gray', expected rgb or bgr"):
        embedder([], color="gray")  # type: ignore[arg-type]
    for batch in (0, True, 2.5):
        with pytest.raises(ValueError, match="batch: got"):
            Embedder(weights, "cpu", model=MODEL, batch=batch)  # type: ignore[arg-type]
    with pytest.raises(SettingError, match="`precision`: got 'fp16'"):
        Embedder(weights, "cpu", model=MODEL, precision="fp16")  # type: ignore[arg-type]
    with pytest.raises(SettingError, match="`device`: got 'tpu'"):
        Embedder(weights, "tpu", model=MODEL)
    with pytest.raises(WeightsError, match="does not exist"):
        Embedder("nowhere.pt")
    with pytest.raises(CheckpointError, match="is not the folder of a run"):
        Embedder(str(Path(weights).parent))
