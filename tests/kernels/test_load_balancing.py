"""The Triton load balancing loss where tiles are not full, logits are equal, or arguments do not fit."""

from __future__ import annotations

import pytest
import torch

from kernelkit.registry import default_registry
from tests.kernels.judge import DEVICES, assert_as_good_as_eager, built, call_of

each_device = pytest.mark.parametrize("device", DEVICES)


def triton(device):
    spec = default_registry().get("load_balancing_loss", "standard", "triton")
    return built(spec, device), spec


def logits(device, *shapes):
    generator = torch.Generator(device).manual_seed(0)
    return tuple(torch.randn(shape, generator=generator, device=device) for shape in shapes)


@each_device
@pytest.mark.parametrize(("rows", "experts", "top_k"), [(64, 128, 8), (131, 60, 4), (1, 3, 3), (70, 2500, 1)])
@pytest.mark.parametrize("padded", [False, True])
def test_blocks_of_rows_and_experts_that_are_not_full(rows, experts, top_k, padded, device):
    kernel, spec = triton(device)
    mask = (torch.arange(rows, device=device) % 4 > 0).long()[None] if padded and rows > 1 else None
    arguments = {"router_logits": logits(device, *[(rows, experts)] * 2), "num_experts": experts, "top_k": top_k}
    assert_as_good_as_eager(kernel, spec, call_of(spec.op, {**arguments, "attention_mask": mask}))


@each_device
def test_of_equal_logits_the_first_are_chosen(device):
    kernel, _ = triton(device)
    (tied,) = logits(device, (5, 6))
    tied[:, 1:] = torch.tensor([-0.0, 0.0, 0.0, 0.0, -torch.inf])
    tied[:, 0] = 5.0
    shares = torch.tensor([1.0, 1, 1, 0, 0, 0], device=device)
    torch.testing.assert_close(kernel((tied,), 6, 3), 6 * (shares * tied.softmax(-1).mean(0)).sum())


@each_device
def test_without_any_row_that_counts_it_is_nan(device):
    kernel, _ = triton(device)
    assert kernel(logits(device, (0, 4)), 4, 2).isnan()
    assert kernel(logits(device, (6, 4)), 4, 2, torch.zeros(2, 3, device=device)).isnan()


@each_device
def test_more_choices_than_experts_and_a_mask_of_other_rows_are_refused(device):
    kernel, _ = triton(device)
    with pytest.raises(ValueError, match="load_balancing_loss: triton cannot choose 5 of 4 experts"):
        kernel(logits(device, (6, 4)), 4, 5)
    with pytest.raises(ValueError, match="load_balancing_loss: the attention mask has 5 rows, the logits 6"):
        kernel(logits(device, (6, 4)), 4, 2, torch.ones(1, 5, device=device))
