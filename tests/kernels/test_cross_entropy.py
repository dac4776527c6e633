"""What the loss kernels owe beyond their numbers, and the loss of logits that are there already."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from kernelkit.kernels.cross_entropy_loss.eager import cross_entropy
from tests.kernels.judge import DEVICES, assert_as_good_as_eager, built, call_of, judged_kernels

# Quack, which takes few sizes and one dtype, is judged in test_quack.py.
KERNELS = [kernel for kernel in judged_kernels("cross_entropy_loss") if kernel.values[0].name != "quack"]
each_kernel = pytest.mark.parametrize("spec", KERNELS)
each_device = pytest.mark.parametrize("device", DEVICES)


def tensors(device, tokens=6):
    generator = torch.Generator(device).manual_seed(0)
    states = torch.randn(tokens, 16, generator=generator, device=device, requires_grad=True)
    weight = torch.randn(40, 16, generator=generator, device=device, requires_grad=True)
    labels = torch.randint(40, (tokens,), generator=generator, device=device)
    return states, weight, labels


@each_kernel
@each_device
def test_without_any_label_the_loss_is_nan_and_the_gradients_are_zero(spec, device):
    kernel, (states, weight, labels) = built(spec, device), tensors(device)
    loss, _ = kernel(states, weight, torch.full_like(labels, -100))
    loss.backward()
    assert loss.isnan()
    assert states.grad.count_nonzero() == 0
    assert weight.grad.count_nonzero() == 0


@each_kernel
@each_device
def test_without_any_label_but_with_a_count_the_loss_is_zero(spec, device):
    kernel, (states, weight, labels) = built(spec, device), tensors(device)
    loss, _ = kernel(states, weight, torch.full_like(labels, -100), num_items_in_batch=7)
    assert loss == 0


@each_kernel
@each_device
@pytest.mark.parametrize("trained", ["states", "weight"])
def test_what_is_frozen_takes_no_gradient_from_the_rest(spec, trained, device):
    kernel, (states, weight, labels) = built(spec, device), tensors(device)
    frozen, left = (weight, states) if trained == "states" else (states, weight)
    (expected,) = torch.autograd.grad(F.cross_entropy(F.linear(states, weight), labels), left)
    frozen.requires_grad_(False)
    loss, _ = kernel(states, weight, labels)
    loss.backward()
    assert frozen.grad is None
    torch.testing.assert_close(left.grad, expected)


@each_kernel
@each_device
def test_losses_of_micro_batches_add_up_to_that_of_the_batch(spec, device):
    kernel, (states, weight, labels) = built(spec, device), tensors(device)
    whole, _ = kernel(states, weight, labels)
    parts = [
        kernel(states[part], weight, labels[part], num_items_in_batch=len(labels))[0]
        for part in (slice(0, 2), slice(2, None))
    ]
    torch.testing.assert_close(sum(parts), whole)


@each_kernel
@each_device
def test_no_token_is_no_error(spec, device):
    kernel, (states, weight, labels) = built(spec, device), tensors(device, tokens=0)
    loss, _ = kernel(states, weight, labels, num_items_in_batch=3)
    loss.backward()
    assert loss == 0
    assert weight.grad.count_nonzero() == 0


@each_kernel
@each_device
@pytest.mark.parametrize("softcap", [None, 4.0])
def test_a_scale_that_is_no_power_of_two_is_as_good_as_eagers(spec, softcap, device):
    kernel, (states, weight, labels) = built(spec, device), tensors(device)
    dtype = torch.float32 if spec.name == "liger" else torch.bfloat16
    arguments = {"hidden_states": states.detach().to(dtype), "weight": weight.detach().to(dtype), "labels": labels}
    settings = {"bias": torch.ones(40, dtype=dtype, device=device), "logit_scale": 0.3, "softcap": softcap}
    assert_as_good_as_eager(kernel, spec, call_of("cross_entropy_loss", arguments | settings))


@each_kernel
@each_device
def test_liger_refuses_a_scale_that_it_would_round(spec, device):
    kernel, (states, weight, labels) = built(spec, device), tensors(device)
    half = states.detach().bfloat16(), weight.detach().bfloat16(), labels
    if spec.name == "liger":
        with pytest.raises(ValueError, match=r"cross_entropy_loss: liger.*power of two"):
            kernel(*half, logit_scale=0.3)
    else:
        assert torch.isfinite(kernel(*half, logit_scale=0.3)[0])
    if spec.name != "liger" or device != "cpu":
        assert torch.isfinite(kernel(*half, logit_scale=0.25)[0])


@each_kernel
@each_device
def test_a_gradient_of_the_gradient_is_right_or_refused(spec, device):
    kernel, (states, weight, labels) = built(spec, device), tensors(device)

    def gradient_of_the_gradient():
        loss, _ = kernel(states, weight, labels)
        (first,) = torch.autograd.grad(loss, weight, create_graph=True)
        return torch.autograd.grad(first.square().sum(), weight)[0]

    if spec.name == "eager":
        assert gradient_of_the_gradient().count_nonzero() > 0
    else:
        with pytest.raises(RuntimeError, match=r"create_graph|double backward"):
            gradient_of_the_gradient()


@each_kernel
@each_device
def test_logits_that_are_asked_for_carry_gradients(spec, device):
    kernel, (states, weight, labels) = built(spec, device), tensors(device)
    _, logits = kernel(states, weight, labels, return_logits=True)
    (found,) = torch.autograd.grad(logits.square().sum(), weight)
    (expected,) = torch.autograd.grad(F.linear(states, weight).square().sum(), weight)
    torch.testing.assert_close(found, expected)


@each_kernel
@each_device
@pytest.mark.parametrize("count", [None, 9])
def test_the_z_loss_is_the_mean_square_of_the_normalisers_of_the_labels_that_count(spec, count, device):
    kernel, (states, weight, labels) = built(spec, device), tensors(device)
    labels[1] = -100
    without, _ = kernel(states, weight, labels, num_items_in_batch=count)
    loss, _ = kernel(states, weight, labels, num_items_in_batch=count, z_loss_coef=0.25)
    found = torch.autograd.grad(loss, (states, weight))
    exact = states.detach().double().requires_grad_(), weight.detach().double().requires_grad_()
    logits = F.linear(*exact)[labels != -100]
    penalty = 0.25 * logits.exp().sum(-1).log().square().sum() / (count or 5)
    expected = F.cross_entropy(logits, labels[labels != -100], reduction="sum") / (count or 5) + penalty
    torch.testing.assert_close((loss - without).double(), penalty, rtol=1e-4, atol=1e-5)
    gradients = [gradient.float() for gradient in torch.autograd.grad(expected, exact)]
    torch.testing.assert_close(list(found), gradients, rtol=1e-4, atol=1e-5)


@each_kernel
@each_device
def test_no_z_loss_changes_no_bit_and_without_any_label_it_adds_nothing(spec, device):
    kernel, (states, weight, labels) = built(spec, device), tensors(device)
    losses = [kernel(states, weight, labels, **extra)[0] for extra in ({}, {"z_loss_coef": 0.0})]
    gradients = [torch.autograd.grad(loss, weight)[0] for loss in losses]
    assert torch.equal(*losses) and torch.equal(*gradients)
    ignored = torch.full_like(labels, -100)
    loss, _ = kernel(states, weight, ignored, z_loss_coef=0.5)
    assert loss.isnan() and torch.autograd.grad(loss, weight)[0].count_nonzero() == 0
    assert kernel(states, weight, ignored, num_items_in_batch=7, z_loss_coef=0.5)[0] == 0


def test_the_loss_of_given_logits_takes_labels_of_any_strides_and_counts():
    logits, labels = torch.randn(2, 5, 11), torch.randint(11, (2, 6))[:, 1:]
    summed = F.cross_entropy(logits.flatten(0, 1), labels.reshape(-1), reduction="sum")
    assert torch.equal(cross_entropy(logits, labels, num_items_in_batch=4), summed / 4)
    assert torch.equal(cross_entropy(logits, labels, num_items_in_batch=torch.tensor(4)), summed / 4)
    assert torch.equal(cross_entropy(logits, labels), F.cross_entropy(logits.flatten(0, 1), labels.reshape(-1)))
