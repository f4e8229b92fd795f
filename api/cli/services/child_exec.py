"""Runs between fork and the real program: drops root where asked, ties the child's life to ours, then becomes it.

    python -I -S child_exec.py DEATH_SIGNAL PARENT_PID UID:GID|- DIRECTORY PROGRAM ARGUMENT..

A program of its own rather than a `preexec_fn`, which may deadlock in a process with threads. Standard library only,
and started by its path: it has to be up in milliseconds.
"""

from __future__ import annotations

import ctypes
import os
import sys

PR_SET_PDEATHSIG = 1
PR_SET_KEEPCAPS = 8
PR_CAP_AMBIENT = 47
PR_CAP_AMBIENT_RAISE = 2
PR_SET_SECUREBITS = 28
SECBIT_NO_SETUID_FIXUP = 1 << 2
CAP_DAC_OVERRIDE = 1
CAP_SETPCAP = 8
CAPABILITY_VERSION_3 = 0x20080522


class _CapabilityHeader(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _CapabilityData(ctypes.Structure):
    _fields_ = (("effective", ctypes.c_uint32), ("permitted", ctypes.c_uint32), ("inheritable", ctypes.c_uint32))


def main(arguments: list[str]) -> None:
    death_signal, parent, user, directory, *command = arguments
    if user != "-":
        uid, _, gid = user.partition(":")
        _become(int(uid), int(gid), directory, command[0])
    os.chdir(directory)
    _die_with_parent(int(death_signal), int(parent))
    os.execv(command[0], command)  # noqa: S606 - the caller gives an absolute path, and no shell is wanted


def _become(uid: int, gid: int, directory: str, program: str) -> None:
    """Be this user for good. Postgres refuses root, but need not be locked out of what root unpacked below /root."""
    if sys.platform == "linux":
        _prctl(PR_SET_KEEPCAPS, 1)
    os.setgroups([])
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)
    if not _reachable(directory, program):
        _pass_closed_directories(f"user {uid} may not enter {directory} or run {program}")


def _reachable(directory: str, program: str) -> bool:
    try:
        os.chdir(directory)
        os.close(os.open(program, os.O_RDONLY))
    except PermissionError:
        return False
    return True


def _pass_closed_directories(complaint: str) -> None:
    """Keep one of root's capabilities, passing file permissions, across the exec."""
    if sys.platform != "linux":
        sys.exit(complaint)
    try:
        _set_capabilities(1 << CAP_DAC_OVERRIDE | 1 << CAP_SETPCAP)
        # Postgres asks access(2) before it runs its own programs; without this bit, access answers a user other than
        # root as if he had no capabilities.
        _prctl(PR_SET_SECUREBITS, SECBIT_NO_SETUID_FIXUP)
        _set_capabilities(1 << CAP_DAC_OVERRIDE)
        _prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, CAP_DAC_OVERRIDE)
    except OSError:
        sys.exit(complaint)


def _set_capabilities(bits: int) -> None:
    header = _CapabilityHeader(CAPABILITY_VERSION_3, 0)
    data = (_CapabilityData * 2)(_CapabilityData(bits, bits, bits), _CapabilityData(0, 0, 0))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.capset(ctypes.byref(header), ctypes.byref(data)) != 0:
        raise OSError(ctypes.get_errno(), "capset")


def _die_with_parent(death_signal: int, parent: int) -> None:
    """Have the kernel signal us when the parent's thread that forked us ends. After setuid, which would clear it."""
    if sys.platform != "linux":
        return
    _prctl(PR_SET_PDEATHSIG, death_signal)
    if os.getppid() != parent:
        # It died before we asked to be told.
        sys.exit("the parent is gone")


def _prctl(option: int, second: int, third: int = 0) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    words = [ctypes.c_ulong(word) for word in (second, third, 0, 0)]
    if libc.prctl(option, *words) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


if __name__ == "__main__":
    main(sys.argv[1:])
