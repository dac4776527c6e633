"""Plug-ins: the sample one, installed as a user would, and broken ones."""

from __future__ import annotations

import importlib
import shutil
import subprocess
import sys

import pytest

from kernelkit import registry as registry_module
from kernelkit.containers import KernelContainer, Need, OpsConfig
from kernelkit.registry import default_registry
from tests.conftest import ROOT


@pytest.fixture(scope="module")
def site_packages(tmp_path_factory):
    """A folder into which the sample plug-in is installed."""
    folder = tmp_path_factory.mktemp("plugin")
    source, target = folder / "source", folder / "site-packages"
    shutil.copytree(ROOT / "examples" / "plugin", source)  # a build leaves files in its source
    options = ["--no-build-isolation", "--no-deps", "--no-index", "--quiet", "--disable-pip-version-check"]
    subprocess.run([sys.executable, "-m", "pip", "install", *options, "--target", target, source], check=True)
    return target


USE_THE_SAMPLE = """
import pickle, torch
from kernelkit import OpsConfig, KernelContainer, default_registry
from kernelkit.containers import Need

registry = default_registry()
assert registry.broken_plugins == {}, registry.broken_plugins
assert registry.impls("layer_scale") == ["eager", "torch"]
assert "double" in registry.impls("rms_norm", "standard")

container = KernelContainer.from_config(OpsConfig(layer_scale="torch", rms_norm="double"), device="cpu")
bindings = container.bind([Need("layer_scale"), Need("rms_norm")], model="a stranger's model")
ones = torch.ones(2, 4)
assert bindings["layer_scale", "standard"].kernel(ones, ones, 3 * ones[0]).tolist() == [[4.0] * 4] * 2
assert bindings["rms_norm", "standard"].kernel(3 * ones, ones[0], 0.0).tolist() == [[1.0] * 4] * 2
assert pickle.loads(pickle.dumps(bindings)) == bindings

schema = OpsConfig.model_json_schema()["properties"]
assert "double" in schema["rms_norm"]["anyOf"][0]["enum"] and "layer_scale" in schema
eager = KernelContainer.from_config({"preset": "eager"}, device="cpu").bind([Need("layer_scale")], model="M")
assert eager["layer_scale", "standard"].why == "preset eager"
print("used")
"""


def test_the_sample_plugin_is_installed_found_and_used(site_packages, python):
    assert python(USE_THE_SAMPLE, site_packages) == "used"


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Put a plug-in on the path, with a default registry that is still to be filled. ``body`` is its only module."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(registry_module, "_default", [])
    names = []

    def write(name: str, body: str, target: str = ":register") -> None:
        (tmp_path / f"{name}.py").write_text(body)
        facts = tmp_path / f"{name}-1.0.dist-info"
        facts.mkdir()
        (facts / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (facts / "entry_points.txt").write_text(f"[kernelkit.kernels]\n{name} = {name}{target}\n")
        names.append(name)
        importlib.invalidate_caches()

    yield write
    for name in names:
        sys.modules.pop(name, None)


SPEC = """
from kernelkit import KernelSpec

def spec(name, op="rms_norm"):
    return KernelSpec(op=op, variant="standard", name=name, factory="operator:add")
"""


@pytest.mark.parametrize(
    ("body", "target", "reason"),
    [
        ("import no_such_package", ":register", "ModuleNotFoundError: No module named 'no_such_package'"),
        ("def register(registry): raise OSError('no licence')", ":register", "OSError: no licence"),
        ("raise SystemExit('too old')", ":register", "SystemExit: too old"),
        ("", ":register", "AttributeError: module 'acme' has no attribute 'register'"),
        ("", "", "TypeError: 'module' object is not callable"),
        (f"{SPEC}\ndef register(registry): registry.register(spec('acme', 'rms_nrom'))", ":register", "Did you mean"),
    ],
)
def test_a_broken_plugin_is_reported_with_its_reason_and_breaks_nothing_else(install, body, target, reason):
    install("acme", body, target)
    install("other", f"{SPEC}\ndef register(registry): registry.register(spec('other'))")
    broken = default_registry().broken_plugins
    assert list(broken) == [f"acme (acme{target})"]
    assert reason in broken[f"acme (acme{target})"]
    assert "other" in default_registry().impls("rms_norm")
    container = KernelContainer.from_config({"rms_norm": "eager"}, device="cpu")
    assert container.bind([Need("rms_norm")], model="M")["rms_norm", "standard"].impl == "eager"


def test_a_plugin_that_fails_halfway_leaves_nothing_behind(install):
    body = """
    def register(registry):
        registry.register(spec("half"))
        registry.register(spec("eager"), replace=True)
        1 / 0
    """
    install("acme", SPEC + "\n".join(line[4:] for line in body.splitlines()))
    registry = default_registry()
    assert registry.broken_plugins == {"acme (acme:register)": "ZeroDivisionError: division by zero"}
    assert "half" not in registry.impls("rms_norm")
    assert registry.get("rms_norm", "standard", "eager").factory != "operator:add"


def test_a_name_that_a_broken_plugin_would_have_brought_is_refused_with_that_reason(install):
    install("acme", "import no_such_package")
    with pytest.raises(ValueError, match=r"acme \(acme:register\): ModuleNotFoundError"):
        OpsConfig(rms_norm="acme")
    with pytest.raises(ValueError, match=r"acme \(acme:register\): ModuleNotFoundError"):
        OpsConfig(acme_norm="acme")


def test_a_plugin_may_register_with_the_decorator_while_it_is_imported(install):
    body = """
from kernelkit import register_kernel

@register_kernel("rms_norm", "acme")
def norm(hidden_states, weight, eps):
    return hidden_states

def register(registry):
    assert "acme" in registry.impls("rms_norm")
"""
    install("acme", body)
    assert default_registry().broken_plugins == {}
    assert "acme" in default_registry().impls("rms_norm")


def test_two_plugins_of_one_name_leave_the_first_and_name_both_places(install):
    for name in ("acme", "other"):
        install(name, f"{SPEC}\ndef register(registry): registry.register(spec('same'))")
    (reason,) = default_registry().broken_plugins.values()
    assert "rms_norm.standard.same is registered twice" in reason
    assert "acme.py:5" in reason and "other.py:5" in reason
