"""What cannot be injected is refused with the reason, and the model is as it was."""

from __future__ import annotations

from collections.abc import Iterator
from types import MethodType, ModuleType
from typing import Any

import pytest
import torch
import transformers
from liger_kernel.transformers import apply_liger_kernel_to_qwen2
from pydantic import ValidationError
from torch import nn

from kernelkit import KernelContainer, build_model, eject, inject, kernel_report
from kernelkit.models import injected
from tests.injection.stock import batch, config_of, stock
from tests.models.families import EAGER, assert_close, small_config, tokens


@pytest.mark.parametrize("what", [nn.Linear(2, 2), {"model": 1}, None, "path"])
def test_anything_but_a_transformers_model_is_refused(what: Any) -> None:
    with pytest.raises(TypeError, match="inject takes a transformers PreTrainedModel"):
        inject(what, EAGER)
    with pytest.raises(TypeError), injected(what, EAGER):
        pass


def test_a_class_in_place_of_an_instance_is_refused() -> None:
    with pytest.raises(TypeError, match="an instance, not the class LlamaForCausalLM"):
        inject(transformers.LlamaForCausalLM, EAGER)
    with pytest.raises(TypeError, match="eject takes a model, not a type"):
        eject(transformers.LlamaForCausalLM)


def test_a_wrapper_is_told_to_pass_what_it_wraps() -> None:
    wrapper = nn.Module()
    wrapper.module = stock("llama")
    with pytest.raises(TypeError, match=r"pass its \.module"):
        inject(wrapper, EAGER)


def test_a_family_that_is_not_known_is_refused_with_those_that_are() -> None:
    config = transformers.GPT2Config(n_layer=1, n_embd=8, n_head=2, vocab_size=32)
    with pytest.raises(ValueError, match=r"GPT2LMHeadModel cannot be injected.*llama"):
        inject(transformers.GPT2LMHeadModel(config), EAGER)


class Changed(transformers.LlamaForCausalLM):
    """Somebody's own."""


def test_a_class_of_ones_own_is_refused_and_what_it_holds_is_not() -> None:
    model = Changed(config_of("llama"))
    with pytest.raises(ValueError, match="inject that"):
        inject(model, EAGER)
    inject(model.model, EAGER)
    assert kernel_report(model).impls["attention"] == {"eager"}
    assert kernel_report(model).left_alone == ()


def test_a_model_of_our_own_is_refused() -> None:
    with pytest.raises(ValueError, match="build it again"):
        inject(build_model(small_config("llama"), device="cpu"), EAGER)


@pytest.mark.parametrize(
    ("ops", "message"),
    [
        ({"moe_experts": "eager"}, r"LlamaForCausalLM has no use for 'moe_experts'; it has: .*attention"),
        ({"rms_norm": "egaer"}, "Did you mean 'eager'"),
        ({"rms_norm": "liger_npu"}, "runs on npu"),
        ({"attention": "eager", "swiglu_mlp": "nothing"}, "unknown implementation 'nothing'"),
    ],
)
def test_a_config_that_does_not_fit_leaves_the_model_alone(ops: dict[str, str], message: str) -> None:
    model = stock("llama")
    with pytest.raises(ValidationError, match=message):
        inject(model, ops)
    assert type(model) is transformers.LlamaForCausalLM
    assert kernel_report(model).rows == ()


def test_an_unused_op_may_be_allowed() -> None:
    with pytest.warns(UserWarning, match="no use for 'moe_experts'"):
        model = inject(stock("llama"), {"moe_experts": "eager", "rms_norm": "eager", "allow_unused": True})
    assert kernel_report(model).impls["rms_norm"] == {"eager"}


def test_an_activation_without_a_variant_stays_stock_unless_its_op_is_named() -> None:
    model = stock("llama", hidden_act="relu")
    rows = kernel_report(inject(model, {"rms_norm": "eager"})).rows
    assert {(row.variant, row.impl) for row in rows if row.op == "swiglu_mlp"} == {("relu", "stock")}
    with pytest.raises(ValidationError, match="unknown variant 'relu' of swiglu_mlp"):
        inject(model, {"swiglu_mlp": "eager"})


def test_attention_that_is_not_causal_is_refused() -> None:
    model = stock("gemma3", use_bidirectional_attention=True)
    assert kernel_report(inject(model, {"rms_norm": "eager"})).impls["attention"] == {"stock"}
    with pytest.raises(ValidationError, match="unknown variant 'bidirectional' of attention"):
        inject(model, {"attention": "sdpa"})


def test_calls_whose_meaning_would_be_lost_are_refused() -> None:
    model = inject(stock("qwen3"), {"attention": "sdpa"})
    for inputs, message in (
        ({"attention_mask": {"full_attention": None}}, "not of a dict"),
        ({"cu_seq_lens_q": torch.tensor([0, 2, 4])}, "position_ids that start again"),
        ({"is_causal": False}, "every attention kernel here is causal"),
    ):
        with pytest.raises(ValueError, match=message):
            model(tokens(1, 4), **inputs)
    with pytest.raises(ValueError, match="exactly one of input_ids or inputs_embeds"):
        model()
    with pytest.raises(RuntimeError, match="called by its decoder"):
        model.model.layers[0].self_attn(torch.randn(1, 2, 32), (torch.ones(1, 2, 8), torch.ones(1, 2, 8)))


def test_a_meta_model_is_injected_before_its_weights_come() -> None:
    with torch.device("meta"):
        model = stock("llama")
    real = stock("llama")
    inject(model, EAGER)
    model.to_empty(device="cpu").load_state_dict(real.state_dict())
    model.model.rotary_emb.inv_freq = real.model.rotary_emb.inv_freq
    assert_close(model(tokens(2, 6)).logits, real(tokens(2, 6)).logits)


def test_a_model_on_two_devices_is_refused() -> None:
    model = stock("llama")
    model.lm_head.to("meta")
    with pytest.raises(ValueError, match="spread over cpu, meta"):
        inject(model, EAGER)


class Quantised(nn.Module):
    """A linear of another library: int8 weights, dequantised when it is called."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        scale = linear.weight.detach().abs().max() / 127
        self.register_buffer("scale", scale)
        self.register_buffer("weight", (linear.weight.detach() / scale).round().to(torch.int8))

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return hidden_states @ (self.weight * self.scale).T


def quantised() -> Any:
    model = stock("llama")
    for path, module in list(model.named_modules()):
        if isinstance(module, nn.Linear):
            model.set_submodule(path, Quantised(module))
    return model


def test_quantised_linears_stay_theirs() -> None:
    expected = quantised()(**batch())
    model = inject(quantised(), EAGER)
    actual = model(**batch())
    assert_close(actual.logits, expected.logits)
    assert_close(actual.loss, expected.loss)
    assert ("lm_head", "Quantised") in kernel_report(model).left_alone
    container = KernelContainer.from_config({"cross_entropy_loss": "eager"}, device="cpu")
    container.override("cross_entropy_loss", lambda *_, **__: None)
    with pytest.raises(ValueError, match="the head is a Quantised"):
        inject(model, container)(**batch())


def test_a_forward_that_is_replaced_is_refused() -> None:
    model = stock("llama")
    norm = model.model.norm
    norm.forward = MethodType(type(norm).forward, norm)
    with pytest.raises(ValueError, match=r"forward of its LlamaRMSNorm is replaced by transformers\.models\.llama"):
        inject(model, EAGER)


def test_a_loss_function_of_ones_own_stays_and_a_named_loss_is_refused() -> None:
    model = stock("llama")
    model.loss_function = lambda *_, **__: torch.tensor(7.0)
    assert inject(model, {"rms_norm": "eager"})(**batch()).loss == 7
    with pytest.raises(ValidationError, match="unknown variant 'custom' of cross_entropy_loss"):
        inject(model, {"cross_entropy_loss": "eager"})


@pytest.fixture
def qwen2_module() -> Iterator[ModuleType]:
    """transformers' file of Qwen2, which is put right again."""
    module, forward = transformers.models.qwen2.modeling_qwen2, transformers.Qwen2ForCausalLM.forward
    names = dict(vars(module))
    yield module
    vars(module).update(names)
    module.Qwen2ForCausalLM.forward = forward


def test_a_model_patched_by_liger_is_refused(qwen2_module: ModuleType) -> None:
    names = dict(vars(qwen2_module))
    model = stock("qwen2")
    apply_liger_kernel_to_qwen2(model=model)
    with pytest.raises(ValueError, match=r"patched by Liger \(.*Qwen2RMSNorm"):
        inject(model, EAGER)
    vars(qwen2_module).update(names)
    with pytest.raises(ValueError, match="is replaced by Liger"):
        inject(model, EAGER)


def test_a_class_patched_by_liger_is_refused(qwen2_module: ModuleType) -> None:
    apply_liger_kernel_to_qwen2(rope=False, rms_norm=False, swiglu=False)
    with pytest.raises(ValueError, match=r"patched by Liger \(Qwen2ForCausalLM\)"):
        inject(stock("qwen2"), EAGER)


def test_a_model_with_hub_kernels_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = stock("llama")
    monkeypatch.setattr(model, "_use_kernels", True, raising=False)
    with pytest.raises(ValueError, match="hub kernels"):
        inject(model, EAGER)
