"""LIBERO-Plus: its tasks, data and assets, perturbations of an environment, sweeps (docs/robustness.md)."""
