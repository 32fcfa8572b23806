"""Many episodes at once: worker processes that simulate, one caller that decides.

A worker runs whole episodes, one after the other, and asks the caller for each action chunk, so that one
policy (on a GPU, say) serves all workers. There is no barrier: a worker that finishes takes the next episode.
Pictures pass through memory that a worker and the caller share.
"""

from __future__ import annotations

import ctypes
import gc
import multiprocessing
import time
import traceback
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from srpo.config import Protocol
from srpo.episode import ACTION_DIM, CHUNK, Episode, EpisodeSpec, FailedRun
from srpo.libero_plus.data import PlusSources
from srpo.policies.pictures import Preparation
from srpo.runtime.processes import one_core_each
from srpo.world_models.base import select_frames

TRIES = 3
"""Attempts at an episode before it is given up as an infrastructure error."""
ENVS_PER_WORKER = 10
"""Tasks a worker keeps built (10 MB each and their snapshots); the least recently used one goes first."""
HANG_SECONDS = 300.0
"""A worker that says nothing for so long is taken to hang. Building a task takes seconds, tens at most."""
TICK_SECONDS = 1.0
"""How often hanging workers are looked for. A longer silence of all (a suspended job) counts as one tick."""
PATIENCE_SECONDS = 0.01
"""How long a query may wait for others to share its batch."""


@dataclass(frozen=True)
class Query:
    """A worker's question: what to do for the next chunk?

    `first` marks an episode's first question; `image` is the picture as the policy sees it, after the pool's
    `preparation`.
    """

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
Ask = Callable[[int, NDArray[np.float32]], Answer]


def pictures_shape(protocol: Protocol, frames: int) -> tuple[int, int, int, int]:
    """The largest array of pictures of an episode: one a query, and the world model's frames."""
    return (-(-protocol.max_steps // CHUNK) + frames, protocol.image_size, protocol.image_size, 3)


def run_episode(
    env: Any, spec: EpisodeSpec, perturbation: Any, pictures: NDArray[np.uint8], ask: Ask
) -> Episode:
    """Run one episode in a `LiberoEnv`.

    Args:
        perturbation: a `srpo.libero_plus.perturbation.Perturbation` or None.
        pictures: uint8, of `pictures_shape` or larger; the episode's images and frames are parts of it.
        ask: what to do after query k, whose image is `pictures[k]`, with this proprioception.
    """
    started = time.perf_counter()
    rng = np.random.default_rng(spec.seed)
    proprio: list[NDArray[np.float32]] = []
    answers: list[Answer] = []
    with perturbation.apply(env) if perturbation is not None else nullcontext():
        env.reset(spec.init_state) if perturbation is None else perturbation.reset(env)
        observations = [env.observation]
        distance_to_goal = [env.distance_to_goal()]
        # A task may begin solved by settling; it still takes one step to say so, as in the stock loop.
        success = False
        while not success and env.steps < env.protocol.max_steps:
            query = len(answers)
            clean = env.render()
            pictures[query] = clean if perturbation is None else perturbation.corrupt(clean, rng)
            proprio.append(env.proprio())
            answers.append(ask(query, proprio[-1]))
            for action in answers[-1].actions[: env.protocol.max_steps - env.steps]:
                success = env.step(action)
                observations.append(env.observation)
                distance_to_goal.append(env.distance_to_goal())
                if success:
                    break
        steps, queries = env.steps, len(answers)
        chosen = select_frames(len(observations), spec.frames) if spec.frames else np.zeros(0, int)
        for place, index in enumerate(chosen, queries):
            # Rendered after the event; what the policy saw is not rendered again.
            query, rest = divmod(int(index), CHUNK)
            seen = perturbation is None and rest == 0 and query < queries
            pictures[place] = pictures[query] if seen else env.render(observation=observations[index])
    valid = np.arange(queries * CHUNK) < steps
    return Episode(
        spec=spec,
        success=success,
        steps=steps,
        images=pictures[:queries],
        proprio=np.stack(proprio),
        tokens=np.stack([answer.tokens for answer in answers]),
        log_probs=np.stack([answer.log_probs for answer in answers]),
        valid=np.repeat(valid, ACTION_DIM).reshape(queries, -1),
        frames=pictures[queries : queries + len(chosen)],
        path=np.stack([observation.hand_pos for observation in observations]).astype(np.float32),
        distance_to_goal=np.array(distance_to_goal, np.float32),
        wall_seconds=time.perf_counter() - started,
    )


@dataclass(frozen=True)
class _Asked:
    """A query on its way: its picture is in the shared memory already, also as the policy sees it."""

    query: int
    instruction: str
    proprio: NDArray[np.float32]


@dataclass(frozen=True)
class _Finished:
    """An episode on its way: its images and frames are in the shared memory, one after the other."""

    episode: Episode
    images: int
    frames: int


def _work(
    connection: Connection,
    memory: Any,
    shape: tuple[int, ...],
    shared_picture: Any,
    suite: str,
    protocol: Protocol,
    preparation: Preparation,
    plus: PlusSources | None,
) -> None:
    """A worker's life: take a spec, run it, send the episode; None ends it. A lost caller ends it, too."""
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the caller's to handle
    pictures = np.ctypeslib.as_array(memory).reshape(shape)
    seen = np.ctypeslib.as_array(shared_picture).reshape(preparation.size, preparation.size, 3)
    nothing = pictures[:0].copy()
    try:
        # Heavy imports here, so that a missing library is reported like any other error.
        from srpo.envs.libero import LiberoEnv
        from srpo.libero_plus.perturbation import Perturbation

        envs: OrderedDict[int, LiberoEnv] = OrderedDict()
        while (spec := connection.recv()) is not None:
            try:
                if spec.task_id not in envs:
                    if len(envs) == ENVS_PER_WORKER:
                        envs.popitem(last=False)
                        gc.collect()  # an environment is full of cycles
                    envs[spec.task_id] = LiberoEnv(suite, spec.task_id, protocol)
                envs.move_to_end(spec.task_id)
                env = envs[spec.task_id]
                instruction, perturbation = env.task.language, None
                if spec.variant:
                    perturbation = Perturbation.from_task(spec.variant, plus)
                    env = perturbation.environment(env)
                    instruction = perturbation.instruction(env)

                def ask(query: int, proprio: NDArray[np.float32]) -> Answer:
                    # Here and not where the policy acts: a GPU would wait for it.
                    seen[:] = preparation(pictures[query])
                    connection.send(_Asked(query, instruction, proprio))  # noqa: B023
                    answer: Answer = connection.recv()
                    return answer

                episode = run_episode(env, spec, perturbation, pictures, ask)
                images, frames = len(episode.images), len(episode.frames)
                connection.send(_Finished(replace(episode, images=nothing, frames=nothing), images, frames))
            except Exception:
                envs.pop(spec.task_id, None)  # its state is not to be trusted any more
                connection.send(FailedRun(spec, traceback.format_exc()))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        pass


@dataclass
class _Worker:
    process: BaseProcess
    connection: Connection
    pictures: NDArray[np.uint8]
    seen: NDArray[np.uint8]
    """The picture of the question that it asks, as the policy sees it."""
    spec: EpisodeSpec | None = None
    tasks: set[int] = field(default_factory=set)
    asked: float | None = None
    """When it began to wait for an answer; None while it works."""
    silence: float = 0.0
    """Seconds of work without a word."""


class _Queue:
    """Episodes to run, by task: the longest expected first, so that no long one is left for the end."""

    def __init__(self, specs: Iterable[EpisodeSpec], lengths: dict[int, float]) -> None:
        self._tasks: dict[int, deque[EpisodeSpec]] = defaultdict(deque)
        self._lengths = lengths
        for spec in specs:
            self.add(spec)

    def add(self, spec: EpisodeSpec) -> None:
        self._tasks[spec.task_id].append(spec)

    def take(self, built: set[int], elsewhere: set[int]) -> EpisodeSpec | None:
        """The next episode for a worker: of a task it has built, else of one that no other has, if any is."""

        def rank(task: int) -> tuple[bool, bool, float]:
            return task in built, task not in elsewhere, self._lengths.get(task, np.inf)

        waiting = [task for task, specs in self._tasks.items() if specs]
        return self._tasks[max(waiting, key=rank)].popleft() if waiting else None


class EnvPool(AbstractContextManager["EnvPool"]):
    """Worker processes that run episodes of one suite under one protocol. They start with the first run."""

    def __init__(
        self,
        suite: str,
        protocol: Protocol,
        workers: int,
        preparation: Preparation,
        hang_seconds: float = HANG_SECONDS,
        plus: PlusSources | None = None,
    ) -> None:
        self._suite, self._protocol, self._number, self._plus = suite, protocol, workers, plus
        self._preparation = preparation
        self._hang_seconds = hang_seconds
        self._context = multiprocessing.get_context("spawn")
        self._workers: list[_Worker] = []
        self._shape = pictures_shape(protocol, 0)
        self._lengths: dict[int, float] = {}
        """Mean steps of a task's episodes lately."""

    def _start(self) -> _Worker:
        ours, theirs = self._context.Pipe()
        # Shared memory without a name: it goes with the processes that have it, however they end.
        memory = self._context.RawArray(ctypes.c_uint8, int(np.prod(self._shape)))
        size = self._preparation.size
        shared_picture = self._context.RawArray(ctypes.c_uint8, size * size * 3)
        process = self._context.Process(
            target=_work,
            args=(
                theirs,
                memory,
                self._shape,
                shared_picture,
                self._suite,
                self._protocol,
                self._preparation,
                self._plus,
            ),
            daemon=True,
        )
        with one_core_each():
            process.start()
        theirs.close()
        pictures = np.ctypeslib.as_array(memory).reshape(self._shape)
        return _Worker(process, ours, pictures, np.ctypeslib.as_array(shared_picture).reshape(size, size, 3))

    def _prepare(self, frames: int) -> None:
        """Start workers: all of them at first or when pictures need more room, else those lost since."""
        shape = pictures_shape(self._protocol, frames)
        if shape[0] > self._shape[0]:
            self.close()
            self._shape = shape
        if not self._workers:
            self._workers = [self._start() for _ in range(self._number)]
        for number, worker in enumerate(self._workers):
            if worker.spec is not None:  # in the midst of an episode of a run that was left early
                self._replace(number)

    def _replace(self, number: int) -> int | None:
        """Put a new worker in the place of a lost one; returns how that ended."""
        process = self._workers[number].process
        self._workers[number].connection.close()
        process.kill()
        process.join()
        self._workers[number] = self._start()
        return process.exitcode

    def run(self, specs: Iterable[EpisodeSpec], act: Act, batch: int) -> Iterator[Episode | FailedRun]:
        """Run episodes; yield each as it finishes.

        An episode whose worker raises, dies or hangs is tried again, three times in all; then it is a
        `FailedRun`.

        Args:
            act: answers a batch of queries. What it raises ends the run.
            batch: most queries of one call; 1 makes results independent of the order of arrival to the bit.
        """
        specs = list(specs)
        self._prepare(max((spec.frames for spec in specs), default=0))
        queue = _Queue(specs, self._lengths)
        tries: dict[EpisodeSpec, int] = defaultdict(int)
        waiting: deque[Query] = deque()
        left = len(specs)
        last = time.monotonic()
        self._assign(queue)
        while left:
            for number in self._listen(self._timeout(waiting, batch)):
                worker = self._workers[number]
                assert worker.spec is not None
                message = self._receive(number)
                if isinstance(message, _Asked):
                    worker.asked = time.monotonic()
                    waiting.append(
                        Query(
                            number,
                            worker.spec,
                            message.query == 0,
                            message.instruction,
                            worker.seen,
                            message.proprio,
                        )
                    )
                    continue
                self._workers[number].spec = None
                if isinstance(message, FailedRun):
                    # What a lost worker still asked must not be answered to its successor.
                    waiting = deque(query for query in waiting if query.worker != number)
                    tries[message.spec] += 1
                    if tries[message.spec] < TRIES:
                        cause = message.error.strip().splitlines()[-1]
                        print(f"trying again: {message.spec}: {cause}", flush=True)
                        queue.add(message.spec)
                        self._assign(queue)
                        continue
                else:
                    mean = self._lengths.get(message.spec.task_id, message.steps)
                    self._lengths[message.spec.task_id] = mean + 0.2 * (message.steps - mean)
                left -= 1
                self._assign(queue)
                yield message
            now = time.monotonic()
            self._watch(min(now - last, TICK_SECONDS))
            last = now
            if waiting and not self._timeout(waiting, batch):
                self._answer([waiting.popleft() for _ in range(min(batch, len(waiting)))], act)

    def _timeout(self, waiting: Sequence[Query], batch: int) -> float:
        """How long to wait for more queries before those that wait are answered: 0 where it is time."""
        if not waiting:
            return TICK_SECONDS
        working = any(worker.spec is not None and worker.asked is None for worker in self._workers)
        if len(waiting) >= batch or not working:
            return 0
        asked = self._workers[waiting[0].worker].asked
        assert asked is not None
        return max(0.0, asked + PATIENCE_SECONDS - time.monotonic())

    def _listen(self, timeout: float) -> list[int]:
        """Numbers of the workers that have something to say."""
        numbers = {worker.connection: k for k, worker in enumerate(self._workers) if worker.spec is not None}
        return [numbers[connection] for connection in wait(list(numbers), timeout)]  # type: ignore[index]

    def _receive(self, number: int) -> _Asked | Episode | FailedRun:
        worker = self._workers[number]
        assert worker.spec is not None
        worker.silence = 0.0
        try:
            message: _Asked | _Finished | FailedRun = worker.connection.recv()
        except (EOFError, OSError):
            process = worker.process
            process.join(10)  # its own end, rather than the one that it is given below
            cause = f"worker process {process.pid} ended with code {process.exitcode}"
            self._replace(number)
            return FailedRun(worker.spec, cause)
        if isinstance(message, _Finished):
            images, frames = message.images, message.images + message.frames
            # Copied: the worker writes its next episode over them.
            return replace(
                message.episode,
                images=worker.pictures[:images].copy(),
                frames=worker.pictures[images:frames].copy(),
            )
        return message

    def _watch(self, seconds: float) -> None:
        """Kill workers that hang; the end of their connection is then seen like any other death's."""
        for worker in self._workers:
            if worker.spec is None or worker.asked is not None:
                continue
            worker.silence += seconds
            if worker.silence > self._hang_seconds:
                silence = f"has said nothing for {worker.silence:.0f} s"
                print(f"worker process {worker.process.pid} {silence}: killed", flush=True)
                worker.process.kill()

    def _answer(self, queries: list[Query], act: Act) -> None:
        for query, answer in zip(queries, act(queries), strict=True):
            worker = self._workers[query.worker]
            worker.asked = None
            with suppress(OSError):  # it may have died: the next look at its connection finds out
                worker.connection.send(answer)

    def _assign(self, queue: _Queue) -> None:
        """Give every idle worker its next episode."""
        for worker in self._workers:
            if worker.spec is None:
                others = set().union(*(other.tasks for other in self._workers if other is not worker))
                spec = queue.take(worker.tasks, others)
                if spec is None:
                    return
                worker.spec, worker.silence, worker.asked = spec, 0.0, None
                worker.tasks.add(spec.task_id)
                with suppress(OSError):  # a worker that died idle is found when its connection is looked at
                    worker.connection.send(spec)

    def close(self) -> None:
        """End all workers."""
        for worker in self._workers:
            worker.connection.close()
        for worker in self._workers:
            worker.process.join(2)
            if worker.process.is_alive():
                worker.process.kill()
                worker.process.join()
        self._workers = []

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
