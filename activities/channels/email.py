"""E-mail through Resend, with the notification's id as idempotency key: a repeated attempt sends nothing twice."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import httpx
import resend
import structlog
from resend.exceptions import NoContentError, ResendError
from resend.http_client_async import AsyncHTTPClient

from activities.channels.base import Misconfigured, Outgoing, PermanentlyFailed, TemporarilyFailed, retry_after_seconds

logger = structlog.get_logger(__name__)

RESEND_ORIGIN = "https://api.resend.com"


class _PooledClient(AsyncHTTPClient):
    """Keeps connections open between messages; the SDK's own client makes a pool and a TLS context for each."""

    def __init__(self) -> None:
        # The caller bounds the whole exchange; httpx would bound each read.
        self.http = httpx.AsyncClient(timeout=None)  # noqa: S113  # bounded by `send`

    async def request(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        json: dict[str, object] | list[object] | None = None,
        files: dict[str, Any] | None = None,
        data: dict[str, str] | None = None,
    ) -> tuple[bytes, int, Mapping[str, str]]:
        response = await self.http.request(method, url, headers=headers, json=json, files=files, data=data)
        return response.content, response.status_code, response.headers


class ResendEmail:
    """`sender` is an address of a domain that is verified with Resend, with or without a display name."""

    name = "resend"

    def __init__(self, *, api_key: str, sender: str, base_url: str = RESEND_ORIGIN, timeout_s: float = 10) -> None:
        self._api_key = api_key
        self._sender = sender
        self._base_url = base_url.rstrip("/")
        self._timeout_s = timeout_s
        self._client = _PooledClient()

    async def send(self, message: Outgoing) -> str:
        # The SDK is configured by module globals. It reads all of them before its first await, so that setting them
        # right here cannot mix two adapters up.
        resend.api_key = self._api_key
        resend.api_url = self._base_url
        resend.default_async_http_client = self._client
        params: resend.Emails.SendParams = {
            "from": self._sender,
            "to": [message.to],
            "subject": message.subject,
            "text": message.text,
            "html": message.html,
        }
        try:
            async with asyncio.timeout(self._timeout_s):
                sent = await resend.Emails.send_async(params, {"idempotency_key": str(message.id)})
        except TimeoutError:
            raise TemporarilyFailed(f"Resend did not answer within {self._timeout_s:g} s") from None
        except NoContentError as error:
            raise TemporarilyFailed("Resend's answer is empty") from error
        except ResendError as error:
            if error.error_type == "invalid_idempotent_request":
                # Taken at an earlier attempt whose answer was lost; the work order has changed since, and so our text.
                return ""
            raise self._judge(error) from error
        return str(sent["id"])

    def _judge(self, error: ResendError) -> TemporarilyFailed | PermanentlyFailed:
        if error.error_type == "HttpClientError":
            return TemporarilyFailed(f"Resend could not be reached: {error.message or 'connection lost'}")
        status = int(error.code)
        told = f"Resend {status}, {error.error_type}: {' '.join(error.message.split())}"
        # An invalid key comes under several names, `validation_error` among them.
        if status in (401, 403, 404, 405) or "api key" in error.message.lower():
            logger.error("email_misconfigured", status=status, type=error.error_type, check="RESEND_API_KEY")
            return Misconfigured(f"{told} (check RESEND_API_KEY and EMAIL_FROM)")
        if status in (408, 409, 425, 429) or status >= 500:
            headers = httpx.Headers(error.headers)
            return TemporarilyFailed(told, retry_after_seconds(headers.get("Retry-After")))
        return PermanentlyFailed(told)

    async def close(self) -> None:
        await self._client.http.aclose()
