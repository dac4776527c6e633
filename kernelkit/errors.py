"""The errors that kernelkit raises, and the sentences they share."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError
from pydantic_core import InitErrorDetails, PydanticCustomError


class KernelRegistrationError(ValueError):
    """A kernel or an op cannot be registered: a duplicate, an unknown op or variant, or a faulty spec."""


class KernelDeviceError(RuntimeError):
    """A bound kernel was called with tensors of a device that it was not resolved for."""


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong in a config, before it becomes one line of a pydantic ``ValidationError``.

    Attributes:
        loc: where, as pydantic spells it: ``("rms_norm", "liger")``.
        type: a machine-readable name, such as ``unknown_impl``.
        message: one sentence for a person: what is wrong, and what would be right.
        input: the offending value.
        context: further facts, reachable as ``error["ctx"]``.
    """

    loc: tuple[str | int, ...]
    type: str
    message: str
    input: Any = None
    context: dict[str, Any] = field(default_factory=dict)

    def details(self) -> InitErrorDetails:
        """This problem as pydantic-core takes it."""
        # type: the message is built at run time, where the stub of PydanticCustomError asks for a literal.
        error = PydanticCustomError(self.type, self.message, self.context or None)  # type: ignore[arg-type]
        return InitErrorDetails(type=error, loc=self.loc, input=self.input)


def validation_error(title: str, problems: Iterable[Problem]) -> ValidationError:
    """All ``problems`` of one phase as a single pydantic error, headed by ``title``."""
    return ValidationError.from_exception_data(title, [problem.details() for problem in problems])


def did_you_mean(name: str, choices: Iterable[str]) -> str:
    """``" Did you mean 'liger'?"`` where one of ``choices`` is close to ``name``, else an empty string."""
    close = difflib.get_close_matches(str(name), list(choices), n=1, cutoff=0.6)
    return f" Did you mean {close[0]!r}?" if close else ""


def listing(names: Iterable[str]) -> str:
    """Names for the end of an error message: ``"eager, liger, torch"``, or ``"none"``."""
    return ", ".join(names) or "none"
