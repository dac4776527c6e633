"""What a machine is, and what a kernel asks of one."""

from __future__ import annotations

from typing import Annotated, Any, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, model_validator

from kernelkit.errors import unknown
from kernelkit.frozen import FrozenDict
from kernelkit.packages import installed_packages

Capability = tuple[int, int]
"""An NVIDIA compute capability, (major, minor): (9, 0) is Hopper."""

DeviceType = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z_]*$")]
"""Torch's word for a kind of device, without an index: ``cuda``, not ``cuda:1``."""


class Hardware(BaseModel):
    """The device that a model will live on, as a value: detected, or named to check a cluster's config on a laptop.

    Attributes:
        device_type: torch's word for it: ``cpu``, ``cuda`` (NVIDIA and AMD), ``npu``, ``xpu``, ``mps``.
        name: what to call it in messages.
        capability: compute capability of an NVIDIA GPU; None for every other device, ROCm included.
        packages: installed distributions and their versions. None where they cannot be known (a named machine);
            package requirements are then taken as met.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    device_type: DeviceType
    name: str
    capability: Capability | None = None
    packages: Annotated[dict[str, str], AfterValidator(FrozenDict)] | None = Field(default=None, repr=False)

    @classmethod
    def detect(cls, device: Any = None) -> Hardware:
        """The hardware behind a torch device; by default the accelerator of this machine, else its CPU.

        Args:
            device: anything ``torch.device`` takes, or None. ``meta`` counts as None: it computes nothing.

        Raises:
            RuntimeError: for a device that this machine does not have.
        """
        import torch

        found = torch.device(device) if device is not None else None
        if found is None or found.type == "meta":
            found = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
        _check_present(found)
        packages = installed_packages()
        if found.type == "cuda":
            properties = torch.cuda.get_device_properties(found)
            capability = None if torch.version.hip else (properties.major, properties.minor)
            return cls(device_type="cuda", name=properties.name, capability=capability, packages=packages)
        return cls(device_type=found.type, name=found.type, packages=packages)

    @classmethod
    def named(cls, name: str) -> Hardware:
        """A machine by its common name, in upper or lower case.

        Raises:
            ValueError: for a name that is not in the table; the message lists those that are.
        """
        key = name.lower()
        if key not in _NAMED:
            raise ValueError(unknown("hardware", name, _NAMED))
        device_type, capability = _NAMED[key]
        return cls(device_type=device_type, name=key, capability=capability)

    def __str__(self) -> str:
        facts = [] if self.name == self.device_type else [self.device_type]
        if self.capability:
            facts.append(f"compute capability {_dotted(self.capability)}")
        return f"{self.name} ({', '.join(facts)})" if facts else self.name


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

    device_type: DeviceType | Annotated[tuple[DeviceType, ...], Field(min_length=1)] = "any"
    min_capability: Capability | None = None
    max_capability: Capability | None = None

    @model_validator(mode="after")
    def _can_be_met(self) -> Self:
        if isinstance(self.device_type, tuple) and "any" in self.device_type:
            raise ValueError("'any' stands alone, not among other device types")
        if self.min_capability and self.max_capability and self.min_capability > self.max_capability:
            raise ValueError(f"min_capability {self.min_capability} is above max_capability {self.max_capability}")
        return self

    @property
    def device_types(self) -> tuple[str, ...]:
        """The device types as a tuple, empty for ``any``."""
        if self.device_type == "any":
            return ()
        return (self.device_type,) if isinstance(self.device_type, str) else self.device_type

    def problem(self, hardware: Hardware) -> str | None:
        """Why ``hardware`` does not meet this requirement, or None where it does."""
        least, most, actual = self.min_capability, self.max_capability, hardware.capability
        if self.device_types and hardware.device_type not in self.device_types:
            return f"runs on {' or '.join(self.device_types)}, not on {hardware}"
        if actual is None:
            return f"needs an NVIDIA GPU, not {hardware}" if least or most else None
        if least and actual < least:
            return f"needs compute capability {_dotted(least)} or higher, not {hardware}"
        if most and actual > most:
            return f"needs compute capability {_dotted(most)} or lower, not {hardware}"
        return None


def _check_present(device: Any) -> None:
    import torch

    try:
        module = torch.get_device_module(device)
        count = module.device_count() if getattr(module, "is_available", lambda: True)() else 0
    except RuntimeError:  # torch knows the word, and nothing provides the device
        count = 0
    if (device.index or 0) >= count:
        raise RuntimeError(
            f"this machine has no device {str(device)!r}. To check a config for another machine, give its hardware "
            "by name: Hardware.named('h100')."
        )


def _dotted(capability: Capability) -> str:
    return ".".join(map(str, capability))
