"""Kernels and whole steps, timed beside their peers and the floor under them."""
