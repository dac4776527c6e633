"""The Triton losses where their rows have several pieces, and what they owe beyond their numbers."""

from __future__ import annotations

import importlib

import pytest
import torch

from kernelkit.kernels.chunked_head import ChunkOptions, buffer, busy_chunks, part_size, parts
from kernelkit.registry import default_registry
from tests.kernels.distillation_cases import CAPS, DIVERGENCES, case, kernel
from tests.kernels.judge import DEVICES, Call, assert_as_good_as_eager, built, calls, strided

each_device = pytest.mark.parametrize("device", DEVICES)


@pytest.fixture
def loss(request, device, monkeypatch):
    """The op's Triton kernel, with pieces of 16 tokens, and its spec."""
    spec = default_registry().get(request.param, "standard", "triton")
    loss = built(spec, device)
    module = importlib.import_module(f"kernelkit.kernels.{request.param}.triton_kernels")
    monkeypatch.setattr(module, "CUT", module.CUT._replace(block=16))
    return loss, spec


each_loss = pytest.mark.parametrize("loss", ["distillation_loss", "cross_entropy_loss"], indirect=True)
cross_entropy = pytest.mark.parametrize("loss", ["cross_entropy_loss"], indirect=True)
distillation = pytest.mark.parametrize("loss", ["distillation_loss"], indirect=True)


@each_device
@cross_entropy
def test_a_row_in_several_pieces_is_as_good_as_eagers(loss, device):
    kernel, spec = loss
    for call in calls(spec.op, spec.variant, torch.float32, device):
        assert_as_good_as_eager(kernel, spec, call)


@each_device
@distillation
@pytest.mark.parametrize("divergence", DIVERGENCES, ids=lambda one: "-".join(map(str, one.values())))
def test_both_rows_in_several_pieces_give_what_eager_gives(loss, divergence, device):
    for mix in ({}, {"biased": True, "temperature": 2.0, "alpha": 0.3, **CAPS}):
        given = case(vocabulary=70, dtype=torch.float32, device=device, **mix, **divergence)
        torch.testing.assert_close(given.run(loss[0]), given.run(kernel("eager")), rtol=1e-4, atol=1e-6)
        with torch.no_grad():
            torch.testing.assert_close(tuple(given(loss[0])), tuple(given(kernel("eager"))), rtol=1e-4, atol=1e-6)


@each_device
@distillation
def test_biases_and_hidden_states_of_any_strides_are_read_as_what_they_are(loss, device):
    given = case(vocabulary=70, biased=True, dtype=torch.float32, device=device)
    expected = tuple(given(kernel("eager")))
    given.trained, given.teacher = (
        {name: strided(tensor.detach()) for name, tensor in tensors.items()}
        for tensors in (given.trained, given.teacher)
    )
    torch.testing.assert_close(tuple(given(loss[0])), expected, rtol=1e-4, atol=1e-6)


@each_device
@distillation
def test_a_tie_across_pieces_counts_as_one_agreement(loss, device):
    given = case(vocabulary=40, dtype=torch.float32, device=device)
    for tensors in (given.trained, given.teacher):
        for tensor in tensors.values():
            tensor.data.fill_(1.0)
    assert given(loss[0]).agreement == 1


@each_device
@each_loss
@pytest.mark.parametrize("label", [-1, 50, 2**40])
def test_a_label_that_is_no_token_makes_the_loss_nan_and_reads_nothing(loss, label, device):
    kernel, spec = loss
    if spec.op == "distillation_loss":
        given = case(vocabulary=50, dtype=torch.float32, device=device, alpha=0.5)
        given.labels[1] = label
        assert given(kernel).loss.isnan()
    else:
        states, weight = torch.ones(3, 16, device=device), torch.ones(50, 16, device=device)
        assert kernel(states, weight, torch.tensor([1, label, 2], device=device))[0].isnan()


@each_device
@cross_entropy
@pytest.mark.parametrize("magnitude", [1.0, 100.0], ids=["labels near the best", "labels far from it"])
def test_exponentials_in_bfloat16_are_as_good_as_eagers_logits(loss, magnitude, device):
    generator = torch.Generator(device).manual_seed(0)
    states = magnitude * torch.randn(70, 32, generator=generator, device=device)
    weight = torch.randn(200, 32, generator=generator, device=device)
    labels = torch.randint(200, (70,), generator=generator, device=device)
    labels[::5] = -100
    arguments = {"hidden_states": states.bfloat16(), "weight": weight.bfloat16(), "labels": labels, "z_loss_coef": 1e-4}
    assert_as_good_as_eager(loss[0], loss[1], Call(default_registry().op("cross_entropy_loss"), arguments))


@each_device
@cross_entropy
def test_ignored_tokens_may_outnumber_a_chunk(loss, device):
    spec = loss[1]
    kernel = spec.build(ChunkOptions(chunk_size=3))
    generator = torch.Generator(device).manual_seed(0)
    states = torch.randn(23, 16, generator=generator, device=device)
    weight = torch.randn(40, 16, generator=generator, device=device)
    labels = torch.randint(40, (23,), generator=generator, device=device)
    labels[4:15] = -100
    arguments = {"hidden_states": states, "weight": weight, "labels": labels, "bias": weight[:, 0].clone()}
    assert_as_good_as_eager(kernel, spec, Call(default_registry().op("cross_entropy_loss"), arguments))


@each_device
@cross_entropy
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_first_chunk_that_was_too_large_leaves_no_trace(loss, dtype, device):
    generator = torch.Generator(device).manual_seed(0)
    states, weight = (torch.randn(size, 16, generator=generator, device=device).to(dtype) for size in (11, 70))
    labels = torch.full((11,), -100, device=device)
    labels[[3, 8]] = 5
    arguments = {"hidden_states": states, "weight": weight, "labels": labels, "bias": weight[:, 0].clone()}
    small = loss[1].build(ChunkOptions(chunk_size=4))
    assert_as_good_as_eager(small, loss[1], Call(default_registry().op("cross_entropy_loss"), arguments))


@each_device
@distillation
def test_a_first_chunk_that_was_too_large_leaves_no_trace_of_a_teacher_either(loss, device):
    given = case(shape=(11,), vocabulary=70, biased=True, dtype=torch.float32, device=device, alpha=0.5)
    given.labels.fill_(-100)[[3, 8]] = 5
    small = loss[1].build(ChunkOptions(chunk_size=4))
    torch.testing.assert_close(given.run(small), given.run(kernel("eager")), rtol=1e-4, atol=1e-6)


def test_the_first_chunk_is_there_before_anyone_asks_how_many_labels_count():
    labels, results = torch.tensor([5, -100, 5, 5, -100, 5, 5]), torch.ones(7)
    chunks = busy_chunks(labels, -100, 3, results)
    assert [(here.start, here.stop, positions.tolist()) for here, positions in chunks] == [
        (0, 3, [0, 2, 3]),
        (3, 5, [5, 6]),
    ]
    assert results.all()


def test_a_first_chunk_that_was_too_large_is_forgotten():
    labels, results = torch.tensor([-100, -100, 5, -100, -100, -100, 5]), torch.ones(7)
    chunks = busy_chunks(labels, -100, 3, results)
    assert next(chunks)[1].tolist() == [2, 6, 0]
    assert [(here.start, here.stop, positions.tolist()) for here, positions in chunks] == [(0, 2, [2, 6])]
    assert not results.any()


@pytest.mark.parametrize(("tokens", "chunks"), [(0, []), (300, [300]), (301, [256, 45]), (700, [256, 256, 188])])
def test_chunks_differ_little_and_consist_of_whole_tiles(tokens, chunks):
    found = busy_chunks(torch.zeros(tokens, dtype=torch.int64), -100, 300)
    assert [positions.shape[0] for _, positions in found] == chunks


@pytest.mark.parametrize(("width", "tokens"), [(64, 1024), (1024, 2048), (1536, 3072), (8192, 4096)])
def test_a_default_chunk_has_a_gradient_as_large_as_the_heads_or_is_cut(width, tokens):
    weight = torch.empty(10, width)
    assert ChunkOptions().tokens(weight) == tokens
    assert ChunkOptions(chunk_size=5).tokens(weight) == 5


@pytest.mark.parametrize(
    ("tokens", "sizes"), [(0, []), (7, [7]), (400, [256, 144]), (2048, [512] * 4), (2046, [512, 512, 512, 510])]
)
def test_the_parts_of_a_chunk_are_at_most_four_and_not_too_small(tokens, sizes):
    assert [part.stop - part.start for part in parts(tokens)] == sizes
    assert part_size(tokens) == max(sizes, default=0)


def test_rows_of_a_buffer_begin_where_wide_loads_may():
    rows = buffer(torch.empty(0), 3, 33, torch.float16)
    assert rows.shape == (3, 33)
    assert rows.stride() == (64, 1)
