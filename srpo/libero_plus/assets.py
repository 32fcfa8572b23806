"""LIBERO-Plus's asset pack (6.4 GB): download it, unpack it without its prefix, check that it is complete."""

from __future__ import annotations

import shutil
import zipfile
from collections import Counter
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from huggingface_hub import HfApi

from srpo.libero_plus.data import PACK_FOLDERS, PlusData, PlusSources, find_asset, needed_assets
from srpo.libero_plus.tasks import PlusTask
from srpo.runtime.hub import FetchError
from srpo.runtime.manifest import sha256

REPOSITORY = "Sylvest/LIBERO-plus"
"""The official dataset on the hub."""
ARCHIVE = "assets.zip"


def download(folder: Path, revision: str | None = None, endpoint: str | None = None) -> Path:
    """Download the archive to `folder`, resuming a partial download, and check it against the hub's hash.

    Raises:
        FetchError: no connection, no such file, or the hash differs.
    """
    api = HfApi(endpoint=endpoint)
    try:
        info = api.dataset_info(REPOSITORY, revision=revision, files_metadata=True)
    except Exception as error:  # the client raises many kinds
        raise FetchError(f"{REPOSITORY} at {revision or 'its newest revision'}: {error}") from None
    expected = next((s.lfs for s in info.siblings or () if s.rfilename == ARCHIVE), None)
    if expected is None:
        raise FetchError(f"{REPOSITORY} at {info.sha} has no {ARCHIVE}")
    folder.mkdir(parents=True, exist_ok=True)
    try:
        api.hf_hub_download(REPOSITORY, ARCHIVE, repo_type="dataset", revision=info.sha, local_dir=folder)
    except Exception as error:
        raise FetchError(f"{REPOSITORY}: {ARCHIVE}: {error}; run it again to go on") from None
    archive = folder / ARCHIVE
    if sha256(archive) != expected.sha256:
        archive.unlink()
        raise FetchError(f"{REPOSITORY}: {ARCHIVE} arrived damaged, and was deleted; run it again")
    return archive


def _prefix(names: Iterable[str]) -> str:
    """The path of the asset folder in the archive: that of the machine on which it was made."""
    folders: dict[str, set[str]] = {}
    for name in names:
        parts = name.split("/")
        for depth, part in enumerate(parts[:-1]):
            if part in PACK_FOLDERS:
                folders.setdefault("/".join([*parts[:depth], ""]) if depth else "", set()).add(part)
    complete = [prefix for prefix, members in folders.items() if members == set(PACK_FOLDERS)]
    if not complete:
        raise FetchError(
            f"the archive has no folder with {', '.join(PACK_FOLDERS)}: not LIBERO-Plus's assets"
        )
    return min(complete, key=len)


def unpack(archive: Path, out: Path) -> None:
    """Unpack the archive's asset folder as `out`, without its prefix; resumes an interrupted unpacking.

    Raises:
        FetchError: it is not the asset pack, it is damaged, or a member's path leaves the folder.
    """
    partial = out.with_name(f".{out.name}.partial")
    try:
        with zipfile.ZipFile(archive) as packed:
            prefix = _prefix(packed.namelist())
            for member in packed.infolist():
                if member.is_dir() or not member.filename.startswith(prefix):
                    continue
                name = PurePosixPath(member.filename.removeprefix(prefix))
                if name.is_absolute() or ".." in name.parts:
                    raise FetchError(f"{archive}: {member.filename} would land outside of {out}")
                target = partial / name
                if target.is_file() and target.stat().st_size == member.file_size:
                    continue
                target.parent.mkdir(parents=True, exist_ok=True)
                unfinished = target.with_name(f"{target.name}.unfinished")
                with packed.open(member) as source, unfinished.open("wb") as sink:
                    shutil.copyfileobj(source, sink)  # checks the member's CRC at its end
                unfinished.replace(target)
    except (zipfile.BadZipFile, EOFError) as error:
        raise FetchError(f"{archive}: {error}; delete it, fetch it again") from None
    partial.rename(out)


def missing_assets(
    tasks: Iterable[PlusTask], data: PlusData, assets: Path, libero_assets: Path
) -> dict[str, int]:
    """Asset files that are in neither folder → number of tasks that need them."""
    sources = PlusSources(data.path, assets)
    needed = (name for task in tasks for name in needed_assets(task, data))
    return Counter(name for name in needed if find_asset(name, sources, libero_assets) is None)


def fetch_assets(
    out: Path, archive: Path | None, tasks: Iterable[PlusTask], data: PlusData, libero_assets: Path
) -> dict[str, int]:
    """Make the asset folder `out` from an archive (None: from the hub); returns its `missing_assets`.

    An existing folder is only checked. A downloaded archive is deleted once it is unpacked.
    """
    if not out.exists():
        folder = out.with_name(f".{out.name}.download")
        unpack(archive or download(folder), out)
        shutil.rmtree(folder, ignore_errors=True)
    return missing_assets(tasks, data, out, libero_assets)
