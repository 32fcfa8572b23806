"""The simulation process, without a simulation."""

from __future__ import annotations

import multiprocessing
import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from srpo.episode import EpisodeSpec, FailedRun
from srpo.rollouts import worker


def test_a_missing_library_is_what_every_episode_fails_of(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a new process for each, since no other would have it."""
    monkeypatch.setitem(sys.modules, "srpo.envs.libero", None)
    monkeypatch.setattr(worker.signal, "signal", lambda *_: None)
    ours, theirs = multiprocessing.Pipe()
    specs = [EpisodeSpec("libero_goal", 8, state, seed=0, temperature=0.0) for state in (0, 1)]
    for message in (*specs, None):
        ours.send(message)
    pictures: Any = SimpleNamespace(views=lambda: (np.zeros((1, 2, 2, 3), np.uint8), np.zeros((2, 2, 3))))
    settings: Any = None
    worker.run_worker(theirs, pictures, settings)
    for spec in specs:
        failed = ours.recv()
        assert isinstance(failed, FailedRun) and failed.spec == spec and "srpo.envs.libero" in failed.error
