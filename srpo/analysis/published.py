"""Values that others published, which stand beside ours: configs/reference/published.csv."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from srpo.results.rows import read_rows
from srpo.results.schemas import Column, Schema

PUBLISHED = Schema(
    "published.csv",
    "a value that somebody published",
    {
        "table": Column("str", "which of our tables it stands beside", values=("T1", "T2", "T3")),
        "model": Column("str", "the model, as its authors call it"),
        "inputs": Column("str", "its inputs or setting", True),
        "column": Column("str", "the table's column"),
        "value": Column("float", "the value as printed"),
        "unit": Column("str", "`percent`, or null for a plain number", True),
        "source": Column("str", "where it is printed"),
        "note": Column("str", "what to know about it", True),
    },
)


def read_published(path: Path, table: str) -> pd.DataFrame:
    """Published values of one table; percentages become fractions, null text becomes ''."""
    published = read_rows(path, PUBLISHED)
    published = published[published["table"] == table].fillna({"inputs": "", "note": "", "unit": ""})
    published.loc[published["unit"] == "percent", "value"] /= 100
    return published.drop(columns=["table", "unit"])
