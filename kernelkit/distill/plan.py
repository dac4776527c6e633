"""Everything that can be wrong with a run, found before any weight is loaded."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import ValidationError
from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig

from kernelkit.containers.bindings import Need
from kernelkit.distill.config import DistillConfig
from kernelkit.distill.data.config import DataConfig
from kernelkit.distill.data.pipeline import Data, open_data
from kernelkit.distill.data.tokenizer import open_tokenizer
from kernelkit.distill.model_config import ModelConfig, StudentConfig, TeacherConfig
from kernelkit.distill.model_plan import ModelPlan
from kernelkit.distill.parallel import Ranks
from kernelkit.errors import Loc, Problem, listing, problems_in, unknown
from kernelkit.hardware import Hardware
from kernelkit.models.auto import FAMILIES, family_of
from kernelkit.models.layers.pretrained import DISTILLATION

Role = Literal["teacher", "student"]

_READ_IF_THERE = ("model_type", "head_dim", "rope_theta", "rope_scaling")
"""Keys that models read although not every config class declares them."""


@dataclass(frozen=True)
class Plan:
    """A run that can begin.

    Attributes:
        config: what the user wrote.
        teacher, student: the models.
        data: the loaders of this rank.
        ranks: the processes of the run.
    """

    config: DistillConfig
    teacher: ModelPlan
    student: ModelPlan
    data: Data
    ranks: Ranks

    @classmethod
    def make(cls, config: DistillConfig, ranks: Ranks, hardware: Hardware | None = None) -> Plan:
        """Check the whole run.

        Args:
            config: what is wanted.
            ranks: the processes of the run.
            hardware: a machine that is not this one, which the run is meant for; its kernels are not imported.

        Raises:
            ValidationError: for everything that is wrong, with locs as in ``config``.
        """
        problems: list[Problem] = []
        device = _device(config, "student", ranks, hardware, problems)
        home = _device(config, "teacher", ranks, hardware, problems) if config.teacher.device else device
        student = _model(config, "student", device, hardware, problems)
        teacher = _model(config, "teacher", home, hardware, problems)
        problems += _tokenizer_problems(config, {"teacher": teacher, "student": student})
        problems += _vocabulary_problems(config, teacher, student)
        data: Data | None = None
        try:
            data = open_data(config.data, seed=config.train.seed, rank=ranks.rank, world_size=ranks.world_size)
        except ValidationError as error:
            problems += problems_in(error, ("data",))
        if problems or student is None or teacher is None or data is None:
            raise config.error(problems)
        return cls(config, teacher, student, data, ranks)


def _device(
    config: DistillConfig, role: Role, ranks: Ranks, hardware: Hardware | None, problems: list[Problem]
) -> torch.device:
    wanted: str | None = getattr(config, role).device
    if ranks.world_size > 1 and wanted and ":" in wanted:
        message = f"a run of {ranks.world_size} processes has an accelerator for each; name no number"
        problems.append(Problem((role, "device"), "numbered_device", message, wanted))
    try:
        if hardware is not None:
            return torch.device(wanted or hardware.device_type)
        device = ranks.device(wanted)
        Hardware.detect(device)
    except RuntimeError as error:
        problems.append(Problem((role, "device"), "no_such_device", str(error).partition("\n")[0], wanted))
        return torch.device("cpu")
    return device


def _model(
    config: DistillConfig, role: Role, device: torch.device, hardware: Hardware | None, problems: list[Problem]
) -> ModelPlan | None:
    section: TeacherConfig | StudentConfig = getattr(config, role)
    hf_config, faults = _hf_config(section, role)
    problems += faults
    if hf_config is None:
        return None
    most = hf_config.max_position_embeddings
    if config.data.seq_len > most:
        message = f"the {role} has positions for {most} tokens, and a row has {config.data.seq_len}"
        problems.append(Problem(("data", "seq_len"), "too_long", message, config.data.seq_len))
    plan = ModelPlan(section, hf_config, device, hardware)
    try:
        # A teacher that is trained first must be able to, with the same kernels.
        if isinstance(section, TeacherConfig) and section.pretrain is not None:
            _check_kernels(plan, training=True)
        _check_kernels(plan, training=plan.distilled)
        if section.ops.overrides:
            plan.outline()  # which modules a pattern fits is known once they are there
    except ValidationError as error:
        problems += problems_in(error, (role, "ops"))
        return None
    return plan


def _check_kernels(plan: ModelPlan, *, training: bool) -> None:
    """Bind all kernels of the model once."""
    family = family_of(plan.config)
    needs = [*family.kernel_needs(plan.config), *([Need(*DISTILLATION)] if plan.distilled else [])]
    plan.container(training=training).bind(needs, model=family.__name__, dtype=plan.dtype)


def _hf_config(section: ModelConfig, role: Role) -> tuple[PreTrainedConfig | None, list[Problem]]:
    loc: Loc = (role, "path" if section.config is None else "config")
    if section.config is not None:
        return _new_config(section.config, loc)
    path = Path(str(section.path)).expanduser()
    if not (path / "config.json").is_file():
        what = "has no config.json" if path.is_dir() else "is no folder"
        return None, [Problem(loc, "missing_checkpoint", f"{path} {what}; a checkpoint in HF's format is wanted")]
    try:
        config = AutoConfig.from_pretrained(path, local_files_only=True)
    except (OSError, ValueError) as error:
        return None, [Problem(loc, "unreadable_checkpoint", f"{path}: {str(error).partition(chr(10))[0]}")]
    if config.model_type not in FAMILIES:
        message = f"{path}: {unknown('model_type', config.model_type, FAMILIES)}"
        return None, [Problem(loc, "unknown_family", message, config.model_type)]
    return config, []


def _new_config(wanted: dict[str, Any], loc: Loc) -> tuple[PreTrainedConfig | None, list[Problem]]:
    model_type = wanted.get("model_type")
    if model_type not in FAMILIES:
        message = unknown("model_type", model_type, FAMILIES)
        return None, [Problem((*loc, "model_type"), "unknown_family", message, model_type)]
    kind = CONFIG_MAPPING[model_type]
    # transformers keeps whatever it is given as an attribute, a misspelt size as well.
    known = {*inspect.signature(kind).parameters, *kind.attribute_map, *_READ_IF_THERE}
    strange = [key for key in wanted if key not in known]
    if strange:
        names = sorted(known - set(inspect.signature(PreTrainedConfig).parameters))
        return None, [Problem((*loc, key), "unknown_key", unknown("key", key, names, of=model_type)) for key in strange]
    try:
        return AutoConfig.for_model(**wanted), []
    except Exception as error:  # each config class raises what it likes
        return None, [Problem(loc, "invalid_config", " ".join(str(error).split()))]


def _vocabulary_problems(
    config: DistillConfig, teacher: ModelPlan | None, student: ModelPlan | None
) -> Iterator[Problem]:
    if teacher is None or student is None or config.loss.vocab == "truncate":
        return
    theirs, ours = teacher.config.vocab_size, student.config.vocab_size
    if theirs != ours:
        message = (
            f"the teacher's vocabulary has {theirs} tokens and the student's {ours}. "
            f"If the first {min(theirs, ours)} are the same, set loss.vocab: truncate"
        )
        yield Problem(("loss", "vocab"), "vocabulary_mismatch", message, config.loss.vocab)


def _tokenizer_problems(config: DistillConfig, models: dict[str, ModelPlan | None]) -> Iterator[Problem]:
    """Where the data's tokens are not those that a model was trained on, or has no place for."""
    tokenizer, faults = open_tokenizer(config.data)
    if tokenizer is None or faults:
        return  # open_data reports them
    vocabulary = tokenizer.get_vocab()
    for role, model in models.items():
        if model is None:
            continue
        if len(tokenizer) > model.config.vocab_size:
            message = (
                f"tokenizer {config.data.tokenizer} has {len(tokenizer)} tokens, "
                f"and the {role}'s vocabulary {model.config.vocab_size}"
            )
            yield Problem(("data", "tokenizer"), "small_vocabulary", message, config.data.tokenizer)
        path = model.section.path
        if path is not None and (own := _vocabulary_beside(path)) is not None and own != vocabulary:
            differing = sorted({token for token, _ in own.items() ^ vocabulary.items()})
            message = (
                f"tokenizer {config.data.tokenizer} is not that of the {role} at {path}: "
                f"{len(differing)} tokens differ, such as {listing(map(repr, differing[:3]))}"
            )
            yield Problem(("data", "tokenizer"), "tokenizer_mismatch", message, config.data.tokenizer)


def _vocabulary_beside(path: str) -> dict[str, int] | None:
    """The vocabulary of the tokenizer that lies beside a checkpoint, or None where there is none."""
    if not (Path(path).expanduser() / "tokenizer_config.json").is_file():
        return None
    tokenizer, _ = open_tokenizer(DataConfig(train="-", seq_len=2, batch_size=1, tokenizer=path))
    return None if tokenizer is None else tokenizer.get_vocab()
