"""The real SDKs against servers that speak the providers' protocols."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest

from activities.channels import adapters_from
from activities.channels.base import (
    Misconfigured,
    Outgoing,
    PermanentlyFailed,
    TemporarilyFailed,
    retry_after_seconds,
)
from activities.channels.email import ResendEmail
from activities.channels.outbox import Outbox
from activities.channels.sms import TwilioSms
from models.kit.ids import new_id
from models.kit.settings import Settings, SettingsError
from models.notifications.rules import Channel
from tests.notifications.conftest import TIMEOUT_S
from tests.notifications.provider_servers import (
    ACCOUNT_SID,
    API_KEY,
    AUTH_TOKEN,
    FROM_NUMBER,
    INVALID_NUMBER,
    UNSUBSCRIBED_NUMBER,
    Behaviour,
    ResendServer,
    TwilioServer,
    drop,
    fail,
    hang,
    throttle,
)

pytestmark = pytest.mark.anyio


def text_message(to: str = "+15005550006") -> Outgoing:
    return Outgoing(id=new_id(), channel=Channel.SMS, to=to, text="New job JB-1 at 1 Main St. Answer by 2:32 PM.")


def mail(to: str = "driver@example.org") -> Outgoing:
    return Outgoing(
        id=new_id(), channel=Channel.EMAIL, to=to, subject="New job JB-1", text="Hello", html="<p>Hello</p>"
    )


class TestSms:
    async def test_success_gives_twilios_id(self, sms: TwilioSms, twilio: TwilioServer) -> None:
        message = text_message()

        sid = await sms.send(message)

        (delivered,) = twilio.delivered
        assert (delivered["sid"], delivered["to"], delivered["from"]) == (sid, message.to, FROM_NUMBER)
        assert delivered["body"] == message.text

    async def test_a_later_attempt_looks_first_and_sends_only_what_twilio_has_not(
        self, sms: TwilioSms, twilio: TwilioServer
    ) -> None:
        message = text_message()
        before = datetime.now(UTC) - timedelta(seconds=1)
        sid = await sms.send(message)
        again = msgspec.structs.replace(message, tried_since=before)

        assert await sms.send(again) == sid
        other = msgspec.structs.replace(again, text="New job JB-2 at 2 Main St. Answer by 2:40 PM.")
        elsewhere = msgspec.structs.replace(again, to="+15005550007")
        # The same words, sent long before: another message.
        later = msgspec.structs.replace(message, tried_since=datetime.now(UTC) + timedelta(minutes=10))
        for message in (other, elsewhere, later):
            assert await sms.send(message) != sid

        assert (twilio.looks, len(twilio.delivered)) == (4, 4)

    async def test_what_twilio_could_not_deliver_is_sent_again(self, sms: TwilioSms, twilio: TwilioServer) -> None:
        message = text_message()
        sid = await sms.send(message)
        twilio.delivered[0]["status"] = "failed"

        assert await sms.send(msgspec.structs.replace(message, tried_since=datetime.now(UTC))) != sid

    async def test_a_messaging_service_sends_in_place_of_a_number(self, twilio: TwilioServer) -> None:
        adapter = TwilioSms(account_sid=ACCOUNT_SID, auth_token=AUTH_TOKEN, sender="MG" + "0" * 32, base_url=twilio.url)

        await adapter.send(text_message())
        await adapter.close()

        assert twilio.delivered[0]["from"] is None

    async def test_throttling_says_when_to_come_back(self, sms: TwilioSms, twilio: TwilioServer) -> None:
        twilio.plan(throttle("7"))

        with pytest.raises(TemporarilyFailed, match="429") as caught:
            await sms.send(text_message())

        assert caught.value.retry_after == 7
        assert twilio.delivered == []

    @pytest.mark.parametrize("trouble", [fail(500), fail(503), fail(502, html=True)], ids=["500", "503", "502-html"])
    async def test_a_server_error_is_temporary(self, sms: TwilioSms, twilio: TwilioServer, trouble: Behaviour) -> None:
        twilio.plan(trouble)

        with pytest.raises(TemporarilyFailed, match="Twilio answered 50"):
            await sms.send(text_message())

        assert await sms.send(text_message())

    async def test_a_silent_server_is_left_after_the_timeout(self, sms: TwilioSms, twilio: TwilioServer) -> None:
        twilio.plan(hang(30))
        started = time.monotonic()

        with pytest.raises(TemporarilyFailed, match="did not answer"):
            await sms.send(text_message())

        assert time.monotonic() - started < TIMEOUT_S + 0.5

    async def test_a_dropped_connection_is_temporary(self, sms: TwilioSms, twilio: TwilioServer) -> None:
        twilio.plan(drop())

        with pytest.raises(TemporarilyFailed, match="could not be reached"):
            await sms.send(text_message())

    async def test_nobody_listening_is_temporary(self) -> None:
        async with TwilioServer() as gone:
            url = gone.url
        adapter = TwilioSms(account_sid=ACCOUNT_SID, auth_token=AUTH_TOKEN, sender=FROM_NUMBER, base_url=url)

        with pytest.raises(TemporarilyFailed, match="could not be reached"):
            await adapter.send(text_message())
        await adapter.close()

    @pytest.mark.parametrize(("number", "code"), [(INVALID_NUMBER, "21211"), (UNSUBSCRIBED_NUMBER, "21610")])
    async def test_a_number_that_cannot_be_reached_is_permanent(
        self, sms: TwilioSms, twilio: TwilioServer, number: str, code: str
    ) -> None:
        with pytest.raises(PermanentlyFailed, match=code):
            await sms.send(text_message(number))

        assert twilio.requests == 1

    @pytest.mark.parametrize(
        "wrong",
        [{"auth_token": "wrong"}, {"account_sid": "AC" + "1" * 32}, {"sender": "+15005559999"}, {"path": "/elsewhere"}],
        ids=lambda wrong: next(iter(wrong)),
    )
    async def test_what_the_operator_set_wrong_is_retried_and_named(
        self, twilio: TwilioServer, wrong: dict[str, str]
    ) -> None:
        settings: dict[str, Any] = {"account_sid": ACCOUNT_SID, "auth_token": AUTH_TOKEN, "sender": FROM_NUMBER} | wrong
        adapter = TwilioSms(base_url=twilio.url + settings.pop("path", ""), **settings)

        with pytest.raises(Misconfigured, match="check TWILIO_ACCOUNT_SID"):
            await adapter.send(text_message())
        await adapter.close()

        assert twilio.delivered == []


class TestEmail:
    async def test_success_gives_resends_id(self, email: ResendEmail, resend_server: ResendServer) -> None:
        message = mail()

        id_ = await email.send(message)

        (delivered,) = resend_server.delivered
        assert (delivered["id"], delivered["key"], delivered["to"]) == (id_, str(message.id), [message.to])
        assert (delivered["subject"], delivered["text"], delivered["html"]) == ("New job JB-1", "Hello", "<p>Hello</p>")

    async def test_throttling_says_when_to_come_back(self, email: ResendEmail, resend_server: ResendServer) -> None:
        resend_server.plan(throttle("3"))

        with pytest.raises(TemporarilyFailed, match="rate_limit_exceeded") as caught:
            await email.send(mail())

        assert caught.value.retry_after == 3

    @pytest.mark.parametrize("trouble", [fail(500), fail(503), fail(502, html=True)], ids=["500", "503", "502-html"])
    async def test_a_server_error_is_temporary(
        self, email: ResendEmail, resend_server: ResendServer, trouble: Behaviour
    ) -> None:
        resend_server.plan(trouble)

        with pytest.raises(TemporarilyFailed, match="Resend 50"):
            await email.send(mail())

        assert await email.send(mail())

    async def test_a_silent_server_is_left_after_the_timeout(
        self, email: ResendEmail, resend_server: ResendServer
    ) -> None:
        resend_server.plan(hang(30))
        started = time.monotonic()

        with pytest.raises(TemporarilyFailed, match="did not answer"):
            await email.send(mail())

        assert time.monotonic() - started < TIMEOUT_S + 0.5

    async def test_a_dropped_connection_is_temporary(self, email: ResendEmail, resend_server: ResendServer) -> None:
        resend_server.plan(drop())

        with pytest.raises(TemporarilyFailed, match="could not be reached"):
            await email.send(mail())

    async def test_a_bad_address_is_permanent(self, email: ResendEmail, resend_server: ResendServer) -> None:
        with pytest.raises(PermanentlyFailed, match="validation_error"):
            await email.send(mail("nobody"))

        assert resend_server.delivered == []

    @pytest.mark.parametrize(("key", "path"), [("re_wrong", ""), (API_KEY, "/elsewhere")], ids=["key", "path"])
    async def test_what_the_operator_set_wrong_is_retried_and_named(
        self, resend_server: ResendServer, key: str, path: str
    ) -> None:
        adapter = ResendEmail(api_key=key, sender="a@example.org", base_url=resend_server.url + path)

        with pytest.raises(Misconfigured, match="check RESEND_API_KEY"):
            await adapter.send(mail())
        await adapter.close()

    async def test_a_lost_answer_is_repeated_without_a_second_mail(
        self, email: ResendEmail, resend_server: ResendServer
    ) -> None:
        message = mail()
        resend_server.plan(hang(30, deliver_first=True))

        with pytest.raises(TemporarilyFailed):
            await email.send(message)
        id_ = await email.send(message)

        assert [delivered["id"] for delivered in resend_server.delivered] == [id_]

    async def test_a_mail_taken_before_counts_as_sent_though_its_text_has_changed(
        self, email: ResendEmail, resend_server: ResendServer
    ) -> None:
        message = mail()
        await email.send(message)

        assert await email.send(msgspec.structs.replace(message, subject="New job JB-1, new address")) == ""
        assert len(resend_server.delivered) == 1

    async def test_two_accounts_side_by_side_never_mix(self, resend_server: ResendServer) -> None:
        right = ResendEmail(api_key=API_KEY, sender="a@example.org", base_url=resend_server.url)
        wrong = ResendEmail(api_key="re_wrong", sender="a@example.org", base_url=resend_server.url)

        for _ in range(3):
            assert await right.send(mail())
            with pytest.raises(Misconfigured):
                await wrong.send(mail())
        await right.close()
        await wrong.close()


async def test_without_credentials_every_channel_is_the_outbox() -> None:
    adapters = adapters_from(Settings())

    assert {channel: adapter.name for channel, adapter in adapters.items()} == dict.fromkeys(Channel, "outbox")
    assert all(isinstance(adapter, Outbox) for adapter in adapters.values())
    assert await adapters[Channel.SMS].send(text_message()) == ""


async def test_credentials_connect_their_channel() -> None:
    settings = Settings(
        twilio_account_sid=ACCOUNT_SID,
        twilio_auth_token=AUTH_TOKEN,
        twilio_from=FROM_NUMBER,
        resend_api_key=API_KEY,
        email_from="Fairlead <dispatch@example.org>",
    )

    adapters = adapters_from(settings)

    assert [adapters[Channel.SMS].name, adapters[Channel.EMAIL].name] == ["twilio", "resend"]
    for adapter in adapters.values():
        await adapter.close()


def test_half_a_set_of_credentials_stops_the_start() -> None:
    with pytest.raises(SettingsError, match="TWILIO_FROM"):
        adapters_from(Settings(twilio_account_sid=ACCOUNT_SID, twilio_auth_token=AUTH_TOKEN))
    with pytest.raises(SettingsError, match="EMAIL_FROM"):
        adapters_from(Settings(resend_api_key=API_KEY))


def test_retry_after_is_read_in_both_its_forms() -> None:
    now = datetime(2026, 3, 3, 12, 0, 0, tzinfo=UTC)

    assert retry_after_seconds("30") == 30
    assert retry_after_seconds("Tue, 03 Mar 2026 12:01:00 GMT", now=now) == 60
    assert retry_after_seconds("Tue, 03 Mar 2026 11:00:00 GMT", now=now) == 0
    assert retry_after_seconds("soon") is None
    assert retry_after_seconds(None) is None
