"""Language-model head and cross-entropy in one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from kernelkit.ops.cost import memory, rows
from kernelkit.spec import Cost, Op, Samples


class CrossEntropyLoss(Protocol):
    """Project hidden states to the vocabulary and take the cross-entropy with the labels.

    logits = hidden @ weight.T + bias, times ``logit_scale``, then softcap * tanh(logits / softcap), in the dtype of the
    hidden states; the loss is taken of logits.float(), as transformers' ``ForCausalLMLoss`` does. A kernel may keep
    more precision than that between the steps. ``z_loss_coef`` adds that multiple of logsumexp(logits)^2, divided as
    the loss itself is: PaLM's auxiliary loss (section 5 of Chowdhery et al., arXiv:2204.02311).
    """

    def __call__(
        self,
        hidden_states: Tensor,
        weight: Tensor,
        labels: Tensor,
        *,
        bias: Tensor | None = None,
        ignore_index: int = -100,
        num_items_in_batch: int | Tensor | None = None,
        softcap: float | None = None,
        logit_scale: float = 1.0,
        z_loss_coef: float = 0.0,
        return_logits: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Cross-entropy of ``labels`` under the head ``weight``, ``bias``.

        Args:
            hidden_states: [..., H], any floating dtype.
            weight: [V, H], of the same dtype.
            labels: [...] int64, already shifted: labels[i] is what hidden_states[i] predicts.
            bias: [V], or None.
            ignore_index: label of positions that do not count.
            num_items_in_batch: divisor of the summed loss (a count over all micro-batches and ranks). None divides by
                the number of labels that count; where that is zero the loss is nan, as in ``F.cross_entropy``.
            softcap: Gemma's ``final_logit_softcapping``, or None.
            logit_scale: factor of the logits (Cohere's ``logit_scale``; the inverse of Granite's ``logits_scaling``).
            z_loss_coef: factor of the squared logarithms of the softmax's normaliser, 1e-4 in PaLM; 0 for none.
            return_logits: the logits must be returned. Otherwise they are where the kernel has them anyway.

        Returns:
            The loss, float32 scalar, and the logits [..., V] in the dtype of the hidden states, or None.
        """


def samples(variant: str, dtype: torch.dtype, device: torch.device, generator: torch.Generator) -> Samples:
    """Each argument at work once: ignored labels, a count, bias, softcap and scale, z-loss; a batch, one row, none."""
    cases: tuple[tuple[tuple[int, ...], int, int, bool, dict[str, Any]], ...] = (
        ((6,), 16, 33, False, {}),
        ((2, 5), 32, 48, True, {}),
        ((5,), 16, 128, False, {}),
        ((9,), 16, 40, False, {"num_items_in_batch": 23}),
        ((4,), 16, 24, False, {"num_items_in_batch": torch.tensor(5, device=device)}),
        ((8,), 16, 48, True, {"softcap": 3.0, "logit_scale": 0.5, "ignore_index": 7}),
        ((3,), 16, 32, False, {"return_logits": True}),
        ((7,), 16, 40, True, {"softcap": 4.0, "z_loss_coef": 0.1}),
        ((5,), 16, 24, False, {"z_loss_coef": 0.05, "num_items_in_batch": 9}),
        ((1,), 16, 40, False, {}),
        ((0,), 16, 24, False, {"num_items_in_batch": 3}),
    )
    for shape, hidden, vocabulary, biased, keywords in cases:
        labels = torch.randint(vocabulary, shape, generator=generator, device=device)
        labels.view(-1)[1::3] = keywords.get("ignore_index", -100)
        weight = (torch.randn(vocabulary, hidden, generator=generator, device=device) * hidden**-0.5).to(dtype)
        bias = torch.randn(vocabulary, generator=generator, device=device).to(dtype) if biased else None
        states = torch.randn(*shape, hidden, generator=generator, device=device).to(dtype)
        yield (states, weight, labels), {"bias": bias, **keywords}


def sized_samples(
    variant: str, sizes: Mapping[str, int], dtype: torch.dtype, device: torch.device, generator: torch.Generator
) -> Samples:
    """64 positions of ``hidden_size``, one of ``ignored_every`` three of them ignored, and ``vocab_size`` tokens."""
    vocabulary, hidden = sizes["vocab_size"], sizes["hidden_size"]
    labels = torch.randint(vocabulary, rows(sizes), generator=generator, device=device)
    labels.view(-1)[:: sizes.get("ignored_every", 3)] = -100
    weight = (torch.randn(vocabulary, hidden, generator=generator, device=device) * hidden**-0.5).to(dtype)
    yield (torch.randn(*rows(sizes), hidden, generator=generator, device=device).to(dtype), weight, labels), {}


def cost(arguments: Mapping[str, Any], backward: bool) -> Cost:
    """The logits are one product, and backward two more; all positions count. Logits need not be in memory."""
    states, weight = arguments["hidden_states"], arguments["weight"]
    flops = 2 * states.numel() * weight.shape[0]
    return Cost((2 if backward else 1) * memory(states, weight), (3 if backward else 1) * flops)


OP = Op(
    name="cross_entropy_loss",
    variants={"standard": "transformers ForCausalLMLoss"},
    protocol=CrossEntropyLoss,
    preference=("triton", "compile", "liger", "eager"),
    samples=samples,
    sized_samples=sized_samples,
    long_rows={"length": 5, "hidden_size": 24, "vocab_size": 33_001},
    cost=cost,
    benchmarks=(
        {"batch": 8, "length": 2048, "hidden_size": 4096, "vocab_size": 151_936, "ignored_every": 2048},
        {"batch": 8, "length": 2048, "hidden_size": 1024, "vocab_size": 151_936, "ignored_every": 2048},
    ),
)
