"""`bank_contrast_loss` from one read of the bank, where each bank row is a class.

`reid_kernels.bank_contrast_loss` computes the logits of a piece of the bank in one launch and the
gradient in another, so that a row comes once from memory and once from the L2 cache, and some 40
launches wait for each other. The CUDA kernel here uses a row for both while it is in shared memory,
in one launch. It was never timed on a GPU, so nothing uses it unless `memory.one_read` says so.
"""

from __future__ import annotations

from types import ModuleType

import torch
from reid_kernels.checks import as_ids, as_pair
from reid_kernels.sharded import with_gradient
from torch import Tensor

from .. import native

#: Target of features that have no class.
_IGNORED = -1
#: Largest batch, bank and width of the kernel, as in csrc/bank_contrast.h.
_MOST_BATCH = 512
_MOST_ROWS = 2_000_000_000
_MOST_WIDTH = 4096


def fits(features: Tensor, bank: Tensor) -> bool:
    """Whether the kernel has a form for these shapes.

    Args:
        features: (B, D); B from 1 to 512, and D a multiple of 8 up to 4,096.
        bank: (n, D) with n from 1 to 2e9, not float64.
    """
    batch, dim = features.shape
    return (
        0 < batch <= _MOST_BATCH
        and 0 < dim <= _MOST_WIDTH
        and dim % 8 == 0
        and 0 < len(bank) <= _MOST_ROWS
        and bank.dtype != torch.float64
    )


def one_read_contrast_loss(
    features: Tensor, bank: Tensor, targets: Tensor, temperature: float
) -> Tensor:
    """Cross-entropy of features . bank / temperature (UCAL, Eq. 1), from one read of the bank.

    Products are of 16-bit values: float32 rows are rounded to bfloat16 first, which reads and
    writes the bank once more. Sums are float32. The gradient is for the features only, once, and
    comes from the forward call, so that the bank may change before `backward`. Repeated calls on
    one device return the same bits.

    Args:
        features: (B, D) bfloat16, float16 or float32, usually unit-norm rows, for which `fits`
            holds.
        bank: (n, D), dtype and device of the features.
        targets: (B,) int64 in [0, n), -1 for features that have no class.
        temperature: tau, above 0.

    Returns:
        The mean over the features that have a class, float32; 0 where none has one. NaN where a
        target is outside the bank, or where rows are not finite.

    Raises:
        ValueError: Wrong rank, width, dtype or device.
        RuntimeError: The device has no such form.

    Memory:
        P B D floats besides the gradient, and the 16-bit copies of float32 rows. P is the number of
        clusters of 8 blocks that the GPU runs at a time, over the groups of 128 features (64 where
        B is at most 64 or D above 2,048). 16 such clusters, as 132 multiprocessors have room for,
        make 16 B D at B = 64, 8 B D at B = 256 and 4 B D at B = 512. Each part of the bank is a
        cluster's, and fewer clusters would leave multiprocessors without work.

    Raises:
        RuntimeError: The device is not an NVIDIA GPU of compute capability 9.0 or later, or the
            extension was built without CUDA or for earlier GPUs only.
    """
    features, bank = as_pair("features", features, bank)
    targets = as_ids("targets", targets, len(features), features, "features", "feature row")
    losses, slopes = _one_read(features.detach(), bank, targets, temperature)
    if features.requires_grad and torch.is_grad_enabled():
        losses = with_gradient(features, losses, slopes)
    return losses.sum() / (targets != _IGNORED).sum().clamp(min=1)


@torch.library.custom_op("fastreid_al::one_read_contrast", mutates_args=())
def _one_read(
    features: Tensor, bank: Tensor, targets: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    """Losses (B,) and gradients (B, D) of each loss, both float32."""
    module = _extension(bank)
    features = _rows(features)
    bank = _rows(bank)
    targets = targets.contiguous()
    batch, dim = features.shape
    with torch.cuda.device_of(bank):
        problem = module.BankContrast(
            features.data_ptr(),
            bank.data_ptr(),
            native.address(targets),
            batch,
            len(bank),
            dim,
            features.stride(0),
            bank.stride(0),
            _IGNORED,
            1.0 / temperature,
            bank.dtype == torch.float16,
        )
        parts = module.bank_contrast_cuda_parts(problem)
        if parts == 0:
            raise RuntimeError(_message(_capability(bank)))
        heads = bank.new_empty(3, parts, batch, dtype=torch.float32)
        sums = bank.new_empty(parts, batch, dim, dtype=torch.float32)
        losses = bank.new_empty(batch, dtype=torch.float32)
        log_sums = torch.empty_like(losses)
        slopes = bank.new_empty(batch, dim, dtype=torch.float32)
        written = [native.address(x) for x in (heads, sums, losses, log_sums, slopes)]
        stream = torch.cuda.current_stream().cuda_stream
        module.bank_contrast_cuda(problem, parts, *written, stream)
    return losses, slopes


@_one_read.register_fake
def _(features: Tensor, bank: Tensor, targets: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    losses = features.new_empty(features.shape[0], dtype=torch.float32)
    return losses, features.new_empty(features.shape, dtype=torch.float32)


def _extension(bank: Tensor) -> ModuleType:
    """The compiled extension; RuntimeError where it has no CUDA part for the device."""
    if not bank.is_cuda or torch.version.hip is not None:
        raise RuntimeError(_message(f"a memory on {bank.device}"))
    with torch.cuda.device_of(bank):
        module = native.cuda_extension()
    if module is None:
        raise RuntimeError(
            _message(f"{_capability(bank)} and no CUDA part of fastreid_al that runs there")
        )
    return module


def _capability(bank: Tensor) -> str:
    major, minor = torch.cuda.get_device_capability(bank.device)
    return f"a GPU of compute capability {major}.{minor}"


def _message(got: str) -> str:
    return (
        f"memory.one_read: got {got}, expected an NVIDIA GPU of compute capability 9.0 or later "
        "with 227 KiB of shared memory for a block, and the CUDA part of fastreid_al built for it "
        "(`python -m fastreid_al.doctor` says what is there); set memory.one_read to false"
    )


def _rows(x: Tensor) -> Tensor:
    """Rows (rows, D) of 16-bit values as the kernel reads them, in pieces of 16 bytes."""
    if x.dtype == torch.float32:
        x = x.to(torch.bfloat16)
    aligned = x.stride(1) == 1 and x.stride(0) % 8 == 0 and x.data_ptr() % 16 == 0
    return x if aligned else x.clone(memory_format=torch.contiguous_format)
