"""Messages from templates: `templates/<locale>/<event>.<channel>.txt`, and one HTML frame for every e-mail.

The HTML is made of the text's paragraphs, so that the two cannot say different things. Rendering depends on the message
alone, never on the clock: a repeated attempt gives the same bytes, which idempotency keys insist on.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import msgspec
from jinja2 import FileSystemLoader, StrictUndefined, select_autoescape
from jinja2.sandbox import ImmutableSandboxedEnvironment

from models.identity.rules import Role
from models.notifications.commands import DueMessage
from models.notifications.rules import Channel
from models.work.rules import WorkKind

TEMPLATES = Path(__file__).parent / "templates"
#: The locale that has every template; others fall back to it.
FALLBACK_LOCALE = "en"
#: Longer parts are cut, so that an address never pushes an SMS over its two segments.
LONGEST_PART = 60

WORK = {
    WorkKind.ENROLLMENT: "enrollment",
    WorkKind.JOB: "job",
    WorkKind.ORDER: "order",
    WorkKind.ROUTE: "route",
}


class Rendered(msgspec.Struct, frozen=True, kw_only=True):
    """`subject` and `html` are empty for SMS."""

    text: str
    subject: str = ""
    html: str = ""


def render(message: DueMessage, channel: Channel, *, app_url: str = "") -> Rendered:
    """The message in the organization's locale and time zone. Raises Jinja's errors."""
    environment = _environment()
    locale = _locale(message.locale)
    template = environment.get_template(f"{locale}/{message.event}.{channel.value}.txt")
    raw = template.render(_context(message, app_url))
    if channel is Channel.SMS:
        return Rendered(text=_one_line(raw))
    first, _, rest = raw.strip().partition("\n")
    subject = _one_line(first.removeprefix("Subject:"))
    paragraphs = [_one_line(paragraph) for paragraph in rest.split("\n\n") if paragraph.strip()]
    html = environment.get_template("email.html").render(
        subject=subject,
        paragraphs=paragraphs,
        organization=message.organization_name,
        app_url=app_url,
        locale=locale,
    )
    foot = [app_url] if app_url else []
    return Rendered(
        text="\n\n".join([*paragraphs, *foot, f"-- \n{_one_line(message.organization_name)}"]) + "\n",
        subject=subject,
        html=html,
    )


def _context(message: DueMessage, app_url: str) -> dict[str, Any]:
    zone = _zone(message.time_zone)
    first_name = _one_line(message.recipient_name or "").split(" ")[0]
    kind = WORK[WorkKind(message.kind)] if message.kind else "work"
    work = _one_line(f"{kind} {message.reference or ''}")
    where = _cut(message.address or "")
    when = _cut(message.timeslot or "") or _clock(message.scheduled_for, zone, with_day=True)
    answer_by = _clock(message.offer_expires_at, zone)
    # With their own commas and spaces, so that a template reads on where one of them is missing.
    return {
        "params": message.params,
        # Drivers and customers hear of the same events; the others are for one kind of reader anyway.
        "for_customer": message.recipient_role == Role.CUSTOMER,
        "hello": f"Hello {first_name}," if first_name else "Hello,",
        "driver": message.driver_label.lower(),
        "reference": message.reference or "Work",
        "missed": message.reference or "an offer",
        "work": work,
        "Work": work[0].upper() + work[1:],
        "where": f" at {where}" if where else "",
        "when": f", {when}" if when else "",
        "details": ": " + ", ".join(filter(None, (where, when))) if where or when else "",
        "answer_by": f" by {answer_by}" if answer_by else " soon",
        "link": f": {app_url}" if app_url else ".",
    }


def _one_line(text: str) -> str:
    # Also keeps a line break in a name from becoming a header of its own.
    return " ".join(text.split())


def _cut(text: str) -> str:
    text = _one_line(text)
    return text if len(text) <= LONGEST_PART else text[: LONGEST_PART - 3].rstrip() + "..."


@cache
def _zone(name: str) -> ZoneInfo:
    try:
        return ZoneInfo(name)
    except (KeyError, ValueError, OSError):  # What ZoneInfo raises for a name it cannot find or read.
        return ZoneInfo("UTC")


@cache
def _locale(name: str) -> str:
    language = name.replace("_", "-").split("-")[0].lower()
    return language if language.isalpha() and (TEMPLATES / language).is_dir() else FALLBACK_LOCALE


def _clock(at: datetime | None, zone: ZoneInfo, *, with_day: bool = False) -> str:
    if at is None:
        return ""
    local = at.astimezone(zone)
    hour = f"{local.hour % 12 or 12}:{local:%M} {'AM' if local.hour < 12 else 'PM'}"
    suffix = " UTC" if zone.key == "UTC" else ""
    return (f"{local:%a}, {local:%b} {local.day}, " if with_day else "") + hour + suffix


def _reasons(counts: str | Mapping[str, int]) -> str:
    """`no_vehicle:2,off_duty:5`, or the same as a mapping, in words: `2 no vehicle, 5 off duty`."""
    if isinstance(counts, str):
        pairs = [(reason, count) for reason, _, count in (part.partition(":") for part in counts.split(","))]
    else:
        pairs = [(reason, str(count)) for reason, count in counts.items()]
    return ", ".join(f"{count} {reason.strip().replace('_', ' ')}".strip() for reason, count in pairs)


@cache
def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=select_autoescape(["html"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
    )
    environment.filters["reasons"] = _reasons
    return environment
