"""The cases in which Liger itself goes wrong or asks somebody else. On a CPU test_interpreted.py runs them."""

from __future__ import annotations

import pytest
import torch

from kernelkit.registry import default_registry
from tests.kernels.judge import DEVICES, HALF, assert_as_good_as_eager, built, call_of, calls, run

pytestmark = pytest.mark.parametrize("device", DEVICES)


def liger(op, variant, device):
    spec = default_registry().get(op, variant, "liger")
    return built(spec, device), spec


@pytest.fixture
def no_dispatcher(monkeypatch):
    """Liger's dispatcher prefers other kernels where the CUTLASS DSL is installed."""
    backends = pytest.importorskip("liger_kernel.backends")
    fused = pytest.importorskip("liger_kernel.ops.fused_linear_cross_entropy")

    def dispatch(name, *_, **__):
        raise AssertionError(f"the dispatcher was asked for {name}")

    monkeypatch.setattr(backends, "dispatch", dispatch)
    monkeypatch.setattr(fused, "dispatch", dispatch)


@pytest.mark.parametrize(
    ("op", "variant"),
    [("rms_norm", "standard"), ("rotary_pos_emb", "full"), ("swiglu_mlp", "silu"), ("cross_entropy_loss", "standard")],
)
@pytest.mark.usefixtures("no_dispatcher")
def test_ligers_dispatcher_is_never_asked(op, variant, device):
    kernel, spec = liger(op, variant, device)
    call = calls(op, variant, torch.float32, device)[0]
    assert_as_good_as_eager(kernel, spec, call)


def test_many_short_rows_that_are_no_multiple_of_sixteen(device):
    """Beyond 32768 rows of 256 and less Liger takes sixteen at a time, and reads past the last."""
    if device == "cpu":
        pytest.skip("takes minutes in the interpreter")
    kernel, spec = liger("rms_norm", "standard", device)
    for rows in (32768, 32768 + 8, 40001):
        arguments = {"hidden_states": torch.randn(rows, 128, device=device), "weight": torch.randn(128, device=device)}
        assert_as_good_as_eager(kernel, spec, call_of("rms_norm", {**arguments, "eps": 1e-6}))


def test_short_rows_are_taken_one_by_one_where_sixteen_do_not_fit(device):
    pytest.importorskip("liger_kernel")
    liger("rms_norm", "standard", device)
    from kernelkit.kernels.rms_norm.liger_kernels import _row_mode

    assert _row_mode(torch.empty(32, 128)) is None
    assert _row_mode(torch.empty(40, 128)) is True


def test_half_a_query_can_be_rotated_in_the_memory_of_a_larger_tensor(device):
    """Liger writes where query and key lie: here, in the projection that both are views of."""
    kernel, _ = liger("rotary_pos_emb", "full", device)
    projection = torch.randn(2, 5, 6, 16, device=device)
    before = projection.clone()
    query, key = projection.transpose(1, 2).split([4, 2], dim=1)
    angle = torch.rand(2, 5, 16, device=device)
    kernel(query, key, angle.cos(), angle.sin())
    assert torch.equal(projection, before)


def test_a_loss_without_gradients_makes_none(device):
    kernel, _ = liger("cross_entropy_loss", "standard", device)
    call = calls("cross_entropy_loss", "standard", torch.float32, device)[0]
    before = torch.cuda.memory_allocated() if device == "cuda" else 0
    with torch.no_grad():
        loss, logits = call(kernel)
    assert logits is None
    assert not loss.requires_grad
    assert device == "cpu" or torch.cuda.memory_allocated() - before < 4096


def test_gradients_of_the_head_may_be_accumulated_in_its_own_dtype(device):
    spec = default_registry().get("cross_entropy_loss", "standard", "liger")
    built(spec, device)
    options = spec.options(accumulate_in_float32=False)
    for call in calls("cross_entropy_loss", "standard", torch.float32, device):
        assert_as_good_as_eager(spec.build(options), spec, call)


@pytest.mark.slow
def test_a_sentinel_gives_the_weight_of_its_choice_no_gradient(device):
    spec = default_registry().get("moe_experts", "standard", "liger")
    kernel = built(spec, device, HALF)
    call = calls("moe_experts", "standard", HALF, device)[2]
    absent = call.arguments["top_k_index"] == len(call.arguments["down_proj"])
    assert absent.any()
    of_weights = run(kernel, call).gradients[1]
    assert of_weights.shape == absent.shape
    assert of_weights[absent].count_nonzero() == 0
    assert of_weights[~absent].count_nonzero() > 0
