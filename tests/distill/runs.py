"""Small distillations: models of a few thousand weights over bytes, and text to read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from kernelkit.distill.config import DistillConfig
from kernelkit.distill.distiller import Distiller
from kernelkit.distill.metrics import Record, read_records

ROWS = [f"line {number}: " + "the lazy dog " * (number % 5) for number in range(60)]

TIMED = {"seconds", "tokens_per_second", "peak_memory_gib"}
"""Figures that differ from run to run."""


def shape(width: int, **changes: Any) -> dict[str, Any]:
    """A Qwen3 config."""
    sizes = {"vocab_size": 264, "hidden_size": width, "intermediate_size": 2 * width, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8}
    return {"model_type": "qwen3", **sizes, **heads, "tie_word_embeddings": True, **changes}


def settings(folder: Path, **sections: Any) -> dict[str, Any]:
    """A run of a few steps in ``folder`` as plain values; what is given per section is merged in."""
    text = folder / "text.jsonl"
    if not text.exists():
        text.write_text("".join(json.dumps({"text": row}) + "\n" for row in ROWS))
    run = {
        "teacher": {"config": shape(24), "ops": {"rms_norm": "torch"}},
        "student": {"config": shape(16), "ops": {"preset": "eager", "distillation_loss": "chunked"}},
        "loss": {"divergence": "jsd", "alpha": 0.25},
        "data": {
            "train": str(text),
            "validation": "held-out",
            "validation_fraction": 0.1,
            "seq_len": 32,
            "batch_size": 4,
        },
        "optim": {"lr": 1e-2, "warmup_steps": 1},
        "train": {"steps": 5, "save_every": 2},
        "eval": {"batches": 2},
        "output": {"dir": str(folder / "run"), "tensorboard": False},
    }
    for name, section in sections.items():
        run[name] = {**run[name], **section}
    return run


def config(folder: Path, **sections: Any) -> DistillConfig:
    """The same as a config."""
    return DistillConfig.model_validate(settings(folder, **sections))


def fitted(folder: Path, **sections: Any) -> Distiller:
    """A run that has come to its end."""
    distiller = Distiller(config(folder, **sections))
    distiller.fit(overwrite=True)
    return distiller


def weights(folder: Path, stage: str = "student") -> dict[str, Tensor]:
    """What a run has saved of one of its models."""
    return load_file(folder / "run" / stage / "model.safetensors")


def figures(folder: Path) -> list[tuple[Any, ...]]:
    """All records of a run, without what takes time and memory."""
    return [
        (each.stage, each.kind, each.step, {name: value for name, value in each.figures.items() if name not in TIMED})
        for each in read_records(folder / "run" / "metrics.jsonl")
    ]


def assert_same(mine: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    """To the bit."""
    assert mine.keys() == theirs.keys()
    for name, tensor in mine.items():
        assert torch.equal(tensor, theirs[name]), name


def assert_near(mine: dict[str, Tensor], theirs: dict[str, Tensor], tolerance: float = 1e-5) -> None:
    """Within ``tolerance`` of each tensor's largest magnitude."""
    for name, tensor in theirs.items():
        error = (mine[name] - tensor).abs().max() / tensor.abs().max()
        assert error <= tolerance, f"{name} is off by {error:.1e}"


class Memory:
    """A sink that keeps what it is given, and may raise at a step."""

    def __init__(self, stop_at: int | None = None) -> None:
        self.records: list[Record] = []
        self.stop_at = stop_at

    def start(self, stage: str, *, first_step: int, steps: int) -> None:
        """Nothing to do."""

    def write(self, record: Record) -> None:
        """Keep it."""
        self.records.append(record)
        if record.kind == "train" and record.step == self.stop_at:
            raise KeyboardInterrupt

    def close(self) -> None:
        """Nothing to do."""
