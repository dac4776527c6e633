"""Train a small Qwen3 beside a teacher of the same class that has other kernels.

Both live in one process. The teacher runs the references; the student runs what PyTorch fuses. The text is the source
of the Python standard library, read as bytes, so there is nothing to download. The teacher is not trained and teaches
nothing yet: it stands for a second model, and its validation loss must be the same to the bit after the student's
training as before.

Exits with 1 where the student's validation loss falls by less than a nat, or where the teacher's moves.

    python examples/teacher_student.py [--steps 100]
"""

from __future__ import annotations

import argparse
import sys
import sysconfig
import time
from pathlib import Path

import torch
from torch import Tensor
from transformers import Qwen3Config

from kernelkit import KernelContainer, OpsConfig, build_model, kernel_report
from kernelkit.models.layers.causal_lm import CausalLM

LENGTH = 128
"""Bytes in one row of a batch."""


def read_text(most: int = 4_000_000) -> Tensor:
    """The standard library's source as bytes, [N] int64, the first ``most`` of them."""
    files = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    text = b"\n".join(file.read_bytes() for file in files)[:most]
    return torch.frombuffer(bytearray(text), dtype=torch.uint8).long()


def batch(text: Tensor, size: int, generator: torch.Generator, device: torch.device) -> Tensor:
    """Random rows of ``text`` [N], as [size, LENGTH]."""
    starts = torch.randint(len(text) - LENGTH, (size, 1), generator=generator)
    return text[starts + torch.arange(LENGTH)].to(device)


def small_qwen3(hidden_size: int, layers: int) -> Qwen3Config:
    """A Qwen3 over bytes."""
    return Qwen3Config(
        vocab_size=256,
        hidden_size=hidden_size,
        intermediate_size=3 * hidden_size,
        num_hidden_layers=layers,
        num_attention_heads=hidden_size // 32,
        num_key_value_heads=hidden_size // 64,
        head_dim=32,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=None,
    )


@torch.no_grad()
def validation_loss(model: CausalLM, text: Tensor, device: torch.device) -> float:
    """Mean loss on the same rows every time, in nats for each byte."""
    rows = batch(text, 32, torch.Generator().manual_seed(1), device)
    was_training = model.training
    loss = model.eval()(rows, labels=rows).loss
    model.train(was_training)
    return loss.item()


def train(student: CausalLM, text: Tensor, steps: int, device: torch.device) -> None:
    """AdamW with a short warm-up."""
    optimizer = torch.optim.AdamW(student.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=0.1, total_iters=20)
    generator = torch.Generator().manual_seed(0)
    began = time.perf_counter()
    for step in range(1, steps + 1):
        rows = batch(text, 16, generator, device)
        loss = student(rows, labels=rows).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        if step % 25 == 0:
            print(f"step {step:4d}   loss {loss.item():.3f}   {time.perf_counter() - began:.1f} s")


def main() -> None:
    """Build both, train one, and check both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=100)
    steps = parser.parse_args().steps
    device = torch.accelerator.current_accelerator() or torch.device("cpu")
    torch.manual_seed(0)

    references = KernelContainer.from_config(OpsConfig(preset="eager"), device=device, training=False)
    fused = KernelContainer.from_config(OpsConfig(attention="sdpa", rms_norm="torch"), device=device)
    teacher = build_model(small_qwen3(192, layers=3), kernels=references, device=device).eval()
    student = build_model(small_qwen3(128, layers=2), kernels=fused, device=device).train()
    print(f"Teacher. {kernel_report(teacher)}\n\nStudent. {kernel_report(student)}\n")

    text = read_text()
    training, validation = text[: -len(text) // 20], text[-len(text) // 20 :]
    teacher_before, before = (validation_loss(model, validation, device) for model in (teacher, student))
    train(student, training, steps, device)
    teacher_after, after = (validation_loss(model, validation, device) for model in (teacher, student))

    print(f"\nstudent: validation loss {before:.3f} -> {after:.3f}, {before - after:.3f} nats down")
    print(f"teacher: validation loss {teacher_before:.3f} -> {teacher_after:.3f}")
    if before - after < 1.0:
        sys.exit("The student's validation loss fell by less than one nat.")
    if teacher_after != teacher_before:
        sys.exit("The teacher changed while the student was trained.")


if __name__ == "__main__":
    main()
