"""Ends what a killed supervisor leaves behind, stopped processes too, for which the kernel's death signals wait.

    python -I -S guardian.py DIRECTORY

Reads its input until the supervisor closes it by ending, then kills every process that works below DIRECTORY. A program
of its own with the standard library only: it has to live when the supervisor does not.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from pathlib import Path


def main(directory: Path) -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        # A signal to the whole group is the supervisor's business; its end is ours.
        signal.signal(number, signal.SIG_IGN)
    sys.stdin.buffer.read()
    # Twice, for what was started while we looked.
    for _ in range(2):
        for pid in processes_below(directory):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def processes_below(directory: Path) -> list[int]:
    """Processes whose working directory is `directory` or below it, we ourselves left out."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        # Gone meanwhile, or another user's.
        with contextlib.suppress(OSError):
            if (entry / "cwd").readlink().is_relative_to(directory) and int(entry.name) != os.getpid():
                found.append(int(entry.name))
    return found


if __name__ == "__main__":
    main(Path(sys.argv[1]))
