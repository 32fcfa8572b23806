"""A scripted expert for LIBERO's 40 tasks, with privileged state and a policy's actions.

It reads object poses, collision shapes and the task's BDDL goals from the simulator, but moves the robot only
by LIBERO's 7 action numbers, so that its episodes are demonstrations. There is no planning in joint space:
straight moves, grasps chosen from a list of candidates, and retries.

`scene` reads the simulator, `arm` moves the gripper, `grasping` picks and carries, `placing` and `mechanisms`
have a skill for each predicate, `goals` runs them.
"""

from srpo.envs.expert.goals import run_expert

__all__ = ["run_expert"]
