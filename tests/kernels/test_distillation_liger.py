"""Liger's fused linear JSD behind the contract of the distillation loss: on a GPU, and in Triton's interpreter."""

from __future__ import annotations

import inspect

import pytest
import torch

from kernelkit.hardware import Hardware
from kernelkit.registry import default_registry
from tests.kernels.distillation_cases import CAPS, DIVERGENCES, case, kernel


def agrees_with_eager(device):
    """What Liger's mathematics has in common with the contract, it computes to the same numbers."""
    for number, divergence in enumerate(DIVERGENCES):
        settings = (
            {},
            {"temperature": 2.0, "num_items_in_batch": 23},
            {"temperature": 0.5, "temperature_squared": True},
        )
        given = case((2, 5), dtype=torch.float32, device=device, **settings[number % 3], **divergence)
        torch.testing.assert_close(given.run(kernel("liger")), given.run(kernel("eager")), rtol=1e-4, atol=1e-6)


def is_pure(device):
    """A second backward gives the same, inputs stay as they are, and a frozen head gets no gradient."""
    given = case(dtype=torch.float32, device=device)
    inputs = [*given.trained.values(), *given.teacher.values()]
    before = [tensor.detach().clone() for tensor in inputs]
    loss = 3 * given(kernel("liger")).loss
    first, second = (torch.autograd.grad(loss, [*given.trained.values()], retain_graph=True) for _ in range(2))
    assert all(map(torch.equal, first, second))
    assert all(map(torch.equal, inputs, before))
    given.trained["student_weight"].requires_grad_(False)
    given(kernel("liger")).loss.backward()
    assert given.trained["student_weight"].grad is None
    torch.testing.assert_close(given.trained["student_hidden"].grad * 3, first[0])


def has_no_loss_without_labels(device):
    """As every kernel: nan and zero gradients, or zero where a count is given; no tokens at all are none too."""
    given = case(dtype=torch.float32, device=device)
    given.labels[:] = -100
    output, gradients = given.run(kernel("liger"))
    assert all(each.isnan() for each in output)
    assert all(gradient.count_nonzero() == 0 for gradient in gradients.values())
    for none in (given, case((0,), dtype=torch.float32, device=device)):
        assert [each.item() for each in none(kernel("liger"), num_items_in_batch=4)] == [0, 0, 0, 0]


def refuses_what_it_lacks(device):
    """By name, with the implementations that have it."""
    given = case(dtype=torch.float32, device=device)
    bias = torch.zeros(19, device=device)
    for name, value in {**CAPS, "alpha": 0.1, "student_bias": bias, "teacher_bias": bias}.items():
        with pytest.raises(ValueError, match=f"distillation_loss: liger has no {name}.*chunked, or eager"):
            given(kernel("liger"), **{name: value})
    given(kernel("liger"), student_softcap=None, student_bias=None, teacher_logit_scale=1.0)
    with pytest.raises(TypeError, match="softcaps"):
        given(kernel("liger"), softcaps=None)


def asks_for_triton_whatever_is_installed(device, monkeypatch):
    """Liger's dispatcher is told which of its implementations to take."""
    from kernelkit.kernels.distillation_loss import liger_kernels

    asked, forward = [], liger_kernels.fused_linear_jsd_forward

    def recording(*args, **kwargs):
        asked.append(kwargs["jsd_impl"])
        return forward(*args, **kwargs)

    monkeypatch.setattr(liger_kernels, "fused_linear_jsd_forward", recording)
    case(dtype=torch.float32, device=device)(kernel("liger"))
    assert asked == ["nvidia-triton"]


def is_traced_whole(device):
    """By torch.compile, as one operator."""
    given = case(dtype=torch.float32, device=device)
    loss = kernel("liger")
    traced = torch.compile(lambda **arguments: loss(**arguments), backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(given.run(traced), given.run(loss))


CLAIMS = (
    agrees_with_eager,
    is_pure,
    has_no_loss_without_labels,
    refuses_what_it_lacks,
    asks_for_triton_whatever_is_installed,
    is_traced_whole,
)


@pytest.mark.gpu
@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.__name__)
def test_on_a_gpu_liger(claim, monkeypatch):
    claim("cuda", *[monkeypatch] * ("monkeypatch" in inspect.signature(claim).parameters))


def test_in_the_interpreter_liger_keeps_the_same_promises(python):
    code = """
        import os
        os.environ["TRITON_INTERPRET"] = "1"
        import pytest
        from tests.kernels import test_distillation_liger as liger
        for claim in liger.CLAIMS:
            with pytest.MonkeyPatch.context() as patch:
                claim("cpu", *[patch] * (claim is liger.asks_for_triton_whatever_is_installed))
            print(claim.__name__)
    """
    assert python(inspect.cleandoc(code)).split() == [claim.__name__ for claim in CLAIMS]


@pytest.mark.gpu
def test_on_a_gpu_liger_does_not_round_the_logits_of_bfloat16():
    given = case((256,), 4096, (128, 128), dtype=torch.bfloat16, device="cuda", divergence="jsd")
    truth, exact = given.to(torch.float64).run(kernel("eager"))
    output, gradients = given.run(kernel("liger"))
    assert abs(output.loss - truth.loss) < 1e-4 * truth.loss
    for name, right in exact.items():
        assert (gradients[name] - right).norm() < 1e-2 * right.norm()


@pytest.mark.parametrize(("machine", "runs"), [("cpu", False), ("mi300x", False), ("xpu", False), ("h200", True)])
def test_liger_is_for_gpus_that_multiply_bfloat16_to_float32(machine, runs):
    spec = default_registry().get("distillation_loss", "standard", "liger")
    assert (spec.problem(Hardware.named(machine)) is None) == runs
