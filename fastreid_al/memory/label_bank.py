"""The pseudo-label memory bank PLMB of NNCT: the latest labels of every image, where one class is one image.

The paper keeps an n x n matrix. Here a row is n bits, or a short list of ids; `label_rows` does the work on rows.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

import torch
from torch import Tensor

from . import label_rows

#: Greatest n for which "auto" takes bits: 5 GB.
BITS_UP_TO = 200_000
#: Rows and labels of one batch, counted in int32.
_MOST = 2**31 - 1

#: Rows of a state that are looked at together.
_CHECKED = 2**20

LAYOUTS = ("auto", "bits", "sparse")


class PseudoLabelMemoryBank:
    """The labels last predicted for each of n images (PLMB, the matrix B of NNCT); at the start the image itself alone.

    With the layout "bits" a row is a bit for each image: 133 MB at n = 32,621 and 125 GB at 1e6, and no label is ever dropped.
    With "sparse" it is a list of at most `capacity` ids: at 64 of them 8.5 MB at n = 32,621, 260 MB at 1e6, 1.3 GB at 5e6.
    Both answer alike as long as no list overflows.

    Args:
        n: Number of images.
        layout: "bits", "sparse", or "auto": bits up to n = 200,000.
        capacity: Labels that a row of "sparse" has room for.
        device: Where the bank is.
        own: The images whose labels it keeps, of which none need be; all n when not given. Labels may name any of the n.

    Raises:
        ValueError: n or capacity below 1, an unknown layout, or a bank larger than the device's memory.
    """

    def __init__(
        self,
        n: int,
        layout: str = "auto",
        capacity: int = 64,
        device: torch.device | str = "cpu",
        own: slice | None = None,
    ) -> None:
        if n < 1:
            raise ValueError(f"n: got {n}, expected 1 or more")
        if layout not in LAYOUTS:
            raise ValueError(f"layout: got {layout!r}, expected one of {', '.join(LAYOUTS)}")
        if not 1 <= capacity <= _MOST:
            raise ValueError(f"capacity: got {capacity}, expected 1 to {_MOST}")
        if layout == "auto":
            layout = "bits" if n <= BITS_UP_TO else "sparse"
        self.layout, self.capacity = layout, capacity
        self._n = n
        self._own = slice(0, n) if own is None else own
        self._state = _identity(n, self._own, layout, capacity, torch.device(device))

    def __len__(self) -> int:
        return self._n

    @property
    def own(self) -> slice:
        """The images whose labels the bank keeps."""
        return self._own

    @property
    def device(self) -> torch.device:
        """Where the bank is."""
        return self._state["words" if self.layout == "bits" else "ids"].device

    @property
    def nbytes(self) -> int:
        """Bytes that the bank takes."""
        return sum(x.nbytes for x in self._state.values())

    @property
    def dropped(self) -> int:
        """Labels that lists had no room for, in all updates so far. Reading it waits for the device."""
        return int(self._state["dropped"]) if self.layout == "sparse" else 0

    def update(
        self, rows: Tensor, indptr: Tensor, indices: Tensor, similarities: Tensor | None = None
    ) -> None:
        """Replace the labels of some images, in batch order: of an image that is named twice the last labels stay.

        A label that is listed twice counts once. A list that overflows keeps the labels of greatest similarity, equal ones by
        their place, and a NaN is the least; without similarities it keeps the first, as `label_prediction` lists the most
        similar first. One launch on a GPU, which the host does not wait for; finding last occurrences takes B^2 / 256 steps of
        a block there. Without the extension PyTorch does the same, and waits.

        Args:
            rows: (B,) int64, the images, `own` ones.
            indptr: (B + 1,) int64; the labels of rows[b] are indices[indptr[b]:indptr[b + 1]].
            indices: (labels,) int64.
            similarities: (labels,) float32, read by "sparse" alone.

        Raises:
            ValueError: Wrong shape, dtype or device, or, seen on a CPU alone: other rows, labels outside [0, n), `indptr` that
                does not start at 0, never fall and end at the number of labels. On a GPU such rows and labels are left out,
                and what `indptr` says is bounded: nothing outside the bank and the batch is touched.
        """
        self._check("rows", rows, None, "one for each image of the batch")
        self._check("indptr", indptr, len(rows) + 1, "one for each row, and the end")
        self._check("indices", indices, None, "one for each label")
        if similarities is not None:
            self._check(
                "similarities", similarities, len(indices), "one for each label", torch.float32
            )
            similarities = similarities.detach()
        rows = self._places(rows)
        if self.layout == "bits":
            label_rows.update_bits(self._state["words"], rows, indptr, indices, self._n)
        else:
            state = (self._state[name] for name in ("ids", "counts", "dropped"))
            label_rows.update_sparse(*state, rows, indptr, indices, similarities, self._n)

    def lookup(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """The labels of some images.

        Args:
            rows: (B,) int64, `own` ones in any order, repeated or not.

        Returns:
            `indptr` (B + 1,) and `indices`, int64: the labels of rows[b], ascending, are indices[indptr[b]:indptr[b + 1]]. On
            a GPU two launches, between which the host waits for the number of labels.

        Raises:
            ValueError: Wrong shape, dtype or device, or, seen on a CPU alone, other rows; a GPU gives them none.
        """
        self._check("rows", rows, None, "one for each image")
        return listed(self._state, self._places(rows), self._n)

    def lookup_bits(self, rows: Tensor) -> Tensor:
        """The labels of some images as `multilabel_bank_loss` takes them; the host does not wait.

        Args:
            rows: (B,) int64, in any order, repeated or not.

        Returns:
            (B, ceil(n / 32)) int32; bit j % 32 of word j // 32 tells whether j is a label. At B = 64 0.26 MB for n = 32,621
            and 8 MB for 1e6.

        Raises:
            ValueError: As for `lookup`.
        """
        self._check("rows", rows, None, "one for each image")
        return as_bits(self._state, self._places(rows), self._n)

    def _places(self, rows: Tensor) -> Tensor:
        """Where the labels of images lie; -1 where they do not, which a CPU refuses."""
        start, stop = self._own.start, self._own.stop
        if stop - start == self._n:
            return rows
        outside = (rows < start) | (rows >= stop)
        if rows.is_cpu and bool(outside.any()):
            place = int(outside.nonzero()[0, 0])
            raise ValueError(
                f"rows: got {int(rows[place])} at place {place}, expected values in [{start}, {stop})"
            )
        return torch.where(outside, -1, rows - start)

    def to(self, device: torch.device | str) -> PseudoLabelMemoryBank:
        """Move the bank to a device; gives the bank."""
        self._state = {name: x.to(device) for name, x in self._state.items()}
        return self

    def state_dict(self) -> dict[str, Tensor]:
        """The bank's own tensors: `words`, or `ids`, `counts` and `dropped`."""
        return dict(self._state)

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Copy what `state_dict` gave, on whatever device it is.

        Raises:
            ValueError: The state of another layout, n or capacity, or values that no bank has.
        """
        layout = "bits" if "words" in state else "sparse"
        if layout != self.layout or set(state) != set(self._state):
            found = (
                layout
                if set(state) in ({"words"}, {"ids", "counts", "dropped"})
                else ", ".join(sorted(state))
            )
            raise ValueError(
                f"state: got {found or 'nothing'}, expected that of the layout {self.layout}"
            )
        for name, own in self._state.items():
            x = state[name]
            if x.shape != own.shape or x.dtype != own.dtype:
                raise ValueError(
                    f"state[{name!r}]: got {tuple(x.shape)} of {x.dtype}, expected {tuple(own.shape)} of {own.dtype}, "
                    f"for n = {self._n:,}"
                    + (f" and capacity {self.capacity}" if layout == "sparse" else "")
                )
        if self._own.stop > self._own.start:
            _check_values(self._n, self.capacity, state)
        for name, own in self._state.items():
            own.copy_(state[name])

    def _check(
        self, name: str, x: Tensor, count: int | None, per: str, dtype: torch.dtype = torch.int64
    ) -> None:
        """One number for each of something, where the bank is."""
        if not isinstance(x, Tensor):
            raise ValueError(f"{name}: got a {type(x).__name__}, expected a torch.Tensor")
        if x.ndim != 1 or (count is not None and x.shape[0] != count):
            raise ValueError(
                f"{name}: got shape {tuple(x.shape)}, expected ({'B' if count is None else count},), {per}"
            )
        if x.dtype != dtype:
            raise ValueError(f"{name}: got dtype {x.dtype}, expected {dtype}")
        if x.device != self.device:
            raise ValueError(
                f"{name}: got device {x.device}, expected {self.device}, the device of the bank"
            )
        if x.shape[0] > _MOST:
            raise ValueError(f"{name}: got {x.shape[0]:,} values, expected {_MOST:,} at most")


def listed(state: Mapping[str, Tensor], places: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """Labels of some rows of a bank's state, ascending, in CSR form."""
    if "words" in state:
        return label_rows.lookup_bits(state["words"], places, n)
    return label_rows.lookup_sparse(state["ids"], state["counts"], places, n)


def as_bits(state: Mapping[str, Tensor], places: Tensor, n: int) -> Tensor:
    """Labels of some rows of a bank's state as bit rows."""
    if "words" in state:
        return label_rows.bit_rows_bits(state["words"], places, n)
    return label_rows.bit_rows_sparse(state["ids"], state["counts"], places, n)


def _identity(
    n: int, own: slice, layout: str, capacity: int, device: torch.device
) -> dict[str, Tensor]:
    """Each image has itself as its only label."""
    words, size = (n + 31) // 32, own.stop - own.start
    # Ids up to n - 1, and -1.
    kind = torch.int32 if n <= _MOST else torch.int64
    need = 4 * size * words if layout == "bits" else size * (capacity * kind.itemsize + 4)
    advice = "layout='sparse'" if layout == "bits" else "fewer images or a smaller capacity"
    message = f"n: got {n:,}, expected {advice}: the layout {layout} takes {need / 1e9:,.1f} GB, more than {device} has"
    if need > _memory(device):
        raise ValueError(message)
    try:
        images = torch.arange(own.start, own.stop, device=device)
        if layout == "bits":
            flat = torch.zeros(size * words, dtype=torch.int32, device=device)
            flat[(images - own.start) * words + images // 32] = label_rows.bits_of(images)
            return {"words": flat.view(size, words)}
        ids = torch.full((size, capacity), -1, dtype=kind, device=device)
        ids[:, 0] = images
    except RuntimeError as error:
        # PyTorch names an allocation that failed on a CPU by its text alone.
        if isinstance(error, torch.OutOfMemoryError) or "allocate" in str(error):
            raise ValueError(message) from error
        raise
    return {
        "ids": ids,
        "counts": torch.ones(size, dtype=torch.int32, device=device),
        "dropped": torch.zeros((), dtype=torch.int64, device=device),
    }


def _memory(device: torch.device) -> int:
    """Bytes that the device has; 2^63 where it does not say."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    if device.type == "cpu" and {"SC_PHYS_PAGES", "SC_PAGE_SIZE"} <= set(os.sysconf_names):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return 2**63 - 1


def _check_values(n: int, capacity: int, state: Mapping[str, Tensor]) -> None:
    """No label outside the bank: a state may come from a damaged file."""
    if "words" in state:
        if n % 32 and bool((state["words"][:, -1] >> n % 32).any()):
            raise ValueError(
                f"state['words']: got labels behind the last image, expected none from {n} on"
            )
        return
    for name, low, high in (("counts", 0, capacity), ("ids", -1, n - 1)):
        least, greatest = (int(x) for x in state[name].aminmax())
        if least < low or greatest > high:
            raise ValueError(
                f"state[{name!r}]: got values from {least} to {greatest}, expected {low} to {high}"
            )
    for ids, counts in zip(
        state["ids"].split(_CHECKED), state["counts"].split(_CHECKED), strict=True
    ):
        if not torch.equal((ids >= 0).sum(1), counts.long()):
            raise ValueError(
                "state['counts']: got other numbers than those of the ids, expected the state of one bank"
            )
