"""One LIBERO task: real physics, real pictures, snapshots instead of resets.

The stock environment rebuilds the whole scene at every reset and renders two cameras at every step. Here a
task is built once; an initial state is set and settled once and from then on restored from a snapshot; a
picture is rendered when somebody asks for one. What comes out is what the stock environment gives.
"""

from __future__ import annotations

import contextlib
import functools
import io
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import srpo.envs  # noqa: F401  (decides the OpenGL back end before MuJoCo is imported)

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import mujoco
    import numpy as np
    import robosuite
    from libero.libero import benchmark, get_libero_path
    from libero.libero.envs import TASK_MAPPING, bddl_utils
    from libero.libero.envs import robots as _robots  # noqa: F401  (registers LIBERO's robots)
    from robosuite.utils import transform_utils
    from robosuite.utils.binding_utils import MjSim

from numpy.typing import NDArray

from srpo.config import CONTROL_HZ, Protocol
from srpo.envs.goal import Goal
from srpo.envs.models import physics_model
from srpo.envs.osc import ControllerState, Observation, OscStepper
from srpo.envs.renderer import Renderer, VisibleScene, visible_scene
from srpo.episode import ACTION_DIM

SETTLE_ACTION = np.array([0.0, 0, 0, 0, 0, 0, -1])
_STATE = int(mujoco.mjtState.mjSTATE_INTEGRATION)


@dataclass(frozen=True)
class Task:
    """A LIBERO task: its place in the suite, BDDL name and instruction."""

    suite: str
    task_id: int
    name: str
    language: str
    bddl_file: Path


@functools.cache
def _suite(name: str) -> Any:
    suites = benchmark.get_benchmark_dict()
    if name not in suites:
        raise ValueError(f"no LIBERO suite {name!r}; there are {', '.join(sorted(suites))}")
    with contextlib.redirect_stdout(io.StringIO()):
        return suites[name]()


def load_task(suite: str, task_id: int) -> Task:
    """Look up a task. Raises ValueError if the suite has no such task."""
    loaded = _suite(suite)
    if not 0 <= task_id < loaded.n_tasks:
        raise ValueError(f"{suite} has tasks 0–{loaded.n_tasks - 1}, not {task_id}")
    task = loaded.get_task(task_id)
    return Task(suite, task_id, task.name, task.language, Path(loaded.get_task_bddl_file_path(task_id)))


@functools.cache
def asset_folder() -> Path:
    """LIBERO's own asset folder."""
    return Path(get_libero_path("assets"))


@functools.cache
def init_states(suite: str, task_id: int) -> NDArray[np.float64]:
    """LIBERO's initial states of a task, float64 (50, 1 + nq + nv): time, positions, velocities."""
    return np.asarray(_suite(suite).get_task_init_states(task_id), np.float64)


@functools.cache
def _lean_domain(domain: type) -> type:
    """A LIBERO problem class whose scene is compiled for the physics alone, and only once."""

    def initialize_sim(self: Any, xml_string: str | None = None) -> None:
        # Regions are marks without a body: tasks and layouts that differ in nothing else share models.
        self.scene_xml, regions = without_regions(xml_string or self.model.get_xml())
        # A reset moves fixtures in the model, so each simulation gets a copy.
        model = mujoco.MjModel.__copy__(physics_model(self.scene_xml))
        for name, (position, size) in regions.items():
            model.site(name).pos, model.site(name).size = position, size
        self.sim = MjSim(model)
        # It is for pictures of segments, and would look for geoms that are only to be seen.
        self.model.generate_id_mappings = lambda sim: None
        self.sim.forward()
        self.initialize_time(self.control_freq)

    def destroy_sim(self: Any) -> None:
        self.sim = None  # stock robosuite also collects garbage here, in every reset

    # LIBERO checks that the class is named like the problem.
    return type(domain.__name__, (domain,), {"_initialize_sim": initialize_sim, "_destroy_sim": destroy_sim})


_REGION = re.compile(r'(<site quat="1 0 0 0" type="box" )pos="([^"]*)" size="([^"]*)"([^>]* name="([^"]*)")')


def without_regions(scene: str) -> tuple[str, dict[str, tuple[list[float], list[float]]]]:
    """A scene's XML with all its regions (LIBERO's target zones) in one place, and where they really are.

    That place is not their body's origin: MuJoCo would compile such sites to stay there, wherever `pos` says.

    Returns:
        The XML, and per site its position and half sizes (m).
    """

    def numbers(text: str) -> list[float]:
        return [float(word) for word in text.split()]

    regions = {name: (numbers(pos), numbers(size)) for _, pos, size, _, name in _REGION.findall(scene)}
    return _REGION.sub(r'\1pos="1 1 1" size="0.01 0.01 0.01"\4', scene), regions


def _build(bddl_file: Path, scene_xml: str | None = None) -> Any:
    """The robosuite environment of a task, as LIBERO's ControlEnv makes it, without cameras.

    `scene_xml` names another arena's file than the problem's own.
    """
    problem = bddl_utils.get_problem_info(str(bddl_file))
    domain = _lean_domain(TASK_MAPPING[problem["problem_name"]])
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return domain(
            str(bddl_file),
            robots=["Panda"],
            controller_configs=robosuite.load_controller_config(default_controller="OSC_POSE"),
            gripper_types="default",
            initialization_noise=None,
            use_camera_obs=False,
            has_renderer=False,
            has_offscreen_renderer=False,
            control_freq=CONTROL_HZ,
            horizon=1000,
            hard_reset=True,
            **({} if scene_xml is None else {"scene_xml": scene_xml}),
        )


@dataclass(frozen=True)
class _Snapshot:
    physics: NDArray[np.float64]
    controller: ControllerState
    site_rgba: NDArray[np.float32]
    observation: Observation


class LiberoEnv:
    """One LIBERO task under one protocol.

    Building takes a second or so; `reset` is a snapshot's restore after the first time. Not thread-safe: the
    process has one OpenGL context, and robosuite draws from NumPy's global generator while it builds.
    """

    def __init__(
        self,
        suite: str,
        task_id: int,
        protocol: Protocol,
        bddl_file: Path | None = None,
        scene_xml: str | None = None,
    ) -> None:
        self.task = load_task(suite, task_id)
        self.protocol = protocol
        self.env = _build(bddl_file or self.task.bddl_file, scene_xml)
        self.env.seed(protocol.env_seed)
        self._hard_reset()
        self._stepper = OscStepper(self.env)
        self.model: mujoco.MjModel = self._stepper.model
        self.data: mujoco.MjData = self._stepper.data
        # Each with the place of its knob's angle, and the opacity of its burner.
        self._stoves = []
        for state in self.env.tracking_object_states_change:
            stove = self.env.get_object(state.object_name)
            (knob,) = (self.model.joint(name).qposadr[0] for name in stove.joints)
            (burner,) = (
                self.model.site(name).id for name, _ in stove.object_properties["vis_site_names"].values()
            )
            self._stoves.append((stove, knob, self.model.site_rgba[burner, 3:]))
        self.steps = 0
        self.observation = self._stepper.observe()
        """What can be seen now; `render` also takes an earlier one."""
        self._fresh = self._snapshot()
        self._snapshots: dict[int, _Snapshot] = {}
        self._renderer = Renderer(self.model, self.env.scene_xml, protocol.render)
        self._goal = Goal(self.env, self.model, self.data, self.visible)

    def _hard_reset(self) -> None:
        # LIBERO's own wrapper repeats a reset whose random placement fails.
        for _ in range(100):
            try:
                self.env.reset()
                return
            except robosuite.utils.errors.RandomizationError:
                continue
        raise RuntimeError(f"{self.task.name}: no valid placement of its objects in 100 tries")

    def reset(self, init_state: int) -> None:
        """Put the task into one of its initial states, settled. Raises IndexError if it has none such."""
        if init_state not in self._snapshots:
            states = init_states(self.task.suite, self.task.task_id)
            if not 0 <= init_state < len(states):
                raise IndexError(f"{self.task.name} has initial states 0–{len(states) - 1}, not {init_state}")
            self.begin(states[init_state])
            self._snapshots[init_state] = self._snapshot()
        self._restore(self._snapshots[init_state])
        self.steps = 0

    def begin(
        self, state: NDArray[np.float64], posture: NDArray[np.float64] | None = None, stays: bool = False
    ) -> None:
        """Start an episode as the stock environment does: hard reset, set the state, settle.

        Args:
            state: LIBERO's flattened state, float64 (1 + nq + nv,).
            posture: the arm's joints at the reset, float64 (7,), radians; None: LIBERO's own. The state puts
                the arm back, and only the controller remembers the posture, unless it `stays`.
        """
        self._restore(self._fresh)
        if posture is not None:
            self._stepper.hold(posture)
            state = self._stepper.bend(state, posture) if stays else state
        self.set_state(state)
        for _ in range(self.protocol.settle_steps):
            self.step(SETTLE_ACTION)
        self.steps = 0

    def step(self, action: NDArray[np.floating]) -> bool:
        """Run one control step (1/20 s) of 7 numbers in [-1, 1] (gripper: -1 opens, +1 closes).

        Returns whether the task's goal holds now.
        """
        command = np.asarray(action, np.float64)
        if command.shape != (ACTION_DIM,):
            raise ValueError(f"an action has {ACTION_DIM} numbers, not shape {command.shape}")
        if not np.isfinite(command).all():
            raise ValueError(f"action {command} is not finite")
        self.observation = self._stepper.step(command)
        self.steps += 1
        self._glow()
        return self.success

    def _glow(self) -> None:
        """Have what is seen follow the state: a stove's burner glows while it is on."""
        # Stock LIBERO checks goals before this as well as after. The first check decides nothing: whatever
        # has such a look is asked for its state here.
        for stove, knob, alphas in self._stoves:
            if (alphas > 0).any() != stove.turn_on(self.data.qpos[knob]):
                self.env._post_process()

    @property
    def success(self) -> bool:
        """Whether the task's goal holds now."""
        return bool(self.env._check_success())

    def distance_to_goal(self) -> float:
        """Metres of way that are left to the task's goal (`srpo.envs.goal`); 0 where it holds."""
        return self._goal.distance_to_goal()

    def render(
        self, camera: str = "agentview", size: int | None = None, observation: Observation | None = None
    ) -> NDArray[np.uint8]:
        """uint8 (size, size, 3) in the official orientation; `size` defaults to the protocol's.

        Pictures can be made after the event: keep `env.observation` of a step and hand it in later.
        """
        return self._renderer(observation or self.observation, camera, size or self.protocol.image_size)

    @contextlib.contextmanager
    def dressed(self, scene_xml: str) -> Iterator[None]:
        """Within the block, pictures show the meshes and textures of another scene's XML (same geometry)."""
        renderer = self._renderer
        self._renderer = Renderer(self.model, scene_xml, self.protocol.render)
        try:
            yield
        finally:
            self._renderer = renderer

    def proprio(self) -> NDArray[np.float32]:
        """float32 (8,): hand position (m), its orientation as axis-angle (rad), finger positions (m)."""
        observation = self.observation
        quaternion = transform_utils.convert_quat(observation.hand_quat, to="xyzw")
        orientation = transform_utils.quat2axisangle(quaternion)
        return np.concatenate([observation.hand_pos, orientation, observation.fingers]).astype(np.float32)

    def visible(self, qpos: NDArray[np.float64] | None = None) -> VisibleScene:
        """Everything there is to see, which the physics is without, at some positions (default: present).

        It is shared with other environments of the scene: to be looked at before anything else is done.
        """
        scene = visible_scene(self.env.scene_xml)
        scene.pose(self.model, self.data.qpos if qpos is None else qpos)
        return scene

    def state(self) -> NDArray[np.float64]:
        """LIBERO's flattened state, float64 (1 + nq + nv,): time, positions, velocities."""
        return np.concatenate([[self.data.time], self.data.qpos, self.data.qvel])

    def set_state(self, state: NDArray[np.float64]) -> None:
        """Set LIBERO's flattened state, as the stock `set_init_state` does; the controller is untouched."""
        expected = 1 + self.model.nq + self.model.nv
        if state.shape != (expected,):
            raise ValueError(f"{self.task.name}: a state has {expected} numbers, not shape {state.shape}")
        self.data.time = state[0]
        self.data.qpos[:] = state[1 : 1 + self.model.nq]
        self.data.qvel[:] = state[1 + self.model.nq :]
        mujoco.mj_forward(self.model, self.data)
        self._glow()
        self.observation = self._stepper.observe()

    def integration_state(self) -> NDArray[np.float64]:
        """MuJoCo's whole integration state: equal states continue equally."""
        state = np.empty(mujoco.mj_stateSize(self.model, _STATE))
        mujoco.mj_getState(self.model, self.data, state, _STATE)
        return state

    def _snapshot(self) -> _Snapshot:
        return _Snapshot(
            self.integration_state(), self._stepper.state, self.model.site_rgba.copy(), self.observation
        )

    def _restore(self, snapshot: _Snapshot) -> None:
        self.model.site_rgba[:] = snapshot.site_rgba
        mujoco.mj_setState(self.model, self.data, snapshot.physics, _STATE)
        mujoco.mj_forward(self.model, self.data)
        self._stepper.state = snapshot.controller
        self.observation = snapshot.observation
        self._glow()
