"""Checks that all processes of a run have the same settings and read the same images."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from ..config import RunConfig
from ..data.fingerprint import different_images
from ..distributed.world import World
from ..engine.resume import named_values
from ..errors import UserError
from ..settings import flatten

#: Settings that may differ between the processes.
_OWN = ("device", "run_dir")


def check_same_settings(world: World, config: RunConfig, resume: bool) -> None:
    """Refuse ranks that were started with different settings. All processes call it.

    Args:
        world: The processes of the run.
        config: The configuration of this process.
        resume: Whether this process was asked to resume.

    Raises:
        UserError: On all ranks, naming the first rank that differs from rank 0, and in which
            settings.
    """
    settings = {"resume": resume, **flatten(config)}
    first, *others = world.all_gather_objects(settings)
    for rank, other in enumerate(others, 1):
        different = [key for key in other if other[key] != first[key] and key not in _OWN]
        if different:
            raise UserError(
                f"rank {rank} was started with {named_values(other, different)}, "
                f"rank 0 with {named_values(first, different)}; give all ranks the same settings"
            )


def check_same_images(world: World, data: Mapping[str, str]) -> None:
    """Refuse ranks that read different images. All processes call it.

    Args:
        world: The processes of the run.
        data: Fingerprint of the images that this process reads.

    Raises:
        UserError: On all ranks, naming the first rank that differs from rank 0, and in which image.
    """
    digest = hashlib.blake2b(repr(sorted(data.items())).encode(), digest_size=16).hexdigest()
    digests = world.all_gather_objects(digest)
    if len(set(digests)) == 1:
        return
    fingerprints = world.all_gather_objects(dict(data))
    rank = next(r for r, other in enumerate(digests) if other != digests[0])
    raise UserError(
        f"rank {rank} reads other images than rank 0: "
        f"{different_images(fingerprints[0], fingerprints[rank])}; "
        "give all machines the same `data_root`"
    )
