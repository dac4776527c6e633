"""A config may say which of SDPA's own kernels is used."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError

from kernelkit import OpsConfig, build_model
from tests.models.families import assert_close, our_model, small_config, tokens


def model(backend, **settings):
    torch.manual_seed(0)
    ops = {"preset": "eager", "attention": {"impl": "sdpa", "backend": backend}}
    return build_model(small_config("qwen3"), kernels=ops, **settings).eval()


@pytest.mark.parametrize("backend", ["flash", "math"])
def test_a_backend_gives_what_eager_gives(backend):
    rows = tokens(2, 12)
    expected = our_model("qwen3")(rows).logits
    assert_close(model(backend, device="cpu")(rows).logits, expected, 1e-5)


def test_a_backend_that_cannot_serve_a_call_raises():
    padding = torch.ones(2, 12, dtype=torch.long)
    padding[0, :5] = 0
    with pytest.raises(RuntimeError, match=r"[Nn]o available kernel|No viable backend"):
        model("efficient", device="cpu")(tokens(2, 12), attention_mask=padding)


@pytest.mark.parametrize(("backend", "shared"), [("flash", True), ("efficient", False)])
def test_grouped_keys_are_repeated_for_the_backend_that_takes_none(backend, shared, monkeypatch):
    heads = []

    def attend(query, key, value, *, enable_gqa, **_):
        heads.append((key.shape[1] < query.shape[1], value.shape[1] < query.shape[1], enable_gqa))
        return query

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", attend)
    model(backend, device="cpu")(tokens(2, 12))
    assert set(heads) == {(shared,) * 3}


def test_a_backend_is_traced_whole():
    rows = tokens(2, 12)
    one = model("flash", device="cpu", compiled=True)
    compiled = torch.compile(one, backend="aot_eager", fullgraph=True)
    assert_close(compiled(rows).logits, one(rows).logits, 1e-5)


def test_only_sdpas_own_kernels_have_names():
    with pytest.raises(ValidationError, match="'flash', 'efficient', 'cudnn' or 'math'"):
        OpsConfig(attention={"impl": "sdpa", "backend": "cuddn"})


@pytest.mark.gpu
@pytest.mark.parametrize("backend", ["flash", "efficient", "cudnn"])
def test_a_backend_trains_in_bfloat16_on_a_gpu(backend):
    rows = tokens(2, 128).cuda()
    wide = small_config("qwen3", hidden_size=256, head_dim=128, max_position_embeddings=128)
    outcomes = []
    for ops in ({"preset": "eager"}, {"preset": "eager", "attention": {"impl": "sdpa", "backend": backend}}):
        torch.manual_seed(0)
        one = build_model(wide, kernels=ops, dtype=torch.bfloat16, device="cuda").train()
        loss = one(rows, labels=rows).loss
        loss.backward()
        outcomes.append((loss.detach(), one.model.layers[0].self_attn.k_proj.weight.grad.float()))
    (loss, gradient), (mine, my_gradient) = outcomes
    assert abs(mine - loss) < 5e-3 * loss
    assert (my_gradient - gradient).norm() < 0.05 * gradient.norm()
