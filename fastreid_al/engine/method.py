"""The protocol between the training loop and a method, such as UCAL or NNCT."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

from torch import Tensor, nn

#: `extract(domain="target")` returns the features (n, D) float32 of all training images of a domain
#: under the present weights; with several processes each gets the rows of its own images.
Extract = Callable[..., Tensor]


class Method(Protocol):
    """How the images are labelled at each epoch, and the loss that follows from the labels.

    The loop calls `label_images`, then for each of `batches` first `loss` and after the optimizer's
    step `update`, and at the end of the epoch `label_metrics`. Rows 0 to n - 1 are the target's
    images; the images of a labelled source are numbered after them.
    """

    @property
    def iterations(self) -> int:
        """Batches in an epoch."""

    @property
    def labels_before_questions(self) -> Tensor | None:
        """(n,) int64 clusters before the questions refined them; None when none were asked."""

    def layers(self) -> nn.ModuleList:
        """Return the layers that are trained in addition to the network; `state_dict` has them."""

    def label_images(self, epoch: int, extract: Extract) -> dict[str, float]:
        """Label the images for an epoch, before its first batch.

        Args:
            epoch: Epochs completed.
            extract: Extracts features, of the target or with "source" of the source.

        Returns:
            Metrics of the labels, for the log.
        """

    def batches(self, epoch: int) -> Iterator[Tensor]:
        """Yield the int64 rows of each batch's images; the same ones each time it is called.

        (B,) rows of the target, followed by as many rows of the source where there is one: (2B,).
        """

    def loss(self, embeddings: Tensor, rows: Tensor) -> Tensor:
        """Return the loss () of a batch.

        Args:
            embeddings: (B, D) float32 with gradient, not normalised.
            rows: (B,) int64 rows of their images.
        """

    def update(self, embeddings: Tensor, rows: Tensor) -> None:
        """Update the memories with a batch, after the optimizer's step.

        Args:
            embeddings: (B, D) float32 without gradient, not normalised.
            rows: (B,) int64 rows of their images.
        """

    def label_metrics(self, identities: Tensor | None) -> Mapping[str, float | None]:
        """Return metrics of the labels at the end of an epoch, for the log; None where undefined.

        Args:
            identities: (n,) int64 true identities; None where they are not known.
        """

    def state_dict(self) -> dict[str, Any]:
        """Return all state that the rest of the run depends on."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
