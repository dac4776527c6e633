"""Every block of Python and every command in the documentation does what it says there."""

from __future__ import annotations

import doctest
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from kernelkit import default_registry, registry
from kernelkit.cli.app import app
from kernelkit.containers import PRESETS, OpsConfig, legacy
from kernelkit.containers.presets import MEASURED_PRESETS

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SAME = doctest.OutputChecker()


@dataclass(frozen=True)
class Block:
    language: str
    text: str
    line: int

    @property
    def filename(self) -> str | None:
        """A block whose first line is a comment with a file name is the content of that file."""
        found = re.match(r"# (\w[\w-]*\.(py|yaml))\n", self.text)
        return found[1] if found else None


def blocks(document: Path, *languages: str) -> list[Block]:
    text = document.read_text()
    found = (Block(each[1], each[2], text.count("\n", 0, each.start()) + 1) for each in FENCE.finditer(text))
    return [block for block in found if block.language in languages]


def documents_with(*languages: str) -> pytest.MarkDecorator:
    named = [document for document in DOCUMENTS if blocks(document, *languages)]
    return pytest.mark.parametrize("document", named, ids=lambda document: document.name)


@pytest.fixture
def folder(tmp_path, monkeypatch, request):
    """A folder as a reader would have it: the repository's configs, and the files that the document shows."""
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    for block in blocks(request.getfixturevalue("document"), "python", "yaml"):
        if block.filename:
            (tmp_path / block.filename).write_text(block.text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    # What a document registers must not be seen by another test.
    monkeypatch.setattr(registry, "_default", [default_registry().copy()])


@documents_with("python")
@pytest.mark.usefixtures("folder")
def test_the_python_of_a_document_runs(document):
    namespace = {"__name__": "documented"}
    for block in blocks(document, "python"):
        if not block.filename:
            # Blank lines in front, so that a traceback names the line of the document.
            exec(compile("\n" * block.line + block.text, document, "exec"), namespace)


def commands(document: Path) -> Iterator[tuple[str, str]]:
    """Each command of the console blocks, with the output that is shown for it."""
    for block in blocks(document, "console"):
        for entry in re.split(r"^\$ ", block.text, flags=re.MULTILINE)[1:]:
            command, _, shown = entry.partition("\n")
            yield command, shown


@documents_with("console")
@pytest.mark.usefixtures("folder")
def test_the_commands_of_a_document_print_what_is_shown(document):
    for command, shown in commands(document):
        name, *arguments = shlex.split(command)
        assert name == "kernelkit"
        result = CliRunner().invoke(app, arguments)
        assert result.exception is None or isinstance(result.exception, SystemExit), command
        if shown:
            assert SAME.check_output(shown, result.output, doctest.ELLIPSIS), f"$ {command}\n{result.output}"
        else:
            assert result.exit_code == 0, f"$ {command}\n{result.output}"


@documents_with("bash")
def test_the_shell_commands_of_a_document_are_targets_of_the_makefile(document):
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    lines = [line for block in blocks(document, "bash") for line in block.text.splitlines()]
    assert [line for line in lines if line.split()[0] != "make" or line.split()[1] not in targets] == []


@documents_with("yaml")
def test_the_yaml_of_a_document_is_yaml(document):
    for block in blocks(document, "yaml"):
        assert isinstance(yaml.safe_load(block.text), dict)


def rows_under(document: str, *heading: str) -> list[list[str]]:
    """The rows of the Markdown table with that heading, without quotes."""
    lines = iter((ROOT / document).read_text().splitlines())
    wanted = [cell.replace("`", "") for cell in heading]
    for line in lines:
        if cells_of(line)[: len(wanted)] == wanted:
            next(lines)
            break
    rows = []
    for line in lines:
        if not line.startswith("|"):
            break
        rows.append(cells_of(line))
    return rows


def cells_of(line: str) -> list[str]:
    return [cell.strip().replace("`", "") for cell in line.strip("|").split("|")]


def test_the_migration_table_is_the_mapping():
    fields = dict(rows_under("docs/configs.md", "VeOmni's field"))
    assert fields.pop("<op>_implementation") == "<op>"
    assert fields == {f"{old}{legacy.SUFFIX}": new for old, new in legacy.FIELDS.items()}
    assert dict(rows_under("docs/configs.md", "VeOmni's value")) == dict(legacy.VALUES)


def test_the_table_of_presets_is_what_they_are():
    rows = rows_under("docs/configs.md", "preset", "attention")
    ops = cells_of(
        next(line for line in (ROOT / "docs/configs.md").read_text().splitlines() if "| preset | att" in line)
    )
    shown = {row[0]: {op: impl for op, impl in zip(ops[1:], row[1:], strict=True) if impl} for row in rows}
    assert shown == {name: dict(members) for name, members in PRESETS.items()}


def test_the_presets_that_go_by_measurements_are_documented_with_their_pass():
    said = {"fwd": "forward", "fwd+bwd": "forward and backward"}
    rows = dict(rows_under("docs/configs.md", "preset", "by the time of"))
    assert rows == {name: said[passes] for name, passes in MEASURED_PRESETS.items()}


def test_the_readme_names_no_kernel_that_does_not_exist():
    known = default_registry()
    rows = rows_under("README.md", "op", "variants", "implementations")
    assert {row[0] for row in rows} <= set(known.ops)
    for op, variants, impls in rows:
        assert set(variants.split(", ")) <= set(known.op(op).variants)
        assert set(impls.split(", ")) <= set(known.impls(op))


CONFIGS = sorted((ROOT / "configs/ops").glob("*.yaml"))


def test_every_key_of_a_config_is_in_the_table_of_keys():
    keys = {row[0] for row in rows_under("docs/configs.md", "key", "value")}
    assert keys == {"name of an op", *OpsConfig.model_fields}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_a_config_is_valid_on_the_hardware_that_it_names(path):
    named = re.search(r"^# hardware: (.+)$", path.read_text(), re.MULTILINE)
    for hardware in named[1].split(", "):
        result = CliRunner().invoke(app, ["validate", str(path), "--hardware", hardware])
        assert result.exit_code == 0, result.output


@documents_with("python", "console", "bash", "yaml", "")
def test_links_between_documents_lead_somewhere(document):
    links = re.findall(r"\]\(([^)#]+)\)", document.read_text())
    assert [link for link in links if "://" not in link and not (document.parent / link).exists()] == []
