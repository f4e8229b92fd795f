"""Tokens: signed access tokens of 15 minutes, opaque refresh tokens of 30 days."""

from __future__ import annotations

import base64
import hashlib
import secrets
import time
from collections import OrderedDict
from datetime import timedelta
from typing import Any, Final
from uuid import UUID

import jwt
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from models.identity.permissions import Caller
from models.identity.rules import Role, Unauthenticated
from models.kit.ids import new_id

ACCESS_LIFETIME: Final = timedelta(minutes=15)
REFRESH_LIFETIME: Final = timedelta(days=30)
#: How long a repeat of a refresh token counts as an answer lost on the way rather than as a theft.
REFRESH_GRACE: Final = timedelta(seconds=30)

ISSUER: Final = "fairlead"
AUDIENCE: Final = "fairlead-api"
ALGORITHM: Final = "EdDSA"
REQUIRED_CLAIMS: Final = ["sub", "role", "org", "name", "iat", "exp", "jti", "sid", "iss", "aud"]
#: Expiry is taken this much more lightly, as one should between clocks that are kept right.
LEEWAY_S: Final = 5
#: How far the clock of the host that issued a token may be ahead of ours. A clock that is wrong by minutes must not
#: lock out everyone who signed in through its host: a signed token that has not expired is as good as its signature.
ISSUED_AHEAD_S: Final = int(ACCESS_LIFETIME.total_seconds())


class AccessTokens:
    """Issues and verifies access tokens under one Ed25519 key, which every process derives from `secret_key`.

    A verification takes over 100 us, and a client sends the same token many times: verified tokens are kept, the
    least recently used ones dropped first, until they expire.
    """

    def __init__(self, secret_key: str, *, remembered: int = 8192) -> None:
        seed = HKDF(hashes.SHA256(), length=32, salt=None, info=b"fairlead access token, Ed25519").derive(
            secret_key.encode()
        )
        self._private = Ed25519PrivateKey.from_private_bytes(seed)
        self._public = self._private.public_key()
        raw = self._public.public_bytes(Encoding.Raw, PublicFormat.Raw)
        self.key_id: Final = base64.urlsafe_b64encode(hashlib.sha256(raw).digest()[:9]).decode()
        self._remembered = remembered
        self._verified: OrderedDict[str, tuple[Caller, float]] = OrderedDict()

    def issue(self, caller: Caller, *, now: float | None = None) -> str:
        """A signed token for `caller`, valid from `now` (Unix seconds; default: this instant) for 15 minutes."""
        issued = int(time.time() if now is None else now)
        claims: dict[str, Any] = {
            "iss": ISSUER,
            "aud": AUDIENCE,
            "sub": str(caller.user_id),
            "role": caller.role.value,
            "org": str(caller.organization_id),
            "name": caller.name,
            "iat": issued,
            "exp": issued + int(ACCESS_LIFETIME.total_seconds()),
            "jti": str(new_id()),
            "sid": str(caller.session_id),
        }
        if caller.driver_id is not None:
            claims["drv"] = str(caller.driver_id)
        return jwt.encode(claims, self._private, algorithm=ALGORITHM, headers={"kid": self.key_id})

    def verify(self, token: str) -> Caller:
        """The caller whom the token names. Raises Unauthenticated for every token that is not ours and alive."""
        known = self._verified.get(token)
        if known is None:
            known = self._verified[token] = self._decode(token)
            if len(self._verified) > self._remembered:
                self._verified.popitem(last=False)
        caller, expires = known
        if expires + LEEWAY_S < time.time():
            del self._verified[token]
            raise Unauthenticated()
        self._verified.move_to_end(token)
        return caller

    def _decode(self, token: str) -> tuple[Caller, float]:
        try:
            if jwt.get_unverified_header(token).get("kid") != self.key_id:
                raise Unauthenticated()
            claims = jwt.decode(
                token,
                self._public,
                algorithms=[ALGORITHM],
                issuer=ISSUER,
                audience=AUDIENCE,
                leeway=LEEWAY_S,
                options={"require": REQUIRED_CLAIMS, "verify_iat": False},
            )
            if int(claims["iat"]) > time.time() + ISSUED_AHEAD_S:
                raise Unauthenticated()
            driver = claims.get("drv")
            caller = Caller(
                user_id=UUID(claims["sub"]),
                role=Role(claims["role"]),
                organization_id=UUID(claims["org"]),
                name=str(claims["name"]),
                session_id=UUID(claims["sid"]),
                driver_id=None if driver is None else UUID(driver),
            )
        except (jwt.PyJWTError, ValueError, TypeError, AttributeError) as error:
            raise Unauthenticated() from error
        return caller, float(claims["exp"])


def new_refresh_token() -> str:
    return secrets.token_urlsafe(32)


def hash_of(refresh_token: str) -> str:
    """What is stored. A plain SHA-256 will do: the token has 256 bits of its own and cannot be guessed."""
    return hashlib.sha256(refresh_token.encode()).hexdigest()
