"""Presets: what one call of the workflow computes."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from srpo.config.fields import (
    TASKS_PER_SUITE,
    Name,
    Section,
    Seed,
    Suite,
    TaskIds,
    require_distinct,
)
from srpo.config.parallel import Parallel


class Table(Section):
    """A table or figure of runs."""

    sheet: str
    """`configs/experiments/<sheet>.tsv`: its rows, each with a name, a label and a role."""
    suites: Annotated[tuple[Suite, ...], Field(strict=False, min_length=1)] | None = None
    """Show these suites; none: all of the preset."""


OTHERS = ("reference", "figures", "libero_plus")
"""Folders of `results/` that are no preset's."""


class Preset(Section):
    """What one call of the workflow computes: `snakemake --configfile configs/presets/<name>.yaml`."""

    name: Name
    """Results stand in `results/<name>/`."""
    suites: Annotated[tuple[Suite, ...], Field(strict=False, min_length=1)]
    """LIBERO suites to run."""
    tasks: Literal["all"] | dict[Suite, TaskIds]
    """`all`, or the task ids of each suite."""
    seeds: Annotated[tuple[Seed, ...], Field(strict=False, min_length=1)]
    """Seeds of the RL runs; SFT is run once a suite, with the first."""
    policy: str
    """`configs/policies/<policy>.yaml`."""
    world_model: str
    """`configs/world_models/<world_model>.yaml`: what rewards are measured in, but for the rows of sheets
    that name another (`world_model=<name>`)."""
    parallel: Parallel = Parallel()
    """Processes, GPUs and nodes of the jobs that run the policy; none: one process each, on CPUs."""
    world_models: Annotated[tuple[str, ...], Field(strict=False)] = ()
    """`configs/world_models/<name>.yaml` compared by the reward benchmark (T3); none: no T3."""
    tables: dict[Literal["t1", "t2", "f2", "ablations"], Table]
    """Which runs there are, by what shows them, each with a sheet: `t1` (also F4 and the videos), `t2`, `f2`,
    `ablations` (also F3 and F5). Runs are shared. T3, F1 and F6 need none."""
    settings: dict[str, Any] = Field(default={})
    """Settings that differ from the layers below, as in `configs/base.yaml`."""
    suite_settings: dict[Suite, dict[str, Any]] = Field(default={})
    """Settings of single suites, over those above."""

    @field_validator("name")
    @classmethod
    def _is_no_other_folder(cls, name: str) -> str:
        if name in OTHERS:
            raise ValueError(f"{name} is taken: results/{name}/ has something else, take another name")
        return name

    @model_validator(mode="after")
    def _complete(self) -> Preset:
        for name in ("suites", "seeds", "world_models"):
            require_distinct(name, getattr(self, name))
        if self.tasks != "all" and set(self.tasks) != set(self.suites):
            raise ValueError(f"tasks must name the suites {list(self.suites)}, not {list(self.tasks)}")
        for suite in self.suite_settings:
            if suite not in self.suites:
                raise ValueError(f"suite_settings names {suite}, which suites does not have")
        for name, table in self.tables.items():
            require_distinct(f"tables: {name}: suites", table.suites or ())
            outside = set(table.suites or ()) - set(self.suites)
            if outside:
                raise ValueError(f"tables: {name} shows {sorted(outside)}, which suites does not have")
        return self

    def task_ids(self, suite: Suite) -> tuple[int, ...]:
        """Task ids of a suite that this preset runs."""
        return tuple(range(TASKS_PER_SUITE)) if self.tasks == "all" else self.tasks[suite]
