"""With eager kernels, an injected model computes what it computed before, forward and backward."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from kernelkit import KernelContainer, inject, kernel_report
from kernelkit.containers import Need
from tests.injection.stock import FAMILIES, batch, pair, step
from tests.models.families import EAGER, assert_close, assert_same_gradients, recording, tokens

families = pytest.mark.parametrize("family", FAMILIES)
MOE = ("qwen3_moe", "qwen3_next")


def assert_same_step(family: str, ops: Any, inputs: dict[str, Any], valid: Any = None, **changes: Any) -> Any:
    stock, model = pair(family, **changes)
    inject(model, ops)
    theirs, mine = step(stock, **inputs), step(model, **inputs)
    keep = slice(None) if valid is None else valid
    tolerance = 1e-6 if ops == EAGER else 1e-5  # another order of additions
    if family == "qwen3_next":  # whose linear attention makes the rounding of some processors 1.01e-6
        tolerance = max(tolerance, 2e-6)
    assert_close(mine.logits[keep], theirs.logits[keep], tolerance)
    assert_close(mine.loss, theirs.loss, tolerance)
    assert_same_gradients(model, stock, tolerance)
    return model


@families
def test_a_training_step_equals_stock(family: str) -> None:
    extra = {"output_router_logits": True} if family in MOE else {}
    model = assert_same_step(family, EAGER, {**batch(), **extra})
    impls = kernel_report(model).impls
    assert set().union(*impls.values()) == {"eager"}
    assert {"attention", "rms_norm", "rotary_pos_emb", "swiglu_mlp", "cross_entropy_loss"} <= impls.keys()


@families
@pytest.mark.parametrize("side", ["left", "right"])
def test_padded_rows_equal_stock_where_they_are_not_padding(family: str, side: str) -> None:
    mask = torch.ones(2, 9, dtype=torch.long)
    mask[1, slice(0, 4) if side == "left" else slice(5, 9)] = 0
    valid = mask.bool() & mask.roll(1, dims=1).bool()
    labels = torch.where(valid, tokens(2, 9, seed=1), -100)
    assert_same_step(
        family, EAGER, {"input_ids": tokens(2, 9), "attention_mask": mask, "labels": labels}, valid=mask.bool()
    )


@families
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_packed_documents_train_as_in_stock(family: str, attention: str) -> None:
    positions = torch.cat((torch.arange(5), torch.arange(7)))[None]
    inputs = {**batch(1, 12), "position_ids": positions, "use_cache": False}
    assert_same_step(family, {"attention": attention}, inputs)


@families
def test_sdpa_reads_a_mask_of_its_own_though_the_config_says_eager(family: str) -> None:
    model = assert_same_step(family, {"attention": "sdpa"}, batch())
    assert model.config._attn_implementation == "eager"
    assert kernel_report(model).impls["attention"] == {"sdpa"}
    assert kernel_report(model).impls["rms_norm"] == {"stock"}


@families
@pytest.mark.parametrize("ops", [{"rotary_pos_emb": "eager"}, {"rms_norm": "torch"}, {"cross_entropy_loss": "eager"}])
def test_one_named_op_leaves_the_others_to_transformers(family: str, ops: dict[str, str]) -> None:
    model = assert_same_step(family, ops, batch())
    impls = kernel_report(model).impls
    assert {op: impl for op, impl in impls.items() if impl != {"stock"}} == {op: {impl} for op, impl in ops.items()}


@pytest.mark.parametrize("family", MOE)
@pytest.mark.parametrize("ops", [{"load_balancing_loss": "eager"}, {"cross_entropy_loss": "eager"}, EAGER])
@pytest.mark.parametrize("asked", ["by the call", "by the config"])
def test_the_routers_loss_is_that_of_stock(family: str, ops: dict[str, str], asked: str) -> None:
    mask = torch.tensor([[1] * 11, [0] * 4 + [1] * 7])
    # A label counts where both it and the token that predicts it are real.
    labels = torch.where(mask.bool() & mask.roll(1, dims=1).bool(), tokens(2, 11, seed=1), -100)
    inputs: dict[str, Any] = {"input_ids": tokens(2, 11), "labels": labels, "attention_mask": mask}
    changes: dict[str, Any] = {"router_aux_loss_coef": 0.5}
    (inputs if asked == "by the call" else changes)["output_router_logits"] = True
    stock, model = pair(family, **changes)
    inject(model, ops)
    theirs, mine = step(stock, **inputs), step(model, **inputs)
    assert_close(mine.aux_loss, theirs.aux_loss)
    assert_close(mine.loss, theirs.loss)
    assert len(mine.router_logits) == len(theirs.router_logits) > 0
    without = {name: value for name, value in inputs.items() if name != "labels"}
    assert_close(model(**without).aux_loss, stock(**without).aux_loss)


@families
def test_base_models_and_classifiers_equal_stock(family: str) -> None:
    for kind in ("Model", "ForSequenceClassification"):
        stock, model = pair(family, kind, **({"num_labels": 3} if kind != "Model" else {}))
        inject(model, EAGER)
        with torch.no_grad():
            theirs, mine = (each(tokens(2, 7))[0] for each in (stock, model))
        assert_close(mine, theirs)
        assert kernel_report(model).impls["attention"] == {"eager"}


@families
def test_loss_arguments_mean_what_they_mean_in_stock(family: str) -> None:
    inputs = {**batch(), "num_items_in_batch": 7, "logits_to_keep": 0}
    assert_same_step(family, {"cross_entropy_loss": "eager"}, inputs)
    shifted = {**batch(), "shift_labels": tokens(2, 11, seed=2)}
    assert_same_step(family, {"cross_entropy_loss": "eager"}, shifted)


@families
def test_a_mask_of_ones_own_and_embeddings_equal_stock(family: str) -> None:
    stock, model = pair(family)
    inject(model, {"attention": "sdpa"})
    embeddings = torch.randn(2, 6, 32)
    custom = torch.zeros(2, 1, 6, 6).masked_fill(torch.rand(2, 1, 6, 6) > 0.7, torch.finfo(torch.float32).min)
    custom[:, :, range(6), range(6)] = 0
    with torch.no_grad():
        for inputs in ({"inputs_embeds": embeddings}, {"input_ids": tokens(2, 6), "attention_mask": custom}):
            assert_close(model(**inputs).logits, stock(**inputs).logits)


@pytest.mark.parametrize(
    ("family", "ops"),
    [
        ("qwen3", ["add_rms_norm", "qk_norm_rope"]),
        ("qwen3_moe", ["add_rms_norm", "qk_norm_rope"]),
        ("llama", ["add_rms_norm"]),
    ],
)
def test_a_fused_op_is_called_once_in_each_layer(family: str, ops: list[str]) -> None:
    stock, model = pair(family)
    calls: list[str] = []
    container = KernelContainer.from_config(device="cpu")
    for op in ops:
        container.override(op, recording(op, calls, op))
    inject(model, container)
    assert_close(step(model).loss, step(stock).loss)
    assert_same_gradients(model, stock)
    assert sorted(calls) == sorted(ops * 2)


@families
def test_under_autocast_it_computes_what_stock_computes(family: str) -> None:
    stock, model = pair(family)
    inject(model, EAGER)
    with torch.autocast("cpu", torch.bfloat16):
        theirs, mine = (each.train()(**batch()) for each in (stock, model))
    for output in (theirs, mine):
        output.loss.backward()
    assert_close(mine.loss, theirs.loss)
    assert_same_gradients(model, stock)


@families
@pytest.mark.parametrize("config", ["eager", "sdpa"])
def test_a_layer_that_is_rebound_alone_gets_its_own_mask_and_the_others_theirs(family: str, config: str) -> None:
    mask = torch.tensor([[1] * 9, [0] * 4 + [1] * 5])
    stock, model = pair(family)
    for each in (stock, model):
        each.config._attn_implementation = config
    inject(model, {"rms_norm": "eager"})
    attention = next(module for module in model.modules() if "attention" in getattr(module, "bindings", {}))
    variant = attention.bindings["attention"].variant
    for impl in ("eager", "sdpa"):
        container = KernelContainer.from_config({"attention": impl}, device="cpu")
        attention.bind(container.bind([Need("attention", variant)], model="layer"), "attention", variant)
        with torch.no_grad():
            theirs, mine = (each(tokens(2, 9), attention_mask=mask).logits for each in (stock, model))
        assert_close(mine[mask.bool()], theirs[mask.bool()], 1e-5)


@pytest.mark.parametrize("kernels", [{"preset": "eager"}, {"preset": "torch"}, {"preset": "compile"}])
@pytest.mark.parametrize("family", ["llama", "gemma3", "qwen3_moe"])
def test_presets_go_where_there_is_a_place(family: str, kernels: dict[str, str]) -> None:
    _, model = pair(family)
    report = kernel_report(inject(model, kernels))
    assert {row.why for row in report.rows} <= {f"preset {kernels['preset']}", "default"}
