"""The demo's question, asked three times: what is a teacher good for?"""

from __future__ import annotations

from pathlib import Path
from statistics import mean, stdev

import pytest

from kernelkit.distill import DistillConfig, Distiller

TINY = Path(__file__).parents[2] / "configs/distill/tiny.yaml"
SEEDS = (0, 1, 2)


def run(folder, *overrides):
    """The last evaluation of each stage."""
    config = DistillConfig.from_yaml(TINY, [f"output.dir={folder}", "output.tensorboard=false", *overrides])
    report = Distiller(config).fit()
    return {stage.name: stage.figures for stage in report.stages}


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_students_of_a_teacher_beat_those_of_the_labels_by_more_than_two_standard_errors(tmp_path):
    first = run(tmp_path / "0")
    given = (f"teacher.path={tmp_path / '0/teacher'}", "teacher.config=null", "teacher.pretrain=null")
    runs = [first, *(run(tmp_path / str(seed), *given, f"train.seed={seed}") for seed in SEEDS[1:])]
    for figure in ("kl", "cross_entropy"):
        gains = [each["control"][figure] - each["student"][figure] for each in runs]
        assert mean(gains) > 2 * stdev(gains) / len(gains) ** 0.5, (figure, gains)
        assert min(gains) > 0, (figure, gains)
