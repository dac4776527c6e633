"""Overrides by path and verification work on injected models as on our own."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError

from kernelkit import KernelContainer, inject, kernel_report
from tests.injection.stock import FAMILIES, pair, stock
from tests.models.families import assert_close, tokens


def test_an_op_that_only_an_override_names_is_stock_elsewhere() -> None:
    model = inject(stock("llama"), {"overrides": {"layers.0.*_layernorm": {"rms_norm": "torch"}}})
    norms = {row.module: row.impl for row in kernel_report(model).rows if row.op == "rms_norm"}
    assert {path for path, impl in norms.items() if impl == "torch"} == {
        "model.layers.0.input_layernorm",
        "model.layers.0.post_attention_layernorm",
    }
    assert set(norms.values()) == {"torch", "stock"}


@pytest.mark.parametrize("family", FAMILIES)
def test_layers_with_different_attention_get_different_masks(family: str) -> None:
    mask = torch.tensor([[1] * 9, [0] * 4 + [1] * 5])
    plain, model = pair(family)
    inject(model, {"attention": "eager", "overrides": {"layers.1.self_attn": {"attention": "sdpa"}}})
    with torch.no_grad():
        theirs, mine = (each(tokens(2, 9), attention_mask=mask).logits for each in (plain, model))
    assert_close(mine[mask.bool()], theirs[mask.bool()], 1e-5)


def test_an_override_that_fits_nothing_leaves_the_model_as_it_was() -> None:
    model = inject(stock("llama"), {"rms_norm": "torch"})
    before = str(kernel_report(model))
    with pytest.raises(ValidationError, match="no module of LlamaForCausalLM"):
        inject(model, {"overrides": {"layers.7.mlp": {"swiglu_mlp": "eager"}}})
    assert str(kernel_report(model)) == before


@pytest.mark.parametrize("family", FAMILIES)
def test_injected_kernels_are_verified(family: str) -> None:
    inject(stock(family), {"preset": "torch", "verify": "bind"})
    container = KernelContainer.from_config({"verify": "bind"}, device="cpu")
    container.override("rms_norm", lambda hidden_states, weight, eps: 2 * hidden_states)
    model = stock(family)
    with pytest.raises(ValidationError, match="is not as good as eager"):
        inject(model, container)
    assert type(model).__module__.startswith("transformers.")
