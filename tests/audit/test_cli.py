"""`fairlead audit`, as people run it."""

from __future__ import annotations

import asyncio
import os
import re
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from click.testing import CliRunner, Result

from api.cli import cli
from models.audit.rules import NO_ORGANIZATION
from tests.audit.factories import KEY, Log, tampering

pytestmark = pytest.mark.anyio

SECRET = "a secret of the tests that has more than 32 characters"
FORGE = (
    "INSERT INTO audit_log (organization_id, actor_kind, action, entity_type, entity_id, transaction_id)"
    " VALUES ($1, 'system', 'FORGED', 'thing', gen_random_uuid(), '3')"
)


@pytest.fixture
def run(database_url: str) -> Callable[..., asyncio.Future[Result]]:
    """Runs `fairlead audit ..`, in a thread, since the command has an event loop of its own."""

    def run(*arguments: str) -> asyncio.Future[Result]:
        environment = {"DATABASE_URL": database_url, "SECRET_KEY": "", "DEV_MODE": "true"}
        invoke = CliRunner(env=environment).invoke
        return asyncio.ensure_future(asyncio.to_thread(invoke, cli, ["audit", *arguments], catch_exceptions=False))

    return run


async def test_a_log_that_nobody_changed(log: Log, organization_id: UUID, run: Callable[..., Any]) -> None:
    await log.write(organization_id, 4)
    await log.write(None, 2)
    await log.seal()
    await log.write(organization_id)
    chain = await log.chain(organization_id)
    assert chain.last_hash is not None
    result = await run("verify")
    assert result.exit_code == 0, result.output
    assert (
        f"organization {organization_id}: {chain.rows} rows in {chain.seals} seals; last number {chain.last}, "
        f"last hash {chain.last_hash.hex()}, key {KEY.key_id}\n"
    ) in result.output
    assert f"organization {NO_ORGANIZATION}: 2 rows in 1 seals" in result.output
    assert re.search(r"not sealed yet: 1 rows, the oldest for \d+\.\d s\nNothing was changed\.\n$", result.output)
    one = await run("verify", "--organization", str(organization_id), "--kept", chain.last_hash.hex())
    assert one.exit_code == 0
    assert str(NO_ORGANIZATION) not in one.output


async def test_findings_are_printed_and_end_with_code_1(
    log: Log, organization_id: UUID, database_url: str, run: Callable[..., Any]
) -> None:
    await log.write(organization_id, 4)
    await log.seal()
    async with tampering(database_url) as tamper:
        await tamper.execute("UPDATE audit_log SET action = 'OTHER' WHERE metadata->>'n' = '2'")
        await tamper.execute(FORGE, organization_id)
    result = await run("verify")
    assert result.exit_code == 1
    last = (await log.numbers(organization_id))[-1]
    assert f"changed: organization {organization_id}: number {last - 1}: the row is not the one" in result.output
    assert f"inserted: organization {organization_id}: row " in result.output
    assert result.output.endswith("2 findings\n")
    up_to = await run("verify", "--organization", str(organization_id), "--to", "1")
    assert up_to.exit_code == 0, "the first seal is as it was"
    from_time = await run("verify", "--from-time", "2020-01-01")
    assert from_time.exit_code == 1
    assert (await run("verify", "--to-time", "2020-01-01T00:00:00Z")).exit_code == 0
    lost = await run("verify", "--to-time", "2020-01-01", "--kept", "ab" * 32)
    assert lost.exit_code == 1
    assert f"removed: no seal has the hash {'ab' * 32}" in lost.output


async def test_an_exported_file_verifies_without_database_and_settings(
    log: Log, organization_id: UUID, tmp_path: Path, run: Callable[..., Any]
) -> None:
    await log.write(organization_id, 4)
    await log.seal()
    file = tmp_path / "export.jsonl"
    exported = await run("export", "--organization", str(organization_id), "--output", str(file))
    assert exported.exit_code == 0, exported.output
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["export.jsonl"]
    key = (await run("public-key")).output.strip()
    assert key == KEY.public.text

    def elsewhere(*arguments: str) -> subprocess.CompletedProcess[str]:
        environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(Path.cwd())}
        command = [sys.executable, "-m", "api.cli", "audit", "verify", *arguments]
        return subprocess.run(
            command, capture_output=True, text=True, env=environment, cwd=tmp_path, timeout=60, check=False
        )

    good = await asyncio.to_thread(elsewhere, "--file", str(file), "--public-key", key)
    assert (good.returncode, good.stderr) == (0, "")
    assert good.stdout.endswith("Nothing was changed.\n")
    file.write_bytes(file.read_bytes().replace(b"THING_CHANGED", b"THING_REMOVED", 1))
    bad = await asyncio.to_thread(elsewhere, "--file", str(file), "--public-key", key)
    assert bad.returncode == 1
    assert "changed:" in bad.stdout


async def test_what_cannot_be_verified_is_neither_right_nor_wrong(
    organization_id: UUID, tmp_path: Path, run: Callable[..., Any]
) -> None:
    file = tmp_path / "export.jsonl"
    file.touch()
    for arguments, says in (
        (["verify", "--from", "3"], "--organization"),
        (["verify", "--file", str(file)], "--public-key"),
        (["verify", "--file", str(file), "--public-key", "abc"], "not a public key"),
        (["verify", "--file", str(file), "--from", "3", "--public-key", KEY.public.text], "whole"),
        (["verify", "--from-time", "noon"], "not a time"),
        (["verify", "--kept", "zz"], "not a hash"),
        (["export", "--organization", str(NO_ORGANIZATION), "--output", str(file)], "Nothing"),
        (["export", "--organization", str(organization_id), "--output", "/nowhere/file"], "cannot be written"),
    ):
        result = await run(*arguments)
        assert result.exit_code == 2, arguments
        assert says in result.output, arguments
