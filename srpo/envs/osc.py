"""robosuite's control step without its redundancy.

Stock robosuite evaluates the dynamics twice per substep (`mj_forward`, then `mj_step`), runs the operational
space controller through some thirty small NumPy calls, and samples every observable at every substep. Here
all substeps are one compiled call without Python: `mj_step1`, the controller made of robosuite's own
functions, `mj_step2`. The resulting state is equal bit for bit. So neither the order of numerical operations
nor the memory layout of a matrix (which decides BLAS's order) may be changed.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import mujoco
import numba
import numpy as np
import scipy.linalg.cython_blas
import scipy.linalg.cython_lapack
from llvmlite import binding
from numba import types
from numba.extending import get_cython_function_address
from numpy.typing import NDArray
from robosuite.utils.control_utils import nullspace_torques, orientation_error
from robosuite.utils.transform_utils import axisangle2quat, quat2mat

Array = NDArray[np.float64]
Indices = NDArray[np.int64]

_UNSTABLE = [int(getattr(mujoco.mjtWarning, f"mjWARN_BAD{what}")) for what in ("QPOS", "QVEL", "QACC")]


class UnstableSimulationError(Exception):
    """Positions, velocities or accelerations were not finite, or huge. MuJoCo has then put everything back to
    where the model has it, which is no state of the episode."""


def _c_function(name: str, *arguments: types.Type) -> types.ExternalFunction:
    """A C function for compiled code. Pointers are `intp`."""
    # By name rather than by address, so that numba can cache compiled code for other processes.
    return types.ExternalFunction(name, types.void(*arguments))


def _fortran_function(module: Any, name: str, arguments: int) -> types.ExternalFunction:
    """A function of the BLAS and LAPACK that numba itself uses: SciPy's. All its arguments are pointers."""
    binding.add_symbol(f"scipy_{name}", get_cython_function_address(module.__name__, name))
    return _c_function(f"scipy_{name}", *[types.intp] * arguments)


# The library is loaded already; loading it globally lets numba find its functions.
ctypes.CDLL(str(next(Path(mujoco.__file__).parent.glob("libmujoco.*"))), ctypes.RTLD_GLOBAL)
_mj_step1 = _c_function("mj_step1", types.intp, types.intp)
_mj_step2 = _c_function("mj_step2", types.intp, types.intp)
_mj_fullM = _c_function("mj_fullM", types.intp, types.intp, types.intp)  # noqa: N816
_mj_jacSite = _c_function("mj_jacSite", *[types.intp] * 4, types.int32)  # noqa: N816
_dgebd2 = _fortran_function(scipy.linalg.cython_lapack, "dgebd2", 10)
_dbdsqr = _fortran_function(scipy.linalg.cython_lapack, "dbdsqr", 15)
_dorm2r = _fortran_function(scipy.linalg.cython_lapack, "dorm2r", 12)
_dorml2 = _fortran_function(scipy.linalg.cython_lapack, "dorml2", 12)
_dgemm = _fortran_function(scipy.linalg.cython_blas, "dgemm", 13)
_LETTERS = np.frombuffer(b"ULRNT", np.uint8)
_FACTORS = np.array([1.0, 0.0])


class _Simulation(NamedTuple):
    """A simulation in MuJoCo's memory: addresses of model and data, views of what the controller uses.

    Views, because each access to an attribute of an `MjData` makes a new one. `mass` is MuJoCo's sparse
    matrix.
    """

    model: int
    data: int
    qpos: Array
    qvel: Array
    ctrl: Array
    qfrc_bias: Array
    mass: Array
    ee_pos: Array
    ee_ori: Array
    hand_quat: Array


class _Robot(NamedTuple):
    """The robot's constants: indices of arm and fingers in the model, gains, limits, substeps."""

    substeps: int
    site: int
    joints: Indices
    dofs: Indices
    motors: Indices
    kp: Array
    kd: Array
    torque_low: Array
    torque_high: Array
    finger_joints: Indices
    finger_motors: Indices
    finger_bias: Array
    finger_gain: Array


class _Kinematics(NamedTuple):
    """The arm as the controller sees it: pose and velocity of the hand, joints, mass matrix, Jacobians.

    All matrices but `ee_ori` are in Fortran order, as robosuite's indexing leaves them.
    """

    ee_pos: Array
    ee_ori: Array
    ee_vel_pos: Array
    ee_vel_ori: Array
    mass: Array
    jacobian: Array
    jacobian_pos: Array
    jacobian_ori: Array
    joint_pos: Array
    joint_vel: Array


class _Command(NamedTuple):
    """What one action commands.

    delta_pos     float64 (3,)    displacement of the hand, metres
    rotation      float64 (3, 3)  its rotation
    rotates       whether there is a rotation; otherwise the orientation goal stays
    finger_delta  float64 (2,)    change of the fingers' command per substep
    """

    delta_pos: Array
    rotation: Array
    rotates: bool
    finger_delta: Array


@dataclass(frozen=True)
class ControllerState:
    """What the controller keeps between control steps.

    goal_pos      float64 (3,)    goal of the hand's position, metres
    goal_ori      float64 (3, 3)  goal of its orientation
    rest_posture  float64 (7,)    joint angles of the hard reset, to which the null space pulls
    gripper       float64 (2,)    command of the fingers, in [-1, 1]
    stale         robosuite's controller does not update the arm's kinematics in the first substep after a
                  hard reset, even if an initial state was set since: these are used there; None: later
    """

    goal_pos: Array
    goal_ori: Array
    rest_posture: Array
    gripper: Array
    stale: _Kinematics | None


@dataclass(frozen=True)
class Observation:
    """What stock robosuite's observations of a control step are made of.

    Its observables are sampled in the last substep but one, after that substep's integration: pictures and
    poses are those of that substep's start, finger positions those of its end.

    qpos       float64 (nq,)  joint positions from which pictures are rendered
    hand_pos   float64 (3,)   position of the gripper's grip site, metres
    hand_quat  float64 (4,)   orientation of the hand, w x y z
    fingers    float64 (2,)   finger joint positions, metres
    site_rgba  float32 (nsite, 4)  colours that depend on the state (a stove's glow)
    """

    qpos: Array
    hand_pos: Array
    hand_quat: Array
    fingers: Array
    site_rgba: NDArray[np.float32]


@numba.njit(cache=True, nogil=True)
def _kinematics(simulation: _Simulation, robot: _Robot) -> _Kinematics:
    """The arm's kinematics after `mj_step1` or `mj_forward`."""
    nv = simulation.qvel.size
    position, orientation, mass = np.empty((3, nv)), np.empty((3, nv)), np.empty((nv, nv))
    _mj_jacSite(simulation.model, simulation.data, position.ctypes.data, orientation.ctypes.data, robot.site)
    _mj_fullM(simulation.model, mass.ctypes.data, simulation.mass.ctypes.data)
    jacobian_pos = np.asfortranarray(position[:, robot.dofs])
    jacobian_ori = np.asfortranarray(orientation[:, robot.dofs])
    return _Kinematics(
        simulation.ee_pos.copy(),
        simulation.ee_ori.copy(),
        np.dot(position, simulation.qvel),
        np.dot(orientation, simulation.qvel),
        np.asfortranarray(mass[robot.dofs, :][:, robot.dofs]),
        np.asfortranarray(np.concatenate((jacobian_pos, jacobian_ori))),
        jacobian_pos,
        jacobian_ori,
        simulation.qpos[robot.joints],
        simulation.qvel[robot.dofs],
    )


@numba.njit(cache=True, nogil=True)
def _pinv(matrix: Array) -> Array:
    """numba's `np.linalg.pinv` of a small square matrix, bit for bit.

    numba calls `dgesdd`, which spends half of its time on queries of work space and block sizes. For a matrix
    of this size it amounts to these four calls, which need neither.
    """
    n = len(matrix)
    matrices, vectors = np.zeros((3, n, n)), np.empty((8, n))
    a, u, vt = matrices[0], matrices[1], matrices[2]
    for i in range(n):
        u[i, i] = vt[i, i] = 1.0
        for j in range(n):
            a[i, j] = matrix[j, i]  # transposed in Fortran order
    s, e, tau_q, tau_p, work = vectors[0], vectors[1], vectors[2], vectors[3], vectors[4:]
    numbers = np.array([n, n - 1, 0, 0], np.int32)
    size = numbers.ctypes.data
    less, rank, info = size + 4, size + 8, size + 12
    upper = _LETTERS.ctypes.data
    left, right, plain, transposed = upper + 1, upper + 2, upper + 3, upper + 4
    one = _FACTORS.ctypes.data
    zero = one + 8
    _dgebd2(
        size, size, a.ctypes.data, size, s.ctypes.data, e.ctypes.data, tau_q.ctypes.data, tau_p.ctypes.data,
        work.ctypes.data, info,
    )  # fmt: skip
    # The rank is still 0, which is the number of right-hand sides here.
    _dbdsqr(
        upper, size, size, size, rank, s.ctypes.data, e.ctypes.data, vt.ctypes.data, size, u.ctypes.data,
        size, u.ctypes.data, size, work.ctypes.data, info,
    )  # fmt: skip
    if numbers[3] != 0:
        raise ValueError("singular values did not converge")
    _dorm2r(
        left, plain, size, size, size, a.ctypes.data, size, tau_q.ctypes.data, u.ctypes.data, size,
        work.ctypes.data, info,
    )  # fmt: skip
    _dorml2(
        right, plain, size, less, less, a[1:].ctypes.data, size, tau_p.ctypes.data, vt[1:].ctypes.data, size,
        work.ctypes.data, info,
    )  # fmt: skip
    for k in range(n):
        if s[k] > s[0] * 1e-15:
            numbers[2] = k + 1
            vt[:, k] *= 1.0 / s[k]
    _dgemm(
        transposed, transposed, size, size, rank, one, vt.ctypes.data, size, u.ctypes.data, size, zero,
        a.ctypes.data, size,
    )  # fmt: skip
    return a.T


@numba.njit(cache=True, nogil=True)
def _operational_space(arm: _Kinematics) -> tuple[Array, Array, Array]:
    """robosuite's `opspace_matrices` but the first, which is not used."""
    inverse = np.linalg.inv(arm.mass)
    lambda_full = _pinv(np.dot(np.dot(arm.jacobian, inverse), arm.jacobian.transpose()))
    lambda_pos = _pinv(np.dot(np.dot(arm.jacobian_pos, inverse), arm.jacobian_pos.transpose()))
    lambda_ori = _pinv(np.dot(np.dot(arm.jacobian_ori, inverse), arm.jacobian_ori.transpose()))
    generalised_inverse = np.dot(inverse, arm.jacobian.transpose()).dot(lambda_full)
    joints = len(arm.mass)
    return lambda_pos, lambda_ori, np.eye(joints, joints) - np.dot(generalised_inverse, arm.jacobian)


@numba.njit(cache=True, nogil=True)
def _torques(
    goal_pos: Array, goal_ori: Array, rest_posture: Array, arm: _Kinematics, bias: Array, robot: _Robot
) -> Array:
    """Joint torques of robosuite's OSC_POSE controller (fixed impedance, uncoupled), clipped."""
    kp, kd = robot.kp, robot.kd
    rotation = orientation_error(goal_ori, arm.ee_ori)
    force = (goal_pos - arm.ee_pos) * kp[0:3] + (-arm.ee_vel_pos) * kd[0:3]
    torque = rotation * kp[3:6] + (-arm.ee_vel_ori) * kd[3:6]
    lambda_pos, lambda_ori, nullspace = _operational_space(arm)
    wrench = np.concatenate((np.dot(lambda_pos, force), np.dot(lambda_ori, torque)))
    torques = np.dot(arm.jacobian.T, wrench) + bias
    torques = torques + nullspace_torques(arm.mass, nullspace, rest_posture, arm.joint_pos, arm.joint_vel)
    return np.minimum(robot.torque_high, np.maximum(torques, robot.torque_low))


@numba.njit(cache=True, nogil=True)
def _control_step(  # type: ignore[no-untyped-def]
    simulation, robot, command, goal_ori, rest_posture, gripper, stale, is_stale
):
    """All substeps of a control step.

    Args:
        goal_ori, rest_posture, gripper: of the `ControllerState`.
        stale: kinematics for the first substep if `is_stale`; else ignored.

    Returns:
        goal_pos, goal_ori, gripper of the next `ControllerState`; all of an `Observation` but its colours.
    """
    goal_pos = command.delta_pos
    arm = stale
    for substep in range(robot.substeps):
        observed = substep == robot.substeps - 2
        if observed:
            qpos = simulation.qpos.copy()
        _mj_step1(simulation.model, simulation.data)
        if observed:
            hand_pos, hand_quat = simulation.ee_pos.copy(), simulation.hand_quat.copy()
        if substep > 0 or not is_stale:
            arm = _kinematics(simulation, robot)
        if substep == 0:
            goal_pos = arm.ee_pos + command.delta_pos
            if command.rotates:
                goal_ori = np.dot(command.rotation, arm.ee_ori)
        bias = simulation.qfrc_bias[robot.dofs]
        simulation.ctrl[robot.motors] = _torques(goal_pos, goal_ori, rest_posture, arm, bias, robot)
        gripper = np.minimum(np.maximum(gripper + command.finger_delta, -1.0), 1.0)
        simulation.ctrl[robot.finger_motors] = robot.finger_bias + robot.finger_gain * gripper
        _mj_step2(simulation.model, simulation.data)
        if observed:
            fingers = simulation.qpos[robot.finger_joints]
    return goal_pos, goal_ori, gripper, qpos, hand_pos, hand_quat, fingers


def _robot_constants(env: Any, model: mujoco.MjModel, site: int) -> _Robot:
    robot = env.robots[0]
    controller = robot.controller
    fingers = np.array([model.actuator(name).id for name in robot.gripper.actuators])
    low, high = model.actuator_ctrlrange[fingers].T
    torque_low, torque_high = (np.array(limit) for limit in robot.torque_limits)
    return _Robot(
        substeps=int(env.control_timestep / env.model_timestep),
        site=site,
        joints=np.array(controller.qpos_index, np.int64),
        dofs=np.array(controller.qvel_index, np.int64),
        motors=np.array(robot._ref_joint_actuator_indexes, np.int64),
        kp=np.array(controller.kp),
        kd=np.array(controller.kd),
        torque_low=torque_low,
        torque_high=torque_high,
        finger_joints=np.array(robot._ref_gripper_joint_pos_indexes, np.int64),
        finger_motors=fingers,
        finger_bias=0.5 * (high + low),
        finger_gain=0.5 * (high - low),
    )


def _controller_kinematics(controller: Any) -> _Kinematics:
    """The arm's kinematics as robosuite's controller last read them."""
    return _Kinematics(
        controller.ee_pos,
        controller.ee_ori_mat,
        controller.ee_pos_vel,
        controller.ee_ori_vel,
        np.asfortranarray(controller.mass_matrix),
        np.asfortranarray(controller.J_full),
        np.asfortranarray(controller.J_pos),
        np.asfortranarray(controller.J_ori),
        controller.joint_pos,
        controller.joint_vel,
    )


class OscStepper:
    """Control steps (25 physics substeps each) of a robosuite environment with a Panda arm under OSC_POSE.

    A fatal MuJoCo error within a step ends the process: compiled code cannot raise it.

    Raises:
        ValueError: the environment's controller has other settings than robosuite's default OSC_POSE.
    """

    def __init__(self, env: Any) -> None:
        robot = env.robots[0]
        controller = robot.controller
        if controller.interpolator_pos is not None or controller.interpolator_ori is not None:
            raise ValueError("OscStepper has no interpolators; use robosuite's default OSC_POSE controller")
        if not (controller.uncoupling and controller.use_delta and controller.impedance_mode == "fixed"):
            raise ValueError("OscStepper needs OSC_POSE with fixed impedance, deltas and uncoupling")
        controller.scale_action(np.zeros(6))  # the controller computes its factors on first use
        self._input_low, self._input_high = controller.input_min, controller.input_max
        self._input_middle, self._input_scale = controller.action_input_transform, controller.action_scale
        self._output_middle = controller.action_output_transform
        self.model: mujoco.MjModel = env.sim.model._model
        self.data: mujoco.MjData = env.sim.data._data
        model, data = self.model, self.data
        site = model.site(controller.eef_name).id
        self._simulation = _Simulation(
            model=model._address,
            data=data._address,
            qpos=data.qpos,
            qvel=data.qvel,
            ctrl=data.ctrl,
            qfrc_bias=data.qfrc_bias,
            mass=data.qM,
            ee_pos=data.site_xpos[site],
            ee_ori=data.site_xmat[site].reshape(3, 3),
            hand_quat=data.xquat[model.body(robot.robot_model.eef_name).id],
        )
        self._robot = _robot_constants(env, model, site)
        self._finger_speed = np.array([-1.0, 1.0]) * robot.gripper.speed
        self._no_kinematics = _kinematics(self._simulation, self._robot)  # compiled code needs some value
        self._no_rotation = np.eye(3)
        self.state = ControllerState(
            np.array(controller.goal_pos),
            np.array(controller.goal_ori),
            np.array(controller.initial_joint),
            np.zeros(len(self._finger_speed)),
            None if controller.new_update else _controller_kinematics(controller),
        )

    def controller_parts(self) -> list[Array]:
        """The `state` as arrays, in an order and of shapes that are always the same (`set_controller`)."""
        state = self.state
        kinematics = self._no_kinematics if state.stale is None else state.stale
        is_stale = np.array([state.stale is not None], np.float64)
        return [state.goal_pos, state.goal_ori, state.rest_posture, state.gripper, is_stale, *kinematics]

    def set_controller(self, parts: Sequence[Array]) -> None:
        """Set the `state` from what `controller_parts` gave."""
        goal_pos, goal_ori, rest_posture, gripper, is_stale, *kinematics = parts
        stale = None
        if is_stale[0]:
            arm = _Kinematics(*kinematics)
            matrices = ("mass", "jacobian", "jacobian_pos", "jacobian_ori")
            stale = arm._replace(**{name: np.asfortranarray(getattr(arm, name)) for name in matrices})
        self.state = ControllerState(goal_pos, goal_ori, rest_posture, gripper, stale)

    def set_arm_posture(self, posture: Array) -> None:
        """Put the arm and its controller in the state after a hard reset with this initial posture.

        Args:
            posture: float64 (7,), joint angles in radians.
        """
        self.data.qpos[self._robot.joints] = posture
        mujoco.mj_forward(self.model, self.data)
        reset = _kinematics(self._simulation, self._robot)
        self.state = ControllerState(
            reset.ee_pos,
            reset.ee_ori,
            np.array(posture, np.float64),
            np.zeros(len(self._finger_speed)),
            reset,
        )

    def with_posture(self, state: Array, posture: Array) -> Array:
        """LIBERO's flattened state with the arm at rest in another posture."""
        state = state.copy()
        state[1 + self._robot.joints] = posture
        state[1 + self.model.nq + self._robot.dofs] = 0
        return state

    def observe(self) -> Observation:
        """The observation of the present state, after `mj_forward`."""
        simulation = self._simulation
        return Observation(
            simulation.qpos.copy(),
            simulation.ee_pos.copy(),
            simulation.hand_quat.copy(),
            simulation.qpos[self._robot.finger_joints],
            self.model.site_rgba.copy(),
        )

    def step(self, action: Array) -> Observation:
        """Advance the physics by one control step under `action` (7 numbers; the last drives the gripper).

        Raises:
            UnstableSimulationError: it cannot go on.
        """
        state = self.state
        clipped = np.minimum(np.maximum(action[:6], self._input_low), self._input_high)
        delta = (clipped - self._input_middle) * self._input_scale + self._output_middle
        # As in stock robosuite, a zero rotation keeps the previous orientation goal.
        rotates = bool(delta[3:].any())
        command = _Command(
            delta[:3],
            # robosuite's matrix is in single precision, its product with the hand's orientation in double.
            quat2mat(axisangle2quat(delta[3:])).astype(np.float64) if rotates else self._no_rotation,
            rotates,
            self._finger_speed * np.sign(action[6]),
        )
        goal_pos, goal_ori, gripper, qpos, hand_pos, hand_quat, fingers = _control_step(
            self._simulation,
            self._robot,
            command,
            state.goal_ori,
            state.rest_posture,
            state.gripper,
            self._no_kinematics if state.stale is None else state.stale,
            state.stale is not None,
        )
        warnings = self.data.warning.number
        if warnings[_UNSTABLE].any():
            warnings[_UNSTABLE] = 0  # MuJoCo never clears them
            raise UnstableSimulationError("the simulation became unstable, and MuJoCo started it anew")
        self.state = ControllerState(goal_pos, goal_ori, state.rest_posture, gripper, None)
        return Observation(qpos, hand_pos, hand_quat, fingers, self.model.site_rgba.copy())
