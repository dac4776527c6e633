"""Machines as values, what kernels ask of them, and packages."""

from __future__ import annotations

import pickle
from types import SimpleNamespace

import pytest
import torch
from pydantic import ValidationError

from kernelkit.hardware import Hardware, HardwareRequirement
from kernelkit.packages import installed_packages, package_problem

CUDA = HardwareRequirement(device_type="cuda")
HOPPER = HardwareRequirement(device_type="cuda", min_capability=(9, 0), max_capability=(9, 9))

without_cuda = pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")


@pytest.mark.parametrize("device", ["cpu", "cpu:0", torch.device("cpu")])
def test_a_device_is_anything_that_torch_takes(device):
    found = Hardware.detect(device)
    assert (found.device_type, found.name, found.capability) == ("cpu", "cpu", None)
    assert found.packages["torch"] == torch.__version__


@without_cuda
@pytest.mark.parametrize("device", [None, "meta"])
def test_without_an_accelerator_the_machine_is_its_cpu(device):
    assert Hardware.detect(device).device_type == "cpu"


@without_cuda
@pytest.mark.parametrize("device", ["cuda", "cuda:1", "xpu", "hpu", "cpu:7"])
def test_a_device_that_this_machine_lacks_is_refused_with_the_way_to_check_a_config_for_it(device):
    with pytest.raises(RuntimeError, match=rf"no device '{device}'.*Hardware.named\('h100'\)"):
        Hardware.detect(device)


def test_what_torch_does_not_know_is_refused_in_its_own_words():
    with pytest.raises(RuntimeError, match="Expected one of cpu, cuda"):
        Hardware.detect("gpu")


@pytest.fixture
def gpu(monkeypatch):
    """A machine with two GPUs, as torch would describe it."""
    properties = SimpleNamespace(name="Some GPU", major=8, minor=6)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)


def test_an_nvidia_gpu_has_a_compute_capability(gpu, monkeypatch):
    monkeypatch.setattr(torch.version, "hip", None)
    found = Hardware.detect("cuda:1")
    assert (found.device_type, found.name, found.capability) == ("cuda", "Some GPU", (8, 6))
    with pytest.raises(RuntimeError, match="no device 'cuda:2'"):
        Hardware.detect("cuda:2")


def test_an_amd_gpu_is_a_cuda_device_without_a_compute_capability(gpu, monkeypatch):
    monkeypatch.setattr(torch.version, "hip", "6.4")
    found = Hardware.detect("cuda")
    assert CUDA.problem(found) is None
    assert HOPPER.problem(found) == "needs an NVIDIA GPU, not Some GPU (cuda)"


@pytest.mark.gpu
def test_the_gpu_of_this_machine_is_found():
    found = Hardware.detect()
    assert found.device_type == "cuda" and found.name == torch.cuda.get_device_name()
    assert found.capability == torch.cuda.get_device_capability()


@pytest.mark.parametrize(
    ("name", "device_type", "capability"),
    [
        ("cpu", "cpu", None),
        ("a100", "cuda", (8, 0)),
        ("H100", "cuda", (9, 0)),
        ("h200", "cuda", (9, 0)),
        ("b200", "cuda", (10, 0)),
        ("MI300X", "cuda", None),
        ("npu", "npu", None),
        ("xpu", "xpu", None),
    ],
)
def test_a_machine_has_a_common_name_in_upper_or_lower_case(name, device_type, capability):
    named = Hardware.named(name)
    assert (named.device_type, named.name, named.capability) == (device_type, name.lower(), capability)
    assert named.packages is None


def test_an_unknown_machine_is_refused_with_the_nearest_and_all_known_ones():
    with pytest.raises(ValueError, match=r"unknown hardware 'h10'. Did you mean 'h100'\? Valid: cpu, a100, h100"):
        Hardware.named("h10")


def test_hardware_is_a_value():
    one, other = (Hardware(device_type="cuda", name="x", packages={"a": "1"}) for _ in range(2))
    assert one == other and hash(one) == hash(other)
    assert pickle.loads(pickle.dumps(one)) == one
    assert one != Hardware(device_type="cuda", name="x", packages={"a": "2"})


def test_hardware_does_not_change():
    hardware = Hardware(device_type="cuda", name="x", packages={"a": "1"})
    with pytest.raises(ValidationError):
        hardware.name = "y"
    with pytest.raises(TypeError, match="immutable"):
        hardware.packages["a"] = "2"


@pytest.mark.parametrize(
    ("hardware", "text"),
    [
        (Hardware.named("cpu"), "cpu"),
        (Hardware.named("mi300x"), "mi300x (cuda)"),
        (Hardware.named("h100"), "h100 (cuda, compute capability 9.0)"),
    ],
)
def test_hardware_says_in_messages_what_matters_of_it(hardware, text):
    assert str(hardware) == text


@pytest.mark.parametrize(
    ("requirement", "machine", "problem"),
    [
        (HardwareRequirement(), "npu", None),
        (HardwareRequirement(min_capability=(8, 0)), "cpu", "needs an NVIDIA GPU, not cpu"),
        (CUDA, "h100", None),
        (CUDA, "mi300x", None),
        (CUDA, "cpu", "runs on cuda, not on cpu"),
        (HardwareRequirement(device_type=("cuda", "xpu")), "xpu", None),
        (HardwareRequirement(device_type=("cuda", "xpu")), "npu", "runs on cuda or xpu, not on npu"),
        (HOPPER, "h200", None),
        (HOPPER, "a100", "needs compute capability 9.0 or higher, not a100 (cuda, compute capability 8.0)"),
        (HOPPER, "b200", "needs compute capability 9.9 or lower, not b200 (cuda, compute capability 10.0)"),
        (HOPPER, "mi300x", "needs an NVIDIA GPU, not mi300x (cuda)"),
    ],
)
def test_a_requirement_says_why_a_machine_does_not_meet_it(requirement, machine, problem):
    assert requirement.problem(Hardware.named(machine)) == problem


@pytest.mark.parametrize(
    "fields",
    [
        {"device_type": "cuda:1"},
        {"device_type": ()},
        {"device_type": ("cpu", "any")},
        {"min_capability": (9, 0), "max_capability": (8, 0)},
        {"min_capability": 9.0},
        {"min_capabilty": (9, 0)},
    ],
)
def test_a_requirement_that_nothing_can_meet_is_refused(fields):
    with pytest.raises(ValidationError):
        HardwareRequirement(**fields)


INSTALLED = {"liger-kernel": "0.8.5", "torch": "2.13.0+cpu", "triton": "3.7.0rc1", "flash-attn": "2.7.0.post2"}


@pytest.mark.parametrize(
    ("requirement", "problem"),
    [
        ("liger-kernel>=0.8,<0.9", None),
        ("Liger_Kernel>=0.8", None),
        ("torch==2.13.0", None),
        ("triton>=3.6", None),
        ("triton>=3.7", "needs triton>=3.7, and triton 3.7.0rc1 is installed: pip install 'triton>=3.7'"),
        ("flash-attn>=2.7", None),
        ("liger-kernel[extra]>=0.8", None),
        ("liger-kernel>=0.9", "needs liger-kernel>=0.9, and liger-kernel 0.8.5 is installed"),
        ("quack[cu13]>=1", "needs the package quack, which is not installed: pip install 'quack[cu13]>=1'"),
        ("quack; python_version < '3'", None),
        ("quack; python_version > '3'", "needs the package quack"),
    ],
)
def test_a_package_requirement_is_read_by_the_standard_rules(requirement, problem):
    found = package_problem(requirement, INSTALLED)
    assert found is None if problem is None else found.startswith(problem)


def test_where_packages_cannot_be_known_they_are_taken_as_installed():
    assert package_problem("quack>=1", None) is None


def test_a_package_that_is_installed_while_we_run_is_seen(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    assert "brand-new" not in installed_packages()
    for folder, facts in {"brand_new-2.dist-info": "Name: Brand_New\nVersion: 2\n", "broken-1.dist-info": ""}.items():
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "METADATA").write_text(facts)
    assert installed_packages()["brand-new"] == "2"
    assert "broken" not in installed_packages()
