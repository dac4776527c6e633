"""What quack's products do to a tile before they store it: the activation of the experts, and its backward.

Gate and up lie in turns there, as gpt-oss keeps them: a thread holds neighbours.
"""

from __future__ import annotations

import functools
from typing import Any

from quack.activation import dswiglu, dswiglu_oai, swiglu, swiglu_oai
from quack.epilogue.frontend import EpiMod, gemm_epilogue
from quack.epilogue.math import pack, unpack
from quack.epilogue.ops import ColVecLoad, ColVecReduce, RowVecLoad


@functools.cache
def activation(clamp: tuple[float, ...]) -> EpiMod:
    """Stores gate and up, and the activation.

    Args:
        clamp: alpha and limit of gpt-oss, whose first product has a bias as well; empty for the variant ``standard``.
    """
    if not clamp:

        def plain(acc: Any) -> dict[str, Any]:
            gate, up = unpack(acc)
            return {"D": pack(gate, up), "activated": swiglu(gate, up)}

        return gemm_epilogue(outputs=("activated",), mode="acc_pair")(plain)

    alpha, limit = clamp

    def clamped(acc: Any, bias: Any) -> dict[str, Any]:
        gate, up = unpack(acc + bias)
        return {"D": pack(gate, up), "activated": swiglu_oai(gate, up, alpha, limit)}

    return gemm_epilogue(outputs=("activated",), ops={"bias": RowVecLoad("bias")}, mode="acc_pair")(clamped)


@functools.cache
def of_activation(clamp: tuple[float, ...]) -> EpiMod:
    """Stores the gradient of gate and up, the weighted activation, and each row's share of the routing's gradient.

    What is accumulated is the gradient of the activation without the routing weight, and ``c`` are gate and up.
    """
    if not clamp:
        derivative = dswiglu
    else:
        alpha, limit = clamp

        def derivative(gate: Any, up: Any, gradient: Any) -> Any:
            return dswiglu_oai(gate, up, gradient, alpha, limit)

    def epilogue(acc: Any, c: Any, weight: Any) -> dict[str, Any]:
        gate, up = unpack(c)
        of_gate, of_up, activated = derivative(gate, up, acc * weight)
        return {"D": pack(of_gate, of_up), "activated": activated * weight, "shares": (activated, acc)}

    return gemm_epilogue(
        outputs=("activated",),
        ops={"weight": ColVecLoad("weight")},
        reduces={"shares": ColVecReduce("shares", scaled=True)},
        mode="packed_cd_b16x2",
    )(epilogue)
