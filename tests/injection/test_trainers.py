"""PEFT and the HF Trainer take an injected model as they take a stock one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model

from kernelkit import eject, inject, kernel_report
from tests.coexistence.test_trainers import trained
from tests.injection.stock import pair, step
from tests.models.families import assert_close

OPS = {"preset": "eager", "attention": "sdpa"}
LORA = {"r": 2, "target_modules": ["q_proj", "down_proj"], "init_lora_weights": False, "task_type": "CAUSAL_LM"}


def test_the_hf_trainer_trains_it_as_it_trains_stock(tmp_path: Path) -> None:
    plain, model = pair("qwen3")
    inject(model, OPS)
    losses = [
        trained(each, tmp_path / str(number), gradient_accumulation_steps=2)
        for number, each in enumerate((plain, model))
    ]
    assert torch.allclose(torch.tensor(losses[0]), torch.tensor(losses[1]), rtol=1e-4)
    assert kernel_report(model).impls["rms_norm"] == {"eager"}


@pytest.mark.parametrize("when", ["before", "after"])
def test_lora_before_and_after_injection_has_the_gradients_of_stock(when: str) -> None:
    plain, model = pair("qwen3")
    torch.manual_seed(1)
    plain = get_peft_model(plain, LoraConfig(**LORA))
    torch.manual_seed(1)
    if when == "before":
        wrapped = get_peft_model(model, LoraConfig(**LORA))
        assert inject(wrapped, OPS) is wrapped
    else:
        wrapped = get_peft_model(inject(model, OPS), LoraConfig(**LORA))
    assert_close(step(wrapped).loss, step(plain).loss, 1e-5)
    for (name, mine), (_, theirs) in zip(wrapped.named_parameters(), plain.named_parameters(), strict=True):
        if "lora" in name:
            assert_close(mine.grad, theirs.grad, 1e-4)
        else:
            assert mine.grad is None
    assert {name for _, name in kernel_report(wrapped).left_alone} == {"Linear"}  # LoRA's own
    eject(wrapped)
    assert kernel_report(wrapped).rows == ()
    assert_close(step(wrapped).loss, step(plain).loss)


def test_lora_on_the_head_is_called_or_the_named_loss_refused() -> None:
    on_head = LoraConfig(r=2, target_modules=["lm_head"], init_lora_weights=False)
    plain, model = pair("qwen3")
    torch.manual_seed(1)
    plain = get_peft_model(plain, on_head)
    torch.manual_seed(1)
    wrapped = inject(get_peft_model(model, on_head), {"cross_entropy_loss": "eager"})
    assert_close(step(wrapped).loss, step(plain).loss)
    with pytest.raises(ValueError, match=r"not a plain nn\.Linear"):
        step(inject(wrapped, {"cross_entropy_loss": "compile"}))
