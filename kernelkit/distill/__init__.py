"""Distillation: a student learns from a teacher, each with kernels of its own."""

from kernelkit.distill.config import DistillConfig
from kernelkit.distill.distiller import Distiller

__all__ = ["DistillConfig", "Distiller"]
