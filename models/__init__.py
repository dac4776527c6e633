"""Language models whose modules call the kernels they were built with."""

from kernelkit.models.auto import AutoModelForCausalLM, build_model, kernel_needs
from kernelkit.models.injection.inject import eject, inject, injected
from kernelkit.models.report import KernelReport, kernel_report
from kernelkit.models.verification import verify_kernels

__all__ = [
    "AutoModelForCausalLM",
    "KernelReport",
    "build_model",
    "eject",
    "inject",
    "injected",
    "kernel_needs",
    "kernel_report",
    "verify_kernels",
]
