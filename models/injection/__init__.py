"""Kernels for an instance of a stock transformers model, and back."""
