"""How a process says that a signal stopped it and that it can go on."""

PREEMPTED = 75
"""Exit code of a run that a signal stopped: the same command goes on from its scratch folder."""
