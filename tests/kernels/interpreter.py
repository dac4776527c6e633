"""What Liger's kernels need to run in Triton's interpreter, on a CPU: for tests alone.

The interpreter leaves Python floats as they are where a compiled kernel gets a float32, has no libdevice, and knows
nothing of the vector memory and the extensions of Ascend.
"""

from __future__ import annotations

import os
import sys
from types import ModuleType

import numpy as np
import triton
import triton.language as tl
from triton.language import math
from triton.language.extra import libdevice
from triton.runtime import interpreter


@triton.jit
def rsqrt(x):
    return tl.rsqrt(x)


@triton.jit
def tanh(x):
    return 2 * tl.sigmoid(2 * x) - 1


def prepare():
    """Change the interpreter of this process."""
    interpreter._implicit_cvt = _float_as_float32
    libdevice.rsqrt = math.rsqrt = rsqrt
    libdevice.tanh = math.tanh = tanh
    os.environ["ASCEND_UB_CAPACITY_BITS"] = str(192 * 1024 * 8)
    extension = ModuleType("triton.language.extra.cann.extension")
    extension.extract_slice = extension.insert_slice = None
    sys.modules["triton.language.extra.cann"] = ModuleType("triton.language.extra.cann")
    sys.modules["triton.language.extra.cann.extension"] = extension


_convert = interpreter._implicit_cvt


def _float_as_float32(argument):
    if not isinstance(argument, float):
        return _convert(argument)
    handle = interpreter.TensorHandle(np.array([argument], dtype=np.float32), tl.float32)
    return tl.tensor(handle, tl.float32)
