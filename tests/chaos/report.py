"""What a run showed, as Markdown that also reads well on a terminal."""

from __future__ import annotations

import os
import platform
from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime

import psutil

from tests.chaos.recovery import HINDERED, percentile
from tests.chaos.run import CONVERGENCE_S, DRIVERS, Result
from tests.chaos.system import LINKS, PARTS

#: What a run of ten minutes is to reach, and shorter ones in proportion.
LIFECYCLES_PER_MINUTE, FAULTS_PER_MINUTE = 30, 60
LEAST_SHARE = 0.1


def verdict(result: Result) -> str:
    """The claim that a run supports. With none found in N, there are fewer than 3/N of a kind with 95% certainty."""
    count, faults = len(result.violations), len(result.faults)
    if count:
        return f"{count} violation{'s' if count > 1 else ''} in {faults} faults"
    return f"0 violations in {faults} faults (95% upper bound {3 / faults:.2%} a fault)"


def markdown(result: Result) -> str:
    options = result.options
    parts = [
        "# Fault run",
        "",
        f"**{verdict(result)}.** Seed {options.seed}, {result.lifecycles} work orders for {DRIVERS} drivers.",
        f"Faults for {result.fault_phase_s / 60:.1f} minutes; {_rest(result)}.",
        "",
        *_machine(),
        "",
        "## Goals",
        "",
        *_goals(result),
        "",
        "## Faults",
        "",
        *_faults(result),
        "",
        "## Operations in flight at the faults",
        "",
        *_in_flight(result),
        "",
        "## Requests",
        "",
        *_requests(result),
        "",
        "## How work ended",
        "",
        *_table(("end", "work orders"), sorted(result.ends.items())),
        "",
        *_table(("offer", "number"), sorted(result.offers.items())),
        "",
        *_table(("message", "number"), sorted(result.messages.items())),
        "",
        f"SMS that reached a phone more often than owed: {result.doubled_texts}. Twilio takes no idempotency key; each",
        "of these lies within reach of a crash or a lost answer, or is listed as a violation.",
        "",
        "## Recovery",
        "",
        "Seconds from the end of a fault (the process started again or going on, the link passing) to the next success",
        "of what it hindered, other faults that fell in between included.",
        "",
        *_recovery(result),
        "",
        *_exits(result),
        "## Violations",
        "",
        *_violations(result),
        "",
    ]
    return "\n".join(parts)


def _rest(result: Result) -> str:
    if result.converged_s is None:
        return f"it did not come to rest: {result.resting}"
    return f"at rest {result.converged_s:.1f} s after the last fault"


def _machine() -> list[str]:
    memory = psutil.virtual_memory().total / 2**30
    return [
        f"{datetime.now(UTC):%Y-%m-%d}, {os.cpu_count()} CPUs, {memory:.0f} GB, {platform.system()}",
        f"{platform.machine()}, Python {platform.python_version()}; load average over the last five minutes",
        f"{os.getloadavg()[1]:.1f}.",
    ]


def _goals(result: Result) -> list[str]:
    minutes = result.options.seconds / 60
    shares = Counter(done.fault.target for done in result.faults)
    least = min(shares[part] for part in PARTS) / len(result.faults)
    links = sum(1 for name in LINKS if shares[name])
    wanted = max(result.options.least_work, LIFECYCLES_PER_MINUTE * minutes)
    rows = [
        ("work orders through their lives", f"{result.lifecycles}", f"{wanted:.0f}", result.lifecycles >= wanted),
        ("faults", f"{len(result.faults)}", f"{FAULTS_PER_MINUTE * minutes:.0f}",
         len(result.faults) >= FAULTS_PER_MINUTE * minutes),
        ("least share of a process", f"{least:.0%}", f"{LEAST_SHARE:.0%}", least >= LEAST_SHARE),
        ("links hit", f"{links}", f"{len(LINKS)}", links == len(LINKS)),
        ("at rest after the last fault", _seconds(result.converged_s), f"{CONVERGENCE_S:.0f} s",
         result.converged_s is not None and result.converged_s <= CONVERGENCE_S),
        ("violations", f"{len(result.violations)}", "0", not result.violations),
    ]  # fmt: skip
    return _table(("what", "reached", "goal", ""), [(*row[:3], "met" if row[3] else "**missed**") for row in rows])


def _seconds(value: float | None) -> str:
    return "never" if value is None else f"{value:.1f} s"


def _faults(result: Result) -> list[str]:
    kinds = sorted({done.fault.kind for done in result.faults})
    count: Counter[tuple[str, str]] = Counter((done.fault.target, done.fault.kind) for done in result.faults)
    total: Counter[str] = Counter(done.fault.target for done in result.faults)
    rows = [
        (target, *(str(count[target, kind] or "") for kind in kinds), str(total[target]),
         f"{total[target] / len(result.faults):.0%}")
        for target in (*PARTS, *LINKS)
    ]  # fmt: skip
    overlapping = sum(
        any(other is not done and other.began_at < done.ended_at and other.ended_at > done.began_at
            for other in result.faults)
        for done in result.faults
    )  # fmt: skip
    note = f"{overlapping} of them overlapped another one."
    if len(result.faults) < len(result.planned):
        note += f" Of {len(result.planned)} planned, {len(result.faults)} were carried out."
    return [*_table(("target", *kinds, "all", "share"), rows), "", note]


def _in_flight(result: Result) -> list[str]:
    by_kind: Counter[str] = Counter()
    open_at: Counter[str] = Counter()
    for done in result.faults:
        by_kind.update(done.in_flight)
        open_at.update(done.open)
    idle = sum(not done.in_flight for done in result.faults)
    number = len(result.faults)
    rows = [(kind, str(count), f"{count / number:.2f}") for kind, count in by_kind.most_common()]
    mean = ", ".join(f"{count / number:.1f} {name.replace('_', ' ')}" for name, count in open_at.items())
    return [
        f"{sum(by_kind.values())} requests in all; at {idle} faults none.",
        f"Open in the system at a fault, on average: {mean}.",
        "",
        *_table(("request", "in flight", "a fault"), rows),
    ]


def _requests(result: Result) -> list[str]:
    outcomes = ("acknowledged", "refused", "unknown")
    rows = [
        (kind, *(str(counts.get(outcome, 0)) for outcome in outcomes))
        for kind, counts in sorted(result.outcomes.items())
    ]
    total = [sum(counts.get(outcome, 0) for counts in result.outcomes.values()) for outcome in outcomes]
    refusals = ", ".join(f"{code} {count}" for code, count in Counter(result.refusals).most_common())
    facts = ", ".join(f"{name.replace('_', ' ')} {count}" for name, count in sorted(result.facts.items()))
    return [
        *_table(("request", *outcomes), [*rows, ("**all**", *(f"**{count}**" for count in total))]),
        "",
        f"Refused with: {refusals or 'nothing'}.",
        "",
        f"Told to clients for certain, and held against the database: {facts}.",
    ]


def _recovery(result: Result) -> list[str]:
    rows = []
    for target, times in result.recoveries.items():
        if times:
            figures = (f"{percentile(times, share):.2f}" for share in (0.5, 0.9, 0.99, 1.0))
            rows.append((target, HINDERED[target], str(len(times)), *figures))
    return _table(("target", "next", "faults", "p50", "p90", "p99", "most"), rows)


def _exits(result: Result) -> list[str]:
    told = [f"- {e.part} {e.ending}: `{(e.tail.splitlines() or [''])[-1][:300]}`" for e in result.exits]
    told += [f"- {part}: {count} graceful ends had to be cut short" for part, count in result.overdue_ends.items()]
    return ["Processes that ended by themselves, and were started again:", "", *told, ""] if told else []


def _violations(result: Result) -> list[str]:
    """A few of each kind; all of them are in the file that `--json` writes."""
    by_check: dict[str, list[str]] = {}
    for violation in result.violations:
        by_check.setdefault(violation.check, []).append(violation.detail)
    told = []
    for check, details in by_check.items():
        told += [f"- **{check}**: {len(details)} times", *(f"  - `{detail[:600]}`" for detail in details[:5])]
    return told or ["None."]


def _table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    cells = [[str(cell) for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in [list(head), *cells]) for i in range(len(head))]

    def line(row: Sequence[str]) -> str:
        return "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"

    return [line(head), "|" + "|".join("-" * (width + 2) for width in widths) + "|", *map(line, cells)]
