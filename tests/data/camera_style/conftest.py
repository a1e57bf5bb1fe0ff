"""An image set with CamStyle copies."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from fastreid_al.data.records import STYLE_COPIES as COPIES
from fastreid_al.data.records import ImageSet, Record
from tests.support.copies import Make, save
from tests.support.styles import stored


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
