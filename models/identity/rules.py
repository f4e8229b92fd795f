"""Roles, what each may do, and the refusals of sign-in."""

from __future__ import annotations

from enum import StrEnum

from models.kit.errors import Refusal


class Role(StrEnum):
    SUPER_ADMIN = "super_admin"
    STATE_ADMIN = "state_admin"
    BOARD_ADMIN = "board_admin"
    DISPATCHER = "dispatcher"
    SUPPORT_AGENT = "support_agent"
    AUDITOR = "auditor"
    DRIVER = "driver"
    CUSTOMER = "customer"


ADMINS = frozenset({Role.SUPER_ADMIN, Role.STATE_ADMIN, Role.BOARD_ADMIN})
#: Everyone who works in the office: may see the board.
STAFF = ADMINS | {Role.DISPATCHER, Role.SUPPORT_AGENT, Role.AUDITOR}


class Unauthenticated(Refusal):
    message = "Sign in first: send a valid bearer token"


class InvalidCredentials(Refusal):
    message = "The e-mail or the password is wrong"


class EmailTaken(Refusal):
    message = "An account with this e-mail exists already"


class PhoneTaken(Refusal):
    message = "An account with this phone number exists already"
