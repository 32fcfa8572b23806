"""One look for all figures: sizes, fonts, and the same colour for the same variant everywhere."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

matplotlib.use("Agg")  # no display on a compute node
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from srpo.runtime.files import atomic_file

FULL_WIDTH = 7.0
COLUMN_WIDTH = 3.4
"""Inches of a page's text, and of one of its two columns."""

# Okabe & Ito's colours, told apart with every common colour blindness, less yellow: too faint on white.
BLACK, ORANGE, SKY, GREEN = "#000000", "#E69F00", "#56B4E9", "#009E73"
BLUE, VERMILLION, PURPLE = "#0072B2", "#D55E00", "#CC79A7"
PUBLISHED = "#767676"
"""Grey of everything that others measured."""

DENSITY = ListedColormap(matplotlib.colormaps["viridis_r"](np.linspace(0.12, 1, 256)))
"""Of densities, darker as there is more; without the end that is too faint on white, the more so in grey."""

RC: dict[Any, Any] = {
    "font.size": 8,
    "font.family": "DejaVu Sans",
    "axes.labelsize": 8,
    "axes.titlesize": 8,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7.5,
    "legend.fontsize": 7.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "axes.grid": True,
    "grid.color": "#E5E5E5",
    "grid.linewidth": 0.5,
    "axes.axisbelow": True,
    "lines.linewidth": 1.4,
    "legend.frameon": False,
    "figure.dpi": 200,
    "savefig.dpi": 200,
    "pdf.fonttype": 42,  # TrueType: text stays text, as venues ask
    "ps.fonttype": 42,
}

# Variants and representations by name; a representation looks like the variant that it rewards. What stands
# in one picture differs in its marker or clearly in lightness, so that it is told apart in grey too.
_LOOKS = {
    "sft": (BLACK, "s"),
    "grpo": (ORANGE, "^"),
    "srpo": (BLUE, "o"),
    "srpo-offline": (GREEN, "D"),
    "srpo-pixel": (PURPLE, "D"),
    "srpo-prefix": (GREEN, "p"),
    "srpo-simulator": (GREEN, "*"),
    "vine": (VERMILLION, "X"),
    "srpo-siirl": (VERMILLION, "v"),
    "siirl": (VERMILLION, "v"),
    "srpo-mean": (GREEN, "X"),
    "srpo-dbscan-relative": (SKY, "P"),
    "srpo-alpha-0": (VERMILLION, "<"),
    "srpo-alpha-0.3": (PURPLE, ">"),
    "srpo-alpha-0.5": (SKY, "p"),
    "srpo-alpha-1": (GREEN, "^"),
    "srpo-medoid": (PURPLE, "H"),
    "srpo-nearest": (GREEN, "H"),
    "srpo-fixed-expert": (VERMILLION, "*"),
    "srpo-linear": (SKY, "v"),
    "srpo-group": (PURPLE, "v"),
    "srpo-dinov2": (ORANGE, "h"),
    "srpo-clip": (GREEN, "s"),
    "srpo-siglip": (ORANGE, ">"),
    "srpo-imagebind": (GREEN, "d"),
    "srpo-efficientnet": (SKY, "s"),
    "pixel": (PURPLE, "D"),
    "dinov2": (ORANGE, "h"),
    "clip": (GREEN, "s"),
    "siglip": (ORANGE, ">"),
    "imagebind": (GREEN, "d"),
    "efficientnet-lite": (SKY, "s"),
    "vjepa2-tiny": (BLUE, "p"),
    "vjepa2-tiny, prefix": (GREEN, "o"),
    "distance to goal": (GREEN, "*"),
    "value, drawn again": (BLACK, "s"),
    "vjepa2-vitl": (SKY, "8"),
    "vjepa2-vitg": (BLUE, "o"),
}
_OTHERS = [(colour, marker) for marker in "*h>d" for colour in (VERMILLION, SKY, GREEN, PURPLE, BLUE, ORANGE)]


Dashes = tuple[float, Sequence[float] | None]
DASHES: tuple[Dashes, ...] = ((0, None), (0, (4, 1.5)), (0, (1, 1)), (0, (5, 1, 1, 1)))
"""Line styles, in the order of drawing: where a line lies on another, that one shows through its gaps."""


def look(name: str) -> tuple[str, str]:
    """Colour and marker of a variant or representation: a function of its name alone."""
    return _LOOKS.get(name) or _OTHERS[zlib.crc32(name.encode()) % len(_OTHERS)]


def dot(axes: Axes, y: float, estimate: tuple[float, float, float], look: tuple[str, str]) -> None:
    """A (value, low, high) of ours at height y: a filled marker on its interval."""
    value, low, high = estimate
    colour, marker = look
    axes.plot([low, high], [y, y], color=colour, linewidth=1.3, solid_capstyle="butt", zorder=2)
    axes.plot(value, y, marker, color=colour, markersize=4.5, markeredgewidth=0, clip_on=False, zorder=3)


def published_dot(axes: Axes, y: float, value: float, marker: str = "o") -> None:
    """A published value at height y: hollow, grey, without an interval."""
    axes.plot(
        value,
        y,
        marker,
        markersize=4.5,
        markerfacecolor="white",
        markeredgecolor=PUBLISHED,
        markeredgewidth=0.9,
        clip_on=False,
        zorder=3,
    )


def legend_marker(colour: str, marker: str, label: str, hollow: bool = False) -> Line2D:
    """A marker for a legend, as `dot` and (hollow) `published_dot` draw it."""
    face = "white" if hollow else colour
    return Line2D(
        [], [], marker=marker, color=colour, markerfacecolor=face, markersize=4.5, linestyle="", label=label
    )


def filled(colour: str) -> dict[str, Any]:
    """How `Axes.stairs` draws a histogram as a lighter area, so that an outline on it shows."""
    return {"fill": True, "facecolor": colour, "alpha": 0.55, "linewidth": 0}


OUTLINE: dict[str, Any] = {"fill": False, "edgecolor": BLACK, "linewidth": 1.0}
"""How it draws the histogram to set against it; like `filled`, also a look for a legend's `Patch`."""


def save(figure: Figure, stem: Path) -> None:
    """Write `stem`.png and `stem`.pdf atomically, without a date: the same data give the same bytes."""
    for suffix, metadata in ((".pdf", {"CreationDate": None}), (".png", {"Software": None})):
        with atomic_file(stem.with_name(stem.name + suffix)) as temporary:
            figure.savefig(temporary, format=suffix[1:], bbox_inches="tight", metadata=metadata)
