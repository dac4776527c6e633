"""Ops, implementations and shapes, each measured forward and with backward, all in this process."""

from __future__ import annotations

import functools
import gc
import inspect
import itertools
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

import torch
from torch import Tensor

from kernelkit.bench.floor import Floor
from kernelkit.bench.records import Pass, Record, Run, rates, shape_text
from kernelkit.bench.timing import Prepared, in_turn, num_sets, peak_bytes, prepare, time_limit
from kernelkit.hardware import Hardware
from kernelkit.ops.comparison import Call, tensors
from kernelkit.ops.cost import memory
from kernelkit.registry import KernelRegistry
from kernelkit.spec import Kernel, KernelSpec, Op, dtype_name

SMALL = {"batch": 1, "length": 32, "vocab_size": 512, "heads": 4, "kv_heads": 2, "head_dim": 32, "layers": 2}
SMALL |= {"experts": 8, "top_k": 2}
SMALLEST = 64
"""What a CPU gets of a size, by name, and of those that have no entry."""

LIMIT = 120.0
"""Seconds for one case, compilation and tuning included."""


@dataclass(frozen=True)
class Case:
    """One kernel and one shape.

    Attributes:
        op: the contract.
        spec: the kernel.
        sizes: for the op's ``sized_samples``.
    """

    op: Op
    spec: KernelSpec
    sizes: Mapping[str, Any]

    @property
    def passes(self) -> tuple[Pass, ...]:
        """What it can do."""
        return ("fwd",) if self.spec.inference_only else ("fwd", "fwd+bwd")

    def facts(self, passes: Pass) -> dict[str, Any]:
        """The fields of a record that say what was measured."""
        names = {"op": self.op.name, "variant": self.spec.variant, "impl": self.spec.name}
        return names | {"shape": shape_text(self.sizes), "pass": passes}


def small(sizes: Mapping[str, Any]) -> dict[str, Any]:
    """A shape of the same kind for a CPU."""
    return {
        name: size if isinstance(size, str) else min(size, SMALL.get(name, SMALLEST)) for name, size in sizes.items()
    }


def cases(
    registry: KernelRegistry,
    hardware: Hardware,
    dtype: torch.dtype,
    *,
    ops: Collection[str] = (),
    impls: Collection[str] = (),
    all_variants: bool = False,
) -> Iterator[Case]:
    """What runs on ``hardware`` of the standard set: the first variant of each op, unless all are wanted.

    Args:
        registry: the kernels.
        hardware: this machine; shapes are small on anything but a GPU.
        dtype: of the inputs.
        ops, impls: these alone; empty for all.
        all_variants: every variant.
    """
    for op in registry.ops.values():
        variants = [*op.variants][: None if all_variants else 1]
        sizes = [each if hardware.device_type == "cuda" else small(each) for each in op.benchmarks]
        # Small shapes may have become the same.
        distinct = {shape_text(each): each for each in sizes}.values()
        for each, variant in itertools.product(distinct if not ops or op.name in ops else (), variants):
            for spec in registry.list(op.name, variant):
                reason = spec.problem(hardware, training=False, dtype=dtype_name(dtype))
                if (not impls or spec.name in impls) and reason is None:
                    yield Case(op, spec, each)


def measure_all(
    wanted: Iterable[Case], run: Run, floor: Floor, device: torch.device, dtype: torch.dtype, limit: float = LIMIT
) -> Iterator[Record]:
    """A record for each case and pass; one with an error for each that fails or takes more than ``limit`` seconds."""
    for _, group in itertools.groupby(wanted, lambda case: (case.op.name, case.spec.variant, shape_text(case.sizes))):
        peers, stopped = [*group], set[str]()
        for passes in get_args(Pass):
            # What one shape was compiled for would make the next one's sizes dynamic.
            torch.compiler.reset()
            some = [case for case in peers if passes in case.passes and case.spec.name not in stopped]
            for record in measure(some, passes, run, floor, device, dtype, limit):
                if record.error.startswith(TimeoutError.__name__):
                    stopped.add(record.impl)  # the other pass would take as long
                yield record
            gc.collect()
            torch.cuda.empty_cache()


def measure(
    peers: Sequence[Case], passes: Pass, run: Run, floor: Floor, device: torch.device, dtype: torch.dtype, limit: float
) -> Iterator[Record]:
    """Records of kernels for one op, variant and shape: those that fail, and then the others, timed in turn."""
    backward = passes == "fwd+bwd"
    drawn = functools.cache(lambda seed: sample(peers[0], device, dtype, seed))
    ready: list[tuple[Case, Prepared, int | None]] = []
    for case in peers:
        try:
            with time_limit(limit):
                calls = _calls(case, drawn, device, backward)
                prepared = prepare(calls, device)
                ready.append((case, prepared, peak_bytes(calls[0], device, _held if backward else lambda _: 0)))
        except Exception as error:  # a stranger's kernel may raise anything, and the others go on
            yield run.record(**case.facts(passes), error=_reason(error))
    for (case, _, peak), timing in zip(ready, in_turn([prepared for _, prepared, _ in ready]), strict=True):
        if isinstance(timing, Exception):
            yield run.record(**case.facts(passes), error=_reason(timing))
            continue
        assert case.op.cost is not None, f"{case.op.name} is benchmarked and has no cost"
        cost = case.op.cost(drawn(0).arguments, backward)
        yield run.record(
            **case.facts(passes),
            ms=timing.ms,
            how=timing.how,
            peak_mib=None if peak is None else peak / 2**20,
            **rates(timing.ms, floor.ms(cost), cost),
        )


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"[:300]


def _calls(case: Case, drawn: Callable[[int], Call], device: torch.device, backward: bool) -> list[Callable[[], Any]]:
    """The kernel on so many inputs, ``drawn`` from a seed, that each call finds the cache without its own."""
    kernel, make = case.spec.build(), forward_backward if backward else forward
    sets = num_sets(sum(map(memory, tensors(drawn(0).arguments))), device)
    return [make(case, kernel, drawn(seed)) for seed in range(sets)]


def sample(case: Case, device: torch.device, dtype: torch.dtype, seed: int) -> Call:
    """A call in the sizes of the case."""
    generator = torch.Generator(device).manual_seed(seed)
    assert case.op.sized_samples is not None, f"{case.op.name} is benchmarked and has no sized samples"
    (call,) = Call.of_samples(case.op, case.op.sized_samples(case.spec.variant, case.sizes, dtype, device, generator))
    return call


def forward(case: Case, kernel: Kernel, call: Call) -> Callable[[], Any]:
    """The kernel on the arguments of ``call``, without gradients."""
    return torch.no_grad()(bound(case, kernel, call))


def forward_backward(case: Case, kernel: Kernel, call: Call) -> Callable[[], tuple[Tensor, ...]]:
    """The kernel on the arguments of ``call``, and the gradients of those that have one.

    A scalar is a loss, and what is returned beside it gets no gradient.
    """
    call = call.map(torch.Tensor.detach)
    leaves = call.leaves()
    for leaf in leaves:
        leaf.requires_grad_()
    run = bound(case, kernel, call)
    incoming = [torch.randn_like(output) if output.ndim else torch.ones_like(output) for output in _trained(run())]

    def both() -> tuple[Tensor, ...]:
        return torch.autograd.grad(_trained(run()), leaves, incoming, materialize_grads=True)

    return both


def bound(case: Case, kernel: Kernel, call: Call) -> Callable[[], Any]:
    """The kernel with its arguments as models pass them, so that nothing but the call is left to be timed."""
    given = inspect.signature(case.op.protocol.__call__).bind(None, **call.arguments)
    args, keywords = given.args[1:], given.kwargs
    if case.op.on_samples is not None:
        # What the op does between its samples and a kernel, such as building a mask, models do once for many calls.
        args, keywords = case.op.on_samples(lambda *args, **keywords: (args, keywords), case.spec.traits)(
            *args, **keywords
        )
    return functools.partial(kernel, *args, **keywords)


def _held(gradients: tuple[Tensor, ...]) -> int:
    """Bytes of the gradients, which every kernel must return, so that they do not count as its memory."""
    return memory(*{gradient.data_ptr(): gradient for gradient in gradients}.values())


def _trained(result: Any) -> list[Tensor]:
    outputs = [output for output in tensors(result) if output.requires_grad]
    return outputs[:1] if outputs[0].ndim == 0 else outputs
