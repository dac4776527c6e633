"""Injecting before and after FSDP2 gives the same, over two processes."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.fsdp import FSDPModule, fully_shard

from kernelkit import eject, inject, kernel_report
from tests.coexistence.test_fsdp2 import batch
from tests.injection.stock import stock
from tests.models.families import assert_close
from tests.ranks import WORLD, run_ranks

OPS = {"preset": "eager", "attention": "sdpa"}


def shard(model: torch.nn.Module) -> torch.nn.Module:
    """Layers, the decoder, a norm, and the whole: modules that injection changes are sharded themselves."""
    for layer in model.model.layers:
        fully_shard(layer)
    fully_shard(model.model.norm)
    fully_shard(model.model)
    return fully_shard(model)


def train(rank: int, folder: str) -> None:
    dist.init_process_group("gloo")
    for when in ("before", "after"):
        train_injected(when, rank, folder)


def train_injected(when: str, rank: int, folder: str) -> None:
    model = stock("qwen3")
    model = shard(inject(model, OPS)) if when == "before" else inject(shard(model), OPS)
    assert kernel_report(model).impls["attention"] == {"sdpa"}
    assert isinstance(model.model.norm, FSDPModule)
    output = model.train()(**batch(rank), output_hidden_states=True)
    assert len(output.hidden_states) == 3
    output.loss.backward()
    gradients = {name: parameter.grad.full_tensor() for name, parameter in model.named_parameters()}
    eject(model)
    assert {type(model).__name__, type(model.model.norm).__name__} == {"FSDPQwen3ForCausalLM", "FSDPQwen3RMSNorm"}
    assert kernel_report(model).rows == ()
    again = model(**batch(rank)).loss
    if rank == 0:
        torch.save({"gradients": gradients, "losses": (output.loss.detach(), again.detach())}, f"{folder}/{when}.pt")


def test_sharded_models_have_the_gradients_of_one_process(tmp_path: Path) -> None:
    run_ranks(train, str(tmp_path))
    model = inject(stock("qwen3"), OPS).train()
    for rank in range(WORLD):
        (model(**batch(rank)).loss / WORLD).backward()
    for when in ("before", "after"):
        saved = torch.load(tmp_path / f"{when}.pt")
        for name, parameter in model.named_parameters():
            assert_close(saved["gradients"][name], parameter.grad, 1e-5)
        assert_close(*saved["losses"], 1e-5)
