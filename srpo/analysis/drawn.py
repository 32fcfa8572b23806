"""What a table or figure consists of before it is written."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from srpo.analysis.typeset import Table


@dataclass(frozen=True)
class Drawn:
    """What `make` of a table's or figure's module gives; `srpo.analysis.draw` writes it.

    Which of these there are is what the drawing's entry in `srpo.analysis.drawings` says it writes.
    """

    table: pd.DataFrame | None = None
    """Its numbers, a tidy table."""
    figure: Callable[[], Figure] | None = None
    """Draws its picture; called with the project's style set."""
    typeset: Table | None = None
    """The table for people."""
    efficiency: pd.DataFrame | None = None
    """How fast each variant learns, a second tidy table."""
    text: str | None = None
    folders: Mapping[str, Callable[[Path], None]] = field(default_factory=dict)
    """Suite → writes its files into a folder."""
    missing: str = ""
    """What an incomplete figure is without; empty for a complete one."""
