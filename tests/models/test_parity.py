"""With eager kernels, each family computes what stock transformers computes, forward and backward."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.models.families import FAMILIES, assert_close, assert_same_gradients, pair, tokens

families = pytest.mark.parametrize("family", FAMILIES)


def train_step(model: Any, **inputs: Any) -> Any:
    model.train()
    output = model(**inputs)
    output.loss.backward()
    return output


@families
def test_logits_loss_and_gradients_equal_those_of_stock(family: str) -> None:
    stock, ours = pair(family)
    inputs = {"input_ids": tokens(2, 11), "labels": tokens(2, 11, seed=1)}
    theirs, mine = train_step(stock, **inputs), train_step(ours, **inputs)
    assert_close(mine.logits, theirs.logits)
    assert_close(mine.loss, theirs.loss)
    assert_same_gradients(ours, stock)


@families
def test_parameters_and_their_order_are_those_of_stock(family: str) -> None:
    stock, ours = pair(family)
    assert list(ours.state_dict()) == list(stock.state_dict())
    assert ours.config.to_dict() | {"dtype": None} == stock.config.to_dict() | {"dtype": None}


@families
@pytest.mark.parametrize("side", ["left", "right"])
def test_padded_rows_equal_stock_where_they_are_not_padding(family: str, side: str) -> None:
    stock, ours = pair(family)
    mask = torch.ones(2, 9, dtype=torch.long)
    mask[1, slice(0, 4) if side == "left" else slice(5, 9)] = 0
    # A label counts where both it and the token that predicts it are real.
    valid = mask.bool() & mask.roll(1, dims=1).bool()
    labels = torch.where(valid, tokens(2, 9, seed=1), -100)
    inputs = {"input_ids": tokens(2, 9), "attention_mask": mask, "labels": labels}
    theirs, mine = train_step(stock, **inputs), train_step(ours, **inputs)
    assert_close(mine.logits[mask.bool()], theirs.logits[mask.bool()])
    assert_close(mine.loss, theirs.loss)
    assert_same_gradients(ours, stock)


@families
@pytest.mark.parametrize("use_cache", [False, True])
def test_packed_documents_never_see_each_other(family: str, use_cache: bool) -> None:
    _, ours = pair(family)
    first, second = tokens(1, 5), tokens(1, 7, seed=1)
    packed = torch.cat((first, second), dim=1)
    positions = torch.cat((torch.arange(5), torch.arange(7)))[None]
    with torch.no_grad():
        together = ours(packed, position_ids=positions, use_cache=use_cache).logits
        alone = torch.cat((ours(first).logits, ours(second).logits), dim=1)
    assert_close(together, alone)


@families
def test_packed_documents_train_as_in_stock(family: str) -> None:
    stock, ours = pair(family)
    positions = torch.cat((torch.arange(5), torch.arange(7)))[None]
    inputs = {
        "input_ids": tokens(1, 12),
        "position_ids": positions,
        "labels": tokens(1, 12, seed=1),
        "use_cache": False,
    }
    theirs, mine = train_step(stock, **inputs), train_step(ours, **inputs)
    assert_close(mine.logits, theirs.logits)
    assert_same_gradients(ours, stock)


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("qwen2", {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1}),
        (
            "qwen3",
            {"use_sliding_window": True, "sliding_window": 4, "layer_types": ["full_attention", "sliding_attention"]},
        ),
        ("qwen3_moe", {"use_sliding_window": True, "sliding_window": 4}),
    ],
)
def test_sliding_windows_equal_stock(family: str, changes: dict[str, Any]) -> None:
    stock, ours = pair(family, **changes)
    inputs = {"input_ids": tokens(2, 13), "labels": tokens(2, 13, seed=1)}
    theirs, mine = train_step(stock, **inputs), train_step(ours, **inputs)
    assert_close(mine.logits, theirs.logits)
    assert_same_gradients(ours, stock)


@families
@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0},
        {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0},
        {"rope_type": "yarn", "factor": 4.0, "rope_theta": 10000.0, "original_max_position_embeddings": 16},
        {
            "rope_type": "llama3",
            "factor": 8.0,
            "rope_theta": 10000.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32,
        },
    ],
    ids=lambda rope: rope["rope_type"],
)
def test_scaled_rotary_positions_equal_stock(family: str, rope: dict[str, Any]) -> None:
    stock, ours = pair(family, rope_parameters=rope)
    with torch.no_grad():
        assert_close(ours(tokens(1, 40)).logits, stock(tokens(1, 40)).logits)


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        *((family, {"tie_word_embeddings": True}) for family in FAMILIES),
        *((family, {"attention_bias": True}) for family in ("llama", "qwen3", "qwen3_moe")),
        ("llama", {"mlp_bias": True}),
        ("llama", {"hidden_act": "gelu_pytorch_tanh"}),
        ("llama", {"num_key_value_heads": 4}),
        ("qwen3_moe", {"mlp_only_layers": [0]}),
        ("qwen3_moe", {"decoder_sparse_step": 2}),
        ("qwen3_moe", {"norm_topk_prob": False}),
    ],
)
def test_config_switches_equal_stock(family: str, changes: dict[str, Any]) -> None:
    stock, ours = pair(family, **changes)
    inputs = {"input_ids": tokens(2, 8), "labels": tokens(2, 8, seed=1)}
    theirs, mine = train_step(stock, **inputs), train_step(ours, **inputs)
    assert_close(mine.logits, theirs.logits)
    assert_same_gradients(ours, stock)


@families
def test_a_head_with_a_bias_equals_stock(family: str) -> None:
    stock, ours = pair(family)
    bias = torch.randn(96)
    for model in (stock, ours):
        model.lm_head.bias = torch.nn.Parameter(bias.clone())
    inputs = {"input_ids": tokens(2, 8), "labels": tokens(2, 8, seed=1)}
    theirs, mine = train_step(stock, **inputs), train_step(ours, **inputs)
    assert_close(mine.logits, theirs.logits)
    assert_close(ours.lm_head.bias.grad, stock.lm_head.bias.grad)


@families
def test_optional_outputs_equal_stock(family: str) -> None:
    stock, ours = pair(family)
    wanted = {"output_hidden_states": True, "output_attentions": True}
    if family == "qwen3_moe":
        wanted["output_router_logits"] = True
    with torch.no_grad():
        theirs, mine = (model(tokens(2, 6), labels=tokens(2, 6, seed=1), **wanted) for model in (stock, ours))
    for name in ("hidden_states", "attentions", "router_logits"):
        if wanted.get(f"output_{name}"):
            assert len(mine[name]) == len(theirs[name])
            for own, other in zip(mine[name], theirs[name], strict=True):
                assert_close(own, other)
    assert_close(mine.loss, theirs.loss)
    if family == "qwen3_moe":
        assert_close(mine.aux_loss, theirs.aux_loss)


def test_the_router_loss_trains_as_in_stock_with_padding() -> None:
    stock, ours = pair("qwen3_moe", output_router_logits=True, router_aux_loss_coef=0.5)
    mask = torch.ones(2, 7, dtype=torch.long)
    mask[0, 5:] = 0
    labels = torch.where(mask.bool(), tokens(2, 7, seed=1), -100)
    inputs = {"input_ids": tokens(2, 7), "attention_mask": mask, "labels": labels}
    theirs, mine = train_step(stock, **inputs), train_step(ours, **inputs)
    assert_close(mine.aux_loss, theirs.aux_loss)
    assert_close(mine.loss, theirs.loss)
    assert_same_gradients(ours, stock)


@families
def test_loss_arguments_reach_the_loss(family: str) -> None:
    stock, ours = pair(family)
    labels = tokens(2, 9, seed=1)
    for extra in (
        {"num_items_in_batch": 31},
        {"num_items_in_batch": torch.tensor(31)},
        {"ignore_index": int(labels[0, 3])},
        {"shift_labels": tokens(2, 9, seed=2)},
    ):
        with torch.no_grad():
            theirs, mine = (model(tokens(2, 9), labels=labels, **extra).loss for model in (stock, ours))
        assert_close(mine, theirs)


@families
def test_logits_to_keep_and_tuples_equal_stock(family: str) -> None:
    stock, ours = pair(family)
    for keep in (1, 3, torch.tensor([0, 4])):
        with torch.no_grad():
            assert_close(
                ours(tokens(2, 6), logits_to_keep=keep).logits, stock(tokens(2, 6), logits_to_keep=keep).logits
            )
    with torch.no_grad():
        as_tuple = ours(tokens(2, 6), return_dict=False, use_cache=False)
    assert isinstance(as_tuple, tuple)
    assert_close(as_tuple[0], stock(tokens(2, 6)).logits)


@families
@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_changes_nothing(family: str, reentrant: bool) -> None:
    stock, ours = pair(family)
    inputs = {"input_ids": tokens(2, 8), "labels": tokens(2, 8, seed=1)}
    train_step(stock, **inputs)
    ours.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    if reentrant:
        ours.enable_input_require_grads()
    train_step(ours, **inputs)
    assert_same_gradients(ours, stock)


@families
def test_inputs_embeds_stand_in_for_tokens(family: str) -> None:
    _, ours = pair(family)
    with torch.no_grad():
        embedded = ours(inputs_embeds=ours.get_input_embeddings()(tokens(2, 5))).logits
        assert_close(embedded, ours(tokens(2, 5)).logits)


@families
def test_one_masked_row_keeps_every_gradient_finite(family: str) -> None:
    for kernels in ({"preset": "eager"}, {"attention": "sdpa"}):
        _, ours = pair(family, kernels)
        mask = torch.tensor([[1, 1, 1, 1], [0, 0, 0, 0]])
        labels = torch.where(mask.bool(), tokens(2, 4), -100)
        train_step(ours, input_ids=tokens(2, 4), attention_mask=mask, labels=labels)
        assert all(
            torch.isfinite(parameter.grad).all() for parameter in ours.parameters() if parameter.grad is not None
        )


def test_a_custom_four_dimensional_mask_is_used_as_it_is() -> None:
    stock, ours = pair("qwen3")
    allowed = torch.ones(1, 1, 6, 6).tril().bool()
    allowed[..., 4, 1] = False
    additive = torch.where(allowed, 0.0, torch.finfo(torch.float32).min)
    with torch.no_grad():
        expected = stock(tokens(1, 6), attention_mask=additive).logits
        assert_close(ours(tokens(1, 6), attention_mask=additive).logits, expected)
        assert_close(ours(tokens(1, 6), attention_mask=allowed).logits, expected)
        with_sdpa = pair("qwen3", {"attention": "sdpa"})[1]
        assert_close(with_sdpa(tokens(1, 6), attention_mask=allowed).logits, expected, 1e-5)
