"""The dispatch policies of the show: minutes become seconds for its length, and go back to what they were."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from api.cli.demo.client import Account, Refused, Unreachable
from api.cli.demo.morning import KINDS, Pace

#: Fields of the answer that say whose policy it is, and are no settings.
_IDENTITY: Final = frozenset({"kind", "version", "organization_id", "created_at"})


class ShowPolicies:
    """The policies in force before the show, and the versions that it put in their place."""

    def __init__(self, admin: Account, pace: Pace) -> None:
        self._admin = admin
        self._pace = pace
        self._before: dict[str, dict[str, Any]] = {}
        self._ours: dict[str, str] = {}

    async def shorten(self) -> str:
        """Put the show's settings in force; gives a sentence about it. Raises Refused, Unreachable."""
        for kind in KINDS:
            answer = await self._admin.ask("GET", f"/dispatch-policies/{kind}")
            settings = {name: value for name, value in answer.json().items() if name not in _IDENTITY}
            # Noted before it is replaced: an interruption in between restores too much rather than too little.
            self._before[kind] = settings
            self._ours[kind] = answer.headers["etag"]
            changed = await self._replace(kind, settings | self._shortened(kind))
            self._ours[kind] = changed
        ttl, window = self._shortened("job")["offer_ttl_s"], self._shortened("order")["broadcast_window_s"]
        return f"{self._admin.full_name} shortens offers to {ttl} s and broadcasts to {window} s while the show runs"

    async def restore(self) -> list[str]:
        """Put the old settings back; gives what there is to say about it. Never raises what it can say instead."""
        if not self._before:
            return []
        left: list[str] = []
        for kind, settings in self._before.items():
            try:
                await self._replace(kind, settings)
            except Refused as error:
                if error.status == 412:
                    left.append(f"The settings for {kind}s were changed by somebody else meanwhile, and are left so")
                else:
                    left.append(f"The old settings for {kind}s could not be restored: {error}")
            except Unreachable as error:
                left.append(f"The old settings for {kind}s could not be restored: {error}")
                left.append(f"They were: {msgspec.json.encode(settings).decode()}")
        self._before.clear()
        return left or ["The old offer and broadcast times are in force again"]

    async def _replace(self, kind: str, settings: dict[str, Any]) -> str:
        answer = await self._admin.ask(
            "PUT", f"/dispatch-policies/{kind}", settings, headers={"If-Match": self._ours[kind]}
        )
        etag: str = answer.headers["etag"]
        return etag

    def _shortened(self, kind: str) -> dict[str, Any]:
        pace = self._pace
        shortened = {
            "recheck_s": pace.whole(5, at_least=1),
            "lapse_pause_s": pace.whole(20, at_least=4),
        }
        if kind == "order":
            # An order's offers stay open until the order itself expires; what is shorter is the wait for the first.
            return shortened | {"broadcast_window_s": pace.whole(4, at_least=1)}
        ttl = pace.whole(6, at_least=2)
        return shortened | {"offer_ttl_s": ttl, "offer_ttl_max_s": 2 * ttl}
