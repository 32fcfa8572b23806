"""Why an HDF5 file could not be read: HDF5 itself says it in the same words for a lock and for damage."""

from __future__ import annotations

import errno


def why_unreadable(error: Exception, damaged: str) -> str:
    """What kept HDF5 from reading a file, and what to do, for a message behind the file's name.

    Args:
        error: what h5py raised.
        damaged: what to do if the file is missing or damaged; no other file is to be deleted.
    """
    code = error.errno if isinstance(error, OSError) else None
    if code in (errno.ENOENT, errno.ENOTDIR):
        return f"no such file. {damaged}"
    if code in (errno.EACCES, errno.EPERM):
        return "this user may not read it. Ask its owner, or chmod it."
    if "unable to lock file" in str(error):
        return (
            f"is locked ({error}). Wait for the program that is writing it. If there is none, the file "
            "system has no locks: set HDF5_USE_FILE_LOCKING=FALSE."
        )
    if code:
        return f"could not be read, though it may be whole ({error}). Try again."
    return f"{'truncated' if 'truncated' in str(error) else 'corrupt'} ({error}). {damaged}"
