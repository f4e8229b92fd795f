"""`fairlead demo`: twenty drivers and a dispatcher play a morning against a running system, over public HTTP only."""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
from pathlib import Path

import rich_click as click
from dotenv import dotenv_values
from rich.console import Console

from api.cli.demo.client import Refused, Unreachable
from api.cli.demo.show import Script, play

_AT_MOST = click.IntRange(0, 5_000)


def _own_address() -> str:
    """Of the `fairlead dev` that was started from here with the same PORT."""
    return f"http://127.0.0.1:{os.environ.get('PORT') or dotenv_values(Path('.env')).get('PORT') or 8000}"


@click.command(context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.option("--url", default=_own_address, help="Where Fairlead answers.", show_default="from PORT")
@click.option("--enrollments", type=_AT_MOST, default=50, help="Offered to one driver after the other.")
@click.option("--jobs", type=_AT_MOST, default=20, help="The same; some need a skill that few have.")
@click.option("--orders", type=_AT_MOST, default=30, help="Offered to all nearby at once; the first accept wins.")
@click.option("--speed", type=click.FloatRange(0.1, 20), default=1.0, help="2 lets the morning pass twice as fast.")
@click.option("--seed", type=int, help="Repeats the choices of another run.", show_default="a new one")
@click.option(
    "--patience",
    type=click.FloatRange(1),
    default=150.0,
    help="Seconds without any progress until what is left counts as undeliverable.",
)
def demo(url: str, enrollments: int, jobs: int, orders: int, speed: float, seed: int | None, patience: float) -> None:
    """Play a morning against a running system, as 20 drivers and a dispatcher would live it.

    Needs the demo accounts (`fairlead dev` and `fairlead seed` make them). Offer times are shortened for the show and
    restored at its end, also on Ctrl-C. Exit code 0 when every work order reached an end, 1 when not.
    """
    script = Script(
        url=url.rstrip("/"),
        enrollments=enrollments,
        jobs=jobs,
        orders=orders,
        speed=speed,
        seed=secrets.randbelow(10_000) if seed is None else seed,
        patience_s=patience,
    )
    console = Console(highlight=False)
    try:
        raise SystemExit(0 if asyncio.run(_until_told_to_stop(script, console)) else 1)
    except KeyboardInterrupt:
        click.echo("Stopped.")
        raise SystemExit(130) from None
    except Unreachable as error:
        click.echo(f"fairlead demo: {error}. Start it with `make dev`, or say where it is with --url.", err=True)
        raise SystemExit(1) from None
    except Refused as error:
        hint = " Are the demo accounts there (`fairlead seed`)?" if error.status == 401 else ""
        click.echo(f"fairlead demo: {error}.{hint}", err=True)
        raise SystemExit(1) from None


async def _until_told_to_stop(script: Script, console: Console) -> bool:
    """SIGTERM ends it as Ctrl-C does: with everything put back."""
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    try:
        return await play(script, console)
    except asyncio.CancelledError:
        raise KeyboardInterrupt from None
