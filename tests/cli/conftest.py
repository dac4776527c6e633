"""The command, called in this process, on a registry with ops of known kernels beside the built-in ones."""

from __future__ import annotations

from typing import Literal, Protocol

import pytest
from pydantic import BaseModel, ConfigDict
from torch import Tensor
from typer.testing import CliRunner

from kernelkit import HardwareRequirement, KernelSpec, Op, default_registry, registry
from kernelkit.cli.app import app


class Sum(Protocol):
    """Add two tensors.

    For the tests of the command alone.
    """

    def __call__(self, left: Tensor, right: Tensor, *, scale: float = 1.0) -> Tensor:
        """Return scale * (left + right), [N]."""


class SumOptions(BaseModel):
    """What a config may set.

    Attributes:
        order: which operand comes first.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    order: Literal["left", "right"] = "left"
    width: int


def make(options: SumOptions):
    return (lambda left, right: left + right) if options.order == "left" else (lambda left, right: right + left)


def spec(name: str, variant: str = "plain", factory: str = "operator:add", **fields) -> KernelSpec:
    return KernelSpec(op="sum", variant=variant, name=name, factory=factory, **fields)


def fill(catalogue) -> None:
    catalogue.register_op(Op("sum", {"plain": "torch.add", "wide": "a paper"}, Sum))
    hopper = HardwareRequirement(device_type="cuda", min_capability=(9, 0))
    for made in (
        spec("eager", description="The reference."),
        spec("eager", "wide"),
        spec("hopper", hardware=hopper, packages=("hopper-sums>=2",), dtypes=("bfloat16",), limits={"width": 64}),
        spec("sketch", tested=False, traceable=False, deterministic=False),
        spec("forward", inference_only=True),
        spec("tuned", factory=f"{__name__}:make", options=SumOptions),
        spec("lost", factory="no_such_package:kernel"),
    ):
        catalogue.register(made)


@pytest.fixture(autouse=True)
def known_registry(monkeypatch):
    """The default registry, with the op `sum` and a plug-in that cannot be loaded."""
    catalogue = default_registry().copy()
    fill(catalogue)
    catalogue.attempt("tidal (tidal.kernels:register)", lambda _: __import__("tidal"))
    monkeypatch.setattr(registry, "_default", [catalogue])
    return catalogue


@pytest.fixture
def run():
    """`run("list", "--op", "sum")`: the result of the command, which never ends in a traceback."""

    def call(*arguments):
        result = CliRunner().invoke(app, [str(argument) for argument in arguments])
        assert result.exception is None or isinstance(result.exception, SystemExit), repr(result.exception)
        return result

    return call


@pytest.fixture
def refused(run):
    """`refused("list", "--op", "sun")`: the one line that the command says before it leaves with status 2."""

    def call(*arguments):
        result = run(*arguments)
        assert (result.exit_code, result.stdout) == (2, "")
        (line,) = result.stderr.splitlines()
        return line

    return call


@pytest.fixture
def write(tmp_path, monkeypatch):
    """`write("ops.yaml", text)`: a file in the current folder, and its name."""
    monkeypatch.chdir(tmp_path)

    def call(name, text):
        (tmp_path / name).write_text(text)
        return name

    return call
