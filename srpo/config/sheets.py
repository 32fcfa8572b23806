"""The sheets of `configs/experiments/`: which runs a table or figure shows, and what each of them is in it.

A sheet has a header and a line for each row of its table, of tab-separated `COLUMNS`:

    name            label    role      variant  set
    grpo            GRPO     baseline  grpo
    srpo            SRPO     ours      srpo
    # ours: the paper has no such value
    srpo-alpha-0.4  α = 0.4  ablation  srpo     reward.alpha=0.4
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from srpo.config.fields import NAME_LENGTH
from srpo.config.layers import split_overrides
from srpo.config.loading import ConfigError, did_you_mean
from srpo.config.stages import SFT

Role = Literal["baseline", "ours", "ablation", "control"]
ROLES: dict[Role, str] = {
    "baseline": "what the other rows are compared with (exactly one row)",
    "ours": "the method that the sheet is about (at most one row; none where that is the baseline itself)",
    "ablation": "another method, or ours with a setting changed",
    "control": "uses what no method may know",
}
"""What a row is in its sheet."""
COLUMNS = {
    "name": "names the row's runs: their folder, `runs/<suite>/<name>/seed<N>`, and `variant` in their "
    "result rows; sheets of a preset that have a name in common share its runs",
    "label": "the row's name in tables and figures",
    "role": "; ".join(f"`{role}`: {meaning}" for role, meaning in ROLES.items()),
    "variant": "`configs/variants/<variant>.yaml`",
    "set": "settings that differ from the variant's: `key=value`, separated as on a shell's command line; "
    "may be left out",
}
"""The columns and what they hold."""


@dataclass(frozen=True)
class SheetRow:
    """A row of a sheet."""

    name: str
    label: str
    role: Role
    variant: str
    overrides: tuple[str, ...] = ()
    """`key=value` each."""
    source: str = field(default="", compare=False)
    """The file and line that it stands in, for messages."""


def read_sheet(path: Path, shown: str | None = None) -> tuple[SheetRow, ...]:
    """The rows of a sheet in order.

    Args:
        shown: how messages call the file; None: its path.

    Raises:
        ConfigError: naming file, line and column of what is wrong, and what would be right.
    """
    shown = shown or str(path)
    try:
        lines = enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
    except OSError as error:
        raise ConfigError(f"{shown}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{shown}: not text in UTF-8: {error}") from None
    content = ((number, line) for number, line in lines if not line.startswith("#"))
    if next(content, (0, ""))[1].split("\t") != list(COLUMNS):
        raise ConfigError(f"{shown}: the first line must be {', '.join(COLUMNS)}, separated by tabs")
    rows: list[SheetRow] = []
    for number, line in content:
        row = _parse(line, f"{shown}: line {number}")
        if any(row.name == other.name for other in rows):
            raise ConfigError(f"{row.source}: name: `{row.name}` is there twice")
        rows.append(row)
    if not rows:
        raise ConfigError(f"{shown}: has no rows")
    _check_roles(rows, shown)
    return tuple(rows)


def _parse(line: str, source: str) -> SheetRow:
    cells = line.split("\t")
    if len(cells) not in (len(COLUMNS) - 1, len(COLUMNS)):
        raise ConfigError(f"{source}: {len(cells)} values; must be {', '.join(COLUMNS)}, separated by tabs")
    values = dict(zip(COLUMNS, cells, strict=False))
    for column in COLUMNS:
        if column != "set" and not values[column].strip():
            raise ConfigError(f"{source}: {column}: is empty")
    name, role, variant = values["name"], values["role"], values["variant"]
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise ConfigError(f"{source}: name: {name!r} names a folder: only letters, digits, `.`, `_` and `-`")
    if len(name) > NAME_LENGTH:
        raise ConfigError(
            f"{source}: name: {len(name)} characters are too many for a folder: at most {NAME_LENGTH}"
        )
    if role not in ROLES:
        raise ConfigError(f"{source}: role: {role!r} is not valid{did_you_mean(role, ROLES)}")
    overrides = split_overrides(values.get("set", ""), f"{source}: set")
    if (name == SFT) != (variant == SFT) or (variant == SFT and overrides):
        raise ConfigError(
            f"{source}: name: the row of the variant `{SFT}`, and no other, must be named `{SFT}`, with an "
            "empty `set`: all runs of a suite start from it"
        )
    return SheetRow(name, values["label"], role, variant, overrides, source)


def _check_roles(rows: Iterable[SheetRow], shown: str) -> None:
    for role, number in (("baseline", "exactly one row"), ("ours", "at most one row")):
        names = [row.name for row in rows if row.role == role]
        if len(names) > 1 or (role == "baseline" and not names):
            raise ConfigError(f"{shown}: role: must be `{role}` in {number}, not in {len(names)}: {names}")


def baseline(rows: Iterable[SheetRow]) -> SheetRow:
    """The row that the others of its sheet are compared with."""
    return next(row for row in rows if row.role == "baseline")


def ours(rows: Iterable[SheetRow]) -> SheetRow:
    """The row of the method that a sheet is about: that of the role `ours`, or else the baseline."""
    rows = tuple(rows)
    return next((row for row in rows if row.role == "ours"), baseline(rows))


def labels(rows: Iterable[SheetRow]) -> dict[str, str]:
    """Name → label, in the sheet's order."""
    return {row.name: row.label for row in rows}
