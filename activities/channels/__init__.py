"""Channels: one adapter each, chosen by the credentials that are set."""

from __future__ import annotations

from activities.channels.base import ChannelAdapter
from activities.channels.outbox import Outbox
from models.kit.settings import Settings, SettingsError
from models.notifications.rules import Channel


def adapters_from(settings: Settings) -> dict[Channel, ChannelAdapter]:
    """An adapter for every channel: the provider's where its credentials are set, else the outbox.

    Raises SettingsError for half a set of credentials, which would otherwise look like none.
    """
    return {Channel.SMS: _sms(settings), Channel.EMAIL: _email(settings)}


def _sms(settings: Settings) -> ChannelAdapter:
    credentials = {
        "TWILIO_ACCOUNT_SID": settings.twilio_account_sid,
        "TWILIO_AUTH_TOKEN": settings.twilio_auth_token,
        "TWILIO_FROM": settings.twilio_from,
    }
    missing = [name for name, value in credentials.items() if not value]
    if len(missing) == len(credentials):
        return Outbox(Channel.SMS)
    if missing:
        raise SettingsError(f"{', '.join(missing)}: set it too, or unset the other TWILIO_ variables to send no SMS")
    # The SDKs take a second to import, which a process that does not use them is spared.
    from activities.channels.sms import TwilioSms

    return TwilioSms(
        account_sid=settings.twilio_account_sid,
        auth_token=settings.twilio_auth_token,
        sender=settings.twilio_from,
        base_url=settings.twilio_base_url,
    )


def _email(settings: Settings) -> ChannelAdapter:
    if not settings.resend_api_key:
        return Outbox(Channel.EMAIL)
    if settings.email_from.rstrip(">").endswith(".invalid"):
        raise SettingsError("EMAIL_FROM: set an address of a domain that is verified with Resend")
    from activities.channels.email import ResendEmail

    return ResendEmail(api_key=settings.resend_api_key, sender=settings.email_from, base_url=settings.resend_base_url)
