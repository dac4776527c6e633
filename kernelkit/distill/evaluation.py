"""How well a model predicts the validation data, and how far it is from the teacher."""

from __future__ import annotations

from itertools import islice

import torch

from kernelkit.distill.data.batch import Batch
from kernelkit.distill.data.loader import Loader
from kernelkit.distill.parallel import Ranks
from kernelkit.distill.teacher import Teacher
from kernelkit.models.layers.causal_lm import CausalLM
from kernelkit.models.layers.teaching import Distillation


class Evaluation:
    """Means over the tokens of the validation data, the same for every model that is looked at.

    Args:
        loader: the validation data.
        batches: how many batches of them; None for all.
        truncate: compare the tokens that student and teacher both have.
        ranks: the processes of the run.
    """

    def __init__(self, loader: Loader, batches: int | None, *, truncate: bool, ranks: Ranks) -> None:
        self.loader, self.batches, self.ranks = loader, batches, ranks
        # Whatever a student is trained by, this is what students are compared by.
        self.kl = Distillation("forward_kl", truncate=truncate)

    @torch.no_grad()
    def __call__(self, model: CausalLM, teacher: Teacher | None, device: torch.device) -> dict[str, float]:
        """``cross_entropy`` of the labels; with a teacher also ``kl``, ``agreement`` and ``teacher_cross_entropy``.

        In nats for each token; KL(teacher||student) at temperature 1, zero where both agree.
        """
        was_training = model.training
        model.eval()
        sums, count = torch.zeros(4, dtype=torch.float64, device=device), 0
        for step in islice(self.loader.epoch(), self.batches):
            count += step.num_targets
            for batch in step.micro_batches:
                sums += self._sums(model, teacher, batch.to(device))
        model.train(was_training)
        cross_entropy, *others = (self.ranks.sum(sums) / max(count, 1)).tolist()
        if teacher is None:
            return {"cross_entropy": cross_entropy}
        return {"cross_entropy": cross_entropy, **dict(zip(_OF_BOTH, others, strict=True))}

    def _sums(self, model: CausalLM, teacher: Teacher | None, batch: Batch) -> torch.Tensor:
        if teacher is None:
            loss = model(**batch.inputs(), num_items_in_batch=1, return_logits=False, use_cache=False).loss
            return torch.stack([loss, *[torch.zeros_like(loss)] * len(_OF_BOTH)])
        teaching = teacher(batch)
        output = model(**batch.inputs(), teaching=teaching, distillation=self.kl, num_items_in_batch=1, use_cache=False)
        found = output.distillation
        own = teacher.cross_entropy(teaching, batch.labels)
        return torch.stack([found.cross_entropy, found.divergence, found.agreement, own])


_OF_BOTH = ("kl", "agreement", "teacher_cross_entropy")
