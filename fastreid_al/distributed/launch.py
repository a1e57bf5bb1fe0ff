"""How `torchrun` starts the processes of a run: their groups, their devices, and their restarts."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import cast

import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from ..errors import SettingError, UserError
from .world import SINGLE_PROCESS, World

#: A rank that sends nothing for so long has failed. It is long because rank 0 may work while the
#: others wait: rendering a synthetic set, writing a checkpoint.
_SILENCE = timedelta(hours=1)
#: How long ranks that have started wait for the others to start.
_STARTUP = timedelta(minutes=10)


def launched() -> bool:
    """Whether torchrun, or a launcher that sets the same variables, started this process."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def restarted() -> bool:
    """Whether torchrun has restarted the ranks after one failed."""
    return launched() and _restarts() > 0


def may_restart() -> bool:
    """Whether torchrun would restart the ranks if one failed."""
    return launched() and int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0")) > 0


def _restarts() -> int:
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


def device_of_rank(name: str) -> str:
    """Return the device of this rank: where a machine has several GPUs, the one of its local rank.

    Args:
        name: The device that the settings name: auto, cpu, cuda or cuda:N.

    Raises:
        UserError: Several ranks would use one GPU, or this rank has none.
    """
    if not launched() or not torch.cuda.is_available():
        return name
    if name.startswith("cuda:") and int(os.environ.get("LOCAL_WORLD_SIZE", "1")) > 1:
        raise SettingError(
            "device",
            name,
            "cuda",
            "each rank takes a GPU of its own, and all ranks of a machine would use this one",
        )
    if name not in ("auto", "cuda"):
        return name
    local = int(os.environ.get("LOCAL_RANK", "0"))
    count = torch.cuda.device_count()
    if local >= count:
        raise UserError(
            f"local rank {local} (rank {os.environ['RANK']}) has no GPU ({count} found): start "
            f"torchrun with nproc-per-node {count}, or set `device` to cpu"
        )
    return f"cuda:{local}"


def require_single_process(what: str) -> None:
    """Refuse several ranks for a command that a single process executes.

    Args:
        what: The command, for the message.

    Raises:
        UserError: torchrun started several ranks.
    """
    if launched() and int(os.environ["WORLD_SIZE"]) > 1:
        raise UserError(f"{what} runs in a single process: start it without torchrun")


@contextmanager
def joined(
    device: torch.device, raised_together: tuple[type[Exception], ...] = ()
) -> Iterator[tuple[World, str | None]]:
    """Join the process group of the run, where torchrun started this process.

    Args:
        device: Where this rank computes.
        raised_together: Exceptions that the block raises on all ranks or on none. The ranks
            wait for one another and shut the group down before they propagate; after any other
            exception it is left open, because other ranks may wait in it until torchrun ends them.

    Yields:
        The world, and a line that says how the ranks communicate; `SINGLE_PROCESS` and None without
        torchrun.

    Raises:
        UserError: The group could not be joined, or another rank ended.
    """
    if not launched() or int(os.environ["WORLD_SIZE"]) == 1:
        yield SINGLE_PROCESS, None
        return
    backend, reason = _backend(device)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    world = _join(backend)
    try:
        yield world, f"{world.size} ranks over {backend}{reason}"
        _leave(world)
    except raised_together:
        _leave(world)
        raise
    except UserError as error:
        error.said = not world.report_once(str(error))
        raise
    except RuntimeError as error:
        if not isinstance(error, dist.DistError) and "gloo" not in str(error):
            raise
        raise UserError(
            f"rank {world.rank}: another rank ended, see its own message; without one the system "
            "killed it. The last checkpoint is intact: continue with the same command and `resume`"
        ) from error


def _leave(world: World) -> None:
    """Wait until all ranks are here, and shut the process group down.

    Without torchrun the store is in the process of rank 0, and ends with it, while other ranks may
    still be about to read a result from it.
    """
    # A rank that ended does not wait, and this one has done its work.
    with suppress(RuntimeError):
        dist.barrier(group=world.control)
    dist.destroy_process_group()


def _join(backend: str) -> World:
    """Join the process group of the ranks that torchrun started."""
    try:
        store, rank, size = next(iter(rendezvous("env://", timeout=_STARTUP)))
        # The store outlives a restart: without a prefix the keys of the last start would be read.
        store = dist.PrefixStore(f"start-{_restarts()}", store)
        dist.init_process_group(
            backend,
            store=dist.PrefixStore("group", store),
            rank=rank,
            world_size=size,
            timeout=_SILENCE,
        )
        group = cast(dist.ProcessGroup, dist.group.WORLD)
        control = group
        if backend != "gloo":
            # Flags and Python objects are exchanged between hosts, without waiting for a device.
            control = cast(dist.ProcessGroup, dist.new_group(backend="gloo", timeout=_SILENCE))
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"the ranks could not connect ({str(error).splitlines()[0]}); start them with "
            "torchrun, which sets MASTER_ADDR, MASTER_PORT, RANK and WORLD_SIZE"
        ) from error
    return World(group, dist.PrefixStore("ranks", store), control)


def _backend(device: torch.device) -> tuple[str, str]:
    """Return the backend for a device, and the end of the line that names it."""
    if device.type == "cpu":
        return "gloo", ""
    if dist.is_nccl_available():
        return "nccl", ""
    return "gloo", ": this PyTorch has no NCCL, GPUs exchange through the host, which is slower"
