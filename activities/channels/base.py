"""The one small interface that every channel stands behind."""

from __future__ import annotations

from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Protocol
from uuid import UUID

import msgspec

from models.kit.settings import Settings, SettingsError
from models.notifications.rules import Channel


class Outgoing(msgspec.Struct, frozen=True, kw_only=True):
    """A rendered message. `id` is the notification's, and the idempotency key where the provider has one.

    `subject` and `html` are empty for SMS. `tried_since` is set where an earlier attempt, then or later, may have gone
    through unseen. Personal data: never log it.
    """

    id: UUID
    channel: Channel
    to: str
    text: str
    subject: str = ""
    html: str = ""
    tried_since: datetime | None = None


class ChannelAdapter(Protocol):
    """Hands messages to one provider. `name` is kept with each message it took."""

    name: str

    async def send(self, message: Outgoing) -> str:
        """Send, and give the provider's id of it ('' where it had taken the message before and does not repeat the id).

        Raises TemporarilyFailed where another attempt may succeed and PermanentlyFailed where none can. Answers within
        a bounded time.
        """
        ...

    async def close(self) -> None:
        """Give the provider's connections back."""
        ...


class SendError(Exception):
    """The provider did not take the message. The text says why, for the delivery log."""


class TemporarilyFailed(SendError):
    """Try again, not before `retry_after` seconds where the provider named a time."""

    def __init__(self, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class PermanentlyFailed(SendError):
    """No attempt will succeed: a bad address, a recipient who has unsubscribed."""


class Misconfigured(TemporarilyFailed):
    """The operator's fault, not the message's: a wrong credential, an unverified sender. Retried: it gets fixed."""


def retry_after_seconds(header: str | None, *, now: datetime | None = None) -> float | None:
    """Seconds named by a Retry-After header, in either of its forms (RFC 9110, 10.2.3); None without a usable one."""
    if not header:
        return None
    try:
        return max(float(header), 0.0)
    except ValueError:
        pass  # Not a number of seconds, so a date.
    try:
        until = parsedate_to_datetime(header)
    except ValueError:
        return None
    return max((until - (now or datetime.now(UTC))).total_seconds(), 0.0)


def adapters_from(settings: Settings) -> dict[Channel, ChannelAdapter]:
    """An adapter for every channel: the provider's where its credentials are set, else the outbox.

    Raises SettingsError for half a set of credentials, which would otherwise look like none.
    """
    return {Channel.SMS: _sms(settings), Channel.EMAIL: _email(settings)}


# Adapters import this module, hence are imported inside; and the SDKs take a second to load, which a process that does
# not use them is spared.


def _outbox(channel: Channel) -> ChannelAdapter:
    from activities.channels.outbox import Outbox

    return Outbox(channel)


def _sms(settings: Settings) -> ChannelAdapter:
    credentials = {
        "TWILIO_ACCOUNT_SID": settings.twilio_account_sid,
        "TWILIO_AUTH_TOKEN": settings.twilio_auth_token,
        "TWILIO_FROM": settings.twilio_from,
    }
    missing = [name for name, value in credentials.items() if not value]
    if len(missing) == len(credentials):
        return _outbox(Channel.SMS)
    if missing:
        raise SettingsError(f"{', '.join(missing)}: set it too, or unset the other TWILIO_ variables to send no SMS")
    from activities.channels.sms import TwilioSms

    return TwilioSms(
        account_sid=settings.twilio_account_sid,
        auth_token=settings.twilio_auth_token,
        sender=settings.twilio_from,
        base_url=settings.twilio_base_url,
    )


def _email(settings: Settings) -> ChannelAdapter:
    if not settings.resend_api_key:
        return _outbox(Channel.EMAIL)
    if settings.email_from.rstrip(">").endswith(".invalid"):
        raise SettingsError("EMAIL_FROM: set an address of a domain that is verified with Resend")
    from activities.channels.email import ResendEmail

    return ResendEmail(api_key=settings.resend_api_key, sender=settings.email_from, base_url=settings.resend_base_url)
