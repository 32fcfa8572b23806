"""What is generated from the code: the pages of all settings and of the result files, and JSON schemas.

srpo document configuration
srpo document schemas
srpo document results
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from srpo.config.loading import read_yaml, section_of
from srpo.config.parallel import Layout, Parallel
from srpo.config.preset import Preset, Table
from srpo.config.resolve import CONFIGS
from srpo.config.sheets import COLUMNS
from srpo.config.stages import STAGES, Settings
from srpo.errors import run_command
from srpo.runtime.files import write_json, write_text

INTRODUCTION = """\
# Configuration

<!-- Written by `srpo document configuration` from srpo/config/ and configs/base.yaml. Do not edit. -->

Settings are YAML files in layers, each only saying how it differs from those before it:

1. `configs/base.yaml`: the paper's values, each with where it comes from
2. `configs/suites/<suite>.yaml`
3. `configs/policies/<policy>.yaml`: the preset names the policy
4. `configs/world_models/<world model>.yaml`: the preset names the world model
5. the preset's `settings`, then its `suite_settings` of the run's suite
6. `configs/variants/<variant>.yaml`: a row of a sheet in `configs/experiments/` names the variant
7. the row's `set`, e.g. `reward.alpha=0.5`
8. the command line: `snakemake --config set="train.steps=5 train.temperature=1.2"`

Each run's resolved settings stand in its `config.yaml`. To see them beforehand, by a row's name:
`srpo resolve train --preset smoke --suite libero_spatial --variant grpo --seed 0`.
Unknown keys, wrong types and combinations that cannot be are errors before any job starts. So are keys that
are there twice, and numbers and truth values that YAML 1.1 reads otherwise than they look (`0136`, `1:30`,
`on`).

A layer has any of the sections below, except where no stage would read them. A variant and a row's `set` have
`reward`, `train` and `world_model` (the variant `sft`: `policy` and `sft`): a suite's variants start from one
SFT policy and are evaluated alike. A suite has no `world_model`, and of `protocol` its `max_steps`. What a
row sets and its training does not read, such as `reward.eps` without `dbscan`, is an error too.

In `set` and on the command line, `world_model=<name>` names another world model than the preset's, and
`world_model.<setting>=<value>` changes one of its settings. Runs whose reward needs none
(`reward.shaping: none`, `reward.references: simulator`) have none.

A dash in the column *base* means that base.yaml leaves the setting to another layer.

## Sheets

A sheet has a header and a line for each row of its table, of tab-separated columns. `#` starts a comment.

| column | meaning |
|---|---|
"""


def kind_of(schema: Mapping[str, Any]) -> str:
    """A JSON schema's type in a few words."""
    if "anyOf" in schema:
        return " or ".join(kind_of(part) for part in schema["anyOf"])
    if "enum" in schema or "const" in schema:
        return " or ".join(f"`{value}`" for value in schema.get("enum", [schema.get("const")]))
    if "$ref" in schema:
        return f"[{schema['$ref'].rsplit('/', 1)[-1]}](#{schema['$ref'].rsplit('/', 1)[-1].lower()})"
    match schema.get("type"):
        case "array":
            items = schema.get("items") or schema["prefixItems"][0]
            return f"list of {kind_of(items)}"
        case "null":
            return "`null`"
        case "object":
            return "mapping"
        case "integer" | "number" | "string" | "boolean" as name:
            low, high = schema.get("minimum"), schema.get("maximum")
            above, below = schema.get("exclusiveMinimum"), schema.get("exclusiveMaximum")
            bounds = [
                f"≥ {low:.10g}" if low is not None else "",
                f"> {above:.10g}" if above is not None else "",
                f"≤ {high:.10g}" if high is not None else "",
                f"< {below:.10g}" if below is not None else "",
            ]
            return " ".join([name, *filter(None, bounds)])
    return "anything"


def shown(value: object) -> str:
    """A value as YAML would have it on one line."""
    return f"`{value if isinstance(value, str) else json.dumps(value)}`"


def section(title: str, model: type[BaseModel], base: Mapping[str, Any] | None) -> str:
    """A heading, the model's docstring and a table of its settings."""
    properties = model.model_json_schema()["properties"]
    head = "| setting | type | base | meaning |\n|---|---|---|---|"
    rows = []
    for name in model.model_fields:
        schema = properties[name]
        value = shown(base[name]) if base is not None and name in base else "–"
        meaning = " ".join(schema.get("description", "").split())
        rows.append(f"| `{name}` | {kind_of(schema)} | {value} | {meaning} |".replace("  ", " "))
    if base is None:
        head = head.replace(" base |", "").replace("|---|---|---|---|", "|---|---|---|")
        rows = [row.replace(" – |", "", 1) for row in rows]
    docstring = " ".join((model.__doc__ or "").split())
    return "\n".join([f"## {title}", "", docstring, "", head, *rows, ""])


def documentation(configs: Path = CONFIGS) -> str:
    """The page of all settings, as Markdown."""
    base = read_yaml(configs / "base.yaml")
    columns = [f"| `{column}` | {meaning} |\n" for column, meaning in COLUMNS.items()]
    parts = [INTRODUCTION + "".join(columns)]
    nested: dict[str, type[BaseModel]] = {}
    for name, info in Settings.model_fields.items():
        model = section_of(info.annotation)
        assert model is not None
        values = base.get(name, {})
        parts.append(section(name, model, values))
        for inner in model.model_fields.values():
            if subsection := section_of(inner.annotation):
                nested[subsection.__name__] = subsection
    parts += [section(name, model, None) for name, model in nested.items()]
    models: tuple[type[BaseModel], ...] = (Preset, Parallel, Layout, Table)
    parts += [section(model.__name__, model, None) for model in models]
    return "\n".join(parts).rstrip() + "\n"


def _all_optional(schema: Any) -> Any:
    """A layer may leave anything out."""
    if isinstance(schema, dict):
        return {key: _all_optional(value) for key, value in schema.items() if key != "required"}
    return [_all_optional(value) for value in schema] if isinstance(schema, list) else schema


def schemas() -> dict[str, dict[str, Any]]:
    """JSON schemas by name: of presets, of the layers (`settings`), of each stage's config.yaml."""
    return {
        "preset": Preset.model_json_schema(),
        "settings": _all_optional(Settings.model_json_schema()),
        **{name: model.model_json_schema() for name, model in STAGES.items()},
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Command line of `srpo document`."""
    parser = argparse.ArgumentParser(
        prog="srpo document", description="Write what is generated from the code."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name, out, what in (
        ("configuration", "docs/configuration.md", "the page of all settings"),
        ("schemas", "workflow/schemas", "JSON schemas of presets, layers and stages, into a folder"),
        ("results", "docs/results_schema.md", "the page of the result files' columns"),
    ):
        command = commands.add_parser(name, help=what)
        command.add_argument("--out", type=Path, default=Path(out), help=f"default: {out}")
    arguments = parser.parse_args(argv)
    if arguments.command == "configuration":
        write_text(arguments.out, documentation())
    elif arguments.command == "schemas":
        for name, schema in schemas().items():
            write_json(arguments.out / f"{name}.schema.json", schema)
    else:
        from srpo.results.document import document

        write_text(arguments.out, document())


if __name__ == "__main__":
    run_command(main)
