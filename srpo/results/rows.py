"""The result files: their schemas, and reading and writing them with checks.

The side that simulates writes through `write_rows`, the side that draws reads through `read_rows`, so both
hold to the same schema. This module imports neither torch nor a simulator.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from pydantic import ValidationError

from srpo.config import DIMENSIONS, PROFILES, STYLES, Protocol, Section
from srpo.runtime.files import write_text, write_with


class ResultError(Exception):
    """Result files that cannot be used: broken, against their schema, contradictory, or incomplete."""


# --------------------------------------------------------------------------------------------------- schemas


@dataclass(frozen=True)
class Column:
    """One column: its type, what it means, and which values it may hold."""

    kind: Literal["str", "int", "float", "bool"]
    meaning: str
    optional: bool = False
    """May be null (empty in a CSV)."""
    values: tuple[str, ...] = ()
    """The values allowed; empty: any."""


@dataclass(frozen=True)
class Schema:
    """The columns of one kind of file, in order."""

    name: str
    row: str
    """What one row is."""
    columns: Mapping[str, Column]
    added: Mapping[str, Any] = field(default_factory=dict)
    """Columns that files of older versions lack, and what they are read as there."""
    remedy: str = ""
    """What makes such a file again where an older one cannot be read."""

    def arrow(self) -> pa.Schema:
        """The same as a pyarrow schema: utf8, int64, float64, bool."""
        types = {"str": pa.string(), "int": pa.int64(), "float": pa.float64(), "bool": pa.bool_()}
        return pa.schema([pa.field(n, types[c.kind], nullable=c.optional) for n, c in self.columns.items()])


EPISODES = Schema(
    "episodes.parquet",
    "an evaluated episode; LIBERO and LIBERO-Plus share the schema",
    {
        "preset": Column("str", "preset of the run"),
        "suite": Column("str", "LIBERO suite, e.g. `libero_spatial`"),
        "task_id": Column(
            "int", "number of the task in its suite, from 0; for LIBERO-Plus that of the base task"
        ),
        "task": Column("str", "LIBERO's name of the (base) task"),
        "init_state": Column("int", "number of the initial state, from 0"),
        "seed": Column("int", "seed of the run that made the policy"),
        "episode_seed": Column("int", "seed of the episode: action sampling and random perturbations"),
        "policy": Column("str", "name of the policy's configuration, e.g. `tiny`"),
        "variant": Column("str", "variant of the run, e.g. `sft`, `grpo`"),
        "benchmark": Column(
            "str", "which benchmark the episode belongs to", values=("libero", "libero_plus")
        ),
        "perturbation": Column(
            "str", "LIBERO-Plus dimension, or ours (`style_…`); null for LIBERO", True, DIMENSIONS + STYLES
        ),
        "perturbation_task": Column(
            "str", "LIBERO-Plus' official task name, or ours (`…_style_…`); null for LIBERO", True
        ),
        "perturbation_parameters": Column(
            "str", "the perturbation's parameters, as JSON; null for LIBERO", True
        ),
        "status": Column(
            "str",
            "how it ended; `infra_error` is an episode that could not be run, `unavailable` one that cannot "
            "run here (its assets are not there): neither is a failed one",
            values=("success", "failure", "infra_error", "unavailable"),
        ),
        "error": Column("str", "why it could not be run; null where it was", True),
        "steps": Column("int", "control steps taken, settling steps not counted"),
        "max_steps": Column("int", "control steps after which the episode has failed"),
        "profile": Column("str", "protocol profile", values=tuple(PROFILES)),
        "protocol": Column("str", "the whole protocol and MuJoCo's version (`mujoco`), as JSON"),
        "wall_seconds": Column("float", "seconds the episode took"),
        "video": Column("str", "path of its video from the folder of this file, if there is one", True),
    },
)

RL_METRICS = Schema(
    "metrics.csv (RL)",
    "an RL step (offline: a pass over the fixed set of rollouts); steps count from 1, each once",
    {
        "step": Column("int", "RL step, from 1"),
        "episodes": Column("int", "rollouts that finished (infrastructure errors are not among them)"),
        "successes": Column("int", "successful rollouts"),
        "success_rate": Column("float", "successes / episodes; null without episodes", True),
        "infra_errors": Column("int", "rollouts that could not be run"),
        "rounds": Column("int", "rounds of rollouts: 1, and those that made up for groups left out"),
        "groups": Column("int", "groups rolled out"),
        "groups_kept": Column("int", "groups left by dynamic sampling: those the update learns from"),
        "groups_without_signal": Column("int", "groups whose (shaped) rewards are all equal"),
        "groups_without_signal_outcome": Column("int", "groups whose 0/1 outcomes are all equal"),
        "clusters": Column("int", "DBSCAN clusters of the successes, summed over tasks"),
        "fallbacks": Column("int", "tasks where no cluster was found and the mean of the successes was used"),
        "unshaped_tasks": Column("int", "tasks without a success or without a failure: nothing to shape"),
        "failure_reward_mean": Column("float", "mean reward of the failures; null without failures", True),
        "reward_histogram": Column("str", "rewards in ten equal bins from 0 to 1, as a JSON list of counts"),
        "distance_mean": Column(
            "float", "mean distance of failures to the nearest reference; null: none", True
        ),
        "distance_min": Column("float", "smallest of these distances; null: none", True),
        "distance_max": Column("float", "largest of these distances; null: none", True),
        "loss": Column("float", "mean loss of the update; null when no group was kept", True),
        "kl": Column("float", "mean k3 estimate of KL(policy ‖ SFT policy); null: not computed", True),
        "update_kl": Column(
            "float",
            "mean k3 estimate, a token, of KL(rollout policy ‖ policy) before each mini-batch's optimiser "
            "step: how far those before it went; null: no update",
            True,
        ),
        "clip_fraction": Column(
            "float", "share of tokens whose ratio (offline: weight) was clipped; null: no update", True
        ),
        "entropy": Column("float", "mean entropy of the action tokens, nats; null: no update", True),
        "grad_norm": Column("float", "mean gradient norm before clipping; null: no update", True),
        "learning_rate": Column("float", "learning rate of the step"),
        "evaluation_episodes": Column("int", "greedy episodes on test states after the step"),
        "evaluation_success_rate": Column("float", "their success rate; null: no evaluation", True),
        "environment_steps": Column("int", "control steps simulated in the step"),
        "seconds_rollout": Column("float", "seconds of rolling out"),
        "seconds_encode": Column("float", "seconds of encoding videos and shaping rewards"),
        "seconds_update": Column("float", "seconds of the update"),
        "seconds_evaluate": Column("float", "seconds of the evaluation"),
        "seconds_total": Column("float", "seconds of the whole step"),
        "episodes_per_second": Column(
            "float", "rollouts run / seconds_rollout; null when all had been run before a restart", True
        ),
        "memory_mb": Column(
            "float",
            "resident memory of the main process and its simulators at the step's end; null: not recorded",
            True,
        ),
        "gpu_memory_mb": Column("float", "most memory that torch had on its GPU so far; null: no GPU", True),
    },
    added={
        "rounds": 1,
        "reward_histogram": "[]",
        "distance_min": None,
        "distance_max": None,
        "update_kl": None,
        "evaluation_episodes": 0,
        "evaluation_success_rate": None,
        "seconds_evaluate": 0.0,
        "episodes_per_second": None,
        "memory_mb": None,
        "gpu_memory_mb": None,
    },
)

TASK_METRICS = Schema(
    "tasks.csv",
    "a task in an RL step that had episodes of it",
    {
        "step": Column("int", "RL step, from 1"),
        "task_id": Column("int", "number of the task in its suite, from 0"),
        "episodes": Column("int", "rollouts that finished"),
        "successes": Column("int", "successful rollouts"),
        "success_rate": Column("float", "successes / episodes"),
        "invalid": Column("int", "rollouts whose embedding was broken: left out of the update"),
        "clusters": Column("int", "DBSCAN clusters of the successes"),
        "fallback": Column("bool", "whether no cluster was found and the mean of the successes was used"),
        "unshaped": Column("str", "why failures were not shaped; null: they were", True),
        "distance_mean": Column(
            "float", "mean distance of failures to the nearest reference; null: none", True
        ),
        "failure_reward_mean": Column("float", "mean reward of the failures; null without failures", True),
    },
)

SFT_METRICS = Schema(
    "metrics.csv (SFT)",
    "a logged update of supervised fine-tuning",
    {
        "update": Column("int", "optimiser update"),
        "loss": Column("float", "total loss"),
        "cross_entropy": Column("float", "cross-entropy of the action tokens, nats"),
        "position_error": Column(
            "float", "mean absolute error of the expected xyz actions, in normalised units (full range 2)"
        ),
        "learning_rate": Column("float", "learning rate of the update"),
        "seconds": Column("float", "seconds since the start of the run"),
    },
)

WAY_LEFT = "metres that the hand still had to go to the goal at the end, as the simulator knows it; 0: solved"

REWARDS = Schema(
    "rewards.parquet",
    "a rollout of RL training, with what it was rewarded",
    {
        "step": Column("int", "RL step, from 1"),
        "group": Column("int", "number of the rollout's group within the step"),
        "suite": Column("str", "LIBERO suite"),
        "task_id": Column("int", "number of the task in its suite, from 0"),
        "init_state": Column("int", "number of the initial state, from 0"),
        "episode_seed": Column("int", "seed of the rollout's action sampling"),
        "success": Column("bool", "whether the task was solved"),
        "steps": Column("int", "control steps taken"),
        "distance_to_goal": Column("float", WAY_LEFT),
        "distance": Column(
            "float", "distance to the nearest reference; null: success, or nothing to shape", True
        ),
        "reward": Column("float", "reward, 0 to 1"),
        "advantage": Column("float", "group-normalised reward"),
        "kept": Column("bool", "whether dynamic sampling kept the group"),
    },
)

BENCHMARK = Schema(
    "reward benchmark",
    "a labelled trajectory scored under one representation",
    {
        "suite": Column("str", "LIBERO suite"),
        "task_id": Column("int", "number of the task in its suite, from 0"),
        "trajectory": Column("int", "number of the trajectory in its file of trajectories"),
        "success": Column("bool", "whether the trajectory solved its task"),
        "steps": Column("int", "control steps of the trajectory"),
        "representation": Column("str", "name of the world model, e.g. `pixel`"),
        "spearman": Column("float", "rank correlation of progress with time; null for failures", True),
        "monotonicity": Column(
            "float", "share of steps on which progress does not fall; null for failures", True
        ),
        "final_progress": Column(
            "float", "progress of the whole trajectory, 0 to 1; null: its embedding is broken", True
        ),
        "matched_progress": Column(
            "float",
            "as final_progress, but of a failure only as much as a success of its task takes (median steps): "
            "failures last until they are cut off, so their mere length would give them away",
            True,
        ),
    },
    remedy="score the trajectories again: `snakemake --forcerun score`",
)

CURVES = Schema(
    "reward benchmark curves",
    "a point of a labelled trajectory's progress curve under one representation",
    {
        "suite": Column("str", "LIBERO suite"),
        "task_id": Column("int", "number of the task in its suite, from 0"),
        "trajectory": Column("int", "number of the trajectory in its file of trajectories"),
        "success": Column("bool", "whether the trajectory solved its task"),
        "representation": Column("str", "name of the world model, e.g. `pixel`"),
        "step": Column("int", "control steps seen: the prefix ends after this many"),
        "distance_to_goal": Column("float", WAY_LEFT),
        "distance": Column(
            "float", "L2 distance of the prefix's embedding to the mean of the task's (other) successes"
        ),
        "progress": Column("float", "1 − distance / the curve's largest distance"),
    },
)

PATHS = Schema(
    "paths.parquet",
    "where the end effector was after a control step (0: at the start) of a greedy episode on LIBERO",
    {
        "suite": Column("str", "LIBERO suite"),
        "variant": Column("str", "variant of the run"),
        "seed": Column("int", "seed of the run that made the policy"),
        "task_id": Column("int", "number of the task in its suite, from 0"),
        "init_state": Column("int", "number of the initial state, from 0"),
        "success": Column("bool", "whether the episode solved its task"),
        "step": Column("int", "control steps taken"),
        "x": Column("float", "position along the table's depth, metres, away from the robot's base"),
        "y": Column("float", "position across the table, metres, to the robot's left"),
        "z": Column("float", "height, metres"),
    },
)

SCHEMAS = (EPISODES, PATHS, RL_METRICS, TASK_METRICS, SFT_METRICS, REWARDS, BENCHMARK, CURVES)

IDENTITY = ["suite", "variant", "seed", "benchmark", "task_id", "init_state", "perturbation_task"]
"""What makes an episode the same episode."""


# ------------------------------------------------------------------------------------------- write and read


def protocol_json(protocol: Protocol, mujoco: str) -> str:
    """The `protocol` column: every setting of the protocol and MuJoCo's version, keys sorted."""
    return json.dumps({**protocol.model_dump(mode="json"), "mujoco": mujoco}, sort_keys=True)


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]], schema: Schema) -> None:
    """Write rows atomically as parquet or CSV (by suffix); every row has exactly the schema's columns.

    Raises `ResultError` naming file and column when a row does not fit the schema.
    """
    rows = list(rows)
    names = set(schema.columns)
    for number, row in enumerate(rows):
        if set(row) != names:
            missing, unknown = sorted(names - set(row)), sorted(set(row) - names)
            raise ResultError(f"{path}: row {number}: missing columns {missing}, unknown columns {unknown}")
    arrays = []
    for column in schema.arrow():
        values = [row[column.name] for row in rows]
        if pa.types.is_integer(column.type) and any(isinstance(value, float) for value in values):
            raise ResultError(
                f"{path}: column {column.name}: must be int, not float"
            )  # Arrow would cut 1.5 to 1
        try:
            arrays.append(pa.array(values, type=column.type, from_pandas=True))  # NaN becomes null
        except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
            raise ResultError(f"{path}: column {column.name}: {error}") from None
    table = pa.Table.from_arrays(arrays, schema=schema.arrow())
    frame = table.to_pandas()
    _check(frame, schema, path)
    if path.suffix == ".csv":
        write_with(path, lambda temporary: frame.to_csv(temporary, index=False))
    else:
        write_with(path, lambda temporary: pq.write_table(table, temporary))


def read_rows(path: Path, schema: Schema) -> pd.DataFrame:
    """Read a parquet or CSV file (by suffix) and check it against the schema.

    Columns come in the schema's order, as str, int64, float64 or bool; null is NaN. Columns that older files
    lack are filled in (`Schema.added`). Raises `ResultError` naming the file, and the column at fault.
    """
    if not path.is_file():
        raise ResultError(f"{path}: no such file")
    try:
        frame = (
            pd.read_csv(path, float_precision="round_trip")
            if path.suffix == ".csv"
            else pq.ParquetFile(path).read().to_pandas()
        )
    except (pa.ArrowInvalid, pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise ResultError(f"{path}: not a whole {schema.name} file: {error}") from None
    older = [name for name in schema.columns if name not in frame.columns]
    missing = [name for name in older if name not in schema.added]
    unknown = [name for name in frame.columns if name not in schema.columns]
    if missing or unknown:
        remedy = f"; {schema.remedy}" if schema.remedy else ""
        raise ResultError(
            f"{path}: {schema.name}: missing columns {missing}, unknown columns {unknown}{remedy}"
        )
    frame = frame.assign(**{name: schema.added[name] for name in older})[list(schema.columns)]
    for name, column in schema.columns.items():
        if frame[name].isna().all() and column.optional:  # an all-null column has no type of its own
            frame[name] = frame[name].astype("float64" if column.kind == "float" else "str")
        elif column.kind == "float" and pd.api.types.is_integer_dtype(
            frame[name]
        ):  # CSV writes 1.0 and 1 alike
            frame[name] = frame[name].astype("float64")
    _check(frame, schema, path)
    return frame


def _check(frame: pd.DataFrame, schema: Schema, path: Path) -> None:
    """Types, nulls and allowed values of a frame that has the schema's columns."""
    of_kind = {
        "str": pd.api.types.is_string_dtype,
        "int": pd.api.types.is_integer_dtype,
        "float": pd.api.types.is_float_dtype,
        "bool": pd.api.types.is_bool_dtype,
    }
    for name, column in schema.columns.items():
        values = frame[name]
        if not column.optional and values.isna().any():
            raise ResultError(f"{path}: column {name}: null in row {int(values.isna().to_numpy().argmax())}")
        if len(values) and not of_kind[column.kind](values):
            raise ResultError(f"{path}: column {name}: holds {values.dtype}, must be {column.kind}")
        if column.values:
            wrong = sorted(set(values.dropna()) - set(column.values))
            if wrong:
                raise ResultError(f"{path}: column {name}: {wrong} not among {list(column.values)}")
        if column.kind == "float" and np.isinf(values.to_numpy(dtype=float)).any():
            raise ResultError(f"{path}: column {name}: infinite values")


# ---------------------------------------------------------------------------------------- files of many runs

S = TypeVar("S", bound=Section)


def read_config(beside: Path, stage: type[S]) -> S:
    """The resolved `config.yaml` in the folder of the result file `beside`."""
    path = beside.parent / "config.yaml"
    try:
        return stage.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise ResultError(
            f"{path}: no such file: {beside.name} needs its run's resolved config beside it"
        ) from None
    except (ValidationError, yaml.YAMLError) as error:
        older = "missing" in {problem["type"] for problem in getattr(error, "errors", list)()}
        hint = " (of an older version? `snakemake --forcerun config` writes it again)" if older else ""
        raise ResultError(f"{path}: no valid {stage.__name__}{hint}: {error}") from None


def read_mujoco(manifests: Iterable[Path]) -> str:
    """MuJoCo's version by the manifests of some runs; `of unknown version` where none of them is there."""
    found = set()
    for path in manifests:
        if path.is_file():
            found.add(json.loads(path.read_text(encoding="utf-8"))["packages"]["mujoco"])
    if len(found) > 1:
        raise ResultError(f"the runs' manifests name several versions of MuJoCo: {sorted(found)}")
    return found.pop() if found else "of unknown version"


def read_episodes(paths: Sequence[Path]) -> pd.DataFrame:
    """Episodes of several files as one frame, refused where they contradict each other (`check_episodes`)."""
    frames = [read_rows(path, EPISODES) for path in paths]
    episodes = (
        pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=list(EPISODES.columns))
    )
    check_episodes(episodes)
    return episodes


def check_episodes(episodes: pd.DataFrame) -> None:
    """Refuse episodes that must not stand in one table.

    One preset and one protocol throughout; only `max_steps` may differ, and only between suites. No episode
    twice. `max_steps` and `profile` agree with the protocol's record. Episodes that did not run, and they
    alone, say why.
    """
    if episodes.empty:
        raise ResultError("no episodes: the files have no rows")
    unrun = episodes["status"].isin(["infra_error", "unavailable"])
    if (unrun != episodes["error"].notna()).any():
        raise ResultError(
            "column error: must be set for status infra_error and unavailable, and null for all other status"
        )
    presets = sorted(set(episodes["preset"]))
    if len(presets) > 1:
        raise ResultError(f"column preset: mixes presets {presets}: a variant means something else in each")
    shared: dict[str, str] = {}
    for (suite, max_steps, profile, text), _ in episodes.groupby(
        ["suite", "max_steps", "profile", "protocol"]
    ):
        record = protocol_record(str(text))
        if record["max_steps"] != max_steps or record["profile"] != profile:
            raise ResultError(f"{suite}: columns max_steps and profile contradict column protocol: {text}")
        for key, value in record.items():
            scope = f"{key} of {suite}" if key == "max_steps" else key
            if shared.setdefault(scope, json.dumps(value)) != json.dumps(value):
                raise ResultError(
                    f"column protocol: mixes protocols: {scope} is {shared[scope]} and {value!r}"
                )
    twice = episodes[episodes.duplicated(IDENTITY)]
    if len(twice):
        raise ResultError(f"{len(twice)} episodes stand twice, the first: {_describe(twice.iloc[0])}")


def protocol_record(text: str) -> dict[str, Any]:
    """Read a `protocol` column's value (`protocol_json`), checking it."""
    try:
        record = json.loads(text)
        mujoco = record.pop("mujoco")
        return {**Protocol.model_validate(record).model_dump(mode="json"), "mujoco": mujoco}
    except (ValueError, KeyError, AttributeError) as error:  # ValidationError is a ValueError
        raise ResultError(f"column protocol: not a protocol with MuJoCo's version: {text}: {error}") from None


def missing_rows(rows: pd.DataFrame, expected: pd.DataFrame, allow_incomplete: bool) -> pd.DataFrame:
    """The expected rows that `rows` lacks, compared on all of `expected`'s columns.

    An infra error is a row like any other: it is counted apart later, but it is not missing. Raises
    `ResultError` for rows that nobody expects, and, unless `allow_incomplete`, for missing ones.
    """
    keys = list(expected.columns)
    both = expected.merge(rows[keys].drop_duplicates(), how="outer", on=keys, indicator=True)
    unexpected = both[both["_merge"] == "right_only"]
    if len(unexpected):
        raise ResultError(
            f"{len(unexpected)} rows that their config does not ask for, "
            f"the first: {_describe(unexpected[keys].iloc[0])}"
        )
    missing = both.loc[both["_merge"] == "left_only", keys]
    if len(missing) and not allow_incomplete:
        raise ResultError(
            f"incomplete: {len(missing)} of {len(expected)} rows are missing, the first: "
            f"{_describe(missing.iloc[0])} (--allow-incomplete makes the table without them and says so)"
        )
    return missing


def _describe(row: pd.Series) -> str:
    return ", ".join(f"{key}={row[key]}" for key in row.index if key in IDENTITY and pd.notna(row[key]))


def document() -> str:
    """The schemas as Markdown: docs/results_schema.md."""
    text = [
        "<!-- Written by `srpo document results`; edit the schemas in srpo/results/schemas.py. -->",
        "# Result files",
        "",
        "What a run leaves behind, column by column. Writing (`write_rows`) and reading (`read_rows`) check",
        "names, types, nulls and allowed values, and name the file and the column when one is wrong. In a",
        "CSV, null is an empty field. Parquet types: str is utf8, int is int64, float is float64.",
        "",
        f"An episode is identified by {', '.join(f'`{name}`' for name in IDENTITY)};",
        "no table takes one twice, mixes presets, or mixes protocols (`max_steps` may differ by suite).",
    ]
    for schema in SCHEMAS:
        text += ["", f"## {schema.name}", "", f"One row: {schema.row}.", ""]
        if schema.added:
            filled = [
                f"`{name}` ({'null' if value is None else value})" for name, value in schema.added.items()
            ]
            text += [f"Older files that lack these are read with: {', '.join(filled)}.", ""]
        text += ["| column | type | null | meaning |", "|---|---|---|---|"]
        for name, column in schema.columns.items():
            values = f" One of {', '.join(f'`{value}`' for value in column.values)}." if column.values else ""
            null = "yes" if column.optional else ""
            text.append(
                f"| `{name}` | {column.kind} | {null} | {column.meaning.replace('|', '/')}.{values} |"
            )
    return "\n".join([*text, ""])


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m srpo.results.rows", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    merge = commands.add_parser("merge", help="put the episodes of several shards into one file")
    merge.add_argument("shards", nargs="+", type=Path)
    merge.add_argument("--out", required=True, type=Path)
    schema = commands.add_parser("document", help="write the schemas as Markdown")
    schema.add_argument("--out", type=Path, default=Path("docs/results_schema.md"))
    arguments = parser.parse_args(argv)
    if arguments.command == "document":
        write_text(arguments.out, document())
        return
    episodes = read_episodes(arguments.shards)
    rows = [{str(name): value for name, value in row.items()} for row in episodes.to_dict("records")]
    write_rows(arguments.out, rows, EPISODES)


def run(main: Callable[[], None]) -> None:
    """Call a CLI's main; a result file that cannot be used ends it with one line and exit status 1."""
    try:
        main()
    except ResultError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    run(main)
