"""Twilio and Resend as local servers: their paths, credentials, payloads and errors, a script, and a ledger.

A server answers as scripted, one entry per request that gets past its checks, then with success. What it took for
delivery is in `delivered`; what it refused at the door, with the status, in `refused`.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from base64 import b64encode
from collections import deque
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import format_datetime
from types import TracebackType
from typing import Any, Self
from uuid import uuid4

from aiohttp import web

ACCOUNT_SID = "AC" + "0" * 32
AUTH_TOKEN = "twilio-token-of-the-tests"
API_KEY = "re_key_of_the_tests"
FROM_NUMBER = "+15005550001"
FROM_ADDRESS = "Fairlead <dispatch@example.org>"
#: The number that Twilio's own test credentials call invalid, and one that has unsubscribed.
INVALID_NUMBER = "+15005550009"
UNSUBSCRIBED_NUMBER = "+15005550010"


@dataclass(frozen=True)
class Behaviour:
    """How to answer one request. `deliver_first` takes the message before the trouble begins: the answer gets lost."""

    status: int = 0
    retry_after: str | None = None
    hang_s: float = 0
    drop: bool = False
    html: bool = False
    deliver_first: bool = False


SUCCEED = Behaviour()


def throttle(retry_after: str | None = "1") -> Behaviour:
    return Behaviour(status=429, retry_after=retry_after)


def fail(status: int, *, html: bool = False) -> Behaviour:
    return Behaviour(status=status, html=html)


def hang(seconds: float, *, deliver_first: bool = False) -> Behaviour:
    return Behaviour(hang_s=seconds, deliver_first=deliver_first)


def drop(*, deliver_first: bool = False) -> Behaviour:
    """Close the connection without an answer."""
    return Behaviour(drop=True, deliver_first=deliver_first)


@dataclass
class ProviderServer:
    """What the two have in common: a port, a script and a ledger."""

    script: deque[Behaviour] = field(default_factory=deque)
    delivered: list[dict[str, Any]] = field(default_factory=list)
    refused: list[tuple[int, str]] = field(default_factory=list)
    requests: int = 0
    #: How often somebody looked what was taken before.
    looks: int = 0
    url: str = ""

    def routes(self) -> list[web.RouteDef]:
        raise NotImplementedError

    def troubled(self, behaviour: Behaviour) -> web.Response:
        raise NotImplementedError

    async def __aenter__(self) -> Self:
        app = web.Application()
        app.add_routes(self.routes())
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        host, port = self._runner.addresses[0][:2]
        self.url = f"http://{host}:{port}"
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._runner.cleanup()

    def plan(self, *behaviours: Behaviour) -> None:
        self.script.extend(behaviours)

    def refuse(self, status: int, body: dict[str, Any]) -> web.Response:
        self.refused.append((status, json.dumps(body)))
        return web.json_response(body, status=status)

    async def misbehave(self, behaviour: Behaviour, request: web.Request) -> web.Response | None:
        """The trouble that the script asks for, or None to go on to success."""
        await asyncio.sleep(behaviour.hang_s)
        if behaviour.drop and request.transport is not None:
            request.transport.abort()
            return web.Response(status=500)
        if behaviour.status == 0:
            return None
        headers = {"Retry-After": behaviour.retry_after} if behaviour.retry_after else {}
        if behaviour.html:
            return web.Response(status=behaviour.status, text="<h1>Bad gateway</h1>", content_type="text/html")
        answer = self.troubled(behaviour)
        answer.headers.update(headers)
        return answer


class TwilioServer(ProviderServer):
    """`POST /2010-04-01/Accounts/{sid}/Messages.json`, form-encoded, basic authentication; `GET` lists the
    newest first."""

    def routes(self) -> list[web.RouteDef]:
        return [
            web.post("/2010-04-01/Accounts/{sid}/Messages.json", self.create),
            web.get("/2010-04-01/Accounts/{sid}/Messages.json", self.list),
            web.route("*", "/{path:.*}", self.nowhere),
        ]

    def error(self, status: int, code: int, message: str) -> web.Response:
        more = f"https://www.twilio.com/docs/errors/{code}"
        return self.refuse(status, {"code": code, "message": message, "more_info": more, "status": status})

    async def nowhere(self, request: web.Request) -> web.Response:
        return self.error(404, 20404, f"The requested resource {request.path} was not found")

    def troubled(self, behaviour: Behaviour) -> web.Response:
        if behaviour.status == 429:
            return self.error(429, 20429, "Too Many Requests")
        return self.error(behaviour.status, 20500, "Internal Server Error")

    def knows(self, request: web.Request) -> bool:
        expected = b64encode(f"{ACCOUNT_SID}:{AUTH_TOKEN}".encode()).decode()
        return request.headers.get("Authorization") == f"Basic {expected}"

    async def list(self, request: web.Request) -> web.Response:
        self.looks += 1
        if not self.knows(request):
            return self.error(401, 20003, "Authenticate")
        size = int(request.query.get("PageSize", "50"))
        found = [message for message in reversed(self.delivered) if message["to"] == request.query.get("To")]
        return web.json_response({"messages": found[:size], "page": 0, "page_size": size, "next_page_uri": None})

    async def create(self, request: web.Request) -> web.Response:  # one check per rule of theirs
        self.requests += 1
        if not self.knows(request):
            return self.error(401, 20003, "Authenticate")
        if request.match_info["sid"] != ACCOUNT_SID:
            return self.error(404, 20404, f"The requested resource {request.path} was not found")
        if request.content_type != "application/x-www-form-urlencoded":
            return self.error(400, 20001, "Unsupported content type")
        form = await request.post()
        to, sender, body = (str(form.get(name, "")) for name in ("To", "From", "Body"))
        if not to:
            return self.error(400, 21604, "A 'To' phone number is required.")
        if not sender and not form.get("MessagingServiceSid"):
            return self.error(400, 21603, "A 'From' phone number is required.")
        if not body:
            return self.error(400, 21602, "Message body is required.")
        if len(body) > 1600:
            return self.error(400, 21617, "The concatenated message body exceeds the 1600 character limit")
        if to == INVALID_NUMBER or not to.startswith("+"):
            return self.error(400, 21211, f"Invalid 'To' Phone Number: {to[:-4]}XXXX")
        if to == UNSUBSCRIBED_NUMBER:
            return self.error(400, 21610, f"Attempt to send to unsubscribed recipient {to}")
        if sender and sender != FROM_NUMBER:
            return self.error(400, 21659, f"{sender} is not a Twilio phone number")
        behaviour = self.script.popleft() if self.script else SUCCEED
        sid = "SM" + uuid4().hex
        created = format_datetime(datetime.now(UTC))
        message = {
            "sid": sid, "to": to, "from": sender or None, "body": body, "status": "queued", "date_created": created,
        }  # fmt: skip
        if behaviour.deliver_first:
            self.delivered.append(message)
        trouble = await self.misbehave(behaviour, request)
        if trouble is not None:
            return trouble
        if not behaviour.deliver_first:
            self.delivered.append(message)
        answer = {
            "account_sid": ACCOUNT_SID,
            "api_version": "2010-04-01",
            "direction": "outbound-api",
            "error_code": None,
            "error_message": None,
            "num_segments": "1",
            "uri": f"/2010-04-01/Accounts/{ACCOUNT_SID}/Messages/{sid}.json",
            **message,
        }
        return web.json_response(answer, status=201)


class ResendServer(ProviderServer):
    """`POST /emails`, JSON, bearer key, with idempotency keys as in Resend's reference."""

    def __init__(self) -> None:
        super().__init__()
        self.by_key: dict[str, tuple[str, str]] = {}

    def routes(self) -> list[web.RouteDef]:
        return [web.post("/emails", self.create), web.route("*", "/{path:.*}", self.nowhere)]

    def error(self, status: int, name: str, message: str) -> web.Response:
        return self.refuse(status, {"statusCode": status, "name": name, "message": message})

    async def nowhere(self, request: web.Request) -> web.Response:
        return self.error(404, "not_found", "The requested endpoint does not exist.")

    def troubled(self, behaviour: Behaviour) -> web.Response:
        if behaviour.status == 429:
            return self.error(429, "rate_limit_exceeded", "Too many requests. Please limit the number of requests.")
        return self.error(behaviour.status, "application_error", "An unexpected error occurred.")

    async def create(self, request: web.Request) -> web.Response:  # one check per rule of theirs
        self.requests += 1
        given = request.headers.get("Authorization", "")
        if not given.startswith("Bearer "):
            return self.error(401, "missing_api_key", "Missing API Key")
        if given != f"Bearer {API_KEY}":
            return self.error(400, "validation_error", "API key is invalid")
        if request.content_type != "application/json":
            return self.error(422, "validation_error", "The body must be JSON.")
        body = await request.json()
        for name in ("from", "to", "subject"):
            if not body.get(name):
                return self.error(422, "missing_required_field", f"Missing `{name}` field.")
        if not (body.get("html") or body.get("text")):
            return self.error(422, "missing_required_field", "Missing `html` or `text` field.")
        if any("@" not in to for to in body["to"]):
            return self.error(
                422,
                "validation_error",
                "Invalid `to` field. The email address needs to follow the `email@example.com` format.",
            )
        key = request.headers.get("Idempotency-Key", "")
        if "Idempotency-Key" in request.headers and not 1 <= len(key) <= 256:
            return self.error(400, "invalid_idempotency_key", "The key must be between 1-256 chars.")
        fingerprint = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
        if key in self.by_key:
            id_, earlier = self.by_key[key]
            if earlier != fingerprint:
                return self.error(
                    409,
                    "invalid_idempotent_request",
                    "This idempotency key has been used with this HTTP method and endpoint within the last 24 hours, "
                    "but the request body was modified and doesn't match the original request.",
                )
            return web.json_response({"id": id_})
        behaviour = self.script.popleft() if self.script else SUCCEED
        id_ = str(uuid4())
        if behaviour.deliver_first:
            self.take(id_, key, fingerprint, body)
        trouble = await self.misbehave(behaviour, request)
        if trouble is not None:
            return trouble
        if not behaviour.deliver_first:
            self.take(id_, key, fingerprint, body)
        return web.json_response({"id": id_})

    def take(self, id_: str, key: str, fingerprint: str, body: dict[str, Any]) -> None:
        if key:
            self.by_key[key] = (id_, fingerprint)
        self.delivered.append({"id": id_, "key": key, **body})
