"""Many episodes at once: worker processes that simulate, and one caller whose policy acts for all of them.

There is no barrier: a worker that finishes an episode starts the next one, and queries are answered in
batches of whatever has arrived. Images pass through memory that a worker and the caller share.
"""

from __future__ import annotations

import multiprocessing
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from srpo.config import Protocol
from srpo.episode import Episode, EpisodeSpec, FailedRun
from srpo.libero_plus.data import PlusSources
from srpo.policies.images import ImageTransform
from srpo.rollouts.worker import (
    Answer,
    EpisodeMessage,
    QueryMessage,
    SharedImages,
    WorkerSettings,
    images_shape,
    run_worker,
)
from srpo.runtime.peers import ALONE, Peers
from srpo.runtime.processes import one_core_each

TRIES = 3
"""Attempts at an episode before it is given up as an infrastructure error."""
HANG_SECONDS = 300.0
"""A worker silent for this long is considered hung. Loading a task takes seconds, at most tens of them."""
TICK_SECONDS = 1.0
"""How often hung workers are looked for. A longer silence of all (a suspended job) counts as one tick."""
BATCH_WAIT_SECONDS = 0.01
"""How long a query may wait for others to join its batch."""


@dataclass(frozen=True)
class Query:
    """A worker's query of the policy for the next action chunk.

    `first` marks an episode's first query; `image` is the policy's input, after the pool's image transform.
    """

    worker: int
    spec: EpisodeSpec
    first: bool
    instruction: str
    image: NDArray[np.uint8]
    proprio: NDArray[np.float32]


Act = Callable[[Sequence[Query]], Sequence[Answer]]


@dataclass
class _Worker:
    """A worker process as the caller sees it.

    images         of its episode: its images and frames
    query_image    of its query, as the policy sees it
    spec           of its episode; None while it is idle
    tasks          that it has loaded
    waiting_since  when it sent the query that it waits for; None while it simulates
    silence        seconds of simulation without a message
    """

    process: BaseProcess
    connection: Connection
    images: NDArray[np.uint8]
    query_image: NDArray[np.uint8]
    spec: EpisodeSpec | None = None
    tasks: set[int] = field(default_factory=set)
    waiting_since: float | None = None
    silence: float = 0.0


class _EpisodeQueue:
    """Episodes to run, by task. Tasks with long episodes first, so that no long one is left for the end.

    Of several processes each leaves out what others have begun, and starts elsewhere in its list, so that
    they load different tasks. `others` are begun when none of `specs` is left.
    """

    def __init__(
        self,
        specs: Sequence[EpisodeSpec],
        lengths: dict[int, float],
        peers: Peers,
        others: Sequence[EpisodeSpec] = (),
    ) -> None:
        self._lengths = lengths
        self._peers = peers
        self._parts: list[dict[int, deque[EpisodeSpec]]] = []
        for part in (specs, others):
            tasks: dict[int, deque[EpisodeSpec]] = defaultdict(deque)
            start = len(part) * peers.rank // peers.size
            for spec in (*part[start:], *part[:start]):
                tasks[spec.task_id].append(spec)
            self._parts.append(tasks)

    def add(self, spec: EpisodeSpec) -> None:
        self._parts[0][spec.task_id].append(spec)

    def take(self, loaded: set[int], loaded_elsewhere: set[int]) -> EpisodeSpec | None:
        """The next episode for a worker: of a task it has loaded, else of one that no other has, if any."""

        def priority(task: int) -> tuple[bool, bool, float]:
            return task in loaded, task not in loaded_elsewhere, self._lengths.get(task, np.inf)

        for tasks in self._parts:
            while waiting := [task for task, specs in tasks.items() if specs]:
                spec = tasks[max(waiting, key=priority)].popleft()
                if self._peers.claim(spec):
                    return spec
        return None


class EnvPool(AbstractContextManager["EnvPool"]):
    """Worker processes that run episodes of one suite under one protocol. They start with the first run.

    With `peers` their pools run the same episodes together: each episode once, where a worker is free first.
    All must have as many runs.
    """

    def __init__(
        self,
        suite: str,
        protocol: Protocol,
        workers: int,
        transform: ImageTransform,
        plus: PlusSources | None = None,
        peers: Peers = ALONE,
    ) -> None:
        self._settings = WorkerSettings(suite, protocol, transform, plus)
        self._number = workers
        self._peers = peers
        self._hang_seconds = HANG_SECONDS
        self._context = multiprocessing.get_context("spawn")
        self._workers: list[_Worker] = []
        self._stopping = threading.Event()
        self._shape = images_shape(protocol, 0)
        self._lengths: dict[int, float] = {}
        """Running mean of the steps of a task's episodes."""

    def run(
        self, specs: Iterable[EpisodeSpec], act: Act, batch: int, others: Sequence[EpisodeSpec] = ()
    ) -> Iterator[Episode | FailedRun]:
        """Run episodes; yield each as it finishes, but none that another process runs.

        An episode whose worker raises, dies or hangs is run again, up to `TRIES` times; then it is a
        `FailedRun`.

        Args:
            act: answers a batch of queries. What it raises ends the run.
            batch: largest batch; 1 makes results independent of the order of arrival, to the bit.
            others: begun when none of `specs` is left.
        """
        specs = list(specs)
        self._start_workers(max((spec.frames for spec in (*specs, *others)), default=0))
        self._peers.start_round()
        queue = _EpisodeQueue(specs, self._lengths, self._peers, others)
        failures: dict[EpisodeSpec, int] = defaultdict(int)
        waiting: deque[Query] = deque()
        last = time.monotonic()
        self._assign_episodes(queue)
        while any(worker.spec is not None for worker in self._workers):
            if self._stopping.is_set():
                raise RuntimeError("the rollouts were stopped")
            for number in self._ready_workers(self._timeout(waiting, batch)):
                message = self._receive(number)
                if isinstance(message, Query):
                    waiting.append(message)
                    continue
                self._workers[number].spec = None
                if isinstance(message, FailedRun):
                    # A lost worker's query must not be answered to its successor.
                    waiting = deque(query for query in waiting if query.worker != number)
                    failures[message.spec] += 1
                    if failures[message.spec] < TRIES:
                        cause = message.error.strip().splitlines()[-1]
                        print(f"trying again: {message.spec}: {cause}", flush=True)
                        queue.add(message.spec)
                        self._assign_episodes(queue)
                        continue
                else:
                    mean = self._lengths.get(message.spec.task_id, message.steps)
                    self._lengths[message.spec.task_id] = mean + 0.2 * (message.steps - mean)
                self._assign_episodes(queue)
                yield message
            now = time.monotonic()
            self._kill_hung_workers(min(now - last, TICK_SECONDS))
            last = now
            if waiting and not self._timeout(waiting, batch):
                self._send_answers([waiting.popleft() for _ in range(min(batch, len(waiting)))], act)

    def stop(self) -> None:
        """End the run that another thread is in, with an error there, within `TICK_SECONDS` and a query."""
        self._stopping.set()

    # Workers.

    def _start_worker(self) -> _Worker:
        ours, theirs = self._context.Pipe()
        shared = SharedImages(self._context, self._shape, self._settings.transform.size)
        process = self._context.Process(target=run_worker, args=(theirs, shared, self._settings), daemon=True)
        with one_core_each():
            process.start()
        theirs.close()
        return _Worker(process, ours, *shared.views())

    def _start_workers(self, frames: int) -> None:
        """Start all workers at first, or when images need more memory; else replace those that are busy."""
        shape = images_shape(self._settings.protocol, frames)
        if shape[0] > self._shape[0]:
            self.close()
            self._shape = shape
        if not self._workers:
            self._workers = [self._start_worker() for _ in range(self._number)]
        for number, worker in enumerate(self._workers):
            if worker.spec is not None:  # still in an episode of a run that was abandoned
                self._replace_worker(number)

    def _replace_worker(self, number: int) -> None:
        """Kill a worker and start another in its place."""
        process = self._workers[number].process
        self._workers[number].connection.close()
        process.kill()
        process.join()
        self._workers[number] = self._start_worker()

    def _kill_hung_workers(self, seconds: float) -> None:
        """Add `seconds` to every silence; a killed worker's closed connection then reports its death."""
        for worker in self._workers:
            if worker.spec is None or worker.waiting_since is not None:
                continue
            worker.silence += seconds
            if worker.silence > self._hang_seconds:
                silence = f"has said nothing for {worker.silence:.0f} s"
                print(f"worker process {worker.process.pid} {silence}: killed", flush=True)
                worker.process.kill()

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

    # Messages.

    def _timeout(self, waiting: Sequence[Query], batch: int) -> float:
        """Seconds to wait for more queries before answering those that wait; 0 if they are due now."""
        if not waiting:
            return TICK_SECONDS
        simulating = any(worker.spec is not None and worker.waiting_since is None for worker in self._workers)
        if len(waiting) >= batch or not simulating:
            return 0
        since = self._workers[waiting[0].worker].waiting_since
        assert since is not None
        return max(0.0, since + BATCH_WAIT_SECONDS - time.monotonic())

    def _ready_workers(self, timeout: float) -> list[int]:
        """Numbers of the workers that have sent a message."""
        numbers = {worker.connection: k for k, worker in enumerate(self._workers) if worker.spec is not None}
        return [numbers[connection] for connection in wait(list(numbers), timeout)]  # type: ignore[index]

    def _receive(self, number: int) -> Query | Episode | FailedRun:
        """A worker's message; a worker that died is replaced, and its episode has failed."""
        worker = self._workers[number]
        assert worker.spec is not None
        worker.silence = 0.0
        try:
            message: QueryMessage | EpisodeMessage | FailedRun = worker.connection.recv()
        except (EOFError, OSError):
            process = worker.process
            process.join(10)  # so that the exit code is its own, not that of being killed below
            error = f"worker process {process.pid} ended with code {process.exitcode}"
            self._replace_worker(number)
            return FailedRun(worker.spec, error)
        if isinstance(message, QueryMessage):
            worker.waiting_since = time.monotonic()
            first, image = message.index == 0, worker.query_image
            return Query(number, worker.spec, first, message.instruction, image, message.proprio)
        if isinstance(message, EpisodeMessage):
            images, frames = message.images, message.images + message.frames
            # Copied: the worker's next episode overwrites them.
            return replace(
                message.episode,
                images=worker.images[:images].copy(),
                frames=worker.images[images:frames].copy(),
            )
        return message

    def _send_answers(self, queries: list[Query], act: Act) -> None:
        for query, answer in zip(queries, act(queries), strict=True):
            worker = self._workers[query.worker]
            worker.waiting_since = None
            with suppress(OSError):  # it may have died, which the next `_receive` reports
                worker.connection.send(answer)

    def _assign_episodes(self, queue: _EpisodeQueue) -> None:
        """Send every idle worker its next episode."""
        for worker in self._workers:
            if worker.spec is None:
                others = set().union(*(other.tasks for other in self._workers if other is not worker))
                spec = queue.take(worker.tasks, others)
                if spec is None:
                    return
                worker.spec, worker.silence, worker.waiting_since = spec, 0.0, None
                worker.tasks.add(spec.task_id)
                with suppress(OSError):  # it may have died idle, which the next `_receive` reports
                    worker.connection.send(spec)
