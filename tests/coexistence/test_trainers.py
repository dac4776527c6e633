"""The trainers that people use take our models as they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from peft import LoraConfig, get_peft_model

from kernelkit import build_model, kernel_report
from tests.models.families import our_model, small_config, tokens


class RandomTokens(torch.utils.data.Dataset):  # type: ignore[type-arg]  # torch's Dataset is generic only in stubs
    """Eight rows that are the same every time."""

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = tokens(12, seed=index)
        return {"input_ids": row, "labels": row}


def trained(model: Any, folder: Path, **arguments: Any) -> list[float]:
    settings = transformers.TrainingArguments(
        output_dir=str(folder),
        max_steps=4,
        per_device_train_batch_size=2,
        learning_rate=1e-2,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        seed=0,
        **arguments,
    )
    trainer = transformers.Trainer(model=model, args=settings, train_dataset=RandomTokens())
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def test_the_hf_trainer_trains_our_model_as_it_trains_stock(tmp_path: Path) -> None:
    stock = transformers.Qwen3ForCausalLM(small_config("qwen3"))
    ours = our_model("qwen3", {"attention": "sdpa"}, like=stock)
    ours_losses = trained(ours, tmp_path / "ours", gradient_accumulation_steps=2)
    stock_losses = trained(stock, tmp_path / "stock", gradient_accumulation_steps=2)
    assert torch.allclose(torch.tensor(ours_losses), torch.tensor(stock_losses), rtol=1e-4)
    assert ours_losses[-1] < ours_losses[0]


def test_the_hf_trainer_evaluates_with_logits(tmp_path: Path) -> None:
    settings = transformers.TrainingArguments(output_dir=str(tmp_path), report_to=[], use_cpu=True, disable_tqdm=True)
    trainer = transformers.Trainer(model=our_model("qwen3"), args=settings, eval_dataset=RandomTokens())
    prediction = trainer.predict(RandomTokens())
    assert prediction.predictions.shape == (8, 12, 96)


def test_lora_trains_the_adapters_alone_and_keeps_the_kernels(tmp_path: Path) -> None:
    model = build_model(small_config("qwen3"), kernels={"rms_norm": "torch"}, device="cpu")
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    wrapped = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM"))
    trained(wrapped, tmp_path)
    assert kernel_report(wrapped).impls["rms_norm"] == {"torch"}
    for name, parameter in wrapped.get_base_model().named_parameters():
        plain = name.replace(".base_layer", "")
        if "lora" not in name:
            assert torch.equal(parameter, before[plain])
        elif "lora_B" in name:
            assert parameter.abs().sum() > 0


def test_an_adapter_of_ours_loads_onto_stock_transformers(tmp_path: Path) -> None:
    stock = transformers.Qwen3ForCausalLM(small_config("qwen3")).eval()
    ours = our_model("qwen3", {"attention": "sdpa"}, like=stock)
    wrapped = get_peft_model(ours, LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    wrapped.save_pretrained(tmp_path)
    from peft import PeftModel

    reloaded = PeftModel.from_pretrained(stock, tmp_path).eval()
    with torch.no_grad():
        assert torch.allclose(reloaded(tokens(1, 6)).logits, wrapped.eval()(tokens(1, 6)).logits, atol=1e-5)
