"""A way to Postgres that can be cut, in each of the ways that networks have."""

from __future__ import annotations

import asyncio
import contextlib
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit


class Proxy:
    """Passes TCP on to the server in `url`; `url` of its own leads through it."""

    def __init__(self, url: str) -> None:
        self._parts = urlsplit(url)
        self._going = asyncio.Event()
        self._going.set()
        self._writers: set[asyncio.StreamWriter] = set()
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

    async def hang(self) -> None:
        """Connections stay open, new ones are taken, and nothing goes through: a frozen server."""
        self._going.clear()

    async def hang_up(self) -> None:
        """Close all connections; new ones work."""
        for writer in list(self._writers):
            writer.transport.abort()

    async def refuse(self) -> None:
        """Close all connections and take none: a server that is down."""
        if self._server is not None:
            self._server.close()
            self._server = None
        await self.hang_up()

    async def resume(self) -> None:
        self._going.set()
        if self._server is None:
            self._server = await asyncio.start_server(self._take, "127.0.0.1", self._port)
            self._port = self._server.sockets[0].getsockname()[1]

    async def _take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection(self._parts.hostname, self._parts.port)
        for source, target in ((reader, back), (there, writer)):
            self._writers.add(target)
            task = asyncio.create_task(self._pass_on(source, target))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _pass_on(self, source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await source.read(65536):
                await self._going.wait()
                target.write(data)
                await target.drain()
        self._writers.discard(target)
        target.transport.abort()
