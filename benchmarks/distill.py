"""A distillation of Qwen3-1.7B to Qwen3-0.6B shapes with several mixes of kernels, through the command's own code.

Each case runs in a process of its own: ``Distiller.fit`` for some steps on rows of 2048 random bytes, the same rows in
every case, with AdamW and everything else that the command does; then forward and backward alone, in bfloat16. Prints,
for each: tokens a second and peak memory of both, the peak that ``--dry-run`` predicts if asked, and how far the loss
strays from that of the first case. On a CPU it runs small shapes, which say nothing about speed.

    python benchmarks/distill.py [--steps 50] [--out FOLDER] [--predict] [--cases NAME ...]
"""

from __future__ import annotations

import argparse
import gc
import json
import random
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from kernelkit.bench.step_cases import DISTILLATIONS
from kernelkit.distill.config import DistillConfig
from kernelkit.distill.distiller import Distiller
from kernelkit.distill.memory import predict
from kernelkit.distill.metrics import read_records
from kernelkit.distill.plan import Plan
from kernelkit.distill.stage import Stage

CONFIG = Path(__file__).parents[1] / "configs/distill/qwen3-1.7b-to-0.6b.yaml"

CASES = {case.name: case for case in DISTILLATIONS}
CASES |= {f"{name}, row by row": CASES[name] for name in ("all eager", "teacher triton, student eager")}
"""Those of ``kernelkit bench --step``, and two with an eager student in less memory: whole, all eager takes 121 GiB."""

SMALL = [
    f"{role}.config.{key}={value}"
    for role in ("teacher", "student")
    for key, value in (("vocab_size", 512), ("hidden_size", 64), ("intermediate_size", 96), ("num_hidden_layers", 2))
]


def settings(name: str, folder: Path, steps: int, small: bool) -> list[str]:
    """The overrides of one case."""
    case = CASES[name]
    student, teacher = (json.dumps(ops) for ops in (case.ops, case.ops if case.teacher is None else case.teacher))
    compiled = json.dumps(case.compiled)
    rows = folder / "rows.jsonl"
    seq_len = 64 if small else 2048
    if not rows.exists():
        # With the marks of its beginning and its end, each text is a full row.
        draw = random.Random(0)
        texts = ["".join(draw.choices("abcdefghij ", k=seq_len - 2)) for _ in range(4 * steps)]
        rows.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return [
        *(f"teacher.ops={teacher}", f"student.ops={student}"),
        *(f"teacher.compile={compiled}", f"student.compile={compiled}"),
        *(f"data.train={rows}", "data.validation=null", f"data.seq_len={seq_len}", "eval.every=null"),
        *(f"train.steps={steps}", "train.save_every=null", "optim.warmup_steps=5", "optim.lr=3e-4"),
        *(f"output.dir={folder / name.replace(' ', '-').replace(',', '')}", "output.tensorboard=false"),
        *(["data.micro_batch_size=1"] if "row by row" in name else []),
        *(SMALL if small else []),
    ]


def run(name: str, folder: Path, steps: int, predicting: bool) -> dict[str, Any]:
    """What one case gives."""
    small = not torch.cuda.is_available()
    config = DistillConfig.from_yaml(CONFIG, settings(name, folder, steps, small))
    distiller = Distiller(config)
    predicted = predict(distiller.plan).peak / 2**30 if predicting else float("nan")
    distiller.fit(overwrite=True)
    records = read_records(Path(config.output.dir) / "metrics.jsonl")
    figures = [record.figures for record in records if record.kind == "train"]
    gc.collect()
    rate, peak = forward_backward(distiller, config)
    return {
        "case": name,
        "losses": [each["loss"] for each in figures],
        "command_tokens_per_second": statistics.median(each["tokens_per_second"] for each in figures[steps // 3 :]),
        "command_peak_gib": figures[-1]["peak_memory_gib"],
        "predicted_gib": predicted,
        "tokens_per_second": rate,
        "peak_gib": peak,
        "device": torch.cuda.get_device_name() if not small else "cpu",
    }


def forward_backward(distiller: Distiller, config: DistillConfig, repeats: int = 20) -> tuple[float, float]:
    """Tokens a second of forward and backward without an optimizer, by the median, and peak GiB."""
    plan: Plan = distiller.plan
    device, student = plan.student.device, distiller.student.train()
    batch = next(plan.data.train).micro_batches[0].to(device)
    stage = Stage(
        "student", student, distiller.teacher, None, config.loss.distillation, config.optim, lr=0.0, steps=1, seed=0
    )
    seconds = []
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    for _ in range(repeats):
        began = time.perf_counter()
        loss, _ = stage.loss(batch, batch.num_targets)
        loss.backward()  # type: ignore[no-untyped-call]  # untyped in torch
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
        student.zero_grad()
    peak = torch.cuda.max_memory_allocated() / 2**30 if device.type == "cuda" else float("nan")
    return batch.input_ids.numel() / statistics.median(seconds[repeats // 4 :]), peak


def report(results: list[dict[str, Any]]) -> None:
    """A table of all cases."""
    names = ("case", "command tok/s", "GiB", "predicted", "fwd+bwd tok/s", "GiB", "last loss", "off by")
    table = Table(*names, title=results[0]["device"] if results else "")
    for each in results:
        off = max(abs(a - b) / abs(b) for a, b in zip(each["losses"], results[0]["losses"], strict=True))
        table.add_row(
            each["case"],
            f"{each['command_tokens_per_second']:,.0f}",
            f"{each['command_peak_gib']:.2f}",
            f"{each['predicted_gib']:.2f}",
            f"{each['tokens_per_second']:,.0f}",
            f"{each['peak_gib']:.2f}",
            f"{each['losses'][-1]:.4f}",
            f"{off:.2%}",
        )
    Console(width=120).print(table)


def main() -> None:
    """Each case in a process of its own, so that neither its memory nor what it compiled is another's."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--out", type=Path, default=Path("runs/benchmark"))
    parser.add_argument("--cases", nargs="*", choices=list(CASES), default=list(CASES))
    parser.add_argument("--predict", action="store_true", help="also predict the peak, which takes a while")
    parser.add_argument("--alone", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    if arguments.alone:
        found = run(arguments.cases[0], arguments.out, arguments.steps, arguments.predict)
        (arguments.out / "last.json").write_text(json.dumps(found))
        return
    results = []
    for name in arguments.cases:
        command = [sys.executable, __file__, "--alone", "--steps", str(arguments.steps), "--out", str(arguments.out)]
        command += ["--predict"] if arguments.predict else []
        if subprocess.run([*command, "--cases", name], check=False).returncode:
            print(f"{name}: failed", flush=True)
            continue
        results.append(json.loads((arguments.out / "last.json").read_text()))
        (arguments.out / "results.json").write_text(json.dumps(results, indent=1))
        report(results)


if __name__ == "__main__":
    main()
