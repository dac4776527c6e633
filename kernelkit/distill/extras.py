"""Packages that only a distillation needs."""

from __future__ import annotations

import importlib
from typing import Any


def extra(module: str) -> Any:
    """Import what the extra ``distill`` brings.

    Raises:
        ImportError: where it cannot be imported, with the command that installs it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(f"{module} cannot be imported ({error}): pip install 'kernelkit[distill]'") from error
