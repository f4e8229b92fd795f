"""Granian around the app: one process that answers, one that watches it."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import os
import signal
import socket
import struct
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

from api.cli.services.ports import check_port
from models.kit.settings import Settings

if TYPE_CHECKING:
    from litestar import Litestar
    from litestar.types import Message, Scope

PR_SET_PDEATHSIG = 1
#: Seconds that requests in flight have to finish: the longest is a creation that waits 5 s for its offer. What is left
#: then (open WebSockets, mostly) is cut.
DRAIN_SECONDS = 7
#: Seconds between the last connection and the end of listening. Its request has arrived by then.
LAST_ARRIVALS_S: Final = 0.2

SO_ATTACH_FILTER: Final = 26
#: A socket filter that drops what asks for a new connection, and lets all else pass: load the byte of TCP's flags, jump
#: on SYN, keep, drop. As (code, jump if true, jump if false, operand).
_NO_NEW_CONNECTIONS: Final = ((0x30, 0, 0, 13), (0x45, 1, 0, 0x02), (0x06, 0, 0, 0xFFFFFFFF), (0x06, 0, 0, 0))


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
    return stops_gently(without_pauses(create_app()))


def api_with_worker() -> Litestar:
    from api.app import create_app

    die_with_parent()
    return stops_gently(without_pauses(create_app(with_worker=True)))


def without_pauses(app: Litestar) -> Litestar:
    """Keep the garbage collector from walking what the start has made, which stays for ever: a full collection of it
    holds up every request, health included, for 150 ms."""
    gc.collect()
    gc.freeze()
    return app


def stops_gently(app: Litestar) -> Litestar:
    """At SIGTERM, take no new connection, answer what stands on those there are, and end.

    Closing the listening socket resets the connections that wait in it to be taken: a client that has sent its request
    gets no answer, and cannot tell whether it was carried out. So first the kernel is told to let nobody in any more;
    who knocks meanwhile is refused when the socket is gone, or let in by the process that takes its place. And each
    answer says that its connection ends with it, lest the next request on it arrives too late.
    """
    ending = asyncio.Event()

    async def listen_for_the_end() -> None:
        # Granian's own handlers are in place by now. Ours takes SIGTERM over, and ends with SIGINT, which is theirs.
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, _begin_to_end, ending)

    async def say_so(message: Message, scope: Scope) -> None:
        if ending.is_set() and message["type"] == "http.response.start" and scope.get("http_version") == "1.1":
            message["headers"] = [*message["headers"], (b"connection", b"close")]

    if sys.platform == "linux":
        app.on_startup.append(listen_for_the_end)
        app.before_send.append(say_so)
    return app


def _begin_to_end(ending: asyncio.Event) -> None:
    ending.set()
    for listening in _listening_sockets():
        with listening, contextlib.suppress(OSError):
            _drop_new_connections(listening)
    asyncio.get_running_loop().call_later(LAST_ARRIVALS_S, os.kill, os.getpid(), signal.SIGINT)


def _listening_sockets() -> list[socket.socket]:
    """Duplicates of this process's listening sockets, which Granian keeps to itself."""
    found = []
    for path in list(Path("/proc/self/fd").iterdir()):
        if not path.is_socket():
            continue
        one = socket.socket(fileno=os.dup(int(path.name)))
        if one.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            found.append(one)
        else:
            one.close()
    return found


def _drop_new_connections(listening: socket.socket) -> None:
    program = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *line) for line in _NO_NEW_CONNECTIONS))
    header = struct.pack("HP", len(_NO_NEW_CONNECTIONS), ctypes.addressof(program))
    listening.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, header)


def die_with_parent() -> None:
    """Granian's serving process would otherwise live on, and hold the port, when its parent is SIGKILLed."""
    if sys.platform != "linux":
        return
    parent = os.getppid()
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGKILL))
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)
