"""The pseudo-label memory bank against a dictionary of lists."""

from __future__ import annotations

import math
from types import ModuleType
from typing import Any

import numpy as np

NONE = 0
Labels = list[list[int]]


class Bank:
    """A bank in NumPy arrays, and one device's functions; `kind` is the dtype of ids or None."""

    def __init__(
        self, module: ModuleType, cuda: bool, n: int, kind: type | None, capacity: int
    ) -> None:
        self.module, self.cuda, self.n = module, cuda, n
        self.words = (n + 31) // 32
        images = np.arange(n)
        if kind is None:
            self.rows: np.ndarray = np.zeros((n, self.words), np.uint32)
            self.rows[images, images // 32] = np.uint32(1) << (images % 32).astype(np.uint32)
        else:
            self.rows = np.full((n, capacity), -1, kind)
            self.rows[:, 0] = images
        self.counts, self.dropped = np.ones(n, np.int32), np.zeros(1, np.int64)
        id_bytes = 0 if kind is None else np.dtype(kind).itemsize
        self.bank = module.LabelBank(
            self.rows.ctypes.data, id_bytes, self.counts.ctypes.data, n, capacity
        )

    def call(self, name: str, *arguments: Any) -> None:
        """Call a binding; its last argument is a stream on a GPU, a number of threads on a CPU."""
        plain = [a.ctypes.data if isinstance(a, np.ndarray) else a for a in arguments]
        getattr(self.module, f"{name}_cuda" if self.cuda else name)(
            self.bank, *plain, 0 if self.cuda else 4
        )

    def batch(
        self,
        rows: np.ndarray,
        indptr: np.ndarray,
        indices: np.ndarray,
        similarity: np.ndarray | None,
    ) -> Any:
        """A batch that points to these arrays."""
        return self.module.LabelBatch(
            rows.ctypes.data,
            len(rows),
            indptr.ctypes.data,
            indices.ctypes.data,
            len(indices),
            NONE if similarity is None else similarity.ctypes.data,
        )

    def update(self, rows: list[int], labels: Labels, similarity: np.ndarray | None) -> None:
        """Replace rows."""
        indptr, indices = csr(labels)
        scratch = [np.zeros(max(1, len(indices)), np.int32)] if self.cuda else []
        assert fits(self.module, rows, indptr, indices, self.n)
        row_array = np.array(rows)
        batch = self.batch(row_array, indptr, indices, similarity)
        self.call("plmb_update", batch, self.dropped, *scratch)

    def lookup(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """CSR and bits of rows."""
        indptr = np.zeros(len(rows) + 1, np.int64)
        counts = np.zeros(len(rows), np.int64)
        self.call("plmb_count", rows, len(rows), counts)
        np.cumsum(counts, out=indptr[1:])
        indices = np.full(int(indptr[-1]) + 1, -7, np.int64)
        self.call("plmb_list", rows, len(rows), indptr, indices)
        assert indices[-1] == -7
        if self.cuda:
            self.check_one_launch(rows, indptr, indices[:-1])
        bits = np.full((len(rows) + 1, self.words), 7, np.uint32)
        self.call("plmb_bits", rows, len(rows), bits)
        assert (bits[-1] == 7).all()
        return indptr, indices[:-1], bits[:-1]

    def check_one_launch(self, rows: np.ndarray, indptr: np.ndarray, indices: np.ndarray) -> None:
        """Compare the lookup of one launch with CSR of two, with room for more, all and fewer."""
        total = len(indices)
        for most in {total + 300, total, total - 1, total // 2, 0} - {-1}:
            state = np.zeros(len(rows) + 1, np.int64)
            got_indptr = np.full(len(rows) + 2, -7, np.int64)
            got = np.full(most + 1, -7, np.int64)
            self.call("plmb_lookup", rows, len(rows), most, state, got_indptr, got)
            assert np.array_equal(got_indptr[:-1], indptr) and got_indptr[-1] == -7
            used = indptr[indptr <= most][-1]
            assert np.array_equal(got[:used], indices[:used])
            assert (got[used:most] == -1).all() and got[most] == -7


def fits(
    module: ModuleType, rows: list[int], indptr: np.ndarray, indices: np.ndarray, n: int
) -> bool:
    """Whether `plmb_fits` accepts a batch."""
    named = np.array(rows, np.int64)
    batch = module.LabelBatch(
        named.ctypes.data, len(rows), indptr.ctypes.data, indices.ctypes.data, len(indices)
    )
    return module.plmb_fits(batch, n)


def csr(labels: Labels) -> tuple[np.ndarray, np.ndarray]:
    """(indptr, indices)."""
    indptr = np.concatenate([[0], np.cumsum([len(row) for row in labels], dtype=np.int64)])
    return indptr.astype(np.int64), np.array([x for row in labels for x in row], np.int64)


def kept(
    labels: list[int], similarity: list[float] | None, capacity: float
) -> tuple[list[int], int]:
    """The labels that a list keeps, ascending, and the number that it has no room for."""
    places = range(len(labels))
    if similarity is not None:
        places = sorted(
            places, key=lambda p: (np.inf if math.isnan(similarity[p]) else -similarity[p], p)
        )
    distinct = list(dict.fromkeys(labels[p] for p in places))
    room = len(distinct) if capacity == np.inf else int(capacity)
    return sorted(distinct[:room]), len(distinct[room:])


def exercise(
    module: ModuleType, cuda: bool, n: int, kind: type | None, capacity: int, sizes: list[int]
) -> None:
    """Update a bank with rows of the given sizes and compare its whole content."""
    random = np.random.default_rng(n + capacity)
    bank = Bank(module, cuda, n, kind, capacity)
    model, dropped = {i: [i] for i in range(n)}, 0
    named = [0, n // 2, n - 1, 0]
    for by_similarity in (False, True):
        rows = random.integers(n, size=len(sizes)).tolist()
        named += rows
        labels = [random.integers(n, size=size).tolist() for size in sizes]
        similarity = random.choice(
            np.array([0.1, 0.5, 0.9, 0.0, -0.0, np.inf, -np.inf, np.nan], np.float32), sum(sizes)
        )
        bank.update(rows, labels, similarity if by_similarity else None)
        start = np.cumsum([0, *sizes])
        for b, row in enumerate(rows):
            if row in rows[b + 1 :]:
                continue
            own = similarity[start[b] : start[b + 1]].tolist() if by_similarity else None
            model[row], over = kept(labels[b], own, np.inf if kind is None else capacity)
            dropped += over
    asked = np.array(named)
    indptr, indices, bits = bank.lookup(asked)
    expected_csr = csr([model[i] for i in asked])
    assert np.array_equal(indptr, expected_csr[0]) and np.array_equal(indices, expected_csr[1])
    expected = np.zeros((len(asked), 32 * bank.words), np.uint8)
    expected[np.repeat(np.arange(len(asked)), np.diff(indptr)), indices] = 1
    assert np.array_equal(np.unpackbits(bits.view(np.uint8), axis=1, bitorder="little"), expected)
    assert bank.dropped[0] == dropped
    if kind is not None:
        for i, row in model.items():
            assert bank.rows[i].tolist() == row + [-1] * (capacity - len(row))


def bounded(module: ModuleType, kind: type | None) -> None:
    """A GPU ignores rows and labels outside the bank, and tolerates a wrong indptr."""
    bank = Bank(module, True, 40, kind, 4)
    indptr, indices = csr([[1, 2], [40, 7, -1, 2**40, 8], [3], [9, -(2**40)]])
    rows, scratch = np.array([40, 3, -1, 5]), np.zeros(len(indices), np.int32)
    bank.call("plmb_update", bank.batch(rows, indptr, indices, None), bank.dropped, scratch)
    indptr, indices, bits = bank.lookup(np.array([3, 40, 5, -1, 4]))
    assert indptr.tolist() == [0, 2, 2, 3, 3, 4] and indices.tolist() == [7, 8, 9, 4]
    assert not bits[[1, 3]].any()
    rows, indptr, indices = np.arange(4), np.array([-5, 2, 1, 2**40, 2]), np.array([10, 11, 12])
    bank.call("plmb_update", bank.batch(rows, indptr, indices, None), bank.dropped, scratch)
    indptr, indices, _ = bank.lookup(np.arange(5))
    assert indptr.tolist() == [0, 2, 2, 4, 4, 5] and indices.tolist() == [10, 11, 11, 12, 4]


def run(module: ModuleType) -> None:
    """All layouts on each device."""
    sizes = [0, 1, 5, 20, 33, 3, 0, 70]
    indptr, indices = csr([[4], [0, 3]])
    assert fits(module, [1, 2], indptr, indices, 5)
    assert not fits(module, [1, 2], indptr, indices, 4)
    assert not fits(module, [1, -1], indptr, indices, 5)
    assert not fits(module, [1, 5], indptr, indices, 5)
    assert not fits(module, [1, 2], np.array([0, 4, 3]), indices, 5)
    assert not fits(module, [1, 2], np.array([1, 1, 3]), indices, 5)
    assert not fits(module, [1, 2], np.array([0, 1, 2]), indices, 5)
    for cuda in (False, True) if module.cuda else (False,):
        for kind in (None, np.int32, np.int64):
            exercise(module, cuda, 1, kind, 3, [0, 1, 2])
            exercise(module, cuda, 45, kind, 6, sizes)
            exercise(module, cuda, 64, kind, 64, sizes)
            # More labels than a block sorts in shared memory, more words than it has threads.
            exercise(module, cuda, 9_000 if kind is None else 300, kind, 40, [2_049, 20, 300])
            if cuda:
                # More rows than a block has threads.
                exercise(module, cuda, 45, kind, 6, [2] * 140)
                bounded(module, kind)
            else:
                # Enough for several threads.
                exercise(module, cuda, 20_000, kind, 40, [60] * 400)
