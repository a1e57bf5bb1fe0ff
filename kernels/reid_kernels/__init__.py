"""Operators of person re-identification that stand alone: PyTorch and Triton are all that they need.

Each works on any device and picks its implementation by the device of its arguments: Triton kernels on a GPU, blocked PyTorch
on a CPU. Each has a plain reference beside it (`*_reference`), any floating dtype. This folder can be installed with the
project, copied alone into another one, or loaded by path.
"""

from . import compat
from ._ops import NotFiniteError
from .bank_loss import (
    ClassIndex,
    ContrastShares,
    bank_contrast_loss,
    bank_contrast_loss_reference,
    bank_contrast_shares,
    bank_contrast_shares_reference,
    class_index,
    class_means,
)
from .grouped_norm import grouped_batch_norm, grouped_batch_norm_reference
from .labels import label_prediction, label_prediction_reference
from .memory import hardest_rows, update_bank_, update_bank_reference
from .multilabel import multilabel_bank_loss, multilabel_bank_loss_reference
from .topk import similarity_topk, similarity_topk_reference

__all__ = [
    "ClassIndex",
    "ContrastShares",
    "NotFiniteError",
    "bank_contrast_loss",
    "bank_contrast_loss_reference",
    "bank_contrast_shares",
    "bank_contrast_shares_reference",
    "class_index",
    "class_means",
    "compat",
    "grouped_batch_norm",
    "grouped_batch_norm_reference",
    "hardest_rows",
    "label_prediction",
    "label_prediction_reference",
    "multilabel_bank_loss",
    "multilabel_bank_loss_reference",
    "similarity_topk",
    "similarity_topk_reference",
    "update_bank_",
    "update_bank_reference",
]
