"""Several processes learn what one learns, on recorded episodes.

They are started by torchrun, as `accelerate launch --multi_gpu` starts them. `accelerate launch --cpu` starts
one process, whatever its --num_processes, unless it goes through MPI.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import yaml
from policies import small_policy
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_trainer import stage

from srpo.analysis.io import REWARDS, RL_METRICS, TASK_METRICS, read_rows
from srpo.policies.openvla_oft import save_policy

HERE = Path(__file__).parent
# Groups of 3, so that two processes have different shares of each; a further round; both penalties.
SETTINGS = {
    "prompts": 6, "group_size": 3, "minibatch": 2, "microbatch": 2, "keep_success": (0.1, 0.9), "resample": 1,
    "learning_rate": 0.2, "kl": 0.1, "entropy": 0.01, "grad_clip": 1.0, "evaluate_every": 2,
    "trackers": ("tensorboard",),
}  # fmt: skip


def training(folder: Path, *launcher: str) -> str:
    folder.mkdir()
    save_policy(small_policy(), folder / "initial")
    config = stage(SETTINGS)
    (folder / "config.yaml").write_text(yaml.safe_dump(yaml.safe_load(config.model_dump_json())))
    command = [*launcher, str(HERE / "recorded_training.py"), str(folder)]
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": f"{HERE.parents[1]}:{HERE}",
    }
    done = subprocess.run(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def test_two_processes_learn_what_one_learns(tmp_path: Path) -> None:
    log = training(tmp_path / "one", sys.executable)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    assert training(tmp_path / "two", *launch).count("step 1: success") == 1
    manifests = [json.loads((tmp_path / name / "out/manifest.json").read_text()) for name in ("one", "two")]
    assert [manifest["processes"] for manifest in manifests] == [1, 2]
    one, two = (load_file(tmp_path / name / "out/policy/model.safetensors") for name in ("one", "two"))
    start = load_file(tmp_path / "one/initial/model.safetensors")
    assert max(float((one[name] - start[name]).abs().max()) for name in one) > 1e-2
    assert max(float((one[name] - two[name]).abs().max()) for name in one) <= 1e-6

    def rows(name: str, file: str, schema: object) -> pd.DataFrame:
        found = read_rows(tmp_path / name / "out" / file, schema)  # type: ignore[arg-type]
        return found[
            [column for column in found if "second" not in str(column) and "memory" not in str(column)]
        ]

    metrics = rows("one", "metrics.csv", RL_METRICS)
    pd.testing.assert_frame_equal(metrics, rows("two", "metrics.csv", RL_METRICS), rtol=1e-4, atol=1e-6)
    for file, schema in (("tasks.csv", TASK_METRICS), ("rewards.parquet", REWARDS)):
        pd.testing.assert_frame_equal(rows("one", file, schema), rows("two", file, schema), rtol=1e-6)
    # What was compared is a run with all of it: errors, further rounds, evaluation, shaped rewards.
    assert metrics["infra_errors"].sum() > 0 and (metrics["rounds"] == 2).any()
    assert metrics["evaluation_episodes"].tolist() == [0, 4, 0] and metrics["distance_mean"].notna().all()
    assert "step 3" in log and not (tmp_path / "two/scratch").exists()
    (events,) = (tmp_path / "two/out/tensorboard").rglob("events.out.tfevents.*")
    tracked = EventAccumulator(str(events)).Reload().Scalars("train/success_rate")
    assert [event.step for event in tracked] == [1, 2, 3]
    assert [event.value for event in tracked] == pytest.approx(metrics["success_rate"].tolist())


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_a_missing_tracker_is_said_so(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from srpo import tracking

    monkeypatch.setattr(tracking.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(SystemExit, match=f"train.trackers: the package {name} is not installed"):
        tracking.make_accelerator([name], tmp_path)
