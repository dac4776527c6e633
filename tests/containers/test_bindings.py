"""What a model holds: values that pickle, copy and cross processes, with the same kernels at the other end."""

from __future__ import annotations

import copy
import functools
import importlib
import io
import multiprocessing
import operator
import pickle

import pytest
import torch

from kernelkit import registry as registry_module
from kernelkit.containers import Binding, Bindings, KernelContainer, Need
from kernelkit.errors import UnknownNameError
from kernelkit.registry import KernelRegistry, default_registry, register_kernel
from tests.containers import fakes
from tests.containers.fakes import CPU, ONES, spec

NEEDS = [Need("rms_norm"), Need("attention", "causal", {"head_dim": 64})]


def bind(ops=None, registry=None, needs=NEEDS, override=None):
    container = KernelContainer.from_config(
        ops, registry=registry, hardware=None if registry is None else CPU, device="cpu"
    )
    if override is not None:
        container.override("rms_norm", override)
    return container.bind(needs, model="M")


def torch_saved(thing):
    stream = io.BytesIO()
    torch.save(thing, stream)
    stream.seek(0)
    return torch.load(stream, weights_only=False)


def pickled(thing):
    return pickle.loads(pickle.dumps(thing))


copies = pytest.mark.parametrize("twin", [pickled, torch_saved, copy.copy, copy.deepcopy])


# --- values


def test_bindings_are_a_mapping_by_op_and_variant():
    bindings = bind({"rms_norm": "torch"})
    assert list(bindings) == [("rms_norm", "standard"), ("attention", "causal")] and len(bindings) == 2
    assert bindings["rms_norm", "standard"].impl == "torch"
    assert bindings.get(("rms_norm", "fp32_weight")) is None and ("rms_norm", "fp32_weight") not in bindings
    assert repr(bindings) == "Bindings(rms_norm.standard: torch, attention.causal: sdpa)"


def test_a_kernel_that_was_not_asked_for_is_not_there():
    with pytest.raises(UnknownNameError) as refusal:
        bind()["rms_norm", "fp32_weight"]
    assert str(refusal.value) == (
        "no kernel is bound for ('rms_norm', 'fp32_weight'); bound are: rms_norm (standard), attention (causal)"
    )


def test_bindings_do_not_change():
    bindings = bind()
    with pytest.raises(TypeError):
        bindings["rms_norm", "standard"] = None
    with pytest.raises(AttributeError):
        bindings["rms_norm", "standard"].impl = "eager"
    with pytest.raises(TypeError, match="immutable"):
        bindings["attention", "causal"].traits["mask"] = "none"


def test_bindings_are_equal_by_value(registry):
    one, other = bind({"rms_norm": "torch"}), bind({"rms_norm": "torch"})
    assert one == other and hash(one) == hash(other)
    assert one != bind({"rms_norm": "eager"})
    tuned = [bind({"rms_norm": {"impl": "tuned", "scale": scale}}, registry) for scale in (1, 2, 2.0)]
    assert tuned[0] != tuned[1] == tuned[2] and len(set(tuned)) == 2


def test_a_need_is_a_value():
    assert {Need("a", "b", {"c": 1}), Need("a", "b", {"c": 1}), Need("a", "b", {"c": 2})} == {
        Need("a", "b", {"c": 1}),
        Need("a", "b", {"c": 2}),
    }


# --- round trips


@copies
def test_bindings_come_back_with_the_same_kernels_and_reasons(twin):
    bindings = bind({"rms_norm": "torch", "preset": "eager"})
    again = twin(bindings)
    assert again == bindings and hash(again) == hash(bindings)
    for key, binding in bindings.items():
        assert again[key].kernel is binding.kernel
        assert (again[key].why, again[key].named, again[key].traits) == (binding.why, binding.named, binding.traits)


@copies
def test_options_come_back(registry, monkeypatch, twin):
    monkeypatch.setattr(registry_module, "_default", [registry])
    binding = twin(bind({"rms_norm": {"impl": "tuned", "scale": 3}}, registry))["rms_norm", "standard"]
    assert binding.kernel.options == fakes.TunedOptions(scale=3.0)


@copies
def test_the_check_of_the_device_comes_back(registry, twin):
    registry.register(spec("guarded", hardware=fakes.HardwareRequirement(device_type=("cpu", "cuda"))))
    kernel = twin(bind({"rms_norm": "guarded"}, registry))["rms_norm", "standard"].kernel
    assert kernel.__wrapped__ is fakes.norm


@copies
def test_kernels_of_another_registry_come_back_if_their_factory_can_be_imported(registry, twin):
    registry.register(spec("module_level", factory=fakes.counted))
    for impl in ("torch", "module_level", {"impl": "tuned", "scale": 2}):
        bindings = bind({"rms_norm": impl}, registry)
        again = twin(bindings)
        assert again == bindings
        assert again["rms_norm", "standard"].kernel(ONES, ONES, 0.0).tolist() in ([1.0] * 4, [2.0] * 4)
    with pytest.raises(UnknownNameError):
        default_registry().get("rms_norm", "standard", "module_level")


@copies
def test_a_decorated_function_of_another_registry_comes_back_itself(registry, twin):
    register_kernel("rms_norm", "decorated", registry=registry)(fakes.other_norm)
    assert twin(bind({"rms_norm": "decorated"}, registry))["rms_norm", "standard"].kernel is fakes.other_norm


@pytest.mark.parametrize("override", [fakes.norm, operator.mul, torch.nn.functional.rms_norm])
@copies
def test_an_override_that_can_be_imported_comes_back_itself(override, twin):
    binding = bind(override=override)["rms_norm", "standard"]
    assert twin(binding) == binding
    assert (twin(binding).kernel, twin(binding).why, twin(binding).spec) == (override, "override", None)


@pytest.mark.parametrize("override", [functools.partial(fakes.norm, eps=1e-6), torch.nn.RMSNorm(4)])
@copies
def test_an_override_that_is_an_object_comes_back_if_it_pickles(override, twin):
    kernel = twin(bind(override=override))["rms_norm", "standard"].kernel
    assert type(kernel) is type(override) and repr(kernel) == repr(override)


def test_a_deep_copy_shares_the_kernels_whatever_they_are(registry):
    registry.register(spec("closure", factory=lambda: lambda *args: None))
    bindings = bind({"rms_norm": "closure"}, registry)
    assert copy.deepcopy(bindings) == bindings
    assert copy.deepcopy(bindings)["rms_norm", "standard"].kernel is bindings["rms_norm", "standard"].kernel


# --- what does not pickle says why


def test_a_closure_as_an_override_does_not_pickle_and_says_why():
    def local(hidden_states, weight, eps):
        return hidden_states

    for save in (pickle.dumps, torch_saved):
        with pytest.raises(pickle.PicklingError) as refusal:
            save(bind(override=local))
        message = str(refusal.value)
        assert message.startswith(
            "rms_norm: local (standard) cannot be pickled, because the override cannot: Can't pickle"
        )
        assert message.endswith("Override it with a function at the top level of a module.")


def test_a_kernel_of_another_registry_whose_factory_is_an_object_does_not_pickle_and_says_why(registry):
    registry.register(spec("closure", factory=lambda: fakes.norm))
    with pytest.raises(pickle.PicklingError) as refusal:
        pickle.dumps(bind({"rms_norm": "closure"}, registry))
    message = str(refusal.value)
    assert message.startswith("rms_norm: closure (standard) cannot be pickled, because its spec cannot:")
    assert message.endswith("Give its factory as 'module:attribute'.")


def test_a_kernel_that_is_not_registered_where_it_is_loaded_says_what_to_do(monkeypatch):
    monkeypatch.setattr(registry_module, "_default", [default_registry().copy()])
    register_kernel("rms_norm", "passing")(fakes.norm)
    stream = pickle.dumps(bind({"rms_norm": "passing"}))
    monkeypatch.setattr(registry_module, "_default", [KernelRegistry()])
    with pytest.raises(pickle.UnpicklingError) as refusal:
        pickle.loads(stream)
    assert str(refusal.value).startswith("rms_norm: passing (standard) is not registered here: unknown op 'rms_norm'.")
    assert str(refusal.value).endswith("Import what registers it before loading.")


def test_a_kernel_whose_module_is_gone_says_so(registry, monkeypatch):
    monkeypatch.setattr(registry_module, "_default", [registry])
    stream = pickle.dumps(bind({"rms_norm": "torch"}, registry)).replace(
        b"tests.containers.fakes", b"tests.containers.gone!"
    )
    monkeypatch.setattr(registry_module, "_default", [KernelRegistry()])
    with pytest.raises(
        pickle.UnpicklingError, match=r"is not registered here: No module named 'tests.containers.gone!'"
    ):
        pickle.loads(stream)


# --- other processes


def report(bindings, results):
    results.put([(*key, binding.impl, binding.why, result(binding)) for key, binding in bindings.items()])


def result(binding):
    return binding.kernel(2 * ONES, ONES, 0.0).tolist()


def test_a_spawned_process_rebuilds_the_bindings(registry):
    ours = bind({"rms_norm": {"impl": "tuned", "scale": 3}}, registry, NEEDS[:1])
    shipped = bind({"rms_norm": "torch"}, needs=[Need("rms_norm", "fp32_weight")])
    overridden = Binding.of_override("rms_norm", "zero_centered", fakes.norm)
    bindings = Bindings([*ours.values(), *shipped.values(), overridden])
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    process = context.Process(target=report, args=(bindings, results))
    process.start()
    assert results.get(timeout=120) == [
        ("rms_norm", "standard", "tuned", "named", [6.0] * 4),
        ("rms_norm", "fp32_weight", "torch", "named", result(bindings["rms_norm", "fp32_weight"])),
        ("rms_norm", "zero_centered", "norm", "override", [2.0] * 4),
    ]
    process.join()


REGISTERING = """
from kernelkit import register_kernel

@register_kernel("rms_norm", "from_a_module")
def norm(hidden_states, weight, eps):
    return 7 * hidden_states
"""

LOAD = """
import pickle, sys
bindings = pickle.load(open(sys.path[1] + "/bindings.pkl", "rb"))
print(bindings["rms_norm", "standard"].kernel(1, None, None))
"""


def test_another_process_finds_what_the_decorator_registered_in_a_module_of_the_users(tmp_path, monkeypatch, python):
    (tmp_path / "my_kernels.py").write_text(REGISTERING)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(registry_module, "_default", [default_registry().copy()])
    importlib.import_module("my_kernels")
    (tmp_path / "bindings.pkl").write_bytes(pickle.dumps(bind({"rms_norm": "from_a_module"}, needs=NEEDS[:1])))
    assert python(LOAD, tmp_path) == "7"
