"""Progress bars where several processes share the work."""

from __future__ import annotations

from typing import Any

from tqdm import tqdm


def progress_bar(first: bool, *args: Any, **options: Any) -> tqdm[Any]:
    """A bar of tqdm that one process alone shows, the `first`, and only on a terminal."""
    return tqdm(*args, disable=None if first else True, **options)
