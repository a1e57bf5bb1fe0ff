"""Training images in the styles of other cameras: a batch at a time, where the batch lies (CPU or GPU).

Three ways to a style: `ColourStyle` and `FourierStyle` compute it from statistics of each camera's images, taken once;
`FileStyle` reads copies that a generative network made of each image for each other camera (CamStyle: Zhong et al., CVPR 2018).
"""

from __future__ import annotations

import hashlib
import math
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from ..config import ImageConfig, StyleConfig, StyleName
from ..distributed.world import SINGLE_PROCESS, World
from ..errors import DataError
from .folder import images_below
from .loader import BatchLoader, device_constant, to_device_async
from .pixels import PixelStore, cache_folder, decode
from .records import STYLE_COPIES, UNKNOWN, ImageSet, Record

#: Images of a camera that its statistics are taken from.
SAMPLE = 400
_BLOCK = 64

#: Rows and columns between two pixels of the colour statistics.
_STRIDE = 2

#: Variance that is added to both cameras' colours before they are matched: squared grey levels, squared units of CIELAB.
_FLOOR = {"rgb": 200.0, "lab": 30.0}

_COPY = re.compile(r"(?P<image>.+)_fake_(?:(?P<source>\d+)to)?(?P<target>\d+)")

Progress = Callable[[int, int], None]


class Styles(NamedTuple):
    """The styles drawn for a batch: rows of the store, the cameras there, the cameras drawn; (n,) int64 on the CPU."""

    rows: Tensor
    own: Tensor
    drawn: Tensor

    def part(self, rows: slice) -> Styles:
        """Those of a part of the batch."""
        return Styles(*(x[rows] for x in self))


class CameraStyle(ABC):
    """Draws a camera for each image of a batch and gives the image its style.

    Each camera of the set is as probable as the image's own; with a probability, one of the other cameras is drawn with that
    probability, each as often. An image drawn as its own camera stays as it is, bit for bit; so does one of unknown camera.

    Args:
        records: The n training images, in the order of the store's rows.
        probability: Probability of another camera, or None.
    """

    def __init__(self, records: Sequence[Record], probability: float | None) -> None:
        self.numbers = known_cameras(records)
        place = {camera: index for index, camera in enumerate(self.numbers)}
        self.cameras = torch.tensor([place.get(r.camera, UNKNOWN) for r in records])
        self.probability = probability
        #: Name -> digest of what the styles are made from beside the training images.
        self.digests: dict[str, str] = {}

    def __call__(self, pixels: Tensor, rows: Tensor, generator: torch.Generator) -> Tensor:
        """Draw styles.

        Args:
            pixels: (B, 3, H, W) uint8, on any device.
            rows: (B,) int64, the images' rows in the training store.
            generator: On the CPU; two numbers an image are drawn whatever comes of them.

        Returns:
            (B, 3, H, W) in [0, 255]: float32, unrounded, where a style was computed, uint8 otherwise.
        """
        return self.apply(pixels, self.draw(rows, generator))

    def draw(self, rows: Tensor, generator: torch.Generator) -> Styles:
        """Draw a camera for each of the images at rows (n,) int64; on a GPU they would be waited for."""
        rows = rows.cpu()
        own = self.cameras[rows]
        return Styles(rows, own, self._draw(own, generator))

    def apply(self, pixels: Tensor, styles: Styles) -> Tensor:
        """Give images (B, 3, H, W) the B styles drawn for them; the result is that of a call."""
        changed = (styles.drawn != styles.own).nonzero()[:, 0]
        if not len(changed):
            return pixels
        where = to_device_async(changed, pixels.device)
        styled = self._restyle(pixels[where], *(x[changed] for x in styles))
        return pixels.to(styled.dtype).index_copy(0, where, styled)

    def _draw(self, own: Tensor, generator: torch.Generator) -> Tensor:
        """A camera for each image: (B,) int64 indices of `numbers`, the image's own where it keeps its look."""
        count = len(self.numbers)
        whether, which = torch.rand(2, len(own), generator=generator)
        if self.probability is None:
            drawn = (which * count).long()
        else:
            other = (which * (count - 1)).long()
            drawn = torch.where(whether < self.probability, other + (other >= own), own)
        return torch.where(own == UNKNOWN, own, drawn)

    @abstractmethod
    def _restyle(self, pixels: Tensor, rows: Tensor, own: Tensor, drawn: Tensor) -> Tensor:
        """Images (B, 3, H, W) uint8 from their own cameras to those drawn; the (B,) arguments are on the CPU."""

    @abstractmethod
    def describe(self) -> str:
        """One line for the log."""


class ColourStyle(CameraStyle):
    """Moves an image's colours by the linear map between two cameras' colour distributions, both taken as Gaussian, in CIELAB.

    The map is Monge and Kantorovich's, the one that moves colours least (Pitie and Kokaram, CVMP 2007): with covariances S of
    the image's own camera and D of the drawn one, S^-1/2 (S^1/2 D S^1/2)^1/2 S^-1/2. Both get a little variance more, because
    cameras also differ in what they look at. On drawn people under simulated casts (mean distance in CIELAB between an image
    moved from camera a to b and the same scene under b's cast; each camera's statistics are of its own people and place):

        cast                                        none moved    CIELAB    RGB
        synthetic set's, strength 1                            8.3       3.9    3.5
        synthetic set's, strength 4                           26.4       5.7    4.3
        strength 1, channels mixed by up to 0.15           9.6       4.3    4.3
        strength 1, channels mixed by up to 0.3           11.0       4.8    4.6

    The pixels' own RGB costs less, and is nearer where the drawn gains differ much.

    Up to 400 images of a camera are sampled, every 2nd row and column; the maps take 36 bytes for each pair of cameras.

    Args:
        records: The n training images.
        store: Their pixels, n rows.
        probability: As for `CameraStyle`.
        space: lab or rgb.
        on_progress: Called with (images read, images in all).
    """

    def __init__(
        self,
        records: Sequence[Record],
        store: PixelStore,
        probability: float | None = None,
        space: Literal["lab", "rgb"] = "lab",
        on_progress: Progress | None = None,
    ) -> None:
        super().__init__(records, probability)
        self.space = space
        count = len(self.numbers)
        pixels, total = (
            torch.zeros(count, dtype=torch.float64),
            torch.zeros(count, 3, dtype=torch.float64),
        )
        square = torch.zeros(count, 3, 3, dtype=torch.float64)
        self.read = 0
        for camera, images in _sampled(self.cameras, count, store, on_progress):
            sampled = images[:, :, ::_STRIDE, ::_STRIDE].flatten(2).double()
            colours = (
                (rgb_to_lab(sampled) if space == "lab" else sampled).transpose(0, 1).flatten(1)
            )
            pixels[camera] += colours.shape[1]
            total[camera] += colours.sum(1)
            square[camera] += colours @ colours.T
            self.read += len(images)
        mean = total / pixels[:, None]
        covariance = square / pixels[:, None, None] - mean[:, :, None] * mean[:, None]
        self.means = mean.float()
        #: (C, C, 3, 3) float32, from the first camera to the second.
        self.maps = _between_gaussians(
            covariance + _FLOOR[space] * torch.eye(3, dtype=torch.float64)
        ).float()

    def _restyle(self, pixels: Tensor, rows: Tensor, own: Tensor, drawn: Tensor) -> Tensor:
        maps = self.maps[own, drawn]
        shift = self.means[drawn, :, None] - maps @ self.means[own, :, None]
        colours = pixels.flatten(2).float()
        lab = self.space == "lab"
        shift, maps = to_device_async(torch.cat([shift, maps], 2), pixels.device).split([1, 3], 2)
        moved = torch.baddbmm(shift, maps, rgb_to_lab(colours) if lab else colours)
        return (lab_to_rgb(moved) if lab else moved).clamp_(0, 255).view(pixels.shape)

    def describe(self) -> str:
        """One line for the log."""
        return f"camera styles: colours of {len(self.numbers)} cameras, from {self.read:,} images"


#: Linear sRGB to CIE XYZ over the white point of D65.
_XYZ = (
    (0.4124564 / 0.95047, 0.3575761 / 0.95047, 0.1804375 / 0.95047),
    (0.2126729, 0.7151522, 0.0721750),
    (0.0193339 / 1.08883, 0.1191920 / 1.08883, 0.9503041 / 1.08883),
)
#: L, a, b from the cube roots of XYZ, but for the 16 that L has less.
_LAB = ((0.0, 116.0, 0.0), (500.0, -500.0, 0.0), (0.0, 200.0, -200.0))
_FROM_XYZ, _FROM_LAB = (
    tuple(map(tuple, torch.linalg.inv(torch.tensor(x, dtype=torch.float64)).tolist()))
    for x in (_XYZ, _LAB)
)


def rgb_to_lab(colours: Tensor) -> Tensor:
    """CIELAB under D65 of sRGB in [0, 255]: (B, 3, pixels) floating to the same shape, L in [0, 100]."""
    x = colours / 255
    linear = torch.where(x <= 0.04045, x / 12.92, ((x + 0.055) / 1.055).clamp_min(0) ** 2.4)
    xyz = device_constant(_XYZ, x.device, x.dtype) @ linear
    root = torch.where(
        xyz > (6 / 29) ** 3, xyz.clamp_min(0) ** (1 / 3), xyz * (29 / 6) ** 2 / 3 + 4 / 29
    )
    lab: Tensor = device_constant(_LAB, x.device, x.dtype) @ root
    lab[:, 0] -= 16
    return lab


def lab_to_rgb(lab: Tensor) -> Tensor:
    """The inverse of `rgb_to_lab`; colours outside sRGB's range come out below 0 or above 255."""
    shifted = torch.cat([lab[:, :1] + 16, lab[:, 1:]], 1)
    root = device_constant(_FROM_LAB, lab.device, lab.dtype) @ shifted
    xyz = torch.where(root > 6 / 29, root**3, (root - 4 / 29) * 3 * (6 / 29) ** 2)
    linear = device_constant(_FROM_XYZ, lab.device, lab.dtype) @ xyz
    curved = 1.055 * linear.clamp_min(0.0031308) ** (1 / 2.4) - 0.055
    return 255 * torch.where(linear <= 0.0031308, 12.92 * linear, curved)


def _between_gaussians(covariance: Tensor) -> Tensor:
    """Monge-Kantorovich maps between zero-mean Gaussians: (C, 3, 3) float64, positive definite -> (C, C, 3, 3)."""
    root = _root(covariance)
    inverse = torch.linalg.inv(root)
    maps: Tensor = (
        inverse[:, None] @ _root(root[:, None] @ covariance @ root[:, None]) @ inverse[:, None]
    )
    return maps


def _root(matrices: Tensor) -> Tensor:
    """The positive square root of symmetric positive definite matrices."""
    values, vectors = torch.linalg.eigh(matrices)
    return (vectors * values.clamp_min(0).sqrt()[..., None, :]) @ vectors.mT


class _Waves(NamedTuple):
    """The products from images to a box of their Fourier coefficients, and back."""

    #: (frequencies, H) complex64.
    rows: Tensor
    #: (W, 2 x frequencies) float32: cosines, then sines.
    columns: Tensor
    #: (2 x frequencies, W) float32.
    inverse: Tensor

    def spectrum(self, images: Tensor) -> Tensor:
        """The box's Fourier coefficients of (B, 3, H, W) float32: (B, 3, rows, columns) complex64."""
        real, imaginary = (images @ self.columns).chunk(2, -1)
        return self.rows @ torch.complex(real, imaginary)

    def image(self, spectrum: Tensor) -> Tensor:
        """The images (B, 3, H, W) float32 that have these coefficients in the box and none outside."""
        waves = self.rows.mH @ spectrum
        return torch.cat([waves.real, waves.imag], -1) @ self.inverse


class FourierStyle(CameraStyle):
    """Multiplies an image's low-frequency amplitudes by the ratio of two cameras' mean amplitudes; phases stay.

    After FDA (Yang and Soatto, CVPR 2020), which takes the amplitudes of one image of the other domain. One image of another
    camera shows another person, whose clothes would come along; what cameras differ in on the average is their own. The
    frequencies are those of a box about 0, which is part of it: |row| <= band x H, |column| <= band x W. There are few of
    them, so that they are computed by two small matrix products each way rather than by a transform of the whole.
    MSMT17's 15 cameras are sampled in about 1.5 s of one core (6,000 of 32,621 images).

    Args:
        records: The n training images.
        store: Their pixels, n rows.
        band: Share of the frequencies in either direction, in (0, 0.5].
        probability: As for `CameraStyle`.
        on_progress: Called with (images read, images in all).
    """

    def __init__(
        self,
        records: Sequence[Record],
        store: PixelStore,
        band: float,
        probability: float | None = None,
        on_progress: Progress | None = None,
    ) -> None:
        super().__init__(records, probability)
        height, width = store.pixels.shape[-2:]
        last, right = int(band * height), int(band * width)
        # Of a pair of opposite frequencies, which in real images are conjugate, the one with column >= 0 is kept. Half the
        # height is its own opposite.
        frequencies = torch.arange(-last, min(last, (height - 1) // 2) + 1)
        columns = _waves(torch.arange(right + 1), width)
        weights = torch.tensor([1.0 if 2 * c in (0, width) else 2.0 for c in range(right + 1)]) / (
            height * width
        )
        self._waves = _Waves(
            _waves(frequencies, height),
            torch.cat([columns.real, columns.imag]).T.contiguous(),
            torch.cat([weights[:, None] * columns.real, weights[:, None] * columns.imag]),
        )
        count = len(self.numbers)
        total = torch.zeros(count, 3, len(frequencies), right + 1, dtype=torch.float64)
        images_of = torch.zeros(count, 1, 1, 1, dtype=torch.float64)
        for camera, images in _sampled(self.cameras, count, store, on_progress):
            total[camera] += self._waves.spectrum(images.float()).abs().sum(0, dtype=torch.float64)
            images_of[camera] += len(images)
        self.read = int(images_of.sum())
        # A thousandth of a grey level keeps the ratio finite where a camera's images have nothing.
        self.amplitudes = (total / images_of).float() + 1e-3 * height * width
        self._tables: dict[torch.device, tuple[_Waves, Tensor]] = {}

    def _restyle(self, pixels: Tensor, rows: Tensor, own: Tensor, drawn: Tensor) -> Tensor:
        waves, amplitudes = self._on(pixels.device)
        images = pixels.float()
        own, drawn = to_device_async(torch.stack([own, drawn]), pixels.device)
        change = waves.spectrum(images) * (amplitudes[drawn] / amplitudes[own] - 1)
        return (images + waves.image(change)).clamp_(0, 255)

    def _on(self, device: torch.device) -> tuple[_Waves, Tensor]:
        """The tables on a device; they stay there."""
        if device not in self._tables:
            self._tables[device] = (
                _Waves(*(to_device_async(x, device) for x in self._waves)),
                to_device_async(self.amplitudes, device),
            )
        return self._tables[device]

    def describe(self) -> str:
        """One line for the log."""
        height, width = self.amplitudes.shape[-2], 2 * self.amplitudes.shape[-1] - 1
        return (
            f"camera styles: amplitudes at {height} x {width} frequencies of {len(self.numbers)} cameras, "
            f"from {self.read:,} images"
        )


def _waves(frequencies: Tensor, size: int) -> Tensor:
    """exp(-2 pi i f x / size): (frequencies, size) complex64; angles are reduced before they are rounded."""
    angles = (frequencies[:, None] * torch.arange(size) % size).double() * (-2 * math.pi / size)
    return torch.polar(torch.ones_like(angles), angles).to(torch.complex64)


def _sampled(
    cameras: Tensor, count: int, store: PixelStore, on_progress: Progress | None
) -> Iterator[tuple[int, Tensor]]:
    """Up to SAMPLE images of each camera, evenly spaced in the store, in blocks: (camera, (b, 3, H, W) uint8)."""
    rows = [(cameras == camera).nonzero()[:, 0] for camera in range(count)]
    rows = [r[torch.arange(min(SAMPLE, len(r))) * len(r) // min(SAMPLE, len(r))] for r in rows]
    done, total = 0, sum(map(len, rows))
    for camera, chosen in enumerate(rows):
        for block in chosen.split(_BLOCK):
            yield camera, store.read(block)
            done += len(block)
            if on_progress is not None:
                on_progress(done, total)


class FileStyle(CameraStyle):
    """Reads CamStyle's copies: `STEM_fake_1to2.jpg` (Market-1501, DukeMTMC-reID) or `STEM_fake_2.jpg` (MSMT17).

    The copies are decoded once, into a store of their own with the training images' size and budget: 6.4 GB for Market's
    64,680 copies at 256 x 128, 11 GB for Duke's, 45 GB for MSMT17's 456,694, in memory or memory-mapped. The table of copies
    takes 4 bytes an image and camera (60 MB at a million images and 15 cameras). Where a copy is missing, the image stays as
    it is. Copies of other images than `records`, of images whose camera is unknown, and in an image's own camera are not read.

    Args:
        images: The set; the copies lie in `bounding_box_train_camstyle/` below its root, at any depth.
        records: The n training images.
        image: Size of the images and budget of the store.
        store_dir: Folder of a memory-mapped store.
        warn: Called with one line for what is missing and what cannot be read.
        probability: As for `CameraStyle`.
        on_progress: Called with (copies decoded, copies in all).
        world: Ranks that train with the same copies, as for `decode`.

    Raises:
        DataError: No copy is of a training image or none of these can be read; or a copy is for a camera, or from a camera,
            that cannot be; or there is no room for the store.
    """

    def __init__(
        self,
        images: ImageSet,
        records: Sequence[Record],
        image: ImageConfig,
        store_dir: Path,
        warn: Callable[[str], None],
        probability: float | None = None,
        on_progress: Progress | None = None,
        world: World = SINGLE_PROCESS,
    ) -> None:
        super().__init__(records, probability)
        folder = images.root / STYLE_COPIES
        paths, self.table = match_copies(folder, records)
        self._store = decode(
            paths,
            image.height,
            image.width,
            store_gib=image.store_gib,
            store_dir=store_dir,
            cache=cache_folder(image.cache),
            cache_gib=image.cache_gib,
            world=world,
            on_progress=on_progress,
            warn=warn,
        )
        self._loader: BatchLoader | None = None
        self._place, self._warn = image.place, warn
        bad = self._store.bad
        if bad:
            warn(
                f"{len(bad)} camstyle image(s) could not be read and are left out (first: {bad[0].path}: {bad[0].reason})"
            )
        if not len(self._store):
            raise DataError(
                f"{folder}: none of {len(paths)} copies can be read; unpack them again, or train with --camstyle none"
            )
        # Slots: from places in `paths` to rows of the store.
        rows = torch.full((len(paths) + 1,), -1, dtype=torch.int32)
        rows[self._store.slots] = torch.arange(len(self._store), dtype=torch.int32)
        self.table = rows[self.table.long()]
        found = (paths[place] for place in self._store.slots.tolist())
        # One digest for them all: there are many times as many as images.
        whole = hashlib.blake2b(digest_size=16)
        for path, digest in zip(found, self._store.digests, strict=True):
            whole.update(f"{path.relative_to(images.root).as_posix()} {digest}\n".encode())
        self.digests = {STYLE_COPIES: f"{len(self._store)} copies {whole.hexdigest()}"}
        wanted = int((self.cameras != UNKNOWN).sum()) * (len(self.numbers) - 1)
        if len(self._store) < wanted:
            warn(
                f"{wanted - len(self._store):,} of {wanted:,} copies in other cameras' styles are missing from {folder}; "
                "these images stay as they are"
            )

    def _restyle(self, pixels: Tensor, rows: Tensor, own: Tensor, drawn: Tensor) -> Tensor:
        places = self.table[rows, drawn].long()
        there = (places >= 0).nonzero()[:, 0]
        if self._loader is None or self._loader.device != pixels.device:
            self._loader = BatchLoader(self._store, pixels.device, self._place, self._warn)
        return pixels.index_copy(
            0, to_device_async(there, pixels.device), self._loader.read(places[there])
        )

    def describe(self) -> str:
        """One line for the log."""
        return f"camera styles: {len(self._store):,} copies in the styles of {len(self.numbers)} cameras"


def match_copies(folder: Path, records: Sequence[Record]) -> tuple[list[Path], Tensor]:
    """The copies to read, and the place of each in this list by image and camera: (n, C) int32, -1 where there is none.

    Raises:
        DataError: As `FileStyle`, by the names alone.
    """
    numbers = known_cameras(records)
    row_of: dict[str, int] = {}
    shared = set()
    for number, record in enumerate(records):
        if row_of.setdefault(record.path.stem, number) != number:
            shared.add(record.path.stem)
    place = {camera: index for index, camera in enumerate(numbers)}
    table = torch.full((len(records), len(numbers)), -1, dtype=torch.int32).numpy()
    paths: list[Path] = []
    matched = False
    for path in images_below(folder):
        name = _COPY.fullmatch(path.stem)
        row = row_of.get(name["image"]) if name else None
        if name is None or row is None:
            continue
        matched = True
        if name["image"] in shared:
            raise DataError(
                f"{path} is the copy of more than one training image: copies are matched by name, "
                f"and {name['image']} is not the only one; rename them, or train with --camstyle none"
            )
        own, source, target = records[row].camera, name["source"], int(name["target"])
        if own == UNKNOWN:
            continue
        if target not in place or (source and int(source) != own):
            wrong = (
                f"for camera {target}"
                if target not in place
                else f"from camera {source}, not the image's {own}"
            )
            raise DataError(
                f"{path} is {wrong}; the training images' cameras are {_listed(numbers)}. "
                f"Put this set's own copies, for these cameras alone, into {folder}, or train with --camstyle none"
            )
        if own != target and table[row, place[target]] < 0:
            table[row, place[target]] = len(paths)
            paths.append(path)
    if not matched:
        raise DataError(
            f"no file in {folder} is the copy of a training image; expected names like "
            f"{records[0].path.stem}_fake_{numbers[-1]}.jpg. Unpack this set's copies there, "
            "or train with --camstyle none"
        )
    return paths, torch.from_numpy(table)


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers[:20])) + (", ..." if len(numbers) > 20 else "")


def camera_style(
    kind: StyleName,
    images: ImageSet,
    records: Sequence[Record],
    store: PixelStore,
    config: StyleConfig,
    image: ImageConfig,
    store_dir: Path,
    warn: Callable[[str], None],
    on_progress: Progress | None = None,
    world: World = SINGLE_PROCESS,
) -> CameraStyle | None:
    """The camera styles of a run, or None where there are none: asked for none, fewer than two cameras, or no copies.

    Args:
        kind: Which.
        images: The set, for its root.
        records: The n training images, in the order of the store's rows.
        store: Their pixels.
        config: Probability and band.
        image: Size of the images and budget of the copies' store.
        store_dir: Folder of a memory-mapped store.
        warn: Called with one line for what is amiss and does not stop the run.
        on_progress: Called with (images done, images in all) while images are read.
        world: Ranks that train with the same images, as for `decode`.

    Raises:
        DataError: As `FileStyle`.
    """
    if kind == "none":
        return None
    if missing := nothing_to_draw(kind, images, records):
        warn(missing)
        return None
    if kind == "colour":
        return ColourStyle(records, store, config.probability, on_progress=on_progress)
    if kind == "fourier":
        return FourierStyle(records, store, config.band, config.probability, on_progress)
    return FileStyle(
        images, records, image, store_dir, warn, config.probability, on_progress, world
    )


def nothing_to_draw(kind: StyleName, images: ImageSet, records: Sequence[Record]) -> str | None:
    """Why a set has no styles of a kind, in one line; None when it has."""
    cameras = known_cameras(records)
    if len(cameras) < 2:
        return (
            f"--camstyle {kind} does nothing: the training images are known to be of {len(cameras)} camera(s); put _c3 and "
            "the like into the names of a folder's images, or give --camstyle none"
        )
    if kind == "files" and not (images.root / STYLE_COPIES).is_dir():
        return (
            f"--camstyle files: {images.root / STYLE_COPIES} does not exist; training goes on without camera styles. "
            "Unpack CamStyle's copies there, or give --camstyle colour"
        )
    return None


def known_cameras(records: Sequence[Record]) -> list[int]:
    """The cameras of a set in ascending order."""
    return sorted({r.camera for r in records} - {UNKNOWN})
