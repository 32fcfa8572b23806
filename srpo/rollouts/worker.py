"""A simulation process: it runs one episode after the other and queries its caller for every action chunk."""

from __future__ import annotations

import ctypes
import signal
import time
import traceback
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
from numpy.typing import NDArray

from srpo.config import Protocol
from srpo.episode import ACTION_DIM, CHUNK, Episode, EpisodeSpec, FailedRun
from srpo.libero_plus.data import PlusSources
from srpo.policies.images import ImageTransform
from srpo.world_models.base import select_frames


@dataclass(frozen=True)
class Answer:
    """The caller's answer: LIBERO actions float64 (8, 7), tokens int64 (56,), log-probs float32 (56,)."""

    actions: NDArray[np.float64]
    tokens: NDArray[np.int64]
    log_probs: NDArray[np.float32]


Ask = Callable[[int, NDArray[np.float32]], Answer]


def images_shape(protocol: Protocol, frames: int) -> tuple[int, int, int, int]:
    """The largest array of an episode's images: one for each query, and the world model's frames."""
    return (-(-protocol.max_steps // CHUNK) + frames, protocol.image_size, protocol.image_size, 3)


def run_episode(
    env: Any, spec: EpisodeSpec, perturbation: Any, images: NDArray[np.uint8], ask: Ask
) -> Episode:
    """Run one episode in a `LiberoEnv`.

    Args:
        perturbation: a `srpo.libero_plus.perturbation.Perturbation` or None.
        images: uint8, of `images_shape` or larger; the episode's images and frames are views of it.
        ask: returns the actions after query k, whose image is `images[k]`, with this proprioception.
    """
    started = time.perf_counter()
    rng = np.random.default_rng(spec.seed)
    proprio: list[NDArray[np.float32]] = []
    answers: list[Answer] = []
    states: list[NDArray[np.float64]] = []
    with perturbation.apply(env) if perturbation is not None else nullcontext():
        if spec.start is not None:
            env.restore(np.frombuffer(spec.start.state), steps=spec.start.query * CHUNK)
        elif perturbation is None:
            env.reset(spec.init_state)
        else:
            perturbation.reset(env)
        first = env.steps
        observations = [env.observation]
        distance_to_goal = [env.distance_to_goal()]
        # Settling may already solve a task; the episode still takes one step, as in LIBERO's own loop.
        success = False
        while not success and env.steps < env.protocol.max_steps:
            query = len(answers)
            clean = env.render()
            images[query] = clean if perturbation is None else perturbation.corrupt(clean, rng)
            proprio.append(env.proprio())
            if spec.states:
                states.append(env.snapshot())
            answers.append(ask(query, proprio[-1]))
            for action in answers[-1].actions[: env.protocol.max_steps - env.steps]:
                success = env.step(action)
                observations.append(env.observation)
                distance_to_goal.append(env.distance_to_goal())
                if success:
                    break
        steps, queries = env.steps - first, len(answers)
        chosen = np.zeros(0, int)
        if spec.frames:
            chosen = select_frames(len(observations), spec.frames, spec.frame_selection)
        for place, index in enumerate(chosen, queries):
            # Rendered afterwards from the stored states; the policy's own images are not rendered again.
            query, rest = divmod(int(index), CHUNK)
            if place > queries and index == chosen[place - queries - 1]:  # fewer steps than frames
                images[place] = images[place - 1]
            elif perturbation is None and rest == 0 and query < queries:
                images[place] = images[query]
            else:
                images[place] = env.render(observation=observations[index])
    valid = np.arange(queries * CHUNK) < steps
    return Episode(
        spec=spec,
        success=success,
        steps=steps,
        images=images[:queries],
        proprio=np.stack(proprio),
        tokens=np.stack([answer.tokens for answer in answers]),
        log_probs=np.stack([answer.log_probs for answer in answers]),
        valid=np.repeat(valid, ACTION_DIM).reshape(queries, -1),
        frames=images[queries : queries + len(chosen)],
        path=np.stack([observation.hand_pos for observation in observations]).astype(np.float32),
        distance_to_goal=np.array(distance_to_goal, np.float32),
        wall_seconds=time.perf_counter() - started,
        states=np.stack(states) if states else np.zeros((0, 0)),
    )


# What passes between a worker and its caller.


@dataclass(frozen=True)
class QueryMessage:
    """The policy is queried; the image is already in the shared memory, transformed for the policy."""

    index: int
    instruction: str
    proprio: NDArray[np.float32]


@dataclass(frozen=True)
class EpisodeMessage:
    """An episode ended; its images and then its frames are in the shared memory, this many of each."""

    episode: Episode
    images: int
    frames: int


class SharedImages:
    """Images in memory that a worker and its caller share.

    The memory has no name, so it is released with the processes that use it, however they end.
    """

    def __init__(self, context: Any, shape: tuple[int, ...], policy_size: int) -> None:
        self._shapes = (shape, (policy_size, policy_size, 3))
        self._arrays = [context.RawArray(ctypes.c_uint8, int(np.prod(shape))) for shape in self._shapes]

    def views(self) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """An episode's images and frames, uint8 of `images_shape`; and the queried image for the policy."""
        episode, query = (
            np.ctypeslib.as_array(array).reshape(shape)
            for array, shape in zip(self._arrays, self._shapes, strict=True)
        )
        return episode, query


@dataclass(frozen=True)
class WorkerSettings:
    """What a worker simulates, and how it prepares the policy's images."""

    suite: str
    protocol: Protocol
    transform: ImageTransform
    plus: PlusSources | None


def run_worker(connection: Connection, shared: SharedImages, settings: WorkerSettings) -> None:
    """The worker's loop: receive a spec, run it, send the episode. None, or a lost caller, ends it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the caller handles Ctrl-C
    images, query_image = shared.views()
    empty = images[:0].copy()
    try:
        # Heavy imports here, so that a missing library is told as what every episode failed of.
        try:
            from srpo.envs.libero import LiberoEnv
            from srpo.libero_plus.perturbation import Perturbation
        except ImportError:
            reason = traceback.format_exc()
            while (spec := connection.recv()) is not None:
                connection.send(FailedRun(spec, reason))
            return

        envs: dict[int, LiberoEnv] = {}  # all of the suite's that come: 10 MB each and their snapshots
        while (spec := connection.recv()) is not None:
            try:
                if spec.task_id not in envs:
                    envs[spec.task_id] = LiberoEnv(settings.suite, spec.task_id, settings.protocol)
                env = envs[spec.task_id]
                instruction, perturbation = env.task.language, None
                if spec.variant:
                    perturbation = Perturbation.from_task(spec.variant, settings.plus)
                    env = perturbation.environment(env)
                    instruction = perturbation.instruction(env)

                def ask(index: int, proprio: NDArray[np.float32]) -> Answer:
                    # Transformed here: where the policy acts, a GPU would wait for it.
                    query_image[:] = settings.transform(images[index])
                    connection.send(QueryMessage(index, instruction, proprio))  # noqa: B023
                    answer: Answer = connection.recv()
                    return answer

                episode = run_episode(env, spec, perturbation, images, ask)
                counts = len(episode.images), len(episode.frames)
                connection.send(EpisodeMessage(replace(episode, images=empty, frames=empty), *counts))
            except Exception:
                envs.pop(spec.task_id, None)  # its state may be broken
                connection.send(FailedRun(spec, traceback.format_exc()))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        pass
