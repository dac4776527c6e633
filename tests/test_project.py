"""What must be true of the tree as a whole."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import kernelkit

ROOT = Path(__file__).parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
SUPPRESSION = re.compile(r"#\s*(type:\s*ignore|noqa)\b(?P<rule>[^#]*)(?P<reason>#.*)?")


def tracked(*endings: str) -> list[Path]:
    """The project's own files, as git knows them, new ones included."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip("not a git checkout")
    files = [ROOT / name for name in done.stdout.splitlines()]
    return [file for file in files if file.is_file() and (not endings or file.suffix in endings)]


@pytest.mark.parametrize("name", ["containers", "models"])
def test_the_links_lead_to_the_folders_at_the_top(name):
    link = ROOT / "kernelkit" / name
    assert link.is_symlink() and link.resolve() == ROOT / name, (
        f"kernelkit/{name} must be a link to the folder {name}/: clone with `git -c core.symlinks=true clone`"
    )


def test_containers_and_models_are_never_imported_by_their_bare_names():
    bare = [
        f"{file.relative_to(ROOT)}:{node.lineno}"
        for file in tracked(".py")
        for node in ast.walk(ast.parse(file.read_text()))
        for name in imported_names(node)
        if name.split(".")[0] in ("containers", "models")
    ]
    assert not bare


def imported_names(node):
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    return [node.module or ""] if isinstance(node, ast.ImportFrom) and node.level == 0 else []


def test_the_changelog_begins_with_the_version_of_the_package():
    newest = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert newest is not None and newest[1] == kernelkit.__version__


def test_the_version_is_declared_in_one_place():
    assert PYPROJECT["project"]["dynamic"] == ["version"]
    assert PYPROJECT["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "kernelkit.__version__"}


def test_no_file_is_too_long_to_read():
    lengths = {
        file: len(file.read_text().splitlines()) for file in tracked(".py") if not file.stem.endswith("_kernels")
    }
    assert {str(file.relative_to(ROOT)): length for file, length in lengths.items() if length > 300} == {}


def test_nothing_names_the_machine_that_it_was_written_on():
    # Put together here, so that this file does not hold what it looks for.
    folders = "|".join(("work", "root", "home", "Users", "mnt"))
    pattern = re.compile(rf"(?<![\w./<{{-])/(?:{folders})/\w")
    texts = [file for file in tracked() if file.suffix in {".py", ".md", ".toml", ".yaml", ".yml", ".txt", ".cfg", ""}]
    found = [
        f"{file.relative_to(ROOT)}:{number}"
        for file in texts
        for number, line in enumerate(file.read_text().splitlines(), 1)
        if pattern.search(line)
    ]
    assert not found


def test_every_suppressed_finding_has_its_reason_beside_it():
    silent = []
    for file in tracked(".py"):
        lines = file.read_text().splitlines()
        for number, line in enumerate(lines):
            found = SUPPRESSION.search(line)
            if found and not found["reason"] and not explained_above(lines, number):
                silent.append(f"{file.relative_to(ROOT)}:{number + 1}")
    assert not silent


def explained_above(lines, number):
    """Whether a comment stands over the line, or over the run of suppressed lines that it belongs to."""
    while number > 0 and SUPPRESSION.search(lines[number]):
        number -= 1
    return lines[number].lstrip().startswith("#")


def test_no_finding_is_suppressed_for_a_whole_file():
    pattern = re.compile(r"^#\s*(ruff:\s*noqa|flake8:\s*noqa|mypy:|type:\s*ignore)", re.MULTILINE)
    assert [str(file.relative_to(ROOT)) for file in tracked(".py") if pattern.search(file.read_text())] == []


def test_every_dependency_is_pinned_for_ci():
    project = PYPROJECT["project"]
    wanted = [
        *project["dependencies"],
        *(need for extra in project["optional-dependencies"].values() for need in extra),
    ]
    pins = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and not line.startswith("#")]
    versions = {canonicalize_name(name): version for name, _, version in (pin.partition("==") for pin in pins)}
    for requirement in map(Requirement, wanted):
        assert requirement.specifier.contains(versions[canonicalize_name(requirement.name)]), requirement


def test_the_public_names_are_what_they_say():
    # `models` is a module of its own name; every other name comes from one.
    assert sorted(kernelkit.__all__) == sorted([*kernelkit._HOMES, "models"])
    assert all(getattr(kernelkit, name) is not None for name in kernelkit.__all__)
    assert set(kernelkit.__all__) <= set(dir(kernelkit))
    with pytest.raises(AttributeError, match="no attribute 'Kernelcontainer'"):
        _ = kernelkit.Kernelcontainer


HEAVY = ("torch", "transformers", "triton", "liger_kernel", "dependency_injector", "pydantic")


def test_importing_kernelkit_imports_nothing_heavy():
    code = f"import kernelkit, sys; print([name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_make_target_of_the_documentation_exists():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {target for file in tracked(".md") for target in re.findall(r"`make ([a-z-]+)", file.read_text())}
    assert named <= targets


@pytest.mark.slow
def test_a_wheel_made_from_the_sdist_holds_the_linked_folders(tmp_path):
    sdist = build_sdist(tmp_path)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", tmp_path, sdist], check=True)
    wheel = next(tmp_path.glob("*.whl"))
    names = set(zipfile.ZipFile(wheel).namelist())
    linked = {
        name for file in tracked(".py") if (name := f"{file.relative_to(ROOT)}").startswith(("containers/", "models/"))
    }
    assert linked and {f"kernelkit/{name}" for name in linked} <= names
    data = {"py.typed", "distill/report.html.j2", "kernels/measurements.json"}
    assert {f"kernelkit/{name}" for name in data} <= names
    assert {name.split("/")[0] for name in names} == {"kernelkit", f"kernelkit-{kernelkit.__version__}.dist-info"}

    site = tmp_path / "site"
    subprocess.run([*pip, "install", "--no-deps", "--target", site, wheel], check=True)
    code = "import kernelkit; print(kernelkit.OpsConfig.__module__, kernelkit.__file__)"
    seen = subprocess.run(
        [sys.executable, "-c", code],
        cwd=site,
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": str(site)},
    )
    assert seen.stdout.split() == ["kernelkit.containers.ops_config", str(site / "kernelkit/__init__.py")]


def build_sdist(folder):
    """The sdist of a copy of the checkout, so that no build folder stays behind in it."""
    names = [str(file.relative_to(ROOT)) for file in tracked()]
    packed = subprocess.run(
        ["tar", "-c", *names, "kernelkit/containers", "kernelkit/models"], cwd=ROOT, capture_output=True, check=True
    )
    copy = folder / "copy"
    copy.mkdir()
    subprocess.run(["tar", "-x"], cwd=copy, input=packed.stdout, check=True)
    code = f"from setuptools import build_meta; build_meta.build_sdist({str(folder)!r})"
    subprocess.run([sys.executable, "-c", code], cwd=copy, capture_output=True, check=True)
    return next(folder.glob("*.tar.gz"))
