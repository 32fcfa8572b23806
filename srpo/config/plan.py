"""The plan of a preset: every stage of every run, resolved and so validated before any job starts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from srpo.config.fields import Suite
from srpo.config.loading import ConfigError
from srpo.config.parallel import misfits
from srpo.config.preset import Preset
from srpo.config.resolve import CONFIGS, Resolver
from srpo.config.sheets import SheetRow
from srpo.config.stages import (
    SFT,
    UNTRAINABLE,
    EvaluateStage,
    PlusStage,
    SftStage,
    Stage,
    TrainStage,
    ValuesStage,
    WorldModelStage,
)


class RunId(NamedTuple):
    """One policy: trained, or (variant `sft`) only fine-tuned."""

    suite: Suite
    variant: str
    """Name of its row in the sheets."""
    seed: int

    @property
    def folder(self) -> str:
        """Where it stands below `results/<preset>/`."""
        return f"runs/{self.suite}/{self.variant}/seed{self.seed}"


@dataclass(frozen=True)
class Plan:
    """Everything a preset computes.

    stages  folder below `results/<preset>/` → what its `config.yaml` holds
    tables  table or figure → the runs it shows, in the order of its sheet
    sheets  table or figure → its sheet, a path below `configs/`
    rows    table or figure → the rows of its sheet
    """

    preset: Preset
    stages: Mapping[str, Stage | WorldModelStage]
    tables: Mapping[str, tuple[RunId, ...]]
    sheets: Mapping[str, str]
    rows: Mapping[str, tuple[SheetRow, ...]]

    def runs(self, *tables: str) -> list[RunId]:
        """The runs of some tables, each once."""
        return list(dict.fromkeys(run for table in tables for run in self.tables.get(table, ())))

    def sft_of(self, suite: Suite) -> RunId:
        """The SFT run that a suite's other runs start from."""
        return RunId(suite, SFT, self.preset.seeds[0])


def plan(
    preset: Preset,
    source: str,
    configs: Path = CONFIGS,
    overrides: Sequence[str] = (),
    here: bool = False,
) -> Plan:
    """Resolve every stage of every run of a preset. Raises ConfigError for the first file that is wrong.

    Args:
        here: the runs are to be made on this machine: folders and packages that settings name must be there.
    """
    resolver = Resolver(preset, source, configs, overrides, here)
    for name in preset.world_models:
        resolver.require("world_models/{}.yaml", name, source, "world_models")
    sheets: dict[str, str] = {table: f"experiments/{spec.sheet}.tsv" for table, spec in preset.tables.items()}
    for row in resolver.sheets.get("f2", ()):
        if row.variant == SFT:
            raise ConfigError(f"{row.source}: variant: `{SFT}` has no training to show in f2")
    tables: dict[str, tuple[RunId, ...]] = {
        table: tuple(
            RunId(suite, name, seed)
            for suite in spec.suites or preset.suites
            for name in (row.name for row in resolver.sheets[table])
            for seed in (preset.seeds[:1] if name == SFT else preset.seeds)
        )
        for table, spec in preset.tables.items()
    }
    planned = Plan(preset, {}, tables, sheets, resolver.sheets)
    planned = replace(planned, stages=dict(_stages(planned, resolver)))
    if lines := dict.fromkeys(misfits(preset.parallel, planned.stages)):  # suites mostly have the same
        raise ConfigError("\n".join(f"{source}: {line}" for line in lines))
    return planned


def _stages(planned: Plan, resolver: Resolver) -> Iterator[tuple[str, Stage | WorldModelStage]]:
    """Folder and contents of every stage; some come more than once."""
    for suite in planned.preset.suites:
        sft = planned.sft_of(suite)
        stage = resolver.stage("sft", *sft)
        yield sft.folder, stage
        learns = any(run.suite == suite and run.variant != SFT for run in planned.runs(*planned.tables))
        if learns and isinstance(stage, SftStage) and not stage.policy.trainable:
            origin = resolver.settings(suite)[1]["policy.dtype"]
            raise ConfigError(f"{origin}: policy.dtype: {UNTRAINABLE} (in {sft.folder})")
        if isinstance(stage, SftStage) and stage.sft.updates:
            yield f"demos/{suite}", resolver.stage("demos", suite)
        if planned.preset.world_models:
            yield f"reward_benchmark/{suite}", resolver.stage("reward_benchmark", suite)
            values = resolver.stage("values", suite)
            if isinstance(values, ValuesStage) and values.values.branches:
                yield f"values/{suite}", values
    trained: dict[RunId, TrainStage] = {}
    for run in planned.runs(*planned.tables):
        if run.variant == SFT:
            continue
        stage = resolver.stage("train", *run)
        yield run.folder, stage
        if isinstance(stage, TrainStage):
            trained[run] = stage
            if stage.reward.references == "fixed_expert":
                yield f"demos/{run.suite}", resolver.stage("demos", run.suite)
    for run in planned.runs("t1", "ablations"):
        stage = resolver.stage("evaluate", *run)
        yield f"{run.folder}/evaluation", stage
        stops = isinstance(stage, EvaluateStage) and stage.stops_early
        if stops and planned.sft_of(run.suite) not in planned.runs("t1", "ablations"):
            raise ConfigError(
                f"{run.folder}: evaluate.stop_early: compares with the suite's {SFT}, which no table of this "
                f"preset evaluates: add {SFT} to a sheet, or set it to false"
            )
    for run in planned.runs("t2"):
        stage = resolver.stage("plus", *run)
        yield f"{run.folder}/plus", stage
        stops = isinstance(stage, PlusStage) and stage.stops_early
        if stops and planned.sft_of(run.suite) not in planned.runs("t2"):
            raise ConfigError(
                f"{run.folder}: plus.stop_early: compares with the suite's {SFT}, whose sweep is not in t2: "
                f"add {SFT} to its sheet, or set it to false"
            )
    _require_differences(trained, resolver)
    yield from _world_models(planned.preset, trained, resolver)


def _require_differences(trained: Mapping[RunId, TrainStage], resolver: Resolver) -> None:
    """Raise ConfigError if two rows name the same training: one of their labels would be false."""
    seen: dict[str, RunId] = {}
    for run, stage in trained.items():
        settings = stage.model_dump_json(exclude={"variant"})
        if (other := seen.setdefault(settings, run)) != run:
            rows = resolver.row(other.variant), resolver.row(run.variant)
            raise ConfigError(
                f"{rows[0].source} and {rows[1].source}: {other.variant} and {run.variant} would be the same "
                f"training (in {run.folder}): the command line or the preset's settings override what they "
                "differ in, or one of them is too many"
            )


def _world_models(
    preset: Preset, trained: Mapping[RunId, TrainStage], resolver: Resolver
) -> Iterator[tuple[str, WorldModelStage]]:
    """The world models that are pretrained: once for all runs, which therefore must agree on them."""
    used = {run: stage.world_model for run, stage in trained.items() if stage.world_model is not None}
    for name in dict.fromkeys([*preset.world_models, *(model.name for model in used.values())]):
        stage = resolver.stage("world_model", world_model=name)
        if not isinstance(stage, WorldModelStage) or stage.world_model.pretraining is None:
            continue
        for run, model in used.items():
            # How an episode's frames are chosen does not matter to pretraining, which makes its own clips.
            alike = model.model_copy(update={"frame_selection": stage.world_model.frame_selection})
            if model.name == name and alike != stage.world_model:
                raise ConfigError(
                    f"{resolver.row(run.variant).source}: world_model: {name} is pretrained once for all "
                    f"runs, and {run.folder} changes its settings: change them in the preset's `settings`, "
                    "or name another world model"
                )
        yield f"world_models/{name}", stage
