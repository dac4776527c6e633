"""TRL's trainers train injected models as they train stock ones."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from kernelkit import inject, kernel_report
from kernelkit.distill.data.byte_tokenizer import byte_tokenizer
from tests.injection.stock import stock

Dataset = pytest.importorskip("datasets").Dataset
TOKENIZER = byte_tokenizer()
OPS = {"preset": "eager", "attention": "sdpa"}


def conversations() -> Any:
    turns = [[{"role": role, "content": f"{role} {number}"} for role in ("user", "assistant")] for number in range(8)]
    return Dataset.from_list([{"messages": messages} for messages in turns])


def losses(
    trainer_class: Any, config_class: Any, folder: Path, settings: dict[str, Any], **models: Any
) -> torch.Tensor:
    arguments = config_class(
        output_dir=str(folder),
        max_steps=3,
        per_device_train_batch_size=2,
        learning_rate=1e-2,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        use_cpu=True,
        bf16=False,
        disable_tqdm=True,
        seed=0,
        max_length=48,
        **settings,
    )
    trainer = trainer_class(args=arguments, train_dataset=conversations(), processing_class=TOKENIZER, **models)
    trainer.train()
    return torch.tensor([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])


@pytest.mark.slow
@pytest.mark.parametrize("packing", [False, True])
def test_the_sft_trainer(tmp_path: Path, packing: bool) -> None:
    trl = pytest.importorskip("trl")
    plain = stock("qwen3", vocab_size=len(TOKENIZER))
    model = inject(copy.deepcopy(plain), OPS)
    theirs, mine = (
        losses(trl.SFTTrainer, trl.SFTConfig, tmp_path, {"packing": packing}, model=each) for each in (plain, model)
    )
    assert torch.allclose(mine, theirs, rtol=1e-4)


@pytest.mark.slow
def test_the_gkd_trainer_with_a_teacher_and_a_student_of_different_kernels(tmp_path: Path) -> None:
    gkd = pytest.importorskip("trl.experimental.gkd")
    student, teacher = (stock(family, vocab_size=len(TOKENIZER)) for family in ("qwen3", "llama"))
    settings = {"lmbda": 0.5, "max_new_tokens": 8}
    runs = []
    for ops in (None, OPS):
        models = {"model": copy.deepcopy(student), "teacher_model": copy.deepcopy(teacher)}
        if ops:
            inject(models["model"], ops)
            inject(models["teacher_model"], {"rms_norm": "torch"}, training=False)
        runs.append(losses(gkd.GKDTrainer, gkd.GKDConfig, tmp_path, settings, **models))
    assert torch.allclose(*runs, rtol=1e-4)
    assert kernel_report(models["model"]).impls["rms_norm"] == {"eager"}
    assert kernel_report(models["teacher_model"]).impls["rms_norm"] == {"torch"}
