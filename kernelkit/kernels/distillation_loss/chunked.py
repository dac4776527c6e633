"""Both heads and their divergence by chunks of tokens, in PyTorch; the adapter is in ``chunked_kernels``."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, PositiveInt

from kernelkit.spec import KernelSpec


class ChunkedDistillationOptions(BaseModel):
    """What a config may set.

    Attributes:
        chunk_size: tokens whose logits exist at a time. None takes as many as make four float32 tensors [tokens, V] one
            GiB, rounded up to a multiple of 128: 512 for a vocabulary of 152k, 2176 for one of 32k. With a softcap,
            and again with labels mixed in, there is one such tensor more.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    chunk_size: PositiveInt | None = None


SPECS = (
    KernelSpec(
        op="distillation_loss",
        variant="standard",
        name="chunked",
        factory=f"{__name__}_kernels:distillation_loss",
        options=ChunkedDistillationOptions,
        description="Logits of one chunk of tokens at a time, none of ignored ones, and gradients in the forward.",
    ),
)
