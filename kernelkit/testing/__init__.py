"""The conformance kit: whether a kernel keeps the contract of its op, whoever wrote it."""

from kernelkit.testing.kit import KernelVerdict, check_kernel

__all__ = ["KernelVerdict", "check_kernel"]
