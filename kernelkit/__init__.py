"""Fused training kernels, chosen per model instance."""
