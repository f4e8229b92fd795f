"""Keys while things happen at once or go wrong: whatever does, there is one effect, and it has one answer."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import httpx
import pytest
from litestar import Litestar, Request, post
from litestar.di import NamedDependency
from litestar.types import ASGIApp, Message, Receive, Scope, Send
from sqlalchemy import insert, select, text
from sqlalchemy.exc import IntegrityError

from api.app import create_app
from api.guards import needs
from models.identity.permissions import Caller
from models.kit.database import Database, Session
from models.kit.errors import NotFound, Refusal
from models.organizations.tables import organizations
from tests.factories.api import settings
from tests.factories.contents import changed, contents
from tests.factories.desk import Desk
from tests.factories.invariants import check
from tests.factories.proxy import Proxy
from tests.factories.work import World
from tests.factories.workers import until

BLOCK = "SELECT pg_advisory_xact_lock(4711)"
KEY = {"Idempotency-Key": "one and the same"}


class Unlucky(Refusal):
    pass


async def _write(session: Session) -> None:
    await session.run(insert(organizations).values(kind="operator", name="Made", slug="made"))


@post("/try/blocked", opt=needs("account:read", time_limit_s=60))
async def blocked(session: NamedDependency[Session], caller: NamedDependency[Caller]) -> None:
    """Writes, and then waits for who holds BLOCK."""
    await _write(session)
    await session.run(text(BLOCK))


@post("/try/late", opt=needs("account:read", time_limit_s=0.5))
async def late(session: NamedDependency[Session], caller: NamedDependency[Caller]) -> None:
    await _write(session)
    await session.run(text(BLOCK))


@post("/try/late-commit", opt=needs("account:read", time_limit_s=0.5))
async def late_commit(session: NamedDependency[Session], caller: NamedDependency[Caller]) -> None:
    """Its answer stands, and then the commit waits for who holds BLOCK."""
    await _write(session)


@post("/try/half", opt=needs("account:read"))
async def half(session: NamedDependency[Session], caller: NamedDependency[Caller]) -> None:
    """Has written, and has said what else to do, when it refuses."""
    await _write(session)
    session.stage(organizations, kind="operator", name="Staged", slug="staged")
    session.after_commit(lambda: HAPPENED.append("after commit"))
    session.topics.add("wakes")
    raise Unlucky()


@post("/try/taken", opt=needs("account:read"))
async def taken(session: NamedDependency[Session], caller: NamedDependency[Caller]) -> None:
    """Refuses because a statement has failed, after which Postgres does nothing more in this transaction."""
    session.stage(organizations, kind="operator", name="Staged", slug="staged")
    await _write(session)
    try:
        await _write(session)
    except IntegrityError:
        session.stage(organizations, kind="operator", name="Staged", slug="staged-too")
        raise Unlucky() from None


@post("/try/broken", opt=needs("account:read"))
async def broken(session: NamedDependency[Session], caller: NamedDependency[Caller]) -> None:
    await _write(session)


@post("/try/broken-later", opt=needs("account:read"))
async def broken_later(session: NamedDependency[Session], caller: NamedDependency[Caller]) -> None:
    """What it stages is written with the commit, when its answer stands."""
    session.stage(organizations, kind="operator", name="Made", slug="made")


@post("/try/found", opt=needs("account:read"), status_code=200)
async def found(session: NamedDependency[Session], caller: NamedDependency[Caller]) -> str:
    name: str | None = await session.value(select(organizations.c.name).where(organizations.c.slug == "made"))
    if name is None:
        raise NotFound()
    return name


@post("/try/lock", opt=needs("account:read"))
async def waits_for_a_lock(session: NamedDependency[Session], caller: NamedDependency[Caller]) -> None:
    await session.run(text("SET LOCAL lock_timeout = '20ms'"))
    await session.run(text(BLOCK))


@post("/try/bug", opt=needs("account:read"))
async def has_a_bug(request: Request[Any, Any, Any], session: NamedDependency[Session]) -> None:
    await _write(session)
    if not BUGS:
        return
    raise RuntimeError


TRIED = [blocked, late, late_commit, half, taken, broken, broken_later, found, waits_for_a_lock, has_a_bug]
HAPPENED: list[str] = []
BUGS: list[str] = []


@contextlib.asynccontextmanager
async def serving(database: Database | None = None, **changes: Any) -> AsyncIterator[Litestar]:
    app = create_app(settings(**changes), database=database, with_relay=False)
    for handler in TRIED:
        app.register(handler)
    async with app.lifespan():
        yield app


@contextlib.asynccontextmanager
async def speaking(app: ASGIApp, world: World) -> AsyncIterator[Desk]:
    transport = httpx.ASGITransport(app=app)  # type: ignore[arg-type]
    async with httpx.AsyncClient(transport=transport, base_url="http://fairlead.test") as client:
        yield Desk(client, world)


@pytest.fixture
async def app(database: Database) -> AsyncIterator[Litestar]:
    HAPPENED.clear()
    BUGS.clear()
    async with serving(database) as application:
        yield application


async def tried(desk: Desk, path: str, **options: Any) -> httpx.Response:
    return await desk.client.post(f"/try/{path}", headers=desk.world.dispatcher.headers | KEY, **options)


def code(answer: httpx.Response) -> tuple[int, str | None]:
    body = answer.json() if answer.content else None
    return answer.status_code, body.get("code") if isinstance(body, dict) else None


async def number_made(world: World) -> int:
    made: int = (await world.one("SELECT count(*) AS n FROM organizations WHERE slug = 'made'")).n
    return made


@contextlib.asynccontextmanager
async def holding_block(world: World) -> AsyncIterator[None]:
    async with world.database.transaction() as session:
        await session.run(text(BLOCK))
        yield


async def until_blocked(world: World) -> None:
    """Somebody waits for BLOCK."""

    async def waits() -> bool:
        query = "SELECT count(*) AS n FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
        return bool((await world.one(query)).n)

    await until(waits)


async def connected(desk: Desk) -> None:
    """The pool's connections are made, which takes longer than what the test is about."""
    await asyncio.gather(*(desk.get("/jobs") for _ in range(16)))


async def insisted(ask: Callable[[], Awaitable[httpx.Response]]) -> httpx.Response:
    """What a client does who is told to come back, and so gets its answer in the end."""

    async def answered() -> httpx.Response | None:
        answer = await ask()
        told = code(answer)
        return None if told in ((409, "IDEMPOTENCY_IN_PROGRESS"), (503, "UNAVAILABLE")) else answer

    return await until(answered, within_s=30)


async def test_thirty_at_once_have_one_effect(desk: Desk) -> None:
    await connected(desk)
    body = await desk.body("enrollments")
    before = await contents(desk.world.database)
    answers = await asyncio.gather(*(desk.ask("POST", "/enrollments", json=body, headers=KEY) for _ in range(30)))
    made = [answer for answer in answers if answer.status_code == 201]
    others = [answer for answer in answers if answer.status_code != 201]
    # A machine that is busy with other things may be too slow for some; that has no effect either.
    assert {code(answer) for answer in others} <= {(409, "IDEMPOTENCY_IN_PROGRESS"), (503, "UNAVAILABLE")}
    assert {answer.headers["retry-after"] for answer in others} <= {"1"}
    made.append(await insisted(lambda: desk.ask("POST", "/enrollments", json=body, headers=KEY)))
    assert {answer.status_code for answer in made} == {201}
    assert len({answer.content for answer in made}) == 1
    assert [answer.headers.get("idempotency-replayed") for answer in made].count(None) <= 1
    gained = changed(before, await contents(desk.world.database))
    for table in ("work_orders", "enrollments", "work_order_events", "audit_log", "workflow_wakes", "idempotency_keys"):
        assert gained[table] == 1, table
    await check(desk.world.database)


async def test_as_many_at_once_under_keys_of_their_own_are_as_many(desk: Desk) -> None:
    await connected(desk)
    body = await desk.body("enrollments")

    async def made(key: str) -> httpx.Response:
        return await insisted(lambda: desk.ask("POST", "/enrollments", json=body, headers={"Idempotency-Key": key}))

    answers = await asyncio.gather(*(made(str(n)) for n in range(10)))
    assert [answer.status_code for answer in answers] == [201] * 10
    assert len({answer.json()["id"] for answer in answers}) == 10
    assert (await desk.world.one("SELECT count(*) AS n FROM work_orders")).n == 10


async def test_while_the_first_is_in_flight_the_others_are_told_so(desk: Desk) -> None:
    async with holding_block(desk.world):
        first = asyncio.create_task(tried(desk, "blocked"))
        await until_blocked(desk.world)
        second = await tried(desk, "blocked")
        assert code(second) == (409, "IDEMPOTENCY_IN_PROGRESS")
        assert second.headers["retry-after"] == "1"
        # Nothing is known of its body yet.
        assert code(await tried(desk, "blocked", content=b"another")) == (409, "IDEMPOTENCY_IN_PROGRESS")
    assert (await first).status_code == 201
    third = await tried(desk, "blocked")
    assert (third.status_code, third.headers["idempotency-replayed"]) == (201, "true")
    assert await number_made(desk.world) == 1


async def test_a_first_that_is_cut_off_before_its_commit_may_be_repeated(world: World, database_url: str) -> None:
    async with Proxy(database_url) as proxy, serving(database_url=proxy.url) as app, speaking(app, world) as desk:
        async with holding_block(world):
            first = asyncio.create_task(tried(desk, "blocked"))
            await until_blocked(world)
            await proxy.hang_up()
            assert code(await first) == (503, "UNAVAILABLE")
            assert await number_made(world) == 0
        # In progress until Postgres has noticed that nobody is there any more.
        again = await insisted(lambda: tried(desk, "blocked"))
    assert again.status_code == 201
    assert "idempotency-replayed" not in again.headers
    assert await number_made(world) == 1


async def test_a_first_that_took_too_long_may_be_repeated(desk: Desk) -> None:
    async with holding_block(desk.world):
        assert code(await tried(desk, "late")) == (503, "UNAVAILABLE")
        assert await number_made(desk.world) == 0
    assert (await insisted(lambda: tried(desk, "late"))).status_code == 201
    assert await number_made(desk.world) == 1


async def test_a_commit_that_takes_too_long_is_answered_all_the_same(desk: Desk) -> None:
    async with desk.world.database.transaction() as session:
        await session.run(text(
            "CREATE FUNCTION wait_for_block() RETURNS trigger LANGUAGE plpgsql AS "
            "'BEGIN PERFORM pg_advisory_xact_lock(4711); RETURN NULL; END'"
        ))  # fmt: skip
        await session.run(text(
            "CREATE CONSTRAINT TRIGGER block AFTER INSERT ON organizations DEFERRABLE INITIALLY DEFERRED "
            "FOR EACH ROW EXECUTE FUNCTION wait_for_block()"
        ))  # fmt: skip
    async with holding_block(desk.world):
        answer = await tried(desk, "late-commit")
        assert code(answer) == (503, "UNAVAILABLE")
        assert answer.headers["retry-after"] == "1"
    # Whichever way the commit went, it happened once.
    assert (await insisted(lambda: tried(desk, "late-commit"))).status_code == 201
    assert await number_made(desk.world) == 1


async def test_an_answer_that_was_lost_on_its_way_is_given_again(app: Litestar, world: World) -> None:
    lost: list[int] = []

    async def loses_answers(scope: Scope, receive: Receive, send: Send) -> None:
        async def lose(message: Message) -> None:
            if message["type"] == "http.response.start":
                lost.append(message["status"])
            raise ConnectionResetError

        await app(scope, receive, lose)

    async with speaking(loses_answers, world) as desk:
        body = await desk.body("orders")
        with pytest.raises(Exception):  # noqa: B017, PT011 - what a server makes of it is its own
            await desk.ask("POST", "/orders", json=body, headers=KEY)
    assert lost[0] == 201
    before = await contents(world.database)
    async with speaking(app, world) as desk:
        again = await desk.ask("POST", "/orders", json=body, headers=KEY)
    assert (again.status_code, again.headers["idempotency-replayed"]) == (201, "true")
    (row,) = await world.all("SELECT id FROM work_orders")
    assert again.json()["id"] == str(row.id)
    assert changed(before, await contents(world.database)) == {}


async def test_what_postgres_failed_at_is_tried_anew(desk: Desk) -> None:
    body = await desk.body("jobs")
    async with desk.world.database.transaction() as session:
        await session.run(text(
            "CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RAISE EXCEPTION ''no''; END'"
        ))  # fmt: skip
        await session.run(text("CREATE TRIGGER fail BEFORE INSERT ON audit_log FOR EACH ROW EXECUTE FUNCTION fail()"))
    before = await contents(desk.world.database)
    for _ in range(2):
        failed = await desk.ask("POST", "/jobs", json=body, headers=KEY)
        assert code(failed) == (500, "INTERNAL_ERROR")
    assert changed(before, await contents(desk.world.database)) == {}
    async with desk.world.database.transaction() as session:
        await session.run(text("DROP TRIGGER fail ON audit_log"))
    made = await desk.ask("POST", "/jobs", json=body, headers=KEY)
    assert made.status_code == 201
    assert "idempotency-replayed" not in made.headers


async def test_bugs_and_locks_are_not_kept(desk: Desk) -> None:
    BUGS.append("one")
    assert code(await tried(desk, "bug")) == (500, "INTERNAL_ERROR")
    BUGS.clear()
    assert (await tried(desk, "bug")).status_code == 201
    async with holding_block(desk.world):
        assert code(await tried(desk, "lock")) == (503, "UNAVAILABLE")
    assert (await tried(desk, "lock")).status_code == 201


@pytest.mark.parametrize("path", ["broken", "broken-later"])
async def test_a_constraint_that_happened_to_be_broken_is_not_kept(desk: Desk, path: str) -> None:
    async with desk.world.database.transaction() as session:
        await _write(session)
    for _ in range(2):
        assert code(await tried(desk, path)) == (409, "CONFLICT")
    async with desk.world.database.transaction() as session:
        await session.run(text("DELETE FROM organizations WHERE slug = 'made'"))
    assert (await tried(desk, path)).status_code == 201
    assert (await tried(desk, path)).headers["idempotency-replayed"] == "true"
    assert await number_made(desk.world) == 1


@pytest.mark.parametrize("path", ["half", "taken"])
async def test_a_refusal_is_kept_and_nothing_that_was_done_before_it(desk: Desk, path: str) -> None:
    told: list[str] = []
    desk.world.database.listen("wakes", lambda: told.append("wakes"))
    before = await contents(desk.world.database)
    refused = await tried(desk, path)
    assert code(refused) == (409, "UNLUCKY")
    again = await tried(desk, path)
    assert (again.content, again.headers["idempotency-replayed"]) == (refused.content, "true")
    assert changed(before, await contents(desk.world.database)) == {"idempotency_keys": 1}
    assert (told, HAPPENED) == ([], [])


async def test_what_was_not_found_then_is_not_found_again(desk: Desk) -> None:
    missing = await tried(desk, "found")
    assert code(missing) == (404, "NOT_FOUND")
    async with desk.world.database.transaction() as session:
        await _write(session)
    assert (await tried(desk, "found")).content == missing.content
    fresh = await desk.client.post("/try/found", headers=desk.world.dispatcher.headers | {"Idempotency-Key": "new"})
    assert fresh.status_code == 200


async def test_listeners_hear_of_it_once_and_after_the_commit(desk: Desk) -> None:
    heard: list[str] = []
    desk.world.database.listen("wakes", lambda: heard.append("wakes"))
    body = await desk.body("jobs")
    assert (await desk.ask("POST", "/jobs", json=body, headers=KEY)).status_code == 201
    assert heard == ["wakes"]
    assert (await desk.ask("POST", "/jobs", json=body, headers=KEY)).status_code == 201
    assert heard == ["wakes"]


async def test_a_first_that_commits_as_the_second_begins_is_still_the_only_one(desk: Desk) -> None:
    """The second saw no answer, though it got the lock: its snapshot was older. The primary key then tells it."""
    async with desk.world.database.transaction() as session:
        await session.run(text(
            "CREATE FUNCTION precede() RETURNS trigger LANGUAGE plpgsql AS "
            "'BEGIN IF NEW.key = ''one and the same'' THEN "
            "INSERT INTO idempotency_keys SELECT (NEW).* ON CONFLICT DO NOTHING; END IF; RETURN NEW; END'"
        ))  # fmt: skip
        # Puts the same key there right before: what a first does that commits in between.
        await session.run(text(
            "CREATE TRIGGER precede BEFORE INSERT ON idempotency_keys FOR EACH ROW "
            "WHEN (pg_trigger_depth() = 0) EXECUTE FUNCTION precede()"
        ))  # fmt: skip
    before = await contents(desk.world.database)
    for path in ("/jobs", "/enrollments"):
        body = await desk.body(path[1:])
        for headers in (KEY, KEY | {"Prefer": "wait=1"}):
            answer = await desk.ask("POST", path, json=body, headers=headers)
            assert code(answer) == (409, "IDEMPOTENCY_IN_PROGRESS")
            assert answer.headers["retry-after"] == "1"
    assert changed(before, await contents(desk.world.database)) == {}


async def test_neither_key_nor_body_is_logged(world: World, database: Database, capsys: Any) -> None:
    async with serving(database, log_level="info") as app, speaking(app, world) as desk:
        BUGS[:] = ["one"]
        for path, content in (("bug", b"body-7"), ("half", b"body-7"), ("half", b"body-8"), ("broken", b"body-7")):
            await tried(desk, path, content=content)
    output = capsys.readouterr().out
    assert "/try/half" in output
    for private in (*KEY.values(), "body-7", "body-8"):
        assert private not in output


async def test_pages_of_configured_origins_see_that_an_answer_is_a_repeat(world: World, database: Database) -> None:
    async with serving(database, cors_origins="https://a.example") as app, speaking(app, world) as desk:
        answer = await desk.ask("GET", "/jobs", headers={"Origin": "https://a.example"})
    assert "idempotency-replayed" in answer.headers["access-control-expose-headers"].lower()
