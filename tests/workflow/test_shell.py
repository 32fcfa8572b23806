"""How a rule's job is run: its command on several GPUs, its log, its end."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from srpo.cluster.processes import job_command
from srpo.config import Layout
from support.workflow import ROOT

PARSE = """
import json, sys
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
words = sys.argv[1:]
arguments = launch_command_parser().parse_args(words[words.index("launch") + 1 :])
arguments = _validate_launch_command(arguments)[0]
print(json.dumps({name: getattr(arguments, name) for name in sys.stdin.read().split()}))
"""


WRONG = "from pathlib import Path\nfrom srpo.errors import FinalExit, InputError, run_command\n"


def shell(script: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a script as Snakemake runs a rule's, with the prelude read."""
    script = f"set -euo pipefail; . {ROOT / 'workflow/shell.sh'}; {script}"
    environment = {**os.environ, **variables}
    return subprocess.run(["bash", "-c", script], env=environment, capture_output=True, text=True)


def test_accelerate_is_given_our_configuration_and_not_the_users(tmp_path: Path) -> None:
    (tmp_path / "accelerate").mkdir()
    (tmp_path / "accelerate/default_config.yaml").write_text(
        "compute_environment: LOCAL_MACHINE\ndistributed_type: MULTI_GPU\ngpu_ids: '0'\n"
        "mixed_precision: fp16\nnum_machines: 2\nnum_processes: 2\n"
    )
    command = job_command(Layout(gpus=4), 16)
    wanted = {
        "gpu_ids": "all",
        "mixed_precision": "no",
        "num_machines": 1,
        "num_processes": 4,
        "multi_gpu": True,
    }
    done = subprocess.run(
        [sys.executable, "-c", PARSE, *command, "train"],
        env={**os.environ, "HF_HOME": str(tmp_path)},
        input=" ".join(wanted),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == wanted


@pytest.mark.parametrize(
    ("end", "code", "final"),
    [
        ("raise InputError('x: is not there')", 65, True),
        ("raise FinalExit('x: is not there')", 65, True),
        ("raise SystemExit('x: is not there')", 1, False),
        ("Path('/dev/full').write_text('x: is not there')", 1, False),
        ("raise SystemExit(75)", 75, False),
        ("pass", 0, False),
    ],
)
def test_what_another_try_would_not_change_is_marked(
    tmp_path: Path, end: str, code: int, final: bool
) -> None:
    """And the mark of an earlier try does not outlive it."""
    log, marker = tmp_path / "log", tmp_path / "log.final"
    marker.touch()
    (tmp_path / "stage.py").write_text(f"{WRONG}def main(): {end}\nrun_command(main)\n")
    done = shell(f"logged {log} {sys.executable} {tmp_path / 'stage.py'}", PYTHONPATH=str(ROOT))
    assert done.returncode == code, done.stderr
    assert marker.exists() == final
    assert "Traceback" not in log.read_text()
    assert ("x: is not there" in log.read_text()) == ("raise" in end and "x:" in end)


def test_out_of_memory_is_the_logs_last_line(tmp_path: Path) -> None:
    """Of a job in whose time the kernel killed a process of its control group, and of no later one."""
    log, kills = tmp_path / "log", tmp_path / "kills"
    for before, after, told in ((0, 1, True), (1, 1, False)):
        kills.write_text(f"{before}\n")
        script = (
            f'python() {{ echo "$* says: out of memory"; }}; killed_for_memory() {{ cat {kills}; }}; '
            f'logged {log} bash -c "echo begun; echo {after} >{kills}; kill -9 \\$\\$"'
        )
        done = shell(script)
        assert done.returncode == 137, done.stderr
        last = "-m srpo.runtime.out_of_memory says: out of memory\n" if told else ""
        assert log.read_text() == f"begun\n{last}"


@pytest.mark.parametrize(
    ("groups", "counts", "found"),
    [
        ("0::/job\n", "job/memory.events", "3"),
        ("9:cpu:/\n4:memory:/job\n0::/\n", "memory/job/memory.oom_control", "3"),
        ("4:memory:/elsewhere\n", "memory/job/memory.oom_control", ""),
        (None, "job/memory.events", ""),
    ],
)
def test_kills_for_memory_are_counted(tmp_path: Path, groups: str | None, counts: str, found: str) -> None:
    """In version 2 of control groups, in version 1, and where there is nothing to read."""
    own, root = tmp_path / "cgroup", tmp_path / "mounted"
    if groups is not None:
        own.write_text(groups)
    (root / counts).parent.mkdir(parents=True)
    (root / counts).write_text("oom 5\noom_kill 3\n")
    done = shell(f"killed_for_memory {own} {root}")
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, found, "")
