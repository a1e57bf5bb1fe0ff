"""NNCT's pseudo-label memory bank (PLMB): the latest labels of every image.

Each image is a class, so that a label is the number of an image. The paper keeps an n x n matrix.
Here a row is n bits or a short list of ids. The operators on rows are in `label_rows`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

import torch
from torch import Tensor

from ..arguments import as_device, as_ids, as_integer, as_tensor, check_choice
from . import label_rows

#: Largest n for which the layout "auto" is "bits": 5 GB.
BITS_UP_TO = 200_000
#: Largest number of rows or labels of one batch, which are counted in int32.
_INT32_MAX = 2**31 - 1

#: Rows of a state that are checked at a time.
_CHECK_BLOCK = 2**20

LAYOUTS = ("auto", "bits", "sparse")


class PseudoLabelMemoryBank:
    """The labels last predicted for each of n images (NNCT's matrix B, Eq. 4 and 5).

    At first an image has only itself as a label.

    With the layout "bits" a row has one bit for each image: 133 MB at n = 32,621 and 125 GB at 1e6,
    and no label is ever dropped. With "sparse" a row is a list of at most `capacity` ids: with a
    capacity of 64 they take 8.5 MB at n = 32,621, 260 MB at 1e6 and 1.3 GB at 5e6. Both layouts
    hold the same labels as long as no list overflows.

    Args:
        n: Number of images.
        layout: "bits", "sparse", or "auto": bits up to n = 200,000.
        capacity: Most labels that a row of "sparse" holds.
        device: Device of the bank.
        own: The images whose labels this bank keeps, possibly none; by default all n. Labels may
            name any of the n images.

    Raises:
        ValueError: n or capacity below 1, an unknown layout, or a bank larger than the device's
            memory.
    """

    def __init__(
        self,
        n: int,
        layout: str = "auto",
        capacity: int = 64,
        device: torch.device | str = "cpu",
        own: slice | None = None,
    ) -> None:
        n = as_integer("n", n, 1)
        check_choice("layout", layout, LAYOUTS)
        capacity = as_integer("capacity", capacity, 1, _INT32_MAX)
        if layout == "auto":
            layout = "bits" if n <= BITS_UP_TO else "sparse"
        self.layout = layout
        self.capacity = capacity
        self._n = n
        self._own = slice(0, n) if own is None else _checked_slice(own, n)
        self._state = _identity(n, self._own, layout, capacity, as_device("device", device))

    def __len__(self) -> int:
        return self._n

    @property
    def own(self) -> slice:
        """The images whose labels the bank keeps."""
        return self._own

    @property
    def device(self) -> torch.device:
        """The device of the bank."""
        return self._state["words" if self.layout == "bits" else "ids"].device

    @property
    def nbytes(self) -> int:
        """Bytes that the bank takes."""
        return sum(x.nbytes for x in self._state.values())

    @property
    def dropped(self) -> int:
        """Labels that did not fit into full lists, in all updates so far. Waits for the device."""
        return int(self._state["dropped"]) if self.layout == "sparse" else 0

    def update(
        self, rows: Tensor, indptr: Tensor, indices: Tensor, similarities: Tensor | None = None
    ) -> None:
        """Replace the labels of some images, in batch order.

        If an image is named twice, its last labels stay.

        A label that is listed twice counts once. A list that overflows keeps the most similar
        labels: equal ones by their place, and a NaN counts as least similar. Without similarities
        it keeps the first labels, since `label_prediction` lists the most similar first. On a GPU
        this is one launch, for which the host does not wait; finding the last occurrence of each
        image takes B^2 / 256 steps of a block. Without the compiled extension the same is done in
        PyTorch, and the host waits.

        Args:
            rows: (B,) int64, images of `own`.
            indptr: (B + 1,) int64; the labels of rows[b] are indices[indptr[b]:indptr[b + 1]].
            indices: (labels,) int64.
            similarities: (labels,) float32, used only by "sparse".

        Raises:
            ValueError: Wrong shape, dtype or device. On a CPU also: rows outside `own`, labels
                outside [0, n), or an `indptr` that does not start at 0, decreases, or does not end
                at the number of labels. A GPU leaves such rows and labels out and bounds `indptr`:
                nothing outside the bank and the batch is read or written.
        """
        rows = self._checked_ids("rows", rows, None, "image of the batch")
        indptr = self._checked_ids("indptr", indptr, len(rows) + 1, "row, and the end")
        indices = self._checked_ids("indices", indices, None, "label")
        if similarities is not None:
            similarities = self._checked_similarities(similarities, len(indices))
        rows = self._places(rows)
        state = self._state
        if self.layout == "bits":
            label_rows.update_bits(state["words"], rows, indptr, indices, self._n)
            return
        label_rows.update_sparse(
            state["ids"],
            state["counts"],
            state["dropped"],
            rows,
            indptr,
            indices,
            similarities,
            self._n,
        )

    def lookup(self, rows: Tensor, most: int | None = None) -> tuple[Tensor, Tensor]:
        """The labels of some images.

        On a GPU two launches, between which the host waits for the number of labels; with `most`
        one launch without a wait, which a CUDA graph can hold. Its blocks read one another's
        counts, B^2 / 2 in all. Without the CUDA part of the extension PyTorch does it, as on a CPU,
        and the host waits.

        Args:
            rows: (B,) int64, images of `own` in any order, repeated or not.
            most: The images have at most so many labels together. With "sparse" B x capacity is
                always enough.

        Returns:
            `indptr` (B + 1,) and `indices`, int64: the labels of rows[b], ascending, are
                indices[indptr[b]:indptr[b + 1]]. With `most`, indices (most,), and those from
                indptr[B] on are -1.

        Raises:
            ValueError: Wrong shape, dtype or device, or a negative `most`. On a CPU also rows
                outside `own`, which have no labels on a GPU, and more than `most` labels. On a GPU
                `indptr` then counts all labels, but the row that ends after `most` and those after
                it have -1 in their place.
        """
        rows = self._checked_ids("rows", rows, None, "image")
        return label_lists(self._state, self._places(rows), self._n, checked_most(most))

    def lookup_bits(self, rows: Tensor) -> Tensor:
        """The labels of some images as bit rows, which `multilabel_bank_loss` takes.

        The host does not wait.

        Args:
            rows: (B,) int64, images of `own` in any order, repeated or not.

        Returns:
            (B, ceil(n / 32)) int32; bit j % 32 of word j // 32 tells whether j is a label. At B =
            64 this is 0.26 MB for n = 32,621 and 8 MB for 1e6.

        Raises:
            ValueError: Wrong shape, dtype or device. On a CPU also rows outside `own`, which have
                no labels on a GPU.
        """
        rows = self._checked_ids("rows", rows, None, "image")
        return bit_rows(self._state, self._places(rows), self._n)

    def _places(self, rows: Tensor) -> Tensor:
        """The rows of the bank (B,) that hold the images' labels.

        An image outside `own` has the row -1 on a GPU, and is refused on a CPU.
        """
        start, stop = self._own.start, self._own.stop
        if stop - start == self._n:
            return rows
        outside = (rows < start) | (rows >= stop)
        if rows.is_cpu and bool(outside.any()):
            place = int(outside.nonzero()[0, 0])
            raise ValueError(
                f"rows: got {int(rows[place])} at place {place}, "
                f"expected values in [{start}, {stop})"
            )
        return torch.where(outside, -1, rows - start)

    def to(self, device: torch.device | str) -> PseudoLabelMemoryBank:
        """Move the bank to a device. Returns the bank."""
        device = as_device("device", device)
        self._state = {name: x.to(device) for name, x in self._state.items()}
        return self

    def state_dict(self) -> dict[str, Tensor]:
        """The tensors of the bank, not copied: `words`, or `ids`, `counts` and `dropped`."""
        return dict(self._state)

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Copy what `state_dict` returned, from any device.

        Raises:
            ValueError: The state of another layout, n or capacity, or values that no bank has.
        """
        self._check_layout(state)
        for name, own in self._state.items():
            x = state[name]
            if x.shape != own.shape or x.dtype != own.dtype:
                capacity = f" and capacity {self.capacity}" if self.layout == "sparse" else ""
                raise ValueError(
                    f"state[{name!r}]: got {tuple(x.shape)} of {x.dtype}, "
                    f"expected {tuple(own.shape)} of {own.dtype}, for n = {self._n:,}{capacity}"
                )
        if self._own.stop > self._own.start:
            _check_values(self._n, self.capacity, state)
        for name, own in self._state.items():
            own.copy_(state[name])

    def _check_layout(self, state: Mapping[str, Tensor]) -> None:
        """Refuse a state whose tensors are not those of this bank's layout."""
        if set(state) == set(self._state):
            return
        if set(state) == {"words"}:
            got = "bits"
        elif set(state) == {"ids", "counts", "dropped"}:
            got = "sparse"
        else:
            got = ", ".join(sorted(state)) or "nothing"
        raise ValueError(f"state: got {got}, expected that of the layout {self.layout}")

    def _checked_ids(self, name: str, x: Tensor, count: int | None, per: str) -> Tensor:
        """Ids (count,) int64 on the device of the bank."""
        x = as_ids(name, x, count, per=per)
        if x.shape[0] > _INT32_MAX:
            raise ValueError(f"{name}: got {x.shape[0]:,} values, expected at most {_INT32_MAX:,}")
        self._check_device(name, x)
        return x

    def _checked_similarities(self, x: Tensor, count: int) -> Tensor:
        """Similarities (count,) float32 on the device of the bank, detached."""
        x = as_tensor("similarities", x, 1, "(labels,)").detach()
        if x.shape[0] != count:
            raise ValueError(
                f"similarities: got shape {tuple(x.shape)}, expected ({count},), one for each label"
            )
        if x.dtype != torch.float32:
            raise ValueError(f"similarities: got dtype {x.dtype}, expected torch.float32")
        self._check_device("similarities", x)
        return x

    def _check_device(self, name: str, x: Tensor) -> None:
        if x.device != self.device:
            raise ValueError(
                f"{name}: got device {x.device}, expected {self.device}, the device of the bank"
            )


def label_lists(
    state: Mapping[str, Tensor], places: Tensor, n: int, most: int | None = None
) -> tuple[Tensor, Tensor]:
    """The labels of rows of a bank as CSR lists.

    Args:
        state: The tensors of a bank, as `PseudoLabelMemoryBank.state_dict` returns them.
        places: (B,) int64, rows of these tensors.
        n: Number of images, which is the number of labels.
        most: Room for labels, as for `PseudoLabelMemoryBank.lookup`.

    Returns:
        `indptr` (B + 1,) and `indices`, int64, ascending in each row; with `most`, indices (most,).
    """
    if "words" in state:
        return label_rows.lookup_bits(state["words"], places, n, most)
    return label_rows.lookup_sparse(state["ids"], state["counts"], places, n, most)


def checked_most(most: int | None) -> int | None:
    """Refuse a `most` that is not a number of labels."""
    return None if most is None else as_integer("most", most, 0)


def bit_rows(state: Mapping[str, Tensor], places: Tensor, n: int) -> Tensor:
    """The labels of rows of a bank as bits.

    Args:
        state: The tensors of a bank, as `PseudoLabelMemoryBank.state_dict` returns them.
        places: (B,) int64, rows of these tensors.
        n: Number of images, which is the number of labels.

    Returns:
        (B, ceil(n / 32)) int32.
    """
    if "words" in state:
        return label_rows.bit_rows_bits(state["words"], places, n)
    return label_rows.bit_rows_sparse(state["ids"], state["counts"], places, n)


def _checked_slice(own: slice, n: int) -> slice:
    """Refuse a slice that is not of consecutive images."""
    if (
        not isinstance(own, slice)
        or not isinstance(own.start, int)
        or not isinstance(own.stop, int)
        or own.step not in (None, 1)
        or not 0 <= own.start <= own.stop <= n
    ):
        raise ValueError(f"own: got {own!s:.60}, expected a slice of 0 to {n}")
    return own


def _identity(
    n: int, own: slice, layout: str, capacity: int, device: torch.device
) -> dict[str, Tensor]:
    """The tensors of a bank in which each image of `own` is its own only label.

    Raises:
        ValueError: They take more memory than the device has.
    """
    words = (n + 31) // 32
    size = own.stop - own.start
    # Ids are -1 to n - 1.
    id_dtype = torch.int32 if n <= _INT32_MAX else torch.int64
    if layout == "bits":
        needed = 4 * size * words
        advice = "layout='sparse'"
    else:
        needed = size * (capacity * id_dtype.itemsize + 4)
        advice = "fewer images or a smaller capacity"
    message = (
        f"n: got {n:,}, expected {advice}: the layout {layout} takes {needed / 1e9:,.1f} GB, "
        f"more than {device} has"
    )
    if needed > _memory(device):
        raise ValueError(message)
    try:
        images = torch.arange(own.start, own.stop, device=device)
        if layout == "bits":
            flat = torch.zeros(size * words, dtype=torch.int32, device=device)
            flat[(images - own.start) * words + images // 32] = label_rows.bits_of(images)
            return {"words": flat.view(size, words)}
        ids = torch.full((size, capacity), -1, dtype=id_dtype, device=device)
        ids[:, 0] = images
    except RuntimeError as error:
        # On a CPU only the text of PyTorch's error tells that an allocation failed.
        if isinstance(error, torch.OutOfMemoryError) or "allocate" in str(error):
            raise ValueError(message) from error
        raise
    return {
        "ids": ids,
        "counts": torch.ones(size, dtype=torch.int32, device=device),
        "dropped": torch.zeros((), dtype=torch.int64, device=device),
    }


def _memory(device: torch.device) -> int:
    """Bytes of memory of the device; 2^63 - 1 where they are not known."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    if device.type == "cpu" and {"SC_PHYS_PAGES", "SC_PAGE_SIZE"} <= set(os.sysconf_names):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return 2**63 - 1


def _check_values(n: int, capacity: int, state: Mapping[str, Tensor]) -> None:
    """Refuse values that no bank has: a state may come from a damaged file."""
    if "words" in state:
        if n % 32 and bool((state["words"][:, -1] >> n % 32).any()):
            raise ValueError(
                f"state['words']: got labels behind the last image, expected none from {n} on"
            )
        return
    for name, low, high in (("counts", 0, capacity), ("ids", -1, n - 1)):
        lowest, highest = state[name].aminmax()
        if int(lowest) < low or int(highest) > high:
            raise ValueError(
                f"state[{name!r}]: got values from {int(lowest)} to {int(highest)}, "
                f"expected {low} to {high}"
            )
    id_blocks = state["ids"].split(_CHECK_BLOCK)
    count_blocks = state["counts"].split(_CHECK_BLOCK)
    for ids, counts in zip(id_blocks, count_blocks, strict=True):
        if not torch.equal((ids >= 0).sum(1), counts.long()):
            raise ValueError(
                "state['counts']: got numbers that are not those of the ids, "
                "expected the state of one bank"
            )
