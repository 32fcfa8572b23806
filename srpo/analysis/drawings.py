"""The table of drawings: what each table and figure is drawn from, and what it writes.

From it come the workflow's rules, `srpo draw`, the Makefile's lists, docs/paper_map.md and what `srpo export`
copies. A new drawing is a module with a function `make` (see `srpo.analysis.draw`) and an entry here. Nothing
heavy is imported: the workflow reads this in every job.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from posixpath import normpath
from typing import Literal

from srpo.config import EvaluateStage
from srpo.config.plan import Plan
from srpo.config.sheets import baseline, ours

PACKAGE = Path(__file__).resolve().parents[1]

Root = Literal["preset", "results", "configs"]
"""Where files lie: below `results/<preset>/`, below `results/` for all presets, or below `configs/`."""
Place = Callable[[Root, str], str]
"""From a root and a path below it to the path that a caller uses."""


# Inputs.


@dataclass(frozen=True)
class Input:
    """Files of one kind that a drawing reads: an option of `srpo draw NAME`, an argument of `make`."""

    option: str
    file: str
    """Its path below its folder; `<suite>` and `<model>` stand for each of the preset's."""
    expand: Callable[[Plan, str], list[str]]
    """From `file` to the paths below `root`; none where the preset lacks what they belong to."""
    beside: tuple[str, ...] = ()
    """What is read along with each of them, from the same folder."""
    root: Root = "preset"
    kind: Literal["files", "file", "sheet"] = "files"
    """`file`: exactly one. `sheet`: one, whose rows `make` gets."""
    need: Literal["always", "if planned", "if present"] = "always"
    """`always`: without it there is no drawing. `if planned`: a preset may have none. `if present`: a file
    that nothing here makes, read where somebody has put it."""


def of_runs(*tables: str) -> Callable[[Plan, str], list[str]]:
    """A file of every run that some of the preset's tables show."""

    def expand(plan: Plan, file: str) -> list[str]:
        return [f"{run.folder}/{file}" for run in plan.runs(*tables)]

    return expand


def of_t1_pairs(plan: Plan, file: str) -> list[str]:
    """A file of T1's baseline and of our method in each suite, one seed each; none if they are the same."""
    rows = plan.rows.get("t1", ())
    if not rows or baseline(rows) == ours(rows):
        return []
    pair = (baseline(rows).name, ours(rows).name)
    runs = [run for run in plan.tables["t1"] if run.seed == plan.preset.seeds[0]]
    folders = {(run.suite, run.variant): run.folder for run in runs}
    return [
        f"{folders[suite, name]}/{file}"
        for suite in dict.fromkeys(suite for suite, _ in folders)
        for name in pair
    ]


def of_t1_pair(plan: Plan, file: str) -> list[str]:
    """The same in T1's first suite."""
    return of_t1_pairs(plan, file)[:2]


def of_benchmark(plan: Plan, file: str) -> list[str]:
    """A file of the reward benchmark, of every suite and representation."""
    paths = (
        file.replace("<suite>", suite).replace("<model>", model)
        for suite in plan.preset.suites
        for model in plan.preset.world_models
    )
    return list(dict.fromkeys(paths))


def of_values(plan: Plan, file: str) -> list[str]:
    """A file of the values of every suite that has any."""
    suites = (suite for suite in plan.preset.suites if f"values/{suite}" in plan.stages)
    return [file.replace("<suite>", suite) for suite in suites]


def as_named(plan: Plan, file: str) -> list[str]:
    """The file itself."""
    return [file]


def sheet(table: str, option: str = "sheet") -> Input:
    """The sheet of one of the preset's tables."""

    def expand(plan: Plan, file: str) -> list[str]:
        return [plan.sheets[table]] if table in plan.sheets else []

    return Input(option, "experiments/<sheet>.tsv", expand, root="configs", kind="sheet")


def evaluations(*tables: str, beside: tuple[str, ...] = ("config.yaml",)) -> Input:
    return Input("episodes", "evaluation/episodes.parquet", of_runs(*tables), beside)


def of_sampled(*tables: str) -> Callable[[Plan, str], list[str]]:
    """A file of those evaluations of some tables' runs that have sampled episodes."""

    def expand(plan: Plan, file: str) -> list[str]:
        stages = {run: plan.stages[f"{run.folder}/evaluation"] for run in plan.runs(*tables)}
        return [
            f"{run.folder}/{file}"
            for run, stage in stages.items()
            if isinstance(stage, EvaluateStage) and stage.evaluate.sampled
        ]

    return expand


def sampled_evaluations(*tables: str) -> Input:
    file = "evaluation/sampled.parquet"
    return Input("sampled", file, of_sampled(*tables), ("config.yaml",), need="if planned")


def training(*tables: str, beside: tuple[str, ...] = ("config.yaml", "manifest.json")) -> Input:
    return Input("metrics", "metrics.csv", of_runs(*tables), beside)


SWEEPS = Input("episodes", "plus/episodes.parquet", of_runs("t2"), ("config.yaml",))
TASKS = Input("tasks", "libero_plus/tasks.csv", as_named, root="results", kind="file")
CLASSIFICATION = Input(
    "classification", "libero_plus/task_classification.json", as_named, root="results", need="if present"
)
SCORES = Input(
    "scores", "reward_benchmark/<suite>/<model>.parquet", of_benchmark, ("config.yaml", "trajectories")
)
CURVES = Input(
    "curves", "reward_benchmark/<suite>/<model>-curves.parquet", of_benchmark, ("config.yaml", "trajectories")
)
TRAJECTORIES = Input("trajectories", "reward_benchmark/<suite>/trajectories", of_benchmark)
VALUES = Input("values", "values/<suite>/values.parquet", of_values, ("config.yaml",))
REWARDS = Input("rewards", "rewards.parquet", of_runs("ablations"), ("config.yaml",), need="if planned")
FILMED = Input("episodes", "evaluation/episodes.parquet", of_t1_pairs, ("config.yaml", "videos"))
PUBLISHED = Input("published", "reference/published.csv", as_named, root="configs", kind="file")


# Drawings.


@dataclass(frozen=True)
class Output:
    """A form in which drawings are written."""

    path: str
    """Below `results/<preset>/`, of a drawing `{name}`."""
    label: str = ""
    """What the report calls it; empty: it is not in the report."""


OUTPUTS = {
    "csv": Output("tables/{name}.csv", "numbers"),
    "efficiency": Output("tables/{name}-efficiency.csv", "how fast"),
    "tex": Output("tables/{name}.tex"),
    "html": Output("tables/{name}.html", "table"),
    "text": Output("tables/{name}.txt"),
    "png": Output("figures/{name}.png", "picture"),
    "pdf": Output("figures/{name}.pdf"),
    "folder": Output("{name}/{{suite}}", "videos"),
}
PICTURE = ("csv", "png", "pdf")
TABLE = ("csv", "tex", "html", "png", "pdf")


@dataclass(frozen=True)
class Drawing:
    """A table or figure."""

    name: str
    module: str
    """Of `srpo.analysis`, with a function `make`."""
    title: str
    """What the report calls it. Its caption there is `workflow/report/<name>.rst`, if there is one."""
    inputs: tuple[Input, ...]
    writes: tuple[str, ...] = PICTURE
    """Keys of `OUTPUTS`."""
    category: Literal["Tables", "Figures", "Videos"] = "Figures"
    """Its place in the report."""
    paper: str = ""
    """What it is in the paper, for docs/paper_map.md; empty: the paper has none like it."""
    table: str = ""
    """The preset's table whose runs it needs."""
    stages: tuple[str, ...] = ()
    """The stages that these runs need for it, for its cost in docs/paper_map.md."""
    filmed: bool = False
    """It needs videos, which `srpo export` leaves out: only the workflow draws it."""

    @property
    def outputs(self) -> dict[str, str]:
        """Form → path below `results/<preset>/`. A folder is written for each `{suite}`."""
        return {form: OUTPUTS[form].path.format(name=self.name) for form in self.writes}

    def shown(self, plan: Plan) -> bool:
        """Whether a preset has what it is drawn from."""
        return all(item.expand(plan, item.file) for item in self.inputs if item.need == "always")

    def files(self, plan: Plan, place: Place) -> dict[str, list[str]]:
        """Option → the paths that a preset has for it."""
        return {
            item.option: [place(item.root, path) for path in item.expand(plan, item.file)]
            for item in self.inputs
        }

    def beside(self, plan: Plan, place: Place) -> list[str]:
        """What is read along with these files."""
        paths = (
            place(item.root, normpath(f"{path.rpartition('/')[0]}/{name}"))
            for item in self.inputs
            for path in item.expand(plan, item.file)
            for name in item.beside
        )
        return list(dict.fromkeys(paths))

    def arguments(self, files: Mapping[str, list[str]], out: str) -> list[str]:
        """The command line of `srpo draw`."""
        options = [text for option, paths in files.items() if paths for text in (f"--{option}", *paths)]
        return [self.name, *options, "--out", out]

    def sources(self) -> list[str]:
        """The code that draws it: its module and what that imports from this package."""
        return sorted(_sources(f"srpo.analysis.{self.module}"))


DRAWINGS = (
    Drawing(
        "t1",
        "tables.t1",
        "T1: LIBERO success",
        (evaluations("t1"), sheet("t1"), PUBLISHED),
        TABLE,
        "Tables",
        paper="LIBERO success of SFT, offline and online SRPO",
        table="t1",
        stages=("train", "evaluate"),
    ),
    Drawing(
        "t2",
        "tables.t2",
        "T2: LIBERO-Plus success",
        (SWEEPS, TASKS, sheet("t2"), PUBLISHED),
        TABLE,
        "Tables",
        paper="LIBERO-Plus success by perturbation",
        table="t2",
        stages=("train", "plus"),
    ),
    Drawing(
        "t2_curves",
        "tables.t2_curves",
        "T2: success by magnitude",
        (SWEEPS, TASKS, sheet("t2"), CLASSIFICATION),
        category="Tables",
    ),
    Drawing(
        "t3",
        "tables.t3",
        "T3: progress rewards",
        (SCORES, PUBLISHED),
        TABLE,
        "Tables",
        paper="progress rewards by representation",
        stages=("reward_benchmark",),
    ),
    Drawing("t3_distributions", "tables.t3_distributions", "T3: distributions", (SCORES,), category="Tables"),
    Drawing("t3_truth", "tables.t3_truth", "T3: are rewards right?", (CURVES, REWARDS), TABLE, "Tables"),
    Drawing("t3_values", "tables.t3_values", "T3: what progress is", (CURVES, VALUES), TABLE, "Tables"),
    Drawing(
        "ablations",
        "tables.t1",
        "Ablations",
        (evaluations("ablations"), sheet("ablations"), PUBLISHED),
        TABLE,
        "Tables",
    ),
    Drawing(
        "gains",
        "tables.gains",
        "What training changed",
        (
            training("f2", beside=("config.yaml", "rewards.parquet")),
            sheet("f2"),
            evaluations("t1"),
            sampled_evaluations("t1"),
            sheet("t1", "t1-sheet"),
        ),
        ("csv", "text"),
        "Tables",
    ),
    Drawing(
        "f1",
        "figures.f1",
        "F1: progress along trajectories",
        (CURVES, TRAJECTORIES),
        paper="progress along example trajectories",
        stages=("reward_benchmark",),
    ),
    Drawing(
        "f2",
        "figures.f2",
        "F2: training efficiency",
        (training("f2"), sheet("f2")),
        (*TABLE, "efficiency"),
        paper="training efficiency, SRPO and GRPO",
        table="f2",
        stages=("train",),
    ),
    Drawing(
        "f3",
        "figures.f3",
        "F3: representations",
        (training("ablations"), sheet("ablations")),
        (*TABLE, "efficiency"),
        paper="training curves by representation",
        table="ablations",
        stages=("train",),
    ),
    Drawing(
        "f4",
        "figures.f4",
        "F4: exploration",
        (Input("paths", "evaluation/paths.parquet", of_t1_pair, ("config.yaml",)), sheet("t1")),
        paper="exploration: end-effector positions",
    ),
    Drawing(
        "f5",
        "figures.f5",
        "F5: reward ablations",
        (evaluations("ablations", beside=("config.yaml", "../config.yaml")), sheet("ablations")),
        paper="α, and fixed references",
        table="ablations",
        stages=("train", "evaluate"),
    ),
    Drawing("f6", "figures.f6", "F6: where failures were lost", (CURVES, TRAJECTORIES, VALUES)),
    Drawing(
        "headline",
        "figures.headline",
        "Before and after",
        (training("f2"), sheet("f2"), FILMED, sheet("t1", "t1-sheet")),
        ("png", "pdf"),
        filmed=True,
    ),
    Drawing(
        "videos",
        "figures.videos",
        "Episodes side by side",
        (FILMED, sheet("t1")),
        ("folder",),
        "Videos",
        filmed=True,
    ),
)

EVIDENCE = Drawing(
    "evidence",
    "report.evidence",
    "Evidence",
    (
        evaluations("t1", "ablations"),
        sampled_evaluations("t1", "ablations"),
        training("f2", "ablations"),
        replace(CURVES, need="if planned"),
        REWARDS,
        sheet("t1", "t1-sheet"),
        sheet("f2", "f2-sheet"),
        sheet("ablations", "ablations-sheet"),
    ),
    writes=(),
)
"""The page docs/evidence.md, which `srpo evidence` writes from shipped rows and the workflow does not."""


# Code.


@cache
def _imports(module: str) -> frozenset[str]:
    """The modules of this package that a module imports, anywhere in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(_file(module).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return frozenset(name for name in names if name.split(".")[0] == PACKAGE.name and _file(name).is_file())


def _file(module: str) -> Path:
    path = PACKAGE.joinpath(*module.split(".")[1:])
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def _sources(module: str) -> Iterator[str]:
    """The files of a module and of all that it imports, as paths from the folder that holds the package."""
    seen = {module}
    to_read = [module]
    while to_read:
        name = to_read.pop()
        yield _file(name).relative_to(PACKAGE.parent).as_posix()
        needed = _imports(name) | {name.rpartition(".")[0]} - {""}  # importing a module runs its packages
        to_read += needed - seen
        seen |= needed
