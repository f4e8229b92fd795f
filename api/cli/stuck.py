"""`fairlead stuck`: work orders that are parked because they failed by a mistake of ours, and what to do about them."""

from __future__ import annotations

import asyncio
import getpass
import sys
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, TypeVar

import rich_click as click

if TYPE_CHECKING:
    from sqlalchemy.engine import Row

    from models.kit.database import Actor, Database

T = TypeVar("T")

NAMED = "An id, or a reference such as EN-1042."


@click.group()
def stuck() -> None:
    """Work that failed by a mistake time after time: list it, try it again, or drop it."""


@stuck.command(name="list")
def list_() -> None:
    """What is parked, the longest first."""
    from rich.console import Console
    from rich.table import Table

    rows = _run(_all)
    if not rows:
        click.echo("Nothing is stuck.")
        return
    table = Table(box=None, pad_edge=False)
    for column in ("reference", "organization", "kind", "status", "error", "failures", "since", "id"):
        table.add_column(column, overflow="fold")
    for row in rows:
        since = f"{row.parked_at:%Y-%m-%d %H:%M} UTC"
        table.add_row(
            row.reference, row.organization, row.kind, row.status, row.error, str(row.failures), since, str(row.id)
        )
    console = Console()
    if not console.is_terminal:
        # Read by a program or kept in a file: nothing is to be wrapped.
        console.width = 400
    console.print(table)


@stuck.command(name="retry", help=f"Try it again from where it stands: waiting work goes back in line. {NAMED}")
@click.argument("name", required=False)
@click.option("--all", "everything", is_flag=True, help="All that is stuck, as after the release that mends it.")
@click.option("--yes", is_flag=True, help="Do not ask.")
def retry_(name: str | None, everything: bool, yes: bool) -> None:
    if (name is None) != everything:
        raise click.UsageError("Give one work order, or --all.")

    async def found(database: Database) -> list[Row[Any]]:
        return await _all(database) if name is None else [await _the_one(database, name)]

    work_orders = _run(found)
    if not work_orders:
        click.echo("Nothing is stuck.")
        return
    if everything and not yes:
        click.confirm(f"Try all {len(work_orders)} again?", abort=True)

    async def retried(database: Database) -> list[str]:
        return [problem for row in work_orders if (problem := await _retry(database, row)) is not None]

    problems = _run(retried)
    for problem in problems:
        click.echo(problem, err=True)
    if problems:
        sys.exit(1)


@stuck.command(name="drop", help=f"Cancel it. {NAMED}")
@click.argument("name")
@click.option("--reason", default="Dropped: it could not go on by itself", help="Kept with the work order.")
@click.option("--force", is_flag=True, help="End it even where cancelling fails too. Nobody gets a message then.")
@click.option("--yes", is_flag=True, help="Do not ask.")
def drop_(name: str, reason: str, force: bool, yes: bool) -> None:
    async def found(database: Database) -> Row[Any]:
        return await _the_one(database, name)

    work_order = _run(found)
    if force and not yes:
        click.confirm(f"End {work_order.reference} of {work_order.organization} by force if need be?", abort=True)

    async def dropped(database: Database) -> str:
        return await _drop(database, work_order, reason, force=force)

    click.echo(_run(dropped))


def _run(work: Callable[[Database], Awaitable[T]]) -> T:
    """Run this over the configured database. An outage ends it with a line instead of a traceback."""
    from models.kit.database import Database
    from models.kit.outages import is_outage
    from models.kit.settings import load_settings

    settings = load_settings()

    async def run() -> T:
        database = Database(
            settings.sqlalchemy_url, pool_size=1, name="fairlead-stuck", messages_enabled=settings.messages_enabled
        )
        try:
            return await work(database)
        finally:
            await database.close()

    try:
        return asyncio.run(run())
    except Exception as error:
        if is_outage(error):
            raise click.ClickException(f"The database does not answer: {type(error).__name__}") from None
        raise


def _actor() -> Actor:
    """Who asks, for the audit: whoever is signed in to this machine."""
    from models.kit.database import Actor

    try:
        name = getpass.getuser()
    except (OSError, KeyError):
        name = "unknown"
    return Actor(kind="system", request_id=f"ops:{name}"[:100])


async def _all(database: Database) -> list[Row[Any]]:
    from models.work.stuck import all_parked

    async with database.reading() as session:
        return await all_parked(session)


async def _the_one(database: Database, name: str) -> Row[Any]:
    from models.work.stuck import parked_as

    async with database.reading() as session:
        found = await parked_as(session, name)
    if not found:
        raise click.ClickException(f"Nothing stuck is called {name}: see `fairlead stuck list`")
    if len(found) > 1:
        choices = ", ".join(f"{row.id} of {row.organization}" for row in found)
        raise click.ClickException(f"{name} is the reference of several, so give the id: {choices}")
    return found[0]


async def _retry(database: Database, work_order: Row[Any]) -> str | None:
    """What went wrong, if anything did."""
    from models.kit.outages import is_outage, without_values
    from models.work.stuck import retry

    try:
        async with database.transaction(_actor()) as session:
            was_stuck = await retry(session, work_order.id)
    except Exception as error:
        if is_outage(error):
            raise
        return f"{work_order.reference} cannot be tried again: {without_values(error)}"
    state = "tried again" if was_stuck else "not stuck any more"
    click.echo(f"{work_order.reference} of {work_order.organization}: {state}")
    return None


async def _drop(database: Database, work_order: Row[Any], reason: str, *, force: bool) -> str:
    from models.kit.errors import Refusal
    from models.kit.outages import is_outage, without_values
    from models.work.commands import cancel
    from models.work.stuck import drop_by_force

    name = f"{work_order.reference} of {work_order.organization}"
    try:
        async with database.transaction(_actor()) as session:
            await cancel(session, work_order.id, reason)
        return f"{name}: cancelled"
    except Refusal as refusal:
        raise click.ClickException(f"{name}: {refusal}") from None
    except Exception as error:
        if is_outage(error):
            raise
        told = without_values(error)
        if not force:
            raise click.ClickException(f"{name} cannot be cancelled ({told}): try --force") from None
    try:
        async with database.transaction(_actor()) as session:
            ended = await drop_by_force(session, work_order.id, reason)
    except Exception as error:
        if is_outage(error):
            raise
        raise click.ClickException(
            f"{name} cannot be ended by force either ({without_values(error)}): repair its rows first"
        ) from None
    if not ended:
        raise click.ClickException(f"{name} has ended already")
    return f"{name}: ended by force. Tell its driver and its customer: they get no message"
