"""Rollouts: a policy acting in many LIBERO episodes at once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from types import TracebackType

import numpy as np
import torch
from numpy.typing import NDArray

from srpo.config import Protocol
from srpo.envs.pool import Answer, EnvPool, Query
from srpo.plus_data import PlusSources
from srpo.policies.openvla_oft import OpenVLAOFT
from srpo.types import ACTION_DIM, Episode, EpisodeSpec, FailedRun


def draw_noise(spec: EpisodeSpec) -> tuple[torch.Generator, torch.Tensor]:
    """An episode's random generator, and its first draw, the noise on the residual: float32 (7,)."""
    generator = torch.Generator().manual_seed(spec.seed)
    noise = torch.zeros(ACTION_DIM)
    if spec.noise:
        noise = spec.noise * torch.randn(ACTION_DIM, generator=generator)
    return generator, noise


class Rollouts(AbstractContextManager["Rollouts"]):
    """Runs episodes of one suite with one policy; the policy may be trained between two runs.

    An episode is decided by its spec, the policy and the protocol: the residual's noise and the actions are
    drawn from a generator seeded by `spec.seed`. Only rounding is left: see `protocol.batch`.
    """

    def __init__(
        self,
        suite: str,
        protocol: Protocol,
        policy: OpenVLAOFT,
        workers: int,
        plus: PlusSources | None = None,
    ) -> None:
        self._suite = suite
        self._policy = policy
        self._batch = protocol.batch or (1 if policy.device.type == "cpu" else 64)
        self._generators: dict[int, torch.Generator] = {}
        self._noise: dict[int, torch.Tensor] = {}
        self._leans: dict[EpisodeSpec, NDArray[np.float32]] = {}
        self._pool = EnvPool(suite, protocol, workers, plus=plus)

    def run(self, specs: Iterable[EpisodeSpec]) -> Iterator[Episode | FailedRun]:
        """Run episodes, all at one temperature; yield each as it finishes, in any order."""
        specs = list(specs)
        if len({spec.temperature for spec in specs}) > 1:
            raise ValueError("the episodes of one run need one temperature")
        if len(set(specs)) < len(specs):
            raise ValueError("two episodes of one run are the same")
        if self._policy.residual is None and any(spec.noise for spec in specs):
            raise ValueError("this policy has no residual to add noise to")
        self._policy.eval()
        threads = torch.get_num_threads()
        # The workers use the other cores, and one observation is too small to share.
        torch.set_num_threads(1)
        try:
            for result in self._pool.run(specs, self._act, self._batch):
                lean = self._leans.pop(result.spec, None)
                yield result if lean is None or isinstance(result, FailedRun) else replace(result, lean=lean)
        finally:
            torch.set_num_threads(threads)

    def _act(self, queries: Sequence[Query]) -> list[Answer]:
        for query in queries:
            if query.first:
                self._generators[query.worker], self._noise[query.worker] = draw_noise(query.spec)
        inputs = self._policy.prepare(
            self._suite,
            np.stack([query.image for query in queries]),
            [query.instruction for query in queries],
            np.stack([query.proprio for query in queries]),
        )
        noise = torch.stack([self._noise[query.worker] for query in queries])
        for number, query in enumerate(queries):
            if query.first and self._policy.residual is not None:
                own = self._policy.leans(inputs[number : number + 1])[0].detach().cpu()
                self._leans[query.spec] = (own + noise[number]).numpy()
        generators = [self._generators[query.worker] for query in queries]
        tokens, log_probs = self._policy.act(inputs, queries[0].spec.temperature, generators, noise)
        actions = self._policy.actions(self._suite, tokens)
        return [Answer(*parts) for parts in zip(actions, tokens, log_probs, strict=True)]

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.close()
