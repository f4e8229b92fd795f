"""How an organization's work of each kind is offered: `/dispatch-policies`."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

import msgspec
from litestar import Controller, Request, Response, get, put
from litestar.di import NamedDependency
from litestar.params import FromPath, JSONBody, QueryParameter
from sqlalchemy import Row

from api.dependencies import etagged, expected_version
from api.guards import needs
from api.openapi import VERSIONED, refuses
from models.identity.permissions import Caller
from models.kit.database import Session
from models.kit.ids import UUID
from models.organizations.queries import organization
from models.organizations.scope import Scope
from models.policies import queries
from models.policies.commands import replace_policy
from models.policies.rules import Policy
from models.work.rules import WorkKind

OrganizationToAskFor = Annotated[
    UUID | None, QueryParameter(description="One within the caller's reach; their own by default")
]


class DispatchPolicy(Policy, frozen=True, kw_only=True):
    """The version in force for one kind of work, with every field of the policy."""

    kind: WorkKind
    version: int
    organization_id: UUID
    created_at: datetime


class DispatchPolicies(msgspec.Struct):
    """One for each kind of work, by name."""

    data: list[DispatchPolicy]


class PolicyController(Controller):
    path = "/dispatch-policies"
    tags = ("Policies",)

    @get(operation_id="ListDispatchPolicies", summary="The policies in force", opt=needs("policy:read"))
    async def list_policies(
        self,
        session: NamedDependency[Session],
        caller: NamedDependency[Caller],
        organization_id: OrganizationToAskFor = None,
    ) -> DispatchPolicies:
        whose = await _organization(session, caller, organization_id)
        return DispatchPolicies([_shown(row) for row in await queries.list_current(session, Scope(whose))])

    @get("/{kind:str}", operation_id="GetDispatchPolicy", summary="The policy in force", opt=needs("policy:read"))
    async def get_policy(
        self,
        session: NamedDependency[Session],
        caller: NamedDependency[Caller],
        kind: FromPath[WorkKind],
        organization_id: OrganizationToAskFor = None,
    ) -> Response[DispatchPolicy]:
        whose = await _organization(session, caller, organization_id)
        policy = _shown(await queries.get_current(session, caller.scope, kind, whose))
        return etagged(policy, policy.version)

    @put(
        "/{kind:str}",
        operation_id="ReplaceDispatchPolicy",
        summary="Put a new version in force",
        opt=needs("policy:write"),
        responses=refuses(*VERSIONED),
    )
    async def replace_dispatch_policy(
        self,
        request: Request[Any, Any, Any],
        session: NamedDependency[Session],
        caller: NamedDependency[Caller],
        kind: FromPath[WorkKind],
        data: JSONBody[Policy],
        organization_id: OrganizationToAskFor = None,
    ) -> Response[DispatchPolicy]:
        """Offers that are out stay under the version that made them; the next choice is made under the new one."""
        version = expected_version(request)
        whose = await _organization(session, caller, organization_id)
        await replace_policy(session, whose, kind, data, expected_version=version)
        policy = _shown(await queries.get_current(session, caller.scope, kind, whose))
        return etagged(policy, policy.version)


async def _organization(session: Session, caller: Caller, asked_for: UUID | None) -> UUID:
    """Whose policies. Raises NotFound for an organization beyond the caller's reach."""
    if asked_for is None or asked_for == caller.organization_id:
        return caller.organization_id
    await organization(session, caller.scope, asked_for)
    return asked_for


def _shown(row: Row[Any]) -> DispatchPolicy:
    return msgspec.convert(
        row.settings
        | {
            "kind": row.kind,
            "version": row.version,
            "organization_id": row.organization_id,
            "created_at": row.created_at,
        },
        DispatchPolicy,
    )
