"""Ops that fuse a norm with its surroundings, and what hangs on the norm."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from kernelkit import Hardware, KernelContainer, build_model, kernel_report
from kernelkit.kernels.passed_by import weight_and_eps
from tests.models.families import EAGER, FAMILIES, our_model, recording, small_config, tokens

NORMS = {"add_rms_norm": "post_attention_layernorm", "qk_norm_rope": "self_attn.q_norm"}
each_op = pytest.mark.parametrize("op", NORMS)


def norm_of(model: Any, op: str) -> nn.Module:
    return model.model.layers[0].get_submodule(NORMS[op])


def fused(op: str) -> Any:
    """A kernel that computes the norm by itself."""

    def add_rms_norm(hidden_states: Tensor, residual: Tensor, norm: Any) -> tuple[Tensor, Tensor]:
        weight, eps = weight_and_eps(norm, op)
        total = residual + hidden_states
        return total, weight * nn.functional.rms_norm(total, weight.shape, None, eps)

    def qk_norm_rope(query: Tensor, key: Tensor, q_norm: Any, k_norm: Any, rotate: Any, *angles: Tensor) -> Any:
        normed = []
        for states, norm in ((query, q_norm), (key, k_norm)):
            weight, eps = weight_and_eps(norm, op)
            normed.append((weight * nn.functional.rms_norm(states, weight.shape, None, eps)).transpose(1, 2))
        return rotate(*normed, *angles)

    return {"add_rms_norm": add_rms_norm, "qk_norm_rope": qk_norm_rope}[op]


def with_fused(op: str) -> Any:
    container = KernelContainer.from_config(EAGER, device="cpu")
    container.override(op, fused(op))
    torch.manual_seed(0)
    return build_model(small_config("qwen3"), kernels=container, device="cpu")


def test_the_default_is_composed_of_the_kernels_that_the_model_has() -> None:
    calls: list[str] = []
    container = KernelContainer.from_config(device="cpu")
    for op in ("rms_norm", "rotary_pos_emb"):
        container.override(op, recording(op, calls, op))
    model = build_model(small_config("qwen3", num_hidden_layers=1), kernels=container, device="cpu")
    model(tokens(1, 4))
    # Of the input, queries and keys, after the attention, and at the end.
    assert calls == ["rms_norm", "rms_norm", "rms_norm", "rotary_pos_emb", "rms_norm", "rms_norm"]


@each_op
def test_a_hook_on_the_norm_takes_part_in_the_default(op: str) -> None:
    model = our_model("qwen3", {})
    before = model(tokens(1, 4)).logits
    norm_of(model, op).register_forward_hook(lambda module, arguments, output: output * 2)
    assert not torch.allclose(model(tokens(1, 4)).logits, before)


@each_op
def test_a_fused_kernel_computes_what_the_default_does(op: str) -> None:
    ours = with_fused(op)
    default = our_model("qwen3", like=ours)
    torch.testing.assert_close(ours(tokens(2, 6)).logits, default(tokens(2, 6)).logits)


def hook(model: Any, op: str) -> None:
    norm_of(model, op).register_forward_hook(lambda *_: None)


def replace_forward(model: Any, op: str) -> None:
    norm_of(model, op).forward = lambda hidden_states: hidden_states


def parametrize(model: Any, op: str) -> None:
    nn.utils.parametrize.register_parametrization(norm_of(model, op), "weight", nn.Identity())


def replace(model: Any, op: str) -> None:
    parent, _, name = NORMS[op].rpartition(".")
    setattr(model.model.layers[0].get_submodule(parent), name, nn.RMSNorm(norm_of(model, op).weight.shape[0]))


def adapt(model: Any, op: str) -> None:
    from peft import LNTuningConfig, inject_adapter_in_model

    name = NORMS[op].rpartition(".")[2]
    inject_adapter_in_model(LNTuningConfig(target_modules=[name], task_type="CAUSAL_LM"), model)


@each_op
@pytest.mark.parametrize("change", [hook, replace_forward, parametrize, replace, adapt])
def test_a_fused_kernel_refuses_a_norm_that_it_would_pass_by(op: str, change: Any) -> None:
    model = with_fused(op)
    model(tokens(1, 4))
    change(model, op)
    with pytest.raises(ValueError, match=rf"{op}: triton computes the norm by itself, and a norm.*Name {op}: eager"):
        model(tokens(1, 4))


@pytest.mark.parametrize("family", FAMILIES)
def test_only_models_with_norms_of_queries_and_keys_have_the_op(family: str) -> None:
    report = kernel_report(our_model(family))
    assert report.impls["add_rms_norm"] == {"eager"}
    assert ("qk_norm_rope" in report.impls) == family.startswith("qwen3")


def test_a_named_part_is_not_passed_by_for_a_preset() -> None:
    pytest.importorskip("triton")
    hardware = Hardware.named("h100")
    container = KernelContainer.from_config({"preset": "triton", "rms_norm": "torch"}, hardware=hardware)
    needs = build_model(small_config("qwen3"), device="meta").kernel_needs(small_config("qwen3"))
    with pytest.raises(ValidationError, match=r"rms_norm: torch \(named\) would be passed by: add_rms_norm: triton"):
        container.bind(needs, model="Qwen3ForCausalLM")
    for add in ("eager", "triton"):
        ops = {"preset": "triton", "rms_norm": "torch", "add_rms_norm": add, "qk_norm_rope": "eager"}
        both = KernelContainer.from_config(ops, hardware=hardware).bind(needs, model="Qwen3ForCausalLM")
        assert both["add_rms_norm", "standard"].impl == add
        assert both["rms_norm", "standard"].impl == "torch"
