"""A table for people: described once, printed in LaTeX (package booktabs) and as a page of HTML; Markdown."""

from __future__ import annotations

import html
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass


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


@dataclass(frozen=True)
class Table:
    """A whole table. All text is plain: each of the two renderers escapes it."""

    caption: str
    """What is measured, in which unit, under which protocol."""
    corner: str
    columns: Sequence[str]
    groups: Sequence[Group]
    """Those without rows are left out."""
    notes: Sequence[str]


# ----------------------------------------------------------------------------------------------------- LaTeX

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


def to_latex(table: Table) -> str:
    """A complete `table` environment, with the notes as a paragraph below."""
    width = len(table.columns) + 1
    lines = [
        "% Needs \\usepackage{booktabs}. Written by the workflow: edit the data, not this file.",
        r"\begin{table}",
        r"\centering\footnotesize\setlength{\tabcolsep}{2.5pt}",
        f"\\caption{{{escape(table.caption)}}}",
        f"\\begin{{tabular}}{{@{{}}l{'c' * len(table.columns)}@{{}}}}",
        r"\toprule",
        _line([table.corner, *table.columns]),
    ]
    for group in table.groups:
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
    lines += [r"\bottomrule", r"\end{tabular}"]
    if table.notes:
        lines.append(r"\par\smallskip\raggedright " + escape(" ".join(table.notes)))
    return "\n".join([*lines, r"\end{table}", ""])


def _line(cells: Sequence[str], best: frozenset[int] = frozenset(), small: bool = False) -> str:
    texts = [escape(cell) for cell in cells]
    texts = [rf"\textbf{{{text}}}" if place - 1 in best else text for place, text in enumerate(texts)]
    if small:
        texts = [f"{{\\scriptsize {text}}}" if text else "" for text in texts]
    return " & ".join(texts) + r" \\"


# ------------------------------------------------------------------------------------------------------ HTML

_STYLE = """\
body { font: 13px/1.35 system-ui, sans-serif; color: #000; background: #fff; margin: 1.5em; }
main { width: fit-content; max-width: 100%; overflow-x: auto; }
table { border-collapse: collapse; border-top: 2px solid; border-bottom: 2px solid; }
caption, p { text-align: left; max-width: 62em; }
caption { padding-bottom: .6em; }
th, td { padding: .25em .35em; text-align: center; vertical-align: top; font-weight: normal;
  font-variant-numeric: tabular-nums; white-space: nowrap; }
th:first-child { padding-left: 0; text-align: left; white-space: normal; min-width: 9em; }
tbody { border-top: 1px solid; }
small { display: block; color: #444; font-size: 11px; }
"""


def to_html(table: Table) -> str:
    """A page of its own: no scripts, nothing from elsewhere."""
    caption = html.escape(table.caption)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<meta charset="utf-8">\n'
        f"<title>{caption}</title>\n<style>\n{_STYLE}</style>\n"
        f"<main>\n{html_table(table)}\n</main>\n</html>\n"
    )


def html_table(table: Table) -> str:
    """The table alone, with the notes as a paragraph below: a part of a page."""
    head = "".join(f'<th scope="col">{html.escape(text)}</th>' for text in (table.corner, *table.columns))
    return "\n".join(
        [
            f"<table>\n<caption>{html.escape(table.caption)}</caption>\n<thead><tr>{head}</tr></thead>",
            *_bodies(table),
            "</table>",
            *([f"<p>{html.escape(' '.join(table.notes))}</p>"] if table.notes else []),
        ]
    )


def _bodies(table: Table) -> Iterator[str]:
    for group in table.groups:
        if not group.rows:
            continue
        yield "<tbody>"
        if group.heading:
            width = len(table.columns) + 1
            yield f'<tr><th colspan="{width}"><i>{html.escape(group.heading)}</i></th></tr>'
        for row in group.rows:
            cells = [f"<td>{_lines(cell, place in row.best)}</td>" for place, cell in enumerate(row.cells)]
            yield f'<tr><th scope="row">{_lines(row.label, False)}</th>{"".join(cells)}</tr>'
        yield "</tbody>"


def _lines(lines: Sequence[str], best: bool) -> str:
    first, *others = (html.escape(line) for line in lines)
    if best:
        first = f"<b>{first}</b>"
    return first + "".join(f"<small>{line}</small>" for line in others)


# -------------------------------------------------------------------------------------------------- Markdown


def to_markdown(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A plain table of one line a row."""
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])
