"""Download a checkpoint from the hub at a fixed revision and verify its hashes, for jobs without internet.

srpo download --checkpoint ORGANISATION/NAME [--revision COMMIT] --out FOLDER
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi

from srpo.errors import InputError, run_command
from srpo.runtime.files import write_json
from srpo.runtime.manifest import sha256

SUFFIXES = (".safetensors", ".json")
"""Files that are downloaded: data only, no Python files and no pickles."""
RECORD = "fetched.json"
"""What was fetched: repository, commit and each file's SHA-256."""


class FetchError(InputError, ValueError):
    """A checkpoint could not be downloaded, or its files are not those that were."""

    passing = True  # a connection may come back


def _matches(path: Path, stated: Any) -> bool:
    """Whether a file has the hash that the hub states: SHA-256 (large files) or git's blob hash."""
    if not path.is_file() or (stated.size is not None and path.stat().st_size != stated.size):
        return False
    if stated.lfs is not None:
        return sha256(path) == stated.lfs.sha256
    content = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest() == stated.blob_id


def fetch(checkpoint: str, revision: str | None, out: Path, endpoint: str | None = None) -> None:
    """Download a checkpoint's data files to `out`. Files of an interrupted download are kept.

    Args:
        revision: a commit, tag or branch; None: the newest. The commit is recorded.
        endpoint: another hub than huggingface.co.

    Raises:
        FetchError: there is no such checkpoint or connection, or a file arrives damaged.
        InputError: `out` is there already.
    """
    if out.exists():
        raise InputError(f"{out} is there already; delete it to fetch it anew")
    api = HfApi(endpoint=endpoint)
    try:
        info = api.model_info(checkpoint, revision=revision, files_metadata=True)
    except Exception as error:  # the client's are of many kinds
        raise FetchError(f"{checkpoint} at {revision or 'its newest revision'}: {error}") from None
    assert info.sha is not None
    if revision != info.sha:
        print(
            f"{checkpoint}: {revision or 'newest'} is {info.sha}; set it as the revision to pin it",
            flush=True,
        )
    files = {s.rfilename: s for s in info.siblings or () if s.rfilename.endswith(SUFFIXES)}
    files = {name: stated for name, stated in files.items() if "/" not in name}
    if not any(name.endswith(".safetensors") for name in files):
        raise FetchError(f"{checkpoint} at {info.sha} has no safetensors")
    # Beside `out` and named for the commit, so that an interrupted download resumes with its own files.
    partial = out.with_name(f".{out.name}.{info.sha}.partial")
    partial.mkdir(parents=True, exist_ok=True)
    for name, stated in sorted(files.items()):
        if _matches(partial / name, stated):
            continue
        print(f"{checkpoint}: {name} ({(stated.size or 0) / 2**20:.0f} MiB)", flush=True)
        try:
            api.hf_hub_download(checkpoint, name, revision=info.sha, local_dir=partial)
        except Exception as error:
            raise FetchError(f"{checkpoint}: {name}: {error}; run it again to go on") from None
        if not _matches(partial / name, stated):
            (partial / name).unlink()
            raise FetchError(f"{checkpoint}: {name} arrived damaged, and was deleted; run it again")
    write_json(
        partial / RECORD,
        {
            "checkpoint": checkpoint,
            "revision": info.sha,
            "files": {name: sha256(partial / name) for name in files},
        },
    )
    shutil.rmtree(partial / ".cache", ignore_errors=True)  # the client's bookkeeping
    partial.rename(out)


def verify(folder: Path) -> None:
    """Raise a FetchError if a folder's files are not those that were downloaded."""
    try:
        files = json.loads((folder / RECORD).read_text())["files"]
    except (OSError, ValueError, KeyError, TypeError):
        raise FetchError(
            f"{folder} was not fetched by `srpo download`: its {RECORD} is missing or broken"
        ) from None
    wrong = sorted(
        n for n, value in files.items() if not (folder / n).is_file() or sha256(folder / n) != value
    )
    if wrong:
        raise FetchError(
            f"{folder}: changed since it was fetched: {', '.join(wrong)}; delete it, fetch it again"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description="Download a checkpoint from the hub.")
    parser.add_argument("--checkpoint", required=True, help="ORGANISATION/NAME")
    parser.add_argument("--revision", help="commit, tag or branch (default: the newest)")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    arguments = parser.parse_args()
    fetch(arguments.checkpoint, arguments.revision, arguments.out)


if __name__ == "__main__":
    run_command(main)
