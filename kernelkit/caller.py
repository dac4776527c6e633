"""Which line of the user's a registration or a warning is about."""

from __future__ import annotations

import sys
import warnings
from types import FrameType

_PASS_THROUGH = ("kernelkit", "pydantic", "dependency_injector", "transformers", "torch")
"""Packages that stand between a user and a warning of ours."""


def caller_location(*inside: str) -> str:
    """``file:line`` of the nearest caller outside the modules or packages ``inside``."""
    frame = _nearest_outside((__name__, "pydantic", *inside))
    return f"{frame.f_code.co_filename}:{frame.f_lineno}"


def warn_user(message: str, category: type[Warning]) -> None:
    """Warn, attributed to the user's own line: Python shows a DeprecationWarning only where ``__main__`` causes it."""
    frame = _nearest_outside(_PASS_THROUGH)
    seen = frame.f_globals.setdefault("__warningregistry__", {})
    module = frame.f_globals.get("__name__")
    warnings.warn_explicit(message, category, frame.f_code.co_filename, frame.f_lineno, module, seen)


def _nearest_outside(packages: tuple[str, ...]) -> FrameType:
    frame = sys._getframe(1)
    while frame.f_back is not None and _is_inside(frame, packages):
        frame = frame.f_back
    return frame


def _is_inside(frame: FrameType, packages: tuple[str, ...]) -> bool:
    name = frame.f_globals.get("__name__", "")
    return any(name == package or name.startswith(f"{package}.") for package in packages)
