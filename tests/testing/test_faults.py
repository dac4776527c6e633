"""The kit catches kernels that are wrong, each by the check that its fault belongs to."""

from __future__ import annotations

import json

import pytest
import torch
from typer.testing import CliRunner

from kernelkit import KernelSpec, default_registry
from kernelkit.cli.app import app
from kernelkit.kernels.cross_entropy_loss.eager import cross_entropy_loss
from kernelkit.kernels.rms_norm.eager import standard
from kernelkit.testing import check_kernel


def judged(kernel, op="rms_norm", **fields):
    spec = KernelSpec(op=op, variant="standard", name="mine", factory=lambda: kernel, **fields)
    return check_kernel(spec, device="cpu")


def normed(hidden_states, eps):
    return hidden_states.float() * torch.rsqrt(hidden_states.float().square().mean(-1, keepdim=True) + eps)


class Custom(torch.autograd.Function):
    """A right forward with a backward of one's own; broken ones derive from it."""

    @staticmethod
    def forward(ctx, hidden_states, weight, eps):
        ctx.save_for_backward(hidden_states, weight)
        ctx.eps = eps
        return standard(hidden_states, weight, eps)

    @staticmethod
    def gradients(ctx, gradient):
        hidden_states, weight = (tensor.detach().requires_grad_() for tensor in ctx.saved_tensors)
        with torch.enable_grad():
            output = standard(hidden_states, weight, ctx.eps)
        return torch.autograd.grad(output, (hidden_states, weight), gradient)

    @classmethod
    def backward(cls, ctx, gradient):
        return *cls.gradients(ctx, gradient), None


class OverwritesGradient(Custom):
    @staticmethod
    def backward(ctx, gradient):
        of_hidden, of_weight = Custom.gradients(ctx, gradient)
        return gradient.copy_(of_hidden), of_weight, None


class SpendsWhatItSaved(Custom):
    @staticmethod
    def backward(ctx, gradient):
        of_hidden, of_weight = Custom.gradients(ctx, gradient)
        with torch.no_grad():
            ctx.saved_tensors[1].data.mul_(2)
        return of_hidden, of_weight, None


def overwrites_its_input(hidden_states, weight, eps):
    output = standard(hidden_states, weight, eps)
    hidden_states.data.mul_(2)
    return output


def forgets_epsilon(hidden_states, weight, eps):
    return standard(hidden_states, weight, 0.0)


def adds_up_in_sixteen_bits(hidden_states, weight, eps):
    total = sum(hidden_states.square().unbind(-1))
    variance = (total / hidden_states.shape[-1]).unsqueeze(-1)
    return weight * (hidden_states * torch.rsqrt(variance + eps))


def takes_the_next_weight(hidden_states, weight, eps):
    return standard(hidden_states, weight.roll(1), eps)


def leaves_its_tail_unwritten(hidden_states, weight, eps):
    right = standard(hidden_states, weight, eps)
    output = torch.empty_like(right)
    output[..., :-1] = right[..., :-1]
    return output


def depends_on_chance(hidden_states, weight, eps):
    return standard(hidden_states, weight, eps) * (1 + 1e-2 * torch.rand(()))


def breaks_the_graph(hidden_states, weight, eps):
    torch._dynamo.graph_break()
    return standard(hidden_states, weight, eps)


def raises(hidden_states, weight, eps):
    raise NotImplementedError("one day")


FAULTS = {
    "purity": [overwrites_its_input, OverwritesGradient.apply],
    "accuracy": [adds_up_in_sixteen_bits, takes_the_next_weight, raises],
    "magnitudes": [forgets_epsilon],
    "layout": [leaves_its_tail_unwritten],
    "second_backward": [SpendsWhatItSaved.apply],
    "determinism": [depends_on_chance],
    "tracing": [breaks_the_graph],
}


@pytest.mark.parametrize(("check", "kernel"), [(check, kernel) for check, found in FAULTS.items() for kernel in found])
def test_a_broken_kernel_is_caught_by_name(check, kernel):
    verdict = judged(kernel)
    assert not verdict.passed and check in verdict.failures, str(verdict)
    assert f"{check}: " in str(verdict)


@pytest.mark.parametrize("kernel", [standard, Custom.apply])
def test_a_kernel_that_is_right_passes(kernel):
    verdict = judged(kernel, traceable=kernel is standard)
    assert verdict.passed, str(verdict)
    assert str(verdict) == f"rms_norm: mine (standard) on cpu passes {len(verdict.checked)} checks"


def test_a_loss_that_forgets_ignored_labels_is_caught():
    def forgets(hidden_states, weight, labels, *, ignore_index=-100, **arguments):
        return cross_entropy_loss(hidden_states, weight, labels.clamp(min=0), ignore_index=ignore_index, **arguments)

    assert "accuracy" in judged(forgets, op="cross_entropy_loss").failures


def test_a_kernel_may_refuse_some_calls_by_name_and_not_all():
    def refuses(narrow):
        def kernel(hidden_states, weight, eps):
            if hidden_states.shape[-1] >= narrow:
                raise ValueError(f"rms_norm: mine takes rows narrower than {narrow}. Use rms_norm: eager.")
            return standard(hidden_states, weight, eps)

        return kernel

    assert judged(refuses(50)).passed
    assert "refuses every sample" in str(judged(refuses(1)))


def test_what_a_kernel_does_not_promise_it_is_not_asked_for():
    assert "determinism" not in judged(depends_on_chance, deterministic=False).failures
    assert "tracing" not in judged(breaks_the_graph, traceable=False).failures


def test_a_kernel_that_cannot_run_here_is_not_judged():
    verdict = check_kernel(default_registry().get("rms_norm", "standard", "liger"), device="cpu")
    assert not verdict.passed and "runs on cuda or xpu, not on" in verdict.skipped
    assert "was not judged" in str(verdict)


def command(*arguments):
    return CliRunner().invoke(app, ["verify", "--device", "cpu", *arguments])


def test_the_command_judges_what_is_asked_for(tmp_path):
    done = command("--op", "rms_norm", "--impl", "torch")
    assert done.exit_code == 0 and done.output.count("passes") == 3
    (tmp_path / "ops.yaml").write_text("rms_norm: torch\nswiglu_mlp: liger\n")
    rows = json.loads(command(str(tmp_path / "ops.yaml"), "--json").output)
    assert {(row["op"], row["impl"]) for row in rows} == {("rms_norm", "torch"), ("swiglu_mlp", "liger")}
    assert all(row["passed"] or "not on" in row["skipped"] for row in rows)
    assert command("--impl", "ligr").exit_code == 2


def test_the_command_fails_where_a_kernel_does(monkeypatch):
    from kernelkit import registry

    mine = default_registry().copy()
    mine.register(KernelSpec(op="rms_norm", variant="standard", name="broken", factory=lambda: takes_the_next_weight))
    monkeypatch.setattr(registry, "_default", [mine])
    done = command("--impl", "broken")
    assert done.exit_code == 1 and "fails accuracy" in done.output
