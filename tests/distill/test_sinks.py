"""Where the records of a run go, and what is left of them after a kill."""

from __future__ import annotations

import io
import json
import math
import sys

import pytest
from rich.console import Console

from kernelkit.distill.metrics import Record, read_records
from kernelkit.distill.sinks import FanOut, JsonLines, ProgressBar, TensorBoard


def train(step, stage="student", **figures):
    return Record(stage, "train", step, figures or {"loss": 1 / step}, f"batch {step} of epoch 0")


def evaluation(step, stage="student", **figures):
    return Record(stage, "eval", step, figures or {"kl": 0.5 / (step + 1)})


def run(sink, *records, first_step=0, steps=10, stage="student"):
    """One stage from start to close."""
    sink.start(stage, first_step=first_step, steps=steps)
    for record in records:
        sink.write(record)
    sink.close()


def test_a_record_is_one_flat_line_of_json():
    record = Record("student", "train", 3, {"loss": 2.5, "tokens": 64}, "batch 2 of epoch 0")
    assert json.loads(record.to_json()) == {
        "stage": "student",
        "kind": "train",
        "step": 3,
        "loss": 2.5,
        "tokens": 64,
        "note": "batch 2 of epoch 0",
    }


@pytest.mark.parametrize("value", [0.1 + 0.2, 1e-310, -0.0, 2**53 - 1, math.pi * 1e300, math.inf, -math.inf])
def test_every_float_is_read_back_as_the_same_float(value):
    (read,) = Record.from_json(train(1, loss=value).to_json()).figures.values()
    assert read.hex() == float(value).hex()


def test_what_is_not_a_number_is_still_json():
    line = train(1, loss=math.nan).to_json()
    json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert math.isnan(Record.from_json(line).figures["loss"])


@pytest.mark.parametrize(
    "line",
    ["", "[]", "3", "{}", '{"stage": "a", "kind": "train", "step": 1}', train(1).to_json().replace("train", "other")],
)
def test_a_line_that_is_not_a_record_is_refused(line):
    with pytest.raises(ValueError, match="not a record"):
        Record.from_json(line)


def test_a_figure_cannot_hide_a_field():
    with pytest.raises(ValueError, match="'step'"):
        Record("student", "train", 1, {"loss": 1.0, "step": 2})


def test_figures_cannot_be_changed_behind_a_record():
    figures = {"loss": 1.0}
    record = Record("student", "train", 1, figures)
    figures["loss"] = 2.0
    assert record.figures == {"loss": 1.0}
    with pytest.raises(TypeError):
        record.figures["loss"] = 3.0


def test_stages_follow_one_another_in_one_file(tmp_path):
    sink = JsonLines(tmp_path / "run" / "metrics.jsonl")
    run(sink, train(1, "teacher"), train(2, "teacher"), stage="teacher")
    run(sink, evaluation(0), train(1))
    assert read_records(sink.path) == [train(1, "teacher"), train(2, "teacher"), evaluation(0), train(1)]


def test_a_record_is_in_the_file_as_soon_as_it_is_written(tmp_path):
    sink = JsonLines(tmp_path / "metrics.jsonl")
    sink.start("student", first_step=0, steps=2)
    sink.write(train(1))
    assert read_records(sink.path) == [train(1)]


def test_a_resumed_stage_drops_what_was_measured_after_its_checkpoint(tmp_path):
    path = tmp_path / "metrics.jsonl"
    run(JsonLines(path), train(1, "teacher"), train(9, "teacher"), stage="teacher")
    run(JsonLines(path), evaluation(0), train(1), train(2), train(3), evaluation(3))
    run(JsonLines(path), train(3, loss=7.0), first_step=2)
    kept = [train(1, "teacher"), train(9, "teacher"), evaluation(0), train(1), train(2)]
    assert read_records(path) == [*kept, train(3, loss=7.0)]


def test_a_stage_that_begins_anew_keeps_nothing_of_itself(tmp_path):
    path = tmp_path / "metrics.jsonl"
    run(JsonLines(path), evaluation(0), train(1))
    run(JsonLines(path), evaluation(0, kl=3.0))
    assert read_records(path) == [evaluation(0, kl=3.0)]


def test_a_line_that_a_kill_cut_short_is_dropped_wherever_it_was_cut(tmp_path):
    path = tmp_path / "metrics.jsonl"
    line = train(2).to_json()
    for length in range(len(line) + 1):
        path.write_text(f"{train(1).to_json()}\n{line[:length]}")
        assert read_records(path) == [train(1)]
        run(JsonLines(path), train(2, loss=5.0), first_step=1)
        assert path.read_text() == f"{train(1).to_json()}\n{train(2, loss=5.0).to_json()}\n"


def test_a_file_of_something_else_is_refused_and_left_as_it_is(tmp_path):
    path = tmp_path / "metrics.jsonl"
    text = f'{train(1).to_json()}\n{{"a": 1}}\n'
    path.write_text(text)
    with pytest.raises(ValueError, match=r"metrics.jsonl:2: not a record"):
        JsonLines(path).start("student", first_step=0, steps=1)
    assert path.read_text() == text


def test_an_evaluation_that_is_repeated_counts_once(tmp_path):
    path = tmp_path / "metrics.jsonl"
    run(JsonLines(path), evaluation(1, kl=1.0), train(1), evaluation(1, kl=2.0))
    assert read_records(path) == [train(1), evaluation(1, kl=2.0)]


def test_nothing_is_written_before_a_stage_starts(tmp_path):
    with pytest.raises(RuntimeError, match="no stage"):
        JsonLines(tmp_path / "metrics.jsonl").write(train(1))
    with pytest.raises(RuntimeError, match="'student' was not started"):
        TensorBoard(tmp_path).write(train(1))


@pytest.fixture(autouse=True)
def event_files_in_order(monkeypatch):
    """TensorBoard reads the files of one second in the order of their counter as text, where 10 comes before 9."""
    from tensorboard.summary.writer import event_file_writer

    monkeypatch.setattr(event_file_writer, "_global_uid", event_file_writer.AtomicCounter(100))


def scalars(folder):
    """By tag, the steps and values that TensorBoard shows."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder)).Reload()
    return {tag: [(each.step, each.value) for each in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_tensorboard_has_a_run_for_each_stage(tmp_path):
    sink = TensorBoard(tmp_path)
    run(sink, train(1, "teacher", loss=4.0, lr=0.5), stage="teacher")
    run(sink, evaluation(0, kl=2.0), train(1, loss=3.0))
    assert scalars(tmp_path / "teacher") == {"train/loss": [(1, 4.0)], "train/lr": [(1, 0.5)]}
    assert scalars(tmp_path / "student") == {"eval/kl": [(0, 2.0)], "train/loss": [(1, 3.0)]}


def test_tensorboard_hides_the_later_steps_of_a_run_that_was_resumed(tmp_path):
    run(TensorBoard(tmp_path), evaluation(0, kl=2.0), *(train(step, loss=step) for step in (1, 2, 3)))
    run(TensorBoard(tmp_path), train(3, loss=9.0), first_step=2)
    assert scalars(tmp_path / "student") == {"eval/kl": [(0, 2.0)], "train/loss": [(1, 1.0), (2, 2.0), (3, 9.0)]}


def test_tensorboard_hides_everything_of_a_stage_that_begins_anew(tmp_path):
    run(TensorBoard(tmp_path), evaluation(0, kl=2.0), train(1))
    run(TensorBoard(tmp_path), evaluation(0, kl=1.0))
    assert scalars(tmp_path / "student") == {"eval/kl": [(0, 1.0)], "train/loss": []}


def test_tensorboard_shows_what_was_written_before_a_kill(tmp_path):
    sink = TensorBoard(tmp_path)
    sink.start("student", first_step=0, steps=2)
    sink.write(train(1, loss=4.0))
    assert scalars(tmp_path / "student") == {"train/loss": [(1, 4.0)]}
    sink.close()


def test_a_missing_tensorboard_is_named_with_its_remedy_before_the_run(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ImportError, match=r"pip install 'kernelkit\[distill\]'"):
        TensorBoard(tmp_path)


def printed(*records, terminal=False, **start):
    file = io.StringIO()
    run(ProgressBar(Console(file=file, force_terminal=terminal, width=120)), *records, **start)
    return file.getvalue()


def test_where_nobody_watches_there_is_a_line_for_a_tenth_of_the_steps():
    lines = printed(*(train(step) for step in range(1, 201)), steps=200).splitlines()
    assert [line.split()[1] for line in lines] == ["1/200", *(f"{step}/200" for step in range(20, 201, 20))]


def test_a_line_says_stage_time_left_loss_and_speed():
    (line,) = printed(train(10, loss=2.10341, tokens_per_second=52103.4), steps=10).splitlines()
    assert line == "student  10/10  0:00:00 left  loss 2.1034  52,103 tokens/s"


def test_a_resumed_stage_goes_on_in_the_tenth_where_it_was():
    lines = printed(*(train(step) for step in range(151, 201)), first_step=150, steps=200).splitlines()
    assert [line.split()[1] for line in lines] == ["151/200", "160/200", "180/200", "200/200"]


def test_evaluations_are_printed_as_they_come():
    assert printed(evaluation(0, kl=0.25, agreement=0.5)) == (
        "student  step 0  validation: kl 0.2500  agreement 0.5000\n"
    )


def test_in_a_terminal_the_bar_stands_at_the_last_step_under_the_evaluations():
    shown = printed(train(7, loss=2.5), evaluation(7, kl=0.25), terminal=True)
    assert "kl 0.2500" in shown and " 7/10" in shown and "loss 2.5000" in shown


def test_brackets_in_the_name_of_a_stage_are_not_markup():
    assert "[red]x" in printed(train(1, "[red]x"), terminal=True, stage="[red]x")


def test_several_sinks_take_in_the_same_and_all_are_closed(tmp_path):
    class Failing(JsonLines):
        def close(self):
            super().close()
            raise OSError("disk full")

    first, last = Failing(tmp_path / "a.jsonl"), JsonLines(tmp_path / "b.jsonl")
    both = FanOut([JsonLines(tmp_path / "c.jsonl"), last])
    run(both, train(1), evaluation(1))
    assert read_records(tmp_path / "c.jsonl") == read_records(last.path) == [train(1), evaluation(1)]
    last.start("student", first_step=1, steps=2)
    with pytest.raises(OSError, match="disk full"):
        FanOut([last, first]).close()
    with pytest.raises(RuntimeError):
        last.write(train(2))
