"""`fairlead audit`: verify the chain of audit seals, in the database or in an exported file; export it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from uuid import UUID

import rich_click as click

if TYPE_CHECKING:
    from models.audit.chain import Range, Unsealed
    from models.audit.signing import PublicKey
    from models.audit.verification import Chain, Finding
    from models.kit.database import Database

T = TypeVar("T")
#: A verification that could not be made says neither yes (0) nor no (1).
UNDECIDED = 2


class Undecided(click.ClickException):
    exit_code = UNDECIDED


class Instant(click.ParamType[datetime]):
    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        try:
            at = datetime.fromisoformat(value)
        except ValueError:
            self.fail(f"{value!r} is not a time such as 2026-03-01 or 2026-03-01T12:00:00Z", param, ctx)
        return at if at.tzinfo else at.replace(tzinfo=UTC)


class Key(click.ParamType["PublicKey"]):
    name = "key"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> PublicKey:
        from models.audit.signing import PublicKey

        try:
            return PublicKey.parse(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


class Hash(click.ParamType[bytes]):
    name = "hash"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> bytes:
        try:
            return bytes.fromhex(value)
        except ValueError:
            self.fail(f"{value!r} is not a hash in hexadecimal digits", param, ctx)


def ranged(command: Any) -> Any:
    """The options that choose a part of a chain."""
    for option in (
        click.option("--to-time", type=Instant(), help="Seals made before this time (UTC, where it names no zone)."),
        click.option("--from-time", type=Instant(), help="Seals made at this time or later."),
        click.option("--to", "last", type=click.IntRange(1), help="Up to the seal of this number."),
        click.option("--from", "first", type=click.IntRange(1), help="From the seal of this number on."),
    ):
        command = option(command)
    return command


PUBLIC_KEYS = click.option(
    "--public-key", "keys", type=Key(), multiple=True, help="Accept this key as well; may be given several times."
)


@click.group()
def audit() -> None:
    """The audit log's seals: verify, export, and the key that verifies them."""


@audit.command(name="public-key")
def public_key() -> None:
    """The key that verifies what this installation seals. Auditors get it before they get files."""
    click.echo(_own_key().text)


@audit.command()
@click.option("--organization", type=click.UUID, help="Only this one's chain.")
@ranged
@click.option("--file", type=click.Path(path_type=Path, exists=True, dir_okay=False), help="An exported file; offline.")
@PUBLIC_KEYS
@click.option(
    "--kept", type=Hash(), multiple=True, help="A last hash that was noted earlier, and has to be in a chain still."
)
def verify(
    organization: UUID | None,
    first: int | None,
    last: int | None,
    from_time: datetime | None,
    to_time: datetime | None,
    file: Path | None,
    keys: tuple[PublicKey, ...],
    kept: tuple[bytes, ...],
) -> None:
    """Does the audit log still have the rows that were sealed, and no others?

    Prints a line for each chain, and one for each finding. Exit code 0 without findings, 1 with, 2 when it could not
    be verified.
    """
    report = Report(set(kept))
    if file is not None:
        if organization or first or last or from_time or to_time:
            raise click.UsageError("A file is verified whole: --file goes with --public-key and --kept only.")
        if not keys:
            raise click.UsageError("--file needs --public-key: a file proves nothing by a key of its own.")
        _verify_file(file, keys, report)
    else:
        if first or last:
            _needs(organization, "--from and --to count in one chain")
        within = _range(first, last, from_time, to_time)
        _run(_verify_database(organization, within, (_own_key(), *keys), report))
    report.end()


@audit.command()
@click.option("--organization", type=click.UUID, required=True, help="Whose chain; all zeros for rows without one.")
@ranged
@PUBLIC_KEYS
@click.option("--output", type=click.Path(path_type=Path, dir_okay=False), required=True, help="The file to write.")
def export(
    organization: UUID,
    first: int | None,
    last: int | None,
    from_time: datetime | None,
    to_time: datetime | None,
    keys: tuple[PublicKey, ...],
    output: Path,
) -> None:
    """Write a chain, or whole seals of it, to a file that verifies by itself.

    It holds what the audit log holds, personal values included: only its owner may read it.
    """
    within = _range(first, last, from_time, to_time)
    lines = _run(_export(organization, within, (_own_key(), *keys), output))
    click.echo(f"{lines} seals of organization {organization} written to {output}")


class Report:
    """Prints as it goes, so that a million findings need no memory. `kept` are hashes not met yet."""

    def __init__(self, kept: set[bytes]) -> None:
        self.kept = kept
        self.findings = 0

    def finding(self, finding: Finding) -> None:
        self.findings += 1
        where = "" if finding.organization_id is None else f"organization {finding.organization_id}: "
        click.echo(f"{finding.kind.value}: {where}{finding.text}")

    def chain(self, chain: Chain) -> None:
        if not chain.seals:
            return
        assert chain.last_hash is not None
        erased = f", personal values erased in {chain.erased:,}" if chain.erased else ""
        click.echo(
            f"organization {chain.organization_id}: {chain.rows:,} rows in {chain.seals:,} seals{erased}; "
            f"last number {chain.last}, last hash {chain.last_hash.hex()}, key {chain.key_id}"
        )

    def unsealed(self, unsealed: Unsealed) -> None:
        age = f", the oldest for {unsealed.oldest_s:.1f} s" if unsealed.rows else ""
        click.echo(f"not sealed yet: {unsealed.rows:,} rows{age}")

    def end(self) -> None:
        """Exit, with what was found."""
        for missing in sorted(self.kept):
            self.findings += 1
            click.echo(f"removed: no seal has the hash {missing.hex()}")
        click.echo(f"{self.findings:,} findings" if self.findings else "Nothing was changed.")
        raise SystemExit(1 if self.findings else 0)


async def _verify_database(
    organization: UUID | None, within: Range, keys: tuple[PublicKey, ...], report: Report
) -> None:
    from models.audit import chain
    from models.audit.signing import keyring
    from models.audit.verification import Finding

    async with _database() as database:
        chains = await chain.organizations(database) if organization is None else [organization]
        for organization_id in chains:
            async for told in chain.verify(database, organization_id, keyring(*keys), within, report.kept):
                if isinstance(told, Finding):
                    report.finding(told)
                else:
                    report.chain(told)
        if not within.whole:
            return
        async for unsealed in chain.verify_unsealed(database, organization):
            if isinstance(unsealed, Finding):
                report.finding(unsealed)
            else:
                report.unsealed(unsealed)


def _verify_file(file: Path, keys: tuple[PublicKey, ...], report: Report) -> None:
    from models.audit.export import verify_file
    from models.audit.signing import keyring
    from models.audit.verification import Finding

    with file.open("rb") as opened:
        for told in verify_file(opened, keyring(*keys), report.kept):
            if isinstance(told, Finding):
                report.finding(told)
            else:
                report.chain(told)


async def _export(organization_id: UUID, within: Range, keys: tuple[PublicKey, ...], output: Path) -> int:
    """The number of seals written. The file is there once it is complete."""
    import os

    from models.audit import export
    from models.audit.signing import keyring

    unfinished = output.with_name(output.name + ".unfinished")
    seals = -1
    try:
        async with _database() as database:
            try:
                descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            except OSError as error:
                raise Undecided(f"{output} cannot be written: {error.strerror}") from None
            with os.fdopen(descriptor, "wb") as opened:
                async for lines in export.export(database, organization_id, keyring(*keys), within):
                    opened.write(lines)
                    seals += 1
        unfinished.replace(output)
    except export.NothingSealed:
        raise Undecided(f"Nothing of organization {organization_id} is sealed in that range.") from None
    except export.UnknownKey as error:
        raise Undecided(f"The last seal is signed by key {error}: give its public key with --public-key.") from None
    finally:
        unfinished.unlink(missing_ok=True)
    return seals


def _range(first: int | None, last: int | None, since: datetime | None, until: datetime | None) -> Range:
    import msgspec

    from models.audit.chain import WHOLE

    given = {"first": first, "last": last, "since": since, "until": until}
    return msgspec.structs.replace(WHOLE, **{name: value for name, value in given.items() if value is not None})


def _needs(organization: UUID | None, why: str) -> None:
    if organization is None:
        raise click.UsageError(f"{why}: say whose with --organization.")


def _own_key() -> PublicKey:
    from models.audit.signing import SealingKey
    from models.kit.settings import load_settings

    return SealingKey(load_settings().secret_key).public


@asynccontextmanager
async def _database() -> AsyncIterator[Database]:
    from models.kit.database import Database
    from models.kit.settings import load_settings

    database = Database(load_settings().sqlalchemy_url, pool_size=2, name="fairlead-audit")
    try:
        yield database
    finally:
        await database.close()


def _run(work: Coroutine[Any, Any, T]) -> T:
    from sqlalchemy.exc import SQLAlchemyError

    try:
        return asyncio.run(work)
    except (SQLAlchemyError, OSError, TimeoutError) as error:
        raise Undecided(f"The database did not answer: {type(error).__name__}") from None
