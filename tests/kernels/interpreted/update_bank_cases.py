"""`update_bank_`'s kernel, interpreted."""

from __future__ import annotations

import torch
from reid_kernels import update_bank_, update_bank_reference
from reid_kernels.update_bank import WIDEST
from reid_kernels.update_bank_triton import update_triton

from tests.kernels.interpreted import small
from tests.support import launches as sweep
from tests.support.kernels import strided, unit_rows

TIGHT = {torch.float32: 2e-7, torch.float16: 1e-3, torch.bfloat16: 8e-3}


def launches() -> None:
    """Launch the kernel in every way that compiles other code."""
    shapes = [(dtype, sweep.DIM) for dtype in sweep.FLOATS]
    shapes += [(torch.float32, 512), (torch.float32, WIDEST)]
    for dtype, dim in shapes:
        bank = sweep.rows(9, dtype, dim)
        update_triton(bank, sweep.rows(9, dtype, dim), sweep.ids(9), 0.2, -1)


def main() -> None:
    """Compare the kernel with the reference."""
    cases = small.Cases()
    for dtype in small.DTYPES:
        for n, batch, dim in ((9, 20, 37), (4, 1, 1), (3, 20, 8)):
            bank, features = unit_rows(n, dim, dtype), unit_rows(batch, dim, dtype, seed=1)
            for momentum in (0.0, 0.2, 1.0):
                targets = torch.randint(-1, n, (batch,))
                got = bank.clone()
                update_triton(got, features, targets, momentum, -1)
                cases.close(
                    got,
                    update_bank_reference(bank, features, targets, momentum),
                    TIGHT[dtype],
                    dtype,
                    n,
                )
                again = bank.clone()
                update_triton(again, strided(features), targets, momentum, -1)
                cases.equal(again, got)
    # More features than one look at the targets holds.
    bank, features, targets = unit_rows(2, 4), unit_rows(270, 4, seed=1), torch.arange(270) // 260
    got = bank.clone()
    update_triton(got, features, targets, 0.5, -1)
    cases.close(got, update_bank_reference(bank, features, targets, 0.5), 2e-7)
    bank, features = unit_rows(5, 6), unit_rows(4, 6, seed=1)
    # A target that does not exist writes nothing.
    got = bank.clone()
    update_triton(got, features, torch.tensor([5, -3, 2, 2**40]), 0.5, -1)
    cases.close(
        got, update_bank_reference(bank, features, torch.tensor([-1, -1, 2, -1]), 0.5), 2e-7
    )
    far = small.far_apart(bank)
    update_triton(far, features, torch.tensor([4, 0, 4, 1]), 0.5, -1)
    cases.close(far, update_bank_reference(bank, features, torch.tensor([4, 0, 4, 1]), 0.5), 2e-7)
    opposite = torch.tensor([[1.0, 0.0]])
    update_triton(opposite, torch.tensor([[-1.0, 0.0]]), torch.tensor([0]), 0.5, -1)
    cases.equal(opposite, torch.zeros(1, 2))
    # A feature that is not finite makes its row NaN, one that is too long makes it zero.
    for value, row in ((torch.nan, torch.nan), (torch.inf, torch.nan), (3e38, 0.0)):
        broken = features.clone()
        broken[1, :2] = value
        got = bank.clone()
        update_triton(got, broken, torch.tensor([2, 0, 2, 1]), 0.5, -1)
        expected = update_bank_reference(bank, features, torch.tensor([2, -1, 2, 1]), 0.5)
        expected[0] = row
        cases.close(got, expected, 2e-7, value)
    with small.through_operators():
        got = update_bank_(bank.clone(), features, torch.tensor([2, 0, 2, -1]), 0.5)
    cases.close(got, update_bank_reference(bank, features, torch.tensor([2, 0, 2, -1]), 0.5), 2e-7)
    cases.done()


if __name__ == "__main__":
    main()
