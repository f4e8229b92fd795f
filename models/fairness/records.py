"""The decision record: what a choice was made from, in bytes that hash the same everywhere.

    leaf_i     = SHA-256(salt_i || candidate_i)          candidate_i: the JSON array of one driver's values
    body_hash  = SHA-256(header || leaf_1 || leaf_2 ..)  header: JSON of everything that is not about one driver
    hash       = SHA-256(previous_hash || number || body_hash)

A driver's values enter only through a salted leaf. So one person's row can be erased (its leaf is kept) or withheld
(a receipt shows its owner's row and the leaves of the rest) and the chain still verifies.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from hashlib import sha256

import msgspec

from models.fairness.rules import RULES, Candidate, Choice, Exclusion, Work
from models.policies.rules import Policy

SALT_BYTES = 16
_encode = msgspec.json.Encoder(order="deterministic").encode


class Header(msgspec.Struct, frozen=True, kw_only=True):
    """What the record says besides the candidates. `now` in microseconds since 1970 UTC."""

    number: int
    organization_id: str
    rule_version: int
    policy_id: str
    policy_version: int
    policy: Policy
    now: int
    work: Work
    #: What was done with the order: offer, broadcast, auto or nobody.
    action: str
    #: How many of `order`, from the front, got the offer.
    chosen: int
    #: The outcome, as positions in the list of candidates: ids stand only in the salted rows.
    order: tuple[int, ...]
    excluded: tuple[tuple[int, Exclusion], ...]


class Record(msgspec.Struct, frozen=True):
    """The bytes that are stored, and their hashes."""

    header: bytes
    candidates: bytes
    salts: bytes
    body_hash: bytes
    hash: bytes


def leaf(salt: bytes, candidate: Candidate) -> bytes:
    return sha256(salt + _encode(candidate)).digest()


def body_hash(header: bytes, leaves: Sequence[bytes]) -> bytes:
    return sha256(header + b"".join(leaves)).digest()


def chain_hash(previous_hash: bytes, number: int, body: bytes) -> bytes:
    return sha256(previous_hash + number.to_bytes(8, "big") + body).digest()


def make_record(header: Header, candidates: Sequence[Candidate], previous_hash: bytes) -> Record:
    """Salt, encode and chain one decision."""
    salts = os.urandom(SALT_BYTES * len(candidates))
    rows = [_encode(candidate) for candidate in candidates]
    leaves = [sha256(salts[i * SALT_BYTES : (i + 1) * SALT_BYTES] + row).digest() for i, row in enumerate(rows)]
    head = _encode(header)
    body = body_hash(head, leaves)
    return Record(
        header=head,
        candidates=b"[" + b",".join(rows) + b"]",
        salts=salts,
        body_hash=body,
        hash=chain_hash(previous_hash, header.number, body),
    )


def read_record(header: bytes, candidates: bytes) -> tuple[Header, list[Candidate]]:
    return msgspec.json.decode(header, type=Header), msgspec.json.decode(candidates, type=list[Candidate])


def verify_body(header: bytes, candidates: bytes, salts: bytes, expected: bytes) -> bool:
    """Do the stored rows still give the hash that entered the chain?"""
    rows = msgspec.json.decode(candidates, type=list[Candidate])
    leaves = [leaf(salts[i * SALT_BYTES : (i + 1) * SALT_BYTES], row) for i, row in enumerate(rows)]
    return body_hash(header, leaves) == expected


def replay(header: Header, candidates: Sequence[Candidate]) -> Choice:
    """Make the choice again from its own inputs, by the rule version that made it."""
    return RULES[header.rule_version](header.policy, header.work, header.now, candidates)


def replays(header: Header, candidates: Sequence[Candidate]) -> bool:
    """Does the record follow from its inputs?"""
    return outcome(replay(header, candidates), candidates) == (header.order, header.excluded)


def outcome(
    choice: Choice, candidates: Sequence[Candidate]
) -> tuple[tuple[int, ...], tuple[tuple[int, Exclusion], ...]]:
    """A choice as positions in the list of candidates."""
    position = {candidate.driver_id: i for i, candidate in enumerate(candidates)}
    return (
        tuple(position[driver_id] for driver_id in choice.order),
        tuple((position[driver_id], reason) for driver_id, reason in choice.excluded),
    )
