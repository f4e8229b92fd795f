"""Eligibility, ranking and the decision record: pure properties, over whatever hypothesis comes up with."""

from __future__ import annotations

import random
import re
from uuid import UUID

import msgspec
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from models.fairness.explain import distance, duration, explain
from models.fairness.records import (
    SALT_BYTES,
    Header,
    body_hash,
    chain_hash,
    leaf,
    make_record,
    outcome,
    read_record,
    replay,
    replays,
    verify_body,
)
from models.fairness.rules import (
    RULE_VERSION,
    RULES,
    SECOND,
    Candidate,
    Exclusion,
    Work,
    choose,
    is_busy,
    lapse_ends_at,
)
from models.policies.rules import DEFAULTS, Mode, Policy, RankingName, Weights
from models.work.rules import WorkKind

#: 2026-01-05 08:00 UTC.
NOW = 1_767_600_000 * SECOND
DAY_S = 86_400
settings.register_profile("frugal", deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
frugal = settings(settings.get_profile("frugal"))

SKILLS = ("crane", "gas", "heights")
instants = st.one_of(st.none(), st.integers(NOW - 400 * DAY_S * SECOND, NOW))
driver_ids = st.integers(0, 2**128 - 1).map(lambda number: str(UUID(int=number)))


@st.composite
def policies(draw: st.DrawFn, **fixed: object) -> Policy:
    values = {
        "mode": Mode.SEQUENTIAL,
        "offer_ttl_s": 60,
        "offer_ttl_max_s": 60,
        "busy_fallback": draw(st.booleans()),
        "require_heartbeat": draw(st.booleans()),
        "radius_km": draw(st.one_of(st.none(), st.floats(0.5, 300))),
        "ranking": draw(st.sampled_from(RankingName)),
        "weights": Weights(fairness=draw(st.integers(0, 1000)), distance=draw(st.integers(0, 1000))),
        "reject_memory": draw(st.booleans()),
        "lapse_pause_s": draw(st.integers(1, 900)),
        "capacity": draw(st.integers(1, 3)),
    }
    return Policy(**(values | fixed))


@st.composite
def works(draw: st.DrawFn) -> Work:
    return Work(
        work_order_id="w",
        kind="job",
        priority=draw(st.integers(0, 9)),
        round=draw(st.integers(1, 5)),
        required_skills=tuple(sorted(draw(st.sets(st.sampled_from(SKILLS), max_size=1)))),
        required_vehicle_type=draw(st.sampled_from([None, None, None, "truck"])),
        has_location=draw(st.booleans()),
    )


@st.composite
def candidates(draw: st.DrawFn, driver_id: str | None = None) -> Candidate:
    lapses = draw(st.integers(0, 3))
    return Candidate(
        driver_id or draw(driver_ids),
        draw(instants),
        draw(instants),
        active_count=draw(st.integers(0, 3)),
        staff_busy=draw(st.sampled_from([False, False, False, True])),
        has_offer=draw(st.sampled_from([False, False, False, True])),
        skills=draw(st.sampled_from([SKILLS, (), ("crane",)])),
        vehicle_type=draw(st.sampled_from([None, "truck", "van"])),
        already_offered=draw(st.sampled_from([False, False, False, True])),
        rejected=draw(st.sampled_from([False, False, False, True])),
        lapses=lapses,
        lapsed_at=draw(st.integers(NOW - 3600 * SECOND, NOW)) if lapses else None,
        seen_at=draw(st.one_of(st.none(), st.integers(NOW - 120 * SECOND, NOW))),
        distance_m=draw(st.one_of(st.none(), st.integers(0, 400_000))),
        service_radius_m=draw(st.one_of(st.none(), st.integers(1_000, 200_000))),
    )


crowds = st.lists(candidates(), max_size=9, unique_by=lambda c: c.driver_id)


def make_header(policy: Policy, work: Work, crowd: list[Candidate], *, number: int = 1) -> Header:
    choice = choose(policy, work, NOW, crowd)
    order, excluded = outcome(choice, crowd)
    return Header(
        number=number,
        organization_id="o",
        rule_version=RULE_VERSION,
        policy_id="p",
        policy_version=1,
        policy=policy,
        now=NOW,
        work=work,
        action="offer" if order else "nobody",
        chosen=1 if order else 0,
        order=order,
        excluded=excluded,
    )


# The order


@frugal
@given(policies(), works(), crowds, st.randoms(use_true_random=False))
def test_the_order_is_total_and_does_not_depend_on_how_the_candidates_came(
    policy: Policy, work: Work, crowd: list[Candidate], rng: random.Random
) -> None:
    choice = choose(policy, work, NOW, crowd)
    shuffled = list(crowd)
    rng.shuffle(shuffled)
    again = choose(policy, work, NOW, shuffled)
    assert again.order == choice.order
    assert sorted(again.excluded) == sorted(choice.excluded)


@frugal
@given(policies(), works(), crowds)
def test_every_candidate_is_either_ranked_or_excluded_for_a_reason(
    policy: Policy, work: Work, crowd: list[Candidate]
) -> None:
    choice = choose(policy, work, NOW, crowd)
    excluded = [driver_id for driver_id, _ in choice.excluded]
    assert sorted([*choice.order, *excluded]) == sorted(c.driver_id for c in crowd)
    assert sum(choice.reasons().values()) == len(excluded)


@frugal
@given(policies(), works(), crowds)
def test_available_drivers_come_before_busy_ones_and_busy_ones_only_with_the_fallback(
    policy: Policy, work: Work, crowd: list[Candidate]
) -> None:
    by_id = {c.driver_id: c for c in crowd}
    busy = [is_busy(policy, by_id[driver_id]) for driver_id in choose(policy, work, NOW, crowd).order]
    assert busy == sorted(busy)
    if not policy.busy_fallback:
        assert not any(busy)
    assert all(by_id[i].active_count < policy.most_held for i in choose(policy, work, NOW, crowd).order)


@frugal
@given(policies(ranking=RankingName.FAIR), works(), crowds)
def test_the_fair_order_is_never_assigned_then_longest_in_line_then_longest_not_asked(
    policy: Policy, work: Work, crowd: list[Candidate]
) -> None:
    by_id = {c.driver_id: c for c in crowd}
    ranked = [by_id[driver_id] for driver_id in choose(policy, work, NOW, crowd).order]
    keys = [
        (is_busy(policy, c), c.queue_at is not None, c.queue_at or 0, c.last_offered_at is not None,
         c.last_offered_at or 0, c.driver_id)
        for c in ranked
    ]  # fmt: skip
    assert keys == sorted(keys)


@frugal
@given(policies(ranking=RankingName.NEAREST, busy_fallback=False), works(), crowds)
def test_nearest_puts_distance_first_and_the_unknown_last(policy: Policy, work: Work, crowd: list[Candidate]) -> None:
    by_id = {c.driver_id: c for c in crowd}
    away = [by_id[driver_id].distance_m for driver_id in choose(policy, work, NOW, crowd).order]
    assert away == sorted(away, key=lambda metres: (metres is None, metres or 0))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"skills": ()}, Exclusion.MISSING_SKILL),
        ({"vehicle_type": "van"}, Exclusion.WRONG_VEHICLE),
        ({"rejected": True}, Exclusion.REJECTED),
        ({"already_offered": True}, Exclusion.ALREADY_OFFERED),
        ({"lapses": 1, "lapsed_at": NOW - 299 * SECOND}, Exclusion.LAPSE_PAUSE),
        ({"has_offer": True}, Exclusion.HAS_OFFER),
        ({"active_count": 1}, Exclusion.BUSY),
        ({"staff_busy": True}, Exclusion.BUSY),
        ({"seen_at": NOW - 61 * SECOND}, Exclusion.SILENT),
        ({"seen_at": None}, Exclusion.SILENT),
        ({"distance_m": 25_001}, Exclusion.OUT_OF_RADIUS),
        ({"distance_m": None}, Exclusion.OUT_OF_RADIUS),
        ({"distance_m": 5_001, "service_radius_m": 5_000}, Exclusion.OUT_OF_RADIUS),
        ({"lapses": 1, "lapsed_at": NOW - 300 * SECOND}, None),
        ({"seen_at": NOW - 60 * SECOND, "distance_m": 25_000}, None),
    ],
)
def test_each_reason_keeps_a_driver_out(changes: dict[str, object], reason: Exclusion | None) -> None:
    policy = DEFAULTS[WorkKind.JOB]
    work = Work(
        work_order_id="w", kind="job", priority=5, round=1, required_skills=("crane",), required_vehicle_type="truck",
        has_location=True,
    )  # fmt: skip
    fit = Candidate("d", None, None, skills=("crane",), vehicle_type="truck", seen_at=NOW, distance_m=10)
    driver = msgspec.structs.replace(fit, **changes)
    choice = choose(policy, work, NOW, [driver])
    assert choice.excluded == ((("d", reason),) if reason else ())
    assert choice.order == (() if reason else ("d",))


def test_without_reject_memory_a_reject_counts_for_its_round_only() -> None:
    policy = msgspec.structs.replace(DEFAULTS[WorkKind.ENROLLMENT], reject_memory=False)
    work = Work(work_order_id="w", kind="enrollment", priority=5, round=2)
    driver = Candidate("d", None, None, rejected=True)
    assert choose(policy, work, NOW, [driver]).order == ("d",)
    assert choose(policy, work, NOW, [msgspec.structs.replace(driver, already_offered=True)]).order == ()


@given(st.integers(1, 900), st.integers(1, 19))
def test_the_lapse_pause_doubles_with_every_lapse(pause_s: int, lapses: int) -> None:
    policy = msgspec.structs.replace(DEFAULTS[WorkKind.JOB], lapse_pause_s=pause_s)

    def pause(count: int) -> int:
        ends = lapse_ends_at(policy, Candidate("d", None, None, lapses=count, lapsed_at=NOW))
        assert ends is not None
        return ends - NOW

    assert pause(1) == pause_s * SECOND
    assert pause(lapses + 1) == 2 * pause(lapses)
    assert lapse_ends_at(policy, Candidate("d", None, None)) is None


# Nobody is starved, and nobody loses by being away

QUIET = Work(work_order_id="w", kind="enrollment", priority=5, round=1)


def serve(policy: Policy, drivers: dict[str, Candidate], now: int, *, away: frozenset[str] = frozenset()) -> str:
    """One assignment: the best-ranked of those present takes it and goes to the end of the line."""
    first = choose(policy, QUIET, now, [c for i, c in drivers.items() if i not in away]).order[0]
    drivers[first] = msgspec.structs.replace(drivers[first], queue_at=now, last_offered_at=now)
    return first


def a_crowd(rng: random.Random, size: int, *, furthest_m: int | None) -> dict[str, Candidate]:
    return {
        f"d{i}": Candidate(
            f"d{i}",
            None if rng.random() < 0.2 else NOW - rng.randrange(30 * DAY_S) * SECOND,
            None,
            distance_m=None
            if furthest_m is None and rng.random() < 0.5
            else rng.randrange(1 + (furthest_m or 20_000_000)),
        )
        for i in range(size)
    }


@frugal
@given(st.randoms(use_true_random=False), st.integers(1, 12))
def test_under_fair_every_driver_is_chosen_once_before_anybody_is_twice(rng: random.Random, size: int) -> None:
    policy = msgspec.structs.replace(DEFAULTS[WorkKind.ENROLLMENT], ranking=RankingName.FAIR)
    drivers = a_crowd(rng, size, furthest_m=50_000)
    chosen = [serve(policy, drivers, NOW + step * SECOND) for step in range(3 * size)]
    for turn in range(3):
        assert sorted(chosen[turn * size : (turn + 1) * size]) == sorted(drivers)


@frugal
@given(st.randoms(use_true_random=False), st.integers(2, 8), st.integers(1, 1000), st.integers(0, 1000))
def test_under_weighted_with_a_fairness_weight_every_turn_comes_within_a_bound(
    rng: random.Random, size: int, fairness: int, away: int
) -> None:
    """However far they are, known or unknown: once somebody has waited longer than distance can outweigh, and the
    others' turns have passed, it is theirs."""
    policy = msgspec.structs.replace(
        DEFAULTS[WorkKind.ENROLLMENT], ranking=RankingName.WEIGHTED, weights=Weights(fairness=fairness, distance=away)
    )
    drivers = a_crowd(rng, size, furthest_m=None)
    # Seconds in line that make up for the whole way round the earth.
    outweighs_s = 20_037_508 * away // fairness + 1
    step_s = max(60, outweighs_s // 20)
    bound = outweighs_s // step_s + 3 * size + 1
    now, waiting = NOW, dict.fromkeys(drivers, 0)
    for _ in range(2 * bound):
        now += step_s * SECOND
        first = serve(policy, drivers, now)
        waiting = {driver_id: 0 if driver_id == first else n + 1 for driver_id, n in waiting.items()}
        assert max(waiting.values()) <= bound, waiting


@frugal
@given(st.randoms(use_true_random=False), st.integers(2, 8), st.integers(1, 20))
def test_being_away_never_lowers_a_rank(rng: random.Random, size: int, rounds: int) -> None:
    """Break, off, no heartbeat: the rounds go on without them. Their rank afterwards is no worse than had they been
    there without being assigned; and whoever was assigned meanwhile stands behind them."""
    policy = DEFAULTS[WorkKind.ENROLLMENT]
    drivers = a_crowd(rng, size, furthest_m=50_000)
    absent = rng.choice(sorted(drivers))
    before = choose(policy, QUIET, NOW, list(drivers.values())).order.index(absent)
    served = {serve(policy, drivers, NOW + (step + 1) * SECOND, away=frozenset({absent})) for step in range(rounds)}
    order = choose(policy, QUIET, NOW + (rounds + 1) * SECOND, list(drivers.values())).order
    assert order.index(absent) <= before
    assert all(order.index(absent) < order.index(other) for other in served)


free_crowds = st.lists(
    st.builds(Candidate, driver_ids, instants, instants), min_size=2, unique_by=lambda c: c.driver_id
)


@frugal
@given(free_crowds, st.data())
def test_a_timeout_or_third_rejection_moves_a_driver_to_the_end(crowd: list[Candidate], data: st.DataObject) -> None:
    """Both set `queue_at` to now: among the drivers who are free, that is the last place."""
    policy = DEFAULTS[WorkKind.ENROLLMENT]
    choice = choose(policy, QUIET, NOW, crowd)
    lapsed = data.draw(st.sampled_from(choice.order))
    moved = [msgspec.structs.replace(c, queue_at=NOW + SECOND) if c.driver_id == lapsed else c for c in crowd]
    after = choose(policy, QUIET, NOW + SECOND, moved).order
    assert after == (*(i for i in choice.order if i != lapsed), lapsed)


# The record


@frugal
@given(policies(), works(), crowds)
def test_a_recorded_decision_replays_from_its_own_bytes(policy: Policy, work: Work, crowd: list[Candidate]) -> None:
    header = make_header(policy, work, crowd)
    made = make_record(header, crowd, b"")
    header_again, crowd_again = read_record(made.header, made.candidates)
    assert header_again == header
    assert crowd_again == crowd
    assert replays(header_again, crowd_again)
    assert replay(header_again, crowd_again) == choose(policy, work, NOW, crowd)
    assert verify_body(made.header, made.candidates, made.salts, made.body_hash)


def test_every_rule_version_ever_shipped_stays_callable() -> None:
    assert sorted(RULES) == list(range(1, RULE_VERSION + 1))


@frugal
@given(policies(), works(), crowds, st.data())
def test_another_order_or_reason_does_not_replay(
    policy: Policy, work: Work, crowd: list[Candidate], data: st.DataObject
) -> None:
    header = make_header(policy, work, crowd)
    if len(header.order) > 1:
        i = data.draw(st.integers(0, len(header.order) - 2))
        order = list(header.order)
        order[i], order[i + 1] = order[i + 1], order[i]
        assert not replays(msgspec.structs.replace(header, order=tuple(order)), crowd)
    if header.order:
        assert not replays(msgspec.structs.replace(header, order=header.order[1:]), crowd)
    if header.excluded:
        (position, reason), *others = header.excluded
        other = data.draw(st.sampled_from([r for r in Exclusion if r is not reason]))
        assert not replays(msgspec.structs.replace(header, excluded=((position, other), *others)), crowd)


@frugal
@given(policies(), works(), crowds.filter(bool), st.data())
def test_any_changed_value_of_any_candidate_breaks_the_hash(
    policy: Policy, work: Work, crowd: list[Candidate], data: st.DataObject
) -> None:
    made = make_record(make_header(policy, work, crowd), crowd, b"")
    i = data.draw(st.integers(0, len(crowd) - 1))
    other = data.draw(candidates(driver_id=data.draw(st.sampled_from([crowd[i].driver_id, "x"]))))
    assume(other != crowd[i])
    tampered = msgspec.json.encode([*crowd[:i], other, *crowd[i + 1 :]])
    assert not verify_body(made.header, tampered, made.salts, made.body_hash)


@pytest.mark.parametrize(
    "changes",
    [{"queue_at": 1}, {"has_offer": True}, {"active_count": 2}, {"already_offered": True}, {"rejected": True}],
)
def test_a_changed_value_that_mattered_does_not_replay(changes: dict[str, object]) -> None:
    policy = DEFAULTS[WorkKind.ENROLLMENT]
    crowd = [Candidate("a", NOW - 9 * SECOND, None), Candidate("b", NOW - 5 * SECOND, None)]
    header = make_header(policy, QUIET, crowd)
    i = 1 if "queue_at" in changes else 0
    crowd[i] = msgspec.structs.replace(crowd[i], **changes)
    assert not replays(header, crowd)


@frugal
@given(candidates(), st.binary(min_size=SALT_BYTES, max_size=SALT_BYTES), st.data())
def test_leaf_body_and_chain_change_with_any_byte(candidate: Candidate, salt: bytes, data: st.DataObject) -> None:
    def flipped(value: bytes) -> bytes:
        i = data.draw(st.integers(0, len(value) - 1))
        return value[:i] + bytes([value[i] ^ 1 << data.draw(st.integers(0, 7))]) + value[i + 1 :]

    one = leaf(salt, candidate)
    assert leaf(flipped(salt), candidate) != one
    header = b'{"number":1}'
    body = body_hash(header, [one, b"2" * 32])
    assert body_hash(flipped(header), [one, b"2" * 32]) != body
    assert body_hash(header, [flipped(one), b"2" * 32]) != body
    assert body_hash(header, [b"2" * 32, one]) != body
    assert body_hash(header, [one]) != body
    link = chain_hash(b"0" * 32, 7, body)
    assert chain_hash(flipped(b"0" * 32), 7, body) != link
    assert chain_hash(b"0" * 32, 8, body) != link
    assert chain_hash(b"0" * 32, 7, flipped(body)) != link


def test_the_same_values_under_two_salts_have_nothing_in_common() -> None:
    """So a leaf that stays after an erasure cannot be guessed back from a driver's likely values."""
    crowd = [Candidate("a", NOW, None)]
    header = make_header(DEFAULTS[WorkKind.ENROLLMENT], QUIET, crowd)
    assert make_record(header, crowd, b"").body_hash != make_record(header, crowd, b"").body_hash


# The explanation

_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")


@frugal
@given(policies(), works(), crowds, st.sampled_from(["offer", "broadcast", "auto"]))
def test_every_ranked_driver_gets_an_explanation_whose_numbers_come_from_the_record(
    policy: Policy, work: Work, crowd: list[Candidate], action: str
) -> None:
    # Somebody whom nothing keeps out, so that there is always a ranking to explain.
    crowd = [
        *crowd,
        Candidate(
            "zz-free", NOW - 7 * SECOND, None, skills=work.required_skills, vehicle_type=work.required_vehicle_type,
            seen_at=NOW, distance_m=0,
        ),
    ]  # fmt: skip
    header = msgspec.structs.replace(make_header(policy, work, crowd), action=action)
    assert header.order
    counts = {str(n) for n in range(len(crowd) + 1)}
    for place, i in enumerate(header.order, start=1):
        chosen = crowd[i]
        explanation = explain(header, crowd, chosen.driver_id)
        assert (explanation.position, explanation.candidates_considered) == (place, len(crowd))
        assert sum(e.count for e in explanation.excluded) == len(header.excluded)
        known = set(counts)
        for said in (
            *(duration((NOW - at) // SECOND) for at in (chosen.queue_at, chosen.last_offered_at) if at is not None),
            *([distance(chosen.distance_m)] if chosen.distance_m is not None else []),
            str(chosen.active_count),
            str(policy.weights.fairness),
            str(policy.weights.distance),
            *(str(f.value) for f in explanation.factors if f.name == "score"),
        ):
            known |= set(_NUMBER.findall(said))
        for sentence in (explanation.summary, *(factor.text for factor in explanation.factors)):
            # "- 3 x metres" is a minus between, not a sign.
            assert set(_NUMBER.findall(sentence.replace("- ", ""))) <= known, sentence


@frugal
@given(policies(), works(), crowds)
def test_who_was_not_ranked_has_no_explanation_as_the_chosen_one(
    policy: Policy, work: Work, crowd: list[Candidate]
) -> None:
    header = make_header(policy, work, crowd)
    for i, _ in header.excluded:
        with pytest.raises(ValueError, match="does not rank"):
            explain(header, crowd, crowd[i].driver_id)
