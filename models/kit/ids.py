"""Identifiers: UUIDv7 (RFC 9562), so that rows made later sort later and index pages stay warm."""

from __future__ import annotations

from uuid import UUID

from uuid_utils.compat import uuid7

__all__ = ["UUID", "new_id"]


def new_id() -> UUID:
    """A fresh UUIDv7."""
    return uuid7()
