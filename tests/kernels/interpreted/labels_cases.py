"""Run with TRITON_INTERPRET=1: the kernels of `label_prediction` against the reference, on tiny
shapes.
"""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from reid_kernels import label_prediction
from reid_kernels._triton import operands
from reid_kernels.labels import label_prediction_reference
from reid_kernels.labels_triton import (
    Low,
    count_closer,
    count_near,
    labels_triton,
    pair_similarities,
)
from reid_kernels.tiles import Tile
from torch import Tensor

from tests.kernels.interpreted import small
from tests.support import launches as sweep
from tests.support.kernels import on_grid

TILE = Tile(16, 16, 16, 1, 1)


def integers(*shape: int) -> Tensor:
    """Rows whose products are exact in float32, and often equal."""
    return torch.randint(-2, 3, shape).float() / 4


def counted(similarity: Tensor, candidates: Tensor, own: Tensor) -> Tensor:
    near = similarity[candidates]
    return (near > near.gather(1, own[:, None])).sum(1).int()


def counts_are_those_of_the_whole_matrix() -> None:
    bank = integers(70, 20)
    candidates, own = torch.randint(0, 70, (40,)), torch.randint(0, 70, (40,))
    wanted = counted(bank @ bank.T, candidates, own)
    for tile in (TILE, Tile(16, 32, 16, 1, 1), Tile(32, 16, 16, 1, 1)):
        assert torch.equal(counted_by_kernel(bank, candidates, own, tile), wanted)
    for dtype in (torch.float16, torch.bfloat16):
        assert torch.equal(counted_by_kernel(bank.to(dtype), candidates, own, TILE), wanted)


def counted_by_kernel(bank: Tensor, candidates: Tensor, own: Tensor, tile: Tile) -> Tensor:
    how = operands(bank.dtype, "ieee")
    similarity = pair_similarities(bank, candidates, own, how, tile)
    return count_closer(bank, candidates, own, similarity, how, tile)


def only_the_first_pairs_are_counted_where_a_number_is_given() -> None:
    bank = integers(70, 20)
    candidates, own = torch.randint(0, 70, (40,)), torch.randint(0, 70, (40,))
    how = operands(torch.float32, "ieee")
    similarity = pair_similarities(bank, candidates, own, how, TILE)
    wanted = counted(bank @ bank.T, candidates, own)
    for used in (0, 1, 16, 17, 40):
        number = torch.tensor(used)
        got = count_closer(bank, candidates, own, similarity, how, TILE, number)
        assert torch.equal(got[:used], wanted[:used])


def counts_in_float16_enclose_those_in_float32() -> None:
    """Rows of different lengths, closer together than float16 can tell, and a row that is NaN."""
    crowd = F.normalize(torch.randn(1, 24) + 0.003 * torch.randn(50, 24))
    bank = torch.cat([crowd, F.normalize(torch.randn(39, 24)), torch.zeros(1, 24)])
    bank *= torch.linspace(0.5, 2, 90)[:, None]
    candidates, own = torch.randint(0, 90, (64,)), torch.randint(0, 50, (64,))
    how = operands(torch.float32, "ieee")
    similarity = pair_similarities(bank, candidates, own, how, TILE)
    certain, possible = count_near(Low(bank), candidates, similarity, TILE)
    wanted = counted_by_kernel(bank, candidates, own, TILE)
    assert bool(((certain <= wanted) & (wanted <= possible)).all())
    assert 0 < int((certain < possible).sum()) < 64
    assert int((possible - certain).max()) < 60
    bank[3] = torch.nan
    certain, possible = count_near(Low(bank), candidates, similarity, TILE)
    assert int(possible.min()) >= 88
    assert int(certain.max()) == 0


def decisions_are_those_of_float32() -> None:
    crowd = F.normalize(torch.randn(9, 24).repeat(10, 1) + 0.02 * torch.randn(90, 24))
    rows = torch.arange(0, 90, 4)
    got = labels_triton(crowd, rows, 0.5, 4, tile=TILE)
    exact = label_prediction_reference(crowd.double(), rows, threshold=0.5, at_least=4)
    assert all(map(torch.equal, got, exact))
    assert bool((got[0].diff() == 10).all())


def a_copy_of_a_row_is_not_closer_than_the_row() -> None:
    bank = F.normalize(torch.randn(5, 37)).repeat(8, 1)
    candidates, own = torch.randint(0, 40, (20,)), torch.randint(0, 40, (20,))
    got = counted_by_kernel(bank, candidates, own, TILE)
    assert torch.equal(got % 8, torch.zeros_like(got))


def positives_agree_with_the_reference() -> None:
    crowd = torch.cat([integers(4, 20).repeat(9, 1) + integers(36, 20) / 4, torch.zeros(4, 20)])
    for bank in (crowd, integers(70, 20)):
        rows = torch.tensor([0, 7, len(bank) - 1, 7, 3])
        for threshold in (0.3, 0.8):
            wanted = label_prediction_reference(bank, rows, threshold=threshold)
            got = labels_triton(bank, rows, threshold, 10, tile=TILE)
            small = labels_triton(bank, rows, threshold, 10, tile=TILE, block=4 * len(bank))
            for x, y, z in zip(wanted, got, small, strict=True):
                assert torch.equal(x, y) and torch.equal(x, z)


def rows_that_walk_the_same_candidates_agree_too() -> None:
    bank = integers(1, 20).repeat(60, 1) + integers(60, 20) / 8
    bank[:8] = -bank[:8]
    rows = torch.arange(9, 21)
    wanted = label_prediction_reference(bank, rows, threshold=0.1)
    got = labels_triton(bank, rows, 0.1, 10, tile=TILE)
    assert all(map(torch.equal, wanted, got))
    assert got[0].diff().max() > 10


def an_empty_memory_gives_each_row_itself() -> None:
    indptr, indices = labels_triton(torch.zeros(33, 20), torch.tensor([4, 30]), 0.6, 10, tile=TILE)
    assert indptr.tolist() == [0, 1, 2] and indices.tolist() == [4, 30]


def banks_past_two_to_the_31_values_are_read() -> None:
    bank, rows = on_grid(40, 12), torch.tensor([0, 20, 39])
    got, expected = (
        labels_triton(some, rows, 0.2, 3, tile=TILE) for some in (small.far_apart(bank), bank)
    )
    assert len(got[1]) > 3
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


def the_registered_operator_takes_the_kernels() -> None:
    small.shrink_tiles()
    bank = on_grid(60, 12)
    expected = label_prediction(bank, torch.arange(0, 60, 7), threshold=0.2)
    with small.through_operators():
        got = label_prediction(bank, torch.arange(0, 60, 7), threshold=0.2)
    assert len(got[1]) > 9
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


def launches() -> None:
    """Launch the kernels in every way that compiles other code."""
    for dtype, pairs in itertools.product(sweep.FLOATS, (sweep.SMALL, sweep.LARGE)):
        bank = sweep.rows(sweep.BANK, dtype)
        ids, how = sweep.ids(pairs), operands(dtype, "ieee")
        similarity = pair_similarities(bank, ids, ids, how)
        for used in (None, torch.tensor(1)):
            count_closer(bank, ids, ids, similarity, how, used=used)
        if dtype == torch.float32:
            count_near(Low(bank), ids, similarity)


def main() -> None:
    small.require_interpreter()
    torch.manual_seed(0)
    counts_are_those_of_the_whole_matrix()
    only_the_first_pairs_are_counted_where_a_number_is_given()
    counts_in_float16_enclose_those_in_float32()
    a_copy_of_a_row_is_not_closer_than_the_row()
    decisions_are_those_of_float32()
    positives_agree_with_the_reference()
    rows_that_walk_the_same_candidates_agree_too()
    an_empty_memory_gives_each_row_itself()
    banks_past_two_to_the_31_values_are_read()
    the_registered_operator_takes_the_kernels()


if __name__ == "__main__":
    main()
