"""Peak memory of a run."""

from __future__ import annotations

import sys

import torch

from ..distributed.world import World

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]


def peak_memory(device: torch.device, world: World) -> dict[str, float]:
    """Return the highest peak memory of any process of the run so far, in GB of 1e9 bytes.

    Args:
        device: Where this process computes; on a GPU the memory that PyTorch allocated there is
            meant, on a CPU the resident memory of the process.
        world: The processes of the run.

    Returns:
        `device_memory_gb` on a GPU, `memory_gb` on a CPU; empty where the system does not say.
    """
    if device.type == "cuda":
        peak = max(world.all_gather_objects(torch.cuda.max_memory_allocated(device)))
        return {"device_memory_gb": round(peak / 1e9, 3)}
    if resource is None:
        return {}
    # macOS counts bytes, Linux kilobytes.
    unit = 1 if sys.platform == "darwin" else 1024
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return {"memory_gb": round(max(world.all_gather_objects(own)) / 1e9, 3)}
