"""The kernels of a model, kept beside its weights: ``kernelkit.json``."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from torch import nn
from transformers.utils import cached_file

from kernelkit import __version__
from kernelkit.caller import warn_user
from kernelkit.containers.bindings import Binding
from kernelkit.containers.choice import KernelChoice
from kernelkit.containers.ops_config import OpsConfig
from kernelkit.containers.yaml_file import YamlFile
from kernelkit.errors import SavedKernelsWarning
from kernelkit.hardware import Hardware
from kernelkit.models.layers.kernel_module import KernelModule
from kernelkit.models.report import folded_paths
from kernelkit.packages import installed_packages

FILE = "kernelkit.json"
SAVED = "saved"
"""In the place of a config: the kernels that a checkpoint was saved with."""

Held = list[tuple[str, Binding]]
"""Path of a module, and a kernel that it holds."""


def save_kernels(model: nn.Module, folder: str | Path) -> None:
    """Write what every module of ``model`` calls, with the versions and the hardware, to ``folder/kernelkit.json``.

    The kernel that most modules call is the op's; the others are overrides by their paths, and so are all of an op that
    an injected model leaves to transformers in some of its modules. A kernel that has no name, because it was put into
    the container as it is, is written as such and cannot be loaded.
    """
    bound = [
        (path, binding)
        for path, module in model.named_modules()
        if isinstance(module, KernelModule)
        for binding in module.bindings.values()
    ]
    held = [(path, binding) for path, binding in bound if not _is_stock(binding)]
    in_part = {binding.op for _, binding in bound if _is_stock(binding)}
    device = next((parameter.device for parameter in model.parameters()), None)
    saved = {"ops": _as_config(held, in_part), "versions": _versions(held), "hardware": _facts(Hardware.detect(device))}
    Path(folder, FILE).write_text(json.dumps(saved, indent=2) + "\n", encoding="utf-8")


def load_saved(path: Any, *, device: Any = None, omit: Iterable[str] = (), **hub: Any) -> OpsConfig:
    """The config that :func:`save_kernels` wrote for a checkpoint, with a warning where this machine differs.

    Args:
        path: folder or hub name.
        device: that the model will live on; the accelerator of this machine unless given.
        omit: ops that will not be needed although they were.
        **hub: where on the hub, as in transformers.

    Raises:
        ValueError: for a checkpoint without the file, and one whose file is of something else.
        ValidationError: for kernels that this installation does not have, with their place in the file.
    """
    found = cached_file(path, FILE, _raise_exceptions_for_missing_entries=False, **hub)
    if found is None:
        raise ValueError(f"kernels='saved': {path} has no {FILE}; it was not saved by a model with kernels: name them")
    file = YamlFile.read(found, FILE)  # JSON is YAML, and this way every mistake has its place
    if not all(isinstance(file.data.get(part), dict) for part in ("ops", "versions", "hardware")):
        raise ValueError(f"kernels='saved': {found} is not what save_pretrained writes: name the kernels")
    differences = "; ".join(_differences(file.data, Hardware.detect(device)))
    if differences:
        warn_user(f"{path} was saved with its kernels on another machine: {differences}", SavedKernelsWarning)
    saved = file.below("ops")
    return OpsConfig.from_file(replace(saved, data={op: saved.data[op] for op in saved.data if op not in omit}))


def _is_stock(binding: Binding) -> bool:
    return binding.spec is None and binding.why != "override"


def _as_config(held: Held, in_part: set[str]) -> dict[str, Any]:
    ops: dict[str, KernelChoice] = {}
    rules: dict[str, dict[str, Any]] = {}
    for op in dict.fromkeys(binding.op for _, binding in held):
        choices = {path: _choice(binding) for path, binding in held if binding.op == op}
        if op not in in_part:
            ops[op] = Counter(choices.values()).most_common(1)[0][0]
        for other in dict.fromkeys(choice for choice in choices.values() if choice != ops.get(op)):
            for path in _patterns(path for path, choice in choices.items() if choice == other):
                rules.setdefault(path, {})[op] = other.plain()
    plain = {op: choice.plain() for op, choice in ops.items()}
    return {**plain, "overrides": rules} if rules else plain


def _patterns(paths: Iterable[str]) -> list[str]:
    """Patterns that cover these modules and no other: two numbers in a path cannot be folded together."""
    known = [*paths]
    plain = [path for path in known if len(re.findall(r"\d+", path)) < 2]
    return [*folded_paths(plain), *(path for path in known if path not in plain)]


def _choice(binding: Binding) -> KernelChoice:
    if binding.spec is None:
        return KernelChoice(f"override {binding.impl}")  # no implementation can have that name
    return KernelChoice(binding.impl, binding.options_json)


def _versions(held: Held) -> dict[str, str]:
    """kernelkit's, and of the packages that a result may depend on."""
    requirements = [package for _, binding in held if binding.spec for package in binding.spec.packages]
    names = ["torch", "transformers", *sorted({canonicalize_name(Requirement(each).name) for each in requirements})]
    return {"kernelkit": __version__, **_installed(names)}


def _installed(names: list[str]) -> dict[str, str]:
    packages = installed_packages()
    return {name: packages[name] for name in names if name in packages}


def _facts(hardware: Hardware) -> dict[str, Any]:
    return hardware.model_dump(mode="json", exclude={"packages"})


def _differences(saved: dict[str, Any], hardware: Hardware) -> Iterator[str]:
    there, here = saved["hardware"], _facts(hardware)
    if there != here:
        yield f"{there.get('name')} there, {here['name']} here"
    versions = saved["versions"]
    present = {"kernelkit": __version__, **_installed([*versions])}
    for name, version in versions.items():
        if present.get(name) != version:
            yield f"{name} {version} there, {present.get(name, 'none')} here"
