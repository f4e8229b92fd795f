"""What processes use: CPU by name, the machine's own share, memory."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Mapping

import msgspec
import psutil


class Usage(msgspec.Struct, frozen=True):
    """Over one measured span. `cpu_s` by process name; `others` is the share of the machine's CPU that went to
    processes not of this benchmark, 0 to 1."""

    seconds: float
    cpu_s: dict[str, float]
    others: float


class Meter:
    """Measures the processes in `pids` (name -> root of a process tree) and this one, from its making to `read()`."""

    def __init__(self, pids: Mapping[str, int]) -> None:
        self._pids = dict(pids)
        self._cpu = self._now()
        self._machine = psutil.cpu_times()
        self._began = time.perf_counter()

    def read(self) -> Usage:
        seconds = time.perf_counter() - self._began
        machine = psutil.cpu_times()
        used = {name: max(0.0, after - self._cpu[name]) for name, after in self._now().items()}
        idle = machine.idle - self._machine.idle + getattr(machine, "iowait", 0) - getattr(self._machine, "iowait", 0)
        capacity = seconds * (psutil.cpu_count() or 1)
        return Usage(seconds, used, max(0.0, 1 - (idle + sum(used.values())) / capacity))

    def _now(self) -> dict[str, float]:
        mine = psutil.Process().cpu_times()
        # Our own children are counted under their own names.
        return {"generator": mine.user + mine.system} | {name: _tree_cpu(pid) for name, pid in self._pids.items()}


def _tree_cpu(pid: int) -> float:
    """CPU seconds of the process, its living descendants, and its children that have ended (a Postgres backend's time
    passes to the postmaster, which waits for it)."""
    total = 0.0
    with contextlib.suppress(psutil.NoSuchProcess):
        root = psutil.Process(pid)
        for process in (root, *root.children(recursive=True)):
            with contextlib.suppress(psutil.NoSuchProcess):
                times = process.cpu_times()
                total += times.user + times.system
                total += getattr(times, "children_user", 0.0) + getattr(times, "children_system", 0.0)
    return total


def memory_mb(pid: int) -> float:
    """The tree's memory, pages shared by several processes counted once (Linux; resident memory elsewhere)."""
    total = 0
    with contextlib.suppress(psutil.NoSuchProcess):
        root = psutil.Process(pid)
        for process in (root, *root.children(recursive=True)):
            with contextlib.suppress(psutil.NoSuchProcess):
                total += _memory(process)
    return total / 1e6


def _memory(process: psutil.Process) -> int:
    try:
        full = process.memory_full_info()
    except psutil.AccessDenied:
        return int(process.memory_info().rss)
    return int(getattr(full, "pss", 0) or process.memory_info().rss)


def load_average() -> float:
    return os.getloadavg()[0]
