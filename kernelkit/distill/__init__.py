"""Distillation: a student learns from a teacher, each with kernels of its own."""
