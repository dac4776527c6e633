"""Teacher and student sharded by FSDP2 over two processes, each with its own kernels."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from kernelkit import kernel_report
from tests.coexistence.recorded import CALLS, teacher_and_student
from tests.models.families import assert_close, our_model, tokens
from tests.ranks import WORLD, run_ranks


def batch(rank: int) -> dict[str, torch.Tensor]:
    return {"input_ids": tokens(1, 8, seed=rank), "labels": tokens(1, 8, seed=rank + 10)}


def shard(model: torch.nn.Module, *, head: bool = False) -> torch.nn.Module:
    for layer in model.model.layers:
        fully_shard(layer)
    if head:
        fully_shard(model.lm_head)
    fully_shard(model)
    return model


def sharded_teacher_and_student(rank: int, folder: str) -> None:
    dist.init_process_group("gloo")
    teacher, student = (shard(model) for model in teacher_and_student())
    callers = []
    for model in (teacher, student, teacher):
        CALLS.clear()
        model.train()(**batch(rank)).loss.backward()
        callers.append({who for who, _ in CALLS})
    assert callers == [{"teacher"}, {"student"}, {"teacher"}]
    gradients = {name: parameter.grad.full_tensor() for name, parameter in student.named_parameters()}
    if rank == 0:
        torch.save(gradients, Path(folder) / "student.pt")


def sharded_head(rank: int) -> None:
    dist.init_process_group("gloo")
    default = shard(our_model("qwen3", {"attention": "eager"}), head=True)
    assert isinstance(default.lm_head.weight, DTensor)
    assert torch.isfinite(default(**batch(rank)).loss)
    named = teacher_and_student()[1]
    shard(named, head=True)
    with pytest.raises(ValueError, match="cross_entropy_loss"):
        named(**batch(rank))
    assert kernel_report(default).impls["cross_entropy_loss"] == {"eager"}


def test_sharded_models_keep_their_kernels_and_the_gradients_of_one_process(tmp_path: Path) -> None:
    run_ranks(sharded_teacher_and_student, str(tmp_path))
    _, student = teacher_and_student()
    for rank in range(WORLD):
        (student.train()(**batch(rank)).loss / WORLD).backward()
    sharded = torch.load(tmp_path / "student.pt")
    for name, parameter in student.named_parameters():
        assert_close(sharded[name], parameter.grad, 1e-5)


def test_a_head_that_is_its_own_unit_is_called_or_the_named_kernel_refused() -> None:
    run_ranks(sharded_head)
