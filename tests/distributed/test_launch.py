"""How torchrun starts the ranks."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

import pytest
import torch

from fastreid_al.distributed import launch


def test_without_nccl_gpus_use_gloo_and_the_line_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.distributed, "is_nccl_available", lambda: False)
    backend, why = launch._backend(torch.device("cuda"))
    assert backend == "gloo" and "no NCCL" in why


RANK = """
import os, sys, time
import torch
from fastreid_al.distributed.launch import joined

status = 1
try:
    with joined(torch.device("cpu"), raised_together=(KeyError,)) as (world, line):
        # Rank 1 asks for the result long after rank 0 has made it, which has nothing else to do.
        time.sleep(2 * world.rank)
        got = world.compute_on_first(lambda: 5)
        print(world.rank, got, flush=True)
        if sys.argv[1] == "raise":
            raise KeyError("together")
    status = 0
except KeyError:
    status = 3
finally:
    # Without the second that Python takes to end with torch.
    os._exit(status)
"""


@pytest.mark.parametrize("end", ["return", "raise"])
def test_rank_0_with_the_store_ends_after_all_others_without_torchrun(end: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", RANK, end],
            env={
                **os.environ,
                "RANK": str(rank),
                "WORLD_SIZE": "2",
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
            },
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for rank in range(2)
    ]
    for rank, process in enumerate(ranks):
        printed, errors = process.communicate(timeout=300)
        assert printed == f"{rank} 5\n", errors
        assert process.returncode == (3 if end == "raise" else 0), errors
