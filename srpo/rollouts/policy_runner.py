"""A policy acting in many LIBERO episodes at once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from types import TracebackType

import numpy as np
import torch

from srpo.config import Protocol
from srpo.episode import Episode, EpisodeSpec, FailedRun
from srpo.libero_plus.data import PlusSources
from srpo.policies.openvla_oft import OpenVLAOFT, skip
from srpo.rollouts.pool import EnvPool, Query
from srpo.rollouts.worker import Answer
from srpo.runtime.peers import ALONE, Peers

LEAST_RUN = 0.5
"""Share of the episodes asked for that must have run; with fewer, a result would say little of the policy."""


def require_most_ran(ran: int, errors: int, what: str) -> None:
    """Raise SystemExit if too few of some episodes could be run.

    Args:
        ran: episodes that succeeded or failed.
        errors: episodes that could not be run (`FailedRun`).
        what: the episodes, at the message's beginning.
    """
    if errors and ran < LEAST_RUN * (ran + errors):
        raise SystemExit(
            f"error: {what}: {errors} of {ran + errors} episodes could not be run, see the errors above; at "
            f"least {LEAST_RUN:.0%} must. What ran is kept and not run again: mend the cause, start again"
        )


class PolicyRunner(AbstractContextManager["PolicyRunner"]):
    """Runs episodes of one suite with one policy; the policy may be trained between two runs.

    An episode is determined by its spec, the policy and the protocol, since its actions are sampled by a
    generator seeded with `spec.seed`, for a branch as if it had sampled what came before; but for rounding,
    see `protocol.batch`.
    """

    def __init__(
        self,
        suite: str,
        protocol: Protocol,
        policy: OpenVLAOFT,
        workers: int,
        plus: PlusSources | None = None,
        peers: Peers = ALONE,
    ) -> None:
        """Simulators start with the first run. Raises CheckpointError if the policy has no statistics of the
        suite.

        Args:
            peers: processes whose runners run the same episodes together, each episode once.
        """
        policy.statistics(suite)
        self._suite = suite
        self._policy = policy
        self._batch = protocol.batch or (1 if policy.device.type == "cpu" else 64)
        self._generators: dict[int, torch.Generator] = {}
        self._pool = EnvPool(suite, protocol, workers, policy.image_transform, plus, peers)

    def run(
        self, specs: Iterable[EpisodeSpec], others: Sequence[EpisodeSpec] = ()
    ) -> Iterator[Episode | FailedRun]:
        """Run episodes, all at one temperature; yield each as it finishes, in any order.

        Of several processes all must call; each yields those that it has run. An episode that several give is
        run by the first that comes to it.

        Args:
            others: begun when none of `specs` is left.
        """
        specs = list(specs)
        every = [*specs, *others]
        if len({spec.temperature for spec in every}) > 1:
            raise ValueError("the episodes of one run need one temperature")
        if len(set(every)) < len(every):
            raise ValueError("two episodes of one run are the same")
        self._policy.eval()
        threads = torch.get_num_threads()
        # The workers use the other cores, and one observation is too small for several threads.
        torch.set_num_threads(1)
        try:
            yield from self._pool.run(specs, self._act, self._batch, others)
        finally:
            torch.set_num_threads(threads)

    def _act(self, queries: Sequence[Query]) -> list[Answer]:
        for query in queries:
            if query.first:
                generator = torch.Generator().manual_seed(query.spec.seed)
                if query.spec.start is not None:
                    skip(generator, query.spec.start.query)
                self._generators[query.worker] = generator
        inputs = self._policy.build_inputs(
            self._suite,
            np.stack([query.image for query in queries]),
            [query.instruction for query in queries],
            np.stack([query.proprio for query in queries]),
        )
        generators = [self._generators[query.worker] for query in queries]
        tokens, log_probs = self._policy.act(inputs, queries[0].spec.temperature, generators)
        actions = self._policy.actions(self._suite, tokens)
        return [Answer(*parts) for parts in zip(actions, tokens, log_probs, strict=True)]

    def stop(self) -> None:
        """End the run that another thread is in, with an error there. Only `close` may follow."""
        self._pool.stop()

    def close(self) -> None:
        """End the simulation processes."""
        self._pool.close()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
