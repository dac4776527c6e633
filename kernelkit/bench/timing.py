"""How a call is timed: the device's work alone, and nothing that the call before left in the cache."""

from __future__ import annotations

import contextlib
import functools
import gc
import math
import random
import signal
import statistics
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

Calls = Sequence[Callable[[], Any]]
"""The same computation on different inputs, which do not fit into the cache together. What each returns is dropped."""

How = Literal["graph", "events", "clock"]

ROUNDS = 7
"""How often each computation has its turn; the first time counts for nothing."""

LEAD_MS, TURN_MS = 100.0, 50.0
"""What a turn takes at least, on a GPU before it is timed, and while it is."""

LEAST_MS = 5.0
"""Of a call as short as that the host may take longer than the device, unless a graph holds it."""


@dataclass(frozen=True)
class Timing:
    """What one computation takes.

    Attributes:
        ms: of one call, the median of its turns.
        how: ``graph``: replays of a CUDA graph, so that only the device counts; ``events``: the stream's clock around
            many calls in a row, for what cannot be captured or takes long; ``clock``: the wall clock, on a CPU.
    """

    ms: float
    how: How


@dataclass(frozen=True)
class Prepared:
    """What is timed: ``work``, which makes each of the ``calls``, whose inputs live as long as this does."""

    work: Callable[[], Any]
    calls: Calls
    how: How


def timed(calls: Calls, device: torch.device) -> Timing:
    """Time of a single call."""
    (timing,) = in_turn([prepare(calls, device)])
    if isinstance(timing, Exception):
        raise timing
    return timing


def prepare(calls: Calls, device: torch.device) -> Prepared:
    """Warm up by two rounds, each of which makes each of ``calls`` once, and capture several where they are short."""
    for _ in range(2):
        _round(calls)
    if device.type != "cuda":
        return Prepared(lambda: _round(calls), calls, "clock")
    torch.cuda.synchronize()
    taken = _on_stream(lambda: _round(calls))
    # So many calls that what stands between two events hides a launch. With events the device is then behind the host,
    # unless the host is what takes the time.
    short = taken / len(calls) < LEAST_MS
    calls = [*calls] * max(1, min(64, round(LEAST_MS / taken)))
    graph = _captured(calls) if short else None
    if graph is not None:
        return Prepared(graph.replay, calls, "graph")
    return Prepared(lambda: _round(calls), calls, "events")


def in_turn(prepared: Sequence[Prepared]) -> list[Timing | Exception]:
    """The times of computations that are to be compared.

    They take turns, in another order each time, and work for a while before they are timed. For a GPU is as fast as its
    power supply and its temperature allow: after a rest, or after something that took less power, a large product is
    faster for a moment, by up to a tenth. One that raises has its error in the place of its time, and no more turns.
    """
    times: list[list[float]] = [[] for _ in prepared]
    errors: dict[int, Exception] = {}
    order, draw = [*range(len(prepared))], random.Random(0)
    for _ in range(ROUNDS):
        for index in order:
            try:
                if index not in errors:
                    times[index].append(_turn(prepared[index], times[index]))
            except Exception as error:  # a stranger's kernel may raise anything, and the others go on
                errors[index] = error
        draw.shuffle(order)
    return [
        errors.get(index) or Timing(statistics.median(times[index][1:]), each.how)
        for index, each in enumerate(prepared)
    ]


def _turn(prepared: Prepared, before: Sequence[float]) -> float:
    """Milliseconds of a call, over as many as make a turn if each takes as long as the last time."""
    on_gpu, calls = prepared.how != "clock", len(prepared.calls)
    clock = _on_stream if on_gpu else _on_clock
    if not before:
        return clock(prepared.work) / calls
    lead, repeats = (max(1, math.ceil(span / max(before[-1] * calls, 1e-3))) for span in (LEAD_MS, TURN_MS))
    if on_gpu:
        _round([prepared.work] * lead)
    return clock(lambda: _round([prepared.work] * repeats)) / (repeats * calls)


def peak_bytes(call: Callable[[], Any], device: torch.device, returned: Callable[[Any], int]) -> int | None:
    """The most memory that one call holds above what there was, less ``returned`` of its result; None on a CPU."""
    if device.type != "cuda":
        return None
    gc.collect()
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    result = call()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated(device) - before - returned(result)


def num_sets(size: int, device: torch.device) -> int:
    """How many inputs of ``size`` bytes fill the cache several times over, so that each finds it without its data."""
    if device.type != "cuda":
        return 1
    cache = torch.cuda.get_device_properties(device).L2_cache_size
    return max(1, min(16, -(-4 * cache // max(size, 1))))


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise TimeoutError in the body after ``seconds``; where there are no signals, the body takes what it takes."""
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "SIGALRM"):
        yield
        return

    def stop(*_: Any) -> None:
        raise TimeoutError(f"took more than {seconds:g} s")

    before = signal.signal(signal.SIGALRM, stop)
    # Again and again, since a tuner may take the error for that of one of its candidates.
    signal.setitimer(signal.ITIMER_REAL, seconds, 1.0)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _round(calls: Calls) -> None:
    for call in calls:
        call()


def _captured(calls: Calls) -> torch.cuda.CUDAGraph | None:
    """A graph of one round; None where a call waits for the device or cannot be captured."""
    # Found out beforehand where possible: a capture that fails may leave the allocator in a bad state.
    with warnings.catch_warnings(action="ignore"):  # this mode is a prototype, torch says
        torch.cuda.set_sync_debug_mode("error")
    try:
        _round(calls)
    except RuntimeError:
        return None
    finally:
        torch.cuda.set_sync_debug_mode("default")
    graph, stream = torch.cuda.CUDAGraph(), _side_stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # kernels may keep something for each stream
        _round(calls)
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    try:
        with torch.cuda.graph(graph, stream=stream):
            _round(calls)
    except RuntimeError:
        torch.cuda.synchronize()
        return None
    return graph


@functools.cache
def _side_stream() -> torch.cuda.Stream:
    """One for all captures: cuBLAS keeps memory for each stream that it has seen."""
    return torch.cuda.Stream()  # type: ignore[no-untyped-call]  # untyped in torch


def _on_clock(work: Callable[[], Any]) -> float:
    began = time.perf_counter()
    work()
    return (time.perf_counter() - began) * 1000


def _on_stream(work: Callable[[], Any]) -> float:
    # Untyped in torch.
    event: Any = torch.cuda.Event
    began, ended = event(enable_timing=True), event(enable_timing=True)
    began.record()
    work()
    ended.record()
    ended.synchronize()
    ms: float = began.elapsed_time(ended)
    return ms
