"""Reading YAML into models, with errors that a reader of YAML can act on."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError

Model = TypeVar("Model", bound=BaseModel)


class ConfigError(ValueError):
    """A configuration is wrong. The message names file, key, what is wrong and the nearest valid name."""


def did_you_mean(wrong: object, names: Iterable[str]) -> str:
    """` (did you mean ...?)` for the nearest of `names`, or all of them when none is near."""
    names = sorted(names)
    near = difflib.get_close_matches(str(wrong), names, n=1, cutoff=0.5)
    return f" (did you mean `{near[0]}`?)" if near else f" (valid: {', '.join(names)})"


def section_of(annotation: object) -> type[BaseModel] | None:
    """The model inside an annotation such as `Train`, `WorldModel | None` or `tuple[Encoder, ...]`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for part in get_args(annotation) if (found := section_of(part))), None)


def _model_at(model: type[BaseModel], location: Iterable[int | str]) -> type[BaseModel] | None:
    found: type[BaseModel] | None = model
    for part in location:
        if isinstance(part, str) and found is not None:
            field = found.model_fields.get(part)
            found = section_of(field.annotation) if field else None
    return found


def problems(error: ValidationError, model: type[BaseModel]) -> Iterator[tuple[str, str]]:
    """Translate pydantic's errors: (dotted key, what is wrong and the nearest valid name)."""
    items = error.errors(include_url=False)
    for item in items:
        location = item["loc"]
        if item["type"] == "too_short" and any(
            other["loc"][: len(location)] == location != other["loc"] for other in items
        ):
            continue  # a list is short only because its elements are wrong
        key = ".".join(map(str, location))
        if item["type"] == "extra_forbidden":
            section = _model_at(model, location[:-1])
            hint = did_you_mean(location[-1], section.model_fields) if section else ""
            yield key, f"unknown key{hint}"
        elif item["type"] == "literal_error":
            valid = re.findall(r"'([^']*)'", item["ctx"]["expected"])
            yield key, f"{item['input']!r} is not valid{did_you_mean(item['input'], valid)}"
        elif item["type"] == "missing":
            yield key, "is missing"
        elif item["type"] == "value_error":
            yield key, str(item["ctx"]["error"])
        else:
            yield key, f"{item['msg']}, not {item['input']!r}"


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML file that holds a mapping (an empty file is an empty one).

    Raises ConfigError when the file is missing, is not YAML, or holds something else.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not YAML: {' '.join(str(error).split())}") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: holds {values!r}, not `key: value` lines")
    return values


def validate(model: type[Model], values: Mapping[str, Any], source: str) -> Model:
    """`values` as a `model`; ConfigError, a line a problem, when they are not one."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        lines = [
            ": ".join(part for part in (source, key, what) if part) for key, what in problems(error, model)
        ]
        raise ConfigError("\n".join(lines)) from None


def load_stage(path: Path, stage: type[Model]) -> Model:
    """Read the resolved `config.yaml` of a stage, e.g. `load_stage(path, TrainStage)`."""
    return validate(stage, read_yaml(path), str(path))
