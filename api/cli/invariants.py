"""`fairlead doctor --invariants`: does everything hold that has to, in Postgres and between Postgres and Temporal?"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import rich_click as click
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from sqlalchemy.exc import SQLAlchemyError

from api.cli.doctor import first_line
from models.fairness.chain import walk_lanes
from models.invariants import SHOWN, check_invariants
from models.kit.database import Database
from models.kit.settings import Settings

#: The largest table may take so long to read.
STATEMENT_S = 1_800.0


async def examine(settings: Settings) -> bool:
    """Print a line per invariant, with up to five rows that break it; True when all hold. Only reads, and locks nobody
    out, so that it may run beside a working system."""
    lines = Table("", "invariant", "broken by", box=None, pad_edge=False)
    database = Database(settings.sqlalchemy_url, pool_size=1, name="fairlead-doctor", statement_s=STATEMENT_S)
    broken = 0
    try:
        for checked in await check_invariants(database, quiet=True):
            broken += _line(lines, checked.invariant.name, (" ".join(map(_value, row)) for row in checked.rows))
        walk = await walk_lanes(database)
        faults = [f"{fault.organization_id} {fault.number}: {fault.what}" for fault in walk.faults]
        broken += _line(lines, f"each of the {walk.decisions} decisions follows from its inputs", faults)
        broken += _line(lines, "the workflows that run are those of open work", await _workflows(settings, database))
    except (SQLAlchemyError, OSError, TimeoutError) as error:
        raise click.ClickException(f"The database does not answer: {first_line(error)}") from error
    finally:
        await database.close()
    Console().print(lines)
    return not broken


async def _workflows(settings: Settings, database: Database) -> list[str]:
    from temporalio.service import RPCError

    from workflows.client import connect
    from workflows.reconcile import differences

    try:
        found = await differences(await connect(settings), database)
    except (RuntimeError, RPCError) as error:
        return [f"Temporal does not answer: {first_line(error).partition(': tonic::')[0]}"]
    shown = [f"{one.work_order_id}: {one.what}" for one in found[:SHOWN]]
    return [*shown, f"and {len(found) - SHOWN} more"] if len(found) > SHOWN else shown


def _line(lines: Table, name: str, rows: Iterable[str]) -> bool:
    """Add the line; whether the invariant is broken."""
    text = "\n".join(rows)
    lines.add_row("[red]broken[/]" if text else "[green]ok[/]", name, escape(text))
    return bool(text)


def _value(value: Any) -> str:
    return "-" if value is None else str(value)
