"""The specs can be read anywhere."""

from __future__ import annotations

from kernelkit.registry import default_registry

BLOCKED = ("triton", "liger_kernel", "transformers", "torch_npu", "flash_attn", "flash_attn_interface", "quack")

EXPECTED = {
    ("rms_norm", "standard"): {"eager", "torch", "compile", "triton", "liger", "liger_npu", "quack"},
    ("rms_norm", "zero_centered"): {"eager", "torch", "compile", "triton", "liger", "liger_npu", "quack"},
    ("rms_norm", "fp32_weight"): {"eager", "torch", "compile", "triton", "liger", "liger_npu", "quack"},
    ("add_rms_norm", "standard"): {"eager", "triton"},
    ("qk_norm_rope", "standard"): {"eager", "triton"},
    ("rotary_pos_emb", "full"): {"eager", "compile", "triton", "liger", "liger_npu"},
    ("rotary_pos_emb", "partial"): {"eager", "compile", "triton", "liger"},
    ("rotary_pos_emb", "interleaved"): {"eager", "compile", "triton"},
    ("swiglu_mlp", "silu"): {"eager", "compile", "triton", "liger"},
    ("swiglu_mlp", "gelu_tanh"): {"eager", "compile", "triton", "liger"},
    ("swiglu_mlp", "clamped"): {"eager", "compile", "triton"},
    ("moe_router", "standard"): {"eager", "triton"},
    ("moe_experts", "standard"): {"eager", "torch", "compile", "triton", "liger", "quack"},
    ("moe_experts", "gpt_oss"): {"eager", "torch", "compile", "triton", "quack"},
    ("cross_entropy_loss", "standard"): {"eager", "compile", "triton", "liger", "quack"},
    ("load_balancing_loss", "standard"): {"eager", "compile", "triton"},
    ("distillation_loss", "standard"): {"eager", "chunked", "triton", "liger"},
}

READ_ALL = f"""
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {BLOCKED!r}:
            raise ImportError(name + " is blocked")

sys.meta_path.insert(0, Blocker())
from kernelkit.registry import default_registry
specs = default_registry().list()
assert all(spec.model_dump() for spec in specs)
print(len(specs), sorted(set({BLOCKED!r}) & set(sys.modules)))
"""


def test_every_spec_is_read_without_the_packages_that_kernels_come_from(python):
    assert python(READ_ALL) == f"{len(default_registry().list())} []"


def test_the_implementations_that_are_promised_are_there():
    for (op, variant), names in EXPECTED.items():
        assert names <= set(default_registry().impls(op, variant))


def test_what_nobody_has_run_says_so():
    assert {spec.name for spec in default_registry().list() if spec.hardware.device_type == "npu"} == {"liger_npu"}
    assert not any(spec.tested for spec in default_registry().list(name="liger_npu"))


def test_every_eager_kernel_runs_anywhere():
    for spec in default_registry().list(name="eager"):
        assert spec.hardware.device_type == "any"
        assert spec.packages == ()
