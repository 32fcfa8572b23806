"""Result files: what is written comes back, and what is broken, mixed, doubled or missing is refused."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from srpo import ROOT
from srpo.analysis.text import PERTURBATION_LABELS
from srpo.config import DIMENSIONS, STYLES, EvaluateStage
from srpo.libero_plus import tasks as plus_tasks
from srpo.results import ResultError
from srpo.results.coverage import missing_rows, read_config
from srpo.results.document import document
from srpo.results.rows import check_episodes, protocol_json, read_episodes, read_rows, write_rows
from srpo.results.schemas import BENCHMARK, EPISODES, REWARDS, RL_METRICS, SFT_METRICS, Schema
from support.synthetic_results import MUJOCO, episode_row, libero_run, protocol, reward_benchmark, rl_run


def sample_row(schema: Schema, *, null: bool = False) -> dict[str, Any]:
    """A row with a value of its type in every column, or null wherever that is allowed."""
    values: dict[str, Any] = {"str": 'x, "y"', "int": 3, "float": 0.1, "bool": True}
    return {
        name: None if null and column.optional else (column.values or (values[column.kind],))[0]
        for name, column in schema.columns.items()
    }


@pytest.mark.parametrize("suffix", [".parquet", ".csv"])
@pytest.mark.parametrize(
    "schema", [EPISODES, RL_METRICS, SFT_METRICS, REWARDS, BENCHMARK], ids=lambda s: s.name
)
def test_what_is_written_comes_back(schema: Schema, suffix: str, tmp_path: Path) -> None:
    rows = [sample_row(schema), sample_row(schema, null=True)]
    for some in (rows, rows[:1], rows[1:]):
        write_rows(tmp_path / f"file{suffix}", some, schema)
        frame = read_rows(tmp_path / f"file{suffix}", schema)
        back = [{k: None if pd.isna(v) else v for k, v in row.items()} for row in frame.to_dict("records")]
        assert back == some


def test_no_rows_are_a_file_too(tmp_path: Path) -> None:
    write_rows(tmp_path / "rewards.parquet", [], REWARDS)
    assert list(read_rows(tmp_path / "rewards.parquet", REWARDS)) == list(REWARDS.columns)


def test_numpy_numbers_and_nan(tmp_path: Path) -> None:
    row = {
        **sample_row(REWARDS),
        "step": np.int64(2),
        "success": np.bool_(False),
        "distance": np.float32("nan"),
    }
    write_rows(tmp_path / "rewards.parquet", [row], REWARDS)
    frame = read_rows(tmp_path / "rewards.parquet", REWARDS)
    assert frame["step"].item() == 2
    assert np.isnan(frame["distance"].item())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"status": "crashed"}, "column status: .'crashed'. not among"),
        ({"steps": 1.5}, "column steps: must be int"),
        ({"steps": "many"}, "column steps"),
        ({"task": None}, "column task: null in row 1"),
        ({"task": 7}, "column task"),
        ({"wall_seconds": float("inf")}, "column wall_seconds: infinite"),
        ({"wall_seconds": float("nan")}, "column wall_seconds: null"),
        ({"colour": "red"}, r"unknown columns \['colour'\]"),
    ],
)
def test_writing_refuses(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = tmp_path / "episodes.parquet"
    with pytest.raises(ResultError, match=message) as error:
        write_rows(path, [episode_row(), episode_row(init_state=1, **change)], EPISODES)
    assert str(path) in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_writing_refuses_a_missing_column(tmp_path: Path) -> None:
    row = episode_row()
    del row["seed"]
    with pytest.raises(ResultError, match=r"missing columns \['seed'\]"):
        write_rows(tmp_path / "episodes.parquet", [row], EPISODES)


def test_reading_refuses(tmp_path: Path) -> None:
    path = tmp_path / "episodes.parquet"
    with pytest.raises(ResultError, match="no such file"):
        read_rows(path, EPISODES)
    good = pa.Table.from_pylist([episode_row()])
    pq.write_table(good.drop_columns(["seed"]).append_column("colour", [["red"]]), path)
    with pytest.raises(
        ResultError, match=r"missing columns \['seed'\], unknown columns \['colour'\]"
    ) as error:
        read_rows(path, EPISODES)
    assert str(path) in str(error.value)
    pq.write_table(good.set_column(good.schema.get_field_index("steps"), "steps", [["80"]]), path)
    with pytest.raises(ResultError, match="column steps: holds str, must be int"):
        read_rows(path, EPISODES)
    pq.write_table(good, path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ResultError, match="not a whole"):
        read_rows(path, EPISODES)


def frame(*changes: dict[str, Any]) -> pd.DataFrame:
    """Episodes of consecutive initial states, each with its changes."""
    return pd.DataFrame([episode_row(**{"init_state": i, **change}) for i, change in enumerate(changes)])


def other(suite: str = "libero_spatial", mujoco: str = MUJOCO, **changes: Any) -> dict[str, Any]:
    """The columns of another protocol."""
    changed = protocol(suite, **changes)
    return {
        "suite": suite,
        "max_steps": changed.max_steps,
        "profile": changed.profile,
        "protocol": protocol_json(changed, mujoco),
    }


def test_suites_may_differ_in_max_steps_alone() -> None:
    check_episodes(frame({}, other("libero_10")))
    with pytest.raises(ResultError, match="mixes protocols: max_steps of libero_spatial is 220 and 512"):
        check_episodes(frame({}, other(max_steps=512)))


@pytest.mark.parametrize(
    ("change", "name"),
    [
        (other("libero_10", profile="held_out"), "profile"),
        (other("libero_10", render="fast"), "render"),
        (other("libero_10", textures="linear"), "textures"),
        (other("libero_10", resets="running"), "resets"),
        (other("libero_10", image_size=256), "image_size"),
        (other("libero_10", settle_steps=0), "settle_steps"),
        (other("libero_10", env_seed=7), "env_seed"),
        (other("libero_10", mujoco="3.4.0"), "mujoco"),
    ],
)
def test_mixed_protocols_are_refused(change: dict[str, Any], name: str) -> None:
    with pytest.raises(ResultError, match=f"mixes protocols: {name} is"):
        check_episodes(frame({}, change))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ([{}, {"preset": "mini"}], r"mixes presets \['mini', 'smoke'\]"),
        ([{}, {"max_steps": 5}], "contradict column protocol"),
        ([{}, {"protocol": "{}"}], "not a protocol with MuJoCo's version"),
        ([{}, {"protocol": "?"}], "not a protocol with MuJoCo's version"),
        ([{}, {"status": "infra_error"}], "column error"),
        ([{}, {"error": "boom"}], "column error"),
        (
            [{}, {"init_state": 0}],
            "1 episodes stand twice, the first: suite=libero_spatial, task_id=0, init_state=0",
        ),
    ],
)
def test_contradictions_are_refused(changes: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(ResultError, match=message):
        check_episodes(frame(*changes))


def test_the_same_state_is_another_episode_elsewhere() -> None:
    check_episodes(
        frame(*({"init_state": 0, **c} for c in ({}, {"seed": 1}, {"variant": "grpo"}, {"task_id": 1})))
    )
    plus = {"init_state": 0, "benchmark": "libero_plus"}
    check_episodes(frame({**plus, "perturbation_task": "a"}, {**plus, "perturbation_task": "b"}))


def test_no_episodes_are_refused(tmp_path: Path) -> None:
    write_rows(tmp_path / "episodes.parquet", [], EPISODES)
    with pytest.raises(ResultError, match="no episodes"):
        read_episodes([tmp_path / "episodes.parquet"])


def test_coverage() -> None:
    expected = pd.DataFrame({"task_id": [0, 0, 1], "init_state": [0, 1, 0]})
    rows = frame({}, {"status": "infra_error", "error": "boom"})
    with pytest.raises(ResultError, match="1 of 3 rows are missing, the first: task_id=1, init_state=0"):
        missing_rows(rows, expected, allow_incomplete=False)
    missing = missing_rows(rows, expected, allow_incomplete=True)
    assert missing.to_dict("records") == [{"task_id": 1, "init_state": 0}]
    assert missing_rows(rows, expected[:2], allow_incomplete=False).empty
    with pytest.raises(
        ResultError, match="1 rows that their config does not ask for, the first: task_id=0, init_s"
    ):
        missing_rows(rows, expected[:1], allow_incomplete=True)


def test_files_that_repeat_an_episode_are_refused(tmp_path: Path) -> None:
    shards = [tmp_path / "shard-0.parquet", tmp_path / "shard-1.parquet"]
    write_rows(shards[0], [episode_row()], EPISODES)
    write_rows(shards[1], [episode_row(init_state=1, status="infra_error", error="boom")], EPISODES)
    assert list(read_episodes(shards)["init_state"]) == [0, 1]
    with pytest.raises(ResultError, match="1 episodes stand twice"):
        read_episodes([shards[0], shards[0]])


def test_config_beside_the_results(tmp_path: Path) -> None:
    path = libero_run(tmp_path, "libero_goal", "sft", 0.5, states=3)
    assert read_config(path, EvaluateStage).evaluate.states == 3
    (path.parent / "config.yaml").write_text("suite: libero_gaol", encoding="utf-8")
    with pytest.raises(ResultError, match=r"config\.yaml: no valid EvaluateStage"):
        read_config(path, EvaluateStage)
    (path.parent / "config.yaml").unlink()
    with pytest.raises(ResultError, match="needs its run's resolved config beside it"):
        read_config(path, EvaluateStage)


def test_protocol_column_is_sorted_json() -> None:
    record = json.loads(protocol_json(protocol("libero_goal"), MUJOCO))
    assert record["mujoco"] == MUJOCO
    assert list(record) == sorted(record)


def test_every_perturbation_has_a_place_and_a_label() -> None:
    assert EPISODES.columns["perturbation"].values == tuple(PERTURBATION_LABELS) == DIMENSIONS + STYLES
    counted = {name for tasks in plus_tasks.COUNTS.values() for counts in tasks.values() for name in counts}
    assert counted == set(DIMENSIONS)


def test_documentation_is_up_to_date() -> None:
    text = (ROOT / "docs" / "results_schema.md").read_text(encoding="utf-8")
    assert text == document(), "run: srpo document results"


def test_analysis_imports_neither_torch_nor_simulation() -> None:
    code = (
        "import importlib, pkgutil, sys, srpo.analysis as package\n"
        "for module in pkgutil.walk_packages(package.__path__, 'srpo.analysis.'):\n"
        "    importlib.import_module(module.name)\n"
        "heavy = ['torch', 'transformers', 'mujoco', 'robosuite', 'libero', 'snakemake']\n"
        "print([name for name in heavy if name in sys.modules], 'srpo.analysis.tables.t1' in sys.modules)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert result.stdout.strip() == "[] True"


def test_analysis_builds_on_configuration_and_results_alone() -> None:
    """And on files, videos and arguments, on LIBERO-Plus's list of tasks, and on the benchmark's metrics."""
    names = ("analysis", "config", "errors", "results", "runtime.arguments", "runtime.files")
    names += ("runtime.hdf5", "runtime.videos", "libero_plus.tasks", "libero_plus.sweep", "rewards.metrics")
    allowed = re.compile(rf"srpo\.({'|'.join(map(re.escape, names))})\b")
    for file in (ROOT / "srpo/analysis").rglob("*.py"):
        for line in re.findall(r"^\s*(?:from|import) (srpo.*)", file.read_text(), re.MULTILINE):
            assert allowed.match(line.replace(" import ", ".")), f"{file}: {line}"


def test_older_metrics_are_read_with_what_they_lack(tmp_path: Path) -> None:
    path = rl_run(tmp_path, "libero_goal", "srpo", [0.2, 0.4])
    new = pd.read_csv(path)
    new.drop(columns=list(RL_METRICS.added)).to_csv(path, index=False)
    old = read_rows(path, RL_METRICS)
    assert list(old.columns) == list(RL_METRICS.columns)
    assert list(old["rounds"]) == [1, 1] and old["update_kl"].isna().all()
    assert list(old["successes"]) == list(new["successes"])
    new.drop(columns=["successes"]).to_csv(path, index=False)
    with pytest.raises(ResultError, match=r"missing columns \['successes'\]"):
        read_rows(path, RL_METRICS)


def test_an_older_reward_benchmark_says_how_to_make_it_again(tmp_path: Path) -> None:
    path = reward_benchmark(tmp_path, "libero_goal", {"pixel": 0.5})[0]
    pd.read_parquet(path).drop(columns=["matched_progress"]).to_parquet(path)
    with pytest.raises(ResultError, match="score the trajectories again: `snakemake --forcerun score`"):
        read_rows(path, BENCHMARK)
