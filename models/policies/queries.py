"""Reading policies. A version never changes, so each is decoded once per process."""

from __future__ import annotations

import logging
from datetime import datetime
from typing import Any
from uuid import UUID

import msgspec
from sqlalchemy import select
from sqlalchemy.engine import Row

from models.kit.database import Session
from models.kit.errors import NotFound
from models.kit.sql import Sql
from models.organizations.scope import Scope
from models.policies.rules import Policy
from models.policies.tables import dispatch_policies
from models.work.rules import WorkKind

log = logging.getLogger(__name__)

_decoded: dict[UUID, Policy] = {}
#: Versions that were found unreadable, so that each is told of once.
_unreadable: set[UUID] = set()

_CURRENT = Sql(
    "SELECT id, kind, version, settings FROM dispatch_policies WHERE organization_id = :organization_id AND is_current"
)
_IN_FORCE = Sql("""
SELECT id, version, settings, clock_timestamp() AS now FROM dispatch_policies
WHERE organization_id = :organization_id AND kind = :kind AND is_current
""")
_BY_ID = Sql("SELECT settings FROM dispatch_policies WHERE id = :id")


class CurrentPolicy(msgspec.Struct, frozen=True):
    """A policy and the version row it comes from."""

    id: UUID
    version: int
    policy: Policy


class NoReadablePolicy(Exception):
    """The kind has no policy in force, or one that this release cannot read."""


class Policies(dict[WorkKind, CurrentPolicy]):
    """The version in force for each kind. Asking for a kind that has none to be read raises NoReadablePolicy."""

    def __missing__(self, kind: WorkKind) -> CurrentPolicy:
        raise NoReadablePolicy(kind.value)


def _decode(policy_id: UUID, settings: dict[str, Any]) -> Policy:
    policy = _decoded.get(policy_id)
    if policy is None:
        if len(_decoded) > 10_000:
            _decoded.clear()
        policy = _decoded[policy_id] = msgspec.convert(settings, Policy)
    return policy


async def current_policies(session: Session, organization_id: UUID) -> Policies:
    """The version in force for each kind. One that cannot be read is left out: it must not hold up the other kinds."""
    found = Policies()
    for row in await session.rows(_CURRENT, {"organization_id": organization_id}):
        try:
            found[WorkKind(row.kind)] = CurrentPolicy(row.id, row.version, _decode(row.id, _plain(row.settings)))
        except ValueError as error:  # msgspec's own, and a kind of a newer release, are kinds of it.
            if row.id not in _unreadable:
                _unreadable.add(row.id)
                log.error("policy_unreadable policy_id=%s kind=%s error=%s", row.id, row.kind, type(error).__name__)  # noqa: TRY400 - the traceback would repeat the settings
    return found


async def policy_in_force(session: Session, organization_id: UUID, kind: WorkKind) -> tuple[CurrentPolicy, datetime]:
    """The version in force for this kind, and the database's instant. Raises NotFound."""
    row = await session.row(_IN_FORCE, {"organization_id": organization_id, "kind": kind.value})
    if row is None:
        raise NotFound
    return CurrentPolicy(row.id, row.version, _decode(row.id, _plain(row.settings))), row.now


async def policy_by_id(session: Session, policy_id: UUID) -> Policy:
    known = _decoded.get(policy_id)
    if known is not None:
        return known
    settings = await session.value(_BY_ID, {"id": policy_id})
    return _decode(policy_id, _plain(settings))


def _plain(settings: Any) -> dict[str, Any]:
    # A textual statement gives jsonb as its text, a typed one as objects.
    plain: dict[str, Any] = msgspec.json.decode(settings) if isinstance(settings, str | bytes) else settings
    return plain


async def list_current(session: Session, scope: Scope) -> list[Row[Any]]:
    table = dispatch_policies
    return list(
        await session.rows(
            select(table)
            .where(scope.covers(table.c.organization_id), table.c.is_current)
            .order_by(table.c.organization_id, table.c.kind)
        )
    )


async def get_current(session: Session, scope: Scope, kind: WorkKind, organization_id: UUID) -> Row[Any]:
    """Raises NotFound."""
    table = dispatch_policies
    row = await session.row(
        select(table).where(
            scope.covers(table.c.organization_id),
            table.c.organization_id == organization_id,
            table.c.kind == kind,
            table.c.is_current,
        )
    )
    if row is None:
        raise NotFound
    return row
