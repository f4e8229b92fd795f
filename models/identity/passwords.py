"""Password hashes: Argon2id with OWASP's first recommendation (19 MiB, two passes, one lane)."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

MINIMUM_LENGTH: Final = 10
MAXIMUM_LENGTH: Final = 128

_hasher: Final = PasswordHasher(time_cost=2, memory_cost=19 * 1024, parallelism=1)
#: Two at a time: a burst of sign-ins may wait, but takes neither the memory nor both cores from dispatching.
_threads: Final = ThreadPoolExecutor(max_workers=2, thread_name_prefix="argon2")
#: Verified in place of an unknown account's hash, so that the time taken does not tell who has an account.
_NOBODY: Final = _hasher.hash("nobody has this password")


async def hash_password(password: str) -> str:
    return await asyncio.get_running_loop().run_in_executor(_threads, _hasher.hash, password)


async def verify_password(stored: str | None, password: str) -> bool:
    """Whether `password` makes `stored`. None (no account, or one without a password) takes as long, and is False."""
    matches = await asyncio.get_running_loop().run_in_executor(_threads, _verify, stored or _NOBODY, password)
    return matches and stored is not None


def is_outdated(stored: str) -> bool:
    """Whether the hash was made with other parameters than today's, and wants making again at this sign-in."""
    return _hasher.check_needs_rehash(stored)


def _verify(stored: str, password: str) -> bool:
    try:
        return _hasher.verify(stored, password)
    except (VerificationError, InvalidHashError):
        return False
