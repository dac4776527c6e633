"""Head and loss together, forward and backward in bfloat16, every implementation that runs here beside the others.

Prints the median time and the peak memory over the inputs and the returned gradients. On a CPU it runs a small shape,
which says nothing about speed.

    python benchmarks/losses.py [--repeats 10]
"""

from __future__ import annotations

import argparse
import gc
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from kernelkit import Hardware, default_registry

VOCABULARY = 151_936
SLOW = {"eager"}
"""Not measured: it holds all logits at once, which for the JSD takes 57 GiB."""


def head(tokens: int, width: int, vocabulary: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Hidden states and weight, with logits of unit variance."""
    states = torch.randn(tokens, width, device=device)
    weight = torch.randn(vocabulary, width, device=device) * width**-0.5
    return states.bfloat16(), weight.bfloat16()


def measure(step: Callable[[], Any], device: torch.device, repeats: int) -> tuple[float, float]:
    """Median milliseconds, and the peak MiB beyond what is there before."""
    cuda = device.type == "cuda"
    synchronize: Callable[[], None] = torch.cuda.synchronize if cuda else lambda: None
    for _ in range(2):
        step()
    gc.collect()
    before = torch.cuda.memory_allocated() if cuda else 0
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    times = []
    for _ in range(repeats):
        synchronize()
        began = time.perf_counter()
        step()
        synchronize()
        times.append(1000 * (time.perf_counter() - began))
    peak = (torch.cuda.max_memory_allocated() - before) / 2**20 if cuda else float("nan")
    return statistics.median(times), peak


def kernels(op: str, device: torch.device) -> Iterator[tuple[str, Any]]:
    """The implementations of ``op`` that run here."""
    hardware = Hardware.detect(device.type)
    for spec in default_registry().list(op):
        if spec.name not in SLOW and spec.problem(hardware, dtype="bfloat16") is None:
            yield spec.name, spec.build()


def distillation(tokens: int, vocabulary: int, device: torch.device, divergence: str) -> tuple[Any, list[Tensor]]:
    """A step with a student of width 1024 and a teacher of 2048, and what it returns the gradients of."""
    student, teacher = (head(tokens, width, vocabulary, device) for width in (1024, 2048))
    labels = torch.randint(vocabulary, (tokens,), device=device)
    trained = [tensor.requires_grad_() for tensor in student]
    return lambda loss: torch.autograd.grad(
        loss(*student, *teacher, labels, divergence=divergence).loss, trained
    ), trained


def cross_entropy(tokens: int, width: int, vocabulary: int, device: torch.device) -> tuple[Any, list[Tensor]]:
    """The same without a teacher."""
    trained = [tensor.requires_grad_() for tensor in head(tokens, width, vocabulary, device)]
    labels = torch.randint(vocabulary, (tokens,), device=device)
    return lambda loss: torch.autograd.grad(loss(*trained, labels)[0], trained), trained


def results(repeats: int) -> Iterator[tuple[str, ...]]:
    """A row for each op, shape and implementation."""
    device = torch.accelerator.current_accelerator() or torch.device("cpu")
    factor, vocabulary = (1, VOCABULARY) if device.type != "cpu" else (256, 512)
    for op, label, make in (
        (
            "distillation_loss",
            "forward_kl, 1024 and 2048",
            partial(distillation, 8192 // factor, divergence="forward_kl"),
        ),
        ("distillation_loss", "jsd, 1024 and 2048", partial(distillation, 8192 // factor, divergence="jsd")),
        ("cross_entropy_loss", "1024", partial(cross_entropy, 16384 // factor, 1024)),
        ("cross_entropy_loss", "4096", partial(cross_entropy, 16384 // factor, 4096 // (1 if factor == 1 else 4))),
    ):
        step, trained = make(vocabulary=vocabulary, device=device)
        returned = sum(tensor.nbytes for tensor in trained) / 2**20
        for name, loss in kernels(op, device):
            ms, peak = measure(partial(step, loss), device, repeats)
            yield op, label, name, f"{ms:.1f}", f"{peak - returned:,.0f}"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=10)
    table = Table("op", "case and width", "implementation", "ms", "MiB")
    for row in results(parser.parse_args().repeats):
        table.add_row(*row)
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
