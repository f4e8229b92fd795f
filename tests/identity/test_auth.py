"""Signing in and keeping signed in, over HTTP."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from datetime import timedelta
from typing import Any

import httpx
import jwt
import pytest
from sqlalchemy import func, select, update

from models.audit.tables import audit_log
from models.identity.permissions import permissions_of
from models.identity.rules import Role, Unauthenticated
from models.identity.tables import sessions, users
from models.identity.tokens import AccessTokens, hash_of
from models.kit.database import Database
from models.kit.settings import DEVELOPMENT_SECRET
from tests.factories.people import PASSWORD, People, Person

LOGIN, REFRESH, ME = "/api/v1/auth/login", "/api/v1/auth/refresh", "/api/v1/auth/me"


async def sign_in(client: httpx.AsyncClient, person: Person) -> dict[str, Any]:
    response = await client.post(LOGIN, json={"email": person.email, "password": PASSWORD})
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


async def refresh(client: httpx.AsyncClient, token: str) -> httpx.Response:
    return await client.post(REFRESH, json={"refresh_token": token})


async def audited(database: Database, action: str) -> int:
    async with database.transaction() as session:
        count: int = await session.value(select(func.count()).where(audit_log.c.action == action))
        return count


async def live_tokens(database: Database) -> int:
    async with database.transaction() as session:
        count: int = await session.value(select(func.count()).where(sessions.c.revoked_at.is_(None)))
        return count


async def test_login_gives_tokens_and_the_user(client: httpx.AsyncClient, people: People) -> None:
    driver = await people.person("driver", await people.organization(), name="Dana Driver", password=PASSWORD)
    answer = await sign_in(client, driver)
    assert answer["token_type"] == "Bearer"
    assert answer["expires_in"] == 900
    assert answer["user"] == {
        "id": str(driver.user_id),
        "email": driver.email,
        "full_name": "Dana Driver",
        "role": "driver",
        "organization_id": str(driver.organization_id),
        "driver_id": str(driver.driver_id),
    }
    header, claims = (
        json.loads(base64.urlsafe_b64decode(part + "==")) for part in answer["access_token"].split(".")[:2]
    )
    assert header["alg"] == "EdDSA"
    assert header["kid"] == people.tokens.key_id
    assert set(claims) == {"iss", "aud", "sub", "role", "org", "name", "iat", "exp", "jti", "sid", "drv"}
    assert claims["exp"] - claims["iat"] == 900

    me = (await client.get(ME, headers={"Authorization": f"Bearer {answer['access_token']}"})).json()
    assert me["id"] == str(driver.user_id)
    assert me["status"] == "offline"
    assert me["permissions"] == permissions_of(Role.DRIVER)


async def test_the_email_is_taken_in_any_case(client: httpx.AsyncClient, people: People) -> None:
    person = await people.person("dispatcher", await people.organization(), password=PASSWORD)
    response = await client.post(LOGIN, json={"email": f" {person.email.upper()} ", "password": PASSWORD})
    assert response.status_code == 200


async def test_every_wrong_sign_in_gets_the_same_answer(
    client: httpx.AsyncClient, people: People, database: Database
) -> None:
    organization = await people.organization()
    known = await people.person("dispatcher", organization, password=PASSWORD)
    without_password = await people.person("dispatcher", organization)
    inactive = await people.person("dispatcher", organization, password=PASSWORD)
    async with database.transaction() as session:
        await session.run(update(users).where(users.c.id == inactive.user_id).values(is_active=False))
    answers = [
        await client.post(LOGIN, json={"email": email, "password": password})
        for email, password in [
            (known.email, "wrong password"),
            ("nobody@demo.test", PASSWORD),
            (without_password.email, PASSWORD),
            (inactive.email, PASSWORD),
        ]
    ]
    assert {answer.status_code for answer in answers} == {401}
    assert {(answer.json()["code"], answer.json()["error"]) for answer in answers} == {
        ("INVALID_CREDENTIALS", "The e-mail or the password is wrong")
    }
    assert await audited(database, "SIGN_IN_REFUSED") == 4
    assert await live_tokens(database) == 0


async def test_a_refresh_token_works_once_and_a_late_repeat_ends_the_sign_in(
    client: httpx.AsyncClient, people: People, database: Database
) -> None:
    person = await people.person("dispatcher", await people.organization(), password=PASSWORD)
    first = (await sign_in(client, person))["refresh_token"]
    second = (await refresh(client, first)).json()["refresh_token"]
    third = (await refresh(client, second)).json()["refresh_token"]
    # `second` is used, so a repeat of `first` is no lost answer.
    repeated = await refresh(client, first)
    assert (repeated.status_code, repeated.json()["code"]) == (401, "UNAUTHENTICATED")
    assert (await refresh(client, third)).status_code == 401
    assert await live_tokens(database) == 0
    assert await audited(database, "REFRESH_TOKEN_REUSED") == 1


async def test_a_lost_answer_may_be_asked_for_again_within_30_seconds(
    client: httpx.AsyncClient, people: People, database: Database
) -> None:
    person = await people.person("dispatcher", await people.organization(), password=PASSWORD)
    first = (await sign_in(client, person))["refresh_token"]
    lost = (await refresh(client, first)).json()["refresh_token"]
    arrived = await refresh(client, first)
    assert arrived.status_code == 200
    assert await live_tokens(database) == 1
    assert (await refresh(client, arrived.json()["refresh_token"])).status_code == 200
    # Whoever holds the answer that was replaced is not the one who asked again.
    assert (await refresh(client, lost)).status_code == 401
    assert await live_tokens(database) == 0


async def test_after_30_seconds_a_repeat_is_a_theft(
    client: httpx.AsyncClient, people: People, database: Database
) -> None:
    person = await people.person("dispatcher", await people.organization(), password=PASSWORD)
    first = (await sign_in(client, person))["refresh_token"]
    await refresh(client, first)
    async with database.transaction() as session:
        await session.run(
            update(sessions)
            .where(sessions.c.token_hash == hash_of(first))
            .values(revoked_at=sessions.c.revoked_at - timedelta(seconds=31))
        )
    assert (await refresh(client, first)).status_code == 401
    assert await live_tokens(database) == 0


async def test_fifty_refreshes_at_once_leave_one_live_token(
    client: httpx.AsyncClient, people: People, database: Database
) -> None:
    person = await people.person("dispatcher", await people.organization(), password=PASSWORD)
    token = (await sign_in(client, person))["refresh_token"]
    answers = await asyncio.gather(*(refresh(client, token) for _ in range(50)))
    assert {answer.status_code for answer in answers} == {200}
    async with database.transaction() as session:
        hashes = await session.rows(select(sessions.c.token_hash).where(sessions.c.revoked_at.is_(None)))
    live = [a.json()["refresh_token"] for a in answers if hash_of(a.json()["refresh_token"]) == hashes[0].token_hash]
    assert (len(hashes), len(live)) == (1, 1)
    assert (await refresh(client, live[0])).status_code == 200


async def test_expired_and_unknown_refresh_tokens_and_inactive_accounts_are_refused(
    client: httpx.AsyncClient, people: People, database: Database
) -> None:
    person = await people.person("dispatcher", await people.organization(), password=PASSWORD)
    token = (await sign_in(client, person))["refresh_token"]
    assert (await refresh(client, "unknown")).status_code == 401
    async with database.transaction() as session:
        await session.run(update(users).where(users.c.id == person.user_id).values(is_active=False))
    assert (await refresh(client, token)).status_code == 401
    async with database.transaction() as session:
        await session.run(update(users).values(is_active=True))
        await session.run(update(sessions).values(expires_at=func.clock_timestamp()))
    assert (await refresh(client, token)).status_code == 401


@pytest.mark.parametrize(
    "header",
    ["", "Bearer", "Bearer ", "Bearer x", "Basic YTpi", "Bearer a.b.c", "Bearer " + "x" * 10_000],
)
async def test_bad_tokens_are_unauthenticated(client: httpx.AsyncClient, header: str) -> None:
    response = await client.get(ME, headers={"Authorization": header})
    assert (response.status_code, response.json()["code"]) == (401, "UNAUTHENTICATED")
    assert response.headers["www-authenticate"] == "Bearer"


async def test_tokens_of_another_key_algorithm_or_age_are_refused(people: People) -> None:
    person = await people.person("super_admin", await people.organization())
    ours = AccessTokens(DEVELOPMENT_SECRET)
    assert ours.verify(person.token) == person.caller
    claims = jwt.decode(person.token, options={"verify_signature": False})
    header = {"kid": ours.key_id}
    forged = [
        AccessTokens("another secret key, of the same length").issue(person.caller),
        jwt.encode(claims, "", algorithm="none", headers=header),
        jwt.encode(claims, DEVELOPMENT_SECRET, algorithm="HS256", headers=header),
        ours.issue(person.caller, now=claims["iat"] - 1000),
        ours.issue(person.caller, now=claims["iat"] + 1000),
        person.token[:-4] + ("AAAA" if not person.token.endswith("AAAA") else "BBBB"),
        *(
            jwt.encode({k: v for k, v in claims.items() if k != left_out}, ours._private, "EdDSA", headers=header)
            for left_out in ("jti", "sid", "org", "role", "exp", "aud", "iss", "name")
        ),
        jwt.encode(claims | {"role": "emperor"}, ours._private, "EdDSA", headers=header),
        jwt.encode(claims | {"aud": "another"}, ours._private, "EdDSA", headers=header),
        jwt.encode(claims, ours._private, "EdDSA"),
    ]
    for token in forged:
        with pytest.raises(Unauthenticated):
            ours.verify(token)


async def test_a_token_of_a_host_whose_clock_is_ten_minutes_off_is_good(people: People) -> None:
    person = await people.person("driver", await people.organization())
    ours = AccessTokens(DEVELOPMENT_SECRET)
    for seconds in (-600, 600):
        assert ours.verify(ours.issue(person.caller, now=time.time() + seconds)) == person.caller


async def test_a_remembered_token_still_expires(people: People, monkeypatch: pytest.MonkeyPatch) -> None:
    person = await people.person("driver", await people.organization())
    tokens = AccessTokens(DEVELOPMENT_SECRET, remembered=1)
    tokens.verify(person.token)
    expires = tokens._verified[person.token][1]
    monkeypatch.setattr("models.identity.tokens.time.time", lambda: expires + 6)
    with pytest.raises(Unauthenticated):
        tokens.verify(person.token)
    assert not tokens._verified


async def test_the_memory_of_tokens_is_bounded(people: People) -> None:
    organization = await people.organization()
    tokens = AccessTokens(DEVELOPMENT_SECRET, remembered=2)
    for _ in range(3):
        tokens.verify((await people.person("customer", organization)).token)
    assert len(tokens._verified) == 2
