"""How fast a GPU runs policies and world models: as measured, or at a share of its peak. Without torch.

Measured are queries and videos a second on one GPU. They become operations a second by the plan's own count
of what was measured (`srpo.cluster.operations`), and so hold for other policies, prompts and world models.
"""

from __future__ import annotations

import csv
import math
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from srpo import ROOT
from srpo.cluster import operations
from srpo.config import ConfigError, WorldModel, read_yaml, validate
from srpo.config.resolve import CONFIGS
from srpo.policies.__main__ import POLICIES, read_policy

MEASUREMENTS = ROOT / "docs/performance"
GPU, MFU = "h200", 0.4
"""The defaults: a card, and the share of its peak that a card without measurements reaches. Llama 3 405B's
pre-training reaches 0.38 to 0.43 of an H100's peak (arXiv 2407.21783, table 4: 380 to 430 TFLOP/s)."""
POLICY, WORLD_MODEL = "openvla-7b", "vjepa2-vitg"
"""What `gpu-<card>.csv` measures."""
BATCH = 16
"""Queries that a finished policy answers at once, at best: one of each of an evaluation's simulators."""


class Speeds(NamedTuple):
    """Operations a second of one GPU, recomputation counted as work.

    rollout         acting in training, with adapters
    act             acting of finished policies, as measured without adapters
    encode          of world models
    learn_adapters  learning with adapters, by micro-batch
    learn_all       learning all weights
    notes           what the figures rest on, a line each
    """

    card: str
    rollout: float
    act: float
    encode: float
    learn_adapters: Mapping[int, float]
    learn_all: float
    notes: tuple[str, ...] = ()


def nearest(speeds: Mapping[int, float], size: int) -> float:
    """The speed at the batch whose ratio to this size is nearest to one."""
    return speeds[min(speeds, key=lambda batch: abs(math.log(batch / size)))]


def of_peak(card: str, share: float) -> Speeds:
    """All kinds of work at one share of the peak."""
    gpu = operations.GPUS[card]
    speed = gpu.tflops * 1e12 * share
    notes = (
        f"a GPU reaches {share:.0%} (--mfu) of {gpu.tflops:g} TFLOP/s, the {card}'s (--gpu) peak in bfloat16 "
        f"without sparsity ({gpu.source}); recomputation counts as work, and all passes are in bfloat16",
        "preparing pictures and sampling take no time",
    )
    return Speeds(card, speed, speed, speed, {1: speed}, speed, notes)


def shipped(card: str) -> Path | None:
    """The file of what was measured on a card, if there is one."""
    path = MEASUREMENTS / f"gpu-{card}.csv"
    return path if path.is_file() else None


def choose_speeds(card: str | None = None, share: float | None = None, file: Path | None = None) -> Speeds:
    """The speeds that the options of `srpo plan` ask for, or the default ones. Raises ConfigError."""
    if share is None and (measurements := file or shipped(card or GPU)):
        gpu = measured(measurements)
        if card not in (None, gpu.card):
            raise ConfigError(f"{measurements}: column card has {gpu.card}, not {card} (--gpu)")
        return gpu
    return of_peak(card or GPU, share or MFU)


class Rates(NamedTuple):
    """Queries and videos a second, as measured.

    rollout         acting in a training step, with the preparation of pictures and prompts
    act             acting without adapters, with preparation
    learn_adapters  learning with adapters, by micro-batch
    learn_all       learning all weights
    encode          videos
    """

    rollout: float
    act: float
    learn_adapters: Mapping[int, float]
    learn_all: float
    encode: float


def measured(path: Path) -> Speeds:
    """The speeds of a card by a file like docs/performance/gpu-h200.csv. Raises ConfigError."""
    table = read_table(path)
    rates, prompt = read_rates(table), round(table.value("act", "prompt"))
    policy = read_policy(POLICIES / f"{POLICY}.yaml")
    merged = policy.model_copy(update={"lora": None})
    speeds = Speeds(
        table.card,
        rates.rollout * operations.policy_forward(policy, prompt).total,
        rates.act * operations.policy_forward(merged, prompt).total,
        rates.encode * _video_flop(),
        {size: rate * operations.learning(policy, prompt) for size, rate in rates.learn_adapters.items()},
        rates.learn_all * operations.learning(merged, prompt),
    )
    return speeds._replace(notes=tuple(_notes(table, rates, speeds)))


def read_rates(table: Table) -> Rates:
    """Speeds of the file's part `step` where it has them, else those of the same work alone."""
    rollout = table.value("step", "rollout_prepare_s") + table.value("step", "rollout_act_s")
    prepare, act = (table.value("act", f"{name}_{BATCH}") for name in ("prepare_qps", "plain_act_qps"))
    return Rates(
        table.value("step", "queries") / rollout,
        1 / (1 / prepare + 1 / act),
        table.by_batch("update", "lora_qps")
        | {round(table.value("step", "microbatch")): table.value("step", "update_qps")},
        table.value("fsdp", "qps"),
        table.value("step", "videos_per_s"),
    )


def _notes(table: Table, rates: Rates, speeds: Speeds) -> Iterator[str]:
    prompt = f"{table.value('act', 'prompt'):.0f}"
    batch, simulators, microbatch = (
        f"{table.value('step', name):.0f}" for name in ("mean_batch", "workers", "microbatch")
    )
    learning = "; ".join(
        f"{size}: {_rate(rate, speeds.learn_adapters[size])}"
        for size, rate in sorted(rates.learn_adapters.items())
    )
    yield (
        f"speeds of one {table.card}: queries a second of {POLICY} (prompts of {prompt} tokens) and videos a "
        f"second of {WORLD_MODEL}, the mean of the calls in {os.path.relpath(table.path)}; TFLOP/s by the "
        "count below, which other policies and world models are assumed to reach too"
    )
    yield (
        f"acting in training, with adapters: {_rate(rates.rollout, speeds.rollout)}, preparation included: "
        f"as in a small training step, whose {simulators} simulators made batches of {batch} queries on "
        "average; larger batches would be faster, but need more simulators"
    )
    yield (
        f"acting of finished policies: {_rate(rates.act, speeds.act)}, preparation included, measured "
        f"without adapters in full batches of {BATCH}: an upper limit, since finished policies keep their "
        "adapters and their batches are smaller"
    )
    yield (
        f"learning with adapters: at the micro-batch nearest to the setting ({learning}); {microbatch} as in "
        "that step, the others measured alone"
    )
    yield f"learning all weights: {_rate(rates.learn_all, speeds.learn_all)}, by FSDP in one process"
    yield f"encoding: {rates.encode:.2f} videos/s ({speeds.encode / 1e12:.0f} TFLOP/s), as in that step"


def _rate(queries: float, flop: float) -> str:
    return f"{queries:.1f} queries/s, {flop / 1e12:.0f} TFLOP/s"


def _video_flop() -> int:
    """Operations for a video of the world model that was measured."""
    path = CONFIGS / f"world_models/{WORLD_MODEL}.yaml"
    model = validate(WorldModel, {"name": WORLD_MODEL, **read_yaml(path)["world_model"]}, str(path))
    flop = operations.encoding(model)
    assert flop is not None  # its architecture is known
    return flop


class Table(NamedTuple):
    """Measured values by (part, name), means of the calls."""

    path: Path
    card: str
    values: Mapping[tuple[str, str], float]

    def value(self, part: str, name: str) -> float:
        if (part, name) not in self.values:
            raise ConfigError(f"{self.path}: no row has `{part}` in column part and `{name}` in column name")
        value = self.values[part, name]
        if not 0 < value < math.inf:
            raise ConfigError(f"{self.path}: {part}, {name}: column value is {value:g}, it must be above 0")
        return value

    def by_batch(self, part: str, name: str) -> dict[int, float]:
        """Values of the names `<name>_<batch>`."""
        named = (
            re.fullmatch(rf"{name}_([1-9]\d*)", key) for key_part, key in self.values if key_part == part
        )
        return {int(match[1]): self.value(part, match[0]) for match in named if match}


def read_table(path: Path) -> Table:
    """Rows of card, part, name and value, one a call. Raises ConfigError."""
    rows = read_rows(path, ("card", "part", "name", "value"))
    cards = {row["card"].lower() for row in rows}
    if len(cards) > 1 or not cards <= set(operations.GPUS):
        known = ", ".join(operations.GPUS)
        raise ConfigError(f"{path}: column card has {', '.join(sorted(cards))}: give one of {known}")
    calls: dict[tuple[str, str], list[float]] = defaultdict(list)
    for row in rows:
        part, name, value = row["part"], row["name"], row["value"]
        try:
            calls[part, name].append(float(value))
        except ValueError:
            raise ConfigError(f"{path}: {part}, {name}: column value is {value!r}, no number") from None
    means = {key: sum(values) / len(values) for key, values in calls.items()}
    return Table(path, cards.pop(), means)


def read_rows(path: Path, columns: Iterable[str]) -> list[dict[str, str]]:
    """A CSV file that must have some columns. Raises ConfigError."""
    try:
        with path.open(newline="") as handle:
            rows = list(csv.DictReader(handle, restval=""))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    if missing := [name for name in columns if not rows or name not in rows[0]]:
        raise ConfigError(f"{path}: has no rows with {', '.join(missing)}")
    return rows
