"""The teacher of a run: a model that predicts and is never changed."""

from __future__ import annotations

import hashlib

import torch
from torch.distributed.tensor import DTensor

from kernelkit.distill.data.batch import IGNORED, Batch
from kernelkit.distill.parallel import Ranks
from kernelkit.models.layers.causal_lm import CausalLM
from kernelkit.models.layers.teaching import Teaching


class Teacher:
    """Predicts in eval mode and without gradients; no optimizer sees its parameters.

    Args:
        model: on ``device``, or on another one, from which its predictions are brought over.
        device: the student's.
    """

    def __init__(self, model: CausalLM, device: torch.device) -> None:
        self.model = model.eval().requires_grad_(False)
        self.device = device
        self._head: Teaching | None = None

    # Not inference_mode: its tensors may not be saved for a backward, and the loss may save them.
    @torch.no_grad()
    def __call__(self, batch: Batch) -> Teaching:
        """What the student shall learn from the rows of ``batch``."""
        home = device_of(self.model)
        if home == self.device:
            return self.model.teach(**batch.to(self.device).context())
        teaching = self.model.teach(**batch.to(home).context())
        if self._head is None:
            # It never changes, so that it moves once.
            self._head = teaching.to(self.device)
        return self._head._replace(hidden_states=teaching.hidden_states.to(self.device))

    @torch.no_grad()
    def cross_entropy(self, teaching: Teaching, labels: torch.Tensor) -> torch.Tensor:
        """Sum of the teacher's own cross-entropy over the labels [B, S] that count, float32 scalar."""
        home = device_of(self.model)
        hidden_states, weight, bias = teaching.to(home)
        targets = torch.nn.functional.pad(labels, (0, 1), value=IGNORED)[..., 1:].to(home)
        loss, _ = self.model.cross_entropy_loss(hidden_states, weight, targets, bias=bias, num_items_in_batch=1)
        return loss.to(self.device)

    @torch.no_grad()
    def fingerprint(self, ranks: Ranks) -> str:
        """What the weights are: the same on every device, and for any number of ranks."""
        # Bits are added up as whole numbers, whose sum does not depend on the order.
        sums = [_bits(weight, ranks).sum(dtype=torch.int64) for weight in self.model.parameters()]
        return hashlib.blake2b(ranks.sum(torch.stack(sums)).cpu().numpy().tobytes(), digest_size=8).hexdigest()


def _bits(weight: torch.Tensor, ranks: Ranks) -> torch.Tensor:
    """This rank's part of a weight as integers; of a weight that every rank has, the first one's."""
    if isinstance(weight, DTensor):
        weight = weight.to_local()
    elif not ranks.is_first:
        weight = weight[:0]
    return weight.view({2: torch.int16, 4: torch.int32}[weight.element_size()])


def device_of(model: torch.nn.Module) -> torch.device:
    """Where the weights of ``model`` are."""
    return next(model.parameters()).device
