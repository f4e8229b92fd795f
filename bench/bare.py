"""The floor: a bare Temporal workflow with as many signals and activities as ours, and nothing in them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any, Self

import msgspec
from temporalio import activity, workflow
from temporalio.api.enums.v1 import EventType
from temporalio.client import Client

from bench.rounds import WORK_S, Stopwatch, until

QUEUE = "bare"
#: Where the worker's activities send word, which stands for the push to drivers: a datagram costs some microseconds.
PORT_VARIABLE = "BENCH_WORD_PORT"
_QUICK: dict[str, Any] = {"start_to_close_timeout": timedelta(seconds=10)}


class Work(msgspec.Struct, frozen=True):
    """`deadline`, in Unix seconds, is when an expiring workflow's offer lapses."""

    work_id: str
    deadline: float = 0.0


@activity.defn
async def offer(work: Work) -> None:
    """The offer is out."""
    _say(f"offer {work.work_id}")


@activity.defn
async def offer_next(work: Work) -> None:
    """The next driver has the offer."""
    _say(f"next {work.work_id} {time.time()}")


@activity.defn
async def nothing(work: Work) -> None:
    """What ours looks at after a signal."""


@workflow.defn
class BareLifecycle:
    """Offer, wait for the accept, look, wait for the completion, look."""

    def __init__(self) -> None:
        self.accepted_ = False
        self.completed_ = False

    @workflow.run
    async def run(self, work: Work) -> None:
        await workflow.execute_local_activity(offer, work, **_QUICK)
        await workflow.wait_condition(lambda: self.accepted_, timeout=timedelta(seconds=300))
        await workflow.execute_local_activity(nothing, work, **_QUICK)
        await workflow.wait_condition(lambda: self.completed_)
        await workflow.execute_local_activity(nothing, work, **_QUICK)

    @workflow.signal
    def accepted(self) -> None:
        self.accepted_ = True

    @workflow.signal
    def completed(self) -> None:
        self.completed_ = True


@workflow.defn
class BareExpiry:
    """Offer, wait until the deadline, offer to the next."""

    @workflow.run
    async def run(self, work: Work) -> None:
        await workflow.execute_local_activity(offer, work, **_QUICK)
        left = work.deadline - workflow.time()
        with contextlib.suppress(asyncio.TimeoutError):
            await workflow.wait_condition(lambda: False, timeout=timedelta(seconds=max(0.001, left)))
        await workflow.execute_local_activity(offer_next, work, **_QUICK)


_word = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)


def _say(what: str) -> None:
    _word.sendto(what.encode(), ("127.0.0.1", int(os.environ[PORT_VARIABLE])))


class Word(asyncio.DatagramProtocol):
    """Hears what the worker's activities say."""

    def __init__(self) -> None:
        self.port = 0
        self.offers: dict[str, asyncio.Future[None]] = {}
        #: When the next offer was out, in Unix seconds, by work id.
        self.next_at: dict[str, float] = {}

    @classmethod
    @asynccontextmanager
    async def listening(cls) -> AsyncIterator[Self]:
        receiver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        receiver.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
        receiver.bind(("127.0.0.1", 0))
        transport, word = await asyncio.get_running_loop().create_datagram_endpoint(cls, sock=receiver)
        word.port = receiver.getsockname()[1]
        try:
            yield word
        finally:
            transport.close()

    def datagram_received(self, data: bytes, addr: Any) -> None:
        what, work_id, *rest = data.decode().split()
        if what == "next":
            self.next_at[work_id] = float(rest[0])
        elif (future := self.offers.get(work_id)) is not None and not future.done():
            future.set_result(None)

    @contextlib.contextmanager
    def expecting(self, work_id: str) -> Any:
        """The future of this work's offer."""
        future = self.offers[work_id] = asyncio.get_running_loop().create_future()
        try:
            yield future
        finally:
            del self.offers[work_id]


class BareDispatch:
    """Drives bare workflows as the relay drives ours."""

    def __init__(self, client: Client, word: Word) -> None:
        self._client = client
        self.word = word
        self._number = 0
        self.stopwatch = Stopwatch()

    @property
    def last_id(self) -> str:
        """The last workflow's."""
        return f"bare-{self._number}"

    async def lifecycle(self) -> None:
        self._number += 1
        work = Work(self.last_id)
        with self.word.expecting(work.work_id) as offered:
            began = time.perf_counter()
            handle = await self._client.start_workflow(BareLifecycle.run, work, id=work.work_id, task_queue=QUEUE)
            async with asyncio.timeout(60):
                await offered
        self.stopwatch.note("offer", time.perf_counter() - began)
        began = time.perf_counter()
        await handle.signal(BareLifecycle.accepted)
        self.stopwatch.note("accept", time.perf_counter() - began)
        await asyncio.sleep(WORK_S)
        await handle.signal(BareLifecycle.completed)

    async def open(self, work: Work, *, expiring: bool = False) -> float:
        """Start one and leave it open; the seconds until its offer is out."""
        with self.word.expecting(work.work_id) as offered:
            began = time.perf_counter()
            run: Any = BareExpiry.run if expiring else BareLifecycle.run
            await self._client.start_workflow(run, work, id=work.work_id, task_queue=QUEUE)
            async with asyncio.timeout(60):
                await offered
            return time.perf_counter() - began

    async def closed(self) -> None:
        await none_running(self._client, "BareLifecycle")


async def none_running(client: Client, workflow_type: str) -> None:
    """Wait until no workflow of this type is open."""
    query = f"WorkflowType = '{workflow_type}' AND ExecutionStatus = 'Running'"

    async def none() -> bool:
        return (await client.count_workflows(query)).count == 0

    await until(none)


class Shape(msgspec.Struct, frozen=True):
    """What one closed workflow's history holds; `types` are its events' in order."""

    types: list[str]

    @property
    def events(self) -> int:
        return len(self.types)

    @property
    def signals(self) -> int:
        return self.types.count("WORKFLOW_EXECUTION_SIGNALED")

    @property
    def local_activities(self) -> int:
        return self.types.count("MARKER_RECORDED")

    def __str__(self) -> str:
        counts = Counter(name.removeprefix("WORKFLOW_").lower().replace("_", " ") for name in self.types)
        return ", ".join(f"{count} {name}" for name, count in counts.items())


async def shape_of(client: Client, workflow_id: str) -> Shape:
    events = (await client.get_workflow_handle(workflow_id).fetch_history()).events
    return Shape([EventType.Name(event.event_type).removeprefix("EVENT_TYPE_") for event in events])
