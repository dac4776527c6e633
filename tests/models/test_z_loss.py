"""The config's z_loss_coef reaches the loss, whatever kernel computes it, or is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from kernelkit import build_model, eject, inject
from tests.injection import stock
from tests.models.families import assert_close, small_config, tokens

BATCH = {"input_ids": tokens(2, 6), "labels": tokens(2, 6, seed=1)}


def ours(kernels: Any = None, **changes: Any) -> Any:
    torch.manual_seed(0)
    settings = {"device": "cpu", "distilled": True} if changes.pop("distilled", False) else {"device": "cpu"}
    return build_model(small_config("qwen3", z_loss_coef=0.1, **changes), kernels=kernels, **settings)


def expected(model: Any) -> Tensor:
    logits, targets = model(BATCH["input_ids"]).logits[:, :-1].flatten(0, 1), BATCH["labels"][:, 1:].flatten()
    return F.cross_entropy(logits, targets) + 0.1 * logits.logsumexp(-1).square().mean()


def add_hook(model: Any) -> None:
    model.lm_head.register_forward_hook(lambda *_: None)


@pytest.mark.parametrize("change", [lambda model: None, add_hook], ids=["fused", "head called"])
def test_our_models_add_it_with_any_head(change: Any) -> None:
    model = ours()
    change(model)
    assert_close(model(**BATCH).loss, expected(model))


def test_an_argument_takes_the_place_of_the_configs() -> None:
    model = ours()
    with_it, without = model(**BATCH).loss, model(**BATCH, z_loss_coef=0.0).loss
    assert with_it > without
    model.config.z_loss_coef = 0.0
    assert torch.equal(model(**BATCH, z_loss_coef=0.1).loss, with_it)
    injected = inject(stock.stock("llama"), {"cross_entropy_loss": "eager"})
    assert_close(injected(**BATCH, z_loss_coef=0.1).loss, expected(injected))


def test_it_travels_with_the_config_and_stock_transformers_does_not_mind(tmp_path: Any) -> None:
    model = ours()
    model.save_pretrained(tmp_path)
    again = build_model(tmp_path, device="cpu")
    assert again.config.z_loss_coef == 0.1
    assert torch.equal(again(**BATCH).loss, model(**BATCH).loss)


@pytest.mark.parametrize("family", ["llama", "gemma3", "qwen3_moe"])
def test_a_stock_model_adds_it_with_a_loss_that_is_named(family: str) -> None:
    model = inject(stock.stock(family, z_loss_coef=0.1), {"cross_entropy_loss": "eager"})
    assert_close(model(**BATCH).loss, expected(model))


def test_beside_transformers_own_loss_it_is_refused() -> None:
    model = inject(stock.stock("llama", z_loss_coef=0.1), {"rms_norm": "torch"})
    with pytest.raises(ValueError, match=r"z_loss_coef=0\.1.*Name cross_entropy_loss, or set z_loss_coef to 0"):
        model(**BATCH)
    model(BATCH["input_ids"])
    model(**BATCH, z_loss_coef=0.0)
    eject(model)


def test_a_loss_of_ones_own_may_read_it_as_it_likes() -> None:
    model = stock.stock("llama", z_loss_coef=0.1)
    model.loss_function = lambda logits, labels, vocab_size, **_: logits.sum() * model.config.z_loss_coef
    assert torch.isfinite(inject(model, {"rms_norm": "torch"})(**BATCH).loss)


def test_a_student_refuses_it() -> None:
    teacher, student = ours(), ours(distilled=True)
    with pytest.raises(ValueError, match="distillation_loss has no z-loss: set z_loss_coef to 0"):
        student(**BATCH, teaching=teacher.teach(BATCH["input_ids"]))
    student(**BATCH, teaching=teacher.teach(BATCH["input_ids"]), z_loss_coef=0.0)
