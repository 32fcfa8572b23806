"""What a stage's settings name that is not on this machine: folders of data and weights, packages."""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from srpo.config.policy import Policy
from srpo.config.stages import (
    DemosStage,
    PlusStage,
    RewardBenchmarkStage,
    SftStage,
    Stage,
    TrainStage,
    WorldModelStage,
)
from srpo.config.world_model import WorldModel

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
"""organisation/name; everything else is a folder."""


def absent(stage: Stage | WorldModelStage) -> Iterator[tuple[str, str]]:
    """(dotted key, what is wrong) of the settings that name what is not here."""
    match stage:
        case SftStage():
            yield from _checkpoint("policy", stage.policy)
        case DemosStage():
            source = stage.demos.source
            if source != "expert" and not _is_folder(source, expand_home=True):
                yield "demos.source", f"{source} is neither `expert` nor a folder here"
        case TrainStage():
            if stage.world_model is not None:
                yield from _checkpoint("world_model", stage.world_model)
            for name in stage.train.trackers:
                if find_spec(name) is None:
                    fix = f"`pip install {name}`, or take it out"
                    yield "train.trackers", f"the package {name} is not installed: {fix}"
        case PlusStage():
            if stage.plus.assets is not None and not _is_folder(stage.plus.assets):
                fix = "make it with srpo libero-plus fetch-assets, or set null"
                yield "plus.assets", f"{stage.plus.assets} is not a folder here: {fix}"
        case RewardBenchmarkStage():
            for number, model in enumerate(stage.world_models):
                yield from _checkpoint(f"world_models.{number}", model)


def _checkpoint(section: str, named: Policy | WorldModel) -> Iterator[tuple[str, str]]:
    source = named.checkpoint
    if source is None:
        return
    if _is_folder(source):
        if not (Path(source) / "config.json").is_file():
            yield f"{section}.checkpoint", f"{source} is no checkpoint's folder: it has no config.json"
    elif not HUB_ID.fullmatch(source):
        yield f"{section}.checkpoint", f"{source} is neither a folder here nor a hub id (organisation/name)"


def _is_folder(name: str, expand_home: bool = False) -> bool:
    path = Path(name)
    try:
        return (path.expanduser() if expand_home else path).is_dir()
    except (OSError, RuntimeError):  # a name that is too long; a home that nobody has
        return False
