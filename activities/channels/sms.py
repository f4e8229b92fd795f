"""SMS through Twilio.

Twilio has no idempotency key, so that a second attempt first looks whether the first one has gone through. What still
reaches a phone twice is a message that Twilio took and does not list yet.
"""

from __future__ import annotations

import asyncio
from base64 import b64encode
from datetime import datetime, timedelta
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import structlog
from twilio.base.exceptions import TwilioRestException, TwilioServiceException  # type: ignore[import-untyped]
from twilio.http.async_http_client import AsyncTwilioHttpClient  # type: ignore[import-untyped]
from twilio.http.response import Response  # type: ignore[import-untyped]
from twilio.rest import Client  # type: ignore[import-untyped]
from twilio.rest import api as _api  # noqa: F401  # see below

from activities.channels.base import Misconfigured, Outgoing, PermanentlyFailed, TemporarilyFailed, retry_after_seconds

# The SDK imports its API at the first message, half a second in which the whole process would stand still; `_api` above
# has it done by then.
logger = structlog.get_logger(__name__)

TWILIO_ORIGIN = "https://api.twilio.com"
#: How many of a number's last messages are looked through for one that was taken before.
LOOK_BACK = 20
#: By so much Twilio's clock may be behind Postgres's.
CLOCKS_APART = timedelta(minutes=1)
NOT_DELIVERED = frozenset({"failed", "undelivered", "canceled"})
#: Codes of a 400 that blame our own number, see twilio.com/docs/api/errors. Everything else in a 400 blames the message
#: or its recipient; Twilio adds codes over time, and a new one ends the message rather than repeating it.
SENDER_CODES = frozenset({21212, 21603, 21606, 21659, 21660, 21661})


class _Origin(AsyncTwilioHttpClient):  # type: ignore[misc]  # the SDK is untyped
    """The SDK's own HTTP client, pointed at another origin, which its region and edge cannot express."""

    def __init__(self, base_url: str) -> None:
        super().__init__()
        self.base_url = base_url.rstrip("/")

    async def request(
        self,
        method: str,
        url: str,
        params: Any = None,
        data: Any = None,
        headers: dict[str, str] | None = None,
        auth: tuple[str, str] | None = None,
        timeout: float | None = None,
        allow_redirects: bool = False,
    ) -> Response:
        if self.base_url != TWILIO_ORIGIN:
            parts = urlsplit(url)
            url = f"{self.base_url}{parts.path}" + (f"?{parts.query}" if parts.query else "")
        headers = dict(headers or {})
        if auth:
            # As a header, because the SDK passes it by an aiohttp class that warns of its removal.
            headers["Authorization"] = f"Basic {b64encode(':'.join(auth).encode()).decode()}"
        response = await super().request(method, url, params, data, headers, None, timeout, allow_redirects)
        if response.status_code == 429 or response.status_code >= 500:
            # Here, because the SDK's errors do not carry the headers.
            raise TemporarilyFailed(
                f"Twilio answered {response.status_code}",
                retry_after_seconds(response.headers.get("Retry-After")),
            )
        return response


class TwilioSms:
    """`sender` is a phone number, a sender name, or the id of a messaging service (`MG..`)."""

    name = "twilio"

    def __init__(
        self,
        *,
        account_sid: str,
        auth_token: str,
        sender: str,
        base_url: str = TWILIO_ORIGIN,
        timeout_s: float = 10,
    ) -> None:
        self._account_sid = account_sid
        self._auth_token = auth_token
        self._sender = {"messaging_service_sid" if sender.startswith("MG") else "from_": sender}
        self._base_url = base_url
        self._timeout_s = timeout_s
        self._client: Client | None = None

    async def send(self, message: Outgoing) -> str:
        if self._client is None:  # The SDK opens its connections at construction, which needs a running loop.
            self._client = Client(self._account_sid, self._auth_token, http_client=_Origin(self._base_url))
        try:
            # Around the call, because the SDK ignores the timeout it is constructed with.
            async with asyncio.timeout(self._timeout_s):
                if message.tried_since is not None and (taken := await self._taken(message, message.tried_since)):
                    return taken
                sent = await self._client.messages.create_async(to=message.to, body=message.text, **self._sender)
        except TimeoutError:
            raise TemporarilyFailed(f"Twilio did not answer within {self._timeout_s:g} s") from None
        except aiohttp.ClientError as error:
            raise TemporarilyFailed(f"Twilio could not be reached: {type(error).__name__}") from error
        except TwilioRestException as error:
            raise self._judge(error.status, error.code, error.msg) from error
        except TwilioServiceException as error:
            raise self._judge(error.status, error.code, error.detail or error.title) from error
        except ValueError as error:
            raise TemporarilyFailed("Twilio's answer is not JSON: something stands in between") from error
        if not sent.sid:
            raise TemporarilyFailed("Twilio's answer names no message: something stands in between")
        return str(sent.sid)

    async def _taken(self, message: Outgoing, since: datetime) -> str | None:
        """The id under which Twilio took this very text for this number since then."""
        assert self._client is not None
        # Newest first. Not asked for by date: a message that is still queued has no date of sending.
        for taken in await self._client.messages.list_async(to=message.to, limit=LOOK_BACK):
            if taken.date_created is not None and taken.date_created < since - CLOCKS_APART:
                break
            # A trial account puts words of its own before the text.
            if str(taken.body).endswith(message.text) and taken.status not in NOT_DELIVERED:
                return str(taken.sid)
        return None

    def _judge(self, status: int, code: int | None, text: str) -> TemporarilyFailed | PermanentlyFailed:
        # The SDK prefixes "Unable to create record: ", which tells nobody anything.
        told = f"Twilio {status}, error {code}: {text.removeprefix('Unable to create record: ')}"
        if status in (401, 403, 404) or code in SENDER_CODES:
            logger.error("sms_misconfigured", status=status, code=code, check="TWILIO_ACCOUNT_SID, _AUTH_TOKEN, _FROM")
            return Misconfigured(f"{told} (check TWILIO_ACCOUNT_SID, TWILIO_AUTH_TOKEN and TWILIO_FROM)")
        if status == 408:
            return TemporarilyFailed(told)
        return PermanentlyFailed(told)

    async def close(self) -> None:
        if self._client is not None:
            await self._client.http_client.close()
            self._client = None
