"""A way to a server that can be cut, slowed and made to lose bytes, in each of the ways that networks have."""

from __future__ import annotations

import asyncio
import contextlib
import struct
from enum import Enum, auto
from socket import SO_LINGER, SOL_SOCKET
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

#: Close without saying goodbye: with it, closing a socket sends RST instead of FIN.
_NO_LINGER = struct.pack("ii", 1, 0)


class Way(Enum):
    """Which way bytes go, seen from the client."""

    REQUESTS = auto()
    ANSWERS = auto()


class Proxy:
    """Passes TCP on to the server in `url`; `url` of its own leads through it."""

    def __init__(self, url: str) -> None:
        self._parts = urlsplit(url)
        self._going = asyncio.Event()
        self._going.set()
        self._latency_s = 0.0
        self._lost: Way | None = None
        self._connections: set[_Connection] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self._port = 0

    async def __aenter__(self) -> Self:
        await self.resume()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._going.set()
        await self.refuse()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def url(self) -> str:
        user = self._parts.netloc.rpartition("@")[0]
        netloc = f"{user}@127.0.0.1:{self._port}" if user else f"127.0.0.1:{self._port}"
        return self._parts._replace(netloc=netloc).geturl()

    @property
    def address(self) -> str:
        """`host:port`, for what takes no URL."""
        return f"127.0.0.1:{self._port}"

    async def hang(self) -> None:
        """Connections stay open, new ones are taken, and nothing goes through: a frozen server. What was under way
        arrives when it resumes."""
        self._going.clear()

    async def slow(self, seconds: float) -> None:
        """Whatever is sent arrives so much later."""
        self._latency_s = seconds

    async def lose(self, way: Way) -> None:
        """Connections stay open, and what goes this way vanishes: with ANSWERS, requests are carried out and nobody
        hears of it."""
        self._lost = way

    async def half_close(self) -> None:
        """End the server's side of every connection towards its client, who may still send; new ones work."""
        for connection in list(self._connections):
            connection.end_answers()

    async def hang_up(self) -> None:
        """Close all connections; new ones work."""
        for connection in list(self._connections):
            connection.abort()

    async def reset(self) -> None:
        """Break all connections with RST; new ones work."""
        for connection in list(self._connections):
            connection.abort(reset=True)

    async def refuse(self) -> None:
        """Close all connections and take none: a server that is down."""
        if self._server is not None:
            self._server.close()
            self._server = None
        await self.hang_up()

    async def resume(self) -> None:
        """All is well again. Connections that lost bytes are broken: what follows would make no sense to either end."""
        self._latency_s = 0
        self._lost = None
        for connection in list(self._connections):
            if connection.torn:
                connection.abort(reset=True)
        self._going.set()
        if self._server is None:
            self._server = await asyncio.start_server(self._take, "127.0.0.1", self._port)
            self._port = self._server.sockets[0].getsockname()[1]

    async def _take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            there, back = await asyncio.open_connection(self._parts.hostname, self._parts.port)
        except OSError:
            # Nobody listens there: the client is told as the server's own machine would.
            _abort(writer, reset=True)
            return
        connection = _Connection(client=writer, server=back)
        self._connections.add(connection)
        for way, source, target in ((Way.REQUESTS, reader, back), (Way.ANSWERS, there, writer)):
            task = asyncio.create_task(self._pass_on(connection, way, source, target))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _pass_on(
        self, connection: _Connection, way: Way, source: asyncio.StreamReader, target: asyncio.StreamWriter
    ) -> None:
        with contextlib.suppress(OSError):
            while data := await source.read(65536):
                await self._going.wait()
                if self._latency_s:
                    await asyncio.sleep(self._latency_s)
                if self._lost is way or connection.ended is way:
                    connection.torn = True
                    continue
                target.write(data)
                await target.drain()
            # What was read before the end has still to arrive.
            await self._going.wait()
        self._connections.discard(connection)
        connection.close()


class _Connection:
    """The two halves of one proxied connection."""

    def __init__(self, *, client: asyncio.StreamWriter, server: asyncio.StreamWriter) -> None:
        self._client = client
        self._server = server
        #: Bytes of it were lost.
        self.torn = False
        #: This way nothing passes any more.
        self.ended: Way | None = None

    def end_answers(self) -> None:
        if self._client.can_write_eof() and not self._client.transport.is_closing():
            self.ended = Way.ANSWERS
            self._client.write_eof()

    def close(self) -> None:
        """Once what has been written is out."""
        for writer in (self._client, self._server):
            writer.transport.close()

    def abort(self, *, reset: bool = False) -> None:
        for writer in (self._client, self._server):
            _abort(writer, reset=reset)


def _abort(writer: asyncio.StreamWriter, *, reset: bool) -> None:
    if reset and not writer.transport.is_closing():
        writer.get_extra_info("socket").setsockopt(SOL_SOCKET, SO_LINGER, _NO_LINGER)
    writer.transport.abort()
