"""The errors that kernelkit raises, and the sentences they share."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError
from pydantic_core import InitErrorDetails, PydanticCustomError

Loc = tuple[str | int, ...]
"""Where in a config, as pydantic spells it: ``("rms_norm", "eps")``."""


class KernelRegistrationError(ValueError):
    """A kernel or an op cannot be registered: a duplicate, an unknown op or variant, or a faulty spec."""


class LegacyNameWarning(DeprecationWarning):
    """A config uses a name that kernelkit reads and maps to its own."""


class UnusedOpWarning(UserWarning):
    """A config names an op that the model does not have, and allows that."""


class SavedKernelsWarning(UserWarning):
    """A checkpoint's kernels were saved on a machine with other hardware or versions."""


class UnverifiedWarning(UserWarning):
    """A config asks for its kernels to be compared, and the model is where they cannot be called."""


class KernelDeviceError(RuntimeError):
    """A bound kernel was called with tensors of a device that it does not run on."""


class UnknownNameError(KeyError):
    """An op, variant or implementation that a registry does not have."""

    def __str__(self) -> str:
        # A KeyError shows the repr of its argument, and a sentence in quotes reads badly.
        return str(self.args[0])


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong in a config, before it becomes one line of a pydantic ``ValidationError``.

    Attributes:
        loc: where.
        type: a machine-readable name, such as ``unknown_impl``.
        message: one sentence for a person: what is wrong, and what would be right.
        input: the offending value.
        context: further facts, reachable as ``error["ctx"]``.
    """

    loc: Loc
    type: str
    message: str
    input: Any = None
    context: Mapping[str, Any] = field(default_factory=dict)

    def details(self) -> InitErrorDetails:
        """This problem as pydantic-core takes it."""
        context = {name: _encodable(value) for name, value in self.context.items()}
        error = PydanticCustomError(self.type, _encodable(self.message), context or None)
        return InitErrorDetails(type=error, loc=tuple(map(_encodable, self.loc)), input=self.input)


def validation_error(title: str, problems: Iterable[Problem]) -> ValidationError:
    """All ``problems`` of one phase as a single pydantic error, headed by ``title``."""
    return ValidationError.from_exception_data(title, [problem.details() for problem in problems])


def problems_in(error: ValidationError, under: Loc = ()) -> list[Problem]:
    """The lines of a pydantic error as problems, at locs below ``under``."""
    found = []
    for line in error.errors(include_url=False):
        context = dict(line.get("ctx", {}))
        # Pydantic leads the message of a validator's own exception with "Value error, ", which tells a user nothing.
        message = str(context.pop("error", "")) or line["msg"]
        found.append(Problem((*under, *line["loc"]), line["type"], message, line["input"], context))
    return found


def unknown(what: str, name: Any, valid: Iterable[str], *, of: str = "", meant: str | None = None) -> str:
    """For example: "unknown implementation 'ligr' of rms_norm. Did you mean 'liger'? Valid: eager, liger.".

    Args:
        what, name, of: its parts.
        valid: the names that there are.
        meant: what ``name`` is called here, where that is known better than by likeness.
    """
    valid = list(valid)
    whose = f" of {of}" if of else ""
    return f"unknown {what} {shown(name)}{whose}.{did_you_mean(meant or name, valid)} Valid: {listing(valid)}."


def did_you_mean(name: Any, choices: Iterable[str]) -> str:
    """``" Did you mean 'liger'?"`` where one of ``choices`` is close to ``name``, else an empty string."""
    by_lower = {choice.lower(): choice for choice in choices}
    wanted = name.lower() if isinstance(name, str) else shown(name)
    close = difflib.get_close_matches(wanted, by_lower, n=1, cutoff=0.65)
    return f" Did you mean {by_lower[close[0]]!r}?" if close else ""


def listing(names: Iterable[str]) -> str:
    """Names for the end of an error message: ``"eager, liger, torch"``, or ``"none"``."""
    return ", ".join(names) or "none"


def shown(value: Any) -> str:
    """``repr(value)`` for the middle of a sentence: short, and harmless whatever the value is."""
    try:
        text = repr(value)
    except Exception:  # an int of 5000 digits, a nesting too deep, a repr that fails
        return f"<{type(value).__name__}>"
    return text if len(text) <= 80 else f"{text[:77]}..."


def _encodable(value: Any) -> Any:
    """``value``; in a string, what UTF-8 lacks (a lone surrogate, from YAML or a file name) is written as an escape."""
    return value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else value
