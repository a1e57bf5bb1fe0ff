"""The memories of SpCL, Cluster Contrast and MMCL, written again from their formulas.

They compute whole rows of logits and loop over the batch, in any floating dtype. They use nothing
of the operators that are compared with them.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Products(torch.autograd.Function):
    """Products of a batch with a memory that is updated in the backward pass."""

    @staticmethod
    def forward(
        ctx, x: Tensor, memory: Tensor, ids: Tensor, momentum: float, hardest: bool
    ) -> Tensor:
        ctx.save_for_backward(x, ids)
        ctx.memory, ctx.momentum, ctx.hardest = memory, momentum, hardest
        return x @ memory.T

    @staticmethod
    def backward(ctx, gradient: Tensor):
        x, ids = ctx.saved_tensors
        out = gradient @ ctx.memory
        places = range(len(ids))
        if ctx.hardest:
            old = ctx.memory.clone()
            least: dict[int, int] = {}
            for place in places:
                row = int(ids[place])
                if row not in least or x[place] @ old[row] < x[least[row]] @ old[row]:
                    least[row] = place
            places = sorted(least.values())
        for place in places:
            row = int(ids[place])
            if row >= 0:
                moved = ctx.momentum * ctx.memory[row] + (1 - ctx.momentum) * x[place]
                ctx.memory[row] = moved / moved.square().sum().sqrt()
        return out, None, None, None, None


class HybridMemory(nn.Module):
    def __init__(self, features: Tensor, labels: Tensor, temp: float = 0.05, momentum: float = 0.2):
        super().__init__()
        self.features, self.labels, self.temp, self.momentum = features, labels, temp, momentum

    def forward(self, inputs: Tensor, indexes: Tensor) -> Tensor:
        logits = Products.apply(inputs, self.features, indexes, self.momentum, False) / self.temp
        existing = [c for c in self.labels.unique().tolist() if c >= 0]
        of_class = torch.stack([logits[:, self.labels == c].mean(1) for c in existing], dim=1)
        shares = of_class.exp() / (of_class.exp().sum(1, keepdim=True) + 1e-6)
        losses = []
        for place, index in enumerate(indexes.tolist()):
            label = int(self.labels[index])
            if label >= 0:
                losses.append(-(shares[place, existing.index(label)] + 1e-6).log())
        return torch.stack(losses).mean()


class ClusterMemory(nn.Module):
    def __init__(
        self, features: Tensor, temp: float = 0.05, momentum: float = 0.2, use_hard: bool = False
    ):
        super().__init__()
        self.features, self.temp, self.momentum, self.use_hard = features, temp, momentum, use_hard

    def forward(self, inputs: Tensor, targets: Tensor) -> Tensor:
        inputs = inputs / inputs.square().sum(1, keepdim=True).sqrt()
        logits = (
            Products.apply(inputs, self.features, targets, self.momentum, self.use_hard) / self.temp
        )
        losses = [
            logits[place].logsumexp(0) - logits[place, row]
            for place, row in enumerate(targets.tolist())
            if row >= 0
        ]
        return torch.stack(losses).mean()


class MMCLMemory(nn.Module):
    def __init__(self, mem: Tensor, epochs: int = 60, delta: float = 5.0, hard_ratio: float = 0.01):
        super().__init__()
        self.mem, self.epochs, self.delta, self.hard_ratio = mem, epochs, delta, hard_ratio

    def forward(
        self, inputs: Tensor, indexes: Tensor, epoch: int, positives: list[list[int]] | None = None
    ) -> Tensor:
        similarity = Products.apply(inputs, self.mem, indexes, 0.5 * epoch / self.epochs, False)
        losses = []
        for place, index in enumerate(indexes.tolist()):
            positive = torch.zeros(len(self.mem), dtype=torch.bool)
            positive[[index] if positives is None else positives[place]] = True
            negatives = similarity[place, ~positive].sort(descending=True).values
            hard = negatives[: max(1, int(self.hard_ratio * len(negatives)))]
            losses.append(
                self.delta * (1 - similarity[place, positive]).square().mean()
                + (1 + hard).square().mean()
            )
        return torch.stack(losses).mean()

    def predict(self, indexes: Tensor, threshold: float = 0.6) -> list[list[int]]:
        similarity = self.mem @ self.mem.T
        out = []
        for index in indexes.tolist():
            ordered = similarity[index].argsort(descending=True, stable=True).tolist()
            above = int((similarity[index] > threshold).sum())
            candidates = max(above, 10)
            last = 0
            for place, other in enumerate(ordered[:candidates]):
                if int((similarity[other] > similarity[other, index]).sum()) > candidates:
                    break
                last = place
            out.append(sorted({*ordered[: min(max(1, last) + 1, above)], index}))
        return out
