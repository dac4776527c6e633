"""Calls of the op ``distillation_loss``, and its mathematics once more, by hand, for its tests."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from kernelkit.ops.distillation_loss import DistillationOutput
from kernelkit.registry import default_registry
from tests.kernels.judge import INTERPRETED

BY_CHUNKS = "triton" if INTERPRETED else "chunked"
"""The kernel with gradients in the forward that is tested; test_interpreted.py runs these tests for the other one."""

DIVERGENCES = (
    {"divergence": "forward_kl"},
    {"divergence": "reverse_kl"},
    {"divergence": "jsd", "beta": 0.0},
    {"divergence": "jsd", "beta": 0.1},
    {"divergence": "jsd"},
    {"divergence": "jsd", "beta": 1.0},
)
MIXES = (
    {},
    {"temperature": 2.0},
    {"temperature": 0.5, "temperature_squared": True},
    {"alpha": 0.3},
    {"temperature": 3.0, "temperature_squared": True, "alpha": 0.7},
    {"alpha": 1.0},
)
CAPS = {"student_softcap": 2.0, "teacher_softcap": 4.0, "student_logit_scale": 0.5, "teacher_logit_scale": 1.5}


@dataclass
class Case:
    """One call: ``trained`` and ``teacher`` by argument name, labels, and the rest."""

    trained: dict[str, Tensor]
    teacher: dict[str, Tensor]
    labels: Tensor
    settings: dict[str, Any] = field(default_factory=dict)

    def __call__(self, kernel: Any, **settings: Any) -> DistillationOutput:
        return kernel(**self.trained, **self.teacher, labels=self.labels, **{**self.settings, **settings})

    def run(self, kernel: Any, **settings: Any) -> tuple[DistillationOutput, dict[str, Tensor]]:
        """Outputs and gradients."""
        output = self(kernel, **settings)
        gradients = torch.autograd.grad(output.loss, [*self.trained.values()])
        return output, dict(zip(self.trained, gradients, strict=True))

    def to(self, dtype: torch.dtype) -> Case:
        """The same values in another dtype, fresh leaves."""
        trained = {name: tensor.detach().to(dtype).requires_grad_() for name, tensor in self.trained.items()}
        teacher = {name: tensor.to(dtype) for name, tensor in self.teacher.items()}
        return Case(trained, teacher, self.labels, self.settings)


def case(
    shape: tuple[int, ...] = (7,),
    vocabulary: int = 19,
    widths: tuple[int, int] = (5, 8),
    *,
    biased: bool = False,
    dtype: torch.dtype = torch.float64,
    device: str = "cpu",
    **settings: Any,
) -> Case:
    """Random hidden states and heads; every third label is ignored."""
    generator = torch.Generator().manual_seed(0)

    def random(*size: int, factor: float = 1.0) -> Tensor:
        return (torch.randn(size, generator=generator, dtype=torch.float64) * factor).to(device, dtype)

    labels = torch.randint(vocabulary, shape, generator=generator)
    labels.view(-1)[::3] = -100
    heads: list[dict[str, Tensor]] = []
    for name, width in zip(("student", "teacher"), widths, strict=True):
        head = {
            f"{name}_hidden": random(*shape, width),
            f"{name}_weight": random(vocabulary, width, factor=2 / width**0.5),
        }
        heads.append({**head, f"{name}_bias": random(vocabulary)} if biased else head)
    trained = {name: tensor.requires_grad_() for name, tensor in heads[0].items()}
    return Case(trained, heads[1], labels.to(device), settings)


def agreeing(**settings: Any) -> Case:
    """A student that is its own teacher."""
    of = case(widths=(5, 5), **settings)
    of.teacher = {name.replace("student", "teacher"): tensor.detach() for name, tensor in of.trained.items()}
    return of


def every_mix() -> list[Case]:
    """Divergences x temperatures and shares, half with softcaps, scales and biases, in shapes [T] and [B, S]."""
    cases = []
    for number, (divergence, mix) in enumerate(itertools.product(DIVERGENCES, MIXES)):
        shape = ((7,), (2, 5))[number % 2]
        extra: dict[str, Any] = {"biased": True, **CAPS} if number % 4 in (1, 2) else {}
        cases.append(case(shape, **extra, **divergence, **mix))
    return cases


def identifier(of: Case) -> str:
    return "-".join(f"{value:g}" if isinstance(value, float) else str(value) for value in of.settings.values())


def kernel(name: str, **options: Any) -> Any:
    spec = default_registry().get("distillation_loss", "standard", name)
    return spec.build(spec.options(**options) if spec.options else None)


def by_hand(of: Case) -> DistillationOutput:
    """The contract, position by position, in probabilities instead of their logarithms."""
    settings = of.settings
    width = {name: tensor.shape[-1] for name, tensor in {**of.trained, **of.teacher}.items()}
    positions = zip(
        of.trained["student_hidden"].reshape(-1, width["student_hidden"]),
        of.teacher["teacher_hidden"].reshape(-1, width["teacher_hidden"]),
        of.labels.flatten().tolist(),
        strict=True,
    )
    temperature = settings.get("temperature", 1.0)
    soft, hard, same = [], [], []
    for student_state, teacher_state, label in positions:
        if label == settings.get("ignore_index", -100):
            continue
        student = _logits(of, "student", of.trained, student_state)
        teacher = _logits(of, "teacher", of.teacher, teacher_state)
        p, q = (_softmax(logits / temperature) for logits in (teacher, student))
        soft.append(_divergence(p, q, **settings) * (temperature**2 if settings.get("temperature_squared") else 1))
        hard.append(-_softmax(student)[label].log())
        same.append(float(student.argmax() == teacher.argmax()))
    alpha, count = settings.get("alpha", 0.0), settings.get("num_items_in_batch", len(soft))
    soft, hard = sum(soft) / count, sum(hard) / count
    return DistillationOutput(alpha * hard + (1 - alpha) * soft, soft, hard, torch.tensor(sum(same) / count).to(soft))


def _logits(of: Case, name: str, tensors: dict[str, Tensor], state: Tensor) -> Tensor:
    logits = (tensors[f"{name}_weight"] * state).sum(-1) + tensors.get(f"{name}_bias", 0)
    logits = logits * of.settings.get(f"{name}_logit_scale", 1.0)
    cap = of.settings.get(f"{name}_softcap")
    return logits if cap is None else cap * (logits / cap).tanh()


def _softmax(logits: Tensor) -> Tensor:
    return logits.exp() / logits.exp().sum()


def _divergence(p: Tensor, q: Tensor, divergence: str = "forward_kl", beta: float = 0.5, **_: Any) -> Tensor:
    if divergence == "forward_kl":
        return (p * (p / q).log()).sum()
    if divergence == "reverse_kl":
        return (q * (q / p).log()).sum()
    if beta in (0, 1):
        return _divergence(p, q, "reverse_kl" if beta else "forward_kl")
    m = beta * p + (1 - beta) * q
    return beta * (p * (p / m).log()).sum() + (1 - beta) * (q * (q / m).log()).sum()
