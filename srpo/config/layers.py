"""Layers of settings, each of which says how it differs from those before it.

Each layer is checked by itself, so that an error names the file that it stands in.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from srpo.config.loading import ConfigError, did_you_mean, parse_yaml, problems, section_of
from srpo.config.stages import Settings


@dataclass(frozen=True)
class Layer:
    """Settings and where they stand: the file, and the key of that file under which they do."""

    source: str
    values: Mapping[str, Any]
    prefix: str = ""
    world_model: str | None = None
    """The file of `configs/world_models/` that it names, if it names one."""
    foreign: Mapping[str, str] = field(default_factory=dict)
    """Dotted keys that it may not have, since no stage would read them there, each with why and where to."""

    def unwanted(self, reasons: Mapping[str, str]) -> Iterator[str]:
        """A line for each of its settings whose dotted key, or whose section, has a reason against it."""
        for key in _dotted(self.values):
            for unwanted, why in reasons.items():
                if key == unwanted or key.startswith(f"{unwanted}."):
                    yield f"{self.source}: {self.prefix}{unwanted}: {why}"


def _dotted(values: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """The keys of sections and settings, e.g. `train` and `train.steps`."""
    for name, value in values.items():
        yield f"{prefix}{name}"
        if isinstance(value, Mapping):
            yield from _dotted(value, f"{prefix}{name}.")


def merge(layers: Iterable[Layer]) -> tuple[dict[str, Any], dict[str, str]]:
    """Later layers over earlier ones: the settings, and for each dotted key the source that set it last.

    Lists are replaced as a whole. Raises ConfigError for unknown keys and wrong values, naming the layer.
    """
    settings: dict[str, Any] = {}
    origins: dict[str, str] = {}
    errors: list[str] = []
    for layer in layers:
        errors += layer.unwanted(layer.foreign)
        errors += _check(layer, layer.values, Settings, layer.prefix)
        _merge_into(settings, layer.values, layer.source, origins)
    if errors:
        raise ConfigError("\n".join(dict.fromkeys(errors)))
    return settings, origins


def _merge_into(
    settings: dict[str, Any],
    values: Mapping[str, Any],
    source: str,
    origins: dict[str, str],
    prefix: str = "",
) -> None:
    for name, value in values.items():
        key = f"{prefix}{name}"
        if isinstance(value, Mapping):
            if not isinstance(settings.get(name), dict):
                settings[name] = {}
            _merge_into(settings[name], value, source, origins, f"{key}.")
        else:
            settings[name] = value
            origins[key] = source


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
            for location, message in problems(error, inner or section):
                # pydantic's locations also name members of unions, e.g. `tuple[...]` or `constrained-int`.
                parts = [part for part in location.split(".") if part.isidentifier() or part.isdigit()]
                yield f"{layer.source}: {'.'.join([key, *parts])}: {message}"


@cache
def _adapter(section: type[BaseModel], name: str) -> TypeAdapter[Any]:
    info = section.model_fields[name]
    annotation: Any = Annotated[info.annotation, Field(), *info.metadata]
    return TypeAdapter(annotation, config=ConfigDict(strict=True))


# Settings on a command line, and in the column `set` of a sheet.

COMMAND_LINE = "command line"


def split_overrides(text: str, source: str = COMMAND_LINE) -> tuple[str, ...]:
    """`"train.steps=5 reward.alpha=0.5"` as its parts, quoted as on a shell's command line."""
    try:
        return tuple(shlex.split(text))
    except ValueError as error:
        raise ConfigError(f"{source}: `{text}`: {error}") from None


def parse_overrides(
    assignments: Sequence[str], source: str = COMMAND_LINE, foreign: Mapping[str, str] | None = None
) -> Layer:
    """`["train.steps=5", "world_model=pixel", ...]` as a layer; `foreign` as there.

    Raises ConfigError for what is not of the form key=value or is given twice.
    """
    values: dict[str, Any] = {}
    world_model: str | None = None
    for assignment in assignments:
        key, equals, value = assignment.partition("=")
        key = key.strip()
        if not equals:
            raise ConfigError(f"{source}: `{assignment}` is not of the form key=value")
        twice = ConfigError(f"{source}: {key} is given twice")
        if key == "world_model":
            if world_model is not None:
                raise twice
            world_model = value.strip()
            continue
        *sections, name = key.split(".")
        inner = values
        for section in sections:
            inner = inner.setdefault(section, {})
            if not isinstance(inner, dict):
                raise twice
        if name in inner:
            raise twice
        inner[name] = parse_yaml(value, f"{source}: {key}")
    return Layer(source, values, world_model=world_model, foreign=foreign or {})
