"""generate gives the tokens that stock transformers gives."""

from __future__ import annotations

import pytest
import torch
from transformers.generation.configuration_utils import CompileConfig

from tests.models.families import FAMILIES, pair, tokens

families = pytest.mark.parametrize("family", FAMILIES)


@families
@pytest.mark.parametrize("how", [{"num_beams": 1}, {"num_beams": 3}], ids=["greedy", "beam"])
def test_generated_tokens_equal_stock(family: str, how: dict[str, int]) -> None:
    stock, ours = pair(family)
    prompt = {"input_ids": tokens(2, 5), "attention_mask": torch.ones(2, 5, dtype=torch.long)}
    theirs, mine = (model.generate(**prompt, max_new_tokens=8, do_sample=False, **how) for model in (stock, ours))
    assert torch.equal(mine, theirs)


@families
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_left_padded_prompts_generate_as_in_stock(family: str, attention: str) -> None:
    stock, ours = pair(family, {"preset": "eager", "attention": attention})
    mask = torch.tensor([[1, 1, 1, 1, 1], [0, 0, 1, 1, 1]])
    prompt = {"input_ids": tokens(2, 5).masked_fill(mask == 0, 0), "attention_mask": mask}
    theirs, mine = (model.generate(**prompt, max_new_tokens=8, do_sample=False) for model in (stock, ours))
    assert torch.equal(mine, theirs)


@pytest.mark.parametrize("family", ["qwen2", "qwen3", "qwen3_moe"])
def test_a_sliding_window_generates_as_in_stock_past_its_width(family: str) -> None:
    stock, ours = pair(
        family, use_sliding_window=True, sliding_window=4, **({} if family == "qwen3_moe" else {"max_window_layers": 1})
    )
    theirs, mine = (model.generate(tokens(2, 6), max_new_tokens=8, do_sample=False) for model in (stock, ours))
    assert torch.equal(mine, theirs)


@families
def test_a_static_cache_generates_the_same(family: str) -> None:
    stock, ours = pair(family)
    mask = torch.tensor([[1, 1, 1, 1], [0, 1, 1, 1]])
    prompt = {"input_ids": tokens(2, 4).masked_fill(mask == 0, 0), "attention_mask": mask}
    expected = stock.generate(**prompt, max_new_tokens=6, do_sample=False)
    actual = ours.generate(
        **prompt, max_new_tokens=6, do_sample=False, cache_implementation="static", disable_compile=True
    )
    assert torch.equal(actual, expected)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["qwen3", "qwen3_moe"])
def test_a_static_cache_generates_the_same_where_decoding_is_compiled_whole(family: str) -> None:
    stock, ours = pair(family, {"preset": "torch"})
    mask = torch.tensor([[1, 1, 1, 1], [0, 1, 1, 1]])
    prompt = {"input_ids": tokens(2, 4).masked_fill(mask == 0, 0), "attention_mask": mask}
    expected = stock.generate(**prompt, max_new_tokens=6, do_sample=False)
    settings = CompileConfig(fullgraph=True, backend="aot_eager", mode=None)
    settings._compile_all_devices = True
    actual = ours.generate(
        **prompt, max_new_tokens=6, do_sample=False, cache_implementation="static", compile_config=settings
    )
    assert torch.equal(actual, expected)


def test_generate_returns_attentions_with_eager_and_refuses_them_with_sdpa() -> None:
    _, eager = pair("qwen3")
    output = eager.generate(
        tokens(1, 4), max_new_tokens=2, do_sample=False, output_attentions=True, return_dict_in_generate=True
    )
    assert len(output.attentions) == 2
    _, sdpa = pair("qwen3", {"attention": "sdpa"})
    with pytest.raises(ValueError, match=r"sdpa|eager"):
        sdpa(tokens(1, 4), output_attentions=True)
