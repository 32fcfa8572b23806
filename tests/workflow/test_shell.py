"""What the rules' shell prelude makes of a job: its command on several GPUs, its log, its end."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from support.workflow import ROOT

PARSE = """
import json, sys
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
words = sys.argv[1:]
arguments = launch_command_parser().parse_args(words[words.index("launch") + 1 :])
arguments = _validate_launch_command(arguments)[0]
print(json.dumps({name: getattr(arguments, name) for name in sys.stdin.read().split()}))
"""


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
    command = shell("launch 16 4").stdout.split()
    assert command[:2] == ["env", "OMP_NUM_THREADS=4"] and command[-2:] == ["--module", "srpo"]
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
