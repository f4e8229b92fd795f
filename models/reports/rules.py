"""How evenly something was shared out."""

from __future__ import annotations

from collections.abc import Sequence


def jain_index(shares: Sequence[int]) -> float | None:
    """Jain's fairness index (Jain, Chiu, Hawe: DEC-TR-301, 1984): (sum x)^2 / (n * sum x^2). 1 when all have the same,
    1/n when one has everything; None when there is nobody, or nothing was shared out."""
    squares = sum(share * share for share in shares)
    return sum(shares) ** 2 / (len(shares) * squares) if squares else None
