"""Both language-model heads and the divergence between their predictions in one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, Protocol, get_args

import torch
from torch import Tensor

from kernelkit.errors import unknown
from kernelkit.ops.cost import memory, rows
from kernelkit.spec import Cost, Op, Samples

Divergence = Literal["forward_kl", "reverse_kl", "jsd"]


class DistillationOutput(NamedTuple):
    """What a distillation loss returns: float32 scalars, float64 where the student's hidden states are.

    Each is a sum over the positions that count, divided by the same divisor, and
    ``loss == alpha * cross_entropy + (1 - alpha) * divergence``.

    Attributes:
        loss: to be minimised; the only one with a gradient.
        divergence: of the student from the teacher, zero where they agree. With ``temperature_squared`` it has T^2.
        cross_entropy: of the labels under the student at temperature 1, whatever ``alpha`` is.
        agreement: positions at which the largest logit of both is that of the same token.
    """

    loss: Tensor
    divergence: Tensor
    cross_entropy: Tensor
    agreement: Tensor


class DistillationLoss(Protocol):
    """Project student and teacher to the vocabulary and measure how far the student is from the teacher.

    With P the teacher's and Q the student's softmax(logits / temperature), at each position:

    - ``forward_kl``: KL(P||Q) (Hinton et al., arXiv:1503.02531)
    - ``reverse_kl``: KL(Q||P)
    - ``jsd``: beta KL(P||M) + (1 - beta) KL(Q||M) with M = beta P + (1 - beta) Q; beta 0 is KL(P||Q) and beta 1 is
      KL(Q||P), as TRL's ``GKDTrainer.generalized_jsd_loss`` has it (Agarwal et al., arXiv:2306.13649)

    logits = hidden @ weight.T + bias, times the logit scale, then softcap * tanh(logits / softcap). Operands of sixteen
    bits are multiplied to float32 and the logits never rounded: near agreement the gradient is their small difference.
    """

    def __call__(
        self,
        student_hidden: Tensor,
        student_weight: Tensor,
        teacher_hidden: Tensor,
        teacher_weight: Tensor,
        labels: Tensor,
        *,
        divergence: Divergence = "forward_kl",
        beta: float = 0.5,
        temperature: float = 1.0,
        temperature_squared: bool = False,
        alpha: float = 0.0,
        student_bias: Tensor | None = None,
        teacher_bias: Tensor | None = None,
        student_softcap: float | None = None,
        teacher_softcap: float | None = None,
        student_logit_scale: float = 1.0,
        teacher_logit_scale: float = 1.0,
        ignore_index: int = -100,
        num_items_in_batch: int | Tensor | None = None,
    ) -> DistillationOutput:
        """The loss, and what it is made of. Gradients reach the student's hidden states, weight and bias alone.

        Args:
            student_hidden: [..., Hs], any floating dtype.
            student_weight: [V, Hs], of the same dtype.
            teacher_hidden: [..., Ht]; its dtype may differ from the student's.
            teacher_weight: [V, Ht], of the dtype of ``teacher_hidden``.
            labels: [...] int64, already shifted. They say which positions count, and give the cross-entropy.
            divergence: which one.
            beta: of ``jsd``, between 0 and 1; the others have none.
            temperature: of both distributions in the divergence.
            temperature_squared: multiply the divergence, and so its gradient, by T^2, which keeps the gradient's size
                the same at every temperature.
            alpha: share of the hard labels, between 0 and 1: alpha * cross-entropy + (1 - alpha) * divergence.
            student_bias, teacher_bias: [V], or None.
            student_softcap, teacher_softcap: Gemma's ``final_logit_softcapping``, or None.
            student_logit_scale, teacher_logit_scale: factor of the logits.
            ignore_index: label of positions that do not count.
            num_items_in_batch: divisor of the sums (a count over all micro-batches and ranks). None divides by the
                number of labels that count; where that is zero all four are nan, and the gradients zero.

        Raises:
            ValueError: for shapes that do not belong together, two vocabularies of different size, an unknown
                divergence, and a beta, alpha or temperature out of range.
        """


def check_arguments(
    student_hidden: Tensor,
    student_weight: Tensor,
    teacher_hidden: Tensor,
    teacher_weight: Tensor,
    labels: Tensor,
    *,
    divergence: str,
    beta: float,
    temperature: float,
    alpha: float,
) -> None:
    """Raise what the contract raises. Every kernel calls this; nothing here waits for a device."""
    if divergence not in get_args(Divergence):
        raise ValueError(unknown("divergence", divergence, get_args(Divergence)))
    for name, value in (("beta", beta), ("alpha", alpha)):
        if not 0 <= value <= 1:
            raise ValueError(f"{name} is {value}, and must be between 0 and 1")
    if not temperature > 0:
        raise ValueError(f"temperature is {temperature}, and must be positive")
    students, teachers = student_weight.shape[0], teacher_weight.shape[0]
    if students != teachers:
        raise ValueError(
            f"the student's vocabulary has {students} tokens and the teacher's {teachers}: "
            "cut both heads to the tokens that they share"
        )
    heads = (("student", student_hidden, student_weight), ("teacher", teacher_hidden, teacher_weight))
    for name, hidden, weight in heads:
        if hidden.shape != (*labels.shape, weight.shape[1]):
            raise ValueError(
                f"{name}_hidden is {[*hidden.shape]}, and with labels {[*labels.shape]} and {name}_weight "
                f"{[*weight.shape]} it must be {[*labels.shape, weight.shape[1]]}"
            )


def per_item(total: Tensor, counted: Tensor, num_items_in_batch: int | Tensor | None) -> Tensor:
    """``total`` divided as the contract says, ``counted`` being a bool for each label."""
    if isinstance(num_items_in_batch, Tensor):
        return total / num_items_in_batch.to(total.device)
    if num_items_in_batch is not None:
        return total / num_items_in_batch
    # As F.cross_entropy: nan without any label, but gradients of zero. Those of 0 / 0 would be nan.
    count = counted.sum()
    return torch.where(count > 0, total / count.clamp(min=1), torch.nan)


def samples(variant: str, dtype: torch.dtype, device: torch.device, generator: torch.Generator) -> Samples:
    """Each divergence and each argument at work once, hidden sizes that differ, ignored labels; one row, and none."""
    count = torch.tensor(5, device=device)
    cases: tuple[tuple[tuple[int, ...], int, bool, dict[str, Any]], ...] = (
        ((7,), 33, False, {}),
        ((2, 5), 48, False, {"divergence": "reverse_kl", "temperature": 2.0, "num_items_in_batch": 23}),
        ((9,), 40, False, {"divergence": "jsd", "temperature": 0.5, "num_items_in_batch": count}),
        ((6,), 24, False, {"divergence": "jsd", "beta": 0.1, "temperature": 3.0, "temperature_squared": True}),
        ((5,), 33, True, {"divergence": "jsd", "beta": 0.9, "alpha": 0.3}),
        ((8,), 48, True, {"student_softcap": 3.0, "teacher_softcap": 5.0, "alpha": 0.5, "temperature": 2.0}),
        ((3,), 32, False, {"student_logit_scale": 0.5, "teacher_logit_scale": 2.0, "ignore_index": 7}),
        ((1,), 40, False, {}),
        ((0,), 24, False, {"num_items_in_batch": 3}),
    )
    for shape, vocabulary, biased, keywords in cases:
        labels = torch.randint(vocabulary, shape, generator=generator, device=device)
        labels.view(-1)[1::3] = keywords.get("ignore_index", -100)
        heads = []
        for width in (16, 32):
            states = torch.randn(*shape, width, generator=generator, device=device).to(dtype)
            weight = (torch.randn(vocabulary, width, generator=generator, device=device) * width**-0.5).to(dtype)
            heads += [states, weight]
        if biased:
            biases = torch.randn(2, vocabulary, generator=generator, device=device).to(dtype)
            keywords = {"student_bias": biases[0], "teacher_bias": biases[1], **keywords}
        yield (*heads, labels), keywords


def sized_samples(
    variant: str, sizes: Mapping[str, Any], dtype: torch.dtype, device: torch.device, generator: torch.Generator
) -> Samples:
    """64 positions of ``hidden_size``, and ``teacher_hidden_size`` if it differs; labels as in cross_entropy_loss."""
    vocabulary, students = sizes["vocab_size"], sizes["hidden_size"]
    labels = torch.randint(vocabulary, rows(sizes), generator=generator, device=device)
    labels.view(-1)[:: sizes.get("ignored_every", 3)] = -100
    heads = []
    for width in (students, sizes.get("teacher_hidden_size", students)):
        weight = (torch.randn(vocabulary, width, generator=generator, device=device) * width**-0.5).to(dtype)
        heads += [torch.randn(*rows(sizes), width, generator=generator, device=device).to(dtype), weight]
    yield (*heads, labels), {"divergence": sizes.get("divergence", "forward_kl")}


def terms(arguments: Mapping[str, Any]) -> dict[int, Any]:
    """The cross-entropies that a divergence is a difference of, H(P,Q) + H(Q,P), added up as the loss is."""
    log_q, log_p = (_log_probabilities(arguments, name) for name in ("student", "teacher"))
    entropies = -(log_p.exp() * log_q + log_q.exp() * log_p).sum(-1)
    squared = arguments.get("temperature", 1.0) ** 2 if arguments.get("temperature_squared") else 1.0
    counted = arguments["labels"] != arguments.get("ignore_index", -100)
    total = torch.where(counted, entropies * squared, 0).sum()
    divergence = per_item(total, counted, arguments.get("num_items_in_batch")).nan_to_num()
    return {0: (1 - arguments.get("alpha", 0.0)) * divergence, 1: divergence}


def _log_probabilities(arguments: Mapping[str, Any], name: str) -> Tensor:
    logits = arguments[f"{name}_hidden"] @ arguments[f"{name}_weight"].T
    if (bias := arguments.get(f"{name}_bias")) is not None:
        logits = logits + bias
    logits, softcap = logits * arguments.get(f"{name}_logit_scale", 1.0), arguments.get(f"{name}_softcap")
    logits = logits if softcap is None else torch.tanh(logits / softcap) * softcap
    return torch.log_softmax(logits / arguments.get("temperature", 1.0), dim=-1)


def cost(arguments: Mapping[str, Any], backward: bool) -> Cost:
    """One product for the logits of each model, and two for the student's gradients; logits need not be in memory."""
    student = arguments["student_hidden"], arguments["student_weight"]
    teacher = arguments["teacher_hidden"], arguments["teacher_weight"]
    students, teachers = (2 * hidden.numel() * weight.shape[0] for hidden, weight in (student, teacher))
    moved = (2 if backward else 1) * memory(*student) + memory(*teacher)
    return Cost(moved, (3 if backward else 1) * students + teachers)


OP = Op(
    name="distillation_loss",
    variants={"standard": "TRL GKDTrainer.generalized_jsd_loss; Hinton et al., arXiv:1503.02531"},
    protocol=DistillationLoss,
    default="chunked",
    preference=("triton", "chunked", "eager", "liger"),
    samples=samples,
    sized_samples=sized_samples,
    terms=terms,
    counts=(3,),
    long_rows={"length": 5, "hidden_size": 24, "teacher_hidden_size": 40, "vocab_size": 33_001},
    cost=cost,
    benchmarks=tuple(
        {"batch": 4, "length": 2048, "hidden_size": 1024, "teacher_hidden_size": 2048, "vocab_size": 151_936}
        | {"ignored_every": 2048, "divergence": divergence}
        for divergence in ("forward_kl", "jsd")
    ),
)
