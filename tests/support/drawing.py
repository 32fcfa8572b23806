"""Drawing tables and figures from made-up results, and looking at what was drawn: for tests."""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from srpo import ROOT
from srpo.analysis import draw, typeset
from srpo.analysis.published import read_published
from srpo.analysis.tables import t1, t2
from srpo.config.sheets import COLUMNS, SheetRow
from srpo.results.coverage import load_evaluations, may_stop_early
from support.synthetic_results import plus_run, plus_tasks_file

PUBLISHED = ROOT / "configs" / "reference" / "published.csv"
SHEET = {"sft": "SFT", "srpo": "SRPO"}


def sheet_of(labels: Mapping[str, str]) -> tuple[SheetRow, ...]:
    """A sheet of these rows (name → label): the first is the baseline, the last is ours."""
    names = list(labels)
    roles = dict.fromkeys(names, "ablation") | {names[-1]: "ours"} | {names[0]: "baseline"}
    return tuple(
        SheetRow(name, label, roles[name], "sft" if name == "sft" else "srpo")  # type: ignore[arg-type]
        for name, label in labels.items()
    )


def write_sheet(path: Path, labels: Mapping[str, str] = SHEET) -> Path:
    """The same as a file."""
    rows = [(row.name, row.label, row.role, row.variant) for row in sheet_of(labels)]
    path.write_text("".join("\t".join(cells) + "\n" for cells in [tuple(COLUMNS), *rows]), encoding="utf-8")
    return path


def run(name: str, out: Path, *arguments: object) -> None:
    """Call `srpo draw NAME`, writing to `out`."""
    published = ["--published", PUBLISHED] if name in ("t1", "t2", "t3") else []
    draw.main([name, *map(str, [*arguments, *published]), "--out", str(out)])


def written(out: Path) -> set[str]:
    """The names of the files that were drawn."""
    return {path.name for path in out.rglob("*") if path.is_file()}


# Tables.


def t1_of(paths: list[Path], incomplete: bool = False, labels: Mapping[str, str] = SHEET) -> pd.DataFrame:
    episodes, missing = load_evaluations(paths, labels, incomplete)
    asked = may_stop_early(paths)
    return t1.estimate(episodes, missing, sheet_of(labels), read_published(PUBLISHED, "T1"), asked)


def plus_runs(root: Path, rates: dict[str, dict[str, float]]) -> tuple[Path, list[Path]]:
    tasks = plus_tasks_file(root / "tasks.csv", ("camera", "noise"))
    return tasks, [plus_run(root, "libero_goal", variant, rate, tasks) for variant, rate in rates.items()]


def t2_of(tasks: Path, paths: list[Path], incomplete: bool = False) -> pd.DataFrame:
    episodes, missing, shards = t2.load_sweeps(paths, tasks, SHEET, incomplete)
    return t2.estimate(episodes, missing, sheet_of(SHEET), read_published(PUBLISHED, "T2"), shards)


def cell(table: pd.DataFrame, **where: str) -> dict[str, Any]:
    rows = table[np.logical_and.reduce([table[key] == value for key, value in where.items()])]
    assert len(rows) == 1
    return {str(key): value for key, value in rows.iloc[0].items()}


def tex_of(module: ModuleType, table: pd.DataFrame) -> str:
    first = [next(iter(SHEET))] if module is t2 else []
    return typeset.to_latex(module.layout(table, "Protocol: the usual.", *first))


def check_latex(tex: str) -> None:
    """Balanced braces and environments, the same number of cells in every row, no bare special character."""
    assert not re.search(r"(?<!\\)[&%#_$]{2}", tex)
    body = tex.split("\n", 1)[1]  # less the comment
    bare = re.sub(r"\\[\\&%$#_{}]", "", body)
    assert bare.count("{") == bare.count("}")
    assert "%" not in bare
    assert "#" not in bare
    assert "_" not in bare
    assert re.findall(r"\\begin\{(\w+)\}", tex) == ["table", "tabular"]
    assert re.findall(r"\\end\{(\w+)\}", tex) == ["tabular", "table"]
    columns = len(re.search(r"\\begin\{tabular\}\{@\{\}(l?c*)@", tex)[1])
    rows = [line for line in tex.split("\n") if line.endswith(r" \\") and "multicolumn" not in line]
    assert len(rows) > 1
    assert {len(re.findall(r"(?<!\\)&", line)) + 1 for line in rows} == {columns}
    assert tex.isascii()


# Figures.


def texts(figure: Figure) -> set[str]:
    FigureCanvasAgg(figure).draw()
    return {text.get_text() for text in figure.findobj(mpl.text.Text)}


def check_readable(figure: Figure) -> None:
    """The tick labels of an axis do not overlap."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    for axes in figure.axes:
        for labels in (axes.get_xticklabels(), axes.get_yticklabels()):
            boxes = [label.get_window_extent(canvas.get_renderer()) for label in labels if label.get_text()]
            for one, other in pairwise(boxes):
                assert not one.overlaps(other), [label.get_text() for label in labels]
