"""Granian around the app: one process that answers, one that watches it."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from typing import TYPE_CHECKING

from api.cli.services.ports import check_port
from models.kit.settings import Settings

if TYPE_CHECKING:
    from litestar import Litestar

PR_SET_PDEATHSIG = 1
#: Seconds that requests in flight have to finish; what is left then (open WebSockets, mostly) is cut.
DRAIN_SECONDS = 6


def serve(settings: Settings, *, with_worker: bool) -> None:
    """Serve until SIGTERM or SIGINT. One process answers; this one only watches it and holds the socket."""
    from granian import Granian
    from granian.constants import Interfaces, Loops
    from granian.log import LogLevels

    check_port(settings.port, "PORT", host=settings.host)
    Granian(
        target="api.cli.serving:api_with_worker" if with_worker else "api.cli.serving:api_only",
        factory=True,
        interface=Interfaces.ASGI,
        address=settings.host,
        port=settings.port,
        # One: more of them are more `fairlead api`s, which a host's process manager starts and counts.
        workers=1,
        loop=Loops.uvloop,
        log_level=LogLevels.warning,
        workers_kill_timeout=DRAIN_SECONDS,
    ).serve()


def api_only() -> Litestar:
    """Granian's factory, in the process that serves."""
    from api.app import create_app

    die_with_parent()
    return create_app()


def api_with_worker() -> Litestar:
    from api.app import create_app

    die_with_parent()
    return create_app(with_worker=True)


def die_with_parent() -> None:
    """Granian's serving process would otherwise live on, and hold the port, when its parent is SIGKILLed."""
    if sys.platform != "linux":
        return
    parent = os.getppid()
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGKILL))
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)
