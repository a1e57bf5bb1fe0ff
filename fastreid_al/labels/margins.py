"""How much closer each image is to its own identity than to the next one."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from reid_kernels import similarity_topk
from torch import Tensor, nn

#: Rows whose products are computed at a time.
_ROWS = 4096
#: Most similar centroids that are kept of each image: two of them may be left out, see `towards`.
_NEAREST = 3


class Margins:
    """Cosines of images to the centroids of identities.

    The cosine to the own centroid leaves the image itself out. An identity's centroid is the sum of
    its unit-norm features, at unit norm. Where no other identity exists, the cosine to the next one
    is -1.

    The centroids take 8 G D bytes in float64 and 4 G D in float32: 1 GB at n = 32,621 with 5 images
    an identity, and 5 GB at 1e6 with 10, for D = 2,048; each image takes 60 bytes. Time is O(n G D)
    for G identities, less than that of an exact search of neighbours, O(n^2 D).

    Args:
        features: (n, D) float32, unit-norm.
        identities: (n,) int64, -1 for none.
    """

    def __init__(self, features: Tensor, identities: Tensor) -> None:
        self.features = features
        device = features.device
        known, numbers = identities.unique(return_inverse=True)
        # Numbered without gaps; -1 stays -1.
        self.identities = numbers - int(len(known) > 0 and bool(known[0] < 0))  # (n,)
        self.sizes = self.identities[self.identities >= 0].bincount()  # (G,)
        ids = self.identities.to(device)
        sums = torch.zeros(len(self.sizes), features.shape[1], dtype=torch.float64, device=device)
        for rows in _blocks(ids):
            inside = rows[ids[rows] >= 0]
            sums.index_add_(0, ids[inside], features[inside].double())
        #: (n,) float64 cosine to the own centroid; NaN without another image of the identity.
        self.own = self._own(sums, ids)
        #: (G, D) float32, unit-norm.
        self.centroids = nn.functional.normalize(sums, dim=1).float()  # (G, D)
        #: (n, 3) cosines and numbers of the nearest identities; -inf and -1 where there are fewer.
        self._values, self._nearest = self._search()

    def _own(self, sums: Tensor, ids: Tensor) -> Tensor:
        own = torch.full((len(ids),), torch.nan, dtype=torch.float64)
        several = torch.zeros(len(ids), dtype=torch.bool)
        inside = self.identities >= 0
        several[inside] = self.sizes[self.identities[inside]] > 1
        for rows in several.nonzero()[:, 0].split(_ROWS):
            at = rows.to(ids.device)
            image = self.features[at].double()
            rest = sums[ids[at]] - image
            cosines = (nn.functional.normalize(rest, dim=1) * image).sum(1)
            own[rows] = cosines.cpu()
        return own

    def _search(self) -> tuple[Tensor, Tensor]:
        n = len(self.features)
        values = torch.full((n, _NEAREST), -torch.inf, dtype=torch.float64)
        nearest = torch.full((n, _NEAREST), -1, dtype=torch.int64)
        count = min(_NEAREST, len(self.centroids))
        if count and n:
            found = similarity_topk(self.features, self.centroids, count, normalize=False)
            values[:, :count] = found[0].double().cpu()
            nearest[:, :count] = found[1].cpu()
        return values, nearest

    @property
    def margin(self) -> Tensor:
        """Cosine to the own centroid minus that to the next identity's: (n,) float64.

        NaN for an image without identity, and for the only image of one.
        """
        images = torch.arange(len(self.own))
        return self.own - self._next(images, self.identities)

    def towards(self, images: Tensor, targets: Tensor) -> Tensor:
        """The margin of each image, were it of another identity: (m,) float64.

        Args:
            images: (m,) int64 rows.
            targets: (m,) int64 rows of images with an identity: the identity in question.
        """
        to = self.identities[targets]
        device = self.centroids.device
        cosines = torch.empty(len(images), dtype=torch.float64)
        for part in torch.arange(len(images)).split(_ROWS):
            rows = self.features[images[part].to(device)]
            centroids = self.centroids[to[part].to(device)]
            cosines[part] = (rows * centroids).sum(1).double().cpu()
        inside = self.identities[images] == to
        cosines = torch.where(inside, self.own[images], cosines)
        return cosines - self._next(images, to)

    def _next(self, images: Tensor, targets: Tensor) -> Tensor:
        """The cosine of each image to the nearest identity but a target, -1 where there is none."""
        own = self.identities[images]
        near = self._nearest[images]  # (m, 3)
        left_out = (near == targets[:, None]) | (near == own[:, None])
        best = self._values[images].masked_fill(left_out, -torch.inf).amax(1)
        # The image itself is in its own centroid.
        is_other = (own >= 0) & (own != targets) & ~self.own[images].isnan()
        best = torch.where(is_other, best.maximum(self.own[images].nan_to_num(-1.0)), best)
        return best.clamp_min(-1.0)


def _blocks(ids: Tensor) -> Iterator[Tensor]:
    """Rows (b,) of consecutive blocks, on the device of the ids."""
    yield from torch.arange(len(ids), device=ids.device).split(_ROWS)
