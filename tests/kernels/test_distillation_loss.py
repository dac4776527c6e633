"""The distillation loss: its mathematics and its contract, for the kernels that run on a CPU."""

from __future__ import annotations

import pytest
import torch
from liger_kernel.chunked_loss.jsd_loss import LigerFusedLinearJSDFunction
from torch.nn import functional as F

from kernelkit.ops.distillation_loss import samples
from tests.kernels.distillation_cases import (
    BY_CHUNKS,
    CAPS,
    DIVERGENCES,
    agreeing,
    by_hand,
    case,
    every_mix,
    identifier,
    kernel,
)
from tests.kernels.judge import HALF, INTERPRETED

EAGER, CHUNKED = kernel("eager"), kernel(BY_CHUNKS, chunk_size=3)
KERNELS = {BY_CHUNKS: CHUNKED} if INTERPRETED else {"eager": EAGER, BY_CHUNKS: CHUNKED}

each_kernel = pytest.mark.parametrize("loss", KERNELS.values(), ids=KERNELS)
each_divergence = pytest.mark.parametrize("divergence", DIVERGENCES, ids=lambda one: "-".join(map(str, one.values())))


@pytest.fixture(autouse=True)
def one_thread():
    """For tensors as small as these, waking a second thread takes longer than the work."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("given", every_mix(), ids=identifier)
def test_eager_is_the_formula(given):
    expected = by_hand(given)
    gradients = torch.autograd.grad(expected.loss, [*given.trained.values()])
    output, found = given.run(EAGER)
    torch.testing.assert_close(tuple(output), tuple(expected))
    torch.testing.assert_close([*found.values()], [*gradients])


@pytest.mark.parametrize("given", every_mix(), ids=identifier)
def test_chunks_of_any_size_give_what_eager_gives(given):
    expected = given.run(EAGER)
    for chunk_size in (1, 3, 100):
        torch.testing.assert_close(given.run(kernel(BY_CHUNKS, chunk_size=chunk_size)), expected)


@pytest.mark.parametrize("beta", [0.0, 0.1, 0.5, 1.0])
def test_beta_means_what_it_means_in_trl_and_liger(beta):
    given = case(temperature=2.0)
    student = F.linear(given.trained["student_hidden"], given.trained["student_weight"]) / 2
    teacher = F.linear(given.teacher["teacher_hidden"], given.teacher["teacher_weight"]) / 2
    theirs = LigerFusedLinearJSDFunction.distillation_loss_fn(student, teacher, beta, given.labels, -100)
    torch.testing.assert_close(given(EAGER, divergence="jsd", beta=beta, num_items_in_batch=1).loss, theirs)


@each_kernel
def test_the_ends_of_jsd_are_the_two_kl(loss):
    given = case(alpha=0.2, temperature=2.0)
    for beta, divergence in ((0, "forward_kl"), (1, "reverse_kl")):
        torch.testing.assert_close(given.run(loss, divergence="jsd", beta=beta), given.run(loss, divergence=divergence))


@each_kernel
@each_divergence
def test_the_gradient_is_that_of_the_loss(loss, divergence):
    given = case((4,), 5, (3, 2), biased=True, alpha=0.4, temperature=1.5, **CAPS, **divergence)
    inputs = tuple(given.trained.values())
    assert torch.autograd.gradcheck(lambda *_: given(loss).loss, inputs)


@each_kernel
@each_divergence
def test_models_that_agree_have_no_divergence_and_no_gradient(loss, divergence):
    output, gradients = agreeing(shape=(40,), dtype=torch.float32, **divergence).run(loss)
    assert abs(output.loss) < 1e-6
    assert output.agreement == 1
    assert all(gradient.abs().max() < 1e-6 for gradient in gradients.values())


@each_divergence
def test_chunks_of_models_that_agree_are_zero_to_the_last_bit_of_a_probability(divergence):
    output, gradients = agreeing(shape=(40,), dtype=torch.float32, **divergence).run(CHUNKED)
    assert abs(output.loss) < 1e-8
    assert all(gradient.abs().max() < 1e-8 for gradient in gradients.values())


@each_kernel
def test_the_square_of_the_temperature_reaches_the_gradient(loss):
    given = case(temperature=3.0, alpha=0.0)
    plain, gradients = given.run(loss)
    squared, squared_gradients = given.run(loss, temperature_squared=True)
    torch.testing.assert_close(squared.loss, 9 * plain.loss)
    torch.testing.assert_close(squared.divergence, 9 * plain.divergence)
    for name, gradient in gradients.items():
        torch.testing.assert_close(squared_gradients[name], 9 * gradient)


@each_kernel
def test_the_loss_is_the_mix_of_the_parts_it_is_returned_with(loss):
    output = case(alpha=0.3, temperature=2.0, temperature_squared=True)(loss)
    torch.testing.assert_close(output.loss.detach(), 0.3 * output.cross_entropy + 0.7 * output.divergence)


@each_kernel
@pytest.mark.parametrize("count", [11, torch.tensor(11)], ids=["int", "tensor"])
def test_losses_and_gradients_of_micro_batches_add_up_to_those_of_the_batch(loss, count):
    given = case((9,), divergence="jsd", alpha=0.5)
    whole, gradients = given.run(loss, num_items_in_batch=count)
    for sizes in ([1, 8], [4, 4, 1]):
        summed, added = torch.zeros(4, dtype=torch.float64), dict.fromkeys(gradients, 0)
        start = 0
        for size in sizes:
            part = case((9,), divergence="jsd", alpha=0.5)
            part.labels[:start] = part.labels[start + size :] = -100
            output, of_part = part.run(loss, num_items_in_batch=count)
            summed += torch.stack([each.detach() for each in output])
            added = {name: gradient + of_part[name] for name, gradient in added.items()}
            start += size
        torch.testing.assert_close(summed, torch.stack([each.detach() for each in whole]))
        torch.testing.assert_close(added, gradients)


@each_kernel
def test_only_positions_that_count_matter_even_if_it_is_one(loss):
    given = case((6,), ignore_index=3)
    given.labels[:] = torch.tensor([3, 3, 3, 3, 5, 3])
    output, gradients = given.run(loss)
    torch.testing.assert_close(tuple(output), tuple(by_hand(given)))
    assert gradients["student_hidden"].count_nonzero(dim=1).tolist() == [0, 0, 0, 0, 5, 0]


@each_kernel
def test_without_any_label_the_loss_is_nan_and_the_gradients_are_zero(loss):
    given = case(alpha=0.5)
    given.labels[:] = -100
    output, gradients = given.run(loss)
    assert all(each.isnan() for each in output)
    assert all(gradient.count_nonzero() == 0 for gradient in gradients.values())
    assert [each.item() for each in given(loss, num_items_in_batch=4)] == [0, 0, 0, 0]


@each_kernel
def test_no_tokens_are_a_batch_too(loss):
    output, gradients = case((0,)).run(loss, num_items_in_batch=2)
    assert output.loss == 0
    assert gradients["student_weight"].count_nonzero() == 0


@each_kernel
def test_nothing_but_the_student_gets_a_gradient_and_nothing_but_the_loss_has_one(loss):
    given = case(biased=True)
    given.teacher = {name: tensor.requires_grad_() for name, tensor in given.teacher.items()}
    output = given(loss)
    output.loss.backward()
    assert [each.requires_grad for each in output] == [True, False, False, False]
    assert all(tensor.grad is not None for tensor in given.trained.values())
    assert all(tensor.grad is None or tensor.grad.count_nonzero() == 0 for tensor in given.teacher.values())


@each_kernel
def test_inputs_stay_as_they_are_and_a_second_backward_gives_the_same(loss):
    given = case(biased=True, alpha=0.5, divergence="jsd", temperature=2.0, **CAPS)
    inputs = [*given.trained.values(), *given.teacher.values(), given.labels]
    before = [(tensor.detach().clone(), tensor._version) for tensor in inputs]
    output = given(loss)
    first, second = (
        torch.autograd.grad(3 * output.loss, [*given.trained.values()], retain_graph=True) for _ in range(2)
    )
    torch.testing.assert_close(second, first, rtol=0, atol=0)
    for tensor, (value, version) in zip(inputs, before, strict=True):
        assert torch.equal(tensor, value)
        assert tensor._version == version


@each_kernel
@pytest.mark.parametrize("dtype", dict.fromkeys([torch.float32, HALF, torch.float16]))
def test_losses_are_float32_and_gradients_have_the_dtype_of_their_tensors(loss, dtype):
    output, gradients = case(dtype=dtype, biased=True, alpha=0.5).run(loss)
    assert {each.dtype for each in output} == {torch.float32}
    assert {gradient.dtype for gradient in gradients.values()} == {dtype}


@each_kernel
def test_a_teacher_may_have_another_dtype_than_its_student(loss):
    given = case(dtype=torch.float32)
    expected = given.run(EAGER)
    given.teacher = {name: tensor.to(torch.bfloat16) for name, tensor in given.teacher.items()}
    torch.testing.assert_close(given.run(loss), expected, rtol=0.1, atol=0.01)


@each_kernel
def test_under_autocast_operands_are_rounded_and_logits_are_not(loss):
    given = case(dtype=torch.float32, widths=(64, 32))
    expected, _ = given.to(torch.bfloat16).run(EAGER)
    with torch.autocast("cpu", torch.bfloat16):
        found = given(loss)
    torch.testing.assert_close(tuple(found), tuple(expected), rtol=1e-6, atol=1e-6)


@each_kernel
@pytest.mark.parametrize("training", [True, False], ids=["training", "inference"])
def test_torch_compile_traces_the_loss_whole(loss, training):
    given = case(divergence="jsd", alpha=0.5, biased=True)
    torch.compiler.reset()
    traced = torch.compile(lambda **arguments: loss(**arguments), backend="aot_eager", fullgraph=True)
    if training:
        torch.testing.assert_close(given.run(traced), given.run(loss))
    else:
        with torch.no_grad():
            torch.testing.assert_close(given(traced), given(loss))


@each_kernel
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"divergence": "reverse"}, "unknown divergence 'reverse'. Did you mean 'reverse_kl'?"),
        ({"divergence": "jsd", "beta": 1.5}, "beta is 1.5, and must be between 0 and 1"),
        ({"alpha": -0.1}, "alpha is -0.1"),
        ({"temperature": 0.0}, "temperature is 0.0, and must be positive"),
        ({"teacher_weight": torch.ones(20, 8)}, "the student's vocabulary has 19 tokens and the teacher's 20"),
        ({"teacher_hidden": torch.ones(6, 8)}, r"teacher_hidden is \[6, 8\], .* it must be \[7, 8\]"),
        ({"student_hidden": torch.ones(7, 4)}, r"student_hidden is \[7, 4\], .* it must be \[7, 5\]"),
    ],
)
def test_what_cannot_be_meant_is_refused(loss, settings, message):
    given = case()
    with pytest.raises(ValueError, match=message):
        loss(**{**given.trained, **given.teacher, "labels": given.labels, **settings})


@each_kernel
def test_the_samples_of_the_op_are_calls_that_every_kernel_takes(loss):
    generator = torch.Generator().manual_seed(0)
    for arguments, settings in samples("standard", torch.float32, torch.device("cpu"), generator):
        torch.testing.assert_close(loss(*arguments, **settings), EAGER(*arguments, **settings))
