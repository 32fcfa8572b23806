"""One LIBERO task as an environment: the stock environment's results, without its redundant work.

The stock environment rebuilds the whole scene at every reset and renders two cameras at every step. Here a
task is built once, an initial state is set and settled once and then restored from a snapshot, and a picture
is rendered on request. States, pictures and successes are the stock environment's, bit for bit.
"""

from __future__ import annotations

import contextlib
import functools
import io
import re
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from importlib import metadata
from pathlib import Path
from typing import Any

import srpo.envs  # noqa: F401  (chooses the OpenGL back end before MuJoCo is imported)

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import mujoco
    import numpy as np
    import robosuite
    from libero.libero import benchmark, get_default_path_dict, get_libero_path
    from libero.libero.envs import TASK_MAPPING, bddl_utils
    from libero.libero.envs import robots as _robots  # noqa: F401  (registers LIBERO's robots)
    from robosuite.utils import transform_utils
    from robosuite.utils.binding_utils import MjSim

from numpy.typing import NDArray

from srpo.config import CONTROL_HZ, Protocol
from srpo.envs.goal import Goal
from srpo.envs.installation import (
    OFFICIAL,
    PACKAGE,
    LiberoError,
    SuiteFiles,
    remedy,
    require_package,
    require_suite,
)
from srpo.envs.models import physics_model, with_linear_textures
from srpo.envs.osc import Observation, OscStepper
from srpo.envs.renderer import Renderer, VisibleScene, visible_scene
from srpo.episode import ACTION_DIM

SETTLE_ACTION = np.array([0.0, 0, 0, 0, 0, 0, -1])
"""Action while objects come to rest: no motion, gripper open."""
PLACEMENT_TRIES = 100
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
    if name not in OFFICIAL:
        raise ValueError(f"no LIBERO suite {name!r}; there are {', '.join(sorted(OFFICIAL))}")
    require_package()
    require_own_assets()
    with contextlib.redirect_stdout(io.StringIO()):
        suite = benchmark.get_benchmark_dict()[name]()
    require_suite(name, _suite_files(suite))
    return suite


def _suite_files(suite: Any) -> SuiteFiles:
    try:
        return SuiteFiles.of(
            (
                suite.get_task(k).name,
                Path(suite.get_task_bddl_file_path(k)).read_bytes(),
                np.asarray(suite.get_task_init_states(k), np.float64),
            )
            for k in range(suite.n_tasks)
        )
    except OSError as error:
        raise LiberoError(f"{suite.name}: {error}. {remedy()}") from None


def require_own_assets() -> None:
    """Raise LiberoError unless meshes, textures and scenes are those of the installed package."""
    own = Path(get_default_path_dict()["assets"])
    if asset_folder().resolve() != own.resolve():
        raise LiberoError(f"LIBERO's assets are taken from {asset_folder()}, not from {own}. {remedy()}")


def libero_record(suite: str) -> dict[str, Any]:
    """For a manifest: the package whose tasks a result is of, and the hashes of a suite's files.

    Raises LiberoError if they are not LIBERO's.
    """
    files = _suite_files(_suite(suite))
    return {"package": PACKAGE, "version": metadata.version(PACKAGE), "suite": suite, **asdict(files)}


def load_task(suite: str, task_id: int) -> Task:
    """Look up a task.

    Raises:
        ValueError: there is no such suite, or the suite has no such task.
        LiberoError: the suite that is installed is not LIBERO's.
    """
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
def _cached_domain(domain: type) -> type:
    """A subclass of a LIBERO problem class whose scene is compiled for the physics alone, and only once."""

    def initialize_sim(self: Any, xml_string: str | None = None) -> None:
        # Regions are sites without a body: tasks and layouts that differ in nothing else share models.
        self.scene_xml, regions = without_regions(xml_string or self.model.get_xml())
        # A reset moves fixtures in the model, so each simulation gets a copy.
        model = mujoco.MjModel.__copy__(physics_model(self.scene_xml))
        for name, (position, size) in regions.items():
            model.site(name).pos, model.site(name).size = position, size
        self.sim = MjSim(model)
        # Used for segmentation pictures alone, and would fail on the visual geoms that the physics lacks.
        self.model.generate_id_mappings = lambda sim: None
        self.sim.forward()
        self.initialize_time(self.control_freq)

    def destroy_sim(self: Any) -> None:
        self.sim = None  # stock robosuite also runs the garbage collector here, at every reset

    # LIBERO checks that the class has the problem's name.
    return type(domain.__name__, (domain,), {"_initialize_sim": initialize_sim, "_destroy_sim": destroy_sim})


_REGION = re.compile(r'(<site quat="1 0 0 0" type="box" )pos="([^"]*)" size="([^"]*)"([^>]* name="([^"]*)")')


def without_regions(scene: str) -> tuple[str, dict[str, tuple[list[float], list[float]]]]:
    """Move all regions of a scene (sites that mark LIBERO's goals) to one place.

    That place is not their body's origin: MuJoCo compiles such sites in a way that ignores a later `pos`.

    Returns:
        The scene's XML, and each site's original position and half sizes (m).
    """

    def numbers(text: str) -> list[float]:
        return [float(number) for number in text.split()]

    regions = {name: (numbers(pos), numbers(size)) for _, pos, size, _, name in _REGION.findall(scene)}
    return _REGION.sub(r'\1pos="1 1 1" size="0.01 0.01 0.01"\4', scene), regions


def _build(bddl_file: Path, scene_xml: str | None = None) -> Any:
    """The robosuite environment of a task, as LIBERO's ControlEnv makes it, without cameras.

    `scene_xml` is another arena's file than the problem's own.
    """
    problem = bddl_utils.get_problem_info(str(bddl_file))
    domain = _cached_domain(TASK_MAPPING[problem["problem_name"]])
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


def _integration_state(model: mujoco.MjModel, data: mujoco.MjData) -> NDArray[np.float64]:
    state = np.empty(mujoco.mj_stateSize(model, _STATE))
    mujoco.mj_getState(model, data, state, _STATE)
    return state


def _parts(stepper: OscStepper, observation: Observation) -> list[NDArray[Any]]:
    """Everything that an episode or a reset changes. A reset moves fixtures, in the model."""
    model = stepper.model
    physics = _integration_state(model, stepper.data)
    fixtures = [model.body_pos, model.body_quat, model.site_rgba]
    seen = [getattr(observation, field.name) for field in fields(Observation)]
    return [physics, *fixtures, *stepper.controller_parts(), *seen]


def _snapshot(stepper: OscStepper, observation: Observation) -> NDArray[np.float64]:
    return np.concatenate([np.ravel(part) for part in _parts(stepper, observation)])


class LiberoEnv:
    """One LIBERO task under one protocol.

    Building takes about a second; after its first time, `reset` restores a snapshot. Not thread-safe: the
    process has one OpenGL context, and robosuite uses NumPy's global generator while it builds.

    Args:
        bddl_file: another task description than LIBERO's own.
        scene_xml: another arena's file than the task's own.
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
        self._source = bddl_file or self.task.bddl_file, scene_xml
        self.env = self._seeded()
        self._hard_reset(self.env)
        self._stepper = OscStepper(self.env)
        self.model: mujoco.MjModel = self._stepper.model
        self.data: mujoco.MjData = self._stepper.data
        self._stoves = [self._stove(state.object_name) for state in self.env.tracking_object_states_change]
        self.steps = 0
        """Control steps since the episode's start."""
        self.observation = self._stepper.observe()
        """What can be seen now; `render` also takes an earlier one."""
        self._after_resets = [self.snapshot()]
        """After the first reset since seeding, the second, …: as many as were asked for."""
        self._later_resets = self._reset_again()
        self._initial: dict[int, NDArray[np.float64]] = {}
        linear = protocol.textures == "linear"
        self.scene_xml = with_linear_textures(self.env.scene_xml) if linear else self.env.scene_xml
        """The scene that is drawn."""
        self._renderer = Renderer(self.model, self.scene_xml, protocol.render)
        self._goal = Goal(self.env, self.model, self.data, self.visible)

    def _stove(self, name: str) -> tuple[Any, int, NDArray[np.float32]]:
        """A stove, its knob's address in `qpos`, and a view of its burner's opacity, float32 (1,)."""
        stove = self.env.get_object(name)
        (knob,) = (self.model.joint(joint).qposadr[0] for joint in stove.joints)
        (burner,) = (
            self.model.site(site).id for site, _ in stove.object_properties["vis_site_names"].values()
        )
        return stove, knob, self.model.site_rgba[burner, 3:]

    def _seeded(self) -> Any:
        """A new robosuite environment of the task, before its first reset."""
        env = _build(*self._source)
        env.seed(self.protocol.env_seed)
        return env

    def _hard_reset(self, env: Any) -> None:
        # LIBERO's own wrapper repeats a reset whose random placement fails.
        for _ in range(PLACEMENT_TRIES):
            try:
                env.reset()
                return
            except robosuite.utils.errors.RandomizationError:
                continue
        raise RuntimeError(f"{self.task.name}: no valid placement of its objects in {PLACEMENT_TRIES} tries")

    def _reset_again(self) -> Iterator[NDArray[np.float64]]:
        """What each reset after the first leaves.

        A reset replaces the simulation of the environment that it is called on, hence another environment.
        """
        env = self._seeded()
        self._hard_reset(env)
        while True:
            self._hard_reset(env)
            # robosuite draws from NumPy's global generator, which other environments seed in between.
            drawn = np.random.get_state()  # noqa: NPY002
            stepper = OscStepper(env)
            yield _snapshot(stepper, stepper.observe())
            np.random.set_state(drawn)  # noqa: NPY002

    def reset(self, init_state: int) -> None:
        """Start an episode from one of the task's initial states, settled.

        Initial state k has the fixtures where the protocol's `resets` says: as after one reset, or k + 1.

        Raises:
            IndexError: the task has no such initial state.
        """
        if init_state not in self._initial:
            states = init_states(self.task.suite, self.task.task_id)
            if not 0 <= init_state < len(states):
                raise IndexError(f"{self.task.name} has initial states 0–{len(states) - 1}, not {init_state}")
            resets = init_state + 1 if self.protocol.resets == "running" else 1
            self.reset_to(states[init_state], resets=resets)
            self._initial[init_state] = self.snapshot()
        self.restore(self._initial[init_state], steps=0)

    def reset_to(
        self,
        state: NDArray[np.float64],
        posture: NDArray[np.float64] | None = None,
        *,
        keep_posture: bool = False,
        resets: int = 1,
    ) -> None:
        """Start an episode as the stock environment does: hard reset, set the state, settle.

        Args:
            state: LIBERO's flattened state, float64 (1 + nq + nv,).
            posture: joint angles of the arm at the hard reset, float64 (7,), radians; None: LIBERO's own.
            keep_posture: whether the arm keeps `posture`. As in the stock environment the state resets the
                arm otherwise, and only the controller remembers the posture.
            resets: hard resets since the simulator was seeded. Each places the fixtures anew.
        """
        while len(self._after_resets) < resets:
            self._after_resets.append(next(self._later_resets))
        self.restore(self._after_resets[resets - 1], steps=0)
        if posture is not None:
            self._stepper.set_arm_posture(posture)
            state = self._stepper.with_posture(state, posture) if keep_posture else state
        self.set_state(state)
        for _ in range(self.protocol.settle_steps):
            self.step(SETTLE_ACTION)
        self.steps = 0

    def step(self, action: NDArray[np.floating]) -> bool:
        """Run one control step (1/20 s) of 7 numbers in [-1, 1] (gripper: -1 opens, +1 closes).

        Returns:
            Whether the task's goal holds now.

        Raises:
            ValueError: the action has another shape or is not finite.
            UnstableSimulationError: the simulation cannot go on; `reset` or `restore` the environment.
        """
        command = np.asarray(action, np.float64)
        if command.shape != (ACTION_DIM,):
            raise ValueError(f"an action has {ACTION_DIM} numbers, not shape {command.shape}")
        if not np.isfinite(command).all():
            raise ValueError(f"action {command} is not finite")
        self.observation = self._stepper.step(command)
        self.steps += 1
        self._update_stoves()
        return self.success

    def _update_stoves(self) -> None:
        """Update the visual state: a stove's burner glows while it is on."""
        # Stock LIBERO also checks goals before this, without effect: the state is read here.
        for stove, knob, opacity in self._stoves:
            if (opacity > 0).any() != stove.turn_on(self.data.qpos[knob]):
                self.env._post_process()

    @property
    def success(self) -> bool:
        """Whether the task's goal holds now."""
        return bool(self.env._check_success())

    def distance_to_goal(self) -> float:
        """Metres to the task's goal (`srpo.envs.goal`); 0 where it holds."""
        return self._goal.distance()

    def render(
        self, camera: str = "agentview", size: int | None = None, observation: Observation | None = None
    ) -> NDArray[np.uint8]:
        """uint8 (size, size, 3) in the official orientation; `size` defaults to the protocol's.

        `observation` is an earlier `env.observation`: pictures can be rendered after the event.
        """
        return self._renderer(observation or self.observation, camera, size or self.protocol.image_size)

    @contextlib.contextmanager
    def retextured(self, scene_xml: str) -> Iterator[None]:
        """Within the block, pictures have the textures of another XML than `scene_xml` (same geometry)."""
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
        """The scene with its visual geoms, which the physics model lacks, posed at `qpos` (default: now).

        It is shared by all environments of the scene, so it is valid until the next call or picture.
        """
        scene = visible_scene(self.scene_xml)
        scene.pose(self.model, self.data.qpos if qpos is None else qpos)
        return scene

    def state(self) -> NDArray[np.float64]:
        """LIBERO's flattened state, float64 (1 + nq + nv,): time, positions, velocities."""
        return np.concatenate([[self.data.time], self.data.qpos, self.data.qvel])

    def set_state(self, state: NDArray[np.float64]) -> None:
        """Set LIBERO's flattened state as the stock `set_init_state` does; the controller keeps its own.

        Raises:
            ValueError: the state has another shape.
        """
        expected = 1 + self.model.nq + self.model.nv
        if state.shape != (expected,):
            raise ValueError(f"{self.task.name}: a state has {expected} numbers, not shape {state.shape}")
        self.data.time = state[0]
        self.data.qpos[:] = state[1 : 1 + self.model.nq]
        self.data.qvel[:] = state[1 + self.model.nq :]
        mujoco.mj_forward(self.model, self.data)
        self._update_stoves()
        self.observation = self._stepper.observe()

    def integration_state(self) -> NDArray[np.float64]:
        """MuJoCo's full integration state: equal states evolve equally."""
        return _integration_state(self.model, self.data)

    def snapshot(self) -> NDArray[np.float64]:
        """All that decides how the episode goes on, float64 (S,): physics, fixtures, controller, observation.

        S is the task's own. Any environment of the task, with the same scene, protocol and MuJoCo, goes on
        from it bit for bit (`restore`).
        """
        return _snapshot(self._stepper, self.observation)

    def restore(self, snapshot: NDArray[np.float64], steps: int) -> None:
        """Go back to a snapshot that was made after so many control steps of an episode.

        Poses of bodies are then those of the state, while a control step leaves them a substep behind: until
        the next step, `success` and `distance_to_goal` may differ by that much.

        Raises:
            ValueError: the snapshot has another shape than this task's.
        """
        like = _parts(self._stepper, self.observation)
        size = sum(part.size for part in like)
        if snapshot.shape != (size,):
            raise ValueError(f"{self.task.name}: a snapshot has {size} numbers, not shape {snapshot.shape}")
        ends = np.cumsum([part.size for part in like])
        # Copies, so that nothing done later changes the snapshot.
        parts = [
            part.reshape(old.shape).astype(old.dtype)
            for part, old in zip(np.split(snapshot, ends[:-1]), like, strict=True)
        ]
        physics, self.model.body_pos[:], self.model.body_quat[:], self.model.site_rgba[:] = parts[:4]
        mujoco.mj_setState(self.model, self.data, physics, _STATE)
        mujoco.mj_forward(self.model, self.data)
        observed = len(fields(Observation))
        self._stepper.set_controller(parts[4:-observed])
        self.observation = Observation(*parts[-observed:])
        self.steps = steps
        self._update_stoves()
