"""Every command has help with an example, starts without heavy imports, and prints a mistake as one line."""

import os
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from acuity.study.cli.main import acuity
from acuity.study.fleet.placement import Placement
from acuity.study.fleet.supervisor import _prepare_worker

COMMANDS = sorted(
    f"{name} {inner}".strip()
    for name, known in acuity.commands.items()
    for inner in (known.commands if isinstance(known, click.Group) else [""])
)


def run(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "acuity", *arguments],
        env=os.environ | variables,
        capture_output=True,
        text=True,
        check=False,
    )


def test_every_command_is_registered() -> None:
    assert COMMANDS == [
        "best", "confirm", "dashboard", "delete", "demo", "export", "fit", "launch", "list", "new", "prepare", "report",
        "score", "status", "stop", "storage grant-reader", "storage move", "storage url", "trials", "worker",
    ]  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example_and_the_common_options(command: str) -> None:
    shown = CliRunner().invoke(acuity, [*command.split(), "--help"])
    assert shown.exit_code == 0
    assert f"acuity {command}" in shown.output.split("Example:")[1]
    assert "--storage" in shown.output
    assert "--verbose" in shown.output


def test_help_imports_neither_torch_nor_optuna() -> None:
    script = (
        "import sys\nfrom acuity.study.cli.main import acuity\n"
        "try:\n    acuity.main(['--help'])\nexcept SystemExit:\n    pass\n"
        "assert not {'torch', 'optuna', 'sqlalchemy', 'pandas', 'sklearn', 'timm'} & set(sys.modules), 'heavy'"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False, capture_output=True).returncode == 0


def test_best_imports_neither_torch_nor_scikit_learn() -> None:
    script = (
        "import sys\nimport acuity.study.results.answer, acuity.study.display.answer_table, acuity.study.cli.read\n"
        "assert not {'torch', 'sklearn', 'scipy', 'timm'} & set(sys.modules), 'heavy'"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False, capture_output=True).returncode == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["launch", "none.toml"], "none.toml: No such file"),
        (["best", "nih", "--storage", "sqlite:///x.db"], "SQLite cannot"),
        (["best", "nih", "--storage", "postgresql://me:secret@127.0.0.1:1/acuity"], "nothing listens there"),
    ],
)
def test_a_mistake_is_one_line_and_status_1(arguments: list[str], message: str, tmp_path: Path) -> None:
    done = run(*arguments, HOME=str(tmp_path))
    assert done.returncode == 1
    assert message in done.stderr
    assert done.stderr.startswith("acuity: ")
    assert done.stderr.count("\n") == 1
    assert "secret" not in done.stderr


@pytest.mark.parametrize("device", ["CPU", "gpu", "cpu:0", "cuda:x"])
def test_an_unknown_device_is_refused_before_the_file_is_read(device: str) -> None:
    refused = CliRunner().invoke(acuity, ["launch", "none.toml", "--device", device])
    assert refused.exit_code == 2
    assert f'"{device}" is no device' in refused.output


def test_a_user_module_named_study_is_not_imported(tmp_path: Path) -> None:
    (tmp_path / "study.py").write_text("raise SystemExit('not ours')")
    placement = Placement("cpu", sharing=1, threads=1)
    worker = _prepare_worker(
        "none", placement, {"ACUITY_STORAGE": "postgresql://me@127.0.0.1:1/acuity"}, number=0, outage_limit_s=60
    )
    done = subprocess.run(
        worker.command, cwd=tmp_path, env=worker.environment, capture_output=True, text=True, check=False
    )
    assert "nothing listens there" in done.stderr


def test_wrong_usage_is_status_2() -> None:
    assert run("launch").returncode == 2
    assert run("best", "nih", "--format", "xml").returncode == 2


@pytest.mark.parametrize(("ending", "status"), [("sys.exit(0)", 0), ("sys.exit(3)", 3), ("raise UsageError('no')", 1)])
def test_a_process_with_torch_ends_without_taking_its_modules_apart(ending: str, status: int) -> None:
    """Taking them apart took 10 s on a busy host. What is printed and what is registered with atexit is kept."""
    script = (
        "import atexit, sys, torch\n"
        "from acuity.study.cli import main\n"
        "from acuity.study.errors import UsageError\n"
        "class Module:\n    def __del__(self): print('taken apart')\n"
        "sys.modules['kept'] = Module()\n"
        "atexit.register(print, 'at exit')\n"
        f"def command(**_):\n    print('result')\n    {ending}\n"
        "main.acuity.main = command\n"
        "main.main()\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.split("\n")) == (status, ["result", "at exit", ""]), done.stderr
