"""What a machine is, and what a kernel asks of one."""

from __future__ import annotations

import functools
import os
import sys
from importlib import metadata
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from pydantic import BaseModel, ConfigDict, Field

from kernelkit.errors import did_you_mean, listing

Capability = tuple[int, int]
"""An NVIDIA compute capability, (major, minor): (9, 0) is Hopper."""


class Hardware(BaseModel):
    """The device that a model will live on, as a value: detected, or named, so that a laptop can check a cluster's config.

    Attributes:
        device_type: torch's word for it: ``cpu``, ``cuda`` (NVIDIA and AMD), ``npu``, ``xpu``, ``mps``.
        name: what to call it in messages.
        capability: compute capability of an NVIDIA GPU; None for every other device, ROCm included.
        packages: installed distributions and their versions. None where they cannot be known (a named machine);
            package requirements are then taken as met.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    device_type: str
    name: str
    capability: Capability | None = None
    packages: dict[str, str] | None = Field(default=None, repr=False)

    @classmethod
    def detect(cls, device: Any = None) -> Hardware:
        """The hardware behind a torch device; by default the accelerator of this machine, else its CPU.

        Args:
            device: anything ``torch.device`` takes, or None. ``meta`` counts as None: it computes nothing.
        """
        import torch

        found = torch.device(device) if device is not None else None
        if found is None or found.type == "meta":
            found = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
        packages = installed_packages()
        if found.type == "cuda":
            properties = torch.cuda.get_device_properties(found)
            capability = None if torch.version.hip else (properties.major, properties.minor)
            return cls(device_type="cuda", name=properties.name, capability=capability, packages=packages)
        return cls(device_type=found.type, name=found.type, packages=packages)

    @classmethod
    def named(cls, name: str) -> Hardware:
        """A machine by its common name.

        Raises:
            ValueError: for a name that is not in the table; the message lists those that are.
        """
        try:
            device_type, capability = _NAMED[name.lower()]
        except KeyError:
            raise ValueError(
                f"unknown hardware {name!r}.{did_you_mean(name, _NAMED)} Known: {listing(_NAMED)}."
            ) from None
        return cls(device_type=device_type, name=name.lower(), capability=capability)

    def __str__(self) -> str:
        return f"{self.name} (compute capability {_dotted(self.capability)})" if self.capability else self.name


_NAMED: dict[str, tuple[str, Capability | None]] = {
    "cpu": ("cpu", None),
    "a100": ("cuda", (8, 0)),
    "h100": ("cuda", (9, 0)),
    "h200": ("cuda", (9, 0)),
    "b200": ("cuda", (10, 0)),
    "mi300x": ("cuda", None),
    "npu": ("npu", None),
    "xpu": ("xpu", None),
}


class HardwareRequirement(BaseModel):
    """The devices that a kernel runs on.

    Attributes:
        device_type: ``any``, or one or several of torch's device types.
        min_capability: lowest NVIDIA compute capability, inclusive. Setting it rules out AMD.
        max_capability: highest NVIDIA compute capability, inclusive.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    device_type: str | tuple[str, ...] = "any"
    min_capability: Capability | None = None
    max_capability: Capability | None = None

    @property
    def device_types(self) -> tuple[str, ...]:
        """The device types as a tuple, empty for ``any``."""
        if self.device_type == "any":
            return ()
        return (self.device_type,) if isinstance(self.device_type, str) else self.device_type

    def problem(self, hardware: Hardware) -> str | None:
        """Why ``hardware`` does not meet this requirement, or None where it does."""
        if self.device_types and hardware.device_type not in self.device_types:
            return f"needs device type {' or '.join(self.device_types)}, and {hardware} is {hardware.device_type}"
        bounded = self.min_capability or self.max_capability
        if bounded and hardware.capability is None:
            return f"needs an NVIDIA GPU, and {hardware} is none"
        if self.min_capability and hardware.capability < self.min_capability:  # type: ignore[operator]  # None is ruled out above
            return f"needs compute capability {_dotted(self.min_capability)} or higher, and this is {hardware}"
        if self.max_capability and hardware.capability > self.max_capability:  # type: ignore[operator]  # as above
            return f"needs compute capability {_dotted(self.max_capability)} or lower, and this is {hardware}"
        return None


def package_problem(requirement: str, hardware: Hardware) -> str | None:
    """Why the package ``requirement`` (``"liger-kernel>=0.8"``) is not met on ``hardware``, or None."""
    if hardware.packages is None:
        return None
    wanted = Requirement(requirement)
    version = hardware.packages.get(canonicalize_name(wanted.name))
    install = f"pip install '{requirement}'"
    if version is None:
        return f"needs the package {wanted.name}, which is not installed: {install}"
    if not wanted.specifier.contains(version, prereleases=True):
        return f"needs {requirement}, and {wanted.name} {version} is installed: {install}"
    return None


def installed_packages() -> dict[str, str]:
    """Every distribution that this Python can import, by canonical name, with its version."""
    # Installing or removing a package changes its folder's time, so a package added while we run is seen.
    folders = tuple((path, os.stat(path).st_mtime_ns) for path in sys.path if os.path.isdir(path))
    return dict(_installed(folders))


@functools.lru_cache(maxsize=1)
def _installed(folders: tuple[tuple[str, int], ...]) -> dict[str, str]:
    found: dict[str, str] = {}
    for distribution in metadata.distributions():
        name = distribution.metadata["Name"]
        # The first on sys.path is the one that an import finds; a half-removed package has no name.
        if name:
            found.setdefault(canonicalize_name(name), distribution.version)
    return found


def _dotted(capability: Capability | None) -> str:
    return ".".join(map(str, capability)) if capability else "-"
