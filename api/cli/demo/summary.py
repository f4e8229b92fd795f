"""What became of the morning: shares, waits, and who got what and why. All of it from the API's own answers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

import msgspec
from rich.console import Console
from rich.table import Table
from rich.text import Text

from api.cli.demo.client import Offer, WorkOrder
from api.cli.demo.dispatcher import Dispatcher
from api.cli.demo.morning import ENDED, KINDS, DriverLine, Morning
from models.reports.rules import jain_index

_EXPLAINED: Final = 5
_SOMEBODY: Final = "another driver"
_DID_NOT: Final = "did not take it"
_ENDED_AS: Final = {"rejected": "rejected it", "timeout": "let it pass", "driver_unavailable": "left duty"}


class Share(msgspec.Struct):
    """What one driver was asked and got. `assigned` includes what was assigned without asking."""

    offered: int = 0
    accepted: int = 0
    rejected: int = 0
    #: Let pass until the time was over.
    expired: int = 0
    #: Another driver was quicker, or the work went away.
    missed: int = 0
    assigned: int = 0


def shares(work: Iterable[WorkOrder]) -> dict[str, Share]:
    """By driver id."""
    found: dict[str, Share] = {}
    for offer in (offer for work_order in work for offer in work_order.offers):
        share = found.setdefault(offer.driver_id, Share())
        share.offered += 1
        if offer.status == "accepted":
            share.assigned += 1
            share.accepted += offer.mode not in ("auto", "force")
        elif offer.status == "rejected":
            share.rejected += 1
        elif offer.reason == "timeout":
            share.expired += 1
        else:
            share.missed += 1
    return found


def waits(work: Iterable[WorkOrder], kind: str) -> list[float]:
    """Seconds from creation to assignment, shortest first, of the work of this kind that was assigned."""
    return sorted(
        (work_order.assigned_at - work_order.created_at).total_seconds()
        for work_order in work
        if work_order.kind == kind and work_order.assigned_at is not None
    )


def percentile(ordered: Sequence[float], percent: int) -> float:
    """The value that so many percent do not exceed (nearest rank)."""
    return ordered[max(0, -(-len(ordered) * percent // 100) - 1)]


def worth_explaining(work: Iterable[WorkOrder]) -> list[tuple[WorkOrder, Offer]]:
    """Up to five offers that led to an assignment, as different from one another as there are."""
    found: dict[tuple[str, str, bool], tuple[WorkOrder, Offer]] = {}
    rest: list[tuple[WorkOrder, Offer]] = []
    for work_order in work:
        for offer in work_order.offers:
            if offer.status != "accepted":
                continue
            # A later offer of a sequential round tells more: somebody else was asked before.
            sort = (work_order.kind, offer.mode, offer.mode == "sequential" and offer.sequence > 1)
            if sort in found:
                rest.append((work_order, offer))
            else:
                found[sort] = (work_order, offer)
    return [*found.values(), *reversed(rest)][:_EXPLAINED]


async def summarize(console: Console, morning: Morning, dispatcher: Dispatcher) -> None:
    """Print it. Raises Refused, Unreachable."""
    work = await dispatcher.details()
    by_driver = shares(work)
    console.print()
    console.print(_drivers_table(morning, by_driver))
    _print_fairness(console, morning, by_driver)
    console.print()
    console.print(_waits_table(work))
    console.print(Text("\nWho got what, and why", style="bold"))
    names = {line.driver_id: line.name for line in morning.drivers.values()}
    for work_order, offer in worth_explaining(work):
        explanation = await dispatcher.explanation(offer.id)
        name = names.get(offer.driver_id, _SOMEBODY)
        before = _asked_before(work_order, offer, names)
        _say(console, f"  {work_order.reference} to {name} ({offer.mode}){before}. {explanation.summary}")
    _print_unassigned(console, morning, work)
    console.print()
    _say(console, verdict(morning, work))


def _asked_before(work_order: WorkOrder, offer: Offer, names: dict[str, str]) -> str:
    """`, after Noah Fischer let it pass`; those of a broadcast were all asked at once."""
    told = [
        f"{names.get(earlier.driver_id, _SOMEBODY)} {_ENDED_AS.get(earlier.reason or earlier.status, _DID_NOT)}"
        for earlier in work_order.offers
        if earlier.exclusive and earlier.sequence < offer.sequence
    ]
    return f", after {' and '.join(told)}" if told else ""


def verdict(morning: Morning, work: Sequence[WorkOrder]) -> str:
    done = sum(work_order.status == "completed" for work_order in work)
    others = {status: sum(each.status == status for each in work) for status in ("expired", "cancelled", "disputed")}
    rest = "".join(f", {count} {status}" for status, count in others.items() if count)
    still_open = sum(work_order.status not in ENDED for work_order in work)
    left = f", {still_open} still open" if still_open else ""
    given_up = f" ({len(morning.undeliverable)} declared undeliverable)" if morning.undeliverable else ""
    return f"{len(work)} work orders in {morning.elapsed:.0f} s: {done} completed{rest}{left}{given_up}."


def _drivers_table(morning: Morning, by_driver: dict[str, Share]) -> Table:
    table = Table(
        title="Drivers", title_justify="left", title_style="bold", box=None, padding=(0, 1, 0, 0), header_style="dim"
    )
    table.add_column("driver", no_wrap=True)
    table.add_column("temperament", no_wrap=True)
    for name in ("offered", "accepted", "rejected", "expired", "missed", "assigned"):
        table.add_column(name, justify="right")
    for line in morning.drivers.values():
        share = by_driver.get(line.driver_id, Share())
        table.add_row(line.name, line.temperament, *(str(count) for count in msgspec.structs.astuple(share)))
    return table


def _print_fairness(console: Console, morning: Morning, by_driver: dict[str, Share]) -> None:
    everybody = list(morning.drivers.values())
    present = [line for line in everybody if line.always_there]
    console.print(Text("\nJain's index (1: all had the same; 1/n: one had everything)", style="bold"))
    for title, lines in (("all drivers", everybody), ("on duty the whole time", present)):
        _say(
            console,
            f"  {title} ({len(lines)}): offers {_jain(lines, by_driver, 'offered')}, "
            f"assignments {_jain(lines, by_driver, 'assigned')}",
        )


def _jain(lines: Iterable[DriverLine], by_driver: dict[str, Share], what: str) -> str:
    index = jain_index([getattr(by_driver.get(line.driver_id, Share()), what) for line in lines])
    return "-" if index is None else f"{index:.3f}"


def _waits_table(work: Sequence[WorkOrder]) -> Table:
    table = Table(title="Seconds to assign", title_justify="left", title_style="bold", box=None, header_style="dim")
    table.add_column("kind")
    for name in ("created", "assigned", "p50", "p90", "max"):
        table.add_column(name, justify="right")
    for kind in KINDS:
        seconds = waits(work, kind)
        created = sum(work_order.kind == kind for work_order in work)
        measured = [f"{percentile(seconds, percent):.1f}" for percent in (50, 90, 100)] if seconds else ["-"] * 3
        table.add_row(kind, str(created), str(len(seconds)), *measured)
    return table


def _print_unassigned(console: Console, morning: Morning, work: Iterable[WorkOrder]) -> None:
    unassigned = [work_order for work_order in work if work_order.assigned_driver_id is None]
    if not unassigned:
        return
    console.print(Text("\nNot assigned, and why", style="bold"))
    for work_order in unassigned:
        what = "declared undeliverable" if work_order.id in morning.undeliverable else work_order.status
        reasons = morning.why_nobody(work_order.id)
        asked = f"offered {len(work_order.offers)} times" if work_order.offers else "offered to nobody"
        why = f"; drivers while it waited: {reasons}" if reasons else ""
        _say(console, f"  {work_order.reference}, {work_order.address}: {what}, {asked}{why}")


def _say(console: Console, sentence: str) -> None:
    console.print(sentence, markup=False, highlight=False, soft_wrap=True)
