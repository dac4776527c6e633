"""From a config to bound kernels: OpsConfig, KernelContainer and bindings."""

from kernelkit.containers.bindings import Binding, Bindings, Need
from kernelkit.containers.choice import KernelChoice
from kernelkit.containers.kernel_container import KernelContainer, as_container
from kernelkit.containers.ops_config import OpsConfig
from kernelkit.containers.presets import PRESETS

__all__ = ["PRESETS", "Binding", "Bindings", "KernelChoice", "KernelContainer", "Need", "OpsConfig", "as_container"]
