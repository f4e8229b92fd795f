"""What is sealed, in bytes that hash the same everywhere.

    commitment = SHA-256(salt || personal)             personal: the values that may have to be erased
    leaf       = SHA-256(0x00 || entry || commitment)  entry: all other values of the row
    root       = the Merkle tree of RFC 6962 over the leaves of one batch: node = SHA-256(0x01 || left || right)
    hash       = SHA-256(terms)                        terms: the batch's place, times, root and the previous hash

`personal`, `entry` and `terms` are JSON with sorted keys and no spaces, in UTF-8; bytes stand in it in Base64.
A row whose personal values, and the salt with them, are erased still verifies by the commitment that was kept.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from typing import Final
from uuid import UUID

import msgspec

#: Stands for the organization in the chain of rows that have none.
NO_ORGANIZATION: Final = UUID(int=0)
#: What the first seal of a chain has for a previous hash.
NO_HASH: Final = bytes(32)
#: No transaction of ours lasts longer. A row that was dated further back than this explains is backdated.
LONGEST_TRANSACTION_S: Final = 600
#: A row that has waited longer than this for its seal shows that the sealer is behind.
BEHIND_AFTER_S: Final = 60

encode = msgspec.json.Encoder(order="sorted").encode

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)


class Entry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The values of a row that stay. `created_at` in microseconds since 1970 UTC. `transaction_id` is among them
    although it says nothing outside its cluster: so no column of a sealed row can be changed unseen."""

    id: UUID
    organization_id: UUID | None
    user_id: UUID | None
    actor_kind: str
    action: str
    entity_type: str
    entity_id: UUID
    transaction_id: int
    created_at: int


class Personal(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The values of a row that may have to be erased. `metadata` is the text that Postgres has for the jsonb value,
    to the last digit. `request_id` is here because clients may choose it."""

    ip: str | None
    metadata: str
    request_id: str | None


#: A row without a salt is erased: these are its values then, and only these.
ERASED: Final = Personal(ip=None, metadata="{}", request_id=None)


class Row(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="row"):
    """A place in the chain and the row that is found there; `entry` and `personal` are None when none is."""

    number: int
    entry: Entry | None
    personal: Personal | None
    salt: str
    commitment: bytes
    hash: bytes


class Terms(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a seal says. `first` and `last` are the numbers of its rows, both included; times are in microseconds since
    1970 UTC. The sealer had nothing left to seal at `since`."""

    organization_id: UUID
    first: int
    last: int
    root: bytes
    previous_hash: bytes
    since: int
    sealed_at: int
    key_id: str


class Seal(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="seal"):
    """Terms, their hash, and the signature over the hash."""

    terms: Terms
    hash: bytes
    signature: bytes


def microseconds(instant: datetime) -> int:
    """Since 1970 UTC, exactly."""
    return (instant - _EPOCH) // _MICROSECOND


def instant(micros: int) -> datetime:
    return _EPOCH + timedelta(microseconds=micros)


def commitment_of(personal: Personal, salt: str) -> bytes:
    return sha256(salt.encode() + encode(personal)).digest()


def leaf_hash(entry: Entry, commitment: bytes) -> bytes:
    return sha256(b"\0" + encode(entry) + commitment).digest()


def merkle_root(leaves: Iterable[bytes]) -> bytes:
    """Of one leaf or more. Pairing level by level, with a last odd one moved up as it is, gives RFC 6962's tree."""
    level = list(leaves)
    while len(level) > 1:
        paired = [sha256(b"\1" + left + right).digest() for left, right in zip(level[::2], level[1::2], strict=False)]
        level = paired + level[len(paired) * 2 :]
    return level[0]


def seal_hash(terms: Terms) -> bytes:
    return sha256(encode(terms)).digest()
