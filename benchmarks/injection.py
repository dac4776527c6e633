"""A training step of stock transformers, patched by Liger, and with kernels injected: forward and backward.

Each case runs in a process of its own, since Liger's patch stays in one. It measures as ``step.py`` does.

    python benchmarks/injection.py [--steps 10]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from typing import Any

import torch
import transformers
from rich.console import Console
from rich.table import Table
from step import measure, shape

from kernelkit import inject

CASES: dict[str, Any] = {
    "stock": None,
    "patched by Liger": "patch",
    "injected, what Liger patches": dict.fromkeys(
        ("rms_norm", "rotary_pos_emb", "swiglu_mlp", "cross_entropy_loss"), "liger"
    ),
    "injected, preset: liger": {"preset": "liger"},
    "injected, preset: compile": {"preset": "compile"},
}
"""Label and ops; None for stock transformers."""


def run(label: str, steps: int) -> tuple[float, float, float, float]:
    """Tokens a second, peak GiB, milliseconds and loss of one case."""
    device = torch.accelerator.current_accelerator() or torch.device("cpu")
    ops, config = CASES[label], shape("qwen3-0.6b", small=device.type == "cpu")
    if ops == "patch":
        from liger_kernel.transformers import apply_liger_kernel_to_qwen3

        apply_liger_kernel_to_qwen3()
    torch.manual_seed(0)
    with torch.device(device):
        model: Any = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).train()
    if isinstance(ops, dict):
        inject(model, ops)
    rows = torch.randint(config.vocab_size, (8, 2048) if device.type != "cpu" else (2, 64), device=device)
    seconds, peak, loss = measure(model, rows, steps)
    return rows.numel() / seconds, peak, seconds * 1000, loss


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--case", choices=CASES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.case:
        print(json.dumps(run(arguments.case, arguments.steps)))
        return
    table = Table("Qwen3-0.6B", "tokens/s", "peak GiB", "ms", "loss")
    for label in CASES:
        command = [sys.executable, __file__, "--case", label, "--steps", str(arguments.steps)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            table.add_row(label, "does not run here", "", "", "")
            print(done.stderr.splitlines()[-1])
            continue
        speed, peak, milliseconds, loss = json.loads(done.stdout.splitlines()[-1])
        table.add_row(label, f"{speed:,.0f}", f"{peak:.1f}", f"{milliseconds:.1f}", f"{loss:.4f}")
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
