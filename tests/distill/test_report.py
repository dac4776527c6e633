"""The page of a run, read as a browser would."""

from __future__ import annotations

import math
import re
import sys
from html.parser import HTMLParser

import numpy as np
import pytest

from kernelkit.distill.metrics import Record
from kernelkit.distill.report import ABSENT, RunReport, StageReport, headline, need_report_packages, write_report
from kernelkit.distill.report_charts import _running_mean
from kernelkit.distill.report_kernels import compare_kernels
from kernelkit.models.report import KernelReport, KernelRow

CODE = '<script>alert("x")</script>&$x$'
VOID = {"meta", "br", "img", "link", "input"}


class Page(HTMLParser):
    """Tags with their attributes, and what is written in the cells of tables, in legends and everywhere."""

    def __init__(self, html):
        super().__init__()
        self.html, self.open, self.tags, self.texts = html, [], [], []
        self.feed(html)
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if data.strip():
            self.texts.append((tuple(self.open), data.strip()))

    def texts_in(self, tag):
        return [text for path, text in self.texts if tag in path]

    def classes(self):
        return [attributes.get("class", "") for _, attributes in self.tags]


def kernels(layers=2, **impls):
    modules = {"attention": "self_attn", "rms_norm": "input_layernorm", "swiglu_mlp": "mlp"}
    rows = [
        KernelRow(f"model.layers.{layer}.{modules[op]}", op, "standard", impl, "named")
        for op, impl in impls.items()
        for layer in range(layers)
    ]
    return KernelReport("Qwen3ForCausalLM", tuple(rows))


def records(stage, steps=5, **last):
    train = [
        Record(stage, "train", step, {"loss": 6 / step, "lr": 1e-3, "grad_norm": 2.0, "tokens_per_second": 1000 * step})
        for step in range(1, steps + 1)
    ]
    return [*train, Record(stage, "eval", steps, {"cross_entropy": 2.0, **last})]


def student(**changes):
    values = {"name": "student", "num_parameters": 123_456, "records": records("student", kl=0.125, agreement=0.8125)}
    return StageReport(**{**values, **changes})


def run(*stages, title="tiny", **changes):
    return RunReport(
        title, **{"config_yaml": "train: {steps: 5}", "environment": {"device": "cpu"}, **changes}, stages=stages
    )


def page(tmp_path, report):
    path = tmp_path / "new" / "report.html"
    write_report(path, report)
    return Page(path.read_text(encoding="utf-8"))


def test_the_page_shows_title_environment_results_and_config(tmp_path):
    shown = page(tmp_path, run(student()))
    assert "tiny" in shown.texts_in("h1")
    assert shown.texts_in("dl") == ["device", "cpu"]
    cells = shown.texts_in("td")
    assert cells == ["student", "123 K", "2.0000", "0.1250", "81.2%", "3,000"]
    assert shown.texts_in("pre") == ["train: {steps: 5}"]


def test_every_curve_is_drawn_with_its_last_value_beside_the_stage(tmp_path):
    teacher = StageReport("teacher", 1_720_000_000, records=records("teacher"))
    shown = page(tmp_path, run(teacher, student()))
    assert [tag for tag, _ in shown.tags].count("svg") == len(shown.texts_in("h3")) == 6
    legends = re.findall(r'<h3>(.*?)</h3>\s*<div class="legend">(.*?)</div>', shown.html, re.DOTALL)
    values = {title: re.findall(r"</span>(\w+) <b>([\d.]+)", legend) for title, legend in legends}
    assert values["Validation cross-entropy"] == [("teacher", "2.000"), ("student", "2.000")]
    assert values["KL(teacher ‖ student)"] == [("student", "0.1250")]


def test_a_teacher_that_is_not_trained_is_a_level_in_the_chart(tmp_path):
    stage = student(records=records("student", teacher_cross_entropy=1.75))
    html = page(tmp_path, run(stage)).html
    assert "the teacher <b>1.750</b>" in html


def test_the_page_needs_no_network_and_runs_nothing(tmp_path):
    shown = page(tmp_path, run(student(kernels=kernels(rms_norm="torch"))))
    addresses = [value for _, attributes in shown.tags for name, value in attributes.items() if name in ("src", "href")]
    links = [value for _, attributes in shown.tags for name, value in attributes.items() if name.endswith(":href")]
    assert not addresses and all(link.startswith("#") for link in links)
    assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in shown.tags}
    assert "@import" not in shown.html and not re.search(r"url\((?!#)", shown.html)


def test_the_ids_that_a_drawing_refers_to_are_there(tmp_path):
    shown = page(tmp_path, run(student()))
    ids = {attributes["id"] for _, attributes in shown.tags if "id" in attributes}
    assert set(re.findall(r"url\(#([^)]+)\)", shown.html)) <= ids


def test_drawings_have_no_color_but_those_of_the_page(tmp_path):
    shown = page(tmp_path, run(*(student(name=str(number)) for number in range(8))))
    drawn = "".join(re.findall(r"<svg.*?</svg>", shown.html, re.DOTALL))
    assert set(re.findall(r"(?:fill|stroke): ([^;\"]+)", drawn)) - {"none"} == {
        *(f"var(--stage-{number})" for number in range(6)),
        "var(--line)",
        "var(--faint)",
    }


def test_whatever_a_run_is_called_is_text(tmp_path):
    report = kernels(rms_norm=CODE)
    stage = StageReport(CODE, 1, report, records(CODE, kl=0.1), {})
    shown = page(tmp_path, run(stage, title=CODE, config_yaml=CODE, environment={CODE: CODE}))
    assert "script" not in {tag for tag, _ in shown.tags}
    for tag in ("title", "h1", "dt", "dd", "td", "th", "pre", "figure"):
        assert any(CODE in text for text in shown.texts_in(tag)), tag


def test_a_lone_surrogate_does_not_spoil_the_page(tmp_path):
    assert page(tmp_path, run(student(), title="caf\udce9")).texts_in("h1") == ["caf\\udce9"]


@pytest.mark.parametrize(
    "stage",
    [
        student(records=()),
        student(records=records("student")[:1]),
        student(records=[Record("student", "train", 1, {"loss": math.nan})]),
        student(records=[Record("student", "eval", 0, {"kl": 0.0})]),
        student(records=[Record("student", "train", 1, {})]),
    ],
    ids=["no records", "one record", "a loss that is not a number", "an evaluation alone", "no figures"],
)
def test_a_run_that_measured_next_to_nothing_has_a_page(tmp_path, stage):
    shown = page(tmp_path, run(stage, environment={}, config_yaml=""))
    assert "123 K" in shown.texts_in("td")


def test_a_loss_that_is_not_finite_leaves_the_rest_of_its_curve(tmp_path):
    values = [5.0, 4.0, math.inf, math.nan]
    losses = [Record("student", "train", step, {"loss": value}) for step, value in enumerate(values, 1)]
    assert "student <b>4.000</b>" in page(tmp_path, run(student(records=losses))).html


def test_a_long_run_does_not_make_a_long_page(tmp_path):
    def size(steps):
        return len(page(tmp_path, run(student(records=records("student", steps)))).html)

    assert size(20_000) < 1.2 * size(1000)


def test_the_running_mean_of_a_straight_line_is_the_line():
    line = np.arange(100.0)
    assert np.allclose(_running_mean(line, 10), line)


def test_the_running_mean_forgets_a_spike_once_it_is_past():
    values = np.where(np.arange(100) == 30, 1e20, 0.1)
    assert np.allclose(_running_mean(values, 10)[41:], 0.1)


def test_a_page_is_replaced_and_nothing_else_is_left(tmp_path):
    path = tmp_path / "report.html"
    write_report(path, run(student()))
    first = path.read_text()
    write_report(path, run(student(), title="again"))
    assert path.read_text() == first.replace("tiny", "again")
    assert list(tmp_path.iterdir()) == [path]


def test_the_headline_shows_what_any_stage_has_measured():
    teacher = StageReport("teacher", 1_720_050_000, summary={"cross_entropy": 1.9})
    heading, rows = headline(run(teacher, student()))
    assert heading == ["stage", "parameters", "validation CE", "KL to teacher", "agreement", "tokens/s"]
    assert rows == [
        ["teacher", "1.72 B", "1.9000", ABSENT, ABSENT, ABSENT],
        ["student", "123 K", "2.0000", "0.1250", "81.2%", "3,000"],
    ]


def test_mfu_with_the_teacher_and_memory_are_columns_where_they_are_known():
    figures = [{"mfu": mfu, "mfu_with_teacher": mfu + 0.2, "peak_memory_gib": 20 * mfu} for mfu in (0.1, 0.4, 0.3)]
    steps = [Record("student", "train", step, each) for step, each in enumerate(figures, 1)]
    heading, (row,) = headline(run(student(records=steps)))
    assert heading[2:] == ["MFU", "MFU with teacher", "peak memory"]
    assert row[2:] == ["30.0%", "50.0%", "8.00 GiB"]


def test_a_summary_goes_before_what_the_records_say():
    assert student(summary={"kl": 0.5}).figures["kl"] == 0.5


def test_a_step_of_training_is_not_taken_for_a_validation():
    steps = [Record("student", "train", 1, {"cross_entropy": 3.0, "agreement": 0.5})]
    assert student(records=steps).figures == {}


def test_kernels_are_compared_place_by_place_whatever_the_number_of_layers():
    teacher = kernels(layers=4, attention="sdpa", rms_norm="eager")
    places = compare_kernels({"teacher": teacher, "student": kernels(attention="sdpa", rms_norm="liger")})
    assert [(place.module, place.op, place.differs) for place in places] == [
        ("model.layers.*.self_attn", "attention", False),
        ("model.layers.*.input_layernorm", "rms_norm", True),
    ]
    assert [[row.module for row in cell] for cell in places[0].cells] == [
        ["model.layers.{0-3}.self_attn"],
        ["model.layers.{0-1}.self_attn"],
    ]


def test_an_op_that_one_model_lacks_is_shown_and_is_no_difference():
    (mlp, norm) = compare_kernels({"a": kernels(swiglu_mlp="eager"), "b": kernels(rms_norm="eager")})
    assert [len(cell) for cell in mlp.cells] == [1, 0] and [len(cell) for cell in norm.cells] == [0, 1]
    assert not mlp.differs and not norm.differs


def test_layers_of_one_model_may_hold_several_kernels():
    other = KernelRow("model.layers.7.self_attn", "attention", "causal", "eager", "named")
    rows = (*kernels(attention="sdpa").rows, other)
    (place,) = compare_kernels({"a": KernelReport("Model", rows), "b": kernels(attention="sdpa")})
    assert [row.impl for row in place.cells[0]] == ["sdpa", "eager"] and place.differs


def test_the_page_marks_where_the_models_differ(tmp_path):
    teacher = StageReport("teacher", 1, kernels(rms_norm="eager", swiglu_mlp="eager"))
    shown = page(tmp_path, run(teacher, student(kernels=kernels(rms_norm="liger", swiglu_mlp="eager"))))
    assert shown.classes().count("differs") == 1
    assert re.search(r'<tr class="differs">\s*<td><code>rms_norm', shown.html)


def test_models_that_do_not_differ_are_said_to_be_alike(tmp_path):
    same = [student(name=name, kernels=kernels(rms_norm="eager")) for name in ("student", "control")]
    shown = page(tmp_path, run(*same))
    assert "differs" not in shown.classes() and "The models do not differ." in shown.html


@pytest.mark.parametrize("package", ["jinja2", "matplotlib.figure"])
def test_a_missing_package_is_named_with_its_remedy_before_the_run(package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=rf"{package} .*pip install 'kernelkit\[distill\]'"):
        need_report_packages()
