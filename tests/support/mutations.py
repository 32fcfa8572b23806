"""Mutated inputs: configurations, demonstrations and checkpoints, each read as the program reads it.

A mutation is drawn from a seed, so that a fault can be made again. Of some mutations it is known that they
make the input wrong; of the others only that reading must end with a result or with an InputError.
"""

from __future__ import annotations

import json
import random
import re
import shutil
import signal
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from safetensors.torch import load_file, save_file
from scipy.spatial.transform import Rotation

from srpo import ROOT
from srpo.config import TrainStage, read_yaml
from srpo.config.layers import parse_overrides
from srpo.config.loading import parse_yaml
from srpo.config.plan import Plan, plan
from srpo.config.resolve import CONFIGS, load_preset, to_yaml
from srpo.demos import read_demonstrations
from srpo.demos.hdf5 import IMAGES, LAYOUT, write_recordings
from srpo.errors import InputError
from srpo.policies.checkpoints import load_policy, save_policy
from support.policies import small_policy

SECONDS = 60
"""After which reading an input is a hang."""


@dataclass(frozen=True)
class Mutation:
    """What was changed, and whether the input is known to be wrong now."""

    what: str
    wrong: bool = False


class HangError(BaseException):
    """Reading does not end. No Exception, which the program might catch."""


@contextmanager
def deadline() -> Iterator[None]:
    """Raise HangError after SECONDS."""

    def ring(*_: object) -> None:
        raise HangError

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


class Target:
    """A kind of input, in a folder of its own: how it is mutated, and how it is read."""

    name: str

    def mutate(self, rng: random.Random) -> Mutation:
        """Restore the input, and change it in one way."""
        raise NotImplementedError

    def read(self) -> None:
        """Read it. Raises InputError, or AssertionError for what was dropped on the way."""
        raise NotImplementedError


def fault(target: Target, seed: int) -> tuple[str | None, bool]:
    """What is wrong with how a mutated input was read, and whether it was refused."""
    mutation = target.mutate(random.Random(f"{target.name} {seed}"))
    try:
        with deadline():
            target.read()
    except InputError as error:
        return (None if str(error).strip() else f"{target.name} {seed}: {mutation.what}: no message"), True
    except HangError:
        return f"{target.name} {seed}: {mutation.what}: hangs", False
    except Exception:
        return f"{target.name} {seed}: {mutation.what}: {traceback.format_exc()}", False
    return (f"{target.name} {seed}: {mutation.what}: accepted" if mutation.wrong else None), False


# Text.

CHARACTERS = "\0\t\n\r :{}[]&*!|>'\"%@`#,-?~=<\\é\u2028\ufeff0aZ"


def spoil_text(content: bytes, rng: random.Random) -> tuple[bytes, str]:
    """Bytes of a text with something cut, doubled, exchanged or put in at random."""
    lines = content.splitlines(keepends=True)
    match rng.choice(["cut", "byte", "character", "drop", "exchange", "indent", "repeat"]):
        case "cut":
            end = rng.randrange(len(content) + 1)
            return content[:end], f"cut at byte {end}"
        case "byte":
            place, byte = rng.randrange(len(content)), rng.randrange(256)
            return content[:place] + bytes([byte]) + content[place + 1 :], f"byte {place} is {byte}"
        case "character":
            place, character = rng.randrange(len(content)), rng.choice(CHARACTERS)
            return content[:place] + character.encode() + content[place:], f"{character!r} at byte {place}"
        case "drop":
            number = rng.randrange(len(lines))
            return b"".join(lines[:number] + lines[number + 1 :]), f"without line {number + 1}"
        case "exchange":
            one, other = rng.randrange(len(lines)), rng.randrange(len(lines))
            lines[one], lines[other] = lines[other], lines[one]
            return b"".join(lines), f"lines {one + 1} and {other + 1} exchanged"
        case "indent":
            number = rng.randrange(len(lines))
            lines[number] = b"  " + lines[number]
            return b"".join(lines), f"line {number + 1} indented"
    number, times = rng.randrange(len(lines)), rng.choice([1, 50])
    return b"".join(
        [*lines[:number], *lines[number : number + 1] * times, *lines[number:]]
    ), f"line {number + 1} repeated"


# Configurations.

WRONG_VALUES = [
    "0136",
    "1:30",
    "1_0",
    "0x1F",
    "0b11",
    "on",
    "No",
    "2024-01-31",
    "!!binary aGk=",
    "!!set {a}",
    "*x",
    "&x [*x]",
    "{a: 1, a: 2}",
    "[1",
    ".nan",
    ".inf",
    "!!python/object/apply:os.getcwd []",
    "'" + "x" * 300 + "'",
    "9" * 5000,
    "[" * 500,
    "{? [a] : 1}",
    '"\\0"',
    "-7",
]
"""Of these no setting has one, wherever it stands."""
ODD_VALUES = [
    "null",
    "true",
    "0",
    "1",
    "1e400",
    "5e-6",
    "''",
    "[]",
    "{}",
    "[0, 0]",
    "9" * 20,
    "libero_10",
    "0.5",
    "~",
    "~nobody/x",
]
WRONG_SETS = [
    "policy.lora.rank=8",
    "sft.updates=3",
    "demos.per_task=2",
    "protocol.max_steps=9",
    "evaluate.states=3",
    "train",
    "plus.seed=1",
    "reward_benchmark.seed=1",
    "train.steps=[1",
    "train.steps=1 train.steps=2",
    "train.steps=010",
    "train.steps='",
    "world_model=no",
    "train.steps.x=1",
    "=1",
    "train={a",
    "reward.eps_relative=on",
]
FOREIGN = {
    "variants": [
        "policy: {lora: null}",
        "sft: {updates: 1}",
        "evaluate: {states: 2}",
        "protocol: {max_steps: 9}",
    ],
    "suites": ["world_model: {frames: 2}"],
    "world_models": ["train: {steps: 1}", "reward: {alpha: 0.5}"],
}
KEY = re.compile(r"( *)([a-z_0-9]+):( .*)?")


class Configurations(Target):
    """A copy of configs/ with the example preset, planned."""

    name = "configuration"
    files = (
        "presets/example.yaml",
        "base.yaml",
        "suites/libero_goal.yaml",
        "policies/tiny.yaml",
        "world_models/vjepa2-tiny.yaml",
        "world_models/pixel.yaml",
        "variants/grpo.yaml",
        "variants/srpo.yaml",
        "variants/sft.yaml",
        "experiments/tiny/t1.tsv",
        "experiments/tiny/t2.tsv",
        "experiments/tiny/f2.tsv",
    )

    def __init__(self, folder: Path) -> None:
        self.configs = shutil.copytree(CONFIGS, folder / "configs")
        shutil.copy(ROOT / "tests/example.yaml", self.configs / "presets")
        # So that there is a row whose settings are all read.
        with (self.configs / "experiments/tiny/f2.tsv").open("a") as sheet:
            sheet.write("tuned\tTuned\tablation\tsrpo\ttrain.learning_rate=1e-5 reward.alpha=0.3\n")
        self.contents = {file: (self.configs / file).read_bytes() for file in self.files}

    def mutate(self, rng: random.Random) -> Mutation:
        for file, content in self.contents.items():
            (self.configs / file).write_bytes(content)
        file = rng.choice(self.files)
        content = self.contents[file]
        if rng.random() < 0.3:
            new, what = spoil_text(content, rng)
            mutation = Mutation(what)
        else:
            edit = self.edit_sheet if file.endswith(".tsv") else self.edit_yaml
            text, mutation = edit(file, content.decode(), rng)
            new = text.encode()
        (self.configs / file).write_bytes(new)
        return Mutation(f"{file}: {mutation.what}", mutation.wrong)

    def edit_yaml(self, file: str, text: str, rng: random.Random) -> tuple[str, Mutation]:
        folder = file.split("/")[0]
        lines = text.splitlines()
        keyed = [number for number, line in enumerate(lines) if KEY.fullmatch(line)]
        if not keyed or (folder in FOREIGN and rng.random() < 0.3):
            section = rng.choice(FOREIGN.get(folder, ["nothing: 1"]))
            if file == "variants/sft.yaml":
                section = rng.choice(["train: {steps: 1}", "demos: {seed: 1}", "plus: {seed: 1}"])
            return f"{text}\n{section}\n", Mutation(f"with {section}", wrong=True)
        number = rng.choice(keyed)
        match = KEY.fullmatch(lines[number])
        assert match is not None
        indent, key, value = match.groups()
        match rng.choice(["twice", "misspelt", "wrong", "odd"]):
            case "twice":
                lines.insert(number, lines[number])
                mutation = Mutation(f"{key} twice", wrong=True)
            case "misspelt":
                lines[number] = f"{indent}{key}z:{value or ''}"
                mutation = Mutation(f"{key}z", wrong=True)
            case "wrong":
                chosen = rng.choice(WRONG_VALUES)
                lines[number] = f"{indent}{key}: {chosen}"
                mutation = Mutation(f"{key}: {chosen[:50]}", wrong=True)
            case _:
                chosen = rng.choice(ODD_VALUES)
                lines[number] = f"{indent}{key}: {chosen}"
                mutation = Mutation(f"{key}: {chosen}")
        return "\n".join(lines) + "\n", mutation

    def edit_sheet(self, file: str, text: str, rng: random.Random) -> tuple[str, Mutation]:
        lines = text.splitlines()
        number = rng.randrange(1, len(lines))
        cells = lines[number].split("\t")
        match rng.choice(["twice", "long", "set", "cell"]):
            case "twice":
                lines.append(lines[number])
                mutation = Mutation(f"row {number} twice", wrong=True)
            case "long":
                cells[0] = cells[0] * 100
                mutation = Mutation(f"row {number} with a name of {len(cells[0])} characters", wrong=True)
            case "set":
                chosen = rng.choice(WRONG_SETS)
                cells[4:] = [chosen]
                mutation = Mutation(f"row {number} sets {chosen}", wrong=True)
            case _:
                column, chosen = rng.randrange(len(cells)), rng.choice([*ODD_VALUES, "", "../x", "é", "sft"])
                cells[column] = chosen
                mutation = Mutation(f"row {number}, column {column}: {chosen!r}")
        if lines[number] != "\t".join(cells):
            lines[number] = "\t".join(cells)
        return "\n".join(lines) + "\n", mutation

    def read(self) -> None:
        planned = plan(*load_preset("example", self.configs), self.configs, here=True)
        for stage in planned.stages.values():
            assert type(stage).model_validate(parse_yaml(to_yaml(stage), "itself")) == stage
        self.require_applied(planned)

    def require_applied(self, planned: Plan) -> None:
        """All that the rows and their variants say is in the resolved stages of their runs."""
        rows = {row.name: row for table in planned.rows.values() for row in table}
        for run in planned.runs(*planned.tables):
            row, stage = rows[run.variant], planned.stages[run.folder]
            said = leaves(read_yaml(self.configs / f"variants/{row.variant}.yaml"))
            said |= leaves(parse_overrides(row.overrides).values)
            found = leaves(stage.model_dump(mode="json"))
            if isinstance(stage, TrainStage):
                for key, value in said.items():
                    assert found[key] == value or float(found[key]) == float(value), f"{key} of {row.name}"


def leaves(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted key → value."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        inner = leaves(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
        found |= inner
    return found


# Demonstrations.


def recording(rng: np.random.Generator, steps: int) -> dict[str, Any]:
    """A demonstration of random motion in LIBERO's conventions, whose hand closes half-way."""
    position, axis_angle = rng.uniform(-1, 1, (2, steps, 3))
    command = np.where(np.arange(steps) < steps // 2, -1.0, 1.0)
    opening = 0.04 * np.cumprod(np.where(np.append(-1.0, command[:-1]) > 0, 0.5, 1.0))
    fingers, joints = np.stack([opening, -opening], axis=1), rng.uniform(-1, 1, (steps, 7))
    time = 0.05 * np.arange(1, steps + 1)[:, None]
    end = (np.arange(steps) == steps - 1).astype(np.uint8)
    return {
        "actions": np.hstack([rng.uniform(-1, 1, (steps, 6)), command[:, None]]),
        "states": np.hstack([time, joints, rng.uniform(-1, 1, (steps, 22))]),
        "robot_states": np.hstack([fingers, position, Rotation.from_rotvec(axis_angle).as_quat()]),
        "rewards": end,
        "dones": end,
        IMAGES: rng.integers(0, 256, (steps, 16, 16, 3)).astype(np.uint8),
        "obs/ee_pos": position,
        "obs/ee_ori": axis_angle,
        "obs/ee_states": np.hstack([position, axis_angle]),
        "obs/gripper_states": fingers,
        "obs/joint_states": joints,
    }


def replace(group: h5py.Group, name: str, values: Any) -> None:
    del group[name]
    group.create_dataset(name, data=values)


class Demonstrations(Target):
    """A demonstration file of two short demonstrations."""

    name = "demonstrations"

    def __init__(self, folder: Path) -> None:
        self.file = folder / "turn_on_the_stove_demo.hdf5"
        rng = np.random.default_rng(0)
        attributes = {"problem_info": "{}", "macros_image_convention": "opengl", "tag": "libero-v1"}
        write_recordings(self.file, attributes, [recording(rng, 5), recording(rng, 7)])
        self.content = self.file.read_bytes()

    def mutate(self, rng: random.Random) -> Mutation:
        self.file.write_bytes(self.content)
        if rng.random() < 0.5:
            return self.spoil_bytes(rng)
        name = rng.choice(list(LAYOUT))
        with h5py.File(self.file, "r+") as file:
            group = file[f"data/demo_{rng.randrange(2)}"]
            values = group[name][()]
            match rng.choice(["lacking", "short", "wide", "empty", "group", "text", "nan", "large", "type"]):
                case "lacking":
                    del group[name]
                case "short":
                    replace(group, name, values[:-1])
                case "wide":
                    replace(group, name, np.stack([values, values], -1))
                case "empty":
                    replace(group, name, values[:0])
                case "group":
                    del group[name]
                    group.create_group(name)
                case "text":
                    replace(group, name, "text")
                case "nan":
                    name = rng.choice(["actions", "obs/ee_states", "obs/gripper_states"])
                    values = group[name][()]
                    values[rng.randrange(len(values)), rng.randrange(2)] = np.nan
                    replace(group, name, values)
                case "large":
                    name = "actions"
                    replace(group, name, group[name][()] * rng.choice([2, 1e300, np.inf]))
                case _:
                    name = IMAGES
                    replace(group, name, group[name][()].astype(rng.choice(["float32", "int64", "S3"])))
        return Mutation(f"{name} of another shape, type or value", wrong=True)

    def spoil_bytes(self, rng: random.Random) -> Mutation:
        content = bytearray(self.content)
        if rng.random() < 0.3:
            end = rng.randrange(len(content))
            self.file.write_bytes(content[:end])
            return Mutation(f"cut at byte {end}", wrong=True)
        start = rng.randrange(len(content))
        for place in range(start, min(start + rng.choice([1, 1, 8, 300]), len(content))):
            content[place] = rng.randrange(256)
        self.file.write_bytes(content)
        return Mutation(f"bytes from {start} on")

    def read(self) -> None:
        for demonstration in read_demonstrations(self.file):
            assert np.isfinite(demonstration.actions).all() and np.isfinite(demonstration.proprio).all()


# Checkpoints.

JSON_VALUES: list[Any] = [None, True, 0, -1, 1e9, "", "text", [], {}, [1, 2], {"a": 1}, float("nan")]


class PolicyCheckpoints(Target):
    """The folder of a small policy."""

    name = "policy"

    def __init__(self, folder: Path) -> None:
        self.original, self.folder = folder / "original", folder / "policy"
        save_policy(small_policy(), self.original)
        shutil.copytree(self.original, self.folder)
        self.tensors = load_file(self.original / "model.safetensors")

    def mutate(self, rng: random.Random) -> Mutation:
        shutil.rmtree(self.folder, ignore_errors=True)
        shutil.copytree(self.original, self.folder)
        edit: Callable[[random.Random], Mutation] = rng.choice(
            [self.files, self.json, self.header, self.weights]
        )
        return edit(rng)

    def files(self, rng: random.Random) -> Mutation:
        file = rng.choice(sorted(self.folder.iterdir()))
        if rng.random() < 0.3:
            file.unlink()
            needed = ("config.json", "model.safetensors", "tokenizer.json")
            return Mutation(f"without {file.name}", wrong=file.name in needed)
        content, what = spoil_text(file.read_bytes(), rng)
        file.write_bytes(content)
        return Mutation(f"{file.name}: {what}")

    def json(self, rng: random.Random) -> Mutation:
        """A value of config.json that is exchanged or gone."""
        file = self.folder / "config.json"
        values = json.loads(file.read_text())
        place, path = values, []
        while True:
            key = rng.choice(list(place)) if isinstance(place, dict) else rng.randrange(len(place))
            path.append(key)
            if isinstance(place[key], dict | list) and place[key] and rng.random() < 0.8:
                place = place[key]
                continue
            if rng.random() < 0.3:
                del place[key]
                what = "gone"
            else:
                place[key] = rng.choice(JSON_VALUES)
                what = repr(place[key])
            file.write_text(json.dumps(values))
            return Mutation(f"config.json: {path} {what}", wrong=path == ["model_type"])

    def header(self, rng: random.Random) -> Mutation:
        """Bytes of the header of the weights."""
        file = self.folder / "model.safetensors"
        content = bytearray(file.read_bytes())
        end = 8 + int.from_bytes(content[:8], "little")
        place = rng.randrange(end)
        content[place] = rng.randrange(256)
        file.write_bytes(content[: rng.choice([len(content), len(content) - 1, end, place])])
        return Mutation(f"model.safetensors: byte {place} of the header")

    def weights(self, rng: random.Random) -> Mutation:
        """A tensor that is gone, has another name, shape or type, or is one too many."""
        tensors = dict(self.tensors)
        name = rng.choice(sorted(tensors))
        kind = rng.choice(["lacking", "renamed", "reshaped", "integers", "more"])
        if kind == "reshaped":
            tensors[name] = torch.cat([tensors[name], tensors[name]])
        elif kind == "integers":
            tensors[name] = tensors[name].to(torch.int32)
        else:
            tensor = tensors[name] if kind == "more" else tensors.pop(name)
            if kind != "lacking":
                tensors[f"{name}x"] = tensor.clone()
        save_file(tensors, self.folder / "model.safetensors")
        return Mutation(f"model.safetensors: {name} {kind}", wrong=True)

    def read(self) -> None:
        policy = load_policy(self.folder)
        assert not any(parameter.is_meta for parameter in policy.parameters())


TARGETS: tuple[type[Target], ...] = (Configurations, Demonstrations, PolicyCheckpoints)
