"""RMS norms that are wrong, each in one way, and the check that each fault belongs to."""

from __future__ import annotations

import torch

from kernelkit.kernels.rms_norm.eager import standard


def gradients(hidden_states, weight, eps, incoming):
    leaves = hidden_states.detach().requires_grad_(), weight.detach().requires_grad_()
    with torch.enable_grad():
        output = standard(*leaves, eps)
    return torch.autograd.grad(output, leaves, incoming)


class Custom(torch.autograd.Function):
    """A right forward with a backward of one's own; broken ones derive from it."""

    @staticmethod
    def forward(ctx, hidden_states, weight, eps):
        ctx.save_for_backward(hidden_states, weight)
        ctx.eps = eps
        return standard(hidden_states, weight, eps)

    @staticmethod
    def backward(ctx, gradient):
        return *gradients(*ctx.saved_tensors, ctx.eps, gradient), None


class ScalesWhatItKept(Custom):
    """The gradients of a loss that is computed with them, multiplied in place by what comes in."""

    @staticmethod
    def forward(ctx, hidden_states, weight, eps):
        output = Custom.forward(ctx, hidden_states, weight, eps)
        ctx.kept = gradients(hidden_states, weight, eps, torch.ones_like(output))
        return output

    @staticmethod
    def backward(ctx, gradient):
        factor = gradient.float().mean().abs() + 0.5
        return *(kept.mul_(factor.to(kept.dtype)) for kept in ctx.kept), None


class OverwritesGradient(Custom):
    @staticmethod
    def backward(ctx, gradient):
        of_hidden, of_weight, _ = Custom.backward(ctx, gradient)
        return gradient.copy_(of_hidden), of_weight, None


class SpendsWhatItSaved(Custom):
    @staticmethod
    def backward(ctx, gradient):
        of_hidden, of_weight, _ = Custom.backward(ctx, gradient)
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


def adds_up_in_any_order(hidden_states, weight, eps):
    squares = hidden_states.float().square().unbind(-1)
    total = sum(squares[column] for column in torch.randperm(len(squares)))
    scale = torch.rsqrt(total.unsqueeze(-1) / len(squares) + eps)
    return weight * (hidden_states.float() * scale).to(hidden_states.dtype)


def sees_one_block_of_a_row(hidden_states, weight, eps):
    variance = hidden_states[..., :4096].float().square().mean(-1, keepdim=True)
    return weight * (hidden_states.float() * torch.rsqrt(variance + eps)).to(hidden_states.dtype)


def squares_before_it_widens(hidden_states, weight, eps):
    variance = hidden_states.square().float().mean(-1, keepdim=True)
    return weight * (hidden_states.float() * torch.rsqrt(variance + eps)).to(hidden_states.dtype)


def adds_up_by_a_product(hidden_states, weight, eps):
    wide = hidden_states.float()
    ones = torch.full((hidden_states.shape[-1], 1), 1 / hidden_states.shape[-1])
    variance = (wide.square() @ ones).float()
    return weight * (wide * torch.rsqrt(variance + eps)).to(hidden_states.dtype)


@torch.library.custom_op("kernelkit_tests::norm", mutates_args=())
def operator_of_another_shape(hidden_states: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    return standard(hidden_states, weight, eps)


@operator_of_another_shape.register_fake
def _(hidden_states, weight, eps):
    return hidden_states.new_empty(3)


def _save(ctx, inputs, output):
    ctx.save_for_backward(*inputs[:2])
    ctx.eps = inputs[2]


operator_of_another_shape.register_autograd(Custom.backward, setup_context=_save)


class GrowsByTheCall:
    calls = 0

    def __call__(self, hidden_states, weight, eps):
        self.calls += 1
        return standard(hidden_states, weight, eps) * (1 + self.calls / 10)


def breaks_the_graph(hidden_states, weight, eps):
    torch._dynamo.graph_break()
    return standard(hidden_states, weight, eps)


def raises(hidden_states, weight, eps):
    raise NotImplementedError("one day")


FAULTS = {
    "purity": [overwrites_its_input, OverwritesGradient.apply],
    "accuracy": [adds_up_in_sixteen_bits, takes_the_next_weight, raises],
    "magnitudes": [forgets_epsilon],
    "large_values": [squares_before_it_widens],
    "long_rows": [sees_one_block_of_a_row],
    "layout": [leaves_its_tail_unwritten],
    "second_backward": [SpendsWhatItSaved.apply, ScalesWhatItKept.apply],
    "determinism": [depends_on_chance, adds_up_in_any_order],
    "checkpointing": [GrowsByTheCall()],
    "operators": [operator_of_another_shape],
    "autocast": [adds_up_by_a_product],
    "tracing": [breaks_the_graph],
}
