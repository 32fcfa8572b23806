"""Result files of many runs read together: of one preset and one protocol, and none missing unless allowed.

Every result file has its run's resolved `config.yaml` beside it, which says what rows to expect.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import pandas as pd
from pydantic import ValidationError

from srpo.config import (
    CONTROL_HZ,
    ConfigError,
    EvaluateStage,
    RewardBenchmarkStage,
    Section,
    TrainStage,
    ValuesStage,
    read_yaml,
)
from srpo.results import ResultError
from srpo.results.rows import describe, read_episodes, read_rows
from srpo.results.schemas import RL_METRICS, Schema

S = TypeVar("S", bound=Section)


def read_config(beside: Path, stage: type[S]) -> S:
    """The resolved `config.yaml` in the folder of the result file `beside`."""
    path = beside.parent / "config.yaml"
    if not beside.exists():
        raise ResultError(f"{beside}: no such file")
    if not path.is_file():
        raise ResultError(f"{path}: no such file: {beside.name} needs its run's resolved config beside it")
    try:
        return stage.model_validate(read_yaml(path))
    except (ValidationError, ConfigError) as error:
        older = "missing" in {problem["type"] for problem in getattr(error, "errors", list)()}
        hint = " (of an older version? `snakemake --forcerun config` writes it again)" if older else ""
        raise ResultError(f"{path}: no valid {stage.__name__}{hint}: {error}") from None


def read_mujoco(manifests: Iterable[Path]) -> str:
    """MuJoCo's version by the manifests of some runs; `of unknown version` where none of them is there."""
    present = [json.loads(path.read_text(encoding="utf-8")) for path in manifests if path.is_file()]
    versions = {manifest["packages"]["mujoco"] for manifest in present}
    if len(versions) > 1:
        raise ResultError(f"the runs' manifests name several versions of MuJoCo: {sorted(versions)}")
    return versions.pop() if versions else "of unknown version"


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
            f"the first: {describe(unexpected[keys].iloc[0])}"
        )
    missing = both.loc[both["_merge"] == "left_only", keys]
    if len(missing) and not allow_incomplete:
        raise ResultError(
            f"incomplete: {len(missing)} of {len(expected)} rows are missing, the first: "
            f"{describe(missing.iloc[0])} (--allow-incomplete makes the table without them and says so)"
        )
    return missing


def absent_runs(ran: Iterable[tuple[str, str]], variants: Iterable[str]) -> list[str]:
    """The runs of a sheet that are not there, as "srpo on libero_goal".

    Args:
        ran: (variant, suite) of the runs that are there.
    """
    ran = set(ran)
    suites = sorted({suite for _, suite in ran})
    return [f"{variant} on {s}" for variant in variants for s in suites if (variant, s) not in ran]


def require_runs(
    ran: Iterable[tuple[str, str]], variants: Iterable[str], allow_incomplete: bool
) -> list[str]:
    """`absent_runs`; unless `allow_incomplete`, a `ResultError` if there are any."""
    absent = absent_runs(ran, variants)
    if absent and not allow_incomplete:
        raise ResultError(f"incomplete: no run of {', '.join(absent)}")
    return absent


def require_known(variants: Iterable[str], sheet: Collection[str]) -> None:
    """Refuse rows of variants that a sheet does not name."""
    unknown = sorted(set(variants) - set(sheet))
    if unknown:
        raise ResultError(f"variants {unknown} are not in the sheet, which has {list(sheet)}")


def require_alike(configs: Sequence[TrainStage | EvaluateStage | RewardBenchmarkStage | ValuesStage]) -> None:
    """Refuse runs of several presets or protocols: only suites may differ, in their step limit."""
    presets = sorted({config.preset for config in configs})
    if len(presets) > 1:
        raise ResultError(f"the runs belong to several presets, not to one: {', '.join(presets)}")
    seen: dict[str, Any] = {}
    for config in configs:
        for key, value in config.protocol.model_dump(mode="json").items():
            setting = f"{key} of {config.suite}" if key == "max_steps" else key
            if (other := seen.setdefault(setting, value)) != value:
                raise ResultError(
                    "the runs belong to several protocols, not to one: "
                    f"protocol.{setting} is {other!r} and {value!r}"
                )


def require_together(*kinds: tuple[Sequence[Path], type[Section]]) -> None:
    """`require_alike` of several kinds of result files, each with its stage, that one drawing joins."""
    require_alike([read_config(path, stage) for paths, stage in kinds for path in paths])  # type: ignore[misc]


def overlapping(results: Iterable[Path]) -> set[str]:
    """The variants whose rollouts ran beside updates (`train.overlap`), of metrics or evaluations.

    By the `config.yaml` of a run's training: beside its metrics, in the folder above that of an evaluation.

    Raises `ResultError` if some runs of a variant were trained so and others not.
    """
    found: dict[str, dict[int, Path]] = defaultdict(dict)
    for result in results:
        for config in (folder / "config.yaml" for folder in (result.parent, result.parent.parent)):
            settings = read_yaml(config) if config.is_file() else {}
            if "train" in settings:
                found[settings["variant"]][settings["train"].get("overlap", 0)] = config
    for variant, configs in found.items():
        if len(configs) > 1:
            raise ResultError(
                f"the runs of {variant} were not trained alike: train.overlap is 0 in {configs[0]}, 1 in "
                f"{configs[1]}: train all of them with one, or give those with the other a row of their own"
            )
    return {variant for variant, configs in found.items() if 1 in configs}


def require_same_start(runs: Iterable[tuple[Path, TrainStage]]) -> None:
    """Refuse trainings of one suite and seed that started from different policies, as runs do that were put
    together from several machines, each with an SFT of its own.

    By the manifests beside their metrics; a run whose manifest does not name its policy is passed over.

    Args:
        runs: metrics.csv and configuration of each.
    """
    seen: dict[tuple[str, int], tuple[str, Path]] = {}
    for path, config in runs:
        manifest = path.with_name("manifest.json")
        facts = json.loads(manifest.read_text(encoding="utf-8")) if manifest.is_file() else {}
        if policy := facts.get("inputs", {}).get("policy"):
            first, where = seen.setdefault((config.suite, config.seed), (policy, path))
            if policy != first:
                raise ResultError(
                    f"{where} and {path} started from different policies (inputs.policy of their manifests): "
                    "train all runs of a suite and seed from the same SFT policy"
                )


# ------------------------------------------------------------------------------------------ files of one kind


def expected_episodes(configs: Sequence[EvaluateStage]) -> pd.DataFrame:
    """The LIBERO episodes that the configurations ask for: suite, variant, seed, task_id, init_state."""
    return pd.DataFrame(
        [
            (config.suite, config.variant, config.seed, task, state)
            for config in configs
            for task in config.tasks
            for state in config.protocol.test_states()[: config.evaluate.states]
        ],
        columns=["suite", "variant", "seed", "task_id", "init_state"],
    )


def expected_sampled(configs: Sequence[EvaluateStage]) -> pd.DataFrame:
    """The same for the sampled ones, with episode_seed."""
    return pd.DataFrame(
        [
            (config.suite, config.variant, config.seed, task, state, seed)
            for config in configs
            for task in config.tasks
            for state in config.protocol.test_states()[: config.evaluate.states]
            for seed in config.evaluate.sampled_seeds(state)
        ],
        columns=["suite", "variant", "seed", "task_id", "init_state", "episode_seed"],
    )


def load_episodes(
    paths: Sequence[Path],
    benchmark: str,
    variants: Collection[str],
    expected: pd.DataFrame,
    allow_incomplete: bool,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Episodes of one benchmark, and the expected ones that are missing.

    Raises `ResultError` for episodes that must not stand together, for another benchmark's, for other
    variants than these, and, unless `allow_incomplete`, for missing episodes and variants.
    """
    episodes = read_episodes(paths)
    overlapping(paths)
    others = sorted(set(episodes["benchmark"]) - {benchmark})
    if others:
        raise ResultError(f"column benchmark: {others} in a table of {benchmark}")
    require_known(episodes["variant"], variants)
    require_runs(zip(expected["variant"], expected["suite"], strict=True), variants, allow_incomplete)
    return episodes, missing_rows(episodes, expected, allow_incomplete)


def load_evaluations(
    paths: Sequence[Path], variants: Collection[str], allow_incomplete: bool, sampled: bool = False
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """`load_episodes` for evaluations on LIBERO: their configurations say which episodes to expect.

    Greedy episodes that were not run because a comparison was decided are among the missing ones, whether or
    not such are allowed.
    """
    configs = [read_config(path, EvaluateStage) for path in paths]
    expected = expected_sampled(configs) if sampled else expected_episodes(configs)
    episodes, missing = load_episodes(paths, "libero", variants, expected, allow_incomplete)
    stopped = episodes["status"] == "stopped"
    missing = pd.concat([missing, episodes.loc[stopped, list(expected.columns)]], ignore_index=True)
    return episodes[~stopped], missing


def may_stop_early(paths: Sequence[Path]) -> dict[tuple[str, str], int]:
    """The evaluations that were looked at while they ran: (suite, variant) → episodes that they asked for."""
    asked: dict[tuple[str, str], int] = {}
    for config in (read_config(path, EvaluateStage) for path in paths):
        if config.stops_early:
            key = config.suite, config.variant
            asked[key] = asked.get(key, 0) + len(config.tasks) * config.evaluate.states
    return asked


def load_metrics(
    paths: Sequence[Path], variants: Collection[str], allow_incomplete: bool
) -> tuple[pd.DataFrame, int]:
    """Training metrics of all runs, and the number of RL steps that are missing.

    Columns are added: the run's suite, variant and seed, and what it had used up to each step:
    `episodes_so_far`; with branches `control_steps_so_far`, and `seconds_so_far` of simulated time.
    """
    configs = [read_config(path, TrainStage) for path in paths]
    require_alike(configs)
    overlapping(paths)
    require_same_start(zip(paths, configs, strict=True))
    frames, expected = [], []
    for path, config in zip(paths, configs, strict=True):
        suite, variant, seed = config.suite, config.variant, config.seed
        frames.append(read_rows(path, RL_METRICS).assign(suite=suite, variant=variant, seed=seed))
        expected += [(suite, variant, seed, step) for step in range(1, config.train.steps + 1)]
    metrics = pd.concat(frames, ignore_index=True)
    require_known(metrics["variant"], variants)
    keys = ["suite", "variant", "seed", "step"]
    repeated = metrics[metrics.duplicated(keys)]
    if len(repeated):
        raise ResultError(f"an RL step stands twice: {repeated[keys].iloc[0].to_dict()}")
    require_runs([(config.variant, config.suite) for config in configs], variants, allow_incomplete)
    missing = missing_rows(metrics, pd.DataFrame(expected, columns=keys), allow_incomplete)
    metrics = metrics.sort_values(keys, ignore_index=True)
    # Offline, episodes are rolled out in step 1 alone.
    metrics["episodes_so_far"] = metrics["episodes"].where(metrics["environment_steps"] > 0, 0)
    runs = metrics.groupby(["suite", "variant", "seed"])
    metrics["episodes_so_far"] = runs["episodes_so_far"].cumsum()
    metrics["control_steps_so_far"] = runs["environment_steps"].cumsum()
    metrics["seconds_so_far"] = metrics["control_steps_so_far"] / CONTROL_HZ
    return metrics, len(missing)


def load_benchmark(
    paths: Sequence[Path], schema: Schema, what: str, allow_incomplete: bool
) -> tuple[pd.DataFrame, int]:
    """Files of the reward benchmark, and the number of (suite, representation) that are missing.

    The representations are ordered as in the configurations.

    Args:
        what: how messages call the files' rows, `scores` or `curves`.
    """
    frames = [read_rows(path, schema) for path in paths]
    rows = pd.concat(frames, ignore_index=True)
    configs = [read_config(path, RewardBenchmarkStage) for path in paths]
    require_alike(configs)
    expected = {(config.suite, model.name) for config in configs for model in config.world_models}
    there = set(zip(rows["suite"], rows["representation"], strict=True))
    for path, frame, config in zip(paths, frames, configs, strict=True):
        if frame.empty:  # nothing could be scored: no curves, but a file
            there.add((config.suite, path.stem.removesuffix("-curves")))
    if there - expected:
        raise ResultError(f"{what} that no config asks for: {sorted(there - expected)}")
    if expected - there and not allow_incomplete:
        raise ResultError(f"incomplete: no {what} of {sorted(expected - there)}")
    order = list(dict.fromkeys(model.name for config in configs for model in config.world_models))
    rows["representation"] = pd.Categorical(rows["representation"], order, ordered=True)
    return rows, len(expected - there)
