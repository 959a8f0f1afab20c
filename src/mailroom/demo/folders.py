"""Makes temporary folders, and removes those of processes that were killed.

A folder holds a file that its process has locked. The kernel releases the lock when the process ends, so
a folder whose file is not locked is a leftover.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Final

LOCK: Final = "lock"


class OwnFolder:
    """A temporary folder of this process; call ``remove`` at the end.

    Args:
        prefix: of its name.
        below: the folder to make it in; by default the system's for temporary files.
    """

    def __init__(self, prefix: str, below: Path | None = None) -> None:
        self.path = Path(tempfile.mkdtemp(prefix=prefix, dir=below))
        unlocked = self.path / f"{LOCK}.new"
        self._lock = os.open(unlocked, os.O_CREAT | os.O_RDWR, 0o600)
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        unlocked.rename(self.path / LOCK)  # so the file is locked from the start

    def remove(self) -> None:
        """Delete the folder with its contents."""
        shutil.rmtree(self.path, ignore_errors=True)
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


def remove_leftovers(prefix: str, below: Path | None = None) -> None:
    """Delete this user's folders with that prefix whose processes have ended."""
    for folder in (below or Path(tempfile.gettempdir())).glob(f"{prefix}*"):
        with suppress(OSError):  # it is locked, belongs to another user, or is not such a folder
            _remove_leftover(folder)


def _remove_leftover(folder: Path) -> None:
    lock = os.open(folder / LOCK, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(folder, ignore_errors=True)  # does not follow links
    finally:
        os.close(lock)
