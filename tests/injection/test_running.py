"""An injected model generates and compiles."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers.generation.configuration_utils import CompileConfig

from kernelkit import eject, inject
from tests.injection.stock import FAMILIES, batch, pair, step, stock
from tests.models.families import EAGER, assert_close, tokens

families = pytest.mark.parametrize("family", FAMILIES)
SDPA = {"preset": "torch"}


@families
@pytest.mark.parametrize("ops", [EAGER, SDPA])
@pytest.mark.parametrize("cache", [{}, {"cache_implementation": "static", "disable_compile": True}])
def test_generated_tokens_equal_stock(family: str, ops: dict[str, str], cache: dict[str, Any]) -> None:
    plain, model = pair(family)
    inject(model, ops, training=False)
    mask = torch.tensor([[1] * 5, [0, 0, 1, 1, 1]])
    prompt = {"input_ids": tokens(2, 5).masked_fill(mask == 0, 0), "attention_mask": mask}
    theirs, mine = (each.generate(**prompt, max_new_tokens=8, do_sample=False, **cache) for each in (plain, model))
    assert torch.equal(mine, theirs)


@pytest.mark.slow
def test_compiled_decoding_with_a_static_cache_gives_the_tokens_of_stock() -> None:
    plain, model = pair("qwen3")
    inject(model, SDPA, compiled=True)
    mask = torch.tensor([[1, 1, 1, 1], [0, 1, 1, 1]])
    prompt = {"input_ids": tokens(2, 4).masked_fill(mask == 0, 0), "attention_mask": mask}
    settings = CompileConfig(fullgraph=True, backend="aot_eager", mode=None)
    settings._compile_all_devices = True
    how = {"max_new_tokens": 6, "do_sample": False}
    mine = model.generate(**prompt, **how, cache_implementation="static", compile_config=settings)
    assert torch.equal(mine, plain.generate(**prompt, **how))


@pytest.mark.parametrize("family", [each for each in FAMILIES if each not in ("qwen3_next", "qwen3_5")])
def test_training_is_one_graph(family: str) -> None:
    torch._dynamo.reset()
    model = inject(stock(family), SDPA, compiled=True)
    expected = step(model, **batch(), use_cache=False).loss
    gradients = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    loss = compiled(**batch(), use_cache=False).loss
    loss.backward()
    assert_close(loss, expected, 1e-5)
    for name, parameter in model.named_parameters():
        assert_close(parameter.grad, gradients[name], 1e-4)


def test_injecting_into_a_compiled_model_compiles_it_again() -> None:
    torch._dynamo.reset()
    model = stock("qwen3")
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        expected = compiled(tokens(2, 6)).logits
        assert inject(compiled, SDPA, compiled=True) is compiled
        model.model.norm.__dict__["rms_norm"] = _doubled
        assert_close(compiled(tokens(2, 6)).logits, model(tokens(2, 6)).logits, 1e-5)
        eject(compiled)
        assert_close(compiled(tokens(2, 6)).logits, expected, 1e-5)


def _doubled(hidden_states: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    return 2 * torch.nn.functional.rms_norm(hidden_states, weight.shape, weight, eps)
