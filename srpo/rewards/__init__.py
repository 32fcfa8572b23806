"""Rewards and the metrics of the progress-reward benchmark: pure functions on NumPy arrays."""
