"""The processes of a distributed test, as torchrun starts them."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

WORLD = 2


def run_ranks(worker: Callable[..., None], *args: object) -> None:
    """Call ``worker(rank, *args)`` in two processes, whose errors are raised here."""
    mp.spawn(_run, args=(_free_port(), worker, args), nprocs=WORLD)


def _run(rank: int, port: int, worker: Callable[..., None], args: tuple[object, ...]) -> None:
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(WORLD), LOCAL_RANK=str(rank))
    worker(rank, *args)
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()
    sys.stdout.flush()
    sys.stderr.flush()
    # A thread of gloo that lets go of its last tensor while Python is being taken down aborts the process.
    os._exit(0)


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
