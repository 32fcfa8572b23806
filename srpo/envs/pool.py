"""Many episodes at once: worker processes that simulate, one caller that decides.

A worker runs whole episodes, one after the other, and asks the caller for each action chunk, so that one
policy (on a GPU, say) serves all workers. There is no barrier: a worker that finishes takes the next episode.
"""

from __future__ import annotations

import multiprocessing
import os
import time
import traceback
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from srpo.config import Protocol
from srpo.types import ACTION_DIM, CHUNK, Episode, EpisodeSpec, FailedRun
from srpo.world_models.base import select_frames

TRIES = 3
"""Attempts at an episode before it is given up as an infrastructure error."""
ENVS_PER_WORKER = 10
"""Tasks a worker keeps built (0.3–0.5 GB each); the least recently used one goes first."""
SINGLE_THREADED = {"OMP_NUM_THREADS": "1", "LP_NUM_THREADS": "0"}
"""One core a worker: no threads in NumPy, none in Mesa's software renderer."""


@dataclass(frozen=True)
class Query:
    """A worker's question: what to do for the next chunk? `first` marks an episode's first question."""

    worker: int
    spec: EpisodeSpec
    first: bool
    instruction: str
    image: NDArray[np.uint8]
    proprio: NDArray[np.float32]


@dataclass(frozen=True)
class Answer:
    """The caller's answer: LIBERO actions float64 (8, 7), tokens int64 (56,), log-probs float32 (56,)."""

    actions: NDArray[np.float64]
    tokens: NDArray[np.int64]
    log_probs: NDArray[np.float32]


Act = Callable[[Sequence[Query]], Sequence[Answer]]


def run_episode(
    env: Any, spec: EpisodeSpec, perturbation: Any, ask: Callable[[NDArray, NDArray, bool], Answer]
) -> Episode:
    """Run one episode in a `LiberoEnv`; `perturbation` is a `srpo.envs.plus.Perturbation` or None."""
    started = time.perf_counter()
    rng = np.random.default_rng(spec.seed)
    images: list[NDArray[np.uint8]] = []
    proprio: list[NDArray[np.float32]] = []
    answers: list[Answer] = []
    sights = []
    with perturbation.apply(env) if perturbation is not None else nullcontext():
        env.reset(spec.init_state)
        sights.append(env.sight)
        path = [env.proprio()[:3]]
        # A task may begin solved by settling; it still takes one step to say so, as in the stock loop.
        success = False
        while not success and env.steps < env.protocol.max_steps:
            clean = env.render()
            images.append(clean if perturbation is None else perturbation.corrupt(clean, rng))
            proprio.append(env.proprio())
            answers.append(ask(images[-1], proprio[-1], len(answers) == 0))
            for action in answers[-1].actions[: env.protocol.max_steps - env.steps]:
                success = env.step(action)
                sights.append(env.sight)
                path.append(env.proprio()[:3])
                if success:
                    break
        steps = env.steps
        frames = []
        if spec.frames:
            # Rendered after the event; what the policy saw is not rendered again.
            for index in select_frames(len(sights), spec.frames):
                chunk, rest = divmod(int(index), CHUNK)
                seen = perturbation is None and rest == 0 and chunk < len(images)
                frames.append(images[chunk] if seen else env.render(sight=sights[index]))
    valid = np.arange(len(answers) * CHUNK) < steps
    size = env.protocol.image_size
    return Episode(
        spec=spec,
        success=success,
        steps=steps,
        images=np.stack(images),
        proprio=np.stack(proprio),
        tokens=np.stack([answer.tokens for answer in answers]),
        log_probs=np.stack([answer.log_probs for answer in answers]),
        valid=np.repeat(valid, ACTION_DIM).reshape(len(answers), -1),
        frames=np.stack(frames) if frames else np.zeros((0, size, size, 3), np.uint8),
        path=np.stack(path),
        wall_seconds=time.perf_counter() - started,
    )


def _work(connection: Connection, worker: int, suite: str, protocol: Protocol) -> None:
    """A worker's life: take a spec, run it, send the episode; None ends it. A lost caller ends it, too."""
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the caller's to handle
    try:
        # Heavy imports here, so that a missing library is reported like any other error.
        from srpo.envs.libero import LiberoEnv
        from srpo.envs.plus import Perturbation

        envs: OrderedDict[int, LiberoEnv] = OrderedDict()
        while (spec := connection.recv()) is not None:
            try:
                if spec.task_id not in envs:
                    if len(envs) == ENVS_PER_WORKER:
                        envs.popitem(last=False)[1].close()
                    envs[spec.task_id] = LiberoEnv(suite, spec.task_id, protocol)
                envs.move_to_end(spec.task_id)
                env = envs[spec.task_id]

                def ask(image: NDArray, proprio: NDArray, first: bool) -> Answer:
                    connection.send(Query(worker, spec, first, env.task.language, image, proprio))  # noqa: B023
                    answer: Answer = connection.recv()
                    return answer

                perturbation = Perturbation.from_task(spec.variant) if spec.variant else None
                connection.send(run_episode(env, spec, perturbation, ask))
            except Exception:
                envs.pop(spec.task_id, None)  # its state is not to be trusted any more
                connection.send(FailedRun(spec, traceback.format_exc()))
    except (EOFError, BrokenPipeError):
        pass


@dataclass
class _Worker:
    process: BaseProcess
    connection: Connection
    spec: EpisodeSpec | None
    tasks: set[int]


class EnvPool(AbstractContextManager["EnvPool"]):
    """Worker processes that run episodes of one suite under one protocol."""

    def __init__(self, suite: str, protocol: Protocol, workers: int) -> None:
        self._suite, self._protocol = suite, protocol
        self._context = multiprocessing.get_context("spawn")
        self._workers = [self._start(worker) for worker in range(workers)]

    def _start(self, worker: int) -> _Worker:
        ours, theirs = self._context.Pipe()
        before = {name: os.environ.get(name) for name in SINGLE_THREADED}
        os.environ.update(SINGLE_THREADED)
        try:
            process = self._context.Process(
                target=_work, args=(theirs, worker, self._suite, self._protocol), daemon=True
            )
            process.start()
        finally:
            for name, value in before.items():
                if value is None:
                    del os.environ[name]
                else:
                    os.environ[name] = value
        theirs.close()
        return _Worker(process, ours, None, set())

    def run(self, specs: Iterable[EpisodeSpec], act: Act, batch: int) -> Iterator[Episode | FailedRun]:
        """Run episodes; yield each as it finishes.

        An episode whose worker raises or dies is tried again, three times in all; then it is a `FailedRun`.

        Args:
            act: answers a batch of queries. What it raises ends the run.
            batch: most queries of one call; 1 makes results independent of the order of arrival to the bit.
        """
        todo = deque(specs)
        tries: dict[EpisodeSpec, int] = {}
        waiting: list[Query] = []
        left = len(todo)
        for worker in self._workers:
            self._assign(worker, todo)
        while left:
            busy = [worker.connection for worker in self._workers if worker.spec is not None]
            # With queries at hand only look who else has come; else wait.
            for connection in wait(busy, 0 if waiting else None):
                number = next(k for k, w in enumerate(self._workers) if w.connection is connection)
                worker = self._workers[number]
                assert worker.spec is not None
                result: Query | Episode | FailedRun
                try:
                    result = worker.connection.recv()
                except (EOFError, OSError):
                    worker.process.join(10)
                    cause = f"worker process {worker.process.pid} ended with code {worker.process.exitcode}"
                    result = FailedRun(worker.spec, cause)
                    worker = self._workers[number] = self._start(number)
                    # What the dead one still asked must not be answered to its successor.
                    waiting = [query for query in waiting if query.worker != number]
                if isinstance(result, Query):
                    waiting.append(result)
                    continue
                worker.spec = None
                if isinstance(result, FailedRun):
                    tries[result.spec] = tries.get(result.spec, 0) + 1
                    if tries[result.spec] < TRIES:
                        print(
                            f"trying again: {result.spec}: {result.error.strip().splitlines()[-1]}",
                            flush=True,
                        )
                        todo.append(result.spec)
                        self._assign_idle(todo)
                        continue
                left -= 1
                self._assign_idle(todo)
                yield result
            if waiting:
                now, waiting = waiting[:batch], waiting[batch:]
                for query, answer in zip(now, act(now), strict=True):
                    with suppress(OSError):  # it may have died: the next look at its connection finds out
                        self._workers[query.worker].connection.send(answer)

    def _assign_idle(self, todo: deque[EpisodeSpec]) -> None:
        for worker in self._workers:
            if worker.spec is None:
                self._assign(worker, todo)

    def _assign(self, worker: _Worker, todo: deque[EpisodeSpec]) -> None:
        """Give a worker the next episode, of a task that it has built if there is one."""
        if not todo:
            return
        index = next((k for k, spec in enumerate(todo) if spec.task_id in worker.tasks), 0)
        worker.spec = todo[index]
        del todo[index]
        worker.tasks.add(worker.spec.task_id)
        with suppress(OSError):  # a worker that died idle is found when its connection is looked at
            worker.connection.send(worker.spec)

    def close(self) -> None:
        """End all workers."""
        for worker in self._workers:
            worker.connection.close()
        for worker in self._workers:
            worker.process.join(2)
            if worker.process.is_alive():
                worker.process.kill()
                worker.process.join()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
