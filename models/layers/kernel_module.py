"""The base of every module that calls a kernel."""

from __future__ import annotations

from typing import Any

from torch import nn

from kernelkit.containers.bindings import Binding, Bindings


class KernelModule(nn.Module):
    """A module that holds the kernels it was built with, and calls them as ``self.<op>(...)``.

    It pickles and copies the bindings, not the callables, so that a kernel which is a closure or a compiled function is
    built again where the module is loaded.
    """

    _bindings: dict[str, Binding]

    def bind(self, kernels: Bindings, op: str, variant: str = "standard") -> Binding:
        """Take the kernel of ``op`` from ``kernels``; from now on it is ``self.<op>``."""
        return self.rebind(kernels[op, variant])

    def rebind(self, binding: Binding) -> Binding:
        """Call the kernel of ``binding`` for its op from now on."""
        self._bindings = {**self.bindings, binding.op: binding}
        # Not by setattr: a kernel that is itself a module must not become a child with parameters of its own.
        self.__dict__[binding.op] = binding.kernel
        return binding

    @property
    def bindings(self) -> dict[str, Binding]:
        """The bindings by op."""
        return self.__dict__.get("_bindings", {})

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in self.bindings}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]  # untyped in torch
        for binding in self.bindings.values():
            self.rebind(binding)
