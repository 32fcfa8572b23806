"""Types of command-line arguments."""

from __future__ import annotations

import argparse
from pathlib import Path


def positive(text: str) -> int:
    """A whole number from 1, of a command line."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text}: must be at least 1")
    return number


def new_folder(text: str) -> Path:
    """A folder that is to be made whole, of a command line: whatever it had before would be replaced."""
    folder = Path(text)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise argparse.ArgumentTypeError(f"{text}: is there already: name a folder to make, or delete it")
    return folder
