"""`fairlead resume`: after a restore, every open work order is looked at anew by its workflow."""

from __future__ import annotations

import rich_click as click
from sqlalchemy.exc import SQLAlchemyError

from api.cli.doctor import first_line
from models.kit.database import Database
from models.kit.settings import Settings


async def resume(settings: Settings) -> bool:
    """Wake the workflow of every open work order, and those that run without one; print how many. False when Temporal
    did not answer: what is owed is sent all the same once it does."""
    from temporalio.service import RPCError

    from workflows.client import connect
    from workflows.reconcile import resume_open_work, wake_strays

    database = Database(settings.sqlalchemy_url, pool_size=2, name="fairlead-resume")
    try:
        woken = 0
        async for batch in resume_open_work(database):
            woken += batch
        click.echo(f"{woken} open work orders: a worker wakes or starts the workflow of each")
        try:
            strays = await wake_strays(await connect(settings), database)
        except (RuntimeError, RPCError):
            click.echo(f"Temporal at {settings.temporal_address} does not answer: once it does, run this again")
            return False
        click.echo(f"{strays} workflows that run for work that has ended or is not there: told to look, and to end")
    except (SQLAlchemyError, OSError) as error:
        raise click.ClickException(f"The database does not answer: {first_line(error)}") from error
    finally:
        await database.close()
    return True
