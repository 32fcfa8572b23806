"""docs/paper_map.md: each table and figure of the paper, how we make it, what it costs, and what came of it.

srpo paper-map [--results results/reference/smoke]
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from srpo.analysis.redraw import PUBLISHED
from srpo.analysis.tables import percent, read_published
from srpo.config import EvaluateStage, PlusStage, TrainStage
from srpo.config.plan import Plan, plan
from srpo.config.resolve import load_preset
from srpo.libero_plus.tasks import count
from srpo.runtime.files import write_text

TITLES = {
    "t1": ("T1", "LIBERO success of SFT, offline and online SRPO"),
    "t2": ("T2", "LIBERO-Plus success by perturbation"),
    "t3": ("T3", "progress rewards by representation"),
    "f1": ("F1", "progress along example trajectories"),
    "f2": ("F2", "training efficiency, SRPO and GRPO"),
    "f3": ("F3", "training curves by representation"),
    "f4": ("F4", "exploration: end-effector positions"),
    "f5": ("F5", "α, and fixed references"),
}
RUNS = {"t1": "t1", "t2": "t2", "f2": "f2", "f3": "ablations", "f5": "ablations"}
"""Of which table's runs each is drawn."""
INPUTS = {
    "t1": "`evaluation/episodes.parquet`",
    "t2": "`plus/episodes.parquet`",
    "t3": "`reward_benchmark/<suite>/<model>.parquet`",
    "f1": "`reward_benchmark/<suite>/<model>-curves.parquet`, `trajectories.h5`",
    "f2": "`metrics.csv`",
    "f3": "`metrics.csv`",
    "f4": "`evaluation/paths.parquet`",
    "f5": "`evaluation/episodes.parquet`",
}


def cost(name: str, found: Plan) -> str:
    """What a preset runs for one table or figure: RL runs and their rollouts, greedy episodes."""
    if name in ("t3", "f1"):
        total = sum(
            getattr(found.stages[f"reward_benchmark/{suite}"], "reward_benchmark").max_episodes  # noqa: B009
            for suite in found.preset.suites
        )
        return f"at most {total:,} rollouts of the SFT policies"
    if name == "f4":
        return "none beyond T1's"
    trained, rollouts, greedy = 0, 0, 0
    for run in found.tables.get(RUNS[name], ()):
        stage = found.stages.get(run.folder)
        if isinstance(stage, TrainStage):
            trained += 1
            steps = 1 if stage.train.offline else stage.train.steps  # offline: one set of rollouts
            rollouts += steps * stage.train.prompts * stage.train.group_size
        for folder in ("evaluation", "plus"):
            evaluated = found.stages.get(f"{run.folder}/{folder}")
            if folder == "evaluation" and isinstance(evaluated, EvaluateStage) and name in ("t1", "f5"):
                greedy += len(evaluated.tasks) * evaluated.evaluate.states
            if folder == "plus" and isinstance(evaluated, PlusStage) and name == "t2":
                plus = evaluated.plus
                greedy += count(evaluated.suite, evaluated.tasks, plus.dimensions, plus.per_dimension)
    text = f"{trained} RL runs (at least {rollouts:,} rollouts)"
    return text + (f", {greedy:,} greedy episodes" if greedy else "")


def published(name: str) -> str:
    """The paper's own headline value."""
    if name == "t1":
        rows = read_published(PUBLISHED, "T1")
        rows = rows[(rows["column"] == "average") & rows["model"].str.startswith("OpenVLA*-One")]
        return "; ".join(f"{r.model}: {percent(float(str(r.value)))}%" for r in rows.itertuples())
    if name == "t2":
        rows = read_published(PUBLISHED, "T2")
        rows = rows[rows["column"].str.contains("total") & rows["model"].str.startswith("OpenVLA*-One")]
        return "; ".join(f"{r.model}: {percent(float(str(r.value)))}%" for r in rows.itertuples())
    if name == "t3":
        rows = read_published(PUBLISHED, "T3")
        rows = rows[rows["column"] == "SC"]
        return "SC " + "; ".join(f"{r.model}: {r.value:g}" for r in rows.itertuples())
    return "a picture"


def ours(name: str, folder: Path | None) -> tuple[str, str]:
    """Our headline value with its interval, and the status."""
    path = folder / "tables" / f"{name}.csv" if folder else None
    if path is None or not path.is_file():
        return "–", "not run"
    table = pd.read_csv(path)
    if name in ("t1", "t2"):
        own = table[table["source"] == "ours"]
        column = "suite" if name == "t1" else "dimension"
        total = own[own[column].isin(("average", "macro"))]
        rows = total.to_dict("records")
        texts = [
            f"{r['label']}: {percent(r['rate'])}% [{percent(r['low'])}, {percent(r['high'])}]" for r in rows
        ]
        return "; ".join(texts), "measured"
    if name == "t3":
        rows = table[(table["source"] == "ours") & (table["metric"] == "SC")].to_dict("records")
        texts = [f"{r['representation']}: {r['value']:.2f} [{r['low']:.2f}, {r['high']:.2f}]" for r in rows]
        return "SC " + "; ".join(texts), "measured"
    if name in ("f2", "f3"):
        own = pd.read_csv(path.with_name(f"{name}-efficiency.csv"))
        own = own[(own["quantity"] == "area") & (own["unit"] == "RL steps")]
        texts = [f"{r['suite']}, {r['label']}: area {percent(r['value'])}%" for r in own.to_dict("records")]
        return "; ".join(texts), "measured"
    if name == "f4":
        rows = table.to_dict("records")
        texts = [f"{r['label']}: {r['voxels_at_equal_positions']:.0f} voxels" for r in rows]
        return "; ".join(texts) + f" (p = {rows[0]['p_value']:.3f})", "measured"
    if name == "f5":
        rows = table.to_dict("records")
        texts = [
            f"{r['suite']}, {r['label']}: {percent(r['rate'])}% [{percent(r['low'])}, {percent(r['high'])}]"
            for r in rows
        ]
        return "; ".join(dict.fromkeys(texts)), "measured"
    return f"{len(table)} points of {table['trajectory'].nunique()} trajectories", "measured"


def document(folder: Path | None) -> str:
    """The page as Markdown; `folder` holds the tables of our runs."""
    found = plan(*load_preset("paper"))
    lines = [
        "<!-- Written by `srpo paper-map`; do not edit. -->",
        "# The paper's tables and figures, and ours",
        "",
        "Command: `python -m srpo.analysis.<name>`, which the workflow calls with its inputs (below",
        "`results/<preset>/runs/<suite>/<variant>/seed<N>/` where no folder is named). Cost: what the preset",
        "`paper` runs for it; runs are shared between tables. Published: the SRPO paper (arXiv 2511.15605),",
        "by other code, policies and protocols, so for orientation. Ours: 95% intervals"
        + (f", from `{folder.as_posix()}`." if folder else "; nothing has been run yet."),
        "",
        "| | what | command | inputs | cost (`paper`) | published | ours | status |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, (number, what) in TITLES.items():
        value, status = ours(name, folder)
        cells = [
            number,
            what,
            f"`srpo.analysis.{name}`",
            INPUTS[name],
            cost(name, found),
            published(name),
            value,
        ]
        lines.append("| " + " | ".join([*cells, status]) + " |")
    return "\n".join([*lines, ""])


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="srpo paper-map", description=__doc__)
    parser.add_argument("--results", type=Path, help="folder with the tables/ of our runs")
    parser.add_argument("--out", type=Path, default=Path("docs/paper_map.md"))
    arguments = parser.parse_args(argv)
    write_text(arguments.out, document(arguments.results))


if __name__ == "__main__":
    main()
