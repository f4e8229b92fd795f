"""`fairlead doctor`: what is configured, what answers, and what to do about the rest."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Literal

import msgspec
from rich.console import Console
from rich.table import Table

from api.cli.services.temporal import SEARCH_ATTRIBUTES
from models.kit.settings import Settings, SettingsError, load_settings

Verdict = Literal["ok", "note", "wrong"]
MARKS: dict[Verdict, str] = {"ok": "[green]ok[/]", "note": "[yellow]note[/]", "wrong": "[red]wrong[/]"}
#: uuidv7() came with it.
OLDEST_POSTGRES = 18
PATIENCE = 5


class Finding(msgspec.Struct, frozen=True):
    subject: str
    verdict: Verdict
    text: str


async def examine() -> bool:
    """Print one line per check; True when nothing is wrong."""
    findings = [finding async for finding in all_findings()]
    table = Table("", "check", "result", box=None, pad_edge=False)
    for finding in findings:
        table.add_row(MARKS[finding.verdict], finding.subject, finding.text)
    Console().print(table)
    return all(finding.verdict != "wrong" for finding in findings)


async def all_findings() -> AsyncIterator[Finding]:
    try:
        settings = load_settings()
    except SettingsError as error:
        yield Finding("configuration", "wrong", str(error))
        return
    if settings.dev_mode:
        yield Finding("configuration", "note", "DEV_MODE is on: fine on your own machine, never in production")
    else:
        yield Finding("configuration", "ok", "complete")
    async for finding in database_findings(settings):
        yield finding
    async for finding in stuck_findings(settings):
        yield finding
    async for finding in temporal_findings(settings):
        yield finding
    for finding in provider_findings(settings):
        yield finding


async def database_findings(settings: Settings) -> AsyncIterator[Finding]:
    from sqlalchemy import text
    from sqlalchemy.exc import SQLAlchemyError

    import migrations
    from models.kit.database import Database

    try:
        database = Database(settings.sqlalchemy_url, pool_size=1, name="fairlead-doctor")
    except SettingsError as error:
        yield Finding("database", "wrong", str(error))
        return
    try:
        async with asyncio.timeout(PATIENCE), database.transaction() as session:
            number = int(await session.value(text("SHOW server_version_num")))
    except (OSError, TimeoutError, SQLAlchemyError) as error:
        yield Finding("database", "wrong", f"DATABASE_URL does not answer: {first_line(error)}")
        return
    finally:
        await database.close()
    if number // 10_000 < OLDEST_POSTGRES:
        yield Finding("database", "wrong", f"Postgres {number // 10_000}: {OLDEST_POSTGRES} or later is needed")
        return
    yield Finding("database", "ok", f"Postgres {number // 10_000}.{number % 10_000}")

    at, head = await migrations.current(settings.database_direct_url or settings.sqlalchemy_url), migrations.head()
    if at == head:
        yield Finding("migrations", "ok", f"at {head}")
    else:
        yield Finding("migrations", "wrong", f"at {at or 'nothing'}, the code wants {head}: run `fairlead migrate`")


async def stuck_findings(settings: Settings) -> AsyncIterator[Finding]:
    """Parked work. Nothing where the database cannot be asked, of which the findings before have told."""
    from sqlalchemy.exc import SQLAlchemyError

    from models.kit.database import Database
    from models.work.stuck import all_parked

    try:
        database = Database(settings.sqlalchemy_url, pool_size=1, name="fairlead-doctor")
    except SettingsError:
        return
    try:
        async with asyncio.timeout(PATIENCE), database.reading() as session:
            parked = await all_parked(session)
    except (OSError, TimeoutError, SQLAlchemyError):
        return
    finally:
        await database.close()
    if parked:
        longest = f"{parked[0].reference} of {parked[0].organization} since {parked[0].parked_at:%Y-%m-%d %H:%M} UTC"
        yield Finding("stuck work", "wrong", f"{len(parked)} parked, {longest}: run `fairlead stuck list`")
    else:
        yield Finding("stuck work", "ok", "none")


async def temporal_findings(settings: Settings) -> AsyncIterator[Finding]:
    from temporalio.api.operatorservice.v1 import ListSearchAttributesRequest
    from temporalio.service import RPCError, RPCStatusCode

    from workflows.client import connect

    try:
        async with asyncio.timeout(PATIENCE):
            client = await connect(settings)
    except (RuntimeError, TimeoutError, RPCError) as error:
        # The transport's own words are long and say no more than this.
        reason = first_line(error).partition(": tonic::")[0]
        yield Finding("Temporal", "wrong", f"TEMPORAL_ADDRESS {settings.temporal_address} does not answer: {reason}")
        return
    yield Finding("Temporal", "ok", f"{settings.temporal_address}, namespace {settings.temporal_namespace}")

    try:
        async with asyncio.timeout(PATIENCE):
            answer = await client.operator_service.list_search_attributes(
                ListSearchAttributesRequest(namespace=settings.temporal_namespace)
            )
    except (TimeoutError, RPCError) as error:
        if isinstance(error, RPCError) and error.status in (
            RPCStatusCode.UNIMPLEMENTED,
            RPCStatusCode.PERMISSION_DENIED,
        ):
            wanted = ", ".join(f"{name} ({kind})" for name, kind in SEARCH_ATTRIBUTES.items())
            yield Finding("search attributes", "note", f"this service does not list them; it needs {wanted}")
        else:
            yield Finding("search attributes", "wrong", first_line(error))
        return
    missing = [name for name in SEARCH_ATTRIBUTES if name not in answer.custom_attributes]
    if missing:
        flags = " ".join(f"--name {name} --type {SEARCH_ATTRIBUTES[name]}" for name in missing)
        yield Finding("search attributes", "wrong", f"missing: run `temporal operator search-attribute create {flags}`")
    else:
        yield Finding("search attributes", "ok", f"all {len(SEARCH_ATTRIBUTES)} are there")


def provider_findings(settings: Settings) -> list[Finding]:
    outbox = "not configured: messages stay in the outbox, where an administrator reads them; set"
    twilio = {
        "TWILIO_ACCOUNT_SID": settings.twilio_account_sid,
        "TWILIO_AUTH_TOKEN": settings.twilio_auth_token,
        "TWILIO_FROM": settings.twilio_from,
    }
    unset = [name for name, value in twilio.items() if not value]
    if not unset:
        sms = Finding("SMS", "ok", f"Twilio, from {settings.twilio_from}")
    elif len(unset) == len(twilio):
        sms = Finding("SMS", "note", f"{outbox} TWILIO_ACCOUNT_SID, TWILIO_AUTH_TOKEN and TWILIO_FROM")
    else:
        sms = Finding("SMS", "wrong", f"half configured: set {' and '.join(unset)}")
    if settings.resend_api_key:
        email = Finding("e-mail", "ok", f"Resend, from {settings.email_from}")
    else:
        email = Finding("e-mail", "note", f"{outbox} RESEND_API_KEY and EMAIL_FROM")
    return [sms, email]


def first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
