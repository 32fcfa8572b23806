"""Whether advantages point where success lies: the noise drawn again, and what pulls which way."""

import numpy as np
import pandas as pd
from test_trainer import stage

from srpo import collect
from srpo.analysis import direction
from srpo.rollout import draw_noise
from srpo.types import ACTION_DIM

SIGMA = 0.3
WAY = np.eye(ACTION_DIM)[2]


def rollouts(seeds: int = 3, steps: int = 6) -> pd.DataFrame:
    """Runs as the trainer makes them, whose episodes succeed where their noise along `WAY` is high."""
    config = stage(train={"residual_noise": SIGMA, "temperature": 0.0})
    rows = []
    for seed in range(seeds):
        of_seed = config.model_copy(update={"seed": seed})
        for step in range(1, steps + 1):
            specs = collect.episode_specs(of_seed, step, collect.sample_prompts(of_seed, step))
            for number, spec in enumerate(specs):
                drawn = draw_noise(spec)[1].double().numpy() / SIGMA
                row: dict = dict(suite=spec.suite, variant="srpo", seed=seed, step=step, group=number // 4)
                row |= dict(task_id=spec.task_id, episode_seed=spec.seed, drawn=drawn)
                rows.append(row | dict(success=bool(drawn @ WAY > 0.8), way_left=1 - drawn @ WAY))
    return pd.DataFrame(rows)


def test_the_noise_is_what_the_rollouts_acted_under() -> None:
    rewards = rollouts(seeds=1, steps=2)
    np.testing.assert_allclose(direction.noise(rewards), np.stack(rewards["drawn"]), rtol=1e-6)
    # Without its partner nobody can tell whose noise a rollout had.
    alone = direction.noise(rewards.drop(index=5))
    assert np.isnan(alone[4]).all() and np.isfinite(np.delete(alone, 4, axis=0)).all()


def test_the_way_of_success_is_found_by_the_other_seeds() -> None:
    told = direction.along_success(rollouts())
    along = np.stack(told["drawn"]) @ WAY
    assert np.corrcoef(told["along"], along)[0, 1] > 0.9
    alone = direction.along_success(rollouts(seeds=1))
    assert alone["along"].isna().all()
    assert np.isnan(direction.pull(alone, "outcome").value)


def test_what_pulls_towards_success_and_what_does_not() -> None:
    told = direction.along_success(rollouts())
    told = told.assign(chance=np.random.default_rng(0).standard_normal(len(told)), wrong=-told["true"])
    lost, mixed = told[direction.failed_throughout(told)], told[direction.mixed(told)]
    assert not lost["success"].any() and 0 < mixed["success"].mean() < 1
    assert direction.pull(mixed, "outcome").low > 0.3
    assert (lost["outcome"] == 0).all() and direction.pull(lost, "outcome").value == 0
    assert direction.pull(lost, "true").low > 0.2 and direction.pull(lost, "wrong").high < -0.2
    assert direction.pull(lost, "chance").low < 0 < direction.pull(lost, "chance").high
