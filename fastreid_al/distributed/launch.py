"""The ranks of a run as `torchrun` starts them: their groups, their device, and whether they were all asked for the same."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, cast

import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from ..config import RunConfig
from ..data.fingerprint import different_images
from ..errors import UserError
from .world import SINGLE_PROCESS, World

#: A rank that says nothing for so long has failed. Rank 0 may be busy alone: drawing a set, writing a checkpoint.
_SILENCE = timedelta(hours=1)
#: How long ranks that have started wait for the others to start.
_MEETING = timedelta(minutes=10)


def launched() -> bool:
    """Whether torchrun, or what sets the same variables, started this process."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def restarted() -> bool:
    """Whether torchrun has started the ranks again, after one failed."""
    return launched() and _starts() > 0


def _starts() -> int:
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


def may_restart() -> bool:
    """Whether torchrun would start the ranks again, were one to fail."""
    return launched() and int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0")) > 0


def device_of_rank(name: str) -> str:
    """The setting of the device of this rank: of several GPUs in a machine the one of its number there."""
    if not launched() or not torch.cuda.is_available():
        return name
    if name.startswith("cuda:") and int(os.environ.get("LOCAL_WORLD_SIZE", "1")) > 1:
        raise UserError(
            f"--device {name}: the ranks of a machine would share one GPU; give --device cuda, one to each"
        )
    if name not in ("auto", "cuda"):
        return name
    local, here = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if local >= here:
        raise UserError(
            f"rank {os.environ['RANK']} is number {local + 1} on its machine, which has {here} GPUs: start torchrun with "
            f"--nproc-per-node {here}, or with --device cpu"
        )
    return f"cuda:{local}"


def alone_or_refuse(what: str) -> None:
    """Refuse several ranks where one process does the work.

    Raises:
        UserError: torchrun started several.
    """
    if launched() and int(os.environ["WORLD_SIZE"]) > 1:
        raise UserError(f"{what} runs in one process: start it without torchrun")


@contextmanager
def joined(device: torch.device) -> Iterator[tuple[World, str | None]]:
    """Meet the other ranks, where torchrun started this process.

    Args:
        device: Where this rank computes.

    Yields:
        The ranks, and what is to be said once of how they talk; a process alone without torchrun.

    Raises:
        UserError: The others could not be met.
    """
    if not launched() or int(os.environ["WORLD_SIZE"]) == 1:
        yield SINGLE_PROCESS, None
        return
    backend, why = _backend(device)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    try:
        store, rank, size = next(iter(rendezvous("env://", timeout=_MEETING)))
        # The store outlives ranks that are started again; what the last ones wrote there is not for these.
        store = dist.PrefixStore(f"start-{_starts()}", store)
        dist.init_process_group(
            backend,
            store=dist.PrefixStore("group", store),
            rank=rank,
            world_size=size,
            timeout=_SILENCE,
        )
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"the ranks could not meet ({str(error).splitlines()[0]}); start them with torchrun, which sets MASTER_ADDR, "
            "MASTER_PORT, RANK and WORLD_SIZE"
        ) from error
    try:
        group = cast(dist.ProcessGroup, dist.group.WORLD)
        # What a person decides, or a signal, must not wait for a device.
        control = (
            group
            if backend == "gloo"
            else cast(dist.ProcessGroup, dist.new_group(backend="gloo", timeout=_SILENCE))
        )
        world = World(group, dist.PrefixStore("ranks", store), control)
        yield world, f"{size} ranks over {backend}{why}"
    except UserError as error:
        error.said = not world.report_once(str(error))
        raise
    except RuntimeError as error:
        if not isinstance(error, dist.DistError) and "gloo" not in str(error):
            raise
        raise UserError(
            f"rank {rank}: another rank ended, see its own message; without one the system killed it. The last checkpoint is "
            "intact: go on with the same command and --resume"
        ) from error
    # After an error the group is left as it is: others may wait in it for this rank, until torchrun ends them.
    dist.destroy_process_group()


def _backend(device: torch.device) -> tuple[str, str]:
    if device.type == "cpu":
        return "gloo", ""
    if dist.is_nccl_available():
        return "nccl", ""
    return "gloo", ": this PyTorch has no NCCL, GPUs exchange through the host, which is slower"


def check_same_settings(world: World, config: RunConfig, resume: bool) -> None:
    """Refuse ranks that were started with different settings.

    Raises:
        UserError: On all ranks, naming the first rank that differs from rank 0, and in what.
    """
    every = world.all_gather_objects({"resume": resume, **flat(dataclasses.asdict(config))})
    for rank, settings in enumerate(every):
        different = [
            k for k in settings if settings[k] != every[0][k] and k not in ("device", "run_dir")
        ]
        if different:
            theirs, first = (
                " ".join(f"--{k.replace('_', '-')} {side[k]}" for k in different)
                for side in (settings, every[0])
            )
            raise UserError(
                f"rank {rank} was started with {theirs}, rank 0 with {first}; give all ranks the same settings"
            )


def check_same_images(world: World, data: Mapping[str, str]) -> None:
    """Refuse ranks that read different images.

    Raises:
        UserError: On all ranks, naming the first rank that differs from rank 0, and in which image.
    """
    digest = hashlib.blake2b(repr(sorted(data.items())).encode(), digest_size=16).hexdigest()
    digests = world.all_gather_objects(digest)
    if len(set(digests)) == 1:
        return
    every = world.all_gather_objects(dict(data))
    rank = next(r for r, found in enumerate(digests) if found != digests[0])
    raise UserError(
        f"rank {rank} reads other images than rank 0: {different_images(every[0], every[rank])}; "
        "give all machines the same --data-root"
    )


def flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as `group.name` -> value."""
    out: dict[str, Any] = {}
    for key, value in settings.items():
        out |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return out
