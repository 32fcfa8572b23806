"""Our environment against the stock one: same physics, same pictures, same success, bit for bit."""

import numpy as np
import pytest

from srpo.config import Protocol
from srpo.envs import certificate, libero
from srpo.envs.gl import choose_backend
from srpo.envs.libero import SETTLE_ACTION, LiberoEnv, init_states
from srpo.envs.models import visible_model
from srpo.envs.osc import UnstableSimulationError

# After the OpenGL back end is chosen.
import mujoco  # isort: skip
from libero.libero.envs.env_wrapper import ControlEnv, OffScreenRenderEnv  # isort: skip

pytestmark = pytest.mark.integration
STATE = int(mujoco.mjtState.mjSTATE_INTEGRATION)


def protocol(**changes: object) -> Protocol:
    values = dict(
        profile="held_out", max_steps=300, settle_steps=10, env_seed=0, image_size=128, render="exact"
    )
    return Protocol(**(values | changes))


def pushing_actions(steps: int, seed: int) -> np.ndarray:
    """Random smooth actions that push down into the objects, with the gripper opening and closing."""
    rng = np.random.default_rng(seed)
    velocity, actions = np.zeros(6), np.zeros((steps, 7))
    for k in range(steps):
        velocity = 0.85 * velocity + 0.5 * rng.normal(size=6) * [1, 1, 1, 0.4, 0.4, 0.4]
        actions[k, :6] = np.clip(velocity - [0, 0, 0.5, 0, 0, 0], -1, 1)
        actions[k, 6] = 1 if (k // 15) % 2 else -1
    actions[::5, 3:6] = 0  # a zero rotation keeps the old goal: a branch of its own
    return actions


@pytest.mark.parametrize(("suite", "task_id"), [("libero_goal", 7), ("libero_spatial", 5)])
def test_steps_and_pictures_equal_the_stock_environments(suite: str, task_id: int) -> None:
    ours = LiberoEnv(suite, task_id, protocol())
    ours.reset(1)  # so that the state under test comes after a restore
    ours.step(np.ones(7))
    ours.reset(3)
    stock = OffScreenRenderEnv(
        bddl_file_name=str(ours.task.bddl_file),
        camera_names=["agentview"],
        camera_heights=128,
        camera_widths=128,
    )
    stock.seed(0)
    stock.reset()
    stock.set_init_state(init_states(suite, task_id)[3])

    def stock_state() -> np.ndarray:
        state = np.empty(mujoco.mj_stateSize(ours.model, STATE))
        sim = stock.env.sim
        mujoco.mj_getState(sim.model._model, sim.data._data, state, STATE)
        return state

    def stock_step(action: np.ndarray) -> tuple:
        # Both environments render in this process: the stock one expects its context to be current.
        stock.env.sim._render_context_offscreen.gl_ctx.make_current()
        return stock.step(action.tolist())

    for _ in range(10):
        observation, *_ = stock_step(SETTLE_ACTION)
    np.testing.assert_array_equal(ours.integration_state(), stock_state())
    np.testing.assert_array_equal(ours.render(), observation["agentview_image"][::-1, ::-1])
    contacts = 0
    for k, action in enumerate(pushing_actions(24, seed=task_id)):
        observation, _, done, _ = stock_step(action)
        assert ours.step(action) == done
        np.testing.assert_array_equal(ours.integration_state(), stock_state())
        np.testing.assert_array_equal(
            ours.proprio()[[0, 1, 2, 6, 7]],
            np.concatenate([observation["robot0_eef_pos"], observation["robot0_gripper_qpos"]]).astype(
                np.float32
            ),
        )
        contacts = max(contacts, ours.data.ncon)
        if k % 8 == 7:
            np.testing.assert_array_equal(ours.render(), observation["agentview_image"][::-1, ::-1])
    assert contacts > 0
    # It frees its OpenGL objects in the current context, which must not be ours.
    stock.env.sim._render_context_offscreen.gl_ctx.make_current()
    stock.close()


def test_running_resets_place_fixtures_as_the_official_loop_does() -> None:
    """OpenVLA-OFT's evaluation: one environment, seeded once, reset before each of its initial states."""
    running = LiberoEnv("libero_goal", 2, protocol(render="fast", resets="running"))
    first = LiberoEnv("libero_goal", 2, protocol(render="fast"))
    stock = ControlEnv(
        bddl_file_name=str(first.task.bddl_file), has_offscreen_renderer=False, use_camera_obs=False
    )
    stock.seed(0)
    states, moved = init_states("libero_goal", 2), []
    expected = []
    for k in range(3):
        stock.reset()
        stock.set_init_state(states[k])
        for _ in range(10):
            stock.step(SETTLE_ACTION.tolist())
        model, data = stock.env.sim.model._model, stock.env.sim.data._data
        state = np.empty(mujoco.mj_stateSize(running.model, STATE))
        mujoco.mj_getState(model, data, state, STATE)
        expected.append((model.body_pos.copy(), model.body_quat.copy(), state))
        moved.append(np.abs(model.body_pos - expected[0][0]).max())
    assert moved[0] == 0 and min(moved[1:]) > 0.001
    for k in (2, 0, 1, 2):  # by its number alone, whatever was asked for before
        running.reset(k)
        for ours, stocks in zip(
            (running.model.body_pos, running.model.body_quat, running.integration_state()),
            expected[k],
            strict=True,
        ):
            np.testing.assert_array_equal(ours, stocks)
    first.reset(2)
    np.testing.assert_array_equal(first.model.body_pos, expected[0][0])


def test_an_unstable_simulation_is_an_error_and_not_an_episode_that_goes_on() -> None:
    env = LiberoEnv("libero_goal", 7, protocol(render="fast"))
    env.reset(0)
    healthy = env.snapshot()
    for broken in (env.data.qpos, env.data.qvel):
        broken[3] = 1e11
        with pytest.raises(UnstableSimulationError, match="unstable"):
            env.step(np.zeros(7))
        env.reset(0)
        np.testing.assert_array_equal(env.snapshot(), healthy)
        env.step(np.zeros(7))  # and the error has gone with its episode


@pytest.mark.parametrize(("suite", "task_id"), certificate.TASKS)
def test_pictures_and_states_are_those_of_released_checkpoints(suite: str, task_id: int) -> None:
    """Stock LIBERO's on MuJoCo 3.3.2: at the same positions, every pixel."""
    good = certificate.known()[suite, task_id]
    measured = certificate.measure(suite, task_id, good.settled)
    np.testing.assert_allclose(measured.settled, good.settled, rtol=0, atol=1e-6)
    np.testing.assert_allclose(measured.moved, good.moved, rtol=0, atol=1e-6)
    np.testing.assert_allclose(measured.blocks, good.blocks, rtol=0, atol=certificate.SAME_LEVEL)
    if choose_backend() == "osmesa":
        assert measured.picture == good.picture


@pytest.mark.parametrize("task_id", [0, 5, 7])
@pytest.mark.parametrize("suite", ["libero_spatial", "libero_object", "libero_goal", "libero_10"])
def test_control_steps_are_robosuites_own(suite: str, task_id: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twelve tasks, 200 steps, starting before settling: the first substep has stale kinematics.

    Against robosuite's step on the full model, with the geoms and sensors that our physics model lacks.
    """
    ours = LiberoEnv(suite, task_id, protocol(render="fast", settle_steps=0))
    with monkeypatch.context() as patch:
        patch.setattr(libero, "physics_model", visible_model)
        stock = LiberoEnv(suite, task_id, protocol(render="fast")).env
    model, data = stock.sim.model._model, stock.sim.data._data
    # Geoms that collide keep their order.
    geoms = np.flatnonzero(model.geom_contype | model.geom_conaffinity)
    assert ours.model.ngeom == len(geoms) < model.ngeom
    for name in ("body_mass", "body_inertia", "body_ipos", "body_iquat", "body_invweight0", "dof_invweight0"):
        np.testing.assert_array_equal(getattr(ours.model, name), getattr(model, name), err_msg=name)
    stock.sim.set_state_from_flattened(init_states(suite, task_id)[5])
    stock.sim.forward()
    ours.reset(5)
    state = np.empty(mujoco.mj_stateSize(ours.model, STATE))
    contacts = 0
    for action in [*[SETTLE_ACTION] * 10, *pushing_actions(200, seed=task_id)]:
        *_, done, _ = stock.step(action)
        mujoco.mj_getState(ours.model, data, state, STATE)
        assert ours.step(action) == ours.success == done
        np.testing.assert_array_equal(ours.integration_state(), state)
        np.testing.assert_array_equal(ours.model.site_rgba, model.site_rgba)
        np.testing.assert_array_equal(geoms[ours.data.contact.geom], data.contact.geom)
        contacts = max(contacts, data.ncon)
    assert contacts > 10


def test_goals_have_their_regions_where_the_stock_scene_has_them() -> None:
    """As for `Push the plate to the front of the stove`: its region is a place, not part of a body."""
    env = LiberoEnv("libero_goal", 5, protocol(render="fast"))
    env.reset(0)
    model = mujoco.MjModel.from_xml_string(env.env.model.get_xml())
    model.body_pos[:], model.body_quat[:] = env.model.body_pos, env.model.body_quat  # a reset moves fixtures
    data = mujoco.MjData(model)
    data.qpos[:] = env.data.qpos
    mujoco.mj_kinematics(model, data)
    mujoco.mj_kinematics(env.model, env.data)
    regions = [name for name in env.env.object_sites_dict if name.endswith("_region")]
    assert len(regions) > 10
    for name in regions:
        np.testing.assert_array_equal(env.data.site(name).xpos, data.site(name).xpos, err_msg=name)
        np.testing.assert_array_equal(env.data.site(name).xmat, data.site(name).xmat, err_msg=name)
        np.testing.assert_array_equal(env.model.site(name).size, model.site(name).size, err_msg=name)


@pytest.fixture(scope="module")
def bowl_on_plate() -> LiberoEnv:
    return LiberoEnv("libero_goal", 8, protocol(render="fast"))


def test_a_reset_forgets_everything(bowl_on_plate: LiberoEnv) -> None:
    env = bowl_on_plate
    actions = pushing_actions(20, seed=1)

    def final() -> np.ndarray:
        env.reset(0)
        for action in actions:
            env.step(action)
        return env.integration_state()

    first = final()
    env.reset(7)
    env.step(np.ones(7))
    np.testing.assert_array_equal(final(), first)


def test_a_picture_made_later_is_the_picture_made_then(bowl_on_plate: LiberoEnv) -> None:
    env = bowl_on_plate
    env.reset(0)
    for action in pushing_actions(10, seed=2):
        env.step(action)
    then, observation = env.render(), env.observation
    for action in pushing_actions(10, seed=3):
        env.step(action)
    before = env.integration_state()
    assert (env.render() != then).any()
    np.testing.assert_array_equal(env.render(observation=observation), then)
    np.testing.assert_array_equal(env.integration_state(), before)


def test_bad_requests_are_named(bowl_on_plate: LiberoEnv) -> None:
    with pytest.raises(IndexError, match="initial states 0–49, not 50"):
        bowl_on_plate.reset(50)
    with pytest.raises(ValueError, match="7 numbers"):
        bowl_on_plate.step(np.zeros(6))
    with pytest.raises(ValueError, match="not finite"):
        bowl_on_plate.step(np.full(7, np.nan))
    with pytest.raises(ValueError, match="tasks 0–9, not 10"):
        LiberoEnv("libero_goal", 10, protocol())
    with pytest.raises(ValueError, match="no LIBERO suite 'libero_gaol'"):
        LiberoEnv("libero_gaol", 0, protocol())
