"""Who may do what: the permission matrix, the levels of roles, and the caller who is asked for both.

A permission is `resource:action`. Every endpoint states one where it is declared; `own` in a comment means that the
query behind it further narrows to the caller's own rows.
"""

from __future__ import annotations

from typing import Final
from uuid import UUID

import msgspec

from models.identity.rules import ADMINS, STAFF, Role
from models.organizations.scope import Scope, scope_of

_SUPER: Final = frozenset({Role.SUPER_ADMIN})
_STATE: Final = _SUPER | {Role.STATE_ADMIN}
_DISPATCH: Final = ADMINS | {Role.DISPATCHER}
_SUPPORT: Final = ADMINS | {Role.SUPPORT_AGENT}
_AUDIT: Final = _STATE | {Role.AUDITOR}
_DRIVER: Final = frozenset({Role.DRIVER})
_CUSTOMER: Final = frozenset({Role.CUSTOMER})
_EVERYONE: Final = frozenset(Role)

MATRIX: Final[dict[str, frozenset[Role]]] = {
    # Work and its dispatch
    "work:read": STAFF,
    "work:create": _DISPATCH,
    "work:edit": _DISPATCH,
    "work:assign": _DISPATCH,
    "work:cancel": _DISPATCH,
    "work:complete": _DISPATCH | _DRIVER,  # drivers: own
    "job:read": STAFF | _DRIVER | _CUSTOMER,  # drivers and customers: own
    "job:create": _DISPATCH | _CUSTOMER,
    "job:cancel": _DISPATCH | _CUSTOMER,  # customers: own
    "offer:read": STAFF | _DRIVER,  # drivers: own
    "offer:respond": _DRIVER,  # own
    "job:status": _DRIVER,  # own
    "location:write": _DRIVER,  # own
    "driver:self": _DRIVER,  # own profile, duty, offers and jobs
    "driver:read": STAFF,
    "driver:set_status": _DISPATCH,
    "driver:manage": _DISPATCH,
    "policy:read": STAFF,
    "policy:write": ADMINS,
    "dashboard:read": STAFF,
    "report:read": STAFF,
    "import:create": _DISPATCH,
    # People and tenants
    "account:read": _EVERYONE,  # own
    "upload:create": _EVERYONE,
    "user:read": STAFF,
    "user:manage": ADMINS,
    "organization:read": STAFF,
    "organization:manage": _STATE,
    "organization:settings": ADMINS,
    "api_key:manage": ADMINS,
    "webhook:manage": ADMINS,
    "audit:read": _AUDIT,
    "retention:read": ADMINS | {Role.AUDITOR},
    "retention:manage": _STATE,
    "privacy:manage": ADMINS,
    "own:profile": _CUSTOMER,  # own profile, places, jobs, bills, queries
    # The service business
    "pricing:manage": ADMINS,
    "service_area:manage": ADMINS,
    "invoice:manage": ADMINS,
    "waitlist:read": STAFF,
    "waitlist:manage": _DISPATCH,
    "dispatch:read": STAFF,
    "dispatch:manage": _DISPATCH,
    "notification:manage": _SUPPORT,
    "query:manage": _SUPPORT,
    # Meters
    "meter:read": STAFF,
    "meter:create": ADMINS,
    "meter:update": ADMINS,
    "meter:assign": ADMINS,
    "meter:delete": _SUPER,
    "consumer:read": STAFF,
    "consumer:manage": ADMINS,
    "billing:read": ADMINS | {Role.SUPPORT_AGENT, Role.AUDITOR},
    "billing:generate": ADMINS,
    "billing:recalculate": ADMINS,
    "report:generate": ADMINS,
}

#: Nobody acts above their own level. Drivers and customers stand outside the office and rank lowest.
LEVEL: Final[dict[Role, int]] = {
    Role.SUPER_ADMIN: 4,
    Role.STATE_ADMIN: 3,
    Role.BOARD_ADMIN: 2,
    Role.DISPATCHER: 1,
    Role.SUPPORT_AGENT: 1,
    Role.AUDITOR: 1,
    Role.DRIVER: 0,
    Role.CUSTOMER: 0,
}


def permissions_of(role: Role) -> list[str]:
    return sorted(permission for permission, roles in MATRIX.items() if role in roles)


class Caller(msgspec.Struct, frozen=True, kw_only=True):
    """The signed-in person, as their access token tells. `session_id` names the sign-in, `driver_id` is set for
    drivers. Trusted for the token's 15 minutes, so that no request has to look its user up."""

    user_id: UUID
    role: Role
    organization_id: UUID
    name: str
    session_id: UUID
    driver_id: UUID | None = None

    @property
    def scope(self) -> Scope:
        return scope_of(self.role, self.organization_id)

    @property
    def is_staff(self) -> bool:
        return self.role in STAFF

    def may(self, permission: str) -> bool:
        return self.role in MATRIX[permission]

    def may_act_on(self, role: Role) -> bool:
        """Whether `role` is not above the caller's own level."""
        return LEVEL[role] <= LEVEL[self.role]
