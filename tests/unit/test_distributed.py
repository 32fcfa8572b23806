"""Several processes learn the same as one, each with all weights or, under FSDP, a shard of them.

They are started by torchrun, as `accelerate launch` starts them on GPUs. `accelerate launch --cpu` starts one
process, whatever its --num_processes, unless it goes through MPI.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
import yaml
from accelerate import DistributedType
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from srpo import ROOT
from srpo.config import Branching, Lora, Policy, TrainStage
from srpo.policies.checkpoints import save_policy
from srpo.results.rows import read_rows
from srpo.results.schemas import REWARDS, RL_METRICS, TASK_METRICS
from srpo.runtime import distributed
from support import sharding
from support.policies import distance, small_policy, small_settings
from support.stages import training_stage as stage

# Groups of 3, so that two processes have different shares of each; a further round; both penalties.
SETTINGS = {
    "prompts": 6, "group_size": 3, "minibatch": 2, "microbatch": 2, "keep_success": (0.1, 0.9), "resample": 1,
    "learning_rate": 0.2, "kl": 0.1, "entropy": 0.01, "grad_clip": 1.0, "evaluate_every": 2,
    "trackers": ("tensorboard",),
}  # fmt: skip
ROUNDING = 1e-5
"""Of a weight, between sums in another order: by how much depends on the processor (3e-6 were seen). Training
moves weights by 1e-2."""


def prepare(folder: Path, config: TrainStage) -> None:
    """What a run in `folder` starts from."""
    save_policy(small_policy(gradient_checkpointing=True), folder / "initial")
    (folder / "config.yaml").write_text(yaml.safe_dump(yaml.safe_load(config.model_dump_json())))


def training(
    folder: Path, *how: str, processes: int = 2, precision: str = "no", code: int = 0, **settings: object
) -> str:
    """The output of a run in `folder`, resumed if there was one; `how`: options of recorded_training.py."""
    if not folder.exists():
        prepare(folder, stage(SETTINGS | settings))
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    program = [*(launcher if processes > 1 else []), str(ROOT / "tests/support/recorded_training.py")]
    done = subprocess.run(
        [sys.executable, *program, str(folder), *how],
        env=os.environ
        | {"OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
        | (sharding.environment(precision) if "sharded" in how else {}),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
    )
    assert done.returncode == code, done.stdout
    return done.stdout


def rows(folder: Path, file: str, schema: object) -> pd.DataFrame:
    found = read_rows(folder / "out" / file, schema)  # type: ignore[arg-type]
    return found[[column for column in found if "second" not in str(column) and "memory" not in str(column)]]


def test_two_processes_learn_what_one_learns(tmp_path: Path) -> None:
    log = training(tmp_path / "one", processes=1)
    one = load_file(tmp_path / "one/out/policy/model.safetensors")
    start = load_file(tmp_path / "one/initial/model.safetensors")
    assert distance(one, start) > 1e-2
    metrics = rows(tmp_path / "one", "metrics.csv", RL_METRICS)
    # What is compared is a run with all of it: errors, further rounds, evaluation, shaped rewards.
    assert metrics["infra_errors"].sum() > 0 and (metrics["rounds"] == 2).any()
    assert metrics["evaluation_episodes"].tolist() == [0, 4, 0] and metrics["distance_mean"].notna().all()
    assert "step 3" in log
    for how in ((), ("sharded",)):
        folder = tmp_path / "-".join(("two", *how))
        assert training(folder, *how).count("step 1: success") == 1
        assert json.loads((folder / "out/manifest.json").read_text())["processes"] == 2
        two = load_file(folder / "out/policy/model.safetensors")
        assert two.keys() == one.keys()
        assert distance(one, two) <= ROUNDING
        others = rows(folder, "metrics.csv", RL_METRICS)
        pd.testing.assert_frame_equal(metrics, others, rtol=1e-4, atol=1e-6)
        for file, schema in (("tasks.csv", TASK_METRICS), ("rewards.parquet", REWARDS)):
            pd.testing.assert_frame_equal(
                rows(tmp_path / "one", file, schema), rows(folder, file, schema), rtol=1e-6
            )
        assert (folder / "scratch/checkpoint-00000003").exists()
        (events,) = (folder / "out/tensorboard").rglob("events.out.tfevents.*")
        tracked = EventAccumulator(str(events)).Reload().Scalars("train/success_rate")
        assert [event.step for event in tracked] == [1, 2, 3]
        assert [event.value for event in tracked] == pytest.approx(metrics["success_rate"].tolist())


def test_who_runs_an_episode_makes_no_difference(tmp_path: Path) -> None:
    """One of two processes runs everything, the other learns from its half of it: the same bits."""
    for name, how in (("even", ()), ("uneven", ("uneven",))):
        training(tmp_path / name, *how)
    for file, schema in (("metrics.csv", RL_METRICS), ("rewards.parquet", REWARDS)):
        even, uneven = (rows(tmp_path / name, file, schema) for name in ("even", "uneven"))
        pd.testing.assert_frame_equal(even, uneven, check_exact=True)
    policies = [load_file(tmp_path / name / "out/policy/model.safetensors") for name in ("even", "uneven")]
    assert all(torch.equal(policies[0][name], policies[1][name]) for name in policies[0])


def test_all_end_when_one_has_no_room_for_its_episodes(tmp_path: Path) -> None:
    """Started without a launcher, which would end them. With room, they go on."""
    folder = tmp_path / "full"
    prepare(folder, stage(SETTINGS))
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]

    def start(rank: int) -> subprocess.Popen[str]:
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1"}
        return subprocess.Popen(
            [sys.executable, str(ROOT / "tests/support/recorded_training.py"), str(folder), "full"],
            env=os.environ
            | {"OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "MASTER_PORT": str(port)}
            | {name: str(value) for name, value in place.items()},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    processes = [start(rank) for rank in range(2)]
    first, last = (process.communicate(timeout=300)[0] for process in processes)
    assert [process.returncode for process in processes] == [1, 1]
    assert (
        last.splitlines()[-1] == "error: scratch/episodes: No space left on device: make room and start again"
    )
    assert "error: process 1 of 2, counted from 0, ended with an error" in first and "Traceback" not in first
    stored = len(list(folder.glob("scratch/episodes/*/*.npz")))
    assert stored > 0
    training(folder)
    training(tmp_path / "roomy")
    for name in ("metrics.csv", "rewards.parquet"):
        schema = RL_METRICS if name == "metrics.csv" else REWARDS
        pd.testing.assert_frame_equal(rows(tmp_path / "roomy", name, schema), rows(folder, name, schema))


def test_two_processes_branch_as_one_does(tmp_path: Path) -> None:
    settings = {"steps": 1, "evaluate_every": 0, "branching": Branching(points=2, branches=2)}
    for processes, name in ((1, "one"), (2, "two")):
        prepare(tmp_path / name, stage(SETTINGS | settings, {"shaping": "none"}, pixel=False))
        training(tmp_path / name, processes=processes)
    metrics, others = (rows(tmp_path / name, "metrics.csv", RL_METRICS) for name in ("one", "two"))
    assert metrics["branches"][0] > 20 and metrics["infra_errors"][0] > 0
    pd.testing.assert_frame_equal(metrics, others, rtol=1e-4, atol=1e-6)
    rewards = [rows(tmp_path / name, "rewards.parquet", REWARDS) for name in ("one", "two")]
    pd.testing.assert_frame_equal(*rewards)
    one, two, start = (
        load_file(tmp_path / folder / "model.safetensors")
        for folder in ("one/out/policy", "two/out/policy", "one/initial")
    )
    assert distance(one, start) > 1e-3
    assert distance(one, two) <= ROUNDING


def test_a_spread_policy_acts_as_it_learns_and_survives_a_kill(tmp_path: Path) -> None:
    """With AdamW, passes in bfloat16, and one mini-batch a step: what acted is then what learns.

    So the two differ by rounding, if the acting copy follows; also after a kill, whose episodes are run anew.
    """
    folder = tmp_path / "folder"
    settings = {"learning_rate": 1e-3, "minibatch": 6, "trackers": ()}
    training(folder, "sharded", "live", "killed", precision="bf16", code=1, **settings)
    assert (folder / "out/policy").exists() and not (folder / "killed/out").exists()
    shutil.rmtree(folder / "killed/scratch/episodes")
    log = training(folder, "sharded", "live", "resumed", precision="bf16")
    assert log.count("resuming after step 2") == 1
    whole, killed, start = (
        load_file(folder / name / "model.safetensors")
        for name in ("out/policy", "killed/out/policy", "initial")
    )
    assert all(torch.equal(whole[name], killed[name]) for name in start)
    assert {tensor.dtype for tensor in whole.values()} == {torch.float32}
    assert all((whole[name] - start[name]).abs().max() > 1e-3 for name in start)
    metrics, others = (rows(found, "metrics.csv", RL_METRICS) for found in (folder, folder / "killed"))
    pd.testing.assert_frame_equal(metrics, others, check_exact=True)
    assert metrics["update_kl"].max() < 1e-3 < metrics["kl"][1:].min()


def test_rollouts_beside_updates_are_those_of_one_process_and_survive_a_kill(tmp_path: Path) -> None:
    """The policy acts that was there before the update. Killed in an update, as rollouts run beside it."""
    settings = {"steps": 4, "overlap": 1}
    training(tmp_path / "one", "live", "descent", "killed", processes=1, code=-signal.SIGKILL, **settings)
    left = {path.name for path in (tmp_path / "one/killed/scratch").iterdir()}
    assert "checkpoint-00000002" in left and not (tmp_path / "one/killed/out/policy").exists()
    log = training(tmp_path / "one", "live", "descent", "resumed", processes=1)
    assert log.count("resuming after step 2") == 1
    one, again = (
        load_file(tmp_path / "one" / out / "policy/model.safetensors") for out in ("out", "killed/out")
    )
    assert all(torch.equal(one[name], again[name]) for name in one)
    metrics, others = (
        rows(found, "metrics.csv", RL_METRICS) for found in (tmp_path / "one", tmp_path / "one/killed")
    )
    pd.testing.assert_frame_equal(metrics, others, check_exact=True)
    assert metrics["policy_lag"].tolist() == [0, 1, 1, 1] and (metrics["rounds"] == 2).any()
    for how in ((), ("sharded",)):
        folder = tmp_path / "-".join(("two", *how))
        training(folder, "live", "descent", *how, **settings)
        two = load_file(folder / "out/policy/model.safetensors")
        assert distance(one, two) <= ROUNDING
        pd.testing.assert_frame_equal(metrics, rows(folder, "metrics.csv", RL_METRICS), rtol=1e-4, atol=1e-6)


def test_killed_in_a_save_and_in_a_step_a_run_goes_on_in_any_number_of_processes(tmp_path: Path) -> None:
    """Two spread it, three go on and spread it otherwise, one ends it with all weights: as never killed."""
    folder = tmp_path / "run"
    training(folder, processes=1)
    whole = load_file(folder / "out/policy/model.safetensors")
    training(folder, "sharded", "resumed", "saving", code=1)
    left = {path.name for path in (folder / "killed/scratch/checkpoint-00000002").iterdir()}
    assert "part-00001-of-00002.safetensors" in left and "part-00001-of-00002.json" not in left
    log = training(folder, "sharded", "resumed", "killed", processes=3, code=1)
    assert log.count("resuming after step 1") == 1
    left = {path.name for path in (folder / "killed/scratch/checkpoint-00000002").iterdir()}
    parts = {f"part-0000{process}-of-00003" for process in range(3)}
    assert left == {f"{part}.{kind}" for part in parts for kind in ("json", "safetensors")} | {
        "progress.json"
    }
    log = training(folder, "resumed", processes=1)
    assert log.count("resuming after step 2") == 1
    found = load_file(folder / "killed/out/policy/model.safetensors")
    assert distance(found, whole) <= ROUNDING
    pd.testing.assert_frame_equal(
        rows(folder, "metrics.csv", RL_METRICS),
        rows(folder / "killed", "metrics.csv", RL_METRICS),
        rtol=1e-4,
        atol=1e-6,
    )


@pytest.mark.parametrize(
    "policy", [small_settings(lora=Lora(rank=2, alpha=4.0)), small_settings(dtype="bfloat16")]
)
def test_what_cannot_be_spread_is_refused(policy: Policy) -> None:
    with pytest.raises(SystemExit, match=r"policy\.lora null and policy\.dtype float32"):
        distributed.require_full_training(policy)


@pytest.mark.parametrize(("version", "precision"), [(1, "bf16"), (2, "fp16")])
def test_other_kinds_of_fsdp_are_refused(
    version: int, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = SimpleNamespace(
        distributed_type=DistributedType.FSDP,
        state=SimpleNamespace(fsdp_plugin=SimpleNamespace(fsdp_version=version)),
        mixed_precision=precision,
    )
    monkeypatch.setattr(distributed, "Accelerator", lambda **_: asked)
    with pytest.raises(SystemExit, match="set fsdp_version 2 and mixed_precision bf16"):
        distributed.make_accelerator()


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_a_missing_tracker_is_said_so(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from srpo.rl import tracking

    monkeypatch.setattr(tracking.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(SystemExit, match=f"train.trackers: the package {name} is not installed"):
        tracking.make_accelerator([name], tmp_path)
