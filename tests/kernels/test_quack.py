"""The adapters of quack: on a CPU around stand-ins with its signatures, and on a GPU around the package itself."""

from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec
from importlib.util import find_spec

import pytest
import torch

from kernelkit.hardware import Hardware, HardwareRequirement
from kernelkit.kernels import requirements
from kernelkit.registry import default_registry
from kernelkit.testing import check_kernel
from kernelkit.testing.checks import CHECKS
from tests.kernels import quack_stand_in
from tests.kernels.judge import DEVICES, HALF, INTERPRETED, assert_as_good_as_eager, built, call_of, run, with_gradient

ADAPTERS = [f"kernelkit.kernels.{op}.quack_kernels" for op in ("rms_norm", "moe_experts", "cross_entropy_loss")]
ADAPTERS += [f"kernelkit.kernels.moe_experts.quack_{part}_kernels" for part in ("grouped", "epilogues")]
INSTALLED = {"quack-kernels": "0.6.5", "nvidia-cutlass-dsl": "4.8.1", "triton": "3.6.0"}
SPECS = [pytest.param(spec, id="-".join(spec.key)) for spec in default_registry().list(name="quack")]

each_device = pytest.mark.parametrize("device", DEVICES)
on_a_cpu = pytest.mark.parametrize("device", ["cpu"])
with_stand_ins = pytest.mark.usefixtures("calls")


@pytest.fixture(scope="module")
def calls():
    """The calls of quack's products, as its stand-in sees them."""
    if find_spec("quack"):
        pytest.skip("the stand-ins are for machines without quack")
    seen = []
    stand_ins = quack_stand_in.modules(seen)
    sys.modules.update(stand_ins)
    yield seen
    for name in (*stand_ins, *ADAPTERS):
        sys.modules.pop(name, None)


@pytest.fixture
def products(calls):
    calls.clear()
    return calls


@pytest.fixture
def quack(device, request):
    """Gives a kernel by the name of its op."""
    if device == "cpu":
        request.getfixturevalue("calls")

    def kernel(op, variant="standard"):
        spec = default_registry().get(op, variant, "quack")
        if device != "cpu":
            return built(spec, device, torch.bfloat16)
        skip_unless_it_runs(spec)
        return spec.build()

    return kernel


def skip_unless_it_runs(spec):
    if (spec.op == "moe_experts") != INTERPRETED:
        pytest.skip("the experts' sums are Triton's, and need its interpreter; the rest is no different there")


def anywhere(spec):
    packages = tuple(package for package in spec.packages if "triton" in package)
    return spec.model_copy(update={"hardware": HardwareRequirement(), "packages": packages, "probe": None})


def machine(capability=(9, 0), **packages):
    found = {**INSTALLED, **{name.replace("_", "-"): version for name, version in packages.items()}}
    there = {name: version for name, version in found.items() if version is not None}
    return Hardware(device_type="cuda", name="gpu", capability=capability, packages=there)


@with_stand_ins
@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("spec", SPECS)
def test_around_stand_ins_every_adapter_passes_every_check(spec, check):
    skip_unless_it_runs(spec)
    verdict = check_kernel(anywhere(spec), device="cpu", checks=[check])
    assert verdict.passed, str(verdict)


@pytest.mark.parametrize(
    ("hardware", "reason"),
    [
        (machine((8, 0)), "needs compute capability 9.0 or higher"),
        (machine(quack_kernels=None), "needs the package quack-kernels, which is not installed"),
        (machine(quack_kernels="0.6.4"), "needs quack-kernels==0.6.5, and quack-kernels 0.6.4 is installed"),
        (machine(quack_kernels="0.7.0"), "needs quack-kernels==0.6.5, and quack-kernels 0.7.0 is installed"),
        (machine(nvidia_cutlass_dsl=None), "needs the package nvidia-cutlass-dsl, which is not installed"),
        (machine(nvidia_cutlass_dsl="4.6.3"), "needs nvidia-cutlass-dsl>=4.7.1,<4.9, and nvidia-cutlass-dsl 4.6.3"),
        (machine(nvidia_cutlass_dsl="4.9.0"), "needs nvidia-cutlass-dsl>=4.7.1,<4.9, and nvidia-cutlass-dsl 4.9.0"),
    ],
)
@pytest.mark.parametrize("spec", SPECS)
def test_where_it_cannot_run_it_says_why(spec, hardware, reason):
    assert spec.problem(hardware).startswith(reason)


@pytest.mark.parametrize("spec", SPECS)
def test_where_it_can_run_nothing_is_in_its_way(spec, monkeypatch):
    monkeypatch.setattr(requirements, "find_spec", lambda name: cutlass_in("/env/lib/site-packages"))
    assert spec.problem(machine(), dtype="bfloat16") is None
    blackwell = spec.problem(machine((10, 0)))
    assert blackwell is None or (spec.op == "cross_entropy_loss" and "9.0 or lower" in blackwell)


def cutlass_in(folder):
    return ModuleSpec("cutlass", None, origin=f"{folder}/nvidia_cutlass_dsl/dsl_packages/cutlass/__init__.py")


@pytest.mark.parametrize(
    ("found", "reason"),
    [
        (None, "finds no module cutlass"),
        (cutlass_in("/srv/packages"), "does not load with the CUTLASS DSL in /srv/packages/nvidia_cutlass_dsl"),
        (cutlass_in("/usr/lib/python3/dist-packages"), None),
    ],
)
@pytest.mark.parametrize("op", ["cross_entropy_loss", "moe_experts"])
def test_epilogues_ask_for_a_folder_that_quack_takes_the_dsl_from(op, found, reason, monkeypatch):
    monkeypatch.setattr(requirements, "find_spec", lambda name: found)
    said = default_registry().get(op, "standard", "quack").problem(machine())
    assert said is None if reason is None else said.startswith(reason)


def loss_arguments(device, tokens=5, hidden=16, vocabulary=256, dtype=torch.bfloat16):
    generator = torch.Generator(device).manual_seed(0)
    states, weight = (
        torch.randn(size, hidden, generator=generator, device=device).to(dtype) for size in (tokens, vocabulary)
    )
    labels = torch.randint(vocabulary, (tokens,), generator=generator, device=device)
    return {"hidden_states": states, "weight": weight * hidden**-0.5, "labels": labels}


@each_device
@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"bias": torch.zeros(256)}, "no bias"),
        ({"softcap": 30.0}, "no softcap"),
        ({"logit_scale": 0.5}, "no logit_scale"),
        ({"z_loss_coef": 1e-4}, "no z_loss_coef"),
        (loss_arguments("cpu", dtype=torch.float16), "bfloat16, not torch.float16 and torch.float16"),
        (loss_arguments("cpu", vocabulary=200), "a vocabulary of multiples of 128, not 200"),
        (loss_arguments("cpu", hidden=20), "hidden sizes that are multiples of 8 and not 128, not 20"),
        (loss_arguments("cpu", hidden=128), "hidden sizes that are multiples of 8 and not 128, not 128"),
        ({"bias": torch.zeros(256), "softcap": 30.0}, "no bias and no softcap"),
    ],
)
def test_what_the_loss_does_not_compute_it_refuses_by_name(settings, reason, quack, device):
    arguments = {**loss_arguments("cpu"), **settings}
    moved = {name: value.to(device) if torch.is_tensor(value) else value for name, value in arguments.items()}
    with pytest.raises(ValueError, match=f"cross_entropy_loss: quack takes {reason}"):
        quack("cross_entropy_loss")(**moved)


@each_device
@pytest.mark.parametrize(
    "settings", [{"num_items_in_batch": 3}, {"ignore_index": 7}, {"return_logits": True}, {"ignore_index": -1}]
)
def test_what_the_loss_computes_is_as_good_as_eagers(settings, quack, device):
    arguments = loss_arguments(device, tokens=300)
    arguments["labels"][::3] = settings.get("ignore_index", -100)
    spec = default_registry().get("cross_entropy_loss", "standard", "quack")
    assert_as_good_as_eager(quack("cross_entropy_loss"), spec, call_of("cross_entropy_loss", {**arguments, **settings}))


@each_device
@pytest.mark.parametrize(("tokens", "hidden"), [(128, 256), (256, 256), (300, 384), (513, 256)])
def test_no_chunk_of_the_loss_has_as_many_tokens_as_the_hidden_size(tokens, hidden, quack, device):
    """Quack takes the factors of rows for those of columns, or raises."""
    spec = default_registry().get("cross_entropy_loss", "standard", "quack")
    quack("cross_entropy_loss")
    kernel = spec.build(spec.options(chunk_size=256))
    assert_as_good_as_eager(kernel, spec, call_of("cross_entropy_loss", loss_arguments(device, tokens, hidden)))


@each_device
def test_without_labels_or_tokens_the_loss_and_its_gradients_are_those_of_eager(quack, device):
    arguments = loss_arguments(device)
    arguments["labels"].fill_(-100)
    lost = run(quack("cross_entropy_loss"), call_of("cross_entropy_loss", arguments))
    assert lost.outputs[0].isnan() and not any(gradient.count_nonzero() for gradient in lost.gradients)
    arguments = {**loss_arguments(device, tokens=0), "num_items_in_batch": 3}
    nothing = run(quack("cross_entropy_loss"), call_of("cross_entropy_loss", arguments))
    assert nothing.outputs[0] == 0 and not nothing.gradients[1].count_nonzero()


@each_device
@pytest.mark.parametrize("trained", ["hidden_states", "weight"])
def test_what_is_frozen_takes_no_gradient_from_the_rest(trained, quack, device):
    def gradients(*names):
        arguments = loss_arguments(device)
        leaves = [arguments[name].requires_grad_() for name in names]
        loss, _ = call_of("cross_entropy_loss", arguments)(kernel)
        return dict(zip(names, torch.autograd.grad(loss, leaves), strict=True))

    kernel = quack("cross_entropy_loss")
    assert torch.equal(gradients(trained)[trained], gradients("hidden_states", "weight")[trained])


def misplaced(tensor):
    """The same values, at an address that no sixteen bytes divide."""
    return torch.cat((tensor.new_zeros(1), tensor.flatten()))[1:].view(tensor.shape)


def assert_same_wherever_they_lie(kernel, *arguments, change=misplaced):
    """``change`` makes tensors of the same values."""

    def called(arguments):
        given = [argument.detach() if torch.is_tensor(argument) else argument for argument in arguments]
        leaves = [each.requires_grad_() for each in given if torch.is_tensor(each) and each.is_floating_point()]
        output = kernel(*given)
        return output, *torch.autograd.grad(output.sum(), leaves)

    changed = [change(each) if torch.is_tensor(each) and each.ndim != 2 else each for each in arguments]
    assert all(map(torch.equal, called(changed), called(arguments)))


@each_device
@pytest.mark.parametrize("width", [33, 34, 64])
@pytest.mark.parametrize("wide", [False, True])
def test_a_norm_of_rows_that_begin_anywhere_in_memory(width, wide, quack, device):
    states = torch.randn(1, 9, width, device=device).bfloat16()
    weight = torch.randn(width, device=device).to(torch.float32 if wide else torch.bfloat16)
    for spec in default_registry().list("rms_norm", name="quack"):
        kernel = quack("rms_norm", spec.variant)
        assert_same_wherever_they_lie(kernel, states, weight, 1e-6)
        assert_as_good_as_eager(
            kernel, spec, call_of("rms_norm", {"hidden_states": states, "weight": weight, "eps": 1e-6})
        )


def expert_arguments(device, hidden=32, width=16):
    generator = torch.Generator(device).manual_seed(0)
    states, up, down = (
        torch.randn(size, generator=generator, device=device).to(HALF) * 0.2
        for size in ((6, hidden), (4, 2 * width, hidden), (4, hidden, width))
    )
    index = torch.rand(6, 4, generator=generator, device=device).argsort(-1)[:, :2]
    weights = torch.rand(6, 2, generator=generator, device=device).to(HALF)
    return {
        "hidden_states": states, "top_k_index": index, "top_k_weights": weights, "gate_up_proj": up, "down_proj": down,
    }  # fmt: skip


@on_a_cpu
@pytest.mark.parametrize(("capability", "tiled"), [((9, 0), True), ((10, 0), False)])
def test_experts_are_six_products_with_tiles_of_ours_on_hopper(capability, tiled, quack, products, monkeypatch):
    kernel, call = quack("moe_experts"), with_gradient(call_of("moe_experts", expert_arguments("cpu")))
    monkeypatch.setattr(f"{ADAPTERS[-2]}.get_device_capacity", lambda _: capability)
    (output,), kept = saved_by(lambda: call(kernel))
    assert len(products) == 2
    output.sum().backward()
    assert len(products) == 6 and all((call["config"] is not None) == tiled for call in products)
    assert ["cu_seqlens_k" in call for call in products] == [False, False, False, True, True, False]
    rows = [tuple(tensor.shape) for tensor in kept if len(tensor) == 12 and tensor.is_floating_point()]
    assert rows == [(12, 32)]


@on_a_cpu
def test_frozen_experts_cost_no_product(quack, products):
    call = with_gradient(call_of("moe_experts", expert_arguments("cpu")))
    for name in ("gate_up_proj", "down_proj"):
        call.arguments[name].requires_grad_(False)
    (output,) = call(quack("moe_experts"))
    output.sum().backward()
    assert len(products) == 4


def saved_by(forward):
    """What ``forward`` gives, and the tensors that autograd keeps of it."""
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        return forward(), kept


@each_device
def test_experts_of_sizes_that_quack_cannot_copy_are_refused(quack, device):
    assert "multiples of 8" in default_registry().get("moe_experts", "standard", "quack").refuses
    with pytest.raises(ValueError, match="moe_experts: quack takes sizes that are multiples of 8"):
        call_of("moe_experts", expert_arguments(device, width=12))(quack("moe_experts"))


@each_device
@pytest.mark.parametrize("change", [misplaced, lambda tensor: tensor.mT.contiguous().mT])
def test_experts_take_weights_as_they_lie_in_memory(change, quack, device):
    assert_same_wherever_they_lie(quack("moe_experts"), *expert_arguments(device).values(), change=change)
