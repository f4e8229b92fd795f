"""The bytes that are hashed, and what a verification of them finds: pure, without a database."""

from __future__ import annotations

from hashlib import sha256
from typing import Any
from uuid import UUID

import msgspec
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from models.audit.rules import (
    ERASED,
    LONGEST_TRANSACTION_S,
    NO_HASH,
    Entry,
    Personal,
    Row,
    Seal,
    Terms,
    commitment_of,
    encode,
    leaf_hash,
    merkle_root,
    seal_hash,
)
from models.audit.signing import PublicKey, SealingKey, keyring
from models.audit.verification import Chain, Finding, Kind
from models.kit.ids import new_id
from tests.audit.factories import KEY, KEYS, NOON, SECOND, as_file, chain_of, found_in, row_of, seal_of

ORGANIZATION = UUID("0190a000-0000-7000-8000-000000000001")
SIZES = st.lists(st.integers(1, 9), min_size=1, max_size=5)


def verified(chain: list[tuple[Seal, list[Row]]]) -> list[Finding]:
    verification = Chain(ORGANIZATION, KEYS)
    return [finding for seal, rows in chain for finding in verification.take(seal, rows)]


# Bytes


def test_the_tree_is_that_of_rfc_6962() -> None:
    """The vectors of Certificate Transparency's own tests."""
    data = ["", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f"]
    leaves = [sha256(b"\0" + bytes.fromhex(one)).digest() for one in data]
    roots = {
        1: "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
        2: "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
        3: "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
        5: "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
        8: "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
    }
    for size, root in roots.items():
        assert merkle_root(leaves[:size]).hex() == root


@given(st.lists(st.binary(min_size=32, max_size=32), min_size=1, max_size=70))
def test_pairing_by_level_gives_the_tree_of_the_definition(leaves: list[bytes]) -> None:
    def defined(part: list[bytes]) -> bytes:
        if len(part) == 1:
            return part[0]
        split = 1 << (len(part) - 1).bit_length() - 1
        return sha256(b"\1" + defined(part[:split]) + defined(part[split:])).digest()

    assert merkle_root(leaves) == defined(leaves)


def test_what_is_hashed_stays_as_it_is() -> None:
    """Seals are kept for years: a change of these bytes makes all of them void."""
    entry = Entry(
        id=UUID("0190a000-0000-7000-8000-00000000000a"), organization_id=None,
        user_id=UUID("0190a000-0000-7000-8000-00000000000b"), actor_kind="user", action="SIGNED_IN",
        entity_type="user", entity_id=UUID("0190a000-0000-7000-8000-00000000000b"), transaction_id=771,
        created_at=1_770_000_000_123_456,
    )  # fmt: skip
    personal = Personal(ip="192.0.2.7", metadata='{"to": "Zoë"}', request_id="abcd-1234")
    commitment = sha256(b'5a17{"ip":"192.0.2.7","metadata":"{\\"to\\": \\"Zo\xc3\xab\\"}","request_id":"abcd-1234"}')
    assert commitment_of(personal, "5a17") == commitment.digest()
    leaf = sha256(
        b'\0{"action":"SIGNED_IN","actor_kind":"user","created_at":1770000000123456,'
        b'"entity_id":"0190a000-0000-7000-8000-00000000000b","entity_type":"user",'
        b'"id":"0190a000-0000-7000-8000-00000000000a","organization_id":null,"transaction_id":771,'
        b'"user_id":"0190a000-0000-7000-8000-00000000000b"}' + commitment.digest()
    )
    assert leaf_hash(entry, commitment.digest()) == leaf.digest()
    terms = Terms(
        organization_id=ORGANIZATION, first=1, last=2, root=b"\1" * 32, previous_hash=NO_HASH, since=5, sealed_at=6,
        key_id="k",
    )  # fmt: skip
    assert (
        seal_hash(terms)
        == sha256(
            b'{"first":1,"key_id":"k","last":2,"organization_id":"0190a000-0000-7000-8000-000000000001",'
            b'"previous_hash":"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=",'
            b'"root":"AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=","sealed_at":6,"since":5}'
        ).digest()
    )


def test_the_key_comes_from_the_secret_and_its_public_part_travels_as_text() -> None:
    assert SealingKey("another secret of more than 32 characters").key_id != KEY.key_id
    again = PublicKey.parse(KEY.public.text)
    assert again.key_id == KEY.key_id
    assert again.signed(b"hash", KEY.sign(b"hash"))
    assert not again.signed(b"hash", KEY.sign(b"hush"))
    assert not again.signed(b"hash", b"")
    for wrong in ("", "abc", KEY.public.text[:-1], KEY.public.text + "AA", "é" * 43):
        with pytest.raises(ValueError, match="not a public key"):
            PublicKey.parse(wrong)


# Verification


@given(SIZES)
def test_a_chain_as_it_was_made_has_no_findings(sizes: list[int]) -> None:
    chain = chain_of(ORGANIZATION, sizes)
    assert verified(chain) == []
    assert found_in(as_file(chain)) == []


@settings(max_examples=400, deadline=None)
@given(SIZES, st.data())
def test_any_one_change_of_a_file_is_found(sizes: list[int], data: st.DataObject) -> None:
    """Whatever byte, line or length of it."""
    lines = as_file(chain_of(ORGANIZATION, sizes))
    whole = b"".join(lines)
    change = data.draw(st.sampled_from(["byte", "cut", "remove", "repeat", "insert", "swap"]))
    line = data.draw(st.integers(0, len(lines) - 1))
    match change:
        case "byte":
            at = data.draw(st.integers(0, len(whole) - 1))
            changed = bytearray(whole)
            changed[at] ^= data.draw(st.integers(1, 255))
            lines = [bytes(changed)]
        case "cut":
            lines = [whole[: data.draw(st.integers(0, len(whole) - 1))]]
        case "remove":
            del lines[line]
        case "repeat":
            lines.insert(data.draw(st.integers(0, len(lines))), lines[line])
        case "insert":
            other = as_file(chain_of(ORGANIZATION, sizes))
            lines.insert(data.draw(st.integers(1, len(lines))), other[line])
        case "swap":
            other_line = data.draw(st.integers(0, len(lines) - 1))
            assume(other_line != line)
            lines[line], lines[other_line] = lines[other_line], lines[line]
    assert found_in(lines) != []


def changed(value: Any) -> Any:
    """Another value of the same type."""
    match value:
        case bytes():
            return bytes([value[0] ^ 1]) + value[1:]
        case int():
            return value + 1
        case str():
            return value + "x"
        case UUID() | None:
            return new_id()
    raise TypeError(value)


@settings(deadline=None)
@given(SIZES, st.data())
def test_any_one_value_that_changes_is_found(sizes: list[int], data: st.DataObject) -> None:
    chain = chain_of(ORGANIZATION, sizes)
    at = data.draw(st.integers(0, len(chain) - 1))
    seal, rows = chain[at]
    row_at = data.draw(st.integers(0, len(rows) - 1))
    row = rows[row_at]
    assert row.entry is not None
    assert row.personal is not None
    part = data.draw(st.sampled_from(["terms", "seal", "entry", "personal", "row"]))
    if part in ("terms", "seal"):
        struct: Any = seal.terms if part == "terms" else seal
        field = data.draw(st.sampled_from([f for f in struct.__struct_fields__ if f != "terms"]))
        made = msgspec.structs.replace(struct, **{field: changed(getattr(struct, field))})
        chain[at] = (made if part == "seal" else msgspec.structs.replace(seal, terms=made), rows)
    else:
        struct = {"entry": row.entry, "personal": row.personal, "row": row}[part]
        field = data.draw(st.sampled_from([f for f in struct.__struct_fields__ if f not in ("entry", "personal")]))
        made = msgspec.structs.replace(struct, **{field: changed(getattr(struct, field))})
        rows[row_at] = made if part == "row" else msgspec.structs.replace(row, **{part: made})
    assert verified(chain) != []


@settings(deadline=None)
@given(SIZES, st.data())
def test_a_row_that_is_rewritten_with_its_hashes_does_not_fit_the_signed_root(
    sizes: list[int], data: st.DataObject
) -> None:
    chain = chain_of(ORGANIZATION, sizes)
    _, rows = data.draw(st.sampled_from(chain))
    at = data.draw(st.integers(0, len(rows) - 1))
    entry = rows[at].entry
    assert entry is not None
    rows[at] = row_of(
        rows[at].number,
        msgspec.structs.replace(entry, action="NOTHING_CHANGED"),
        Personal(ip=None, metadata="{}", request_id=None),
    )
    assert {finding.kind for finding in verified(chain)} == {Kind.CHANGED}


def test_each_finding_says_what_happened() -> None:
    def kinds(tamper: Any) -> set[Kind]:
        chain = chain_of(ORGANIZATION, [4, 3, 5])
        return {finding.kind for finding in verified(tamper(chain) or chain)}

    def forge(chain: Any) -> None:
        seal, rows = chain[1]
        terms = msgspec.structs.replace(seal.terms, root=b"\7" * 32)
        other = SealingKey("another secret of more than 32 characters")
        chain[1] = Seal(terms=terms, hash=seal_hash(terms), signature=other.sign(seal_hash(terms))), rows

    def swap_rows(chain: Any) -> None:
        rows = chain[1][1]
        one, other = rows[0], rows[2]
        rows[0] = msgspec.structs.replace(other, number=one.number)
        rows[2] = msgspec.structs.replace(one, number=other.number)

    assert kinds(lambda chain: None) == set()
    assert kinds(lambda chain: chain[1][1].pop(1) and None) == {Kind.REMOVED}
    assert kinds(lambda chain: chain[1][1].append(chain[0][1][0])) == {Kind.INSERTED, Kind.REORDERED}
    assert kinds(lambda chain: [chain[0], chain[2]]) == {Kind.REMOVED, Kind.BROKEN_CHAIN}
    assert kinds(lambda chain: [chain[0], chain[2], chain[1]]) >= {Kind.REORDERED, Kind.BROKEN_CHAIN}
    assert kinds(swap_rows) == {Kind.REORDERED, Kind.CHANGED}
    assert kinds(forge) == {Kind.BAD_SIGNATURE, Kind.CHANGED, Kind.BROKEN_CHAIN}


def test_a_seal_by_a_key_that_is_not_known_is_no_seal() -> None:
    chain = chain_of(ORGANIZATION, [2])
    other = keyring(SealingKey("another secret of more than 32 characters").public)
    verification = Chain(ORGANIZATION, other)
    (finding,) = verification.take(*chain[0])
    assert finding.kind is Kind.BAD_SIGNATURE
    assert KEY.key_id in finding.text


def test_a_row_that_is_erased_still_verifies_and_may_not_say_anything() -> None:
    chain = chain_of(ORGANIZATION, [3])
    rows = chain[0][1]
    rows[1] = msgspec.structs.replace(rows[1], personal=ERASED, salt="")
    verification = Chain(ORGANIZATION, KEYS)
    assert verification.take(*chain[0]) == []
    assert verification.erased == 1
    assert found_in(as_file(chain)) == []
    invented = msgspec.structs.replace(ERASED, metadata='{"to": "completed"}')
    rows[1] = msgspec.structs.replace(rows[1], personal=invented)
    assert {finding.kind for finding in verified(chain)} == {Kind.CHANGED}


@pytest.mark.parametrize(
    ("before_since_s", "kinds"),
    [(LONGEST_TRANSACTION_S, set()), (LONGEST_TRANSACTION_S + 1, {Kind.BACKDATED}), (-3600, {Kind.BACKDATED})],
)
def test_a_row_is_dated_near_the_time_in_which_it_can_have_come(before_since_s: int, kinds: set[Kind]) -> None:
    entry = chain_of(ORGANIZATION, [1])[0][1][0].entry
    assert entry is not None
    since = NOON
    entry = msgspec.structs.replace(entry, created_at=since - before_since_s * SECOND)
    rows = [row_of(1, entry, ERASED)]
    seal = seal_of(ORGANIZATION, rows, NO_HASH, since=since, sealed_at=since + 60 * SECOND)
    assert {finding.kind for finding in verified([(seal, rows)])} == kinds


def test_a_file_that_is_none_of_ours_is_said_to_be_so() -> None:
    for content in (b"", b"\0" * 100, b"{}\n", b"x" * (5 * 2**20), encode(chain_of(ORGANIZATION, [1])[0][0]) + b"\n"):
        assert Kind.UNREADABLE in {finding.kind for finding in found_in([content])}


def test_a_seal_that_claims_a_huge_number_of_rows_is_no_work() -> None:
    chain = chain_of(ORGANIZATION, [2])
    seal, rows = chain[0]
    huge = msgspec.structs.replace(seal, terms=msgspec.structs.replace(seal.terms, last=2**62))
    assert {finding.kind for finding in verified([(huge, rows)])} == {Kind.CHANGED, Kind.REMOVED}
