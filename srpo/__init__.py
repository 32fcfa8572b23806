"""Self-Referential Policy Optimization (SRPO, arXiv 2511.15605) for vision-language-action policies."""

from pathlib import Path

__version__ = "0.1.0"
ROOT: Path = Path(__file__).resolve().parents[1]
"""The folder of this repository."""
