"""The head is fused with its loss only where nothing else hangs on it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from kernelkit import KernelContainer, build_model
from tests.models.families import assert_close, pair, recording, small_config, tokens


def with_recording_loss(calls: list[str], **changes: Any) -> Any:
    container = KernelContainer.from_config({"preset": "eager"}, device="cpu")
    container.override("cross_entropy_loss", recording("cross_entropy_loss", calls, "fused"))
    torch.manual_seed(0)
    return build_model(small_config("qwen3", **changes), kernels=container, device="cpu")


def loss_of(model: Any, **extra: Any) -> Tensor:
    return model(tokens(2, 6), labels=tokens(2, 6, seed=1), **extra).loss


@pytest.mark.parametrize("tied", [False, True])
def test_a_plain_head_is_fused_also_when_it_is_tied(tied: bool) -> None:
    calls: list[str] = []
    model = with_recording_loss(calls, tie_word_embeddings=tied)
    loss_of(model).backward()
    assert calls == ["fused"]
    assert model.lm_head.weight.grad is not None


def add_hook(model: Any) -> None:
    model.lm_head.register_forward_hook(lambda module, arguments, output: output * 2)


def add_lora(model: Any) -> None:
    from peft import LoraConfig, inject_adapter_in_model

    inject_adapter_in_model(LoraConfig(r=2, target_modules=["lm_head"], init_lora_weights=False), model)


def parametrize(model: Any) -> None:
    torch.nn.utils.parametrizations.weight_norm(model.lm_head)


def replace_forward(model: Any) -> None:
    head = model.lm_head
    head.forward = lambda hidden_states: torch.nn.functional.linear(hidden_states, head.weight) + 1


wrapped = pytest.mark.parametrize("wrap", [add_hook, add_lora, parametrize, replace_forward])


@wrapped
def test_a_wrapped_head_is_called_where_the_loss_is_a_default(wrap: Any) -> None:
    model = build_model(small_config("qwen3"), kernels={"attention": "eager"}, device="cpu")
    plain = loss_of(model).detach()
    wrap(model)
    output = model(tokens(2, 6), labels=tokens(2, 6, seed=1))
    shifted = torch.nn.functional.cross_entropy(
        output.logits[:, :-1].reshape(-1, 96), tokens(2, 6, seed=1)[:, 1:].reshape(-1)
    )
    assert_close(output.loss, shifted)
    if wrap in (add_hook, add_lora):  # the others leave the probabilities as they were
        assert not torch.equal(output.loss, plain)


@wrapped
def test_a_wrapped_head_with_a_named_loss_kernel_is_an_error(wrap: Any) -> None:
    calls: list[str] = []
    model = with_recording_loss(calls)
    wrap(model)
    with pytest.raises(ValueError, match=r"cross_entropy_loss.*head"):
        loss_of(model)
    assert calls == []


@wrapped
def test_a_wrapped_head_agrees_with_eager_by_name(wrap: Any) -> None:
    model = build_model(small_config("qwen3"), kernels={"preset": "eager"}, device="cpu")
    wrap(model)
    assert torch.isfinite(loss_of(model))


def test_a_removed_hook_lets_the_head_be_fused_again() -> None:
    calls: list[str] = []
    model = with_recording_loss(calls)
    handle = model.lm_head.register_forward_hook(lambda *_: None)
    handle.remove()
    loss_of(model)
    assert calls == ["fused"]


def test_the_bias_of_the_head_reaches_the_loss() -> None:
    stock, ours = pair("llama")
    for model in (stock, ours):
        model.lm_head.bias = torch.nn.Parameter(torch.arange(96.0))
    assert_close(loss_of(ours), loss_of(stock))


def test_a_loss_without_logits_leaves_them_out_in_training_and_gives_them_when_asked() -> None:
    model = with_recording_loss([])
    asked: list[bool] = []

    def kernel(hidden_states: Tensor, weight: Tensor, labels: Tensor, *, return_logits: bool, **_: Any) -> Any:
        asked.append(return_logits)
        return hidden_states.sum(), None

    container = KernelContainer.from_config({"preset": "eager"}, device="cpu")
    container.override("cross_entropy_loss", kernel)
    model = build_model(small_config("qwen3"), kernels=container, device="cpu")
    loss_of(model.train())
    loss_of(model.eval())
    loss_of(model.train(), return_logits=True)
    assert asked == [False, True, True]
