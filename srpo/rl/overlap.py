"""The next step's rollouts in a thread, while the process updates the policy (`train.overlap`)."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, nullcontext
from functools import cache

import torch

from srpo.config import TrainStage
from srpo.rl.collect import Collector, Share, episode_specs, sample_prompts


class RolloutsAhead:
    """This process's share of a step's first round, run by a thread from now on.

    The thread takes part in no collective operation, for the update does so meanwhile; it only asks the
    peers' store which episodes are begun. What needs all processes is done when it has ended: gathering, the
    further rounds of dynamic sampling, branches.
    """

    def __init__(self, config: TrainStage, step: int, collector: Collector, device: torch.device) -> None:
        """Start, with the policy on `device`. The collector is the thread's until `result` or `stop`."""
        self._runner = collector.runner
        # Rollouts act by one CPU thread and set that number for the whole process, so the update has it too:
        # its sums must not depend on when the rollouts end.
        self._threads = torch.get_num_threads()
        torch.set_num_threads(1)
        specs = episode_specs(config, step, sample_prompts(config, step))
        beside = _beside(device)

        def run() -> Share:
            if device.type == "cuda":
                torch.cuda.set_device(device)  # a new thread's is the first GPU, another process's
            with beside:
                return collector.run_share(step, specs, f"step {step}, ahead", config.train.group_size)

        executor = ThreadPoolExecutor(1, thread_name_prefix="rollouts")
        self._share = executor.submit(run)
        executor.shutdown(wait=False)

    def check(self) -> None:
        """Raise what has ended the rollouts, if anything has."""
        if self._share.done():
            self._share.result()

    def result(self) -> Share:
        """Wait for the share. Raises what has ended the rollouts."""
        share = self._share.result()
        torch.set_num_threads(self._threads)
        return share

    def stop(self) -> None:
        """End the rollouts, whose episodes so far are stored."""
        self._runner.stop()
        wait([self._share])
        torch.set_num_threads(self._threads)


def _beside(device: torch.device) -> AbstractContextManager[object]:
    """On a GPU, a stream that goes on from what is queued now: on the update's, queries would wait for it."""
    if device.type != "cuda":
        return nullcontext()
    stream = _stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    return torch.cuda.stream(stream)


@cache
def _stream(device: torch.device) -> torch.cuda.Stream:
    """The same for all steps: PyTorch keeps the memory that was freed on a stream for that one."""
    return torch.cuda.Stream(device, priority=-1)
