"""Looking at the system from outside, past every proxy: what is open now, and whether all has come to rest."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

import asyncpg
from temporalio.client import Client
from temporalio.service import RPCError

from tests.chaos.system import System
from workflows.client import connect

LOOK_EVERY_S = 0.5
#: What a look may meet while its Postgres or Temporal is being killed, frozen or started.
OUTAGES = (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError, RPCError, RuntimeError)

_OPEN = """
SELECT (SELECT count(*) FROM work_orders WHERE status NOT IN ('completed', 'cancelled', 'expired')) AS work_orders,
    (SELECT count(*) FROM offers WHERE status = 'pending') AS offers,
    (SELECT count(*) FROM workflow_wakes WHERE seq > sent_seq) AS wakes_owed,
    (SELECT count(*) FROM workflow_wakes WHERE claimed_until > clock_timestamp()) AS wakes_leased,
    (SELECT count(*) FROM notifications WHERE status IN ('pending', 'sending')) AS messages
"""
_RUNNING = "WorkflowType = 'DispatchWorkflow' AND ExecutionStatus = 'Running'"


class Watch:
    """`open` is the last look; empty before the first."""

    def __init__(self, system: System) -> None:
        self._system = system
        self._connection: asyncpg.Connection | None = None
        self._temporal: Client | None = None
        self.open: dict[str, int] = {}

    async def keep_looking(self) -> None:
        while True:
            with contextlib.suppress(*OUTAGES):
                async with asyncio.timeout(1):
                    self.open = await self.look()
            await asyncio.sleep(LOOK_EVERY_S)

    async def look(self) -> dict[str, int]:
        """How much of each is open in Postgres. Raises one of OUTAGES."""
        return await self._asking(self._counts)

    async def workflows(self) -> int:
        """How many dispatch workflows run. Raises one of OUTAGES."""
        return await self.count_workflows(_RUNNING)

    async def count_workflows(self, query: str) -> int:
        if self._temporal is None:
            self._temporal = await connect(self._system.settings)
        return (await self._temporal.count_workflows(query)).count

    async def everything(self) -> dict[str, int]:
        return await self.look() | {"workflows": await self.workflows()}

    async def close(self) -> None:
        if self._connection is not None:
            self._connection.terminate()

    async def _asking(self, ask: Callable[[asyncpg.Connection], Awaitable[dict[str, int]]]) -> dict[str, int]:
        try:
            if self._connection is None or self._connection.is_closed():
                self._connection = await asyncpg.connect(self._system.postgres.dsn, timeout=1, command_timeout=2)
            return await ask(self._connection)
        except BaseException:
            if self._connection is not None:
                self._connection.terminate()
            self._connection = None
            raise

    async def _counts(self, connection: asyncpg.Connection) -> dict[str, int]:
        row = await connection.fetchrow(_OPEN)
        assert row is not None
        return {name: int(count) for name, count in row.items() if name != "wakes_leased" or count}
