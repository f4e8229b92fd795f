"""Local TCP ports: find a free one, or say in one line that the wanted one is taken."""

from __future__ import annotations

import socket
import time


class PortTakenError(Exception):
    """Somebody listens there already; the text names the variable that chooses another port."""

    def __init__(self, port: int, variable: str) -> None:
        super().__init__(f"Port {port} is taken: set {variable} to another one")
        self.port = port
        self.variable = variable


def free_port(host: str = "127.0.0.1") -> int:
    """A port nobody listens on now. Take it soon: nothing reserves it."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        port: int = probe.getsockname()[1]
        return port


def check_port(port: int, variable: str, *, host: str = "127.0.0.1", patience: float = 0) -> None:
    """Raise PortTakenError unless `port` can be listened on within `patience` seconds."""
    give_up = time.monotonic() + patience
    while not _can_listen(host, port):
        if time.monotonic() >= give_up:
            raise PortTakenError(port, variable)
        time.sleep(0.1)


def _can_listen(host: str, port: int) -> bool:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        # As servers do: connections of an earlier run that linger in TIME_WAIT do not count.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
        return True
