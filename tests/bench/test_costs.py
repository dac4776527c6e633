"""What the ops say that a call costs at least."""

from __future__ import annotations

import pytest
import torch

from kernelkit.bench.floor import Floor
from kernelkit.ops.attention import _visible_pairs
from kernelkit.registry import default_registry

# Those of the table that the targets were set by.
RATES = Floor(bytes_per_second=4.27e12, flops_per_second=790e12)

V, ROWS = 151_936, 16_384


def empty(*shape, dtype=torch.bfloat16):
    return torch.empty(shape, dtype=dtype, device="meta")


def cost(op, backward, **arguments):
    return default_registry().op(op).cost(arguments, backward)


QUERY_AND_KEY = {"query": empty(4, 32, 4096, 128), "key": empty(4, 8, 4096, 128)}
EXPERTS = {
    "hidden_states": empty(ROWS, 2048),
    "top_k_index": empty(ROWS, 8),
    "gate_up_proj": empty(128, 2 * 768, 2048),
    "down_proj": empty(128, 2048, 768),
}
HEADS = {
    "student_hidden": empty(8192, 1024),
    "student_weight": empty(V, 1024),
    "teacher_hidden": empty(8192, 2048),
    "teacher_weight": empty(V, 2048),
}


@pytest.mark.parametrize(
    ("op", "arguments", "forward_ms", "both_ms"),
    [
        ("rms_norm", {"hidden_states": empty(ROWS, 4096)}, 0.0629, 0.157),
        ("rms_norm", {"hidden_states": empty(524_288, 128)}, 0.0629, 0.157),
        ("add_rms_norm", {"hidden_states": empty(ROWS, 4096)}, 0.126, 0.251),
        ("rotary_pos_emb", QUERY_AND_KEY, 0.0786, 0.157),
        ("qk_norm_rope", QUERY_AND_KEY, 0.0786, 0.196),
        ("swiglu_mlp", {"gate": empty(ROWS, 12_288)}, 0.283, 0.754),
        ("cross_entropy_loss", {"hidden_states": empty(ROWS, 4096), "weight": empty(V, 4096)}, 25.8, 77.4),
        ("cross_entropy_loss", {"hidden_states": empty(ROWS, 1024), "weight": empty(V, 1024)}, 6.45, 19.4),
        ("distillation_loss", HEADS, 9.68, 16.1),
        ("moe_experts", EXPERTS, 1.57, 4.70),
    ],
)
def test_the_floor_is_the_one_that_was_worked_out_by_hand(op, arguments, forward_ms, both_ms):
    assert RATES.ms(cost(op, False, **arguments)) == pytest.approx(forward_ms, rel=0.01)
    assert RATES.ms(cost(op, True, **arguments)) == pytest.approx(both_ms, rel=0.01)


def test_a_norm_moves_its_states_twice_and_back_three_times():
    assert cost("rms_norm", False, hidden_states=empty(3, 5)) == (2 * 3 * 5 * 2, 0)
    assert cost("rms_norm", True, hidden_states=empty(3, 5, dtype=torch.float32)) == (5 * 3 * 5 * 4, 0)


def test_experts_multiply_each_choice_by_three_matrices_and_back_by_six():
    small = {"hidden_states": empty(5, 4), "top_k_index": empty(5, 2), "gate_up_proj": empty(3, 6, 4)}
    forward = cost("moe_experts", False, **small, down_proj=empty(3, 4, 3))
    assert forward.flops == 2 * (5 * 2) * 3 * (4 * 3)
    assert cost("moe_experts", True, **small, down_proj=empty(3, 4, 3)).flops == 3 * forward.flops


def test_attention_multiplies_only_the_pairs_that_are_seen():
    tensors = {"query": empty(2, 4, 3, 8), "key": empty(2, 2, 3, 8), "value": empty(2, 2, 3, 8)}
    # Six pairs for each row and head; a product of eight terms for the score, and one for the output.
    assert cost("attention", False, **tensors).flops == 2 * 4 * 6 * 2 * (8 + 8)
    assert cost("attention", True, **tensors).flops == 3.5 * 2 * 4 * 6 * 2 * (8 + 8)


@pytest.mark.parametrize(("sizes", "pairs"), [((4, 4, None), 10), ((4, 4, 2), 7), ((1, 9, None), 9), ((2, 5, 3), 6)])
def test_pairs_end_at_the_diagonal_and_at_the_window(sizes, pairs):
    assert _visible_pairs(*sizes) == pairs


def test_every_op_that_is_benchmarked_has_a_cost_and_calls():
    for op in default_registry().ops.values():
        assert op.benchmarks and op.cost is not None and op.sized_samples is not None, op.name


def test_bytes_bound_what_multiplies_little():
    rates = Floor(bytes_per_second=1000, flops_per_second=1000)
    assert rates.ms(cost("rms_norm", False, hidden_states=empty(1, 25))) == 100
