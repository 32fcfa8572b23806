"""docs/paper_map.md: each table and figure of the paper, how we make it, what it costs, and what came of it.

srpo paper-map [--results results/smoke]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from srpo.analysis.drawings import DRAWINGS, Drawing
from srpo.analysis.published import read_published
from srpo.analysis.text import percent
from srpo.analysis.typeset import to_markdown
from srpo.config import EvaluateStage, PlusStage, RewardBenchmarkStage, TrainStage
from srpo.config.plan import Plan, plan
from srpo.config.resolve import CONFIGS, load_preset
from srpo.errors import run_command
from srpo.libero_plus.tasks import count
from srpo.results import ResultError
from srpo.runtime.files import write_text

Rows = Sequence[Mapping[Any, Any]]


# Cost.


def cost(drawing: Drawing, planned: Plan) -> str:
    """What a preset runs for a drawing: RL runs and their rollouts, greedy episodes."""
    if not drawing.stages:
        return "none beyond T1's"
    if "reward_benchmark" in drawing.stages:
        benchmarks = (stage for stage in planned.stages.values() if isinstance(stage, RewardBenchmarkStage))
        total = sum(stage.reward_benchmark.max_episodes for stage in benchmarks)
        return f"at most {total:,} rollouts of the SFT policies"
    trained, rollouts, greedy = 0, 0, 0
    for run in planned.runs(drawing.table):
        stage = planned.stages.get(run.folder)
        if isinstance(stage, TrainStage):
            trained += 1
            steps = 1 if stage.train.offline else stage.train.steps  # offline: one set of rollouts
            rollouts += steps * stage.train.prompts * stage.train.group_size
        if "evaluate" in drawing.stages:
            greedy += greedy_episodes(planned.stages.get(f"{run.folder}/evaluation"))
        if "plus" in drawing.stages:
            greedy += greedy_episodes(planned.stages.get(f"{run.folder}/plus"))
    text = f"{trained} RL runs (at least {rollouts:,} rollouts)"
    return text + (f", {greedy:,} greedy episodes" if greedy else "")


def greedy_episodes(stage: object) -> int:
    """Episodes of an evaluation on LIBERO or LIBERO-Plus, our own styles not counted."""
    if isinstance(stage, EvaluateStage):
        return len(stage.tasks) * stage.evaluate.episodes_per_task
    if isinstance(stage, PlusStage):
        return count(stage.suite, stage.tasks, stage.plus.dimensions, stage.plus.per_dimension)
    return 0


# The paper's own headline values.


def published(name: str) -> str:
    """The paper's own headline value of a table."""
    values = CONFIGS / "reference" / "published.csv"
    if name in ("t1", "t2"):
        rows = read_published(values, name.upper())
        total = rows["column"] == "average" if name == "t1" else rows["column"].str.contains("total")
        rows = rows[total & rows["model"].str.startswith("OpenVLA*-One")]
        return "; ".join(
            f"{r.model}{f' ({r.inputs!s})' if r.inputs else ''}: {percent(float(str(r.value)))}%"
            for r in rows.itertuples()
        )
    if name == "t3":
        rows = read_published(values, "T3")
        rows = rows[(rows["column"] == "SC") & (rows["inputs"] == "")]
        return "SC " + "; ".join(f"{r.model}: {r.value:g}" for r in rows.itertuples())
    return "a picture"


# Our headline values, from the tidy tables.


def _rates(rows: Rows, *names: str) -> str:
    texts = (
        f"{', '.join(row[name] for name in names)}: "
        f"{percent(row['rate'])}% [{percent(row['low'])}, {percent(row['high'])}]"
        for row in rows
    )
    return "; ".join(dict.fromkeys(texts))


def _totals(table: pd.DataFrame, column: str) -> str:
    total = table[(table["source"] == "ours") & table[column].isin(("average", "macro"))]
    return _rates(total.to_dict("records"), "label")


def _spearman(table: pd.DataFrame) -> str:
    """By the paper's definitions, as the published values beside them."""
    own = table[(table["source"] == "ours") & (table["definitions"] == "paper") & (table["metric"] == "SC")]
    rows = own.dropna(subset="value").to_dict("records")
    texts = (f"{r['representation']}: {r['value']:.2f} [{r['low']:.2f}, {r['high']:.2f}]" for r in rows)
    return "SC " + ("; ".join(texts) or "–")


def _areas(efficiency: pd.DataFrame) -> str:
    rows = efficiency[(efficiency["quantity"] == "area") & (efficiency["unit"] == "RL steps")]
    texts = (f"{r['suite']}, {r['label']}: area {percent(r['value'])}%" for r in rows.to_dict("records"))
    return "; ".join(texts)


def _voxels(table: pd.DataFrame) -> str:
    rows = table.to_dict("records")
    texts = [f"{r['label']}: {r['voxels_at_equal_positions']:.0f} voxels" for r in rows]
    return "; ".join(texts) + f" (p = {rows[0]['p_value']:.3f})"


HEADLINES: Mapping[str, Callable[[pd.DataFrame], str]] = {
    "t1": lambda table: _totals(table, "suite"),
    "t2": lambda table: _totals(table, "dimension"),
    "t3": _spearman,
    "f1": lambda table: f"{len(table)} points of {table['trajectory'].nunique()} trajectories",
    "f2": _areas,
    "f3": _areas,
    "f4": _voxels,
    "f5": lambda table: _rates(table.to_dict("records"), "suite", "label"),
}
"""Drawing → its headline value, from its table (of how fast variants learn, where it has one)."""


def ours(drawing: Drawing, folder: Path | None) -> tuple[str, str]:
    """Our headline value with its interval, and the status."""
    form = "efficiency" if "efficiency" in drawing.writes else "csv"
    path = folder / drawing.outputs[form] if folder else None
    if path is None or not path.is_file():
        return "–", "not run"
    return HEADLINES[drawing.name](pd.read_csv(path)), "measured"


# The page.


def document(folder: Path | None) -> str:
    """The page as Markdown; `folder` holds the tables of our runs."""
    planned = plan(*load_preset("paper"))
    lines = [
        "<!-- Written by `srpo paper-map`; do not edit. -->",
        "# The paper's tables and figures, and ours",
        "",
        "Command: what the workflow calls with the inputs, which lie below",
        "`results/<preset>/runs/<suite>/<name>/seed<N>/` where no folder is named. Cost: what the preset",
        "`paper` runs for it; runs are shared between tables. Published: the SRPO paper (arXiv 2511.15605),",
        "by other code, policies and protocols, so for orientation. Ours: 95% intervals"
        + (f", from `{folder.as_posix()}`." if folder else "; the preset `paper` has not been run."),
        "",
        to_markdown(
            ["", "what", "command", "inputs", "cost (`paper`)", "published", "ours", "status"],
            (
                [
                    drawing.name.upper(),
                    drawing.paper,
                    f"`srpo draw {drawing.name}`",
                    ", ".join(f"`{item.file}`" for item in drawing.inputs if item.root == "preset"),
                    cost(drawing, planned),
                    published(drawing.name),
                    *ours(drawing, folder),
                ]
                for drawing in DRAWINGS
                if drawing.paper
            ),
        ),
        "",
    ]
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="srpo paper-map", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--results", type=Path, help="folder with the tables/ of our runs")
    parser.add_argument("--out", type=Path, default=Path("docs/paper_map.md"))
    arguments = parser.parse_args(argv)
    if arguments.results is not None and not (arguments.results / "tables").is_dir():
        raise ResultError(
            f"{arguments.results}/tables: no such folder: name the OUT of `srpo draw all "
            f"{arguments.results} --out OUT`"
        )
    write_text(arguments.out, document(arguments.results))


if __name__ == "__main__":
    run_command(main)
