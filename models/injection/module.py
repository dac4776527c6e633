"""What a module of a stock transformers model becomes while kernels are injected into it."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn

from torch import nn
from torch.distributed.fsdp import FSDPModule
from transformers.utils.output_capturing import _CAN_RECORD_REGISTRY

from kernelkit.containers.bindings import Binding, Need
from kernelkit.models.layers.kernel_module import KernelModule
from kernelkit.spec import Kernel

STOCK = "stock"
"""Name under which the report shows an op that is left to transformers."""


@dataclass(frozen=True, eq=False)
class StockBinding(Binding):
    """In the place of a binding, for an op that nobody named: transformers computes it."""

    def __reduce__(self) -> tuple[Any, ...]:
        return stock_binding, (self.op, self.variant)


def stock_binding(op: str, variant: str) -> StockBinding:
    """The binding that leaves ``op`` to transformers."""
    return StockBinding(op, variant, STOCK, "default", _never_called)


def _never_called(*_: Any, **__: Any) -> NoReturn:
    raise AssertionError("transformers computes what is bound to stock")


class InjectedModule(KernelModule):
    """Base of the blocks. A family derives each of them once more, together with the HF class that it stands in for.

    The instance stays the one that it is: only its class changes, to a subclass of its own, so that parameters, hooks,
    submodules, sharding and ``isinstance`` remain. Such a class is found by its name where a model is unpickled. What
    is not bound is left to the HF class.

    Attributes:
        stock: the HF class.
    """

    stock: ClassVar[type[Any]]
    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            """What the HF class and its instance have."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if not issubclass(cls.__bases__[-1], InjectedModule):
            cls.stock = cls.__bases__[-1]
        if hasattr(cls, "_can_record_outputs"):
            # transformers looks up there, by the name of the class, which outputs a model can capture.
            dict.__setitem__(_CAN_RECORD_REGISTRY, str(cls), cls._can_record_outputs)

    @classmethod
    def function_of_stock(cls, name: str) -> Kernel:
        """A function of the module in which the HF class is."""
        return getattr(sys.modules[cls.stock.__module__], name)

    @classmethod
    def kernel_needs(cls, module: Any) -> list[Need]:
        """The kernels that ``module``, an instance of the HF class, has a place for."""
        raise NotImplementedError

    def rebind(self, binding: Binding) -> Binding:
        """As in the base class; a stock binding leaves no callable, so that the class attribute None is found."""
        if not isinstance(binding, StockBinding):
            return super().rebind(binding)
        self._bindings = {**self.bindings, binding.op: binding}
        self.__dict__.pop(binding.op, None)
        return binding

    def release(self) -> None:
        """Be what it was before: nothing is left of the bindings, and the class is HF's."""
        for name in (*self.bindings, "_bindings"):
            self.__dict__.pop(name, None)
        become(self, self.stock)


def plain_class(module: nn.Module) -> type[nn.Module]:
    """The class of ``module``, without the one that FSDP2 puts before it."""
    return type(module).__bases__[-1] if isinstance(module, FSDPModule) else type(module)


def become(module: nn.Module, kind: type[nn.Module]) -> None:
    """Change the class of ``module`` to ``kind``; a module that is sharded by FSDP2 stays so."""
    if isinstance(module, FSDPModule):
        sharded, plain = type(module), plain_class(module)
        mixins = tuple(base for base in sharded.__bases__ if base is not plain)
        members = {"__deepcopy__": vars(sharded)["__deepcopy__"]} if "__deepcopy__" in vars(sharded) else {}
        kind = type(f"FSDP{kind.__name__}", (*mixins, kind), members)
    module.__class__ = kind
