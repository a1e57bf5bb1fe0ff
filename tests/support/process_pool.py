"""Ranks for tests: a pool of processes, started once, the first of which run a function."""

from __future__ import annotations

import multiprocessing
import sys
import tempfile
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

MOST = 4
#: Seconds that a function may take.
LIMIT = 120


class Pool:
    """Processes that form worlds of 1 to 4 ranks, over gloo."""

    def __init__(self) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["tests.support.process_pool", "torch", "fastreid_al.runs"])
        self._folder = tempfile.TemporaryDirectory()
        self._pipes: list[Connection] = []
        self._processes = []
        for rank in range(MOST):
            own_end, child_end = context.Pipe()
            process = context.Process(
                target=_serve, args=(rank, self._folder.name, child_end), daemon=True
            )
            process.start()
            self._pipes.append(own_end)
            self._processes.append(process)

    def run(self, function: Callable[..., Any], size: int, *args: Any) -> list[Any]:
        """Call `function(world, *args)` on each of `size` ranks.

        Args:
            function: A function at the top of a module.
            size: Number of ranks, 1 to 4.
            args: Further arguments.

        Returns:
            What the function returned, by rank.

        Raises:
            AssertionError: It failed on a rank; the rank's traceback is the message.
        """
        for pipe in self._pipes[:size]:
            pipe.send((list(sys.path), size, function.__module__, function.__qualname__, args))
        answers = []
        for pipe in self._pipes[:size]:
            answers.append(pipe.recv() if pipe.poll(LIMIT) else ("too long", None))
        for rank, (failed, _) in enumerate(answers):
            assert not failed, f"rank {rank} of {size}: {failed}"
        return [answer for _, answer in answers]

    def close(self) -> None:
        """End the processes."""
        for process in self._processes:
            process.kill()
            process.join()
        self._folder.cleanup()


def _serve(rank: int, folder: str, pipe: Connection) -> None:
    """Run the functions that arrive through a pipe, as one of the ranks."""
    import importlib

    import torch
    import torch.distributed as dist

    from fastreid_al.distributed.world import SINGLE_PROCESS, World

    torch.set_num_threads(1)
    store = dist.FileStore(f"{folder}/store", MOST)
    dist.init_process_group(
        "gloo", store=dist.PrefixStore("group", store), rank=rank, world_size=MOST
    )
    worlds = {1: SINGLE_PROCESS}
    for size in range(2, MOST + 1):
        group = dist.new_group(list(range(size)))
        if rank < size:
            worlds[size] = World(group, dist.PrefixStore(f"ranks-{size}", store))
    while True:
        path, size, module, name, args = pipe.recv()
        sys.path[:] = path
        try:
            function = getattr(importlib.import_module(module), name)
            pipe.send(("", function(worlds[size], *args)))
        except BaseException:
            pipe.send((traceback.format_exc(), None))
