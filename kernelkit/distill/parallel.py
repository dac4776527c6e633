"""The processes of a run, as torchrun starts them, and a model that is sharded over them."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method


@dataclass(frozen=True)
class Ranks:
    """This process among those of the run; collective methods are called by all of them.

    Attributes:
        rank, world_size: its number, and how many there are.
        local_rank: its number on its machine, which is that of its accelerator.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0

    @classmethod
    def from_environment(cls) -> Ranks:
        """As torchrun says; alone where it was not started by it."""
        return cls(*(int(os.environ.get(name, default)) for name, default in _VARIABLES))

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes and speaks."""
        return self.rank == 0

    def device(self, wanted: str | None = None) -> torch.device:
        """``wanted``, or the accelerator of this machine; of several, that of this process."""
        device = torch.device(wanted) if wanted else torch.accelerator.current_accelerator() or torch.device("cpu")
        if device.type == "cpu" or ":" in str(device):
            return device
        return torch.device(device.type, self.local_rank)

    @contextlib.contextmanager
    def joined(self, device: torch.device) -> Iterator[None]:
        """The processes as one group, for the time of a ``with``."""
        if device.type != "cpu":
            torch.get_device_module(device).set_device(device)
        if self.world_size == 1 or dist.is_initialized():
            yield
            return
        # Checkpoints and flags travel as CPU tensors.
        dist.init_process_group("gloo" if device.type == "cpu" else "cpu:gloo,cuda:nccl")
        try:
            yield
            # The first process keeps the addresses of all: it must not leave while another still asks.
            dist.barrier()
        finally:
            dist.destroy_process_group()

    def sum(self, values: Tensor) -> Tensor:
        """``values``, added up over the ranks in place."""
        if self.world_size > 1:
            dist.all_reduce(values)
        return values

    def any(self, flag: bool) -> bool:
        """Whether ``flag`` is set on one of the ranks."""
        return bool(self.sum(torch.tensor(int(flag))).item())

    def wait(self) -> None:
        """Until all are here."""
        if self.world_size > 1:
            dist.barrier()


_VARIABLES = (("RANK", "0"), ("WORLD_SIZE", "1"), ("LOCAL_RANK", "0"))


def shard(model: nn.Module, ranks: Ranks, device: torch.device) -> None:
    """Shard ``model`` over all ranks by FSDP2, each layer on its own, and the rest with the head as one.

    The head is gathered when the model is called and stays so, because the loss reads its weight after that.
    """
    mesh = init_device_mesh(device.type, (ranks.world_size,))
    # Sums of bfloat16 over many ranks would lose what one process keeps.
    policy = MixedPrecisionPolicy(reduce_dtype=torch.float32)
    for layer in model.model.layers:  # type: ignore[union-attr]  # nn.Module answers to every name
        fully_shard(layer, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh, mp_policy=policy, reshard_after_forward=False)
    register_fsdp_forward_method(model, "teach")
