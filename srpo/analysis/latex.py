"""Tables in LaTeX (package booktabs): rows of cells, each a value with smaller lines beneath it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

_SPECIAL = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "[": "{[}",  # after a line's end, LaTeX would take a bare one for an option
    "−": "$-$",
    "–": "--",
    "Δ": r"$\Delta$",
    "↑": r"$\uparrow$",
    "≥": r"$\geq$",
    "≤": r"$\leq$",
    "×": r"$\times$",
    "α": r"$\alpha$",
    "π": r"$\pi$",
    "·": r"$\cdot$",
    **{character: f"\\{character}" for character in "&%$#_{}"},
}


def escape(text: str) -> str:
    """Text that LaTeX prints as it stands."""
    return "".join(_SPECIAL.get(character, character) for character in text)


@dataclass(frozen=True)
class Row:
    """A label and its cells; every one is a list of lines, plain text, the first in full size."""

    label: Sequence[str]
    cells: Sequence[Sequence[str]]
    best: frozenset[int] = frozenset()
    """Cells whose first line is printed in bold."""


@dataclass(frozen=True)
class Group:
    """Rows under a rule of their own, with a heading if there is one."""

    heading: str
    rows: Sequence[Row]


def tabular(corner: str, columns: Sequence[str], groups: Sequence[Group], notes: Sequence[str]) -> str:
    """A complete `tabular` environment, with the notes as a paragraph below it."""
    width = len(columns) + 1
    lines = [
        "% Needs \\usepackage{booktabs}. Written by the workflow: edit the data, not this file.",
        r"\begingroup\footnotesize\setlength{\tabcolsep}{2.5pt}",
        f"\\begin{{tabular}}{{@{{}}l{'c' * len(columns)}@{{}}}}",
        r"\toprule",
        _line([corner, *columns]),
    ]
    for group in groups:
        if not group.rows:
            continue
        lines.append(r"\midrule")
        if group.heading:
            lines.append(f"\\multicolumn{{{width}}}{{@{{}}l}}{{\\emph{{{escape(group.heading)}}}}} \\\\")
        for row in group.rows:
            cells = [row.label, *row.cells]
            for level in range(max(len(cell) for cell in cells)):
                texts = [cell[level] if level < len(cell) else "" for cell in cells]
                lines.append(_line(texts, row.best if level == 0 else frozenset(), small=level > 0))
    lines += [r"\bottomrule", r"\end{tabular}\endgroup"]
    if notes:
        lines.append(r"\par\smallskip\noindent{\footnotesize " + escape(" ".join(notes)) + r"\par}")
    return "\n".join([*lines, ""])


def _line(cells: Sequence[str], best: frozenset[int] = frozenset(), small: bool = False) -> str:
    texts = [escape(cell) for cell in cells]
    texts = [rf"\textbf{{{text}}}" if place - 1 in best else text for place, text in enumerate(texts)]
    if small:
        texts = [f"{{\\scriptsize {text}}}" if text else "" for text in texts]
    return " & ".join(texts) + r" \\"
