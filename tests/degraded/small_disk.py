"""A file system of a few hundred MB that a test may fill."""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest

_MNT_DETACH: Final = 2
#: Small enough to leave no page of any table room to grow.
_PIECES: Final = (1 << 24, 1 << 20, 1 << 12)


class SmallDisk:
    def __init__(self, path: Path) -> None:
        self.path = path
        self._filler = path / "filler"

    def fill(self) -> None:
        """Take every block that is left."""
        number = os.open(self._filler, os.O_CREAT | os.O_WRONLY, 0o600)
        try:
            for piece in _PIECES:
                try:
                    while True:
                        os.posix_fallocate(number, os.fstat(number).st_size, piece)
                except OSError as error:
                    if error.errno != errno.ENOSPC:
                        raise
        finally:
            os.close(number)

    def free(self) -> None:
        self._filler.unlink()


@contextmanager
def small_disk(path: Path, megabytes: int) -> Iterator[SmallDisk]:
    """Mounted at `path`. Skips where this process may not mount."""
    path.mkdir()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"tmpfs", os.fsencode(path), b"tmpfs", 0, f"size={megabytes}m,mode=0755".encode()) != 0:
        pytest.skip(
            f"no small disk, since this process may not mount one ({os.strerror(ctypes.get_errno())}): "
            "run as root, or under `unshare --mount --map-current-user --keep-caps`"
        )
    try:
        yield SmallDisk(path)
    finally:
        libc.umount2(os.fsencode(path), _MNT_DETACH)
