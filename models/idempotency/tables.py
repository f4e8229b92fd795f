"""Answers that were given to requests with an Idempotency-Key, kept for whoever asks again."""

from __future__ import annotations

from sqlalchemy import Column, ForeignKey, Index, LargeBinary, PrimaryKeyConstraint, SmallInteger, Table, Text, Uuid

from models.kit.base import Json, created_at, metadata

idempotency_keys = Table(
    "idempotency_keys",
    metadata,
    Column("organization_id", Uuid, ForeignKey("organizations.id"), nullable=False),
    #: The user, or the API key.
    Column("caller_id", Uuid, nullable=False),
    Column("method", Text, nullable=False),
    #: The path's template; the path itself is part of the fingerprint.
    Column("route", Text, nullable=False),
    Column("key", Text, nullable=False),
    #: SHA-256 over path, query and body: the same key for another request is a mistake.
    Column("fingerprint", LargeBinary, nullable=False),
    Column("status", SmallInteger, nullable=False),
    Column("headers", Json, nullable=False),
    Column("body", LargeBinary, nullable=False),
    created_at(),
    PrimaryKeyConstraint("organization_id", "caller_id", "method", "route", "key"),
    Index(None, "created_at"),
)
