"""HTTP as bytes on a connection of its own: what it costs the asker is nothing beside what it costs the server, and
nothing is repeated, pooled or tidied up on the way."""

from __future__ import annotations

import asyncio
import json
from typing import Any, Self
from urllib.parse import urlsplit

import msgspec


class CutOff(Exception):
    """The connection was taken, and ended before the whole answer was there; the text says where."""


class Answer(msgspec.Struct, frozen=True):
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def is_ok(self) -> bool:
        return 200 <= self.status < 300

    def json(self) -> Any:
        return json.loads(self.body)


class Wire:
    """One connection for one request. `open` raises ConnectionRefusedError where nobody listens."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, host: str) -> None:
        self._reader = reader
        self._writer = writer
        self._host = host

    @classmethod
    async def open(cls, url: str) -> Self:
        address = urlsplit(url)
        reader, writer = await asyncio.open_connection(address.hostname, address.port)
        return cls(reader, writer, address.netloc)

    async def ask(self, method: str, path: str, headers: dict[str, str], body: Any = None) -> Answer:
        """Raises CutOff unless a whole answer comes."""
        content = b"" if body is None else json.dumps(body).encode()
        lines = {"Host": self._host, "Connection": "close", "Content-Length": str(len(content))} | headers
        if content:
            lines["Content-Type"] = "application/json"
        head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
        got = b""
        try:
            self._writer.write(f"{method} {path} HTTP/1.1\r\n{head}\r\n".encode() + content)
            while piece := await self._reader.read(65536):
                got += piece
        except ConnectionError as error:
            raise CutOff(f"{error!r} after {len(got)} bytes") from error
        finally:
            self._writer.close()
        return _parsed(got)


def _parsed(got: bytes) -> Answer:
    head, found, body = got.partition(b"\r\n\r\n")
    if not found:
        raise CutOff(f"closed after {len(got)} bytes")
    first, *lines = head.decode("latin-1").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    # An answer without content (204) says no length.
    if len(body) != int(headers.get("content-length", 0)):
        raise CutOff(f"closed after {len(body)} of {headers.get('content-length', 0)} bytes of the body")
    return Answer(int(first.split(" ")[1]), headers, body)


async def ask(url: str, method: str, path: str, headers: dict[str, str], body: Any = None) -> Answer:
    return await (await Wire.open(url)).ask(method, path, headers, body)
