"""Whole training steps, forward and backward in bfloat16 without an optimizer, each case in a process of its own.

As a command it is one case: ``python -m kernelkit.bench.steps MODELS CASE``. It prints what it measured as JSON.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator
from typing import Any

import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn

from kernelkit.bench.records import Record, Run
from kernelkit.bench.step_cases import DISTILLED, STEP, Models, StepCase, shapes, step_cases
from kernelkit.hardware import Hardware
from kernelkit.models import build_model, inject
from kernelkit.models.layers.teaching import Distillation

WARM_UP, ROUNDS, STEPS = 1, 3, 4
"""Rounds that do not count, rounds that do, and the steps of each."""

LIMIT = 300.0
"""Seconds for one case, its process and all compilation included."""

Step = Callable[[], Tensor]
"""The forward pass: a loss."""


def measure_steps(
    models: Models, run: Run, hardware: Hardware, *, names: Collection[str] = (), limit: float = LIMIT
) -> Iterator[Record]:
    """A record for each case of ``models``, or of those with these ``names``; one with an error for each that fails."""
    for case in step_cases(models, hardware):
        if not names or case.name in names:
            _, (batch, length) = shapes(models, small=hardware.device_type != "cuda")
            facts = {"op": STEP, "variant": models, "impl": case.name, "pass": "fwd+bwd"}
            yield run.record(**facts, shape=f"batch={batch} length={length}", **_apart(models, case, limit))


def _apart(models: Models, case: StepCase, limit: float) -> dict[str, Any]:
    """What a process of its own measures: neither its memory nor what it compiled or patched is another's."""
    command = [sys.executable, "-m", "kernelkit.bench.steps", models, case.name]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit, check=False)
    except subprocess.TimeoutExpired:
        return {"error": f"took more than {limit:g} s"}
    if done.returncode:
        return {"error": (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1][:300]}
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def measure(models: Models, case: StepCase, device: torch.device) -> dict[str, Any]:
    """Median time of a step, peak memory of all that the device holds, and the loss, by which cases can be compared.

    Steps follow one another as in training, and nobody waits for the device but at the end of a round.
    """
    configs, batch = shapes(models, small=device.type != "cuda")
    torch.manual_seed(0)
    rows = torch.randint(configs[-1].vocab_size, batch, device=device)
    model, step = _prepared(models, case, configs, rows)
    seconds = []
    for number in range(WARM_UP + ROUNDS):
        if number == WARM_UP and device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        began = time.perf_counter()
        for _ in range(STEPS):
            loss = step()
            loss.backward()  # type: ignore[no-untyped-call]  # untyped in torch
            model.zero_grad()
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append((time.perf_counter() - began) / STEPS)
    took = statistics.median(seconds[WARM_UP:])
    peak = torch.cuda.max_memory_allocated() / 2**20 if device.type == "cuda" else None
    speed = {"tokens_per_s": rows.numel() / took, "loss": loss.item()}
    return {"ms": took * 1000, "how": "clock", "peak_mib": peak, **speed}


def _prepared(models: Models, case: StepCase, configs: list[Any], rows: Tensor) -> tuple[nn.Module, Step]:
    """The model that is trained, and its forward pass."""
    if case.patched:
        from liger_kernel.transformers import apply_liger_kernel_to_qwen3, apply_liger_kernel_to_qwen3_moe

        (apply_liger_kernel_to_qwen3_moe if models == "qwen3-moe" else apply_liger_kernel_to_qwen3)()
    if models != DISTILLED:
        model = _model(case, configs[0], rows.device)
        called = torch.compile(model, fullgraph=case.how == "ours") if case.compiled else model
        return model, lambda: called(input_ids=rows, labels=rows, use_cache=False).loss
    return _distillation(case, configs, rows) if case.how == "ours" else _stock_distillation(case, configs, rows)


def _model(case: StepCase, config: Any, device: torch.device, *, ops: Any = None, **purpose: bool) -> Any:
    """Stock, injected or ours; for training unless its purpose says otherwise."""
    if case.how == "ours":
        kernels = case.ops if ops is None else ops
        settings: Any = {"dtype": torch.bfloat16, "device": device, "compiled": case.compiled, **purpose}
        return build_model(config, kernels=kernels, **settings).train(purpose.get("training", True))
    with torch.device(device):
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).train()
    return inject(model, case.ops) if case.how == "injected" else model


def _distillation(case: StepCase, configs: list[Any], rows: Tensor) -> tuple[nn.Module, Step]:
    """Ours: the teacher hands hidden states and head to the student's loss, as ``kernelkit distill`` has it."""
    teacher = _model(case, configs[0], rows.device, ops=case.teacher, training=False).requires_grad_(False)
    student = _model(case, configs[1], rows.device, distilled=True)
    if case.compiled:
        teacher.model.compile(fullgraph=True)
        student.model.compile(fullgraph=True)
    settings = {"distillation": Distillation("jsd"), "labels": rows, "use_cache": False}

    def step() -> Tensor:
        with torch.no_grad():
            teaching = teacher.teach(input_ids=rows)
        loss: Tensor = student(input_ids=rows, teaching=teaching, **settings).loss
        return loss

    return student, step


def _stock_distillation(case: StepCase, configs: list[Any], rows: Tensor) -> tuple[nn.Module, Step]:
    """Stock models and a loss of both logits; where Liger has patched them, Liger's chunked loss of both heads."""
    teacher, student = (_model(case, config, rows.device) for config in configs)
    teacher.eval().requires_grad_(False)
    loss = _liger_jsd if case.patched else _jsd
    if case.compiled:
        teacher.model.compile()
        student.model.compile()
        loss = loss if case.patched else torch.compile(loss)

    def step() -> Tensor:
        with torch.no_grad():
            taught = teacher.model(input_ids=rows, use_cache=False).last_hidden_state
        hidden = student.model(input_ids=rows, use_cache=False).last_hidden_state
        return loss(hidden[:, :-1], student.lm_head.weight, taught[:, :-1], teacher.lm_head.weight, rows[:, 1:])

    return student, step


def _jsd(hidden: Tensor, weight: Tensor, taught: Tensor, teacher_weight: Tensor, labels: Tensor) -> Tensor:
    """JSD of both models' logits at beta 0.5, as TRL's ``GKDTrainer.generalized_jsd_loss`` has it, in float32."""
    student, teacher = ((states @ head.t()).float() for states, head in ((hidden, weight), (taught, teacher_weight)))
    student, teacher = student.log_softmax(-1), teacher.log_softmax(-1)
    mixture = torch.logaddexp(student, teacher) - torch.log(student.new_tensor(2.0))
    both = [F.kl_div(mixture, each, reduction="sum", log_target=True) for each in (student, teacher)]
    return (both[0] + both[1]) / 2 / labels.numel()


def _liger_jsd(hidden: Tensor, weight: Tensor, taught: Tensor, teacher_weight: Tensor, labels: Tensor) -> Tensor:
    from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss

    loss = LigerFusedLinearJSDLoss(weight_hard_loss=0.0, weight_soft_loss=1.0)
    student, teacher = (each.flatten(0, 1) for each in (hidden, taught))
    value: Tensor = loss(student, weight, teacher, teacher_weight, labels.flatten())
    return value


def main(models: Any, name: str) -> None:
    """Measure one case and print it."""
    hardware = Hardware.detect()
    (case,) = (case for case in step_cases(models, hardware) if case.name == name)
    print(json.dumps(measure(models, case, torch.device(hardware.device_type))))


if __name__ == "__main__":
    main(*sys.argv[1:])
