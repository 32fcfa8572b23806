"""Layer the YAML files of `configs/` and resolve them into the stages of a preset's runs.

    base.yaml → suites/<suite>.yaml → policies/<policy>.yaml → world_models/<world model>.yaml
              → the preset's `settings` → its `suite_settings` → variants/<variant>.yaml
              → the sheet's row (`set`) → `key=value` from the command line

A file's name is the name: a preset names its policy and its world model, a sheet's row its variant.

To see one stage: `srpo resolve train --preset smoke --suite libero_spatial --variant grpo --seed 0`.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from srpo import ROOT
from srpo.config.absent import absent
from srpo.config.fields import Suite
from srpo.config.layers import COMMAND_LINE, Layer, merge, parse_overrides
from srpo.config.loading import ConfigError, did_you_mean, problems, read_yaml, validate
from srpo.config.preset import Preset
from srpo.config.protocol import Protocol
from srpo.config.sheets import SheetRow, read_sheet
from srpo.config.stages import SFT, STAGES, RunStage, Settings, Stage, WorldModelStage
from srpo.config.unread import unread
from srpo.errors import run_command

CONFIGS = ROOT / "configs"
OF_ONE_WORLD_MODEL = {"checkpoint", "revision", "pooling", "pretraining"}
"""Settings of a world model that mean something else, or nothing, for another."""
SUITES_ON_HUB = {
    "libero_spatial": "libero-spatial",
    "libero_object": "libero-object",
    "libero_goal": "libero-goal",
    "libero_10": "libero10",
}
"""What `{suite}` in a policy's checkpoint becomes: the names of the checkpoints SimpleVLA-RL released."""
RELEASED = {
    "simplevla-rl": "Haozhan72/Openvla-oft-SFT-{suite}-traj1",
    "siirl": "Sylvest/OpenVLA-AC-PD-1traj-{suite}",
}
"""One-demonstration SFT checkpoints, by who released them; siiRL calls the suite libero_10 libero-long."""

# What some files may not have: no stage of their runs reads it, or runs could not be compared any more.

SET_IN_PRESET = "set it in the preset's `settings`"
COMPARED = f"runs that tables compare are run and evaluated alike: {SET_IN_PRESET}"
UNTRAINED = "`sft` is not trained by reinforcement"
STARTED = f"every variant starts from the suite's one SFT policy: {SET_IN_PRESET}, or in `configs/policies/`"
ALIKE = {
    "protocol": COMPARED,
    "evaluate": COMPARED,
    "plus": COMPARED,
    "demos": f"a suite's variants share its demonstrations: {SET_IN_PRESET}",
    "reward_benchmark": f"it has no variants: {SET_IN_PRESET}",
    "values": f"they have no variants: {SET_IN_PRESET}",
}
FOREIGN_TO_VARIANT = {**ALIKE, "policy": STARTED, "sft": STARTED}
FOREIGN_TO_SFT = {**ALIKE, "reward": UNTRAINED, "train": UNTRAINED, "world_model": UNTRAINED}
FOREIGN_TO_SUITE = {
    "world_model": f"all suites share the world models: {SET_IN_PRESET}",
    **{
        f"protocol.{name}": f"suites of one table differ in their `max_steps` alone: {SET_IN_PRESET}"
        for name in Protocol.model_fields
        if name != "max_steps"
    },
}
FOREIGN_TO_WORLD_MODEL = {
    name: f"this file describes a world model alone: {SET_IN_PRESET}"
    for name in Settings.model_fields
    if name != "world_model"
}


@dataclass(frozen=True)
class Resolver:
    """Resolves the stages of one preset from the files below `configs`."""

    preset: Preset
    source: str
    configs: Path = CONFIGS
    overrides: Sequence[str] = ()
    here: bool = False
    """Whether to check also that folders and packages which the settings name are on this machine."""
    _names: dict[str, list[str]] = field(default_factory=dict, compare=False)
    _files: dict[str, dict[str, Any]] = field(default_factory=dict, compare=False)

    def shown(self, path: str) -> str:
        """A path below `configs`, as messages show it."""
        return f"{self.configs.name}/{path}"

    def read(self, path: str) -> dict[str, Any]:
        """A file below `configs`, read once."""
        if path not in self._files:
            self._files[path] = read_yaml(self.configs / path)
        return self._files[path]

    def require(self, path: str, name: str, source: str, key: str) -> str:
        """A path below `configs`, or a ConfigError that says who asked for `name` and what there is.

        Args:
            path: with `{}` for the name, e.g. `policies/{}.yaml`.
        """
        names = self.names(path)
        sheet_outside = path.startswith("experiments/") and _is_file(self.configs / path.format(name))
        if name not in names and not sheet_outside:
            hint = did_you_mean(name, names)
            raise ConfigError(f"{source}: {key}: there is no {self.shown(path.format(name))}{hint}")
        return path.format(name)

    def names(self, path: str) -> list[str]:
        """The names for which there is a file, e.g. of `policies/{}.yaml`."""
        if path not in self._names:
            folder, _, ending = path.partition("/{}")
            files = (self.configs / folder).rglob(f"*{ending}")
            self._names[path] = [
                file.relative_to(self.configs / folder).as_posix().removesuffix(ending) for file in files
            ]
        return self._names[path]

    @cached_property
    def sheets(self) -> dict[str, tuple[SheetRow, ...]]:
        """Table or figure → the rows of its sheet."""
        sheets: dict[str, tuple[SheetRow, ...]] = {}
        for table, spec in self.preset.tables.items():
            path = self.require("experiments/{}.tsv", spec.sheet, self.source, f"tables.{table}.sheet")
            sheets[table] = read_sheet(self.configs / path, self.shown(path))
        return sheets

    @cached_property
    def rows_by_name(self) -> dict[str, SheetRow]:
        """The rows of all sheets. Those that sheets have in common are the same run."""
        rows: dict[str, SheetRow] = {}
        for row in chain.from_iterable(self.sheets.values()):
            self.require("variants/{}.yaml", row.variant, row.source, "variant")
            other = rows.setdefault(row.name, row)
            if (row.variant, row.overrides) != (other.variant, other.overrides):
                raise ConfigError(
                    f"{row.source}: name: `{row.name}` has another variant or `set` in {other.source}: give "
                    "both rows the same, or one of them another name"
                )
        return rows

    def row(self, name: str) -> SheetRow:
        """A row of the preset's sheets, or a variant as it is. Raises ConfigError when there is neither."""
        if name in self.rows_by_name:
            return self.rows_by_name[name]
        variants = self.names("variants/{}.yaml")
        if name not in variants:
            hint = did_you_mean(name, {*self.rows_by_name, *variants})
            raise ConfigError(
                f"{COMMAND_LINE}: variant: no sheet of {self.source} has a row {name!r}, and there is no "
                f"{self.shown(f'variants/{name}.yaml')}{hint}"
            )
        return SheetRow(name, name, "ablation", name)

    def _named(self, path: str, name: str, source: str, key: str) -> Layer:
        """The file of a policy or world model; its file's name is its name."""
        path = self.require(path, name, source, key)
        section = "policy" if path.startswith("policies") else "world_model"
        values = self.read(path)
        inner = values.get(section)
        if not isinstance(inner, dict):
            raise ConfigError(f"{self.shown(path)}: {section}: is missing")
        foreign = FOREIGN_TO_WORLD_MODEL if section == "world_model" else {}
        return Layer(self.shown(path), {**values, section: {"name": name, **inner}}, foreign=foreign)

    def _row_layers(self, row: SheetRow) -> list[Layer]:
        """What a row says: its variant's file, then its `set`."""
        path = f"variants/{row.variant}.yaml"
        foreign = FOREIGN_TO_SFT if row.variant == SFT else FOREIGN_TO_VARIANT
        return [
            Layer(self.shown(path), self.read(path), foreign=foreign),
            parse_overrides(row.overrides, f"{row.source}: set", foreign),
        ]

    def settings(
        self, suite: str | None = None, row: SheetRow | None = None, world_model: str | None = None
    ) -> tuple[dict[str, Any], dict[str, str]]:
        """All layers merged: settings and origins. `world_model` None: the row's, or else the preset's."""
        above = [Layer(self.source, self.preset.settings, "settings.", self.preset.world_model)]
        if suite in self.preset.suite_settings:
            values = self.preset.suite_settings[suite]
            above.append(Layer(self.source, values, f"suite_settings.{suite}.", foreign=FOREIGN_TO_SUITE))
        if row is not None:
            above += self._row_layers(row)
        above.append(parse_overrides(self.overrides))

        layers = [Layer(self.shown("base.yaml"), self.read("base.yaml"))]
        if suite is not None:
            path = self.require("suites/{}.yaml", suite, self.source, "suites")
            layers.append(Layer(self.shown(path), self.read(path), foreign=FOREIGN_TO_SUITE))
        layers.append(self._named("policies/{}.yaml", self.preset.policy, self.source, "policy"))
        named = [
            (layer.world_model, layer.source, "world_model")
            for layer in above
            if layer.world_model is not None
        ]
        if world_model is not None:
            named.append((world_model, self.source, "world_models"))
        layers.append(self._named("world_models/{}.yaml", *named[-1]))
        return merge([*layers, *(self._about(layer, named[-1][0]) for layer in above)])

    def _about(self, layer: Layer, world_model: str) -> Layer:
        """What a layer says, but for what it says of another world model than that."""
        values = layer.values.get("world_model")
        if not isinstance(values, dict) or world_model == (layer.world_model or self.preset.world_model):
            return layer
        shared = {key: value for key, value in values.items() if key not in OF_ONE_WORLD_MODEL}
        return replace(layer, values={**layer.values, "world_model": shared})

    def stage(
        self,
        kind: str,
        suite: Suite | None = None,
        variant: str | None = None,
        seed: int | None = None,
        world_model: str | None = None,
    ) -> Stage | WorldModelStage:
        """Resolve one stage, e.g. `stage("train", "libero_goal", "grpo", 0)`. Raises ConfigError.

        Args:
            variant: the name of a row of the preset's sheets, or of a variant.
            world_model: for the stage `world_model`.
        """
        model = STAGES[kind]
        row = None if variant is None else self.row(variant)
        settings, origins = self.settings(suite, row, world_model)
        values = {name: settings[name] for name in model.model_fields if name in settings}
        values["preset"] = self.preset.name
        if suite is not None:
            values |= {"suite": suite, "tasks": self.preset.task_ids(suite)}
            origins |= {"suites": self.source, "tasks": self.source}
        if issubclass(model, RunStage):
            values |= {"variant": variant, "seed": seed}
        if "policy" in values and values["policy"].get("checkpoint") and suite is not None:
            checkpoint = suite_checkpoint(values["policy"]["checkpoint"], suite)
            values["policy"] = {**values["policy"], "checkpoint": checkpoint}
        if kind == "train":
            if variant == SFT:
                raise ConfigError(f"{COMMAND_LINE}: {SFT} has no stage train: name a variant with --variant")
            ignored = unread(settings)
            if row is not None:
                self._require_read(row, ignored)
            if "world_model" in ignored:
                values["world_model"] = None
        if kind == "reward_benchmark":
            values["world_models"] = []
            for i, name in enumerate(self.preset.world_models):
                compared, compared_origins = self.settings(suite, world_model=name)
                values["world_models"].append(compared["world_model"])
                for key, origin in compared_origins.items():
                    if key.startswith("world_model."):
                        origins[key.replace("world_model.", f"world_models.{i}.", 1)] = origin
        what = "/".join(str(part) for part in (kind, suite, variant, world_model) if part is not None)
        return self._validated(model, values, origins, what)

    def _require_read(self, row: SheetRow, ignored: Mapping[str, str]) -> None:
        """Raise ConfigError if a row says what its training ignores: its run would be that of another row."""
        for layer in self._row_layers(row):
            if layer.world_model is not None and "world_model" in ignored:
                why = ignored["world_model"]
                raise ConfigError(f"{layer.source}: world_model: {layer.world_model} is not used: {why}")
            if lines := list(layer.unwanted({key: f"is not read: {why}" for key, why in ignored.items()})):
                raise ConfigError("\n".join(lines))

    def _validated(
        self,
        model: type[Stage] | type[WorldModelStage],
        values: dict[str, Any],
        origins: dict[str, str],
        what: str,
    ) -> Stage | WorldModelStage:
        try:
            stage = model.model_validate(values)
        except ValidationError as error:
            found = list(problems(error, model))
        else:
            found = list(absent(stage)) if self.here else []
            if not found:
                return stage
        lines = []
        for key, message in found:
            # A message about several settings is traced to the files that set those it names.
            below = [name for name in origins if name == key or not key or name.startswith(f"{key}.")]
            named = [name for name in below if name == key or _mentions(message, name)] or [
                name for name in below if _mentions(message, name.split(".")[-1])
            ]
            # A key that nobody set is missing where the others of its section are.
            beside = [name for name in origins if "." in key and _section(name) == _section(key)]
            files = list(dict.fromkeys(origins[name] for name in named or beside)) or [self.source]
            keys = ", ".join(named) or key
            lines.append(f"{', '.join(files)}: {keys}: {message} (in {what})")
        raise ConfigError("\n".join(lines))


def suite_checkpoint(checkpoint: str, suite: str) -> str:
    """A policy's checkpoint for one suite: a released one by its name, with `{suite}` filled in."""
    long = checkpoint == "siirl" and suite == "libero_10"
    name = "libero-long" if long else SUITES_ON_HUB[suite]
    return RELEASED.get(checkpoint, checkpoint).replace("{suite}", name)


def _section(key: str) -> str:
    return key.rpartition(".")[0]


def _mentions(message: str, name: str) -> bool:
    return re.search(rf"\b{re.escape(name)}\b", message) is not None


def to_yaml(stage: BaseModel) -> str:
    """A stage as the text of its `config.yaml`."""
    return yaml.safe_dump(stage.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def load_preset(preset: str, configs: Path = CONFIGS) -> tuple[Preset, str]:
    """A preset by name or by path: the preset, and how messages call its file."""
    path = Path(preset)
    if path.suffix != ".yaml":
        path = configs / "presets" / f"{preset}.yaml"
        names = [file.stem for file in (configs / "presets").glob("*.yaml")]
        if preset not in names:
            raise ConfigError(f"{COMMAND_LINE}: preset: there is no {preset!r}{did_you_mean(preset, names)}")
    return validate(Preset, read_yaml(path), _short(path)), _short(path)


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name that is too long
        return False


def _short(path: Path) -> str:
    path = path.absolute()
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def main(argv: Sequence[str] | None = None) -> None:
    """Print the resolved `config.yaml` of one stage."""
    parser = argparse.ArgumentParser(prog="srpo resolve", description=main.__doc__)
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument("--preset", default="smoke", help="name or path of a preset")
    parser.add_argument("--suite", help="default: the preset's first")
    parser.add_argument(
        "--variant",
        default=SFT,
        metavar="NAME",
        help=f"a row of the preset's sheets, or a variant (default: {SFT}; needed for train)",
    )
    parser.add_argument("--seed", type=int, help="default: the preset's first")
    parser.add_argument("--world-model", metavar="NAME", help="for the stage world_model")
    parser.add_argument(
        "--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE", dest="overrides"
    )
    arguments = parser.parse_args(argv)
    if arguments.seed is not None and arguments.seed < 0:
        parser.error(f"--seed {arguments.seed}: at least 0")
    preset, source = load_preset(arguments.preset)
    resolver = Resolver(preset, source, overrides=arguments.overrides)
    if arguments.suite not in (None, *preset.suites):
        hint = did_you_mean(arguments.suite, preset.suites)
        raise ConfigError(f"{COMMAND_LINE}: suite: {source} has no {arguments.suite!r}{hint}")
    if arguments.stage == "world_model":
        name = arguments.world_model or preset.world_model
        resolver.require("world_models/{}.yaml", name, COMMAND_LINE, "--world-model")
        stage = resolver.stage("world_model", world_model=name)
    else:
        variant = arguments.variant if issubclass(STAGES[arguments.stage], RunStage) else None
        seed = preset.seeds[0] if arguments.seed is None else arguments.seed
        stage = resolver.stage(arguments.stage, arguments.suite or preset.suites[0], variant, seed)
    print(to_yaml(stage), end="")


if __name__ == "__main__":
    run_command(main)
