"""robosuite's control step without its redundancy.

Stock robosuite evaluates the dynamics twice a substep (`mj_forward`, then `mj_step`), runs the operational
space controller through some thirty small NumPy calls, and samples every observable at every substep. Here a
substep is `mj_step1`, the controller as one compiled kernel made of robosuite's own functions, `mj_step2`.
The state that comes out is the same bit for bit, so the order of numerical operations must not be changed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import mujoco
import numba
import numpy as np
from numpy.typing import NDArray
from robosuite.utils.control_utils import (
    nullspace_torques,
    opspace_matrices,
    orientation_error,
    set_goal_orientation,
    set_goal_position,
)

Array = NDArray[np.float64]


@numba.njit(cache=True)
def _osc_torques(  # type: ignore[no-untyped-def]
    goal_pos, goal_ori, ee_pos, ee_ori, ee_vel_pos, ee_vel_ori, mass, jacobian, jacobian_pos, jacobian_ori,
    bias, rest, joint_pos, joint_vel, kp, kd, low, high,
):  # fmt: skip
    """Joint torques of robosuite's OSC_POSE controller (fixed impedance, uncoupled), clipped."""
    rotation = orientation_error(goal_ori, ee_ori)
    force = (goal_pos - ee_pos) * kp[0:3] + (-ee_vel_pos) * kd[0:3]
    torque = rotation * kp[3:6] + (-ee_vel_ori) * kd[3:6]
    _, lambda_pos, lambda_ori, nullspace = opspace_matrices(mass, jacobian, jacobian_pos, jacobian_ori)
    wrench = np.concatenate((np.dot(lambda_pos, force), np.dot(lambda_ori, torque)))
    torques = np.dot(jacobian.T, wrench) + bias
    torques = torques + nullspace_torques(mass, nullspace, rest, joint_pos, joint_vel)
    return np.minimum(high, np.maximum(torques, low))


class _Kinematics(NamedTuple):
    """The arm as the controller sees it: pose and velocity of the hand, joints, Jacobians, mass matrix.

    A tuple, because it is made 25 times a control step.
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


@dataclass(frozen=True)
class ControllerState:
    """What the controller remembers between control steps.

    `stale`: robosuite's controller does not look at the arm again in the very first substep after a hard
    reset, so that substep runs on the kinematics of the reset posture even if an initial state was set since.
    `rest`: the joint posture of the reset, to which the null space pulls.
    """

    goal_pos: Array
    goal_ori: Array
    rest: Array
    gripper: Array
    stale: _Kinematics | None


@dataclass(frozen=True)
class Sight:
    """What stock robosuite's observations of a control step are made of.

    Its observables sample in the last substep but one, after that substep's integration: pictures and poses
    come from the kinematics of that substep's start, joint positions from its end.

    qpos       float64 (nq,)  positions behind pictures and body poses
    fingers    float64 (2,)   finger joint positions, metres
    site_rgba  float32 (nsite, 4)  colours that depend on the state (a stove's glow)
    """

    qpos: Array
    fingers: Array
    site_rgba: NDArray[np.float32]


class OscStepper:
    """One control step (25 physics substeps) of a robosuite environment with a Panda arm under OSC_POSE."""

    def __init__(self, env: Any) -> None:
        robot = env.robots[0]
        controller = robot.controller
        gripper = robot.gripper
        if controller.interpolator_pos is not None or controller.interpolator_ori is not None:
            raise ValueError(
                "the lean step has no interpolators; use robosuite's default OSC_POSE controller"
            )
        if not (controller.uncoupling and controller.use_delta and controller.impedance_mode == "fixed"):
            raise ValueError("the lean step needs OSC_POSE with fixed impedance, deltas and uncoupling")
        self._scale_action = controller.scale_action
        self.model: mujoco.MjModel = env.sim.model._model
        self.data: mujoco.MjData = env.sim.data._data
        model = self.model
        self._substeps = int(env.control_timestep / env.model_timestep)
        self._site = model.site(controller.eef_name).id
        self._qpos = np.array(controller.qpos_index)
        self._dofs = np.array(controller.qvel_index)
        self._arm = np.array(robot._ref_joint_actuator_indexes)
        self._fingers = np.array([model.actuator(name).id for name in gripper.actuators])
        ctrl_range = model.actuator_ctrlrange[self._fingers]
        self._finger_bias = 0.5 * (ctrl_range[:, 1] + ctrl_range[:, 0])
        self._finger_gain = 0.5 * (ctrl_range[:, 1] - ctrl_range[:, 0])
        self._finger_speed = np.array([-1.0, 1.0]) * gripper.speed
        self._low, self._high = (np.array(limit) for limit in robot.torque_limits)
        self._kp, self._kd = np.array(controller.kp), np.array(controller.kd)
        self._finger_qpos = np.array(robot._ref_gripper_joint_pos_indexes)
        self._jac_pos = np.zeros((3, model.nv))
        self._jac_ori = np.zeros((3, model.nv))
        self._mass = np.zeros((model.nv, model.nv))
        # Views of MuJoCo's own memory: each look at an attribute of `data` makes a new one.
        data = self.data
        self._ctrl, self._qvel_now, self._qpos_now = data.ctrl, data.qvel, data.qpos
        self._bias, self._ee_pos = data.qfrc_bias, data.site_xpos[self._site]
        self._ee_ori = data.site_xmat[self._site].reshape(3, 3)
        self._inertia = data.qM
        stale = None
        if not controller.new_update:
            stale = _Kinematics(
                controller.ee_pos, controller.ee_ori_mat, controller.ee_pos_vel, controller.ee_ori_vel,
                controller.mass_matrix, controller.J_full, controller.J_pos, controller.J_ori,
                controller.joint_pos, controller.joint_vel,
            )  # fmt: skip
        self.state = ControllerState(
            np.array(controller.goal_pos),
            np.array(controller.goal_ori),
            np.array(controller.initial_joint),
            np.zeros(len(self._fingers)),
            stale,
        )

    def hold(self, posture: Array) -> None:
        """Put the arm and its controller where a hard reset with this initial posture puts them.

        Args:
            posture: float64 (7,), joint angles in radians.
        """
        self.data.qpos[self._qpos] = posture
        mujoco.mj_forward(self.model, self.data)
        reset = self._kinematics()
        self.state = ControllerState(
            self.data.site_xpos[self._site].copy(),
            reset.ee_ori,
            np.array(posture, np.float64),
            np.zeros(len(self._fingers)),
            reset,
        )

    def bend(self, state: Array, posture: Array) -> Array:
        """LIBERO's flattened state with the arm, at rest, in another posture."""
        state = state.copy()
        state[1 + self._qpos] = posture
        state[1 + self.model.nq + self._dofs] = 0
        return state

    def look(self) -> Sight:
        """The sight of the state as it is now."""
        qpos = self.data.qpos.copy()
        return Sight(qpos, qpos[self._finger_qpos], self.model.site_rgba.copy())

    def step(self, action: Array) -> Sight:
        """Advance the physics by one control step under `action` (7 numbers; the last drives the gripper)."""
        model, data, state = self.model, self.data, self.state
        goal_pos, goal_ori, gripper, kinematics = state.goal_pos, state.goal_ori, state.gripper, state.stale
        finger_delta = self._finger_speed * np.sign(action[6])
        ctrl, bias = self._ctrl, self._bias
        for substep in range(self._substeps):
            if substep == self._substeps - 2:
                seen = data.qpos.copy()
            mujoco.mj_step1(model, data)
            if substep > 0 or kinematics is None:
                kinematics = self._kinematics()
            if substep == 0:
                delta = self._scale_action(action[:6])
                # As in stock robosuite, a zero rotation keeps the previous orientation goal.
                if np.any(delta[3:] != 0):
                    goal_ori = set_goal_orientation(delta[3:], kinematics.ee_ori, orientation_limit=None)
                goal_pos = set_goal_position(delta[:3], kinematics.ee_pos)
            ctrl[self._arm] = _osc_torques(
                goal_pos, goal_ori, kinematics.ee_pos, kinematics.ee_ori,
                kinematics.ee_vel_pos, kinematics.ee_vel_ori, kinematics.mass,
                kinematics.jacobian, kinematics.jacobian_pos, kinematics.jacobian_ori,
                bias[self._dofs], state.rest, kinematics.joint_pos, kinematics.joint_vel,
                self._kp, self._kd, self._low, self._high,
            )  # fmt: skip
            gripper = np.minimum(np.maximum(gripper + finger_delta, -1.0), 1.0)
            ctrl[self._fingers] = self._finger_bias + self._finger_gain * gripper
            mujoco.mj_step2(model, data)
            if substep == self._substeps - 2:
                sight = Sight(seen, data.qpos[self._finger_qpos], model.site_rgba.copy())
        self.state = ControllerState(goal_pos, goal_ori, state.rest, gripper, None)
        return sight

    def _kinematics(self) -> _Kinematics:
        dofs, velocity = self._dofs, self._qvel_now
        mujoco.mj_jacSite(self.model, self.data, self._jac_pos, self._jac_ori, self._site)
        mujoco.mj_fullM(self.model, self._mass, self._inertia)
        jacobian_pos, jacobian_ori = self._jac_pos[:, dofs], self._jac_ori[:, dofs]
        return _Kinematics(
            ee_pos=self._ee_pos.copy(),
            ee_ori=self._ee_ori.copy(),
            ee_vel_pos=np.dot(self._jac_pos, velocity),
            ee_vel_ori=np.dot(self._jac_ori, velocity),
            mass=self._mass[dofs, :][:, dofs],  # not np.ix_: its memory layout would change the last bits
            jacobian=np.concatenate((jacobian_pos, jacobian_ori)),
            jacobian_pos=jacobian_pos,
            jacobian_ori=jacobian_ori,
            joint_pos=self._qpos_now[self._qpos],
            joint_vel=velocity[dofs],
        )
