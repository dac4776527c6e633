"""One model of a run before it has weights."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from transformers import PreTrainedConfig

from kernelkit.containers.kernel_container import KernelContainer
from kernelkit.distill.model_config import StudentConfig, TeacherConfig
from kernelkit.errors import UnverifiedWarning
from kernelkit.hardware import Hardware
from kernelkit.models.auto import build_model
from kernelkit.models.layers.causal_lm import CausalLM
from kernelkit.registry import default_registry
from kernelkit.spec import Kernel


@dataclass(frozen=True)
class ModelPlan:
    """One model before it has weights.

    Attributes:
        section: what the user wrote.
        config: its HF config.
        device: where it will live.
        hardware: that device as a value, where it is of a machine that is not this one.
        imports: import the kernels of that machine all the same.
    """

    section: TeacherConfig | StudentConfig
    config: PreTrainedConfig
    device: torch.device
    hardware: Hardware | None = None
    imports: bool = False

    @property
    def dtype(self) -> torch.dtype:
        """Of its weights."""
        dtype: torch.dtype = getattr(torch, self.section.dtype)
        return dtype

    @property
    def distilled(self) -> bool:
        """Whether it is taught."""
        return isinstance(self.section, StudentConfig)

    def container(self, *, training: bool) -> KernelContainer:
        """A container for one instance of this model.

        Raises:
            ValidationError: for kernels that cannot run there.
        """
        return KernelContainer.from_config(
            self.section.ops,
            registry=None if self.hardware is None or self.imports else default_registry().without_factories(),
            device=self.device,
            hardware=self.hardware,
            training=training,
            compiled=self.section.compile,
            dtype=self.dtype,
        )

    def build(self, path: str | Path | None = None, *, training: bool, seed: int = 0) -> CausalLM:
        """The model: loaded from ``path`` or the user's, else with new weights that are drawn from ``seed``."""
        source = path or self.section.path
        torch.manual_seed(seed)
        model = build_model(
            self.config if source is None else Path(source).expanduser(),
            kernels=self.container(training=training),
            dtype=self.dtype,
            device=self.device,
            distilled=self.distilled,
        )
        return self._prepared(model)

    def _prepared(self, model: CausalLM) -> CausalLM:
        if isinstance(self.section, StudentConfig) and self.section.gradient_checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        return model

    def outline(self, *, attention: Kernel | None = None, callable_kernels: bool = False) -> CausalLM:
        """The model on the meta device: its kernels and the shapes of its weights.

        Args:
            attention: a stand-in for its attention kernel.
            callable_kernels: import the kernels, also those of another machine.
        """
        plan = replace(self, imports=True) if callable_kernels else self
        container = plan.container(training=False)
        if attention is not None:
            container.override("attention", attention)
        with warnings.catch_warnings():
            # The model that is built of this plan is verified; its outline cannot be.
            warnings.simplefilter("ignore", UnverifiedWarning)
            model = build_model(self.config, container, dtype=self.dtype, device="meta", distilled=self.distilled)
        return self._prepared(model)
