"""Labels of epochs come back as they were, and what is wrong with them is one line."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
import torch

from fastreid_al.engine.epoch_labels import FOLDER, EpochLabelsFolder
from fastreid_al.errors import UserError

NAMES = ["a.jpg", "b,\n.jpg", "\udcff.jpg", "c.jpg"]
LABELS = torch.tensor([1, -1, 0, 1])


@pytest.fixture
def kept(tmp_path: Path) -> EpochLabelsFolder:
    folder = EpochLabelsFolder(tmp_path)
    folder.write_names(NAMES)
    folder.write(3, LABELS, 17)
    return folder


def test_labels_come_back_as_they_were(kept: EpochLabelsFolder) -> None:
    kept.write(12, LABELS - 1, 40)
    assert kept.epochs() == [3, 12]
    found = kept.read(3)
    assert found.names == NAMES and found.event == 17
    assert found.labels.dtype == torch.int64 and torch.equal(found.labels, LABELS)
    kept.write(3, LABELS.flip(0), 18)
    assert torch.equal(kept.read(3).labels, LABELS.flip(0))
    modes = {stat.S_IMODE(file.stat().st_mode) for file in (kept.path, *kept.path.iterdir())}
    assert modes <= {0o700, 0o600}


def test_an_epoch_whose_labels_are_not_kept_is_one_line(
    kept: EpochLabelsFolder, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"no labels of epoch 4; .* epochs 3 to 3"):
        kept.read(4)
    with pytest.raises(UserError, match="no labels of epoch 1; a run keeps them"):
        EpochLabelsFolder(tmp_path / "other").read(1)


@pytest.mark.parametrize("name", ["images.z", "epoch-0003.npz"])
@pytest.mark.parametrize("content", [b"", b"damaged", None])
def test_damaged_labels_are_one_line(
    kept: EpochLabelsFolder, name: str, content: bytes | None, tmp_path: Path
) -> None:
    file = tmp_path / FOLDER / name
    if content is None:
        other = EpochLabelsFolder(tmp_path / "other")
        other.write_names(NAMES[:2])
        other.write(3, LABELS[:3], 17)
        content = (other.path / name).read_bytes()
    file.write_bytes(content)
    with pytest.raises(UserError) as caught:
        kept.read(3)
    assert "\n" not in str(caught.value)


def test_labels_of_which_a_bit_is_damaged_come_back_or_are_one_line(
    kept: EpochLabelsFolder, tmp_path: Path
) -> None:
    file = tmp_path / FOLDER / "epoch-0003.npz"
    content = file.read_bytes()
    refused = 0
    for place in range(len(content)):
        damaged = bytearray(content)
        damaged[place] ^= 1
        file.write_bytes(damaged)
        try:
            found = kept.read(3)
        except UserError:
            refused += 1
        else:
            assert torch.equal(found.labels, LABELS) and found.event == 17
    assert refused > 0
