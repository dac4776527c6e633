"""What a distillation loss by chunks owes beyond its numbers: memory, precision, and no work for nothing."""

from __future__ import annotations

import importlib

import pydantic
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from kernelkit.kernels import chunked_head, head, matmul
from kernelkit.kernels.distillation_loss import chunked_kernels
from tests.kernels.distillation_cases import BY_CHUNKS, CAPS, DIVERGENCES, case, kernel
from tests.kernels.judge import HALF

TOKENS, VOCABULARY, CHUNK = 96, 384, 8

kernels = importlib.import_module(f"kernelkit.kernels.distillation_loss.{BY_CHUNKS}_kernels")

each_divergence = pytest.mark.parametrize("divergence", DIVERGENCES, ids=lambda one: "-".join(map(str, one.values())))


class LargestTensor(TorchDispatchMode):
    """Records the largest storage that any operation leaves behind."""

    bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        tensors = [leaf for leaf in tree_flatten(result)[0] if isinstance(leaf, torch.Tensor)]
        self.bytes = max([self.bytes, *(tensor.untyped_storage().nbytes() for tensor in tensors)])
        return result


class Counted:
    """A function that keeps the shapes of the first arguments it was called with."""

    def __init__(self, function):
        self.function, self.shapes = function, []

    def __call__(self, *arguments, **keywords):
        self.shapes.append(tuple(arguments[0].shape))
        return self.function(*arguments, **keywords)


@pytest.fixture
def products(monkeypatch):
    """The three kinds of matrix product: of the logits, and of the gradients of hidden states and weight."""
    counted = {"logits": Counted(matmul.mm), "of_hidden": Counted(matmul.mm), "of_weight": Counted(matmul.add_mm_)}
    of_logits, of_gradients = (kernels, chunked_head) if BY_CHUNKS == "triton" else (head, kernels)
    monkeypatch.setattr(of_logits, "mm", counted["logits"])
    monkeypatch.setattr(of_gradients, "mm", counted["of_hidden"])
    monkeypatch.setattr(of_gradients, "add_mm_", counted["of_weight"])
    return counted


@each_divergence
@pytest.mark.parametrize("dtype", [torch.float32, HALF])
def test_no_tensor_is_larger_than_the_logits_of_a_chunk(divergence, dtype, monkeypatch):
    # A dispatch mode does not look into an operator; the function that it was made of is open.
    monkeypatch.setattr(kernels, "_sums", kernels._sums._init_fn)
    given = case((TOKENS,), VOCABULARY, biased=True, dtype=dtype, alpha=0.5, temperature=2.0, **CAPS, **divergence)
    with LargestTensor() as seen:
        given(kernel(BY_CHUNKS, chunk_size=CHUNK))
    chunk, weights = CHUNK * VOCABULARY * 4, VOCABULARY * 8 * 4
    assert seen.bytes == max(chunk, weights)
    with LargestTensor() as seen:
        given(kernel("eager"))
    assert seen.bytes >= TOKENS * VOCABULARY * 4


def test_the_backward_allocates_nothing_larger_than_the_gradients_it_returns():
    given = case((TOKENS,), VOCABULARY, dtype=HALF)
    loss = given(kernel(BY_CHUNKS, chunk_size=CHUNK)).loss
    with LargestTensor() as seen:
        loss.backward()
    assert seen.bytes == given.trained["student_weight"].nbytes


def test_positions_that_do_not_count_are_not_projected(products):
    given = case((10,))
    given.labels[:] = -100
    given.labels[2:7] = 1
    given(kernel(BY_CHUNKS, chunk_size=100))
    assert products["logits"].shapes == [(5, 5), (5, 8)]


def test_chunks_are_as_large_as_they_may_be_where_a_tile_is_larger(products):
    given = case((10,))
    given.labels[:] = 1
    given(kernel(BY_CHUNKS, chunk_size=4))
    assert sorted(products["of_hidden"].shapes) == [(2, 19), (4, 19), (4, 19)]


@pytest.mark.parametrize("frozen", ["student_weight", "student_hidden"])
def test_what_is_frozen_costs_no_product(frozen, products):
    given = case()
    given.trained[frozen].requires_grad_(False)
    output = given(kernel(BY_CHUNKS))
    output.loss.backward()
    assert len(products["of_weight"].shapes) == (frozen != "student_weight")
    assert len(products["of_hidden"].shapes) == (frozen != "student_hidden")
    assert given.trained[frozen].grad is None
    expected = case()
    expected(kernel("eager")).loss.backward()
    for name, tensor in given.trained.items():
        if name != frozen:
            torch.testing.assert_close(tensor.grad, expected.trained[name].grad)


def test_without_gradients_only_the_logits_are_computed(products):
    given = case()
    expected = given(kernel("eager"))
    with torch.no_grad():
        torch.testing.assert_close(tuple(given(kernel(BY_CHUNKS))), tuple(each.detach() for each in expected))
    assert len(products["logits"].shapes) == 2
    assert products["of_hidden"].shapes == products["of_weight"].shapes == []


def test_differentiating_twice_raises():
    given = case()
    loss = given(kernel(BY_CHUNKS)).loss
    with pytest.raises(RuntimeError, match="use distillation_loss: eager"):
        torch.autograd.grad(loss, given.trained["student_hidden"], create_graph=True)


@each_divergence
@pytest.mark.parametrize("rounds", [False, True], ids=["upcast", "rounds-like-a-gpu"])
def test_in_sixteen_bits_chunks_err_hardly_more_than_eager(divergence, rounds, monkeypatch):
    if rounds:
        # Where a device multiplies sixteen bits to float32, the gradient of the logits is rounded before it is used.
        monkeypatch.setattr(head, "product_dtype", lambda tensor: tensor.dtype)
    given = case((64,), 512, (64, 96), biased=True, dtype=HALF, temperature=2.0, alpha=0.1, **divergence)
    truth, exact = given.to(torch.float64).run(kernel("eager"))
    for name, loss in (("eager", kernel("eager")), (BY_CHUNKS, kernel(BY_CHUNKS, chunk_size=24))):
        output, gradients = given.run(loss)
        assert abs(output.loss - truth.loss) < 1e-6 * truth.loss
        error = {key: ((gradients[key] - right).norm() / right.norm()).item() for key, right in exact.items()}
        if name == "eager":
            usual = error
        assert all(error[key] < 1.8 * usual[key] for key in error), (error, usual)


@each_divergence
def test_nearly_equal_models_have_a_precise_gradient(divergence):
    given = case((64,), 512, (64, 64), dtype=torch.float32, **divergence)
    nudge = 1 + 1e-2 * torch.randn(64, generator=torch.Generator().manual_seed(1))
    given.teacher["teacher_hidden"] = given.trained["student_hidden"].detach() * nudge
    given.teacher["teacher_weight"] = given.trained["student_weight"].detach()
    truth, exact = given.to(torch.float64).run(kernel("eager"))
    output, gradients = given.run(kernel(BY_CHUNKS, chunk_size=24))
    assert truth.loss < 1e-3
    assert abs(output.loss - truth.loss) < 1e-2 * truth.loss
    for name, right in exact.items():
        assert (gradients[name] - right).norm() < 1e-3 * right.norm()


def test_distributions_without_a_common_token_stay_finite():
    given = case((2,), 3, (3, 3), dtype=torch.float32)
    given.labels[:] = 0
    given.trained["student_weight"] = (torch.eye(3) * 300).requires_grad_()
    given.teacher["teacher_weight"] = torch.eye(3) * 300
    given.trained["student_hidden"] = torch.eye(3)[:2].requires_grad_()
    given.teacher["teacher_hidden"] = torch.eye(3)[1:]
    for divergence in DIVERGENCES:
        found, expected = (given.run(loss, **divergence) for loss in (kernel(BY_CHUNKS), kernel("eager")))
        assert all(tensor.isfinite().all() for tensor in [*found[0], *found[1].values()])
        torch.testing.assert_close(found, expected)


def test_a_default_chunk_has_four_tensors_of_a_gib():
    assert chunked_kernels.default_chunk_size(151_936) == 512
    assert chunked_kernels.default_chunk_size(32_000) == 2176
    four_of_float32 = 4 * 4 * 32_000 * 2176
    assert four_of_float32 == pytest.approx(2**30, rel=0.05)


def test_a_chunk_without_a_token_is_refused():
    with pytest.raises(pydantic.ValidationError, match="chunk_size"):
        kernel(BY_CHUNKS, chunk_size=0)


@pytest.mark.gpu
@each_divergence
@pytest.mark.parametrize("name", ["chunked", "triton"])
def test_on_a_gpu_chunks_are_as_precise_as_eager_and_take_four_of_their_tensors(name, divergence):
    tokens, vocabulary, chunk = 4096, 32_000, 256
    given = case((tokens,), vocabulary, (256, 512), dtype=torch.bfloat16, device="cuda", **divergence)
    _, expected = given.run(kernel("eager"))
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    _, found = given.run(kernel(name, chunk_size=chunk))
    peak = torch.cuda.max_memory_allocated() - before
    kept = sum(tensor.numel() * (4 + tensor.element_size()) for tensor in given.trained.values())
    assert peak < kept + 4.5 * chunk * vocabulary * 4
    for name, right in expected.items():
        assert (found[name] - right).float().norm() < 1e-2 * right.float().norm()
