from __future__ import annotations

import resource
import subprocess
import sys

import pytest

import kernelkit


def kernelkit_command(*arguments):
    command = [sys.executable, "-m", "kernelkit", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_help_answers_in_under_half_a_second():
    def seconds():
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert "validate" in kernelkit_command("--help").stdout
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        # Time at work, not on the clock: other processes may hold the cores.
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    assert min(seconds() for _ in range(3)) < 0.5


@pytest.mark.parametrize("arguments", ['["--help"]', '["validate", "--help"]', '["list", "--no-such-option"]'])
def test_what_needs_no_kernel_imports_nothing_heavy(arguments):
    code = (
        "import sys\nfrom kernelkit.cli.app import app\n"
        f"try:\n    app({arguments})\nexcept SystemExit:\n    pass\n"
        "print([name for name in ('torch', 'transformers', 'triton', 'liger_kernel') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_the_version_is_that_of_the_package():
    assert kernelkit_command("--version").stdout == f"{kernelkit.__version__}\n"


def test_a_bad_file_ends_the_process_with_status_1_and_a_line(tmp_path):
    (tmp_path / "ops.yaml").write_text("rms_norm: 3\n")
    done = kernelkit_command("validate", str(tmp_path / "ops.yaml"), "--hardware", "h100")
    assert done.returncode == 1
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"{tmp_path / 'ops.yaml'}:1:1: rms_norm is 3; ")
