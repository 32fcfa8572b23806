"""Figure F3: training curves by the representation that rewards are measured in.

Of the runs of a sheet it shows those that differ from the sheet's baseline in their world model alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from srpo.analysis.drawn import Drawn
from srpo.analysis.figures.f2 import make_curves
from srpo.config import TrainStage
from srpo.config.sheets import SheetRow, baseline, labels
from srpo.results import ResultError
from srpo.results.coverage import read_config, require_alike, require_known, require_runs

ALWAYS_DIFFERENT = {"suite", "tasks", "protocol", "variant", "seed"}
"""What two runs of a comparison may always differ in."""


def make(metrics: Sequence[Path], sheet: Sequence[SheetRow], allow_incomplete: bool) -> Drawn:
    """The curves of those of the runs with these metrics, each labelled by its world model."""
    configs = {path: read_config(path, TrainStage) for path in metrics}
    require_alike(list(configs.values()))
    require_known([config.variant for config in configs.values()], labels(sheet))
    ran = [(config.variant, config.suite) for config in configs.values()]
    absent = require_runs(ran, labels(sheet), allow_incomplete)
    shown = alike(list(configs.values()), baseline(sheet).name, {"world_model"})
    models = {c.variant: c.world_model.name for c in configs.values() if c.world_model and c.variant in shown}
    runs = {path: config for path, config in configs.items() if config.variant in models}
    variants = {name: models[name] for name in labels(sheet) if name in models}
    return make_curves(runs, variants, absent, allow_incomplete)


def alike(configs: Sequence[TrainStage], first: str, differing: set[str]) -> set[str]:
    """The variants whose settings are those of the variant `first` but for the `differing` ones.

    Args:
        differing: dotted keys, e.g. `reward.alpha`.

    Raises:
        ResultError: `first` was not trained.
    """

    def rest(config: TrainStage) -> dict[str, Any]:
        values = config.model_dump(mode="json", exclude=ALWAYS_DIFFERENT)
        for key in differing:
            *sections, name = key.split(".")
            inner = values
            for section in sections:
                inner = inner[section]
            inner.pop(name)
        return values

    reference = [rest(config) for config in configs if config.variant == first]
    if not reference:
        raise ResultError(f"no run of {first}, the baseline of the sheet")
    return {config.variant for config in configs if rest(config) in reference}
