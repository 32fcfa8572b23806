"""docs/results_schema.md: the schemas of the result files, as Markdown."""

from __future__ import annotations

from srpo.results.schemas import IDENTITY, SCHEMAS


def document() -> str:
    """The schemas as Markdown: docs/results_schema.md."""
    text = [
        "<!-- Written by `srpo document results`; edit the schemas in srpo/results/schemas.py. -->",
        "# Result files",
        "",
        "What a run leaves behind, column by column. Writing (`write_rows`) and reading (`read_rows`) check",
        "names, types, nulls and allowed values, and name the file and the column when one is wrong. In a",
        "CSV, null is an empty field. Parquet types: str is utf8, int is int64, float is float64.",
        "",
        f"An episode is identified by {', '.join(f'`{name}`' for name in IDENTITY)};",
        "no table takes one twice, mixes presets, or mixes protocols (`max_steps` may differ by suite).",
    ]
    for schema in SCHEMAS:
        text += ["", f"## {schema.name}", "", f"One row: {schema.row}.", ""]
        if schema.added:
            filled = [
                f"`{name}` ({'null' if value is None else value})" for name, value in schema.added.items()
            ]
            text += [f"Older files that lack these are read with: {', '.join(filled)}.", ""]
        text += ["| column | type | null | meaning |", "|---|---|---|---|"]
        for name, column in schema.columns.items():
            values = f" One of {', '.join(f'`{value}`' for value in column.values)}." if column.values else ""
            null = "yes" if column.optional else ""
            text.append(
                f"| `{name}` | {column.kind} | {null} | {column.meaning.replace('|', '/')}.{values} |"
            )
    return "\n".join([*text, ""])
