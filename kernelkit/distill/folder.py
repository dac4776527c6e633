"""The folder of a run."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch.distributed.checkpoint.state_dict as dcp_state
from transformers import PreTrainedTokenizerBase

from kernelkit.distill.atomic import rename_folder, replace_text
from kernelkit.distill.config import DistillConfig
from kernelkit.distill.parallel import Ranks
from kernelkit.models.layers.causal_lm import CausalLM

STAGES = ("teacher", "student", "control")
"""The trainings of a run, in their order. Each leaves its model in a folder of that name."""

WRITTEN = (*STAGES, "checkpoints", "tensorboard", "metrics.jsonl", "report.html", "config.yaml")


class RunFolder:
    """Where a run writes.

    Args:
        config: of the run.
        ranks: its processes; the first one writes.
    """

    def __init__(self, config: DistillConfig, ranks: Ranks) -> None:
        self.config, self.ranks = config, ranks
        self.path = Path(config.output.dir).expanduser()

    @property
    def holds_run(self) -> bool:
        """Whether a run has begun here."""
        return (self.path / "config.yaml").is_file()

    def claim(self, *, resume: bool, overwrite: bool) -> None:
        """Make the folder ready.

        Raises:
            FileExistsError: where there is another run, or something that is no run at all.
        """
        if self.path.exists() and not self.path.is_dir():
            raise FileExistsError(f"{self.path} is a file; name another output.dir")
        there = sorted(entry.name for entry in self.path.iterdir()) if self.path.is_dir() else []
        mine = self.holds_run
        if there and not mine:
            raise FileExistsError(f"{self.path} holds {there[0]} and is no run of kernelkit; name another output.dir")
        if there and not (resume or overwrite):
            raise FileExistsError(f"{self.path} holds a run; --resume goes on with it, --overwrite begins anew")
        self.ranks.wait()
        if self.ranks.is_first:
            if not resume:
                for name in WRITTEN:
                    for path in (name, f".{name}.draft", f".{name}.new"):
                        _remove(self.path / path)
            self.path.mkdir(parents=True, exist_ok=True)
            if not (resume and mine):
                self.describe()
        self.ranks.wait()

    def describe(self) -> None:
        """Write the config down; on a resumed run only once its checkpoint is known to be of this run."""
        if self.ranks.is_first:
            replace_text(self.path / "config.yaml", self.config.to_yaml())

    def is_done(self, stage: str) -> bool:
        """Whether the model of ``stage`` is there, trained to the end."""
        return (self.path / stage).is_dir()

    def save(self, model: CausalLM, tokenizer: PreTrainedTokenizerBase, path: Path) -> None:
        """Write a model as transformers does, with its tokenizer: whole or not at all."""
        options = dcp_state.StateDictOptions(full_state_dict=True, cpu_offload=True)
        state = dcp_state.get_model_state_dict(model, options=options) if self.ranks.world_size > 1 else None
        if self.ranks.is_first:
            draft = path.with_name(f".{path.name}.draft")
            _remove(draft)
            model.save_pretrained(draft, state_dict=state)
            tokenizer.save_pretrained(draft)
            rename_folder(draft, path)
        self.ranks.wait()


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
