from __future__ import annotations

import json

import pytest
from transformers import LlamaConfig, Qwen3MoeConfig


@pytest.fixture
def llama(tmp_path):
    """A folder with the config of a small Llama, as `save_pretrained` leaves it."""
    LlamaConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2).save_pretrained(
        tmp_path
    )
    return tmp_path


@pytest.fixture
def mixture(tmp_path):
    Qwen3MoeConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1, num_experts=4
    ).save_pretrained(tmp_path)
    return tmp_path


def table(text):
    """The rows of what a file resolves to, by op."""
    lines = text.partition("\nop ")[2].partition("\n\n")[0].splitlines()[1:]
    return {line.split()[0]: " ".join(line.split()[1:]) for line in lines}


def test_a_good_file_shows_what_each_op_resolves_to_and_why(run, write):
    write("ops.yaml", "attention: sdpa\npreset: torch\n")
    result = run("validate", "ops.yaml", "--device", "cpu")
    assert result.exit_code == 0
    assert result.stdout.startswith("ops.yaml: valid on cpu\n")
    shown = table(result.stdout)
    assert shown["attention"] == "causal, sliding_window sdpa named"
    assert shown["rms_norm"] == "standard, zero_centered, fp32_weight torch preset torch"
    assert shown["swiglu_mlp"] == "silu, gelu_tanh, clamped eager default"


def test_variants_that_no_model_would_get_are_named_below_the_table(run, write):
    write("ops.yaml", "attention: sdpa\n")
    below = run("validate", "ops.yaml", "--hardware", "cpu").stdout.partition("would be refused:\n")[2]
    assert below.startswith("- attention: sdpa (named) has no variant 'softcap'")


def test_every_mistake_is_reported_with_file_line_and_column(run, write):
    write("ops.yaml", "attention: sdpaa\nrms_nrm: eager\nsum:\n  impl: tuned\n  width: wide\n")
    result = run("validate", "ops.yaml")
    assert result.exit_code == 1
    assert result.stdout == ""
    first, second, third = sorted(result.stderr.splitlines())
    assert first.startswith("ops.yaml:1:1: unknown implementation 'sdpaa' of attention. Did you mean 'sdpa'?")
    assert second.startswith("ops.yaml:2:1: unknown op 'rms_nrm'. Did you mean 'rms_norm'?")
    assert third.startswith("ops.yaml:5:3: Input should be a valid integer")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "is empty"),
        ("- attention\n", "not a mapping"),
        ("attention: [\n", "is not YAML"),
        ("attention: sdpa\nattention: eager\n", "given twice"),
        ("preset: fast\n", "unknown preset 'fast'"),
    ],
)
def test_a_file_that_is_no_config_is_a_line_and_no_traceback(run, write, text, reason):
    write("ops.yaml", text)
    result = run("validate", "ops.yaml")
    assert result.exit_code == 1
    (line,) = result.stderr.splitlines()
    assert line.startswith("ops.yaml:")
    assert reason in line


def test_a_file_that_is_missing_does_not_keep_the_others_from_being_read(run, write):
    write("good.yaml", "rms_norm: eager\n")
    write("bad.yaml", "rms_norm: ear\n")
    result = run("validate", "bad.yaml", "none.yaml", "good.yaml")
    assert result.exit_code == 1
    assert [line.split(":")[0] for line in result.stderr.splitlines()] == ["bad.yaml", "none.yaml"]
    assert result.stdout.startswith("good.yaml: valid on ")


def test_a_kernel_of_another_machine_is_refused_here_and_accepted_there(run, write):
    write("ops.yaml", "sum: hopper\n")
    here, there = run("validate", "ops.yaml", "--device", "cpu"), run("validate", "ops.yaml", "--hardware", "h100")
    assert (here.exit_code, there.exit_code) == (1, 0)
    assert here.stderr.startswith("ops.yaml:1:1: sum: hopper (named) runs on cuda, not on cpu.")
    assert table(there.stdout)["sum"] == "plain hopper named"


def test_a_kernel_of_another_machine_is_not_imported(run, write):
    # The package of `lost` exists nowhere: on this machine that is seen, and of another one it cannot be known.
    write("ops.yaml", "sum: lost\n")
    assert "No module named" in run("validate", "ops.yaml", "--device", "cpu").stdout
    assert table(run("validate", "ops.yaml", "--hardware", "h100").stdout)["sum"] == "plain lost named"


def test_a_presets_member_that_runs_nowhere_is_an_error(run, write):
    write("ops.yaml", "preset: liger_npu\n")
    result = run("validate", "ops.yaml", "--hardware", "h100")
    assert result.exit_code == 1
    assert result.stderr.startswith("ops.yaml:1:1: rms_norm: liger_npu (preset liger_npu) runs on npu, not on h100")


@pytest.mark.parametrize(
    ("impl", "flags", "reason"),
    [
        ("forward", ["--training"], "is for inference only"),
        ("sketch", ["--compiled"], "cannot be traced by torch.compile"),
        ("hopper", ["--hardware", "h100", "--dtype", "float32"], "takes bfloat16, and the model is float32"),
        ("hopper", ["--hardware", "a100"], "needs compute capability 9.0 or higher"),
    ],
)
def test_the_circumstances_are_those_of_the_options(run, write, impl, flags, reason):
    write("ops.yaml", f"sum: {impl}\n")
    result = run("validate", "ops.yaml", *flags)
    assert result.exit_code == 1
    assert reason in result.stderr


def test_an_inference_only_kernel_serves_inference(run, write):
    write("ops.yaml", "sum: forward\n")
    assert run("validate", "ops.yaml", "--inference").exit_code == 0


def test_for_a_model_only_what_it_needs_is_shown(run, write, llama):
    write("ops.yaml", "rms_norm: torch\n")
    result = run("validate", "ops.yaml", "--hardware", "cpu", "--model", llama)
    assert result.stdout.startswith("ops.yaml: valid on cpu for LlamaForCausalLM\n")
    shown = table(result.stdout)
    assert shown["rms_norm"] == "standard torch named"
    assert {"moe_experts", "sum"}.isdisjoint(shown)


def test_an_op_that_the_model_lacks_is_an_error_unless_it_is_allowed(run, write, llama):
    write("strict.yaml", "moe_experts: torch\n")
    write("lax.yaml", "moe_experts: torch\nallow_unused: true\n")
    strict, lax = (run("validate", file, "--model", llama) for file in ("strict.yaml", "lax.yaml"))
    assert (strict.exit_code, lax.exit_code) == (1, 0)
    assert strict.stderr.startswith("strict.yaml:1:1: LlamaForCausalLM has no use for 'moe_experts'")
    assert lax.stderr.startswith("warning: ")
    assert "LlamaForCausalLM has no use for 'moe_experts'" in lax.stderr


def test_a_preset_with_a_member_that_the_model_does_not_need_serves_it(run, write, mixture):
    write("ops.yaml", "preset: torch\n")
    assert table(run("validate", "ops.yaml", "--model", mixture).stdout)["moe_experts"] == "standard torch preset torch"


RULES = """\
overrides:
  layers.0.mlp: {swiglu_mlp: compile}
  layers.[1-2].self_attn:
    attention: eager
"""


def test_overrides_are_checked_against_the_modules_of_the_model(run, write, llama):
    write("ops.yaml", RULES)
    result = run("validate", "ops.yaml", "--model", llama)
    assert result.exit_code == 1
    assert result.stderr == (
        "ops.yaml:4:5: no module of LlamaForCausalLM at layers.[1-2].self_attn calls attention; near it: "
        "model.layers.0.self_attn\n"
    )
    write("ops.yaml", RULES.replace("[1-2]", "[0-2]"))
    result = run("validate", "ops.yaml", "--model", llama, "--hardware", "h100")
    assert result.exit_code == 0
    assert "swiglu_mlp          silu      compile  overrides layers.0.mlp" in result.stdout


def test_without_a_model_overrides_are_checked_for_the_machine(run, write):
    write("ops.yaml", RULES + "  lm_head: {sum: hopper}\n")
    result = run("validate", "ops.yaml", "--device", "cpu")
    assert result.exit_code == 1
    assert result.stderr.startswith("ops.yaml:5:13: sum: hopper (overrides lm_head) runs on cuda, not on cpu.")
    result = run("validate", "ops.yaml", "--hardware", "h100")
    assert "attention            causal, sliding_window, softcap       eager    overrides layers.[1-2].self_attn" in (
        result.stdout
    )


def test_a_legacy_name_is_a_warning_that_gives_the_new_one(run, write):
    write("ops.yaml", "rms_norm_implementation: eager\n")
    result = run("validate", "ops.yaml")
    assert result.exit_code == 0
    assert result.stderr == (
        "warning: ops.yaml:1:1: rms_norm_implementation: 'eager' is VeOmni's spelling; write rms_norm: eager\n"
    )


def test_json_says_the_same_for_a_machine_to_read(run, write):
    write("good.yaml", "sum: eager\nattn_implementation: sdpa\n")
    write("bad.yaml", "preset: eager\nsum: eagr\n")
    result = run("validate", "good.yaml", "bad.yaml", "--hardware", "cpu", "--json")
    good, bad = json.loads(result.stdout)
    assert result.exit_code == 1
    assert (good["valid"], bad["valid"]) == (True, False)
    assert {"op": "sum", "variant": "wide", "impl": "eager", "why": "named"} in good["kernels"]
    assert len(good["warnings"]) == 1
    (error,) = bad["errors"]
    place = (error["file"], error["line"], error["column"], error["loc"], error["type"])
    assert place == ("bad.yaml", 2, 1, ["sum"], "unknown_impl")
    assert error["message"].startswith("unknown implementation 'eagr'")


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (["--hardware", "h10"], "kernelkit: unknown hardware 'h10'. Did you mean 'h100'?"),
        (["--hardware", "h100", "--device", "cpu"], "kernelkit: --hardware names another machine"),
        (["--device", "abacus"], "kernelkit: "),
        (["--dtype", "bfloat61"], "kernelkit: unknown dtype 'bfloat61'. Did you mean 'bfloat16'?"),
        (["--dtype", "int64"], "kernelkit: unknown dtype 'int64'."),
        (["--model", "nowhere/at/all"], "kernelkit: --model nowhere/at/all: "),
    ],
)
def test_a_mistaken_option_gets_one_line(refused, write, flags, line):
    write("ops.yaml", "sum: eager\n")
    assert refused("validate", "ops.yaml", *flags).startswith(line)


def test_a_model_of_an_unknown_family_is_named_with_the_known_ones(refused, write, tmp_path):
    write("config.json", '{"model_type": "gpt2"}')
    write("ops.yaml", "sum: eager\n")
    assert refused("validate", "ops.yaml", "--model", tmp_path).endswith(
        "kernelkit has no model of type 'gpt2'; it has: llama, qwen2, qwen3, qwen3_moe"
    )
