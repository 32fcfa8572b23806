"""Demonstrations."""

from __future__ import annotations

from srpo.config.fields import NonNegative, PositiveInt, Section, Seed


class Demos(Section):
    """Demonstrations for supervised fine-tuning, one robomimic/LIBERO HDF5 file a task."""

    source: str
    """`expert`: record them with the scripted expert. Otherwise a folder with LIBERO's own HDF5 files, or
    one in LeRobot's format (with `meta/info.json`; versions 2.0, 2.1, 3.0)."""
    per_task: PositiveInt
    """Demonstrations a task."""
    noise: NonNegative
    """Standard deviation of the noise on executed (not on labelled) actions; full action is 1."""
    seed: Seed
    """Seed of the noise and of what else the expert draws."""
    max_steps: PositiveInt | None = None
    """Control steps in which the scripted expert must succeed. null: those of the protocol. More leave RL to
    make the policy faster than what it imitates."""
