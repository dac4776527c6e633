"""What is measured and how; never how long it takes."""

from __future__ import annotations

import itertools
import time
from functools import partial

import pytest
import torch

from kernelkit import KernelSpec, default_registry
from kernelkit.bench import timing
from kernelkit.bench.floor import Floor
from kernelkit.bench.ops import Case, bound, cases, forward_backward, measure_all, sample, small
from kernelkit.bench.records import Run
from kernelkit.bench.timing import Prepared, time_limit
from kernelkit.hardware import Hardware

CPU, DTYPE = torch.device("cpu"), torch.bfloat16
FLOOR = Floor(1e9, 1e9)
RUN = Run("cpu", {}, "test")
HERE = Hardware.detect("cpu")


def chosen(registry=None, **wanted):
    return list(cases(registry or default_registry(), HERE, DTYPE, **wanted))


def one(op, impl):
    (case, *_) = chosen(ops=[op], impls=[impl])
    return case


def with_kernels(**kernels):
    """A registry in which `rms_norm` has these kernels too."""
    registry = default_registry().copy()
    for name, kernel in kernels.items():
        registry.register(KernelSpec(op="rms_norm", variant="standard", name=name, factory=partial(_itself, kernel)))
    return registry


def _itself(kernel):
    return kernel


@pytest.mark.parametrize("op", ["rms_norm", "qk_norm_rope", "cross_entropy_loss", "attention"])
def test_a_record_says_what_was_measured_and_how(op):
    records = [*measure_all([one(op, "eager")], RUN, FLOOR, CPU, DTYPE)]
    for passes, record in zip(("fwd", "fwd+bwd"), records, strict=True):
        assert (record.op, record.impl, record.passes, record.how) == (op, "eager", passes, "clock")
        assert record.ms > 0 and record.of_floor == pytest.approx(record.floor_ms / record.ms)
        assert (record.peak_mib, record.gpu, record.run) == (None, "cpu", "test")


def test_the_standard_set_is_the_first_variant_of_every_op_and_what_runs_here():
    found = chosen()
    assert {case.op.name for case in found} == set(default_registry().ops)
    assert {case.spec.variant for case in found if case.op.name == "rms_norm"} == {"standard"}
    assert "triton" not in {case.spec.name for case in found}
    assert {case.spec.variant for case in chosen(ops=["rms_norm"], all_variants=True)} == {
        *default_registry().op("rms_norm").variants
    }


def test_a_gpu_gets_the_shapes_of_the_ops_and_a_cpu_small_ones():
    hopper = Hardware.named("h100")
    wide = [case.sizes for case in cases(default_registry(), hopper, DTYPE, ops=["rms_norm"], impls=["eager"])]
    assert wide == list(default_registry().op("rms_norm").benchmarks)
    (narrow,) = [case.sizes for case in chosen(ops=["rms_norm"], impls=["eager"])]
    assert narrow == {"batch": 1, "length": 32, "hidden_size": 64}
    assert small({"divergence": "jsd", "heads": 2}) == {"divergence": "jsd", "heads": 2}


def test_a_kernel_without_backward_is_measured_forward():
    case = one("rms_norm", "eager")
    inference = case.spec.model_copy(update={"inference_only": True})
    assert Case(case.op, inference, case.sizes).passes == ("fwd",)


def test_a_kernel_that_fails_leaves_its_reason_and_the_others_go_on():
    def broken(*_):
        raise RuntimeError("no kernel image is available\nand more")

    wanted = iter(chosen(with_kernels(broken=broken), ops=["rms_norm"], impls=["broken", "torch"]))
    records = list(measure_all(wanted, RUN, FLOOR, CPU, DTYPE))
    assert {(each.impl, each.passes): each.error for each in records} == {
        ("torch", "fwd"): "",
        ("torch", "fwd+bwd"): "",
        ("broken", "fwd"): "RuntimeError: no kernel image is available",
        ("broken", "fwd+bwd"): "RuntimeError: no kernel image is available",
    }


def test_a_kernel_that_fails_in_its_turn_leaves_the_others_theirs():
    calls = itertools.count()

    def tired(hidden_states, *_):
        if next(calls) > 5:
            raise RuntimeError("no more")
        return hidden_states

    wanted = iter(chosen(with_kernels(tired=tired), ops=["rms_norm"], impls=["tired", "torch"]))
    errors = {(each.impl, each.passes): each.error for each in measure_all(wanted, RUN, FLOOR, CPU, DTYPE)}
    assert errors["tired", "fwd"] == "RuntimeError: no more"
    assert errors["torch", "fwd"] == errors["torch", "fwd+bwd"] == ""


def test_a_kernel_that_tunes_itself_for_ever_is_stopped():
    wanted = iter(chosen(with_kernels(tuning=lambda *_: time.sleep(60)), ops=["rms_norm"], impls=["tuning"]))
    (record,) = measure_all(wanted, RUN, FLOOR, CPU, DTYPE, limit=0.05)
    assert record.ms is None and record.error == "TimeoutError: took more than 0.05 s"


def test_peers_take_turns_of_which_the_first_does_not_count(monkeypatch):
    monkeypatch.setattr(timing, "TURN_MS", 0.0)
    monkeypatch.setattr(timing, "ROUNDS", 2)
    turns = []

    def prepared(name, first):
        def work():
            time.sleep(0.02 if name in turns else first)
            turns.append(name)

        return Prepared(work, [work], "clock")

    found = timing.in_turn([prepared("a", 0.5), prepared("b", 0.02)])
    assert all({first, second} == {"a", "b"} for first, second in zip(turns[::2], turns[1::2], strict=True))
    assert len(turns) == 2 * 2
    assert all(20 <= each.ms < 200 for each in found), "of .5 s nothing is left, not even in the mean"


def test_the_limit_ends_with_what_it_limits():
    with time_limit(0.05):
        pass
    time.sleep(0.1)


def test_backward_gives_the_gradients_of_everything_that_has_one():
    case = one("swiglu_mlp", "eager")
    call = sample(case, CPU, torch.float32, seed=0)
    gate, up = forward_backward(case, case.spec.build(), call)()
    assert gate.shape == up.shape == call.arguments["gate"].shape
    assert not call.arguments["gate"].requires_grad


def test_a_loss_is_what_backward_begins_at():
    case, alone = one("cross_entropy_loss", "eager"), one("cross_entropy_loss", "eager").spec.build()
    call = sample(case, CPU, torch.float32, seed=0)
    with_logits = forward_backward(case, alone, call)()
    without = forward_backward(case, lambda *arguments: (alone(*arguments)[0], None), call)()
    assert all(map(torch.equal, with_logits, without)), "the logits that are returned get no gradient of their own"


def test_a_mask_is_built_before_the_clock_starts():
    case = one("attention", "sdpa")
    call = sample(case, CPU, torch.float32, seed=0)
    run = bound(case, case.spec.build(), call)
    assert run.args[3] is None, "what sdpa reads, not the Visibility of the sample"
    wanted = call(case.op.on_samples(case.spec.build(), case.spec.traits))
    assert torch.equal(run()[0], wanted[0])


def test_each_seed_draws_other_inputs():
    case = one("rms_norm", "eager")
    first, again, other = (sample(case, CPU, DTYPE, seed).arguments["hidden_states"] for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_the_floor_of_a_machine_is_measured():
    found = Floor.measure(CPU, DTYPE)
    assert found.bytes_per_second > 0 and found.flops_per_second > 0
