"""``torch.compile`` of one function, for one model: what every implementation named ``compile`` is made of."""

from __future__ import annotations

import functools
import importlib.util
import os
import shutil
import sysconfig
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from kernelkit.caller import caller_location
from kernelkit.hardware import Hardware, HardwareRequirement
from kernelkit.spec import Kernel, KernelSpec

HARDWARE = HardwareRequirement(device_type=("cpu", "cuda", "xpu"))
"""The devices that inductor generates code for."""


class CompileOptions(BaseModel):
    """What a config may set for an implementation ``compile``.

    Attributes:
        mode: as in ``torch.compile``. ``max-autotune-no-cudagraphs`` measures several variants at the first call. The
            modes with CUDA graphs are not offered, because a later call overwrites what an earlier one returned.
        dynamic: as in ``torch.compile``. None compiles for the first sizes seen and, once they change, for any; True
            does so at once; False compiles for every size anew, and raises after eight of them.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    mode: Literal["default", "max-autotune-no-cudagraphs"] = "default"
    dynamic: bool | None = None


def compiled(function: Kernel, options: CompileOptions) -> Kernel:
    """``function``, compiled by inductor at its first call, rounding to bfloat16 and float16 where eager mode does.

    Nothing is shared between two results. Within an outer ``torch.compile`` the function is traced as it is.

    Raises:
        torch._dynamo.exc.Unsupported: at the call, for a function with a graph break; it never falls back to eager.
    """
    versions: dict[Any, Kernel] = {}

    @functools.wraps(function)
    def kernel(*args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling():
            return function(*args, **kwargs)
        # Dynamo gives up on a function after eight recompilations, which a norm's ranks, gradient modes and batches of
        # one reach in ordinary use. One version for each kind of call leaves only sizes to recompile for.
        kind = (torch.is_grad_enabled(), _kind(args), _kind(tuple(kwargs.items())))
        if kind not in versions:
            versions[kind] = _compile(function, options)
        return versions[kind](*args, **kwargs)

    return kernel


def compiled_specs(op: str, functions: Mapping[str, Kernel], of: str = "eager") -> tuple[KernelSpec, ...]:
    """A spec named ``compile`` for each variant of ``op``: the function given for it, its kernel ``of``."""
    return tuple(
        KernelSpec(
            op=op,
            variant=variant,
            name="compile",
            factory=functools.partial(compiled, function),
            hardware=HARDWARE,
            probe=f"{__name__}:problem",
            options=CompileOptions,
            description=f"The {of} kernel through torch.compile, rounding where eager mode does.",
            location=caller_location(__name__),
        )
        for variant, function in functions.items()
    )


def _compile(function: Any, options: CompileOptions) -> Kernel:
    # Dynamo keeps what it compiled, and its count of recompilations, with the code object: each model gets its own.
    code = function.__code__.replace()
    twin = types.FunctionType(
        code, function.__globals__, function.__name__, function.__defaults__, function.__closure__
    )
    twin.__kwdefaults__ = function.__kwdefaults__
    settings = torch._inductor.list_mode_options(options.mode, options.dynamic)
    return torch.compile(
        twin, fullgraph=True, dynamic=options.dynamic, options={**settings, "emulate_precision_casts": True}
    )


def _kind(value: Any) -> Any:
    """What dynamo always specialises on; sizes above one are left to it."""
    if isinstance(value, Tensor):
        return value.dtype, value.device, value.requires_grad, tuple([min(size, 2) for size in value.shape])
    if isinstance(value, tuple):
        return tuple([_kind(item) for item in value])
    return value if value is None or isinstance(value, (bool, str)) else type(value)


def problem(hardware: Hardware) -> str | None:
    """Why inductor cannot generate code on this machine, or None: it needs a compiler and Python's headers."""
    if hardware.device_type != "cpu" and importlib.util.find_spec("triton") is None:
        return "needs triton, which is not installed: pip install triton"
    # On a CPU inductor compiles what it generates; on a GPU Triton compiles the launcher.
    language, variable, usual = ("C++", "CXX", "g++") if hardware.device_type == "cpu" else ("C", "CC", "gcc clang")
    candidates = [os.environ[variable]] if os.environ.get(variable) else usual.split()
    if not any(shutil.which(compiler) for compiler in candidates):
        wanted = " or ".join(candidates)
        return f"needs a {language} compiler, and {wanted} is not found: install one, or set {variable}"
    headers = Path(sysconfig.get_path("include"), "Python.h")
    return None if headers.exists() else f"needs Python's headers, and {headers} is missing (Debian: python3-dev)"
