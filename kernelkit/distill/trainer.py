"""The training loop of one model: the student, its control, or a teacher before it teaches."""

from __future__ import annotations

import math
import resource
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

from kernelkit.distill.checkpoints import Checkpoints
from kernelkit.distill.data.batch import Step
from kernelkit.distill.data.loader import Loader
from kernelkit.distill.evaluation import Evaluation
from kernelkit.distill.flops import Speed
from kernelkit.distill.metrics import Record, Sink
from kernelkit.distill.optimizer import MasterAdamW, learning_rate
from kernelkit.distill.parallel import Ranks
from kernelkit.distill.stage import SUMMED, Stage, compute_gradient


class NonFiniteLossError(RuntimeError):
    """The loss or its gradient is not a number any more; training has stopped."""


class StoppedError(RuntimeError):
    """The run was told to stop, and has saved a checkpoint to go on from."""


class Trainer:
    """Trains the model of one stage.

    The loss of a step is the sum over all its tokens that count, divided by their number, whatever the micro-batches
    and ranks that they are dealt out to; and so is its gradient.

    Args:
        stage: what is trained, and how.
        data: the training data.
        evaluation: of the validation data, or None.
        every: steps between evaluations and between checkpoints, each or None.
        sink: where records go.
        checkpoints: of this stage.
        speed: what the model's arithmetic amounts to.
        ranks, device: where it runs.
        stop: asked after each step whether to save and stop.
    """

    def __init__(
        self,
        stage: Stage,
        *,
        data: Loader,
        evaluation: Evaluation | None,
        every: tuple[int | None, int | None],
        sink: Sink,
        checkpoints: Checkpoints,
        speed: Speed,
        ranks: Ranks,
        device: torch.device,
        stop: Callable[[], bool] = lambda: False,
    ) -> None:
        self.stage, self.data, self.evaluation, self.sink, self.checkpoints = stage, data, evaluation, sink, checkpoints
        self.every, self.speed, self.ranks, self.device, self.stop = every, speed, ranks, device, stop
        self.optimizer = MasterAdamW(stage.model, stage.optim)
        self.done = 0

    def resume(self, *, last_good: bool = False) -> None:
        """Go on from the newest checkpoint, if there is one.

        Raises:
            CheckpointError: for one that is damaged or is of another run.
        """
        checkpoint = self.checkpoints.latest(last_good=last_good)
        if checkpoint is not None:
            self.data.load_state_dict(checkpoint.position)
            self.checkpoints.read_into(checkpoint, self.optimizer.state())
            self.optimizer.write_weights()
            self.done = checkpoint.step

    def fit(self) -> dict[str, float]:
        """Train to the last step, and return what the last evaluation found.

        Raises:
            NonFiniteLossError: naming step, batch and last checkpoint.
            StoppedError: after a checkpoint was saved because :attr:`stop` said so.
        """
        evaluate_every, save_every = self.every
        self.sink.start(self.stage.name, first_step=self.done, steps=self.stage.steps)
        if self.done == 0 and evaluate_every:
            self._evaluate()
        found: dict[str, float] = {}
        self.stage.model.train()
        for step in self._remaining():
            self._write("train", self.train_step(step), str(step.id))
            last = self.done == self.stage.steps
            if last or (evaluate_every and self.done % evaluate_every == 0):
                found = self._evaluate()
            stopping = not last and self.ranks.any(self.stop())
            if stopping or (save_every and not last and self.done % save_every == 0):
                saved = self.checkpoints.save(self.optimizer.state(), self.done, self.data.state_dict())
                if stopping:
                    raise StoppedError(f"stopped after step {self.done} of {self.stage.name}; saved {saved}")
        return found

    def _remaining(self) -> Iterator[Step]:
        while self.done < self.stage.steps:
            step = next(self.data)
            self.done += 1
            yield step

    def train_step(self, step: Step) -> dict[str, float]:
        """One step of the optimizer on the rows of ``step``; what it found out, for a record."""
        began = time.perf_counter()
        # Seeded anew at each step, so that a run that is resumed draws what it would have drawn.
        torch.manual_seed(_seed(self.stage.seed, self.done, self.ranks.rank))
        sums, norm = compute_gradient(
            self.stage, self.optimizer, step.micro_batches, step.num_targets, self.device, self.ranks.world_size
        )
        grad_norm = norm.item()
        found = dict(zip(SUMMED, self.ranks.sum(sums).tolist(), strict=True))
        # Before the optimizer takes it into the weights.
        self._check_finite(found["loss"], grad_norm, step)
        lr = learning_rate(self.stage.optim, self.stage.lr, self.done, self.stage.steps)
        self.optimizer.step(lr)
        seconds = time.perf_counter() - began
        if self.stage.teacher is None:
            found = {name: found[name] for name in ("loss", "cross_entropy")}
        return {
            **found,
            "grad_norm": grad_norm,
            "lr": lr,
            "epoch": step.id.epoch,
            "tokens": step.num_tokens,
            "seconds": seconds,
            **self.speed.figures(step.num_tokens, seconds),
            "peak_memory_gib": peak_memory_gib(self.device),
        }

    def _check_finite(self, loss: float, grad_norm: float, step: Step) -> None:
        if math.isfinite(loss) and math.isfinite(grad_norm):
            return
        last = self.checkpoints.found()
        kept = f"the last checkpoint is {last[-1]}" if last else "there is no checkpoint yet"
        raise NonFiniteLossError(
            f"at step {self.done} of {self.stage.name}, {step.id}, the loss is {loss} and the norm of its gradient "
            f"{grad_norm}; {kept}"
        )

    def _evaluate(self) -> dict[str, float]:
        if self.evaluation is None:
            return {}
        found = self.evaluation(self.stage.model, self.stage.judge, self.device)
        self._write("eval", found)
        return found

    def _write(self, kind: Any, figures: dict[str, float], note: str = "") -> None:
        if self.ranks.is_first:
            self.sink.write(Record(self.stage.name, kind, self.done, figures, note))


def _seed(*numbers: int) -> int:
    """One seed for several numbers; numpy promises that it stays the same."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)


def peak_memory_gib(device: torch.device) -> float:
    """The most memory that tensors on ``device`` have taken so far; on a CPU, the most that the process has taken."""
    if device.type == "cpu":
        unit = 1 if sys.platform == "darwin" else 2**10
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30
    return float(torch.accelerator.max_memory_allocated(device)) / 2**30
