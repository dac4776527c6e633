"""The whole steps that are measured: models, and the ways of running them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import transformers

from kernelkit.containers.presets import PRESETS
from kernelkit.hardware import Hardware
from kernelkit.registry import KernelRegistry, default_registry

STEP = "step"
"""The op in the records of whole steps."""

Models = Literal["qwen3-0.6b", "qwen3-moe", "qwen3-1.7b to 0.6b"]
DISTILLED: Models = "qwen3-1.7b to 0.6b"

# Liger's experts tune themselves for minutes at their first call, so torch's stand in.
LIGER_PRESET = {"preset": "liger", "moe_experts": "torch", "allow_unused": True}

EAGER, FUSED = {"preset": "eager"}, {"preset": "triton", "distillation_loss": "triton"}


@dataclass(frozen=True)
class StepCase:
    """One way to run a step.

    Attributes:
        name: as a record's ``impl``.
        how: ``stock`` transformers, with ``injected`` kernels, or ``ours``.
        ops: of the model that is trained; unused by stock ones.
        teacher: of the teacher, where there is one; None for ``ops``.
        compiled: by ``torch.compile``, whole.
        patched: transformers is patched by Liger, for the whole process.
    """

    name: str
    how: Literal["stock", "injected", "ours"] = "ours"
    ops: Mapping[str, Any] = field(default_factory=dict)
    teacher: Mapping[str, Any] | None = None
    compiled: bool = False
    patched: bool = False


STOCK = (
    StepCase("stock", "stock"),
    StepCase("stock, compiled", "stock", compiled=True),
    StepCase("stock, patched by Liger", "stock", patched=True),
    StepCase("stock, patched by Liger, compiled", "stock", compiled=True, patched=True),
)
DISTILLATIONS = (
    StepCase("all eager", ops=EAGER),
    StepCase("teacher eager, student triton", ops=FUSED, teacher=EAGER),
    StepCase("teacher triton, student eager", ops=EAGER, teacher={"preset": "triton"}),
    StepCase("both liger", ops={"preset": "liger", "distillation_loss": "liger"}, teacher={"preset": "liger"}),
    StepCase("both triton", ops=FUSED, teacher={"preset": "triton"}),
    StepCase("both compiled", ops={"distillation_loss": "chunked"}, teacher={}, compiled=True),
    StepCase("both compiled, loss triton", ops={"distillation_loss": "triton"}, teacher={}, compiled=True),
    StepCase("teacher compiled, student triton compiled", ops=FUSED, teacher={}, compiled=True),
    StepCase("both triton, compiled", ops=FUSED, teacher={"preset": "triton"}, compiled=True),
)
"""Mixes of kernels for a teacher and its student."""


def training_cases(hardware: Hardware) -> Iterator[StepCase]:
    """Those of one model: stock, injected, and ours with each preset that runs on ``hardware``, eager and compiled."""
    yield from STOCK
    yield StepCase("default")
    presets = [name for name in PRESETS if runs(name, hardware, default_registry())]
    ops: dict[str, dict[str, Any]] = {name: {"preset": name, "allow_unused": True} for name in presets}
    ops |= {"liger": LIGER_PRESET} if "liger" in ops else {}
    for name in presets:
        yield StepCase(f"preset: {name}", ops=ops[name])
    for name in ("liger", "triton"):
        if name in ops:
            yield StepCase(f"injected, preset: {name}", "injected", ops=ops[name])
    yield StepCase("default, compiled", compiled=True)
    for name in presets:
        if name not in ("eager", "deterministic", "compile"):  # whose parts the compiler would only compile again
            yield StepCase(f"preset: {name}, compiled", ops=ops[name], compiled=True)


def expert_cases(hardware: Hardware) -> Iterator[StepCase]:
    """Those with quack's experts between our Triton kernels, where they run on ``hardware``."""
    if default_registry().get("moe_experts", "standard", "quack").problem(hardware) is None:
        ops = {"preset": "triton", "moe_experts": "quack"}
        yield StepCase("preset: triton, moe_experts: quack", ops=ops)
        yield StepCase("injected, preset: triton, moe_experts: quack", "injected", ops=ops)
        yield StepCase("preset: triton, moe_experts: quack, compiled", ops=ops, compiled=True)


def step_cases(models: Models, hardware: Hardware) -> list[StepCase]:
    """What is measured of ``models``."""
    if models == DISTILLED:
        return [*STOCK, *DISTILLATIONS]
    return [*training_cases(hardware), *(expert_cases(hardware) if models == "qwen3-moe" else [])]


def runs(preset: str, hardware: Hardware, registry: KernelRegistry) -> bool:
    """Whether each member of a preset runs in some variant on ``hardware``."""
    return all(
        any(spec.problem(hardware) is None for spec in registry.list(op, name=impl))
        for op, impl in PRESETS[preset].items()
    )


def shapes(models: Models, *, small: bool) -> tuple[list[transformers.PreTrainedConfig], tuple[int, int]]:
    """The configs, a teacher's first, and rows and length of a batch; with ``small`` something that fits a CPU."""
    names = ["qwen3-1.7b", "qwen3-0.6b"] if models == DISTILLED else [models]
    batch = (2, 64) if small else (4 if models == DISTILLED else 8, 2048)
    return [shape(name, small=small) for name in names], batch


def shape(name: str, *, small: bool) -> transformers.PreTrainedConfig:
    """Qwen3-0.6B or 1.7B, or Qwen3-30B-A3B cut to 8 layers."""
    moe = name == "qwen3-moe"
    kind = transformers.Qwen3MoeConfig if moe else transformers.Qwen3Config
    if small:
        sizes = {"vocab_size": 512, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "head_dim": 16}
        sizes |= {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 32} if moe else {}
        return kind(**sizes, intermediate_size=128, num_key_value_heads=2)
    sizes = {"vocab_size": 151936, "head_dim": 128}
    if moe:
        sizes |= {"hidden_size": 2048, "num_hidden_layers": 8, "num_attention_heads": 32, "num_key_value_heads": 4}
        return kind(**sizes, moe_intermediate_size=768, num_experts=128, num_experts_per_tok=8, norm_topk_prob=True)
    wide = 1024 if name == "qwen3-0.6b" else 2048
    sizes |= {"hidden_size": wide, "intermediate_size": 3 * wide, "num_hidden_layers": 28}
    return kind(**sizes, num_attention_heads=16, num_key_value_heads=8, tie_word_embeddings=True)
