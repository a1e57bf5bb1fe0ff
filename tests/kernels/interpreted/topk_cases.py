"""`similarity_topk`'s kernels, interpreted."""

from __future__ import annotations

import itertools

import torch
from reid_kernels import BankIndex, similarity_topk, similarity_topk_reference, tiles
from reid_kernels._triton import operands
from reid_kernels.topk_triton import (
    Rounded,
    _topk,
    error_bound,
    group_maxima,
    near_columns,
    rescore,
    topk_triton,
    two_maxima,
)

from tests.kernels.interpreted import small
from tests.support import launches as sweep
from tests.support.kernels import on_grid, strided, unit_rows


def launches() -> None:
    """Launch the kernels in every way that compiles other code."""
    for dtype, precision, batch, flag in sweep.cases():
        exclude = sweep.ids(batch) if flag else None
        query = sweep.rows(batch, dtype)
        topk_triton(query, sweep.rows(sweep.BANK, dtype), 7, flag, exclude, precision)
    half = operands(torch.float32, "fp16")
    for n, flag in itertools.product((sweep.BANK, sweep.EVEN), (False, True)):
        query, bank = (Rounded(sweep.rows(x, torch.float32), half, flag, True) for x in (256, n))
        exclude = sweep.ids(sweep.LARGE) if flag else None
        for tile in (None, tiles.WIDE_PRODUCT):
            two_maxima(query, bank, exclude, half, tile)
        how = operands(torch.bfloat16, "ieee")
        query, bank = (Rounded(sweep.rows(x, torch.bfloat16), how, flag) for x in (256, n))
        group_maxima(query, bank, exclude, how, tiles.WIDE_PRODUCT)


def main() -> None:
    """Compare every kernel with the reference in float64."""
    cases = small.Cases()
    small.shrink_tiles()
    for n, b, dim, k in ((70, 5, 20, 7), (33, 18, 37, 33), (3, 2, 5, 6), (17, 1, 1, 1)):
        for dtype in small.DTYPES:
            query, bank = on_grid(b, dim).to(dtype), on_grid(n, dim, seed=1).to(dtype)
            for precision in (
                ("auto", "ieee", "tf32", "bf16") if dtype == torch.float32 else ("auto",)
            ):
                own = torch.randint(-1, n, (b,)) if n != 33 else None
                got = topk_triton(query, bank, k, False, own, precision)
                exact = similarity_topk_reference(
                    query.double(), bank.double(), k, normalize=False, exclude=own
                )
                cases.equal(got[0].double(), exact[0], n, dtype, precision)
                cases.equal(got[1], exact[1], n, dtype, precision)
    query, bank = unit_rows(4, 21, seed=3) * 2, unit_rows(50, 21, seed=4) * 3
    bank[7] = 0
    for normalize in (True, False):
        for precision in ("auto", "ieee"):
            exact = similarity_topk_reference(query.double(), bank.double(), 9, normalize=normalize)
            for q, b in (
                (query, bank),
                (strided(query), strided(bank)),
                (query, small.far_apart(bank)),
            ):
                values, indices = topk_triton(q, b, 9, normalize, None, precision)
                cases.close(values, exact[0], 2e-6, normalize, precision)
                cases.equal(indices, exact[1], normalize, precision)
    # Rows closer together than bfloat16 can tell are settled in float32.
    crowd = torch.ones(1, 16) + 1e-3 * torch.randn(
        60, 16, generator=torch.Generator().manual_seed(0)
    )
    values, _ = topk_triton(crowd[:3], crowd, 8, True, None, "auto")
    cases.close(values, similarity_topk_reference(crowd[:3].double(), crowd.double(), 8)[0], 5e-7)
    # A NaN stands first, as in torch.topk; an infinite row does not disturb the others.
    bank[11, 0], bank[12, 0] = torch.nan, -torch.inf
    exact = similarity_topk_reference(query.abs().double(), bank.double(), 50, normalize=False)
    for precision in ("ieee", "auto"):
        values, indices = topk_triton(query.abs(), bank, 50, False, None, precision)
        cases.equal(indices[:, 0], torch.full((4,), 11))
        cases.equal(indices[:, -1], torch.full((4,), 12))
        cases.close(values, exact[0], 2e-5)
    most_queries_are_proven(cases)
    few_columns_are_computed_again(cases)
    maxima_say_which_columns_they_belong_to(cases)
    an_index_finds_what_a_search_finds(cases)
    rows_too_long_to_have_a_length_do_not_hide_others(cases)
    nothing_is_proven_of_products_that_may_overflow(cases)
    small_values_that_a_product_takes_for_zero_are_counted(cases)
    with small.through_operators():
        columns = torch.arange(50).view(25, 2)[:, 0]
        got = similarity_topk(unit_rows(25, 21), unit_rows(50, 21, seed=4), 9, exclude=columns)
    exact = similarity_topk_reference(
        unit_rows(25, 21).double(), unit_rows(50, 21, seed=4).double(), 9, exclude=columns
    )
    cases.equal(got[1], exact[1])
    cases.done()


def rows_too_long_to_have_a_length_do_not_hide_others(cases: small.Cases) -> None:
    """A row whose length overflows is among the last, at every precision."""
    bank, query = unit_rows(90, 8, seed=7), unit_rows(3, 8, seed=8).abs()
    bank[:40] = 0.0
    bank[:40, 0] = -2e19
    exact = similarity_topk_reference(query.double(), bank.double(), 3, normalize=False)
    for precision in ("auto", "ieee", "bf16"):
        values, indices = topk_triton(query, bank, 3, False, None, precision)
        cases.close(values, exact[0], 2e-6, precision)
        cases.equal(indices, exact[1], precision)


def nothing_is_proven_of_products_that_may_overflow(cases: small.Cases) -> None:
    """Rows so long that rounded products overflow where exact ones do not."""
    rows = 1.844e19 * torch.nn.functional.normalize(torch.ones(384, 59) + 0.1 * unit_rows(384, 59))
    rows[5] *= 1.00001
    got = topk_triton(rows[:2], rows, 3, False, None, "auto")
    exact = similarity_topk_reference(rows[:2].double(), rows.double(), 3, normalize=False)
    cases.close(got[0].double() / 3.4e38, exact[0] / 3.4e38, 1e-6)
    half = operands(torch.float32, "fp16")
    bank = Rounded(rows, half, False, lengths=True)
    assert bool(torch.isinf(error_bound(bank, bank, 59)).all())


def small_values_that_a_product_takes_for_zero_are_counted(cases: small.Cases) -> None:
    """The bound covers subnormal float16 values, which some matrix units flush."""
    rows = torch.full((40, 130), 6e-5)
    rows[:, 0] = 1.0
    low = Rounded(rows, operands(torch.float32, "fp16"), True, lengths=True)
    kept = low.low.abs()[low.low != 0]
    assert float(kept.min()) >= 2.0**-14
    exact = torch.nn.functional.normalize(rows.double())
    error = (exact - low.low.double()).norm(dim=1)
    assert bool((error <= low.error.double()).all())
    cases.count += 1


def few_columns_are_computed_again(cases: small.Cases) -> None:
    """Columns that the two maxima of a group exclude are left out; all of the first k are kept."""
    half = operands(torch.float32, "fp16")
    # Identities whose images lie in many groups, or in one, and copies, whose maxima are equal.
    identities = torch.arange(800) // 16
    identities[::50] = 4
    rows = unit_rows(50, 48, seed=5)[identities] + 0.3 * unit_rows(800, 48, seed=6)
    rows[100:103] = rows[99]
    bank, query = (Rounded(x, half, True, lengths=True) for x in (rows, rows[60:124]))
    k, chosen = 9, 17
    near = near_columns(query, bank, None, half, k, chosen, error_bound(query, bank, 48))
    keys = rescore(query, bank, near.groups, None, near)
    every = rescore(query, bank, near.groups, None)
    kept = keys > torch.iinfo(torch.int64).min
    cases.equal(keys[kept], every[kept])
    cases.equal(keys.topk(k).values, every.topk(k).values)
    share = float(kept.float().mean())
    assert k / (chosen * 16) <= share < 0.25, share


def maxima_say_which_columns_they_belong_to(cases: small.Cases) -> None:
    half = operands(torch.float32, "fp16")
    rows = unit_rows(83, 48, seed=6)
    rows[5] = rows[2]
    bank, query = (Rounded(x, half, False, lengths=True) for x in (rows, unit_rows(20, 48)))
    # What is not a column leaves nothing out.
    exclude = torch.arange(20) % 7 - 1
    exclude[-2:] = torch.tensor([99, 10**12])
    maxima = two_maxima(query, bank, exclude, half)
    products = query.low.float() @ bank.low.float().T * query.norm[:, None] * bank.norm
    real = (exclude >= 0) & (exclude < 83)
    products[torch.arange(20)[real], exclude[real]] = -torch.inf
    padded = torch.nn.functional.pad(products, (0, 13), value=-torch.inf)
    padded = padded.view(20, 16, 6).transpose(1, 2)
    exact = padded.topk(2)
    cases.close(maxima, exact.values.permute(2, 0, 1), 4e-6)
    bits = maxima[0].view(torch.int32)
    column = 15 - (torch.where(bits >= 0, bits, bits ^ 0x7FFFFFFF) & 15)
    found = padded.gather(2, column[:, :, None].long())[:, :, 0]
    cases.close(found, exact.values[:, :, 0], 4e-6)


def an_index_finds_what_a_search_finds(cases: small.Cases) -> None:
    for dtype, normalize in itertools.product(small.DTYPES, (True, False)):
        bank, query = (unit_rows(n, 21, seed=n).to(dtype) * 2 for n in (90, 5))
        with small.through_operators():
            index = BankIndex(bank, normalize=normalize)
            for changed in (None, torch.tensor([7, 89, 7])):
                if changed is not None:
                    bank[changed] = query[:3]
                    index.update(changed)
                got = index.search(query, 4)
                expected = similarity_topk(query, bank, 4, normalize=normalize)
                cases.equal(got[0], expected[0], dtype, normalize)
                cases.equal(got[1], expected[1], dtype, normalize)


def most_queries_are_proven(cases: small.Cases) -> None:
    """Float16 candidates are proven on planted features, at any length of the rows."""
    identities = torch.arange(640) // 10
    half = operands(torch.float32, "fp16")
    for scale in (1.0, 1e-6, 1e6):
        noise = 0.3 * unit_rows(640, 48, seed=6)
        rows = scale * (unit_rows(64, 48, seed=5)[identities] + noise)
        for normalize in (True, False):
            bank = Rounded(rows, half, normalize, lengths=True)
            values, _, certain = _topk(rows[:32], bank, 9, None, half, 17, proven=True)
            assert certain.float().mean() > 0.95, (scale, normalize, certain)
            exact = similarity_topk_reference(
                rows[:32].double(), rows.double(), 9, normalize=normalize
            )
            unit = scale * scale if not normalize else 1.0
            cases.close(values / unit, exact[0] / unit, 2e-6, scale, normalize)


if __name__ == "__main__":
    main()
