"""Liger's rotary position embedding as a pure kernel."""

from __future__ import annotations

from liger_kernel.ops.rope import rope_backward, rope_forward

from kernelkit.kernels.rotary_pos_emb.liger_shared_kernels import rotation

rotary_pos_emb = rotation("liger_rotary_pos_emb", rope_forward, rope_backward)
