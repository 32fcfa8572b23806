"""Layer the YAML files of `configs/` and resolve them into the stages of a preset's runs.

    base.yaml → suites/<suite>.yaml → policies/<policy>.yaml → world_models/<world model>.yaml
              → the preset's `settings` → its `suite_settings` → variants/<variant>.yaml
              → `key=value` from the command line

Each layer says only how it differs from those before it, and is checked by itself, so that an error names the
file it stands in. A file's name is the name: a preset chooses its `policy`, a variant its `world_model`.

The workflow calls `plan`, which resolves and so validates every stage of every run of a preset at once.
To see one stage: `srpo resolve train --preset smoke --suite libero_goal --variant grpo --seed 0`.
"""

from __future__ import annotations

import argparse
import csv
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import yaml
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from srpo.config import (
    STAGES,
    ConfigError,
    Preset,
    Settings,
    SftStage,
    Stage,
    Suite,
    TrainStage,
    WorldModelStage,
    did_you_mean,
    problems,
    read_yaml,
    section_of,
    validate,
)

CONFIGS: Path = Path(__file__).resolve().parents[2] / "configs"
SFT = "sft"
"""The variant that is not trained by reinforcement: what every other variant starts from."""
SUITES_ON_HUB = {
    "libero_spatial": "libero-spatial",
    "libero_object": "libero-object",
    "libero_goal": "libero-goal",
    "libero_10": "libero10",
}
"""What `{suite}` in a policy's checkpoint becomes: the names of the checkpoints SimpleVLA-RL released."""


# Layers.


@dataclass(frozen=True)
class Layer:
    """Settings and where they stand: the file, and the key of that file under which they do."""

    source: str
    values: Mapping[str, Any]
    prefix: str = ""


@cache
def _adapter(section: type[BaseModel], name: str) -> TypeAdapter[Any]:
    info = section.model_fields[name]
    annotation: Any = Annotated[info.annotation, Field(), *info.metadata]
    return TypeAdapter(annotation, config=ConfigDict(strict=True))


def _check(layer: Layer, values: Mapping[str, Any], section: type[BaseModel], prefix: str) -> Iterator[str]:
    """Yield a line for each key of a layer that does not exist or has a wrong value."""
    for name, value in values.items():
        key = f"{prefix}{name}"
        if name not in section.model_fields:
            yield f"{layer.source}: {key}: unknown key{did_you_mean(name, section.model_fields)}"
            continue
        annotation = section.model_fields[name].annotation
        inner = section_of(annotation)
        if inner and isinstance(value, Mapping):
            yield from _check(layer, value, inner, f"{key}.")
            continue
        if inner is annotation:
            yield f"{layer.source}: {key}: holds settings, not {value!r}"
            continue
        try:
            _adapter(section, name).validate_python(value)
        except ValidationError as error:
            for inside, what in problems(error, inner or section):
                # pydantic's places within unions (`tuple[...]`, `constrained-int`) are no keys of ours.
                inside = ".".join(part for part in inside.split(".") if part.isidentifier() or part.isdigit())
                yield f"{layer.source}: {key}{'.' if inside else ''}{inside}: {what}"


def _merge(
    into: dict[str, Any], values: Mapping[str, Any], source: str, origins: dict[str, str], prefix: str = ""
) -> None:
    for name, value in values.items():
        key = f"{prefix}{name}"
        if isinstance(value, Mapping):
            if not isinstance(into.get(name), dict):
                into[name] = {}
            _merge(into[name], value, source, origins, f"{key}.")
        else:
            into[name] = value
            origins[key] = source


def merge(layers: Iterable[Layer]) -> tuple[dict[str, Any], dict[str, str]]:
    """Later layers over earlier ones: the settings, and for each dotted key the source that set it last.

    Lists are replaced as a whole. Raises ConfigError for unknown keys and wrong values, naming the layer.
    """
    settings: dict[str, Any] = {}
    origins: dict[str, str] = {}
    wrong: list[str] = []
    for layer in layers:
        wrong += _check(layer, layer.values, Settings, layer.prefix)
        _merge(settings, layer.values, layer.source, origins)
    if wrong:
        raise ConfigError("\n".join(dict.fromkeys(wrong)))
    return settings, origins


def override(assignments: Iterable[str]) -> Layer:
    """`["train.steps=5", ...]`, as given on the command line, as the topmost layer."""
    values: dict[str, Any] = {}
    for assignment in assignments:
        key, equals, value = assignment.partition("=")
        if not equals:
            raise ConfigError(f"command line: `{assignment}` is not of the form key=value")
        *sections, name = key.strip().split(".")
        inner = values
        for section in sections:
            inner = inner.setdefault(section, {})
            if not isinstance(inner, dict):
                raise ConfigError(f"command line: {key} is given twice")
        inner[name] = yaml.safe_load(value)
    return Layer("command line", values)


# Resolving.


@dataclass(frozen=True)
class Resolver:
    """Resolves the stages of one preset from the files below `configs`."""

    preset: Preset
    source: str
    configs: Path = CONFIGS
    overrides: Sequence[str] = ()
    _files: dict[str, dict[str, Any]] = field(default_factory=dict, compare=False)

    def shown(self, path: str) -> str:
        """A path below `configs`, as messages show it."""
        return f"{self.configs.name}/{path}"

    def read(self, path: str) -> dict[str, Any]:
        """A file below `configs`, read once."""
        if path not in self._files:
            self._files[path] = read_yaml(self.configs / path)
        return self._files[path]

    def require(self, folder: str, name: str, source: str, key: str) -> str:
        """The path of a named file, or a ConfigError that says who asked for it and what there is."""
        path = f"{folder}/{name}.yaml"
        if not (self.configs / path).is_file():
            names = [file.stem for file in (self.configs / folder).glob("*.yaml")]
            raise ConfigError(f"{source}: {key}: there is no {self.shown(path)}{did_you_mean(name, names)}")
        return path

    def _named(self, folder: str, section: str, name: str, source: str, key: str) -> Layer:
        """A policy or world model; its file's name is its name."""
        path = self.require(folder, name, source, key)
        values = self.read(path)
        inner = values.get(section)
        if not isinstance(inner, dict):
            raise ConfigError(f"{self.shown(path)}: {section}: is missing")
        return Layer(self.shown(path), {**values, section: {"name": name, **inner}})

    def world_model_of(self, variant: str) -> str | None:
        """The world model that a variant names."""
        path = self.require("variants", variant, "command line", "variant")
        name = self.read(path).get("world_model")
        if name is not None and not isinstance(name, str):
            raise ConfigError(f"{self.shown(path)}: world_model: {name!r} is not the name of a world model")
        if name is not None:
            self.require("world_models", name, self.shown(path), "world_model")
        return name

    def settings(
        self, suite: str | None = None, variant: str | None = None, world_model: str | None = None
    ) -> tuple[dict[str, Any], dict[str, str]]:
        """All layers merged: settings and origins. `world_model` None: the variant's, if it has one."""
        layers = [Layer(self.shown("base.yaml"), self.read("base.yaml"))]
        if suite is not None:
            path = self.require("suites", suite, self.source, "suites")
            layers.append(Layer(self.shown(path), self.read(path)))
        layers.append(self._named("policies", "policy", self.preset.policy, self.source, "policy"))
        source, key = self.source, "world_models"
        if world_model is None and variant is not None and (world_model := self.world_model_of(variant)):
            source, key = self.shown(f"variants/{variant}.yaml"), "world_model"
        if world_model is not None:
            layers.append(self._named("world_models", "world_model", world_model, source, key))
        layers.append(Layer(self.source, self.preset.settings, "settings."))
        if suite in self.preset.suite_settings:
            own = self.preset.suite_settings[suite]
            layers.append(Layer(self.source, own, f"suite_settings.{suite}."))
        if variant is not None:
            path = f"variants/{variant}.yaml"
            own = {name: value for name, value in self.read(path).items() if name != "world_model"}
            layers.append(Layer(self.shown(path), own))
        layers.append(override(self.overrides))
        return merge(layers)

    def stage(
        self,
        kind: str,
        suite: Suite | None = None,
        variant: str | None = None,
        seed: int | None = None,
        world_model: str | None = None,
    ) -> Stage | WorldModelStage:
        """Resolve one stage, e.g. `stage("train", "libero_goal", "grpo", 0)`. Raises ConfigError."""
        model = STAGES[kind]
        settings, origins = self.settings(suite, variant, world_model)
        values = {name: settings[name] for name in model.model_fields if name in settings}
        values["preset"] = self.preset.name
        if suite is not None:
            values |= {"suite": suite, "tasks": self.preset.task_ids(suite)}
            origins |= {"suites": self.source, "tasks": self.source}
        if "variant" in model.model_fields:
            values |= {"variant": variant, "seed": seed}
        if "policy" in values and values["policy"].get("checkpoint") and suite is not None:
            checkpoint = values["policy"]["checkpoint"].replace("{suite}", SUITES_ON_HUB[suite])
            values["policy"] = {**values["policy"], "checkpoint": checkpoint}
        if kind == "train" and variant is not None and self.world_model_of(variant) is None:
            values["world_model"] = None
        if kind == "reward_benchmark":
            values["world_models"] = []
            for i, name in enumerate(self.preset.world_models):
                own, own_origins = self.settings(suite, world_model=name)
                values["world_models"].append(own["world_model"])
                for key, origin in own_origins.items():
                    if key.startswith("world_model."):
                        origins[key.replace("world_model.", f"world_models.{i}.", 1)] = origin
        what = "/".join(str(part) for part in (kind, suite, variant, world_model) if part is not None)
        return self._validated(model, values, origins, what)

    def _validated(
        self,
        model: type[Stage] | type[WorldModelStage],
        values: dict[str, Any],
        origins: dict[str, str],
        what: str,
    ) -> Stage | WorldModelStage:
        try:
            return model.model_validate(values)
        except ValidationError as error:
            lines = []
            for key, message in problems(error, model):
                # A message about several settings is traced to the files that set those it names.
                inside = [o for o in origins if o == key or not key or o.startswith(f"{key}.")]
                named = [o for o in inside if o == key or re.search(rf"\b{re.escape(o)}\b", message)] or [
                    o for o in inside if re.search(rf"\b{o.split('.')[-1]}\b", message)
                ]
                files = list(dict.fromkeys(origins[o] for o in named)) or [self.source]
                keys = ", ".join(named) or key
                lines.append(f"{', '.join(files)}: {keys}: {message} (in {what})")
            raise ConfigError("\n".join(lines)) from None


def to_yaml(stage: BaseModel) -> str:
    """A stage as the text of its `config.yaml`."""
    return yaml.safe_dump(stage.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def load_preset(preset: str, configs: Path = CONFIGS) -> tuple[Preset, str]:
    """A preset by name or by path: the preset, and how messages call its file."""
    path = Path(preset)
    if path.suffix != ".yaml":
        path = configs / "presets" / f"{preset}.yaml"
        if not path.is_file():
            names = [file.stem for file in (configs / "presets").glob("*.yaml")]
            raise ConfigError(f"command line: preset: there is no {preset!r}{did_you_mean(preset, names)}")
    return validate(Preset, read_yaml(path), _short(path)), _short(path)


def _short(path: Path) -> str:
    path = path.absolute()
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


# The plan.


class RunId(NamedTuple):
    """One policy: trained, or (variant `sft`) only fine-tuned."""

    suite: Suite
    variant: str
    seed: int

    @property
    def folder(self) -> str:
        """Where it stands below `results/<preset>/`."""
        return f"runs/{self.suite}/{self.variant}/seed{self.seed}"


@dataclass(frozen=True)
class Plan:
    """Everything a preset computes.

    stages  folder below `results/<preset>/` → what its `config.yaml` holds
    tables  table or figure → the runs it shows, in the order of its sheet
    sheets  table or figure → its sheet, a path below `configs/`
    """

    preset: Preset
    stages: dict[str, Stage | WorldModelStage]
    tables: dict[str, tuple[RunId, ...]]
    sheets: dict[str, str]

    def runs(self, *tables: str) -> list[RunId]:
        """The runs of some tables, each once."""
        return list(dict.fromkeys(run for table in tables for run in self.tables.get(table, ())))

    def sft_of(self, suite: Suite) -> RunId:
        """The SFT run that a suite's other runs start from."""
        return RunId(suite, SFT, self.preset.seeds[0])


def read_sheet(path: Path, shown: str) -> list[str]:
    """The variants of a sheet: tab-separated columns `variant` and `label`."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{shown}: {error.strerror}") from None
    rows = csv.reader(text.splitlines(), delimiter="\t")
    if next(rows, None) != ["variant", "label"]:
        raise ConfigError(f"{shown}: the first line must be `variant`, a tab, `label`")
    variants = []
    for number, row in enumerate(rows, start=2):
        if len(row) != 2 or not all(row):
            raise ConfigError(f"{shown}: line {number}: {row} is not a variant, a tab and a label")
        if row[0] in variants:
            raise ConfigError(f"{shown}: line {number}: `{row[0]}` is there twice")
        variants.append(row[0])
    if not variants:
        raise ConfigError(f"{shown}: has no rows")
    return variants


def plan(preset: Preset, source: str, configs: Path = CONFIGS, overrides: Sequence[str] = ()) -> Plan:
    """Resolve every stage of every run of a preset. Raises ConfigError for the first file that is wrong."""
    resolver = Resolver(preset, source, configs, overrides)
    resolver.require("policies", preset.policy, source, "policy")
    for name in preset.world_models:
        resolver.require("world_models", name, source, "world_models")

    tables: dict[str, tuple[RunId, ...]] = {}
    sheets: dict[str, str] = {}
    for table, spec in preset.tables.items():
        sheet = f"experiments/{spec.sheet}.tsv"
        if not (configs / sheet).is_file():
            names = [
                str(file.relative_to(configs / "experiments").with_suffix(""))
                for file in (configs / "experiments").rglob("*.tsv")
            ]
            raise ConfigError(
                f"{source}: tables.{table}.sheet: there is no {resolver.shown(sheet)}"
                f"{did_you_mean(spec.sheet, names)}"
            )
        variants = read_sheet(configs / sheet, resolver.shown(sheet))
        for variant in variants:
            resolver.require("variants", variant, resolver.shown(sheet), "variant")
        if table == "f2" and SFT in variants:
            raise ConfigError(f"{resolver.shown(sheet)}: variant: `{SFT}` has no training to show")
        sheets[table] = sheet
        tables[table] = tuple(
            RunId(suite, variant, seed)
            for suite in spec.suites or preset.suites
            for variant in variants
            for seed in (preset.seeds[:1] if variant == SFT else preset.seeds)
        )

    found = Plan(preset, {}, tables, sheets)
    stages = found.stages
    pretrained = [*preset.world_models]
    for suite in preset.suites:
        sft = found.sft_of(suite)
        stages[sft.folder] = tuned = resolver.stage("sft", *sft)
        if isinstance(tuned, SftStage) and tuned.sft.updates:
            stages[f"demos/{suite}"] = resolver.stage("demos", suite)
        if preset.world_models:
            stages[f"reward_benchmark/{suite}"] = resolver.stage("reward_benchmark", suite)
    for run in found.runs(*tables):
        if run.variant != SFT:
            stages[run.folder] = trained = resolver.stage("train", *run)
            if isinstance(trained, TrainStage) and trained.reward.references == "fixed_expert":
                stages.setdefault(f"demos/{run.suite}", resolver.stage("demos", run.suite))
            pretrained += filter(None, [resolver.world_model_of(run.variant)])
    for run in found.runs("t1", "ablations"):
        stages[f"{run.folder}/evaluation"] = resolver.stage("evaluate", *run)
    for run in found.runs("t2"):
        stages[f"{run.folder}/plus"] = resolver.stage("plus", *run)
    for name in dict.fromkeys(pretrained):
        stage = resolver.stage("world_model", world_model=name)
        if isinstance(stage, WorldModelStage) and stage.world_model.pretraining is not None:
            stages[f"world_models/{name}"] = stage
    return found


def main(argv: Sequence[str] | None = None) -> None:
    """Print the resolved `config.yaml` of one stage."""
    parser = argparse.ArgumentParser(prog="srpo resolve", description=main.__doc__)
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument("--preset", default="smoke", help="name or path of a preset")
    parser.add_argument("--suite", help="default: the preset's first")
    parser.add_argument("--variant", default=SFT)
    parser.add_argument("--seed", type=int, help="default: the preset's first")
    parser.add_argument("--world-model", help="for the stage world_model")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides")
    arguments = parser.parse_args(argv)
    try:
        preset, source = load_preset(arguments.preset)
        resolver = Resolver(preset, source, overrides=arguments.overrides)
        if arguments.suite not in (None, *preset.suites):
            hint = did_you_mean(arguments.suite, preset.suites)
            raise ConfigError(f"command line: suite: {source} has no {arguments.suite!r}{hint}")
        if arguments.stage == "world_model":
            if arguments.world_model is None:
                raise ConfigError("command line: the stage world_model needs --world-model")
            stage = resolver.stage("world_model", world_model=arguments.world_model)
        else:
            variant = arguments.variant if "variant" in STAGES[arguments.stage].model_fields else None
            seed = preset.seeds[0] if arguments.seed is None else arguments.seed
            stage = resolver.stage(arguments.stage, arguments.suite or preset.suites[0], variant, seed)
    except ConfigError as error:
        sys.exit(f"error: {error}")
    print(to_yaml(stage), end="")


if __name__ == "__main__":
    main()
