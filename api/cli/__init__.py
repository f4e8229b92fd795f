"""The `fairlead` command. Each subcommand imports what it needs when it runs, so that `--help` is quick."""

from __future__ import annotations

import sys
from pathlib import Path

import rich_click as click

from api.cli.audit import audit
from api.cli.services.ports import PortTakenError
from api.cli.services.processes import ServiceError
from api.cli.stuck import stuck
from models.kit.settings import SettingsError, load_settings


def main() -> None:
    try:
        cli()
    except SettingsError as error:
        click.echo(f"fairlead: {error}", err=True)
        sys.exit(2)
    except (PortTakenError, ServiceError) as error:
        click.echo(f"fairlead: {error}", err=True)
        sys.exit(1)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="fairlead")
def cli() -> None:
    """Fairlead: durable, provably fair dispatch of field work to drivers."""


@cli.command()
def dev() -> None:
    """Everything on this machine: Postgres, Temporal, migrations, demo data, a worker and the API."""
    from api.cli.dev import run

    sys.exit(run())


@cli.command()
def api() -> None:
    """The HTTP and WebSocket API."""
    from api.cli.serving import serve

    serve(load_settings(), with_worker=False)


@cli.command()
def worker() -> None:
    """The Temporal worker with the relay."""
    import asyncio

    from api.logs import configure_logging
    from workflows.worker import run_worker

    settings = load_settings()
    configure_logging(settings)
    asyncio.run(run_worker(settings))


@cli.command(name="all")
def all_in_one() -> None:
    """API and worker in one process, for the smallest hosts."""
    from api.cli.serving import serve

    serve(load_settings(), with_worker=True)


@cli.command()
def migrate() -> None:
    """Bring the database to the newest schema. Several at once are safe."""
    import asyncio

    import migrations

    settings = load_settings()
    asyncio.run(migrations.upgrade(settings.database_direct_url or settings.sqlalchemy_url))
    click.echo(f"The database is at revision {migrations.head()}")


@cli.command()
def seed() -> None:
    """The demo organizations. Their accounts have a published password, so only with DEV_MODE=true."""
    import asyncio

    from migrations.demo import seed as seed_demo
    from models.kit.database import Database

    settings = load_settings()
    if not settings.dev_mode:
        raise SettingsError("DEV_MODE is not true: demo accounts have a published password and stay out of production")

    async def run() -> None:
        database = Database(settings.sqlalchemy_url, name="fairlead-seed")
        try:
            await seed_demo(database)
        finally:
            await database.close()

    asyncio.run(run())


@cli.command()
@click.option("--invariants", is_flag=True, help="Instead, hold the data against what must be true at every moment.")
def doctor(*, invariants: bool) -> None:
    """Check configuration, database, migrations, Temporal and providers, and say what to do."""
    import asyncio

    if invariants:
        from api.cli.invariants import examine as examine_invariants

        sys.exit(0 if asyncio.run(examine_invariants(load_settings())) else 1)

    from api.cli.doctor import examine

    sys.exit(0 if asyncio.run(examine()) else 1)


@cli.command()
def resume() -> None:
    """After a restore: have the workflow of every open work order look at it anew."""
    import asyncio

    from api.cli.resume import resume as resume_all

    sys.exit(0 if asyncio.run(resume_all(load_settings())) else 1)


@cli.command()
@click.option("--output", type=click.Path(path_type=Path, dir_okay=False), help="Write to this file, not to stdout.")
def openapi(output: Path | None) -> None:
    """The API's OpenAPI document, as JSON."""
    import msgspec

    from api.app import create_app
    from api.openapi import openapi_json
    from models.kit.settings import Settings

    # The document is the same under any configuration, so that none is needed.
    document = msgspec.json.format(openapi_json(create_app(Settings(secret_key="unused " * 8))), indent=2)
    if output is None:
        click.echo(document)
    else:
        output.write_bytes(document + b"\n")


# Its options are its own business: they are handed on unread, so that only a run of it imports it.
@cli.command(
    context_settings={"ignore_unknown_options": True, "help_option_names": []},
    help="Drive the demo through the API of a running system.",
)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def demo(arguments: tuple[str, ...]) -> None:
    from api.cli.demo import demo as command

    command.main(list(arguments), prog_name="fairlead demo")


cli.add_command(audit)
cli.add_command(stuck)
