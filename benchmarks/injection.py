"""A training step of one stock model, with kernels injected and ejected, beside one that Liger has patched.

Forward and backward of the Qwen3-0.6B shape, measured as in ``step.py``. Liger's patch stays in a process of its own.

    python benchmarks/injection.py [--steps 10]
"""

from __future__ import annotations

import argparse
import gc
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

import torch
import transformers
from liger_kernel.transformers import apply_liger_kernel_to_qwen3
from pydantic import ValidationError
from step import measure, shape

from kernelkit.models import injected

CASES: Mapping[str, Any] = {
    "injected, preset: liger": {"preset": "liger"},
    "injected, preset: triton": {"preset": "triton"},
    "injected, preset: compile": {"preset": "compile"},
}


def run(label: str, model: Any, rows: torch.Tensor, steps: int) -> None:
    """Print tokens a second, peak GiB, milliseconds and loss of one case."""
    seconds, peak, loss = measure(model, rows, steps)
    figures = f"{rows.numel() / seconds:8,.0f} tokens/s {peak:6.1f} GiB {seconds * 1000:7.1f} ms   loss {loss:.4f}"
    print(f"{label:28}{figures}", flush=True)
    gc.collect()
    torch.cuda.empty_cache()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--patched", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.patched:
        apply_liger_kernel_to_qwen3()
    else:
        # Before anything here takes memory of the device.
        subprocess.run([sys.executable, __file__, "--patched", "--steps", str(arguments.steps)], check=False)
    device = torch.accelerator.current_accelerator() or torch.device("cpu")
    config = shape("qwen3-0.6b", small=device.type == "cpu")
    torch.manual_seed(0)
    with torch.device(device):
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).train()
    rows = torch.randint(config.vocab_size, (8, 2048) if device.type != "cpu" else (2, 64), device=device)
    run("patched by Liger" if arguments.patched else "stock", model, rows, arguments.steps)
    if arguments.patched:
        return
    for label, ops in CASES.items():
        try:
            with injected(model, ops):
                run(label, model, rows, arguments.steps)
        except ValidationError:
            print(f"{label:28}does not run here", flush=True)


if __name__ == "__main__":
    main()
