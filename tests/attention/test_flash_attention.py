"""What the adapters hand to the flash-attention packages, seen through stand-ins with the same signatures."""

from __future__ import annotations

import sys

import pytest
import torch

from kernelkit.hardware import Hardware
from kernelkit.ops.attention import on_visibility
from kernelkit.ops.masks import Visibility, build_mask
from kernelkit.registry import default_registry
from tests.attention import flash_stand_in
from tests.attention.attention_cases import CASES, PACKED, SCALING, attention, real

VERSIONS = {"flash_attention_2": "flash_attn", "flash_attention_3": "flash_attn_interface"}


def spec_of(name):
    return default_registry().get("attention", "causal", name)


def call(name, case, *, dropout=0.0, **options):
    kernel = on_visibility(*attention(name, **options))
    return kernel(*CASES[case].tensors(), CASES[case].visibility(), scaling=SCALING, dropout=dropout)[0]


@pytest.mark.parametrize("name", VERSIONS)
def test_the_functions_are_those_of_the_package_itself(name, request):
    package = request.getfixturevalue(VERSIONS[name])
    kernel, _ = attention(name)
    assert kernel.dense is package.flash_attn_func
    assert kernel.varlen is package.flash_attn_varlen_func


@pytest.mark.parametrize(
    ("case", "function"),
    [
        ("square", "dense"),
        ("padding_that_hides_nothing", "dense"),
        ("chunk", "dense"),
        ("decode", "dense"),
        ("left_padding", "varlen"),
        ("packed", "varlen"),
        ("decode_in_a_static_buffer", "varlen"),
    ],
)
@pytest.mark.parametrize("name", VERSIONS)
def test_tokens_are_packed_only_where_something_must_be_left_out_or_kept_apart(name, case, function, request):
    package = request.getfixturevalue(VERSIONS[name])
    call(name, case)
    assert [called for called, _ in package.calls] == [function]


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("case", ["square", "packed"])
@pytest.mark.parametrize("name", VERSIONS)
def test_a_deterministic_backward_is_asked_for_by_its_option_alone(name, case, deterministic, request):
    package = request.getfixturevalue(VERSIONS[name])
    call(name, case, deterministic=deterministic)
    assert package.calls[0][1]["deterministic"] is deterministic


@pytest.mark.parametrize("case", ["square", "packed"])
def test_dropout_reaches_flash_attention_2(case, flash_attn):
    call("flash_attention_2", case, dropout=0.25)
    assert flash_attn.calls[0][1]["dropout_p"] == 0.25


@pytest.mark.parametrize("case", ["square", "packed"])
def test_flash_attention_3_may_return_the_log_sum_exp_too(case, monkeypatch):
    outputs = []
    for beta in (False, True):
        monkeypatch.setitem(sys.modules, "flash_attn_interface", flash_stand_in.flash_attn_interface(beta=beta))
        outputs.append(call("flash_attention_3", case))
    assert torch.equal(*outputs)


@pytest.mark.parametrize("name", VERSIONS)
def test_queries_that_are_padding_come_out_as_zeros(name, request):
    request.getfixturevalue(VERSIONS[name])
    assert (call(name, "left_padding")[0, :3] == 0).all()


def test_padding_is_dropped_from_a_batch():
    mask = build_mask("varlen", Visibility(2, 4, 4, padding_mask=real("..xx", "xxxx")))
    assert mask.cu_seqlens_q.tolist() == mask.cu_seqlens_k.tolist() == [0, 2, 6]
    assert mask.q_indices.tolist() == mask.k_indices.tolist() == [2, 3, 4, 5, 6, 7]
    assert (mask.max_q, mask.max_k) == (4, 4)


def test_a_decoding_step_has_one_query_and_the_keys_that_are_real():
    visibility = Visibility(2, 1, 6, q_offset=torch.tensor(3), padding_mask=real(".xxx", "xxxx"))
    mask = build_mask("varlen", visibility)
    assert (mask.cu_seqlens_q.tolist(), mask.cu_seqlens_k.tolist()) == ([0, 1, 2], [0, 3, 7])
    assert mask.k_indices.tolist() == [1, 2, 3, 6, 7, 8, 9]


def test_packed_documents_become_sequences_and_no_token_is_moved():
    mask = build_mask("varlen", Visibility(2, 9, 9, document_ids=PACKED))
    assert mask.cu_seqlens_q.tolist() == mask.cu_seqlens_k.tolist() == [0, 3, 7, 9, 10, 18]
    assert mask.q_indices is mask.k_indices is None
    assert (mask.max_q, mask.max_k) == (8, 8)


def test_documents_that_rows_share_are_sequences_in_each_row():
    mask = build_mask("varlen", Visibility(2, 3, 3, document_ids=torch.tensor([[0, 0, 1]])))
    assert mask.cu_seqlens_q.tolist() == [0, 2, 3, 5, 6]


def test_a_window_over_a_gap_in_a_row_is_refused_and_full_attention_is_not():
    visibility = Visibility(2, 6, 6, padding_mask=real("xx..xx", "xxxxxx"))
    with pytest.raises(ValueError, match="padding between its tokens"):
        build_mask("varlen", visibility, sliding_window=3)
    assert build_mask("varlen", visibility).cu_seqlens_k.tolist() == [0, 4, 10]
    assert build_mask("varlen", visibility, sliding_window=6).cu_seqlens_k.tolist() == [0, 4, 10]


def test_a_static_cache_in_a_traced_graph_is_refused_in_words():
    def build(offset):
        return build_mask("varlen", Visibility(1, 1, 4, q_offset=offset))

    with pytest.raises(Exception, match="which a traced graph cannot read"):
        torch.compile(build, fullgraph=True, backend="eager")(torch.tensor(2))


@pytest.mark.parametrize(
    ("name", "package"), [("flash_attention_2", "flash-attn"), ("flash_attention_3", "flash-attn-3")]
)
def test_without_the_package_the_reason_names_it(name, package):
    h100 = Hardware(device_type="cuda", name="h100", capability=(9, 0), packages={})
    assert f"needs the package {package}" in spec_of(name).problem(h100)


@pytest.mark.parametrize(
    ("name", "hardware", "works"),
    [
        ("flash_attention_2", "a100", True),
        ("flash_attention_2", "b200", True),
        ("flash_attention_2", "cpu", False),
        ("flash_attention_2", "mi300x", False),
        ("flash_attention_3", "h200", True),
        ("flash_attention_3", "a100", False),
        ("flash_attention_3", "b200", False),
    ],
)
def test_flash_attention_3_is_for_hopper_alone(name, hardware, works):
    assert (spec_of(name).problem(Hardware.named(hardware)) is None) == works


@pytest.mark.parametrize("name", VERSIONS)
def test_it_is_stated_what_it_cannot_do(name):
    spec = spec_of(name)
    assert (spec.traceable, spec.deterministic, spec.limits) == (False, False, {"head_dim": 256})
    assert "bfloat16" in spec.problem(Hardware.named("h100"), dtype="float32")
    assert "cannot be traced" in spec.problem(Hardware.named("h100"), compiled=True)


@pytest.mark.gpu
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", VERSIONS)
def test_the_real_package_agrees_with_sdpa(name, case):
    pytest.importorskip(VERSIONS[name])
    kernels = [on_visibility(*attention(one)) for one in (name, "sdpa")]
    inputs = (*CASES[case].tensors("cuda", torch.bfloat16), CASES[case].visibility("cuda", torch.bfloat16))
    ours, theirs = (kernel(*inputs, scaling=SCALING)[0] for kernel in kernels)
    rows = ours.abs().sum((-1, -2)) > 0
    assert torch.allclose(ours[rows], theirs[rows], atol=2e-2)
