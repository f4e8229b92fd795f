"""Does a chain of seals still fit its rows? Pure: the database and an exported file are verified by the same steps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from enum import StrEnum
from itertools import pairwise
from typing import Final
from uuid import UUID

import msgspec

from models.audit.rules import (
    ERASED,
    LONGEST_TRANSACTION_S,
    NO_HASH,
    Row,
    Seal,
    commitment_of,
    leaf_hash,
    merkle_root,
    seal_hash,
)
from models.audit.signing import Keys

_LONGEST_TRANSACTION_US: Final = LONGEST_TRANSACTION_S * 1_000_000


class Kind(StrEnum):
    CHANGED = "changed"
    REMOVED = "removed"
    INSERTED = "inserted"
    REORDERED = "reordered"
    BACKDATED = "backdated"
    BROKEN_CHAIN = "broken chain"
    BAD_SIGNATURE = "bad signature"
    NOT_SEALED = "not sealed"
    UNREADABLE = "unreadable"


class Finding(msgspec.Struct, frozen=True):
    """What does not fit. `text` names numbers and ids, and none of the rows' own values."""

    kind: Kind
    text: str
    organization_id: UUID | None = None


#: The sealer makes no larger ones by far: more rows than these are not gathered for one seal, whatever it says.
LARGEST_SEAL: Final = 50_000


class Chain:
    """One organization's chain, seal by seal in the order in which they are found.

    It has to begin at number 1, or, where `first` is given, at the seal that begins there; what that one says of the
    hash before it cannot be verified then.
    """

    def __init__(self, organization_id: UUID, keys: Keys, *, first: int = 1, kept: set[bytes] | None = None) -> None:
        self.organization_id = organization_id
        self.keys = keys
        #: Hashes that somebody has kept; those that are met are taken out.
        self.kept = set() if kept is None else kept
        self.seals = 0
        self.rows = 0
        #: Rows whose personal values are gone.
        self.erased = 0
        self.last = first - 1
        #: Of the last seal; None before the first of a range.
        self.last_hash: bytes | None = NO_HASH if first == 1 else None
        self.key_id = ""

    def take(self, seal: Seal, rows: Sequence[Row]) -> list[Finding]:
        """Verify the next seal, with the rows that were found for it."""
        findings = [*self._seal(seal), *self._rows(seal, rows)]
        self.seals += 1
        self.rows += sum(row.entry is not None for row in rows)
        self.erased += sum(row.entry is not None and not row.salt for row in rows)
        self.last = max(self.last, seal.terms.last)
        self.last_hash = seal.hash
        self.kept.discard(seal.hash)
        self.key_id = seal.terms.key_id
        return findings

    def finding(self, kind: Kind, text: str) -> Finding:
        return Finding(kind, text, self.organization_id)

    def _seal(self, seal: Seal) -> Iterator[Finding]:
        terms = seal.terms
        name = f"the seal of {_span(terms.first, terms.last)}"
        if terms.organization_id != self.organization_id:
            yield self.finding(Kind.INSERTED, f"{name} is of organization {terms.organization_id}")
        if terms.first > self.last + 1:
            yield self.finding(Kind.REMOVED, f"{_span(self.last + 1, terms.first - 1)}: no seal")
        elif terms.first <= self.last:
            yield self.finding(Kind.REORDERED, f"{name} comes after number {self.last}")
        if self.last_hash is not None and terms.previous_hash != self.last_hash:
            yield self.finding(Kind.BROKEN_CHAIN, f"{name} does not follow the seal before it")
        if seal_hash(terms) != seal.hash:
            yield self.finding(Kind.CHANGED, f"{name} does not have the hash that it was given")
        key = self.keys.get(terms.key_id)
        if key is None:
            yield self.finding(Kind.BAD_SIGNATURE, f"{name} is signed by key {terms.key_id}, which is not known here")
        elif not key.signed(seal.hash, seal.signature):
            yield self.finding(Kind.BAD_SIGNATURE, f"{name} is not signed by key {terms.key_id}")

    def _rows(self, seal: Seal, rows: Sequence[Row]) -> Iterator[Finding]:
        first, last = seal.terms.first, seal.terms.last
        numbers = [row.number for row in rows]
        placed = {row.number: row for row in rows if first <= row.number <= last}
        yield from self._places(first, last, numbers)
        yield from self._each(seal, rows)
        entries = [entry for number in sorted(placed) if (entry := placed[number].entry) is not None]
        if any(a.id >= b.id for a, b in pairwise(entries)):
            yield self.finding(Kind.REORDERED, f"{_span(first, last)}: rows stand in each other's place")
        if last < first:
            yield self.finding(Kind.CHANGED, f"the seal of {_span(first, last)} has no rows")
        # Without one of the places, there is no tree to compare. A row that is gone has left its hash.
        elif len(rows) == len(placed) == last - first + 1:
            root = merkle_root(placed[number].hash for number in sorted(placed))
            if root != seal.terms.root:
                yield self.finding(Kind.CHANGED, f"{_span(first, last)}: not the rows that were sealed")

    def _places(self, first: int, last: int, numbers: Sequence[int]) -> Iterator[Finding]:
        """Numbers missing, too many, or out of their order."""
        seen: set[int] = set()
        extra: list[int] = []
        for number in numbers:
            (extra.append if number in seen or not first <= number <= last else seen.add)(number)
        expected = first
        for number in (*sorted(seen), last + 1):
            if number > expected:
                yield self.finding(Kind.REMOVED, f"{_span(expected, number - 1)}: no row")
            expected = number + 1
        for start, end in _ranges(sorted(set(extra))):
            yield self.finding(Kind.INSERTED, f"{_span(start, end)}: more than the seal of {_span(first, last)} has")
        if any(a > b for a, b in pairwise(numbers)):
            yield self.finding(Kind.REORDERED, f"{_span(first, last)}: not in the order of their numbers")

    def _each(self, seal: Seal, rows: Sequence[Row]) -> Iterator[Finding]:
        """What is wrong with a row by itself; neighbours with the same fault together."""
        faults: dict[tuple[Kind, str], list[int]] = {}
        for row in rows:
            fault = _fault(seal, row)
            if fault is not None:
                faults.setdefault(fault, []).append(row.number)
        for (kind, text), numbers in faults.items():
            for start, end in _ranges(sorted(numbers)):
                yield self.finding(kind, f"{_span(start, end)}: {text}")


def _fault(seal: Seal, row: Row) -> tuple[Kind, str] | None:
    entry, personal = row.entry, row.personal
    if entry is None or personal is None:
        return Kind.REMOVED, "the row is gone"
    if row.salt:
        if commitment_of(personal, row.salt) != row.commitment:
            return Kind.CHANGED, "metadata, ip, request id or salt"
    elif personal != ERASED:
        return Kind.CHANGED, "personal values in an erased row"
    if leaf_hash(entry, row.commitment) != row.hash:
        return Kind.CHANGED, "the row is not the one that was sealed"
    if entry.created_at < seal.terms.since - _LONGEST_TRANSACTION_US:
        return Kind.BACKDATED, "dated long before the sealer had sealed everything"
    if entry.created_at > seal.terms.sealed_at + _LONGEST_TRANSACTION_US:
        return Kind.BACKDATED, "dated long after it was sealed"
    return None


def _ranges(numbers: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Ascending numbers as the spans that they make."""
    start = end = None
    for number in numbers:
        if start is not None and end is not None and number > end + 1:
            yield start, end
            start = number
        start, end = number if start is None else start, number
    if start is not None and end is not None:
        yield start, end


def _span(first: int, last: int) -> str:
    return f"number {first}" if first == last else f"numbers {first} to {last}"
