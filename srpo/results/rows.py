"""Reading and writing result files, with checks.

The side that simulates writes through `write_rows`, the side that draws reads through `read_rows`, so both
hold to the same schema. This module imports neither torch nor a simulator.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from srpo.config import Protocol
from srpo.results import ResultError
from srpo.results.schemas import EPISODES, IDENTITY, Schema
from srpo.runtime.files import write_with


def protocol_json(protocol: Protocol, mujoco: str) -> str:
    """The `protocol` column: every setting of the protocol and MuJoCo's version, keys sorted."""
    return json.dumps({**protocol.model_dump(mode="json"), "mujoco": mujoco}, sort_keys=True)


def protocol_record(text: str) -> dict[str, Any]:
    """Read a `protocol` column's value (`protocol_json`), checking it."""
    try:
        record = json.loads(text)
        mujoco = record.pop("mujoco")
        return {**Protocol.model_validate(record).model_dump(mode="json"), "mujoco": mujoco}
    except (ValueError, KeyError, AttributeError) as error:  # ValidationError is a ValueError
        raise ResultError(f"column protocol: not a protocol with MuJoCo's version: {text}: {error}") from None


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]], schema: Schema) -> None:
    """Write rows atomically as parquet or CSV (by suffix); every row has exactly the schema's columns.

    Raises `ResultError` naming file and column when a row does not fit the schema.
    """
    rows = list(rows)
    names = set(schema.columns)
    for number, row in enumerate(rows):
        if set(row) != names:
            missing, unknown = sorted(names - set(row)), sorted(set(row) - names)
            raise ResultError(f"{path}: row {number}: missing columns {missing}, unknown columns {unknown}")
    arrays = []
    for column in schema.arrow():
        values = [row[column.name] for row in rows]
        if pa.types.is_integer(column.type) and any(isinstance(value, float) for value in values):
            raise ResultError(
                f"{path}: column {column.name}: must be int, not float"
            )  # Arrow would cut 1.5 to 1
        try:
            arrays.append(pa.array(values, type=column.type, from_pandas=True))  # NaN becomes null
        except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
            raise ResultError(f"{path}: column {column.name}: {error}") from None
    table = pa.Table.from_arrays(arrays, schema=schema.arrow())
    frame = table.to_pandas()
    _check(frame, schema, path)
    if path.suffix == ".csv":
        write_with(path, lambda temporary: frame.to_csv(temporary, index=False))
    else:
        write_with(path, lambda temporary: pq.write_table(table, temporary))


def read_rows(path: Path, schema: Schema) -> pd.DataFrame:
    """Read a parquet or CSV file (by suffix) and check it against the schema.

    Columns come in the schema's order, as str, int64, float64 or bool; null is NaN. Columns that older files
    lack are filled in (`Schema.added`). Raises `ResultError` naming the file, and the column at fault.
    """
    if not path.is_file():
        raise ResultError(f"{path}: no such file")
    try:
        frame = (
            pd.read_csv(path, float_precision="round_trip")
            if path.suffix == ".csv"
            else pq.ParquetFile(path).read().to_pandas()
        )
    except (pa.ArrowInvalid, pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise ResultError(f"{path}: not a whole {schema.name} file: {error}") from None
    older = [name for name in schema.columns if name not in frame.columns]
    missing = [name for name in older if name not in schema.added]
    unknown = [name for name in frame.columns if name not in schema.columns]
    if missing or unknown:
        remedy = f"; {schema.remedy}" if schema.remedy else ""
        raise ResultError(
            f"{path}: {schema.name}: missing columns {missing}, unknown columns {unknown}{remedy}"
        )
    frame = frame.assign(**{name: schema.added[name] for name in older})[list(schema.columns)]
    for name, column in schema.columns.items():
        if frame[name].isna().all() and column.optional:  # an all-null column has no type of its own
            frame[name] = frame[name].astype("float64" if column.kind == "float" else "str")
        elif column.kind == "float" and pd.api.types.is_integer_dtype(
            frame[name]
        ):  # CSV writes 1.0 and 1 alike
            frame[name] = frame[name].astype("float64")
    _check(frame, schema, path)
    return frame


def _check(frame: pd.DataFrame, schema: Schema, path: Path) -> None:
    """Types, nulls and allowed values of a frame that has the schema's columns."""
    of_kind = {
        "str": pd.api.types.is_string_dtype,
        "int": pd.api.types.is_integer_dtype,
        "float": pd.api.types.is_float_dtype,
        "bool": pd.api.types.is_bool_dtype,
    }
    for name, column in schema.columns.items():
        values = frame[name]
        if not column.optional and values.isna().any():
            raise ResultError(f"{path}: column {name}: null in row {int(values.isna().to_numpy().argmax())}")
        if len(values) and not of_kind[column.kind](values):
            raise ResultError(f"{path}: column {name}: holds {values.dtype}, must be {column.kind}")
        if column.values:
            wrong = sorted(set(values.dropna()) - set(column.values))
            if wrong:
                raise ResultError(f"{path}: column {name}: {wrong} not among {list(column.values)}")
        if column.kind == "float" and np.isinf(values.to_numpy(dtype=float)).any():
            raise ResultError(f"{path}: column {name}: infinite values")


def read_episodes(paths: Sequence[Path]) -> pd.DataFrame:
    """Episodes of several files as one frame, refused where they contradict each other (`check_episodes`)."""
    frames = [read_rows(path, EPISODES) for path in paths]
    episodes = (
        pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=list(EPISODES.columns))
    )
    check_episodes(episodes)
    return episodes


def check_episodes(episodes: pd.DataFrame) -> None:
    """Refuse episodes that must not stand in one table.

    One preset, one protocol and one temperature throughout; only `max_steps` may differ, and only between
    suites. No episode twice. `max_steps` and `profile` agree with the protocol's record. Episodes that did
    not run, and they alone, say why.
    """
    if episodes.empty:
        raise ResultError("no episodes: the files have no rows")
    unrun = episodes["status"].isin(["infra_error", "unavailable", "stopped"])
    if (unrun != episodes["error"].notna()).any():
        raise ResultError(
            "column error: must be set for status infra_error, unavailable and stopped, and null for all "
            "other status"
        )
    presets = sorted(set(episodes["preset"]))
    if len(presets) > 1:
        raise ResultError(f"column preset: mixes presets {presets}: a variant means something else in each")
    shared: dict[str, str] = {}
    for (suite, max_steps, profile, text), _ in episodes.groupby(
        ["suite", "max_steps", "profile", "protocol"]
    ):
        record = protocol_record(str(text))
        if record["max_steps"] != max_steps or record["profile"] != profile:
            raise ResultError(f"{suite}: columns max_steps and profile contradict column protocol: {text}")
        for key, value in record.items():
            scope = f"{key} of {suite}" if key == "max_steps" else key
            if shared.setdefault(scope, json.dumps(value)) != json.dumps(value):
                raise ResultError(
                    f"column protocol: mixes protocols: {scope} is {shared[scope]} and {value!r}"
                )
    temperatures = sorted(set(episodes["temperature"]))
    if len(temperatures) > 1:
        raise ResultError(
            f"column temperature: mixes {temperatures}: greedy and sampled episodes stand apart"
        )
    twice = episodes[episodes.duplicated([*IDENTITY, "episode_seed"] if temperatures[0] > 0 else IDENTITY)]
    if len(twice):
        raise ResultError(f"{len(twice)} episodes stand twice, the first: {describe(twice.iloc[0])}")


def describe(row: pd.Series) -> str:
    """Which episode (or step) a row is about, for messages."""
    return ", ".join(f"{key}={row[key]}" for key in row.index if key in IDENTITY and pd.notna(row[key]))
