"""Images that annotators are asked about."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from fastreid_al.data.records import Record


@pytest.fixture
def records(tmp_path: Path) -> list[Record]:
    """Twelve images of 3 cameras, told apart by their colours."""
    got = []
    for i in range(12):
        path = tmp_path / f"{i:02}.png"
        Image.new("RGB", (20, 40), (20 * i, 255 - 20 * i, 90)).save(path)
        got.append(Record(path, i // 6, i % 3))
    return got
