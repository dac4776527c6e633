"""Judging one kernel by all checks."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from kernelkit.hardware import Hardware
from kernelkit.registry import KernelRegistry, default_registry
from kernelkit.spec import KernelSpec
from kernelkit.testing.checks import CHECKS
from kernelkit.testing.purity import first_line
from kernelkit.testing.subject import LeftOut, NotMadeError, Subject


@dataclass(frozen=True)
class KernelVerdict:
    """What the kit found out about one kernel.

    Attributes:
        op, variant, impl: the kernel.
        device: where it was judged.
        failures: by check, what is wrong, in sentences.
        checked: the checks that were made.
        not_checked: by check, why it was not made at all.
        left_out: by check that was made, what of it could not be judged and why.
        skipped: why it was not judged at all, or empty.
    """

    op: str
    variant: str
    impl: str
    device: str
    failures: dict[str, list[str]] = field(default_factory=dict)
    checked: tuple[str, ...] = ()
    not_checked: dict[str, str] = field(default_factory=dict)
    left_out: dict[str, list[str]] = field(default_factory=dict)
    skipped: str = ""

    @property
    def passed(self) -> bool:
        """Whether it was judged, and nothing is wrong."""
        return not self.skipped and not self.failures

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "op": self.op,
            "variant": self.variant,
            "impl": self.impl,
            "device": self.device,
            "passed": self.passed,
            "skipped": self.skipped,
            "checked": list(self.checked),
            "not_checked": self.not_checked,
            "left_out": self.left_out,
            "failures": self.failures,
        }

    def __str__(self) -> str:
        name = f"{self.op}: {self.impl} ({self.variant}) on {self.device}"
        if self.skipped:
            return f"{name} was not judged: {self.skipped}"
        if self.passed:
            return f"{name} passes {len(self.checked)} checks"
        lines = [f"  {check}: {sentence}" for check, found in self.failures.items() for sentence in found]
        return "\n".join([f"{name} fails {', '.join(self.failures)}", *lines])


def check_kernel(
    spec: KernelSpec,
    *,
    device: Any = None,
    registry: KernelRegistry | None = None,
    checks: Iterable[str] = tuple(CHECKS),
) -> KernelVerdict:
    """Judge a kernel by the samples of its op, against eager in float64.

    A kernel may err three times as much as eager does in the same dtype, so that tolerances need not be guessed. Where
    ``TRITON_INTERPRET=1`` is set, Triton's kernels are judged on a CPU, in its interpreter.

    Args:
        spec: of the kernel; it need not be registered.
        device: where; the accelerator of this machine unless given.
        registry: that has its op and the op's eager kernel; the default registry unless given.
        checks: which of :data:`kernelkit.testing.checks.CHECKS`; all unless given.

    Returns:
        What is wrong, by check, and which checks were not made. A kernel that cannot run there is not judged, and the
        verdict says why. Of one that is for inference only, the forward is judged.
    """
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    where = torch.device(device) if device is not None else torch.accelerator.current_accelerator() or "cpu"
    names = (spec.op, spec.variant, spec.name, str(where))
    on_interpreter = interpreted and interpretable(spec)
    reason = None if on_interpreter else spec.problem(Hardware.detect(where), training=not spec.inference_only)
    if reason is not None:
        return KernelVerdict(*names, skipped=reason)
    catalogue = registry if registry is not None else default_registry()
    try:
        subject = Subject.of(spec, torch.device(where), catalogue, interpreted=on_interpreter)
    except LookupError as error:
        return KernelVerdict(*names, skipped=str(error.args[0]))
    verdict = KernelVerdict(*names)
    for name in checks:
        verdict = _with_check(verdict, name, subject)
    return verdict


def interpretable(spec: KernelSpec) -> bool:
    """Whether Triton's interpreter runs all of a kernel: it has Triton's, and none of the CUTLASS DSL."""
    packages = " ".join(spec.packages)
    return "triton" in packages and "cutlass" not in packages


def _with_check(verdict: KernelVerdict, name: str, subject: Subject) -> KernelVerdict:
    """What is known after one more check."""
    try:
        found = _findings(name, subject)
    except NotMadeError as reason:
        return replace(verdict, not_checked={**verdict.not_checked, name: str(reason)})
    wrong = [sentence for sentence in found if not isinstance(sentence, LeftOut)]
    left_out = [str(sentence) for sentence in dict.fromkeys(found) if isinstance(sentence, LeftOut)]
    return replace(
        verdict,
        checked=(*verdict.checked, name),
        failures=verdict.failures | ({name: wrong} if wrong else {}),
        left_out=verdict.left_out | ({name: left_out} if left_out else {}),
    )


def _findings(name: str, subject: Subject) -> list[str]:
    found: list[str] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            # This keeps what was found before something is raised.
            found.extend(CHECKS[name](subject))
        except NotMadeError:
            raise
        except Exception as error:  # a kernel under trial may raise anything, and that is a finding
            found.append(f"raises {type(error).__name__}: {first_line(error)}")
    return found
