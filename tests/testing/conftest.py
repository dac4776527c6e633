"""Where TRITON_INTERPRET=1 is set, Triton's interpreter is prepared before anything imports a kernel."""

from __future__ import annotations

from tests.kernels.conftest import INTERPRETED

__all__ = ["INTERPRETED"]
