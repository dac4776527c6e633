"""How a kernel is compared with eager: both with eager in float64, by the error that eager itself makes."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map_only

from kernelkit.errors import shown
from kernelkit.spec import Kernel, Op, Samples

MULTIPLE, EPSILONS = 3.0, 2.0
"""A kernel may err three times as much as eager, which may be lucky, and by two epsilons of the largest value."""

NOT_DIFFERENTIATED = {"cos", "sin", "teacher_hidden", "teacher_weight", "teacher_bias"}
"""Arguments that no kernel owes a gradient."""


@dataclass
class Call:
    """One call of an op.

    Attributes:
        op: its contract.
        arguments: by name.
        cotangents: the gradients to send into its outputs, by their number; drawn when they are first needed.
    """

    op: Op
    arguments: dict[str, Any]
    cotangents: dict[int, Tensor] = field(default_factory=dict)

    @classmethod
    def of_samples(cls, op: Op, samples: Samples) -> list[Call]:
        """The calls that an op's samples describe."""
        signature = inspect.signature(op.protocol.__call__)
        arguments = [dict(signature.bind(None, *args, **keywords).arguments) for args, keywords in samples]
        return [cls(op, {name: value for name, value in each.items() if name != "self"}) for each in arguments]

    def map(self, change: Callable[[Tensor], Tensor]) -> Call:
        """The same call with every tensor changed."""
        return replace(self, arguments=tree_map_only(Tensor, change, self.arguments))

    def exact(self) -> Call:
        """The same call in float64."""
        return self.map(lambda tensor: tensor.double() if tensor.is_floating_point() else tensor)

    def leaves(self) -> list[Tensor]:
        """The tensors that a gradient is taken of, in order."""
        return [leaf for _, leaf in self.named_leaves()]

    def named_leaves(self) -> Iterator[tuple[str, Tensor]]:
        """The same, each with the name of its argument."""
        for name, value in self.arguments.items():
            if name not in NOT_DIFFERENTIATED:
                yield from ((name, tensor) for tensor in tensors(value) if tensor.is_floating_point())

    def cotangents_of(self, outputs: list[Tensor | None]) -> list[Tensor]:
        """The gradients to send into those outputs that are there, the same for every kernel."""
        return [self._cotangent(index, output) for index, output in enumerate(outputs) if output is not None]

    def _cotangent(self, index: int, output: Tensor) -> Tensor:
        if index not in self.cotangents:
            generator = torch.Generator("cpu").manual_seed(index)
            self.cotangents[index] = torch.randn(output.shape, generator=generator, device="cpu", dtype=torch.float32)
        return self.cotangents[index].to(output)

    def shapes(self) -> str:
        """The sizes of its tensors: ``hidden_states [64, 1024], weight [1024]``."""
        named = [(name, tensors(value)) for name, value in self.arguments.items()]
        return ", ".join(f"{name} {list(found[0].shape)}" for name, found in named if found)

    def __call__(self, kernel: Kernel) -> tuple[Any, ...]:
        """Positional arguments first, as models pass them.

        Raises:
            TypeError: where the first output, which no kernel may leave out, is no tensor.
        """
        bound = inspect.signature(self.op.protocol.__call__).bind(None, **self.arguments)
        outputs = kernel(*bound.args[1:], **bound.kwargs)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        if not tensors(outputs[:1]):
            raise TypeError(f"the kernel returns {shown(outputs[0] if outputs else outputs)} and no tensor")
        return outputs


@dataclass(frozen=True)
class Outcome:
    """What a call gives.

    Attributes:
        outputs: None for each that was not returned, or is not to be looked at.
        gradients: of the call's leaves.
    """

    outputs: list[Tensor | None]
    gradients: list[Tensor]


@dataclass(frozen=True)
class Deviation:
    """One value in which a kernel is worse than eager.

    Attributes:
        what: which output, or the gradient of which argument.
        reason: how it differs.
    """

    what: str
    reason: str

    def __str__(self) -> str:
        return f"{self.what} {self.reason}"


class Compared(NamedTuple):
    """One value: which output or gradient, as the kernel gives it, as eager does, and as eager does in float64.

    Attributes:
        terms: the size of what it is a small difference of, by the op's ``terms``, or 0.
    """

    what: str
    found: Tensor
    eagers: Tensor
    right: Tensor
    terms: float


def tensors(tree: Any) -> list[Tensor]:
    """The tensors in nested containers."""
    return [leaf for leaf in tree_flatten(tree)[0] if isinstance(leaf, Tensor)]


def with_gradient(call: Call) -> Call:
    """The call with fresh tensors that ask for their gradient."""
    call = call.map(lambda tensor: tensor.clone(memory_format=torch.preserve_format))
    for leaf in call.leaves():
        leaf.requires_grad_()
    return call


def run(kernel: Kernel, call: Call, *, only: list[bool] | None = None, backward: bool = True) -> Outcome:
    """Call forward and backward.

    Args:
        kernel: as the op's samples call it.
        call: it is left as it is.
        only: which outputs to look at and to send gradients into; all of them unless given.
        backward: otherwise no gradient is taken.
    """
    call = with_gradient(call) if backward else call
    returned = call(kernel)
    only = [True] * len(returned) if only is None else only
    if len(only) != len(returned):
        raise TypeError(f"the kernel returns {len(only)} outputs, and eager {len(returned)}")
    outputs = [output if looked_at else None for output, looked_at in zip(returned, only, strict=True)]
    gradients: list[Tensor] = []
    if backward:
        trained = [output if output is not None and output.requires_grad else None for output in outputs]
        leaves, incoming = call.leaves(), call.cotangents_of(trained)
        gradients = list(torch.autograd.grad(tensors(trained), leaves, incoming, materialize_grads=True))
    return Outcome([None if output is None else output.detach() for output in outputs], gradients)


def deviations(
    kernel: Kernel,
    eager: Kernel,
    call: Call,
    *,
    change: Callable[[Tensor], Tensor] = lambda tensor: tensor,
    backward: bool = True,
    relative: float = 0.0,
) -> Iterator[Deviation]:
    """Where ``kernel`` errs more than ``eager``, measured against eager in float64.

    Args:
        kernel: what is judged.
        eager: the reference of the same op and variant.
        call: the arguments.
        change: lays out the tensors that the kernel is given; eager gets them as they are.
        backward: whether gradients are compared too.
        relative: the error beside the largest value that is allowed in any case, if more than two epsilons.
    """
    for one in compared(kernel, eager, call, change=change, backward=backward):
        reason = _reason(one, relative)
        if reason is not None:
            yield Deviation(one.what, reason)


def compared(
    kernel: Kernel,
    eager: Kernel,
    call: Call,
    *,
    change: Callable[[Tensor], Tensor] = lambda tensor: tensor,
    backward: bool = True,
) -> Iterator[Compared]:
    """The values of one call, of which none is empty; arguments as in :func:`deviations`."""
    mine = run(kernel, call.map(change), backward=backward)
    # What a kernel does not return it is not asked for either.
    only = [output is not None for output in mine.outputs]
    truth, usual = (run(eager, each, only=only, backward=backward) for each in (call.exact(), call))
    terms = call.op.terms(call.exact().arguments) if call.op.terms is not None else {}
    names = [f"output {index}" for index in range(len(only))]
    names += [f"the gradient of {name}" for name, _ in call.named_leaves()] if backward else []
    values = zip(*([*each.outputs, *each.gradients] for each in (mine, usual, truth)), strict=True)
    for index, (name, (found, eagers, right)) in enumerate(zip(names, values, strict=True)):
        if found is not None and right.numel() > 0:
            yield Compared(name, found, eagers, right, float(terms.get(index, 0)))


def _reason(one: Compared, relative: float) -> str | None:
    """How one value differs, or None where it is as good as eager's."""
    found, eagers = one.found, one.eagers
    if (found.dtype, found.shape) != (eagers.dtype, eagers.shape):
        return f"is {list(found.shape)} in {found.dtype}, and eager's {list(eagers.shape)} in {eagers.dtype}"
    size = one.right.nan_to_num(0, 0, 0).abs().max().clamp(min=one.terms)
    rounding = size * max(EPSILONS * torch.finfo(found.dtype).eps, relative) if found.is_floating_point() else 0
    error, allowed = (errors(each, one.right).max() for each in (found, eagers))
    # The negation makes nan an error.
    if not error <= MULTIPLE * allowed + rounding:
        return f"errs by {error:.2e}, eager by {allowed:.2e}"
    return None


def errors(found: Tensor, truth: Tensor) -> Tensor:
    """How far each value is off; not at all where both are the same infinity, or both nan, as a mean of nothing is."""
    found = found.double()
    same = (found == truth) | (found.isnan() & truth.isnan())
    return (found - truth).abs().masked_fill(same, 0)
