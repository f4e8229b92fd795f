"""How long we try, and which channel reaches whom."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.notifications.rules import (
    BACK_OFF_S,
    MAX_ATTEMPTS,
    Channel,
    Event,
    choose_channel,
    retry_delay,
    too_late,
)

NOW = datetime(2026, 3, 3, 12, 0, tzinfo=UTC)


def test_eight_attempts_span_about_an_hour() -> None:
    delays = [retry_delay(attempt) for attempt in range(1, MAX_ATTEMPTS)]

    assert MAX_ATTEMPTS == 8
    assert delays == list(BACK_OFF_S)
    assert 3000 < sum(BACK_OFF_S) < 3900
    assert list(BACK_OFF_S) == sorted(BACK_OFF_S)


def test_the_last_attempt_has_no_successor_whatever_the_provider_says() -> None:
    assert retry_delay(MAX_ATTEMPTS) is None
    assert retry_delay(MAX_ATTEMPTS, 5) is None
    assert retry_delay(MAX_ATTEMPTS + 3) is None


@given(attempt=st.integers(1, MAX_ATTEMPTS - 1), named=st.floats(0, 1e9))
def test_a_provider_is_taken_at_its_word_within_a_second_and_an_hour(attempt: int, named: float) -> None:
    delay = retry_delay(attempt, named)

    assert delay is not None
    assert 1 <= delay <= 3600
    assert delay == named or not 1 <= named <= 3600


@pytest.mark.parametrize(
    ("event", "email", "phone", "verified", "chosen"),
    [
        (Event.OFFER_MADE, "d@example.org", "+15005550006", True, Channel.SMS),
        (Event.OFFER_MADE, "d@example.org", "+15005550006", False, Channel.EMAIL),
        (Event.OFFER_MADE, "d@example.org", None, False, Channel.EMAIL),
        (Event.OFFER_MADE, None, "+15005550006", False, None),
        (Event.OFFER_MADE, None, None, False, None),
        (Event.ESCALATION, "d@example.org", "+15005550006", True, Channel.EMAIL),
        (Event.ESCALATION, None, "+15005550006", True, Channel.SMS),
    ],
)
def test_the_channel_suits_the_event_and_sms_needs_a_verified_phone(
    event: Event, email: str | None, phone: str | None, verified: bool, chosen: Channel | None
) -> None:
    assert choose_channel(event, email=email, phone=phone, phone_verified=verified) is chosen


def test_a_connected_channel_is_preferred_to_one_that_ends_in_the_outbox() -> None:
    def chosen(connected: set[Channel]) -> Channel | None:
        return choose_channel(
            Event.OFFER_MADE,
            email="d@example.org",
            phone="+15005550006",
            phone_verified=True,
            connected=frozenset(connected),
        )

    assert chosen({Channel.EMAIL}) is Channel.EMAIL
    assert chosen(set()) is Channel.SMS


def test_an_offer_is_not_announced_once_its_time_is_up() -> None:
    before, after = NOW - timedelta(seconds=1), NOW + timedelta(seconds=1)

    assert too_late(Event.OFFER_MADE, now=NOW, offer_expires_at=before)
    assert not too_late(Event.OFFER_MADE, now=NOW, offer_expires_at=after)
    assert not too_late(Event.OFFER_WITHDRAWN, now=NOW, offer_expires_at=before)
    assert not too_late(Event.OFFER_MADE, now=NOW, offer_expires_at=None)
