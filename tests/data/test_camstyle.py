"""Camera styles: who is drawn, what the statistics do to an image, and CamStyle's files found, missing and wrong."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from fastreid_al.config import ImageConfig, StyleConfig, SyntheticConfig
from fastreid_al.data import camera_style as camstyle
from fastreid_al.data import pixels
from fastreid_al.data.camera_style import (
    CameraStyle,
    ColourStyle,
    FileStyle,
    FourierStyle,
    camera_style,
)
from fastreid_al.data.pixels import PixelStore
from fastreid_al.data.records import STYLE_COPIES as COPIES
from fastreid_al.data.records import ImageSet, Record
from fastreid_al.errors import DataError
from fastreid_al.synthetic import render

SIZE = ImageConfig(height=32, width=16, cache="none")


def stored(pixels: Tensor) -> PixelStore:
    return PixelStore(pixels, torch.arange(len(pixels)), [""] * len(pixels), [])


def records_of(cameras: Sequence[int]) -> list[Record]:
    return [Record(Path(f"{i:04d}.jpg"), 0, camera) for i, camera in enumerate(cameras)]


def smooth(n: int, height: int = 32, width: int = 16) -> Tensor:
    """Random images with most of their variance at low frequencies, as photographs have."""
    coarse = 40 + 160 * torch.rand(n, 3, 4, 2)
    fine = torch.nn.functional.interpolate(
        coarse, (height, width), mode="bilinear"
    ) + 12 * torch.randn(n, 3, height, width)
    return fine.clamp(0, 255).to(torch.uint8)


def lab(images: Tensor) -> Tensor:
    """sRGB (B, 3, H, W) in [0, 255] to CIELAB under D65, float64."""
    to_xyz = torch.tensor(
        [
            [0.4124564, 0.3575761, 0.1804375],
            [0.2126729, 0.7151522, 0.0721750],
            [0.0193339, 0.1191920, 0.9503041],
        ],
        dtype=torch.float64,
    )
    rgb = images.double().movedim(1, -1) / 255
    linear = torch.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    xyz = linear @ to_xyz.T / to_xyz.sum(1)
    x, y, z = torch.where(
        xyz > (6 / 29) ** 3, xyz ** (1 / 3), xyz * (29 / 6) ** 2 / 3 + 4 / 29
    ).unbind(-1)
    return torch.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], 1)


def colour_distance(a: Tensor, b: Tensor) -> float:
    return float((lab(a) - lab(b)).norm(dim=1).mean())


class Marked(CameraStyle):
    """Fills an image with the place of its camera."""

    def _restyle(self, pixels: Tensor, rows: Tensor, own: Tensor, drawn: Tensor) -> Tensor:
        return drawn.view(-1, 1, 1, 1).expand(pixels.shape).to(torch.uint8)

    def describe(self) -> str:
        return "marked"


@pytest.mark.parametrize(
    ("probability", "own", "others"),
    [(None, 0.25, 0.25), (0.6, 0.4, 0.2), (0.0, 1.0, 0.0), (1.0, 0.0, 1 / 3)],
)
def test_cameras_are_drawn_with_the_probability_asked_for(
    probability: float | None, own: float, others: float
) -> None:
    style = Marked(records_of([2, 5, 11, 15, -1]), probability)
    generator = torch.Generator().manual_seed(0)
    rows = torch.arange(5).repeat_interleave(3000)
    drawn = style(torch.full((15_000, 1, 1, 1), 99, dtype=torch.uint8), rows, generator)[
        :, 0, 0, 0
    ].view(5, 3000)
    assert (drawn[4] == 99).all()
    for camera in range(4):
        counts = torch.bincount(drawn[camera], minlength=100)[[0, 1, 2, 3, 99]] / 3000
        expected = torch.full((5,), others)
        expected[camera], expected[4] = 0, own
        assert (counts - expected).abs().max() < 0.035


@pytest.mark.parametrize("probability", [None, 0.0, 0.5, 1.0])
def test_as_many_numbers_are_drawn_whatever_comes_of_them(probability: float | None) -> None:
    generator, plain = torch.Generator().manual_seed(3), torch.Generator().manual_seed(3)
    Marked(records_of([1, 2, -1]), probability)(
        torch.zeros(3, 3, 2, 2, dtype=torch.uint8), torch.arange(3), generator
    )
    torch.rand(2, 3, generator=plain)
    assert torch.equal(generator.get_state(), plain.get_state())


def styles(
    pixels: Tensor, cameras: Sequence[int], probability: float | None = None
) -> list[CameraStyle]:
    records, store = records_of(cameras), stored(pixels)
    return [
        ColourStyle(records, store, probability),
        FourierStyle(records, store, 0.1, probability),
    ]


@pytest.mark.parametrize("kind", [0, 1])
def test_an_image_of_its_own_or_an_unknown_camera_is_untouched_and_the_rest_change(
    kind: int,
) -> None:
    cameras = [1, 2, 3, -1] * 12
    pixels = smooth(48)
    pixels[1::4] //= 2
    style = styles(pixels, cameras)[kind]
    rows = torch.randperm(48)
    drawn = style._draw(style.cameras[rows], torch.Generator().manual_seed(1))
    same = drawn == style.cameras[rows]
    found = style(pixels[rows], rows, torch.Generator().manual_seed(1))
    assert 12 < same.sum() < 40
    assert torch.equal(found[same], pixels[rows][same].float())
    assert all((found[i] != pixels[rows[i]]).any() for i in (~same).nonzero()[:, 0].tolist())
    assert (
        found.dtype == torch.float32
        and found.shape == pixels.shape
        and found.min() >= 0
        and found.max() <= 255
    )


@pytest.mark.parametrize("kind", [0, 1])
def test_the_state_of_the_generator_repeats_the_styles(kind: int) -> None:
    pixels = smooth(24)
    style, again = (styles(pixels, [1, 2, 3] * 8)[kind] for _ in range(2))
    generator, rows = torch.Generator().manual_seed(9), torch.arange(24)
    state = generator.get_state()
    first, second = style(pixels, rows, generator), style(pixels, rows, generator)
    generator.set_state(state)
    assert torch.equal(again(pixels, rows, generator), first)
    assert not torch.equal(first, second)


SPACES = pytest.mark.parametrize("space", ["lab", "rgb"])


def test_colours_go_to_cielab_and_back() -> None:
    known = torch.tensor(
        [[255.0, 255, 255], [0, 0, 0], [255, 0, 0], [0, 255, 0], [119, 119, 119]]
    ).T[None]
    expected = torch.tensor(
        [[100.0, 0, 0], [0, 0, 0], [53.24, 80.09, 67.20], [87.74, -86.18, 83.18], [50.03, 0, 0]]
    )
    assert torch.allclose(camstyle.rgb_to_lab(known)[0].T, expected, atol=0.02)
    images = torch.randint(256, (4, 3, 40, 10), dtype=torch.uint8)
    found = camstyle.rgb_to_lab(images.flatten(2).double())
    assert torch.allclose(found.view(images.shape), lab(images).double(), atol=2e-3)
    assert torch.allclose(camstyle.lab_to_rgb(found), images.flatten(2).double(), atol=1e-3)


@SPACES
def test_colours_of_a_planted_cast_are_recovered(space: str) -> None:
    """Cameras that see the same kind of people, each through a colour matrix of its own."""
    mixes = torch.eye(3) + torch.tensor([0.0, 0.12, 0.2])[:, None, None] * (
        2 * torch.rand(3, 3, 3) - 1
    )
    shifts = torch.tensor([[0.0, 0, 0], [25, -5, -20], [-20, 10, 15]])

    def seen(images: Tensor, camera: int) -> Tensor:
        cast = torch.einsum("ij,bjhw->bihw", mixes[camera], 0.6 * images.float() + 40)
        return (cast + shifts[camera].view(3, 1, 1)).round().clamp(0, 255).to(torch.uint8)

    train = torch.cat([seen(smooth(100), camera) for camera in range(3)])
    style = ColourStyle(records_of([1] * 100 + [4] * 100 + [7] * 100), stored(train), 1.0, space)
    people = smooth(20)
    for a, b in ((0, 1), (1, 2), (2, 0), (2, 1)):
        source, wanted = seen(people, a), seen(people, b)
        own, drawn = torch.full((20,), a), torch.full((20,), b)
        found = style._restyle(source, own, own, drawn)
        assert colour_distance(found, wanted) < 0.2 * colour_distance(source, wanted)
        back = style._restyle(found, own, drawn, own)
        assert colour_distance(back, source) < 0.1 * colour_distance(found, source)


@SPACES
def test_colours_of_drawn_cameras_come_closer_though_people_and_places_differ(space: str) -> None:
    config = SyntheticConfig(height=64, cast=3.0)

    def seen(who: int, camera: int, like: int) -> Tensor:
        image = render.draw_image(config, "train", who, camera, 0)
        response, other = (render._camera(0, c, 64, 3.0).curve for c in (camera, like))
        for channel in range(3) if like != camera else ():
            inverse = np.abs(response[channel].astype(int)[None] - np.arange(256)[:, None]).argmin(
                1
            )
            image[..., channel] = other[channel][inverse[image[..., channel]]]
        return torch.from_numpy(np.array(Image.fromarray(image).resize((24, 64)))).movedim(-1, 0)

    cameras = (1, 2, 3)
    train = torch.stack(
        [seen(who, camera, camera) for camera in cameras for who in range(camera, 60, 4)]
    )
    style = ColourStyle(
        records_of([camera for camera in cameras for _ in range(camera, 60, 4)]),
        stored(train),
        space=space,
    )
    before, after = [], []
    for a, b in ((1, 2), (2, 3), (3, 1)):
        source, wanted = (
            torch.stack([seen(who, a, like) for who in range(60, 66)]) for like in (a, b)
        )
        own, drawn = torch.full((6,), a - 1), torch.full((6,), b - 1)
        before.append(colour_distance(source, wanted))
        after.append(colour_distance(style._restyle(source, own, own, drawn), wanted))
    assert np.mean(after) < 0.4 * np.mean(before)


@SPACES
def test_cameras_of_a_single_colour_have_a_finite_map(space: str) -> None:
    pixels = (
        torch.tensor([10, 10, 200, 200], dtype=torch.uint8)
        .view(4, 1, 1, 1)
        .expand(4, 3, 8, 4)
        .contiguous()
    )
    style = ColourStyle(records_of([1, 1, 2, 2]), stored(pixels), 1.0, space)
    found = style(pixels, torch.arange(4), torch.Generator())
    assert torch.allclose(found, pixels.flip(0).float(), atol=1e-2)


def test_statistics_are_those_of_the_sample_of_each_camera(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(camstyle, "SAMPLE", 5)
    pixels, seen = smooth(30), []
    records = records_of([1, 2, 2] * 10)
    style = ColourStyle(
        records,
        stored(pixels),
        space="rgb",
        on_progress=lambda done, total: seen.append((done, total)),
    )
    assert style.read == 10 and seen[-1] == (10, 10)
    first, second = pixels[[0, 6, 12, 18, 24]], pixels[[1, 7, 13, 19, 25]]
    expected = torch.stack([x[:, :, ::2, ::2].double().mean((0, 2, 3)) for x in (first, second)])
    assert torch.allclose(style.means.double(), expected, atol=1e-4)
    assert "2 cameras, from 10 images" in style.describe()


@pytest.mark.parametrize(
    ("height", "width", "band"), [(32, 16, 0.1), (33, 15, 0.2), (16, 8, 0.01), (12, 10, 0.5)]
)
def test_amplitudes_in_the_band_take_the_ratio_and_phases_stay(
    height: int, width: int, band: float
) -> None:
    pixels = smooth(60, height, width)
    pixels[::2] = pixels[::2] // 2 + 60
    style = FourierStyle(records_of([1, 2] * 30), stored(pixels), band, 1.0)
    spectra = torch.fft.fft2(pixels.double())
    mean = torch.stack([spectra[start::2].abs().mean(0) for start in (0, 1)])
    rows, columns = (torch.fft.fftfreq(size, 1 / size).abs() for size in (height, width))
    box = (rows <= int(band * height))[:, None] & (columns <= int(band * width))
    source = pixels[:2]
    own, drawn = torch.tensor([0, 1]), torch.tensor([1, 0])
    ratio = torch.where(box, mean[drawn] / mean[own], 1.0)
    expected = torch.fft.ifft2(spectra[:2] * ratio).real
    found = style._restyle(source, own, own, drawn)
    assert torch.allclose(found.double(), expected.clamp(0, 255), atol=0.05)
    # Far enough from black and white nothing is clamped, so that the phases can be seen.
    inside = expected.amin((1, 2, 3)).ge(0) & expected.amax((1, 2, 3)).le(255)
    assert inside.any()
    kept = torch.fft.fft2(found.double())[inside] * spectra[:2][inside].conj()
    assert (kept.real > 0.99 * kept.abs())[:, :, box].all()


def test_brightness_follows_the_drawn_camera() -> None:
    pixels = smooth(80)
    pixels[::2] //= 3
    style = FourierStyle(records_of([1, 2] * 40), stored(pixels), 0.02, 1.0)
    found = style(pixels, torch.arange(80), torch.Generator())
    dark, bright = pixels[::2].float().mean(), pixels[1::2].float().mean()
    assert (found[::2].mean() - bright).abs() < 0.02 * bright
    assert (found[1::2].mean() - dark).abs() < 0.1 * dark  # some of it is clamped at black


Make = Callable[..., tuple[ImageSet, list[Record], PixelStore]]

MARKET = ["0002_c1s1_000451_03", "0002_c2s1_000001_01", "0007_c3s3_077419_02"]
MSMT17 = [
    "0000_000_01_0303morning_0008_0",
    "0000_001_02_0303noon_0009_1",
    "0001_000_14_0303noon_0010_2",
]


def save(path: Path, grey: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (16, 32), (grey, grey, grey)).save(path)


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """A set with these images, of cameras, and these copies (name without suffix, grey value)."""

    def made(
        stems: Sequence[str], cameras: Sequence[int], copies: dict[str, int], suffix: str = ".png"
    ):
        records = [
            Record(tmp_path / "bounding_box_train" / f"{s}.png", 0, c)
            for s, c in zip(stems, cameras, strict=True)
        ]
        for name, grey in copies.items():
            save(tmp_path / COPIES / f"{name}{suffix}", grey)
        pixels = torch.zeros(len(stems), 3, 32, 16, dtype=torch.uint8)
        return ImageSet("market1501", tmp_path, records, [], []), records, stored(pixels)

    return made


def built(
    parts: tuple[ImageSet, list[Record], PixelStore],
    tmp_path: Path,
    warnings: list[str],
    kind: str = "files",
) -> CameraStyle | None:
    images, records, store = parts
    return camera_style(
        kind, images, records, store, StyleConfig(1.0), SIZE, tmp_path / "store", warnings.append
    )


@pytest.mark.parametrize(
    ("stems", "cameras", "scheme", "suffix"),
    [
        (MARKET, (1, 2, 3), "{stem}_fake_{own}to{other}", ".jpg"),
        (MSMT17, (1, 2, 14), "{stem}_fake_{other}", ".png"),
        (MSMT17, (1, 2, 14), "deep/er/{stem}_fake_{other:02d}", ".JPEG"),
    ],
)
def test_copies_of_both_naming_schemes_are_found(
    make: Make, tmp_path: Path, stems: list[str], cameras: tuple[int, ...], scheme: str, suffix: str
) -> None:
    greys = {
        (i, other): 20 * i + other + 100
        for i in range(3)
        for other in cameras
        if other != cameras[i]
    }
    names = {
        scheme.format(stem=stems[i], own=cameras[i], other=o): grey
        for (i, o), grey in greys.items()
    }
    parts, warnings = make(stems, cameras, names, suffix), []
    style = built(parts, tmp_path, warnings)
    assert isinstance(style, FileStyle) and warnings == []
    assert list(style.digests) == [COPIES] and style.digests[COPIES].startswith("6 copies ")
    assert "6 copies in the styles of 3 cameras" in style.describe()
    rows = torch.tensor([2, 0, 1, 1, 0, 2] * 10)
    found = style(torch.zeros(60, 3, 32, 16, dtype=torch.uint8), rows, torch.Generator())
    assert found.dtype == torch.uint8 and (found == found[:, :1, :1, :1]).all()
    for row in range(3):
        seen = set(found[rows == row][:, 0, 0, 0].tolist())
        assert seen == {grey for (i, _), grey in greys.items() if i == row}


def market_copies(*left_out: str) -> dict[str, int]:
    names = [f"{MARKET[i]}_fake_{i + 1}to{o}" for i in range(3) for o in (1, 2, 3) if o != i + 1]
    return {name: 90 for name in names if name not in left_out}


def test_missing_copies_are_counted_in_one_line_and_leave_the_image_as_it_is(
    make: Make, tmp_path: Path
) -> None:
    gone = (f"{MARKET[0]}_fake_1to2", f"{MARKET[0]}_fake_1to3")
    warnings: list[str] = []
    style = built(make(MARKET, (1, 2, 3), market_copies(*gone)), tmp_path, warnings)
    assert style is not None and len(warnings) == 1
    assert (
        re.search(r"^2 of 6 copies .* are missing from .*camstyle", warnings[0])
        and "\n" not in warnings[0]
    )
    found = style(
        torch.full((3, 3, 32, 16), 7, dtype=torch.uint8), torch.arange(3), torch.Generator()
    )
    assert found[:, 0, 0, 0].tolist() == [7, 90, 90]


def test_unreadable_copies_are_named_and_left_out(make: Make, tmp_path: Path) -> None:
    parts = make(MARKET, (1, 2, 3), market_copies())
    broken = tmp_path / COPIES / f"{MARKET[1]}_fake_2to1.png"
    broken.write_bytes(b"no image")
    warnings: list[str] = []
    style = built(parts, tmp_path, warnings)
    assert style is not None and style.digests[COPIES].startswith("5 copies ")
    assert (
        warnings[0].startswith("1 camstyle image(s) could not be read")
        and f"{broken}: not an image" in warnings[0]
    )
    assert warnings[1].startswith("1 of 6 copies")
    found = style(
        torch.full((64, 3, 32, 16), 7, dtype=torch.uint8), torch.ones(64).long(), torch.Generator()
    )
    assert set(found[:, 0, 0, 0].tolist()) == {7, 90}
    for path in (tmp_path / COPIES).iterdir():
        path.write_bytes(b"no image")
    with pytest.raises(DataError, match="none of 6 copies can be read"):
        built(parts, tmp_path, warnings)


def test_copies_are_kept_and_found_again(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, records, _ = make(MARKET, (1, 2, 3), market_copies())
    size = replace(SIZE, cache=str(tmp_path / "kept"))
    first = FileStyle(images, records, size, tmp_path, [].append)
    monkeypatch.setattr(pixels, "to_rgb", None)
    again = FileStyle(images, records, size, tmp_path, [].append)
    assert first.digests == again.digests and torch.equal(first.table, again.table)
    given = torch.zeros(3, 3, 32, 16, dtype=torch.uint8), torch.arange(3)
    drawn = (style(*given, torch.Generator().manual_seed(1)) for style in (first, again))
    assert torch.equal(*drawn)


def test_what_is_no_copy_of_a_training_image_is_not_read(make: Make, tmp_path: Path) -> None:
    others = {
        "0001_c9s1_000001_01_fake_9to1": 1,
        MARKET[0]: 2,
        "thumbs": 3,
        f"{MARKET[0]}_fake_1to1": 4,
    }
    warnings: list[str] = []
    style = built(
        make(
            [*MARKET, "x"],
            (1, 2, 3, -1),
            {**market_copies(), **others, "x_fake_2": 5, "x_fake_1to2": 6},
        ),
        tmp_path,
        warnings,
    )
    assert style is not None and warnings == [] and style.digests[COPIES].startswith("6 copies ")


@pytest.mark.parametrize(
    ("copy", "message"),
    [
        (
            f"{MARKET[0]}_fake_1to8",
            r"_fake_1to8.png is for camera 8; the training images' cameras are 1, 2, 3. Put",
        ),
        (
            f"{MARKET[0]}_fake_8",
            r"_fake_8.png is for camera 8; the training images' cameras are 1, 2, 3. Put",
        ),
        (
            f"{MARKET[0]}_fake_3to2",
            r"_fake_3to2.png is from camera 3, not the image's 1; .* are 1, 2, 3. Put",
        ),
    ],
)
def test_copies_of_other_cameras_are_refused_in_one_line(
    make: Make, tmp_path: Path, copy: str, message: str
) -> None:
    with pytest.raises(DataError, match=message) as error:
        built(make(MARKET, (1, 2, 3), {**market_copies(), copy: 1}), tmp_path, [])
    assert "\n" not in str(error.value) and "--camstyle none" in str(error.value)


def test_copies_of_another_set_are_refused(make: Make, tmp_path: Path) -> None:
    with pytest.raises(
        DataError,
        match=r"no file in .* is the copy of a training image; expected names like 0000_000_01",
    ):
        built(make(MSMT17, (1, 2, 14), market_copies()), tmp_path, [])


def test_copies_of_two_images_of_one_name_are_refused(make: Make, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="the copy of more than one training image"):
        built(make([MARKET[0], *MARKET], (1, 1, 2, 3), market_copies()), tmp_path, [])


def test_without_the_folder_there_is_one_warning_and_no_style(make: Make, tmp_path: Path) -> None:
    warnings: list[str] = []
    assert built(make(MARKET, (1, 2, 3), {}), tmp_path, warnings) is None
    assert (
        len(warnings) == 1 and f"{COPIES} does not exist; training goes on without" in warnings[0]
    )


@pytest.mark.parametrize("kind", ["colour", "fourier", "files"])
@pytest.mark.parametrize("cameras", [(1, 1, 1), (-1, -1, -1), (-1, 3, -1)])
def test_fewer_than_two_known_cameras_have_no_styles(
    make: Make, tmp_path: Path, kind: str, cameras: tuple[int, ...]
) -> None:
    warnings: list[str] = []
    assert built(make(MARKET, cameras, market_copies()), tmp_path, warnings, kind) is None
    assert len(warnings) == 1 and f"of {len(set(cameras) - {-1})} camera(s)" in warnings[0]


@pytest.mark.parametrize(
    ("kind", "made"), [("colour", ColourStyle), ("fourier", FourierStyle), ("none", type(None))]
)
def test_each_kind_is_made(make: Make, tmp_path: Path, kind: str, made: type) -> None:
    warnings: list[str] = []
    style = built(make(MARKET, (1, 2, 3), {}), tmp_path, warnings, kind)
    assert type(style) is made and warnings == []
    assert style is None or (style.probability == 1.0 and style.digests == {})
