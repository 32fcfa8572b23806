"""Mutated configurations, demonstrations and checkpoints: the short form of tests/fuzz.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.mutations import TARGETS, Target, fault

MUTATIONS = 25
"""Of each input."""


@pytest.mark.parametrize("kind", TARGETS, ids=lambda kind: kind.name)
def test_mutated_inputs_are_read_or_refused(kind: type[Target], tmp_path: Path) -> None:
    target = kind(tmp_path)
    target.read()  # as it is, it is right
    outcomes = [fault(target, seed) for seed in range(MUTATIONS)]
    assert [found for found, _ in outcomes if found] == []
    assert any(refused for _, refused in outcomes)
