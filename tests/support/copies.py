"""Image sets with CamStyle copies, and the styles made of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from PIL import Image

from fastreid_al.config import ImageConfig, StyleConfig
from fastreid_al.data.camera_style import (
    CameraStyle,
    camera_style,
)
from fastreid_al.data.pixels import PixelStore
from fastreid_al.data.records import ImageSet, Record

SIZE = ImageConfig(height=32, width=16, cache="none")

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


def market_copies(*left_out: str) -> dict[str, int]:
    names = [f"{MARKET[i]}_fake_{i + 1}to{o}" for i in range(3) for o in (1, 2, 3) if o != i + 1]
    return {name: 90 for name in names if name not in left_out}
