"""The key that signs seals. It is derived from SECRET_KEY, so it is nowhere in the database."""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Mapping
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

_PUBLIC_KEY_BYTES: Final = 32


class SealingKey:
    """Signs under the Ed25519 key that every process derives from `secret_key`."""

    def __init__(self, secret_key: str) -> None:
        seed = HKDF(hashes.SHA256(), length=32, salt=None, info=b"fairlead audit seal, Ed25519").derive(
            secret_key.encode()
        )
        self._private = Ed25519PrivateKey.from_private_bytes(seed)
        self.public: Final = PublicKey(self._private.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw))

    @property
    def key_id(self) -> str:
        return self.public.key_id

    def sign(self, hash: bytes) -> bytes:
        return self._private.sign(hash)


class PublicKey:
    """What verifies seals. `text` is its 32 bytes in URL-safe Base64; `key_id` is a short hash of them."""

    def __init__(self, raw: bytes) -> None:
        self._key = Ed25519PublicKey.from_public_bytes(raw)
        self.text: Final = base64.urlsafe_b64encode(raw).decode().rstrip("=")
        self.key_id: Final = base64.urlsafe_b64encode(hashlib.sha256(raw).digest()[:9]).decode()

    @classmethod
    def parse(cls, text: str) -> PublicKey:
        """From its `text`. Raises ValueError for what is not a public key."""
        try:
            raw = base64.b64decode(text.strip().rstrip("=") + "=", altchars=b"-_", validate=True)
        except (binascii.Error, ValueError):
            raw = b""
        if len(raw) != _PUBLIC_KEY_BYTES:
            raise ValueError("not a public key: `fairlead audit public-key` prints one")
        return cls(raw)

    def signed(self, hash: bytes, signature: bytes) -> bool:
        try:
            self._key.verify(signature, hash)
        except InvalidSignature:
            return False
        return True


Keys = Mapping[str, PublicKey]


def keyring(*keys: PublicKey) -> Keys:
    """Public keys by their ids: one, and more where SECRET_KEY was changed."""
    return {key.key_id: key for key in keys}
