"""Liger's functions as they are, in place, are caught: on a GPU, and in the interpreter by test_interpreted.py.

kernelkit's own adapters to the same functions pass the same checks, in test_conformance.py.
"""

from __future__ import annotations

import pytest
from torch.nn import functional as F

from kernelkit import KernelSpec
from kernelkit.ops.distillation_loss import DistillationOutput
from kernelkit.testing import check_kernel
from tests.kernels.judge import DEVICES, INTERPRETED

pytest.importorskip("liger_kernel")


def rms_norm(hidden_states, weight, eps):
    from liger_kernel.ops.rms_norm import LigerRMSNormFunction

    return LigerRMSNormFunction.apply(hidden_states, weight, eps, 0.0, "llama", True)


def add_rms_norm(hidden_states, residual, norm):
    from liger_kernel.ops.fused_add_rms_norm import LigerFusedAddRMSNormFunction

    arguments = (norm.weight, norm.variance_epsilon, 0.0, "llama", True)
    normed, total = LigerFusedAddRMSNormFunction.apply(hidden_states, residual, *arguments)
    return total, normed


def swiglu(gate, up):
    from liger_kernel.ops.swiglu import LigerSiLUMulFunction

    return LigerSiLUMulFunction.apply(gate, up)


def geglu(gate, up):
    from liger_kernel.ops.geglu import LigerGELUMulFunction

    return LigerGELUMulFunction.apply(gate, up)


def rope(query, key, cos, sin):
    from liger_kernel.ops.rope import LigerRopeFunction

    return LigerRopeFunction.apply(query, key, cos, sin)


def _refuse(op, **others):
    for name, value in others.items():
        if value not in (None, 1.0, False, 0.0):
            raise ValueError(f"{op}: raw has no {name}")


def cross_entropy(hidden_states, weight, labels, *, ignore_index=-100, softcap=None, bias=None, **others):
    from liger_kernel.ops.cross_entropy import LigerCrossEntropyFunction

    _refuse("cross_entropy_loss", **{**others, "return_logits": False})
    logits = F.linear(hidden_states, weight, bias)
    rows = logits.view(-1, logits.shape[-1])
    loss, *_ = LigerCrossEntropyFunction.apply(
        rows, labels.flatten(), None, ignore_index, 0.0, 0.0, "mean", softcap, False, False, False
    )
    return loss.float(), logits  # of the logits' dtype, which is another fault than those that are looked for


def fused_linear_cross_entropy(hidden_states, weight, labels, *, ignore_index=-100, softcap=None, bias=None, **others):
    from liger_kernel.ops.fused_linear_cross_entropy import LigerFusedLinearCrossEntropyFunction

    _refuse("cross_entropy_loss", **others)
    rows = hidden_states.reshape(-1, hidden_states.shape[-1])
    loss, *_ = LigerFusedLinearCrossEntropyFunction.apply(
        rows, weight, labels.flatten(), bias, None, ignore_index, 0.0, 0.0, "mean", softcap
    )
    return loss, None


def fused_linear_jsd(*tensors, divergence="forward_kl", beta=0.5, temperature=1.0, ignore_index=-100, **others):
    from liger_kernel.ops.fused_linear_jsd import LigerFusedLinearJSDFunction

    _refuse("distillation_loss", **others)
    *heads, labels = tensors
    heads = [tensor if index % 2 else tensor.flatten(0, -2) for index, tensor in enumerate(heads)]
    beta = {"forward_kl": 0.0, "reverse_kl": 1.0}.get(divergence, beta)
    loss = LigerFusedLinearJSDFunction.apply(
        *heads, labels.flatten(), beta, ignore_index, temperature, None, "nvidia-triton"
    )
    return DistillationOutput(loss, None, None, None)


RAW = [
    ("rms_norm", "standard", rms_norm, "purity", "incoming gradient 0 was modified"),
    ("add_rms_norm", "standard", add_rms_norm, "purity", "incoming gradient 1 was modified"),
    ("swiglu_mlp", "silu", swiglu, "purity", "input 0 was modified"),
    ("swiglu_mlp", "silu", swiglu, "second_backward", "gradient 0 differs"),
    ("swiglu_mlp", "gelu_tanh", geglu, "purity", "input 0 was modified"),
    ("swiglu_mlp", "gelu_tanh", geglu, "second_backward", "gradient 0 differs"),
    ("rotary_pos_emb", "full", rope, "purity", "input 0 was modified"),
    ("cross_entropy_loss", "standard", cross_entropy, "accuracy", "output 1 errs"),
    ("cross_entropy_loss", "standard", cross_entropy, "second_backward", "gradient 0 differs"),
    ("cross_entropy_loss", "standard", cross_entropy, "ignored_labels", "output 0 errs"),
    ("cross_entropy_loss", "standard", fused_linear_cross_entropy, "second_backward", "gradient 0 differs"),
    ("distillation_loss", "standard", fused_linear_jsd, "second_backward", "gradient 0 differs"),
]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    ("op", "variant", "kernel", "check", "finding"), RAW, ids=[f"{each[2].__name__}-{each[3]}" for each in RAW]
)
def test_a_raw_function_of_liger_is_caught(op, variant, kernel, check, finding, device):
    if device == "cpu" and not INTERPRETED:
        pytest.skip("runs in Triton's interpreter, by test_interpreted.py")
    dtypes = ("float32",) if device == "cpu" else ("float32", "bfloat16")
    spec = KernelSpec(
        op=op, variant=variant, name="raw", factory=lambda: kernel, packages=("triton>=3",), dtypes=dtypes
    )
    verdict = check_kernel(spec, device=device, checks=[check])
    assert finding in str(verdict), str(verdict)
