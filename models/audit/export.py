"""A chain in a file that verifies by itself: JSON Lines, one header, then each seal with its rows after it.

The same chain gives the same bytes. Every line is written in the one way that `rules.encode` writes it, and a line that
is not counts as changed. The file holds personal values and their salts.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import BinaryIO, Final, Literal
from uuid import UUID

import msgspec

from models.audit.chain import WHOLE, Range, last_seal, sealed
from models.audit.rules import Row, Seal, encode
from models.audit.signing import Keys
from models.audit.verification import LARGEST_SEAL, Chain, Finding, Kind
from models.kit.database import Database

#: Longer than any line that we write, so that a file which is none of ours cannot fill the memory.
LONGEST_LINE: Final = 4 * 2**20


class Header(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="header"):
    """What the file holds, so that one that is cut short shows. `key_id` and `public_key` are of the last seal: for
    information, since a key that came with the file proves nothing."""

    format: Literal["fairlead-audit"] = "fairlead-audit"
    version: Literal[1] = 1
    organization_id: UUID
    first: int
    last: int
    last_hash: bytes
    key_id: str
    public_key: str


_decode = msgspec.json.Decoder(Header | Seal | Row).decode


class NothingSealed(Exception):
    """There is no seal in that range."""


class UnknownKey(Exception):
    """The last seal is signed by a key whose public part was not given; its text is the key's id."""


async def export(database: Database, organization_id: UUID, keys: Keys, within: Range = WHOLE) -> AsyncIterator[bytes]:
    """The lines of the file. Raises NothingSealed and UnknownKey before the first."""
    found = await last_seal(database, organization_id, within)
    if found is None:
        raise NothingSealed
    first, last = found
    key = keys.get(last.terms.key_id)
    if key is None:
        raise UnknownKey(last.terms.key_id)
    yield _line(
        Header(
            organization_id=organization_id,
            first=first,
            last=last.terms.last,
            last_hash=last.hash,
            key_id=key.key_id,
            public_key=key.text,
        )
    )
    async for seal, rows in sealed(database, organization_id, first, last.terms.last):
        yield b"".join((_line(seal), *map(_line, rows)))


def verify_file(file: BinaryIO, keys: Keys, kept: set[bytes] | None = None) -> Iterator[Finding | Chain]:
    """The findings about an exported file, and at the end its chain with its figures. Reads it once, line by line."""
    lines = _Lines(file)
    header = next(lines, None)
    if not isinstance(header, Header):
        yield from lines.findings
        yield Finding(Kind.UNREADABLE, "the file does not begin with the header of an export")
        return
    chain = Chain(header.organization_id, keys, first=header.first, kept=kept)
    seal: Seal | None = None
    rows: list[Row] = []
    for line in lines:
        yield from lines.take_findings()
        if isinstance(line, Row) and seal is not None and len(rows) < LARGEST_SEAL:
            rows.append(line)
            continue
        if isinstance(line, Seal):
            if seal is not None:
                yield from chain.take(seal, rows)
            seal, rows = line, []
        else:
            yield chain.finding(Kind.INSERTED, f"line {lines.number} belongs to no seal")
    if seal is not None:
        yield from chain.take(seal, rows)
    yield from lines.take_findings()
    yield from _ending(header, chain, keys)
    yield chain


def _ending(header: Header, chain: Chain, keys: Keys) -> Iterator[Finding]:
    if chain.last < header.last:
        yield chain.finding(Kind.REMOVED, f"the file ends at number {chain.last}, and should at {header.last}")
    elif (chain.last, chain.last_hash) != (header.last, header.last_hash):
        yield chain.finding(Kind.CHANGED, "the file does not end with the seal that its header names")
    key = keys.get(header.key_id)
    if key is None or key.text != header.public_key or (chain.key_id and chain.key_id != header.key_id):
        yield chain.finding(Kind.BAD_SIGNATURE, f"the header names key {header.key_id}, which is not the one given")


class _Lines(Iterator[Header | Seal | Row]):
    """The lines that can be read; what is wrong with others gathers in `findings`."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.number = 0
        self.findings: list[Finding] = []

    def take_findings(self) -> list[Finding]:
        taken, self.findings = self.findings, []
        return taken

    def __next__(self) -> Header | Seal | Row:
        while raw := self._file.readline(LONGEST_LINE):
            self.number += 1
            try:
                line: Header | Seal | Row = _decode(raw)
            except (msgspec.MsgspecError, UnicodeDecodeError):
                self.findings.append(Finding(Kind.UNREADABLE, f"line {self.number} is not one of an export"))
                continue
            if _line(line) != raw:
                self.findings.append(Finding(Kind.CHANGED, f"line {self.number} was not written by an export"))
            return line
        raise StopIteration


def _line(line: Header | Seal | Row) -> bytes:
    return encode(line) + b"\n"
