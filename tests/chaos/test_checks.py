"""The checks after a run can fail: each is shown what it guards against."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import text

from models.work.commands import cancel, complete, hand_back
from tests.chaos import logs
from tests.chaos.checks import Stored, check_ledger
from tests.chaos.ledger import Attempt, Certain, Creation, Fact, Ledger, Outcome
from tests.factories.people import Person
from tests.factories.work import World

pytestmark = pytest.mark.anyio

MARKER = "P-1"


class Story:
    """One work order that a driver has accepted, and a client's view of it that the checks find right."""

    def __init__(self, world: World, ledger: Ledger, driver: Person, work: UUID, offer: UUID) -> None:
        self.world = world
        self.ledger = ledger
        self.driver = driver
        self.work = work
        self.offer = offer

    @classmethod
    async def of(cls, world: World, ledger: Ledger) -> Story:
        driver, work = await world.driver(), await world.enrollment()
        await world.advance(work)
        story = cls(world, ledger, driver, work, (await world.pending(work)).id)
        await world.accept(story.offer, driver)
        creation = Creation(marker=MARKER, kind="enrollment", path="", body={}, key="", creator=None)
        ledger.creations[MARKER] = creation
        ledger.created(creation, str(work))
        story.told(Certain.CREATED, marker=MARKER)
        story.asked("accept", str(story.offer))
        story.told(Certain.ACCEPTED, offer_id=str(story.offer), driver_id=str(driver.driver_id))
        return story

    def asked(self, kind: str, subject: str, **answer: Any) -> None:
        attempt = Attempt(operation=1, actor="", kind=kind, subject=subject, key=None, sent_at=0, **answer)
        with self.ledger.attempting(attempt):
            pass

    def told(self, what: Certain, **more: Any) -> None:
        values: dict[str, Any] = {"work_order_id": str(self.work), "since": 0.0, "told_at": float("inf")}
        self.ledger.know(Fact(what=what, **values | more))

    async def broken(self) -> set[str]:
        stored = await Stored.read(self.world.database)
        return {violation.check for violation in check_ledger(self.ledger, stored)}


@pytest.fixture
async def story(database: Any, tmp_path: Path) -> Any:
    with Ledger(tmp_path / "ledger.jsonl") as ledger:
        story = await Story.of(await World.make(database), ledger)
        assert await story.broken() == set()
        yield story


async def test_a_doubled_creation_is_found(story: Story) -> None:
    await story.world.enrollment()
    assert await story.broken() == {"an acknowledged creation exists exactly once"}


async def test_a_lost_creation_is_found(story: Story) -> None:
    creation = Creation(marker="P-2", kind="enrollment", path="", body={}, key="", creator=None)
    story.ledger.creations["P-2"] = creation
    assert await story.broken() == {"every creation is answered in the end"}
    story.ledger.created(creation, "01a1fdd6-1190-727c-87a0-422b5dd4e3f5")
    assert await story.broken() == {"an acknowledged creation exists exactly once"}


async def test_work_that_nobody_asked_for_is_found(story: Story) -> None:
    await story.world.job()
    assert await story.broken() == {"nothing exists that no client asked for"}


async def test_a_replay_that_names_another_work_order_is_found(story: Story) -> None:
    story.ledger.replayed[MARKER] = {str(story.work)}
    assert await story.broken() == set()
    story.ledger.replayed[MARKER].add("another")
    assert await story.broken() == {"a replayed creation gives the first answer"}


async def test_an_accept_that_assigned_somebody_else_is_found(story: Story) -> None:
    other = await story.world.driver()
    story.told(Certain.ACCEPTED, offer_id=str(story.offer), driver_id=str(other.driver_id))
    assert "an acknowledged accept assigned that driver" in await story.broken()


async def test_a_completion_that_is_not_stored_is_found(story: Story) -> None:
    story.told(Certain.REPORTED, status="completed", driver_id=str(story.driver.driver_id))
    assert await story.broken() == {"an acknowledged completion stands"}


async def test_a_report_of_one_who_no_longer_held_the_work_is_found(story: Story) -> None:
    async with story.world.database.transaction() as session:
        await hand_back(session, story.work, story.driver.driver_id, None)
    story.asked("hand back", str(story.work))
    (row,) = (await Stored.read(story.world.database)).assignments
    story.told(Certain.HANDED_BACK, driver_id=str(story.driver.driver_id))
    assert await story.broken() == set()
    story.told(Certain.REPORTED, status="en_route", driver_id=str(story.driver.driver_id), since=row.ends_at + 1)
    assert await story.broken() == {"who was told to hold the work held it"}


async def test_two_holders_at_once_are_found(story: Story) -> None:
    async with story.world.database.transaction() as session:
        await session.run(text("ALTER TABLE assignments DISABLE TRIGGER ALL"))
        await session.run(text("DROP INDEX uq_assignments_open"))
        await session.run(text("ALTER TABLE assignments DROP CONSTRAINT uq_assignments_offer_id"))
        await session.run(
            text(
                "INSERT INTO assignments (organization_id, work_order_id, driver_id, offer_id, starts_at, counted) "
                "SELECT organization_id, work_order_id, driver_id, offer_id, starts_at, counted FROM assignments"
            )
        )
    assert await story.broken() == {"no work order was held by two at once"}


async def test_what_was_done_without_being_asked_for_is_found(story: Story) -> None:
    async with story.world.database.transaction() as session:
        await complete(session, story.work)
    assert await story.broken() == {"nothing was done that no client asked for"}
    story.asked("report completed", str(story.work))
    assert await story.broken() == set()


async def test_a_cancellation_that_does_not_stand_is_found(story: Story) -> None:
    story.told(Certain.CANCELLED)
    assert await story.broken() == {"an acknowledged cancellation stands"}
    async with story.world.database.transaction() as session:
        await cancel(session, story.work, None)
    story.asked("cancel", str(story.work))
    assert await story.broken() == set()


async def test_an_internal_error_and_a_refused_creation_are_found(story: Story) -> None:
    story.asked("look", "", status=500, code="INTERNAL_ERROR")
    assert await story.broken() == {"no answer is an error of ours"}
    story.asked("create job", "", status=409, code="CONFLICT", outcome=Outcome.REFUSED)
    assert await story.broken() == {"no answer is an error of ours", "a valid creation is not refused"}


# Logs

BECAUSE = "\nThe above exception was the direct cause of the following exception:\n"
WRAPPED = "sqlalchemy.exc.DBAPIError: (sqlalchemy.dialects.postgresql.asyncpg.Error) it says so"


@pytest.mark.parametrize(
    ("endings", "expected"),
    [
        (["ConnectionResetError: [Errno 104] Connection reset by peer"], True),
        (["sqlalchemy.exc.TimeoutError: QueuePool limit of size 16 overflow 0 reached"], True),
        (["asyncio.exceptions.CancelledError: Activity cancelled"], True),
        (["asyncpg.exceptions.CrashShutdownError: ended\nDETAIL:  x\nHINT:  y"], True),
        (["asyncpg.exceptions.ConnectionDoesNotExistError: connection was closed", WRAPPED], True),
        (["asyncpg.exceptions.DeadlockDetectedError: deadlock detected", WRAPPED], False),
        (["asyncpg.exceptions.UniqueViolationError: duplicate key", WRAPPED], False),
        (["TypeError: can only concatenate str"], False),
        (["ConnectionResetError", "KeyError: 'what the handler of it got wrong'"], False),
    ],
)
def test_only_outages_may_be_logged(tmp_path: Path, endings: list[str], *, expected: bool) -> None:
    log = tmp_path / "worker.log"
    head = 'Traceback (most recent call last):\n  File "x.py", line 1, in f\n    g()\n'
    told = BECAUSE.join(f"{head}{ending}\n" for ending in endings) + "(Background on this error at: ..)\n"
    log.write_text(told)
    assert (logs.complaints(log).total() == 0) is expected
    log.write_text(json.dumps({"event": "failed", "exception": told}))
    assert (logs.complaints(log).total() == 0) is expected


def test_the_sdks_harmless_panic_passes_and_any_other_does_not(tmp_path: Path) -> None:
    log = tmp_path / "worker.log"
    where = "thread 'tokio-rt-worker' (2) panicked at sdk-core/src/worker/activities/local_activities.rs:1120:33:\n"
    log.write_text(f"{where}receive half not dropped: SendError {{ .. }}\n")
    assert logs.complaints(log).total() == 0
    log.write_text(f"{where}index out of bounds\n")
    assert logs.complaints(log).total() == 1
