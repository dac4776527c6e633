"""How much memory a run will need: its step is run on the meta device, and its tensors are counted.

The step is the real one: the models with their kernels, the loss, the optimizer. On the meta device it computes
nothing and takes no memory, and a dispatch mode sees every tensor come and go.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from kernelkit.distill.config import DistillConfig
from kernelkit.distill.data.batch import Batch
from kernelkit.distill.model_plan import ModelPlan
from kernelkit.distill.optimizer import MasterAdamW
from kernelkit.distill.plan import Plan
from kernelkit.distill.stage import Stage, compute_gradient
from kernelkit.distill.teacher import Teacher
from kernelkit.kernels.custom_op import custom_op, scratch_bytes
from kernelkit.models.layers.causal_lm import CausalLM
from kernelkit.models.report import kernel_report

META = torch.device("meta")
WORKSPACE = 32 * 2**20
"""What cuBLAS takes for itself on a Hopper GPU."""


@dataclass(frozen=True)
class Memory:
    """Bytes on the device of one rank.

    Attributes:
        peak: the most at one time.
        weights: of student and teacher.
        optimizer: float32 weights and moments.
    """

    peak: int
    weights: int
    optimizer: int


class Tracker(TorchDispatchMode):  # type: ignore[no-untyped-call]  # untyped in torch
    """Counts the bytes of the tensors that live."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # untyped in torch
        self.live = self.peak = 0
        self._known: set[int] = set()

    @classmethod
    def is_infra_mode(cls) -> bool:
        """True, without which dynamo would not compile while this mode is on."""
        return True

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        """True: what a compiler does with its own tensors is not the model's."""
        return True

    def watch(self, tensors: Iterable[Tensor]) -> None:
        """Count tensors that were made before; each storage once, until nobody has it any more."""
        for tensor in tensors:
            storage = tensor.untyped_storage()
            key, size = storage._cdata, storage.nbytes()
            if key not in self._known:
                self._known.add(key)
                self.live += size
                weakref.finalize(storage, self._forget, key, size)
        self.peak = max(self.peak, self.live)

    def _forget(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.live -= size

    def __torch_dispatch__(
        self, operator: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        output = operator(*args, **(kwargs or {}))
        self.watch(leaf for leaf in tree_iter(output) if isinstance(leaf, Tensor))
        # What a kernel needs while it runs, and has given back when it returns.
        self.peak = max(self.peak, self.live + scratch_bytes(operator, args))
        return output


def predict(plan: Plan) -> Memory:
    """The peak of a step of the student, on each rank.

    Where there are several ranks this is an estimate: what is sharded is divided by their number, and the largest layer
    and the head are counted whole.
    """
    tracker, batches = Tracker(), _batches(plan)
    masked = not all(batch.plain for batch in batches)
    with tracker:
        teacher_model, student = (_outline(each, tracker, masked) for each in (plan.teacher, plan.student))
        weights = tracker.live
        optimizer = MasterAdamW(student, plan.config.optim)
        states = tracker.live - weights
        teacher = Teacher(teacher_model, META)
        stage = _stage(plan.config, student, teacher)
        for _ in range(2):  # the second step has everything that the first one leaves behind
            compute_gradient(stage, optimizer, batches, 1, META)
            optimizer.step(1e-3)
    sharded = _sharded_away([teacher_model, student], plan.ranks.world_size, states)
    return Memory(tracker.peak - sharded + WORKSPACE, weights, states)


def _outline(plan: ModelPlan, tracker: Tracker, masked: bool) -> CausalLM:
    fused = "eager" not in kernel_report(plan.outline()).impls["attention"]
    attention = _masked_attention if masked else _fused_attention
    model = plan.outline(attention=attention if fused else None, callable_kernels=True)
    if plan.section.compile:
        # The partitioner that inductor uses decides what is kept for the backward; nothing is generated.
        model.model.compile(fullgraph=True, backend="aot_eager_decomp_partition")
    tracker.watch(model.parameters())
    return model.train()


def _stage(config: DistillConfig, student: CausalLM, teacher: Teacher) -> Stage:
    return Stage(
        "student", student, teacher, teacher, config.loss.distillation, config.optim, config.optim.lr, steps=2, seed=0
    )


def _batches(plan: Plan) -> list[Batch]:
    """Those of the first step: where documents share a row, or some of it is padding, an attention is given a mask."""
    return [batch.to(META) for batch in next(plan.data.train.epoch()).micro_batches]


def _sharded_away(models: list[CausalLM], ranks: int, states: int) -> int:
    """Bytes that each of several ranks does not have, compared to a single process."""
    share = 1 - 1 / ranks
    saved = share * states
    for model in models:
        layers = [_bytes(layer) for layer in model.model.layers]
        # Two layers are whole at a time: the one that computes, and the one that is gathered for after it.
        saved += share * max(0, sum(layers) - 2 * max(layers))
    return int(saved)


def _bytes(module: nn.Module) -> int:
    return sum(parameter.numel() * parameter.element_size() for parameter in module.parameters())


def _outputs(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    return torch.empty_like(query), query.new_empty(query.shape[:3], dtype=torch.float32)


def _gradients(
    gradient: Tensor, query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, output: Tensor, log_sums: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)


# Operators, so that a compiler cannot see that nothing is computed, and keeps what they ask for.
_attention = custom_op("outline_of_attention", fake=_outputs)(_outputs)
_attention_backward = custom_op("outline_of_attention_backward", fake=_gradients)(_gradients)


def _save(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs, *output)
    ctx.mark_non_differentiable(output[1])


def _differentiate(ctx: Any, gradient: Tensor, _: Any) -> Any:
    return *_attention_backward(gradient, *ctx.saved_tensors), None


_attention.register_autograd(_differentiate, setup_context=_save)


def _fused_attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Any, *, bias: Tensor | None = None, **_: Any
) -> tuple[Tensor, None]:
    """Keeps what a fused attention keeps, and no scores. On the meta device torch takes an attention that has them."""
    output, _ = _attention(query, key, value, bias)
    return output.transpose(1, 2), None


def _masked_attention(query: Tensor, key: Tensor, value: Tensor, mask: Any, **_: Any) -> tuple[Tensor, None]:
    """With a mask SDPA takes a key for each head of the query, and numbers to add."""
    if not isinstance(mask, Tensor):
        return _fused_attention(query, key, value, mask)
    key, value = (each.repeat_interleave(query.shape[1] // each.shape[1], 1) for each in (key, value))
    return _fused_attention(query, key, value, mask, bias=mask.to(query.dtype, copy=True))
