"""A load balancer's health check, asked all the while from a thread of its own."""

from __future__ import annotations

import http.client
import subprocess
import sys
import threading
import time
from types import TracebackType
from typing import Final, Self
from urllib.parse import urlsplit

EVERY_S: Final = 0.02
PROMISED_S: Final = 0.2

#: A server that does nothing else: what it takes to answer is the machine's share, which a busy one has.
_BARE_SERVER: Final = """
import socket
listening = socket.create_server(("127.0.0.1", 0))
print(listening.getsockname()[1], flush=True)
while True:
    connection, _ = listening.accept()
    while connection.recv(4096):
        connection.sendall(b"HTTP/1.1 200 OK\\r\\nContent-Length: 2\\r\\n\\r\\nok")
"""


class HealthProbe:
    """`GET /health` some fifty times a second while the block runs, beside a bare server asked the same."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._stop = threading.Event()

    def __enter__(self) -> Self:
        self._bare = subprocess.Popen([sys.executable, "-I", "-S", "-c", _BARE_SERVER], stdout=subprocess.PIPE)
        assert self._bare.stdout is not None
        port = int(self._bare.stdout.readline())
        self._health = _Asker(self._url, "/health", self._stop)
        self._machine = _Asker(f"http://127.0.0.1:{port}", "/", self._stop)
        for asker in (self._health, self._machine):
            asker.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        for asker in (self._health, self._machine):
            asker.join()
        self._bare.kill()
        self._bare.communicate()

    def check(self) -> None:
        """200 every time, and each in less than the 200 ms that are promised; the machine's share aside."""
        assert self._health.failures == []
        assert self._health.asked > 0
        assert self._health.slowest_s < PROMISED_S + self._machine.slowest_s, self.told

    @property
    def told(self) -> str:
        return (
            f"slowest of {self._health.asked} health checks {self._health.slowest_s * 1000:.0f} ms, "
            f"of a bare server's answers {self._machine.slowest_s * 1000:.0f} ms"
        )


class _Asker(threading.Thread):
    def __init__(self, url: str, path: str, stop: threading.Event) -> None:
        super().__init__(name=f"asks {path}")
        self._address = urlsplit(url)
        self._path = path
        # Not `_stop`, which a thread has of its own.
        self._until = stop
        self.asked = 0
        self.slowest_s = 0.0
        self.failures: list[str] = []

    def run(self) -> None:
        connection = http.client.HTTPConnection(self._address.hostname or "", self._address.port, timeout=5)
        while not self._until.wait(EVERY_S):
            began = time.perf_counter()
            try:
                connection.request("GET", self._path)
                response = connection.getresponse()
                response.read()
                if response.status != 200:
                    self.failures.append(str(response.status))
            except (OSError, http.client.HTTPException) as error:
                self.failures.append(repr(error))
                connection.close()
            self.slowest_s = max(self.slowest_s, time.perf_counter() - began)
            self.asked += 1
        connection.close()
