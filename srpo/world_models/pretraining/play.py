"""Play data: undirected manipulation in libero_90 scenes, on which a small V-JEPA 2 is pretrained.

No task is solved, and no evaluated suite is used: a scripted hand moves to random objects, tries to grasp
them, carries them somewhere else and releases them, with smooth noise added.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import as_completed
from contextlib import suppress
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from srpo.config import WorldModelStage
from srpo.envs.libero import LiberoEnv
from srpo.envs.osc import UnstableSimulationError
from srpo.episode import ACTION_DIM
from srpo.runtime.files import write_with
from srpo.runtime.processes import worker_pool
from srpo.world_models.base import Frames, select_frames

SUITE = "libero_90"
OPEN, CLOSED = -1.0, 1.0
NOISE_CORRELATION = 0.9
NOISE = np.array([0.25, 0.25, 0.25, 0.05, 0.05, 0.05])
"""Standard deviation of the AR(1) noise on position and rotation; full action is 1."""
GAIN = 30.0
"""Action per metre of position error (full speed beyond 3 cm)."""
NEAR = 0.02
"""Metres from its target at which a motion ends."""
RIM = 0.045
"""Metres from a bowl's or mug's centre to its rim, where it can be pinched."""
HOVER, CARRY = 0.12, 0.2
"""Metres above an object from which it is approached, and above the workspace at which it is carried."""
LONGEST_MOTION, GRIP_STEPS = 40, 12
"""Control steps after which a motion is aborted, and those that the gripper takes to close."""


def episode_file(folder: Path, scene: int, episode: int) -> Path:
    """The file of a play episode's frames: uint8 (F, H, W, 3), NumPy format."""
    return folder / f"scene{scene:02d}" / f"episode{episode:03d}.npy"


def collect_play(config: WorldModelStage, folder: Path, workers: int) -> list[Path]:
    """Play `episodes` episodes in every scene with `workers` processes; returns their files, in fixed order.

    Episodes that are already in `folder` are kept. An episode depends only on the seed, its scene and its
    number, not on the process that played it or on earlier episodes.
    """
    pretraining = config.world_model.pretraining
    assert pretraining is not None
    missing = {
        scene: [n for n in range(pretraining.episodes) if not episode_file(folder, scene, n).exists()]
        for scene in pretraining.scenes
    }
    # A job is a part of one scene. Loading a scene takes seconds, so it is split only to occupy all workers.
    parts = -(-workers // len(pretraining.scenes))
    jobs = [(scene, todo[part::parts]) for scene, todo in missing.items() for part in range(parts)]
    jobs = [(scene, todo) for scene, todo in jobs if todo]
    if jobs:
        # A process does one job, since a scene's memory is not released.
        total = sum(len(todo) for _, todo in jobs)
        with (
            worker_pool(min(workers, len(jobs)), tasks_each=1) as pool,
            tqdm(total=total, desc="play", unit="episode", disable=None) as bar,
        ):
            played = {pool.submit(partial(_play_scene, config, folder), *job): len(job[1]) for job in jobs}
            for future in as_completed(played):
                future.result()
                bar.update(played[future])
    return [
        episode_file(folder, scene, n) for scene in pretraining.scenes for n in range(pretraining.episodes)
    ]


def _play_scene(config: WorldModelStage, folder: Path, scene: int, episodes: Sequence[int]) -> None:
    pretraining = config.world_model.pretraining
    assert pretraining is not None
    env = LiberoEnv(SUITE, scene, config.protocol)
    for episode in episodes:
        rng = np.random.default_rng([pretraining.seed, scene, episode])
        frames = None
        while frames is None:
            env.reset(episode % 50)
            with suppress(UnstableSimulationError):  # played again, with other actions: the generator goes on
                frames = play_episode(env, pretraining.steps, config.world_model.frames, rng)
        write_with(episode_file(folder, scene, episode), partial(_save, frames))


def _save(frames: Frames, path: Path) -> None:
    with path.open("wb") as handle:
        np.save(handle, frames, allow_pickle=False)


def play_episode(env: LiberoEnv, steps: int, frames: int, rng: np.random.Generator) -> Frames:
    """Play `steps` control steps from the present state; frames uint8 (frames, H, W, 3) spread evenly."""
    actions = play(env, rng)
    pictures: dict[int, Frames] = {}
    moments = select_frames(steps + 1, frames)
    for step in range(steps + 1):
        if step in moments:
            pictures[step] = env.render()
        if step < steps:
            env.step(next(actions))
    return np.stack([pictures[moment] for moment in moments])


def play(env: LiberoEnv, rng: np.random.Generator) -> Iterator[NDArray[np.float64]]:
    """Endless actions (7,): directed motions with AR(1) noise. Reads the simulator, never changes it."""
    hand = env.env.robots[0].eef_site_id
    noise = rng.normal(size=ACTION_DIM - 1) * NOISE
    fresh = np.sqrt(1 - NOISE_CORRELATION**2)
    while True:
        for target, gripper, least in _pick_and_place(env, rng):
            for step in range(LONGEST_MOTION):
                error = target - env.data.site_xpos[hand]
                if step >= least and np.linalg.norm(error) < NEAR:
                    break
                noise = NOISE_CORRELATION * noise + fresh * rng.normal(size=ACTION_DIM - 1) * NOISE
                speed = GAIN * error
                directed = np.concatenate([speed / max(1.0, np.abs(speed).max()), np.zeros(3)])
                yield np.append(np.clip(directed + noise, -1, 1), gripper)


def _pick_and_place(
    env: LiberoEnv, rng: np.random.Generator
) -> Iterator[tuple[NDArray[np.float64], float, int]]:
    """Motions of one random pick and place: target (3,) of the hand in metres, gripper, minimum steps."""
    names = sorted(env.env.objects_dict)
    thing, place = (env.env.obj_body_id[name] for name in rng.choice(names, 2))
    # Boxes and bottles are grasped at the centre, bowls and mugs at the rim; the fingers open along y.
    offset = np.array([0.0, rng.choice([-RIM, 0.0, RIM]), rng.uniform(0.0, 0.05)]) + rng.normal(size=3) * 0.01
    up = np.array([0.0, 0.0, HOVER])
    yield env.data.xpos[thing] + offset + up, OPEN, 0
    yield env.data.xpos[thing] + offset, OPEN, 0
    yield env.data.xpos[thing] + offset, CLOSED, GRIP_STEPS
    destination = env.data.xpos[place] + np.append(rng.normal(size=2) * 0.08, CARRY)
    yield env.data.site_xpos[env.env.robots[0].eef_site_id] + up, CLOSED, 0
    yield destination, CLOSED, 0
    yield destination - [0, 0, rng.uniform(0, 0.12)], CLOSED, 0
    yield destination, OPEN, GRIP_STEPS
