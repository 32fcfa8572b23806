"""Reading YAML into models, with errors that a reader of YAML can act on.

YAML is read as everybody writes it: what YAML 1.1 takes for something that it does not look like is refused,
with its line (`StrictLoader`).
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError

from srpo.errors import InputError

Model = TypeVar("Model", bound=BaseModel)


class ConfigError(InputError, ValueError):
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
            expected = item["ctx"]["expected"]  # "'ddp' or 'fsdp'", "0 or 1"
            valid = re.findall(r"'([^']*)'", expected) or re.split(r", | or ", expected)
            yield key, f"{item['input']!r} is not valid{did_you_mean(item['input'], valid)}"
        elif item["type"] == "missing":
            yield key, "is missing"
        elif item["type"] == "value_error":
            yield key, str(item["ctx"]["error"])
        else:
            message = item["msg"].replace("valid tuple", "list").replace("Tuple", "List")  # in YAML's words
            yield key, f"{message}, not {item['input']!r}"


PLAIN = {
    "int": (re.compile(r"[-+]?(0|[1-9][0-9]*)"), "a decimal number"),
    "float": (re.compile(r"[^:_]+"), "a decimal number"),
    "bool": (re.compile(r"true|false", re.IGNORECASE), "true or false"),
}
"""How numbers and truth values must be written. YAML 1.1 has more ways: it reads `0136` as 94, `1:30` as 90,
`1_0` as 10, and `on` and `no` as truth values."""
KINDS = {"null", "str", "seq", "map", *PLAIN}
"""The kinds of values that settings have: no dates, sets, binary data or merged mappings (`<<`)."""
DEPTH = 30
"""Mappings and lists within one another; settings need half a dozen."""


class StrictLoader(yaml.SafeLoader):
    """PyYAML's safe loader, without what silently means something else than its writer thought.

    A ConfigError that names the line is raised for: a key that is there twice (PyYAML takes the last), the
    spellings of numbers and truth values that only YAML 1.1 knows (`PLAIN`), values of other `KINDS`,
    aliases, since what contains itself never ends, and nesting beyond `DEPTH`.
    """

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self.depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event = self.peek_event()
        if isinstance(event, yaml.AliasEvent):
            raise _refused(event, f"`*{event.anchor}`: aliases are not read; write the values out")
        if self.depth == DEPTH:
            raise _refused(event, f"lists and mappings nested more than {DEPTH} deep")
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        if node is not None:
            _require_plain(node)
        return node


def _require_plain(node: yaml.Node) -> None:
    kind = node.tag.removeprefix("tag:yaml.org,2002:")
    text = node.value if isinstance(node, yaml.ScalarNode) else ""
    if kind not in KINDS:
        raise _refused(node, f"`{text}` is read as a {kind}, which no setting is; quote it if it is a text")
    if kind in PLAIN:
        pattern, right = PLAIN[kind]
        if not pattern.fullmatch(text):
            raise _refused(node, f"`{text}` is read as {yaml.safe_load(text)}: write {right}, or quote it")
    if isinstance(node, yaml.MappingNode):
        first: dict[str, int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise _refused(key, "a list or mapping as a key")
            if key.value in first:
                raise _refused(key, f"`{key.value}` is there twice, first in line {first[key.value]}")
            first[key.value] = key.start_mark.line + 1


def _refused(where: yaml.Node | yaml.Event, why: str) -> ConfigError:
    assert where.start_mark is not None  # what is parsed from a text has a place in it
    return ConfigError(f"line {where.start_mark.line + 1}: {why}")


def parse_yaml(text: str, source: str) -> Any:
    """What a text in YAML says, read by `StrictLoader`. Raises ConfigError."""
    try:
        return yaml.load(text, StrictLoader)  # noqa: S506 (it is a safe loader)
    except ConfigError as error:
        raise ConfigError(f"{source}: {error}") from None
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a number of thousands of digits
        raise ConfigError(f"{source}: not YAML: {' '.join(str(error).split())}") from None


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML file that holds a mapping (an empty file is an empty one).

    Raises ConfigError when the file is missing, is not YAML, or holds something else.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not YAML: not text in UTF-8: {error}") from None
    values = parse_yaml(text, str(path))
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
