"""Importing LIBERO in LeRobot's format: rows in Parquet files, pictures in these or in videos.

    meta/info.json           the format's version (2.0, 2.1, 3.0), frames per second, features, names of files
    meta/episodes.jsonl      2.x: number, instruction and length of each episode; one file of rows each
    meta/episodes/**.parquet 3.0: the same, and where in which file its rows and frames are: files hold many
    data/**.parquet          a row a control step: state (8), action (7), pictures unless they are in videos
    videos/**.mp4

The published conversions of LIBERO differ in names (`STATES`, `ACTIONS`, `CAMERAS`) and conventions. What can
be told from the data is told, converted where there is one meaning, printed, and refused otherwise:

    pictures     in official orientation (turned by 180° from LIBERO's files), or as in LIBERO's files: the
                 nearer one to a rendering of the task's first state
    gripper      LIBERO's -1 (opens) and 1 (closes), or RLDS's 1 (opens) and 0 (closes)
    observations from before the action, or from after it, by when the fingers first move
    poses        metres and axis-angle, as the hand goes where actions send it

Frames per second are not used: every row is a control step, though some conversions say 10 for LIBERO's 20.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from srpo.config import DemosStage
from srpo.demos import conventions
from srpo.demos.conventions import Recording
from srpo.demos.hdf5 import IMAGES, DemonstrationError, file_name, write_recordings
from srpo.runtime.files import atomic_directory
from srpo.runtime.videos import read_part

INFO = "meta/info.json"
CAMERAS = ("observation.images.image", "image", "observation.images.agentview", "agentview_rgb")
STATES = ("observation.state", "state")
ACTIONS = ("action", "actions")
"""Names of the features in published conversions, of which the first that is there is read."""
DAMAGED = "Download it again (a clone without Git LFS has pointers in place of files)."


@dataclass(frozen=True)
class Episode:
    """Where an episode is: `start` is the number of its first frame in `video`, None without videos."""

    index: int
    instruction: str
    length: int
    rows: Path
    video: Path | None
    start: int = 0


@dataclass(frozen=True)
class Dataset:
    """A folder in LeRobot's format, with the names of the features that are read."""

    folder: Path
    version: str
    fps: float
    state: str
    action: str
    camera: str
    episodes: list[Episode]


def is_dataset(folder: Path) -> bool:
    """Whether a folder is in LeRobot's format."""
    return (folder / INFO).is_file()


# Metadata.


def read_dataset(folder: Path) -> Dataset:
    """The metadata of a folder in LeRobot's format.

    Raises:
        DemonstrationError: they are damaged, of another version, or lack what is needed.
    """
    path = folder / INFO
    try:
        info = json.loads(path.read_text(encoding="utf-8"))
        version, features = str(info["codebase_version"]), dict(info["features"])
        fps, data_path, video_path = float(info["fps"]), str(info["data_path"]), info.get("video_path")
        chunk = int(info.get("chunks_size", 1000))
    except (ValueError, TypeError, KeyError) as error:
        raise DemonstrationError(f"{path}: no metadata of LeRobot's format: {error!r}. {DAMAGED}") from None
    if version not in ("v2.0", "v2.1", "v3.0"):
        raise DemonstrationError(
            f"{path}: codebase_version is {version!r}; v2.0, v2.1 and v3.0 are read: convert it with LeRobot"
        )
    camera = _feature(path, features, "camera", CAMERAS, None)
    state, action = (
        _feature(path, features, "state", STATES, 8),
        _feature(path, features, "action", ACTIONS, 7),
    )
    is_video = features[camera].get("dtype") == "video"
    if is_video and not video_path:
        raise DemonstrationError(f"{path}: {camera} is a video, but video_path is not set. {DAMAGED}")

    def located(row: Mapping[str, Any]) -> Episode:
        index, tasks = int(row["episode_index"]), list(row["tasks"])
        if len(tasks) != 1:
            raise ValueError(f"episode {index} has {len(tasks)} instructions, not one: {tasks}")
        video, start = None, 0
        if version == "v3.0":
            data = data_path.format(chunk_index=row["data/chunk_index"], file_index=row["data/file_index"])
            if is_video:
                chunk_index, file_index, seconds = (row[f"videos/{camera}/{name}"] for name in IN_VIDEO)
                video = folder / str(video_path).format(
                    video_key=camera, chunk_index=chunk_index, file_index=file_index
                )
                start = round(seconds * fps)
        else:
            place = {"episode_chunk": index // chunk, "episode_index": index}
            data = data_path.format(**place)
            if is_video:
                video = folder / str(video_path).format(video_key=camera, **place)
        return Episode(index, str(tasks[0]), int(row["length"]), folder / data, video, start)

    episodes = []
    for source, row in _episode_rows(folder, version, camera if is_video else None):
        try:
            episodes.append(located(row))
        except (ValueError, TypeError, KeyError, IndexError) as error:
            raise DemonstrationError(
                f"{source}: no episode of LeRobot's format: {error}. {DAMAGED}"
            ) from None
    return Dataset(folder, version, fps, state, action, camera, episodes)


IN_VIDEO = ("chunk_index", "file_index", "from_timestamp")
"""Of an episode's columns `videos/<camera>/...` in version 3.0."""


def _feature(
    path: Path, features: Mapping[str, Any], what: str, names: Sequence[str], size: int | None
) -> str:
    found = [name for name in names if name in features]
    if not found:
        raise DemonstrationError(
            f"{path}: features has no {what} under a known name ({', '.join(names)}), but {list(features)}: "
            "rename the feature, in the files too"
        )
    shape = features[found[0]].get("shape")
    if size is not None and list(shape or ()) != [size]:
        raise DemonstrationError(
            f"{path}: features.{found[0]} has shape {shape}, not [{size}]: expected are LIBERO's state "
            "(position, axis-angle, two fingers) and action (motion, rotation, gripper)"
        )
    return found[0]


def _episode_rows(folder: Path, version: str, video: str | None) -> Iterator[tuple[Path, Mapping[str, Any]]]:
    """Each file of episodes' metadata with each of its rows."""
    if version != "v3.0":
        path = folder / "meta" / "episodes.jsonl"
        for number, line in enumerate(_read_text(path).splitlines(), start=1):
            try:
                yield path, json.loads(line)
            except ValueError as error:
                raise DemonstrationError(f"{path}: line {number} is no JSON: {error}. {DAMAGED}") from None
        return
    columns = ["episode_index", "tasks", "length", "data/chunk_index", "data/file_index"]
    columns += [] if video is None else [f"videos/{video}/{name}" for name in IN_VIDEO]
    paths = sorted((folder / "meta" / "episodes").rglob("*.parquet"))
    if not paths:
        raise DemonstrationError(f"{folder / 'meta' / 'episodes'}: holds no Parquet files. {DAMAGED}")
    for path in paths:
        for row in _read_columns(path, columns).to_pylist():
            yield path, row


def _read_text(path: Path) -> str:
    if not path.is_file():
        raise DemonstrationError(f"{path}: no such file. {DAMAGED}")
    return path.read_text(encoding="utf-8", errors="replace")


def _read_columns(path: Path, columns: list[str], episode: int | None = None) -> pa.Table:
    """Some columns of a Parquet file; of the rows of one episode, if it is given."""
    if not path.is_file():
        raise DemonstrationError(f"{path}: no such file. {DAMAGED}")
    try:
        with pq.ParquetFile(path) as file:
            lacking = [name for name in columns if name not in file.schema_arrow.names]
        if lacking:
            raise DemonstrationError(f"{path}: lacks the columns {', '.join(lacking)}. {DAMAGED}")
        chosen = None if episode is None else [("episode_index", "=", episode)]
        # `partitioning`: a folder named like a column's value would else add one.
        return pq.read_table(path, columns=columns, filters=chosen, partitioning=None)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError) as error:
        raise DemonstrationError(f"{path}: not a whole Parquet file: {error}. {DAMAGED}") from None


# Rows and pictures.


@dataclass(frozen=True)
class Rows:
    """The numbers of an episode: float32 actions (T, 7) in LIBERO's convention and poses (T, 8)."""

    episode: Episode
    actions: NDArray[np.float32]
    poses: NDArray[np.float32]


def read_rows(dataset: Dataset, episode: Episode) -> Rows:
    """The numbers of an episode, as they are in the file."""
    columns = [dataset.action, dataset.state, "episode_index", "frame_index"]
    table = _read_columns(episode.rows, columns, episode.index)
    where = f"{episode.rows}: episode {episode.index}"
    if table["frame_index"].to_pylist() != list(range(episode.length)):
        raise DemonstrationError(
            f"{where}: {len(table)} rows whose frame_index is not 0 to {episode.length - 1}, as its metadata "
            f"says. {DAMAGED}"
        )
    if episode.length < 2:
        raise DemonstrationError(f"{where}: has {episode.length} rows; a demonstration needs 2: leave it out")
    arrays = []
    for name, size in ((dataset.action, 7), (dataset.state, 8)):
        try:
            values = np.array(table[name].to_pylist(), np.float32)
        except (ValueError, TypeError) as error:
            raise DemonstrationError(f"{where}: {name}: {error}. {DAMAGED}") from None
        if values.shape != (episode.length, size):
            raise DemonstrationError(f"{where}: {name} has shape {values.shape}, not (rows, {size})")
        arrays.append(values)
    return Rows(episode, *arrays)


def read_pictures(dataset: Dataset, episode: Episode) -> NDArray[np.uint8]:
    """An episode's pictures, uint8 (T, H, W, 3), as they are in the files."""
    where = f"{episode.video or episode.rows}: {dataset.camera} of episode {episode.index}"
    if episode.video is not None:
        if not episode.video.is_file():
            raise DemonstrationError(f"{episode.video}: no such file. {DAMAGED}")
        try:
            pictures = read_part(episode.video, episode.start, episode.length, dataset.fps)
        except OSError as error:
            reason = str(error).strip().splitlines()[-1]
            raise DemonstrationError(f"{episode.video}: not a whole video: {reason}. {DAMAGED}") from None
    else:
        column = _read_columns(episode.rows, [dataset.camera, "episode_index"], episode.index)[dataset.camera]
        try:
            pictures = np.stack([_decode(value["bytes"]) for value in column.to_pylist()])
        except (ValueError, TypeError, KeyError, OSError) as error:
            raise DemonstrationError(
                f"{where}: not pictures of one size within the Parquet file ({error}). {DAMAGED}"
            ) from None
    if len(pictures) != episode.length:
        raise DemonstrationError(f"{where}: {len(pictures)} pictures for {episode.length} rows. {DAMAGED}")
    return pictures


def _decode(content: bytes) -> NDArray[np.uint8]:
    with Image.open(io.BytesIO(content)) as picture:
        return np.asarray(picture.convert("RGB"))


# Conventions.


def in_liberos_convention(rows: Sequence[Rows]) -> tuple[list[Rows], bool]:
    """The same with a gripper of -1 (opens) and 1 (closes), and whether it was RLDS's 1 and 0."""
    values = {value for one in rows for value in np.unique(one.actions[:, -1]).tolist()}
    if not values <= {0.0, 1.0} or 0.0 not in values:
        return list(rows), False
    return [
        replace(one, actions=np.hstack([one.actions[:, :-1], 1 - 2 * one.actions[:, -1:]])) for one in rows
    ], True


def are_late(rows: Sequence[Rows]) -> bool:
    """Whether observations are from after the action.

    If no gripper tells, they are taken as from before it, as in OpenVLA's regenerated files, from which most
    conversions are made. Raises ValueError where episodes contradict each other.
    """
    told = {one.episode.index: conventions.fingers_are_late(one.actions, one.poses[:, 6:]) for one in rows}
    late = [index for index, is_late in told.items() if is_late]
    early = [index for index, is_late in told.items() if is_late is False]
    if late and early:
        raise ValueError(
            f"has observations from after the action in {len(late)} episodes (the first: {late[0]}), from "
            f"before it in {len(early)} (the first: {early[0]}), by when fingers move: use data of one kind"
        )
    return bool(late)


# The import.


def import_dataset(config: DemosStage, out: Path) -> None:
    """Take the first `config.demos.per_task` episodes of every task from a folder in LeRobot's format.

    Tasks are found by their instruction. Numbers are checked before any picture is decoded.

    Raises:
        DemonstrationError: the data are damaged, lack a task, or are in a convention that cannot be told.
    """
    from srpo.envs.gl import require_gl
    from srpo.envs.libero import LiberoEnv, load_task

    require_gl()
    dataset = read_dataset(Path(config.demos.source).expanduser())
    tasks = [load_task(config.suite, task_id) for task_id in config.tasks]
    chosen = choose(dataset, {task.name: task.language for task in tasks}, config.demos.per_task)
    every = [read_rows(dataset, episode) for episodes in chosen.values() for episode in episodes]
    every, from_rlds = in_liberos_convention(every)
    late = _checked(dataset, every)
    rows = {one.episode: one for one in every}
    idle = sum(conventions.idle_steps(one.actions) for one in every)
    tqdm.write(
        f"{dataset.folder}: {len(every)} episodes in LeRobot's format {dataset.version}; gripper of "
        f"{'0 and 1 (RLDS), converted' if from_rlds else '-1 and 1'}; observations from "
        f"{'after the action, shifted back' if late else 'before the action'}; {idle} of "
        f"{sum(len(one.actions) for one in every)} steps are idle and kept"
    )

    def recordings(task: str, scene: NDArray[np.uint8]) -> Iterator[Recording]:
        turned = 0
        for episode in chosen[task]:
            recording, was_turned = _recording(dataset, rows[episode], scene, late)
            turned += was_turned
            yield recording
        tqdm.write(f"{task}: {len(chosen[task])} demonstrations, {turned} with pictures as in LIBERO's files")

    attributes = {"lerobot": dataset.version, "macros_image_convention": "opengl", "tag": "libero-v1"}
    with atomic_directory(out) as temporary:
        for task in tqdm(tasks, desc="demonstration files", unit="file", disable=None):
            env = LiberoEnv(config.suite, task.task_id, config.protocol)
            env.reset(0)
            write_recordings(
                temporary / file_name(task.name), attributes, recordings(task.name, env.render())
            )


def choose(dataset: Dataset, languages: Mapping[str, str], per_task: int) -> dict[str, list[Episode]]:
    """The first `per_task` episodes of each task, by its name.

    Args:
        languages: the tasks' names and instructions.

    Raises:
        DemonstrationError: there are fewer of one.
    """
    of: dict[str, list[Episode]] = {}
    for episode in dataset.episodes:
        of.setdefault(_normalised(episode.instruction), []).append(episode)
    found = {name: of.get(_normalised(language), []) for name, language in languages.items()}
    few = {languages[name]: len(episodes) for name, episodes in found.items() if len(episodes) < per_task}
    if few:
        lacking = ", ".join(f"{number} of {language!r}" for language, number in few.items())
        raise DemonstrationError(
            f"{dataset.folder} (demos.source): demos.per_task is {per_task}, but it has {lacking}; its "
            f"instructions are {sorted(of)[:5]} and {max(len(of) - 5, 0)} more. Lower demos.per_task, take "
            "these tasks out, or name another folder"
        )
    return {name: episodes[:per_task] for name, episodes in found.items()}


def _normalised(instruction: str) -> str:
    return " ".join(instruction.lower().split()).rstrip(".")


def _checked(dataset: Dataset, every: Sequence[Rows]) -> bool:
    """Check the numbers of all episodes; returns `are_late`."""
    for one in every:
        try:
            conventions.require_pose(one.poses)
        except ValueError as error:
            where = f"{one.episode.rows}: episode {one.episode.index}"
            raise DemonstrationError(f"{where}: {dataset.state} {error}") from None
    try:
        late = are_late(every)
        moments = [(one.actions[1:], one.poses[:-1]) if late else (one.actions, one.poses) for one in every]
        conventions.require_pose_follows(moments)
    except ValueError as error:
        raise DemonstrationError(f"{dataset.folder}: {dataset.state} {error}") from None
    return late


def _recording(dataset: Dataset, rows: Rows, scene: NDArray[np.uint8], late: bool) -> tuple[Recording, bool]:
    """An episode as in a demonstration file, and whether its pictures were as in LIBERO's."""
    episode = rows.episode
    where = f"{episode.video or episode.rows}: {dataset.camera} of episode {episode.index}"
    pictures = read_pictures(dataset, episode)
    if pictures.shape[1:3] != scene.shape[:2]:
        raise DemonstrationError(
            f"{where}: pictures are {pictures.shape[1:3]}, but protocol.image_size is {scene.shape[0]}. "
            "Change protocol.image_size, or render the demonstrations again"
        )
    try:
        turned = conventions.is_turned(pictures[0], scene)
    except ValueError as error:
        raise DemonstrationError(f"{where}: {error}") from None
    # Files have pictures in OpenGL's row order.
    recording: Recording = {
        "actions": rows.actions,
        IMAGES: pictures if turned else pictures[:, ::-1, ::-1],
        "obs/ee_states": rows.poses[:, :6],
        "obs/gripper_states": rows.poses[:, 6:],
    }
    if late:
        recording = {
            name: values[:-1] if name.startswith("obs/") else values[1:] for name, values in recording.items()
        }
    try:
        conventions.require_conventions(recording)
    except ValueError as error:
        raise DemonstrationError(f"{episode.rows}: episode {episode.index}: {error}") from None
    return recording, turned
