"""Every message as people read it, kept as text. `UPDATE_SNAPSHOTS=1` rewrites what is kept; read the difference."""

from __future__ import annotations

import os
import re
from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID

import msgspec
import pytest
from jinja2 import TemplateNotFound

from activities.renderers.messages import TEMPLATES, Rendered, render
from models.notifications.commands import DueMessage
from models.notifications.rules import Channel, Event

SNAPSHOTS = Path(__file__).parent / "snapshots"
APP_URL = "https://go.example.org"
#: What fits one SMS segment without dropping to 70 characters: the GSM 7-bit alphabet, as far as we use it.
GSM_7 = re.compile(r"[A-Za-z0-9 \n@$_!\"#%&'()*+,\-./:;<=>?]*")

MESSAGE = DueMessage(
    id=UUID("018f0000-0000-7000-8000-000000000001"),
    created_at=datetime(2026, 3, 3, 20, 0, tzinfo=UTC),
    organization_id=UUID("018f0000-0000-7000-8000-000000000002"),
    user_id=UUID("018f0000-0000-7000-8000-000000000003"),
    event=Event.OFFER_MADE,
    channel=None,
    attempt=1,
    params={},
    now=datetime(2026, 3, 3, 20, 0, tzinfo=UTC),
    recipient_name="Ada Example",
    recipient_email="ada@example.org",
    recipient_phone="+15005550006",
    recipient_role="driver",
    phone_verified=True,
    recipient_active=True,
    organization_name="Northside Snow & Ice",
    time_zone="America/Chicago",
    locale="en",
    driver_label="Driver",
    work_order_id=UUID("018f0000-0000-7000-8000-000000000004"),
    reference="JB-1042",
    kind="job",
    address="1600 W Lake St, Addison",
    timeslot="2 PM - 4 PM",
    scheduled_for=datetime(2026, 3, 3, 20, 0, tzinfo=UTC),
    offer_expires_at=datetime(2026, 3, 3, 20, 32, tzinfo=UTC),
)
PARAMS = {
    Event.ESCALATION: {"waiting_minutes": 25, "reasons": "off_duty:5,too_far:2"},
    Event.NOBODY_ELIGIBLE: {"reasons": {"off_duty": 5, "missing_skill": 1}},
    Event.LATE_ALERT: {"driver": "DR-1007"},
}


def message(event: Event, **changes: object) -> DueMessage:
    return msgspec.structs.replace(MESSAGE, event=event, **{"params": PARAMS.get(event, {}), **changes})


def as_kept(rendered: Rendered, channel: Channel) -> str:
    if channel is Channel.SMS:
        return rendered.text + "\n"
    return f"Subject: {rendered.subject}\n\n{rendered.text}\n{rendered.html}"


#: Most events have one kind of reader; of these, drivers and customers both hear.
TOLD_TO_CUSTOMERS = (Event.ASSIGNED, Event.COMPLETED, Event.CANCELLED)
READERS = [(event, "") for event in Event] + [(event, "customer") for event in TOLD_TO_CUSTOMERS]


@pytest.mark.parametrize("channel", Channel)
@pytest.mark.parametrize(("event", "reader"), READERS)
def test_the_message_reads_as_kept(event: Event, reader: str, channel: Channel) -> None:
    kept = SNAPSHOTS / ".".join(filter(None, (event.value, reader, channel.value, "txt")))
    told = message(event, recipient_role=reader or "driver")
    text = as_kept(render(told, channel, app_url=APP_URL), channel)
    if os.environ.get("UPDATE_SNAPSHOTS"):
        kept.parent.mkdir(exist_ok=True)
        kept.write_text(text)

    assert text == kept.read_text()


@pytest.mark.parametrize(("event", "reader"), READERS)
def test_a_text_message_fits_one_segment(event: Event, reader: str) -> None:
    text = render(message(event, recipient_role=reader or "driver"), Channel.SMS, app_url=APP_URL).text

    assert len(text) <= 160
    assert GSM_7.fullmatch(text)


@pytest.mark.parametrize("channel", Channel)
@pytest.mark.parametrize("event", Event)
def test_a_message_reads_without_what_may_be_missing(event: Event, channel: Channel) -> None:
    bare = message(
        event,
        params={},
        recipient_name=None,
        kind=None,
        reference=None,
        address=None,
        timeslot=None,
        scheduled_for=None,
        offer_expires_at=None,
        work_order_id=None,
    )

    rendered = render(bare, channel)

    assert "None" not in rendered.text + rendered.subject + rendered.html
    assert not re.search(r" [,.:]|  |^\W", rendered.text)


def test_times_are_the_organizations_own() -> None:
    scheduled = message(Event.ASSIGNED, timeslot=None)

    assert "Tue, Mar 3, 2:00 PM" in render(scheduled, Channel.SMS).text
    tokyo = msgspec.structs.replace(scheduled, time_zone="Asia/Tokyo")
    assert "Wed, Mar 4, 5:00 AM" in render(tokyo, Channel.SMS).text
    nowhere = msgspec.structs.replace(scheduled, time_zone="Mars/Olympus")
    assert "Tue, Mar 3, 8:00 PM UTC" in render(nowhere, Channel.SMS).text


def test_what_people_typed_is_neither_markup_nor_a_header() -> None:
    typed = message(
        Event.OFFER_MADE, address="<script>alert(1)</script>", recipient_name="Bob\nBcc:", reference="JB-1\nX: y"
    )

    rendered = render(typed, Channel.EMAIL)

    assert "<script>" not in rendered.html
    assert "&lt;script&gt;" in rendered.html
    assert "\n" not in rendered.subject


def test_what_people_typed_is_not_a_template() -> None:
    assert "{{ 7 * 7 }}" in render(message(Event.ASSIGNED, address="{{ 7 * 7 }}"), Channel.SMS).text


def test_a_long_address_is_cut() -> None:
    assert len(render(message(Event.OFFER_MADE, address="Long Street " * 50), Channel.SMS).text) < 200


def test_an_unknown_language_falls_back_and_never_leaves_the_folder() -> None:
    english = render(message(Event.ASSIGNED), Channel.SMS)

    for locale in ("fr-CA", "en_GB", "../../x", ""):
        assert render(message(Event.ASSIGNED, locale=locale), Channel.SMS) == english


def test_every_template_belongs_to_an_event() -> None:
    names = {path.name for path in (TEMPLATES / "en").iterdir()}

    assert names == {f"{event.value}.{channel.value}.txt" for event in Event for channel in Channel}
    with pytest.raises(TemplateNotFound):
        render(msgspec.structs.replace(MESSAGE, event="no_such_event"), Channel.SMS)
