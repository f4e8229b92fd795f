"""Which requests are the same, which keys are keys, and which answers are kept."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.idempotency.rules import KeyedRequest, fingerprint, is_kept, is_key
from models.kit.ids import new_id

PATHS = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=4)
QUERIES = st.binary(max_size=4).filter(lambda query: 0 not in query)
REQUESTS = st.tuples(PATHS, QUERIES, st.binary(max_size=4))


@given(REQUESTS, REQUESTS)
def test_the_fingerprint_tells_requests_apart(one: tuple[str, bytes, bytes], other: tuple[str, bytes, bytes]) -> None:
    assert (fingerprint(*one) == fingerprint(*other)) == (one == other)


def test_where_one_part_ends_is_part_of_the_fingerprint() -> None:
    assert len({fingerprint("/a", b"b", b"c"), fingerprint("/a", b"", b"bc"), fingerprint("/ab", b"", b"c")}) == 3


def test_every_part_of_a_keys_name_has_its_own_lock() -> None:
    request = KeyedRequest(
        organization_id=new_id(), caller_id=new_id(), method="POST", route="/a/{id}", key="1", fingerprint=b""
    )
    changes = ({"organization_id": new_id()}, {"caller_id": new_id()}, {"method": "PUT"}, {"route": "/a"}, {"key": "2"})
    locks = {msgspec.structs.replace(request, **change).lock for change in changes}
    assert len(locks | {request.lock}) == 6
    assert msgspec.structs.replace(request, fingerprint=b"other").lock == request.lock
    assert all(-(2**63) <= lock < 2**63 for lock in locks)


@given(st.text(max_size=300))
def test_a_key_is_1_to_255_printable_characters(text: str) -> None:
    assert is_key(text) == (1 <= len(text) <= 255 and text.isascii() and text.isprintable())


@pytest.mark.parametrize("status", [200, 201, 204, 400, 404, 409, 410])
def test_what_would_come_again_is_kept(status: int) -> None:
    assert is_kept(status, decided=True)


@pytest.mark.parametrize("status", [401, 403, 412, 413, 415, 428, 429, 500, 502, 503])
def test_what_comes_of_the_moment_is_not(status: int) -> None:
    assert not is_kept(status, decided=True)


def test_nor_is_an_error_that_nobody_decided_on() -> None:
    assert not is_kept(409, decided=False)
    assert not is_kept(400, decided=False)
