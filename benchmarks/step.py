"""A training step of stock transformers beside ours with several configs, in one process on one GPU.

Forward and backward in bfloat16 without an optimizer, on random tokens. Prints tokens a second and peak memory as the
median of the steps after the warm-up. On a CPU it runs a small shape, which says nothing about speed.

    python benchmarks/step.py [--model qwen3-0.6b | qwen3-moe] [--steps 10]
"""

from __future__ import annotations

import argparse
import gc
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
import transformers
from pydantic import ValidationError
from rich.console import Console
from rich.table import Table

from kernelkit import build_model

# Liger's experts tune themselves for minutes at their first call, so torch's stand in.
CASES: tuple[tuple[str, Any, bool], ...] = (
    ("stock", None, False),
    ("default", {}, False),
    ("preset: torch", {"preset": "torch"}, False),
    ("preset: compile", {"preset": "compile"}, False),
    ("preset: triton", {"preset": "triton"}, False),
    ("preset: liger", {"preset": "liger", "moe_experts": "torch", "allow_unused": True}, False),
    ("stock, compiled", None, True),
    ("default, compiled", {}, True),
    ("preset: liger, compiled", {"preset": "liger", "moe_experts": "torch", "allow_unused": True}, True),
)
"""Label, ops (None for stock transformers), and whether the whole model is compiled."""


def shape(name: str, small: bool) -> transformers.PreTrainedConfig:
    """Qwen3-0.6B, or Qwen3-30B-A3B cut to 8 layers; on a CPU something that fits."""
    if small:
        sizes = {"vocab_size": 512, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "head_dim": 16}
        sizes |= {"intermediate_size": 128, "num_key_value_heads": 2}
    elif name == "qwen3-0.6b":
        sizes = {"vocab_size": 151936, "hidden_size": 1024, "num_hidden_layers": 28, "num_attention_heads": 16}
        sizes |= {"head_dim": 128, "intermediate_size": 3072, "num_key_value_heads": 8, "tie_word_embeddings": True}
    else:
        sizes = {"vocab_size": 151936, "hidden_size": 2048, "num_hidden_layers": 8, "num_attention_heads": 32}
        sizes |= {"head_dim": 128, "num_key_value_heads": 4, "moe_intermediate_size": 768, "num_experts": 128}
        sizes |= {"num_experts_per_tok": 8, "norm_topk_prob": True}
    kind = transformers.Qwen3Config if name == "qwen3-0.6b" else transformers.Qwen3MoeConfig
    return kind(**sizes)


def build(config: transformers.PreTrainedConfig, ops: Any, compiled: bool, device: torch.device) -> Any:
    """Stock transformers' model, or ours with ``ops``."""
    torch.manual_seed(0)
    if ops is None:
        with torch.device(device):
            model: Any = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    else:
        model = build_model(config, kernels=ops, dtype=torch.bfloat16, device=device, compiled=compiled)
    model.train()
    return torch.compile(model, fullgraph=ops is not None) if compiled else model


def measure(model: Any, rows: torch.Tensor, steps: int) -> tuple[float, float, float]:
    """Median seconds of a step, peak GiB, and the loss."""

    def step() -> torch.Tensor:
        loss = model(input_ids=rows, labels=rows, use_cache=False).loss
        loss.backward()
        for parameter in model.parameters():
            parameter.grad = None
        return loss.detach()  # type: ignore[no-any-return]  # an HF output has no types

    synchronize: Callable[[], None] = torch.cuda.synchronize if rows.is_cuda else lambda: None
    for _ in range(3):
        loss = step()
    synchronize()
    if rows.is_cuda:
        torch.cuda.reset_peak_memory_stats()
    seconds = []
    for _ in range(steps):
        began = time.perf_counter()
        step()
        synchronize()
        seconds.append(time.perf_counter() - began)
    peak = torch.cuda.max_memory_allocated() / 2**30 if rows.is_cuda else float("nan")
    return statistics.median(seconds), peak, loss.item()


def results(name: str, steps: int) -> Iterator[tuple[str, ...]]:
    """A row for each config."""
    device = torch.accelerator.current_accelerator() or torch.device("cpu")
    config = shape(name, small=device.type == "cpu")
    batch = (8, 2048) if device.type != "cpu" else (2, 64)
    rows = torch.randint(config.vocab_size, batch, device=device)
    for label, ops, compiled in CASES:
        torch.compiler.reset()
        gc.collect()
        torch.cuda.empty_cache()
        try:
            model = build(config, ops, compiled, device)
        except ValidationError:
            yield label, "does not run here", "", "", ""
            continue
        seconds, peak, loss = measure(model, rows, steps)
        yield label, f"{rows.numel() / seconds:,.0f}", f"{peak:.1f}", f"{seconds * 1000:.1f}", f"{loss:.4f}"
        del model


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=("qwen3-0.6b", "qwen3-moe"), default="qwen3-0.6b")
    parser.add_argument("--steps", type=int, default=10)
    arguments = parser.parse_args()
    table = Table("config", "tokens/s", "peak GiB", "ms", "loss", title=arguments.model)
    for row in results(arguments.model, arguments.steps):
        table.add_row(*row)
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
