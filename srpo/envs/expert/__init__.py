"""A scripted expert for LIBERO's 40 tasks: a controller with privileged state that acts as a policy would.

It reads object poses, collision shapes and the task's BDDL goals from the simulator, but moves the robot only
through LIBERO's 7 action numbers, so that what it does is a demonstration. It plans nothing in joint space:
straight moves, grasps chosen from a list of candidates, and retries.

`scene` sees, `arm` moves, `grasping` picks and places, `goals` knows what to do for each predicate.
"""

from srpo.envs.expert.goals import run_expert

__all__ = ["run_expert"]
