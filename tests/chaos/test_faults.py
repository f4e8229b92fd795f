"""The schedule of a fault run, and what a broken link does to those at its ends."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from tests.chaos.faults import END, FREEZE, KILL, SHORT, Severity, plan
from tests.chaos.system import LINKS, PARTS
from tests.factories.proxy import Proxy, Way

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("seed", range(5))
def test_every_process_takes_a_tenth_of_the_faults_and_every_link_its_share(seed: int) -> None:
    for seconds, severity in ((600, Severity()), (60, SHORT)):
        faults = plan(seed, seconds, severity)
        targets = Counter(fault.target for fault in faults)
        assert len(faults) >= seconds
        assert min(targets[part] for part in PARTS) >= len(faults) / 10
        assert min(targets[name] for name in LINKS) >= len(faults) / 20
        assert [fault.at for fault in faults] == sorted(fault.at for fault in faults)
        assert 0 <= faults[0].at <= faults[-1].at <= seconds
        ways = {fault.kind for fault in faults if fault.target in PARTS}
        assert ways == {KILL, END, FREEZE}


def test_the_seed_alone_makes_the_schedule() -> None:
    assert plan(1, 600, Severity()) == plan(1, 600, Severity())
    assert plan(1, 600, Severity()) != plan(2, 600, Severity())


class Echo:
    """A server that answers each line with the same line, and remembers what it heard."""

    def __init__(self) -> None:
        self.heard: list[bytes] = []

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while line := await reader.readline():
                self.heard.append(line)
                writer.write(line)
                await writer.drain()
        except ConnectionError:
            pass
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()


@pytest.fixture
async def echo() -> AsyncIterator[tuple[Echo, Proxy]]:
    server = Echo()
    listening = await asyncio.start_server(server.answer, "127.0.0.1", 0)
    port = listening.sockets[0].getsockname()[1]
    async with Proxy(f"tcp://127.0.0.1:{port}") as proxy:
        yield server, proxy
    listening.close()


class Caller:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    @classmethod
    @asynccontextmanager
    async def of(cls, proxy: Proxy) -> AsyncIterator[Caller]:
        """Somebody who has got an answer already."""
        host, _, port = proxy.address.partition(":")
        caller = cls(*await asyncio.open_connection(host, int(port)))
        try:
            assert await caller.says(b"hello\n") == b"hello\n"
            yield caller
        finally:
            caller.writer.close()
            with contextlib.suppress(OSError):
                await caller.writer.wait_closed()

    async def says(self, line: bytes, *, patience_s: float = 5) -> bytes | None:
        """The answer; None when none came in time."""
        self.writer.write(line)
        try:
            async with asyncio.timeout(patience_s):
                return await self.reader.readline()
        except TimeoutError:
            return None


async def test_a_reset_breaks_connections_and_new_ones_work(echo: tuple[Echo, Proxy]) -> None:
    _, proxy = echo
    async with Caller.of(proxy) as caller:
        await proxy.reset()
        with pytest.raises(ConnectionResetError):
            await caller.says(b"anybody?\n")
    async with Caller.of(proxy):
        pass


async def test_what_went_into_a_black_hole_arrives_when_it_is_over(echo: tuple[Echo, Proxy]) -> None:
    server, proxy = echo
    async with Caller.of(proxy) as caller:
        await proxy.hang()
        assert await caller.says(b"anybody?\n", patience_s=0.1) is None
        assert server.heard == [b"hello\n"]
        await proxy.resume()
        assert await caller.reader.readline() == b"anybody?\n"


async def test_where_answers_are_lost_requests_are_carried_out(echo: tuple[Echo, Proxy]) -> None:
    server, proxy = echo
    async with Caller.of(proxy) as caller:
        await proxy.lose(Way.ANSWERS)
        assert await caller.says(b"do it\n", patience_s=0.1) is None
        assert server.heard == [b"hello\n", b"do it\n"]
        await proxy.resume()
        with pytest.raises(ConnectionResetError):
            # Going on in the middle would tell it something else.
            await caller.reader.readline()
    async with Caller.of(proxy):
        pass


async def test_where_requests_are_lost_nothing_is_carried_out(echo: tuple[Echo, Proxy]) -> None:
    server, proxy = echo
    async with Caller.of(proxy) as caller:
        await proxy.lose(Way.REQUESTS)
        assert await caller.says(b"do it\n", patience_s=0.1) is None
        await proxy.resume()
        with pytest.raises(ConnectionResetError):
            await caller.reader.readline()
    assert server.heard == [b"hello\n"]


async def test_a_half_closed_connection_carries_requests_and_no_answers(echo: tuple[Echo, Proxy]) -> None:
    server, proxy = echo
    async with Caller.of(proxy) as caller:
        await proxy.half_close()
        assert await caller.says(b"do it\n") == b"", "the end of what the server had to say"
        async with asyncio.timeout(5):
            while server.heard != [b"hello\n", b"do it\n"]:
                await asyncio.sleep(0.01)
    async with Caller.of(proxy):
        pass


async def test_a_slow_link_delivers_late(echo: tuple[Echo, Proxy]) -> None:
    _, proxy = echo
    async with Caller.of(proxy) as caller:
        await proxy.slow(0.1)
        began = asyncio.get_running_loop().time()
        assert await caller.says(b"hm\n") == b"hm\n"
        assert asyncio.get_running_loop().time() - began >= 0.2, "there and back"


async def test_a_link_to_a_dead_server_breaks_off() -> None:
    async with Proxy("tcp://127.0.0.1:1") as proxy:
        with pytest.raises(ConnectionResetError):
            async with Caller.of(proxy):
                pass
