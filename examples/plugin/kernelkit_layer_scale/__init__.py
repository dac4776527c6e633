"""A sample plug-in of kernelkit: the op layer_scale, and one more implementation of rms_norm."""

from __future__ import annotations

from kernelkit import KernelRegistry


def register(registry: KernelRegistry) -> None:
    """Add what this package offers; kernelkit calls it by the entry point in pyproject.toml."""
    from kernelkit_layer_scale import layer_scale, rms_norm_double

    registry.register_op(layer_scale.OP)
    for spec in (*layer_scale.SPECS, *rms_norm_double.SPECS):
        registry.register(spec)
