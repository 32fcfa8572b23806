"""The distance to a task's goal, on real tasks."""

import numpy as np
import pytest

from srpo.config import Protocol
from srpo.envs.expert.goals import run_expert
from srpo.envs.libero import LiberoEnv

PROTOCOL = Protocol(
    profile="official",
    max_steps=400,
    settle_steps=10,
    env_seed=0,
    image_size=32,
    render="fast",
)


@pytest.mark.parametrize(
    ("suite", "task", "hinge"),
    [
        ("libero_goal", 0, None),  # open a drawer
        ("libero_goal", 7, 0.08),  # turn on the stove: its knob is some 8 cm from axis to rim
        ("libero_10", 9, 0.32),  # put a mug in the microwave and close it
    ],
)
def test_the_expert_reaches_distance_zero(suite: str, task: int, hinge: float | None) -> None:
    env = LiberoEnv(suite, task, PROTOCOL)
    env.reset(0)
    distances: list[float] = []
    parts = env._goal._parts
    assert run_expert(
        env,
        0,
        noise=0.0,
        rng=np.random.default_rng(0),
        max_steps=400,
        before_step=lambda *_: distances.append(env.distance_to_goal()),
    )
    assert env.distance_to_goal() == 0
    assert 0.3 < distances[0] < 2, "metres, not centimetres"
    assert 0 < min(distances) < 0.35 * distances[0]
    # Apart from the hand's detours around objects, it decreases.
    assert np.corrcoef(distances, range(len(distances)))[0, 1] < -0.7
    radii = [getattr(part, "radius", None) for _, part in parts]
    if hinge is not None:
        assert any(radius == pytest.approx(hinge, abs=0.01) for radius in radii if radius)


def test_distance_to_a_place_is_by_way_of_the_object() -> None:
    env = LiberoEnv("libero_goal", 8, PROTOCOL)  # the bowl on the plate
    env.reset(3)
    bowl, plate = (env.data.body(f"{name}_main").xpos for name in ("akita_black_bowl_1", "plate_1"))
    expected = np.linalg.norm(env.proprio()[:3] - bowl) + np.linalg.norm(bowl - plate)
    assert env.distance_to_goal() == pytest.approx(expected, abs=1e-5)


def test_a_predicate_without_a_measure_is_named() -> None:
    env = LiberoEnv("libero_goal", 8, PROTOCOL)
    env.env.parsed_problem["goal_state"] = [["up", "akita_black_bowl_1"]]
    with pytest.raises(ValueError, match="up"):
        type(env._goal)(env.env, env.model, env.data, env.visible)
