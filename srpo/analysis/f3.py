"""Figure F3: training curves by the representation that rewards are measured in.

Of the runs of a sheet it shows those that differ from the sheet's first variant in their world model alone.
Every metrics.csv has its run's resolved `config.yaml` beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from srpo.analysis import f2, tables
from srpo.config import TrainStage
from srpo.results.rows import ResultError, read_config, run

OWN = {"suite", "tasks", "protocol", "variant", "seed"}
"""What two runs of a comparison may always differ in."""


def alike(configs: Sequence[TrainStage], first: str, differing: set[str]) -> set[str]:
    """The variants whose settings are those of the variant `first` but for the `differing` ones.

    Args:
        differing: dotted keys, e.g. `reward.alpha`.

    Raises:
        ResultError: `first` was not trained.
    """

    def rest(config: TrainStage) -> dict[str, Any]:
        values = config.model_dump(mode="json", exclude=OWN)
        for key in differing:
            *sections, name = key.split(".")
            inner = values
            for section in sections:
                inner = inner[section]
            inner.pop(name)
        return values

    reference = [rest(config) for config in configs if config.variant == first]
    if not reference:
        raise ResultError(f"no run of {first}, the first variant of the sheet")
    return {config.variant for config in configs if rest(config) in reference}


def main(argv: Sequence[str] | None = None) -> None:
    parser = tables.parser("f3", __doc__, table=False)
    parser.add_argument("--sheet", type=Path, required=True, help="variants and labels (TSV)")
    parser.add_argument("--metrics", type=Path, nargs="+", required=True, help="metrics.csv of every run")
    f2.add_efficiency(parser)
    arguments = parser.parse_args(argv)
    sheet = tables.read_sheet(arguments.sheet)
    configs = {path: read_config(path, TrainStage) for path in arguments.metrics}
    tables.require_alike(list(configs.values()))
    tables.require_known([config.variant for config in configs.values()], sheet)
    ran = [(config.variant, config.suite) for config in configs.values()]
    absent = tables.require_runs(ran, sheet, arguments.allow_incomplete)
    shown = alike(list(configs.values()), next(iter(sheet)), {"world_model"})
    names = {c.variant: c.world_model.name for c in configs.values() if c.world_model and c.variant in shown}
    runs = {path: config for path, config in configs.items() if config.variant in names}
    f2.show(arguments, runs, {variant: names[variant] for variant in sheet if variant in names}, absent)


if __name__ == "__main__":
    run(main)
