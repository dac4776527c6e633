"""What it costs to call a bound kernel instead of a function that is written into ``forward``.

The kernel does nothing, so that only the call is timed, in the norm layer that the models use. The styles are timed in
turn, many rounds, and each round's ratio is taken against its own hard-coded call; the medians are printed. Exits with
1 where a bound kernel costs more than the limit.

    python benchmarks/dispatch.py [--rounds 201] [--calls 20000]
"""

from __future__ import annotations

import argparse
import statistics
import sys
import timeit
from collections.abc import Callable, Iterable
from typing import Any

import torch
from dependency_injector import providers
from torch import Tensor, nn

from kernelkit import HardwareRequirement, KernelContainer, default_registry, register_kernel
from kernelkit.containers import Bindings, Need
from kernelkit.models.layers.norm import RMSNorm

LIMIT = 1.10
"""The most that a bound kernel may cost, as a multiple of the hard-coded call."""


def no_op(hidden_states: Tensor, weight: Tensor, eps: float) -> Tensor:
    """The shape of an ``rms_norm`` kernel, and none of its work."""
    return hidden_states


class HardCoded(RMSNorm):
    """The models' norm with the call written into ``forward``."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Do nothing, directly."""
        return no_op(hidden_states, self.weight, self.variance_epsilon)


class Provided(RMSNorm):
    """The models' norm, asking a provider in every call as kernelkit's models never do."""

    def __init__(self, kernels: Bindings) -> None:
        super().__init__(1, 1e-6, kernels)
        self.provider = providers.Callable(no_op)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Do nothing, through a provider."""
        result: Tensor = self.provider(hidden_states, self.weight, self.variance_epsilon)
        return result


def bound_to(device_type: str) -> Bindings:
    """The no-op, declared for ``device_type``; any but ``any`` adds a check of the device to each call."""
    registry = default_registry().copy()
    requirement = HardwareRequirement(device_type=device_type)
    register_kernel("rms_norm", "no_op", registry=registry, hardware=requirement)(no_op)
    container = KernelContainer.from_config({"rms_norm": "no_op"}, registry=registry, device="cpu")
    return container.bind([Need("rms_norm")], model="RMSNorm")


def measure(modules: dict[str, nn.Module], rounds: int, calls: int) -> dict[str, tuple[float, float]]:
    """Nanoseconds for each call, and the multiple of the first module's; medians over ``rounds``."""
    hidden_states = torch.zeros(1)
    timers = {name: timeit.Timer(_call(module, hidden_states)) for name, module in modules.items()}
    seconds: dict[str, list[float]] = {name: [] for name in modules}
    for _ in range(rounds):
        for name, timer in timers.items():
            seconds[name].append(timer.timeit(calls))
    base = next(iter(seconds.values()))
    return {name: (_median(taken) / calls * 1e9, _ratio(taken, base)) for name, taken in seconds.items()}


def _call(module: nn.Module, hidden_states: Tensor) -> Callable[[], Any]:
    return lambda: module(hidden_states)


def _median(values: Iterable[float]) -> float:
    return statistics.median(values)


def _ratio(taken: list[float], base: list[float]) -> float:
    return _median(mine / theirs for mine, theirs in zip(taken, base, strict=True))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=201)
    parser.add_argument("--calls", type=int, default=20_000)
    given = parser.parse_args()
    modules: dict[str, nn.Module] = {
        "hard-coded call": HardCoded(1, 1e-6, bound_to("any")),
        "bound kernel": RMSNorm(1, 1e-6, bound_to("any")),
        "bound kernel with a device check": RMSNorm(1, 1e-6, bound_to("cpu")),
        "provider in forward": Provided(bound_to("any")),
    }
    with torch.inference_mode():
        found = measure(modules, given.rounds, given.calls)
    for name, (nanoseconds, ratio) in found.items():
        print(f"{name:34} {nanoseconds:7.0f} ns   {ratio:.2f}x")
    ratio = found["bound kernel"][1]
    print(f"a bound kernel costs {ratio:.3f}x of a hard-coded call; the limit is {LIMIT:.2f}x")
    if ratio > LIMIT:
        sys.exit(1)


if __name__ == "__main__":
    main()
