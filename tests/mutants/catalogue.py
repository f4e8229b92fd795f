"""The guards that stand between a race, a crash or a stranger and the data, and how each is taken away.

A mutant replaces `guard` by `without` in one file of a copy of the project; `tests` are the behavioural tests that must
then fail. `tests/mutants/test_catalogue.py` holds that each guard still stands where this says.
"""

from __future__ import annotations

from dataclasses import dataclass

MIGRATION = "migrations/versions/0001_first_schema.py"


@dataclass(frozen=True)
class Mutant:
    """`kind` groups the table of results; `name` says what is gone."""

    name: str
    kind: str
    path: str
    guard: str
    without: str
    tests: tuple[str, ...]


MUTANTS = (
    # Constraints: what the database forbids by itself
    Mutant(
        "one exclusive offer per driver",
        "unique index",
        MIGRATION,
        """        "uq_offers_pending_exclusive_driver",
        "offers",
        ["driver_id"],
        unique=True,""",
        """        "uq_offers_pending_exclusive_driver",
        "offers",
        ["driver_id"],
        unique=False,""",
        ("tests/migrations", "-k", "exclusive_offer"),
    ),
    Mutant(
        "one exclusive offer per work order",
        "unique index",
        MIGRATION,
        """        "uq_offers_pending_exclusive_work_order",
        "offers",
        ["work_order_id"],
        unique=True,""",
        """        "uq_offers_pending_exclusive_work_order",
        "offers",
        ["work_order_id"],
        unique=False,""",
        ("tests/migrations", "-k", "exclusive_offer"),
    ),
    Mutant(
        "one open assignment per work order",
        "unique index",
        MIGRATION,
        """        "uq_assignments_open",
        "assignments",
        ["work_order_id"],
        unique=True,""",
        """        "uq_assignments_open",
        "assignments",
        ["work_order_id"],
        unique=False,""",
        ("tests/migrations", "-k", "one_open_assignment"),
    ),
    Mutant(
        "a message of one cause is written once",
        "unique constraint",
        MIGRATION,
        """        sa.UniqueConstraint("dedupe_key", "created_at", name=op.f("uq_notifications_dedupe_key_created_at")),
""",
        "",
        ("tests/notifications/test_commands.py", "-k", "same_cause"),
    ),
    Mutant(
        "a closed offer does not change",
        "trigger",
        MIGRATION,
        'op.execute("CREATE TRIGGER closed_is_closed',
        'str("CREATE TRIGGER closed_is_closed',
        ("tests/migrations", "-k", "closed_offer"),
    ),
    Mutant(
        "journals are append-only",
        "trigger",
        MIGRATION,
        'APPEND_ONLY = ("audit_log", "work_order_events")',
        "APPEND_ONLY = ()",
        ("tests/migrations", "-k", "append_only"),
    ),
    # Locks: who waits for whom
    Mutant(
        "choosing holds the lane",
        "row lock",
        "models/fairness/matching.py",
        "WHERE organization_id = :organization_id FOR NO KEY UPDATE",
        "WHERE organization_id = :organization_id",
        ("tests/fairness/test_matching.py", "-k", "waits_for_the_one_before"),
    ),
    Mutant(
        "a command holds its work order",
        "row lock",
        "models/work/locking.py",
        "FROM work_orders WHERE id = :id FOR NO KEY UPDATE)",
        "FROM work_orders WHERE id = :id)",
        ("tests/work/test_commands.py", "-k", "waits_for_the_one_before"),
    ),
    Mutant(
        "an answer holds the work order of its offer",
        "row lock",
        "models/work/locking.py",
        """    WHERE id = (SELECT work_order_id FROM offers WHERE id = :offer_id AND driver_id = :driver_id)
    FOR NO KEY UPDATE""",
        "    WHERE id = (SELECT work_order_id FROM offers WHERE id = :offer_id AND driver_id = :driver_id)",
        ("tests/offers/test_commands.py", "-k", "same_work or fifty"),
    ),
    Mutant(
        "an answer holds its driver",
        "row lock",
        "models/offers/commands.py",
        "SELECT * FROM driver_dispatch WHERE driver_id = :driver_id FOR NO KEY UPDATE",
        "SELECT * FROM driver_dispatch WHERE driver_id = :driver_id",
        ("tests/offers/test_commands.py", "-k", "same_driver"),
    ),
    Mutant(
        "two relays never lease the same wake",
        "row lock",
        "models/work/wakes.py",
        "    FOR UPDATE SKIP LOCKED\n",
        "",
        ("tests/offers/test_relay.py", "-k", "passes_over"),
    ),
    Mutant(
        "two senders never lease the same message",
        "row lock",
        "models/notifications/commands.py",
        "    FOR UPDATE SKIP LOCKED\n",
        "",
        ("tests/notifications", "-k", "two_senders or one_sender"),
    ),
    Mutant(
        "one refresh at a time in a family",
        "advisory lock",
        "models/identity/commands.py",
        "    await session.run(select(func.pg_advisory_xact_lock(func.hashtextextended(str(family), 0))))\n",
        "",
        ("tests/identity/test_auth.py", "-k", "fifty_refreshes"),
    ),
    # Guarded updates and checks under the lock
    Mutant(
        "an expired offer is not accepted",
        "check under lock",
        "models/offers/commands.py",
        """        raise refusal
    if offer.expires_at <= offer.now:
        raise OfferExpired
    policy = await policy_by_id(session, offer.policy_id)""",
        """        raise refusal
    policy = await policy_by_id(session, offer.policy_id)""",
        ("tests/offers/test_commands.py", "-k", "late_answer or racing_expiry"),
    ),
    Mutant(
        "a driver at capacity takes no more",
        "check under lock",
        "models/offers/commands.py",
        """    if offer.active_count >= policy.most_held:
        raise DriverBusy
""",
        "",
        ("tests/offers/test_commands.py",),
    ),
    Mutant(
        "a failure counts only for who holds the lease",
        "guarded update",
        "models/notifications/commands.py",
        "  AND (n.status = 'sending' AND n.attempt = o.attempt OR",
        "  AND (n.status = 'sending' OR",
        ("tests/notifications/test_commands.py", "-k", "late_report"),
    ),
    Mutant(
        "a change names the version it was made from",
        "version check",
        "models/work/details.py",
        """    if work_order.version != expected_version:
        raise PreconditionFailed(version=work_order.version)
""",
        "",
        ("tests/work/test_actions_api.py", "-k", "version"),
    ),
    Mutant(
        "a refresh token works once",
        "reuse check",
        "models/identity/commands.py",
        """        if not answer_was_lost:
            await _revoke_family(session, account, family, why="REFRESH_TOKEN_REUSED")
            return None
""",
        "",
        ("tests/identity/test_auth.py", "-k", "works_once or theft"),
    ),
    # Sequences and what is owed
    Mutant(
        "a wake raised while one is sent stays owed",
        "sequence check",
        "models/work/wakes.py",
        "SET sent_seq = greatest(k.sent_seq, sent.seq), claimed_until",
        "SET sent_seq = k.seq, claimed_until",
        ("tests/offers/test_relay.py", "-k", "stays_owed"),
    ),
    Mutant(
        "creation raises a wake in its own transaction",
        "outbox",
        "models/work/wakes.py",
        "    session.before_commit(TOPIC, write)\n",
        "",
        ("tests/offers/test_relay.py", "tests/work/test_commands.py"),
    ),
    Mutant(
        "decisions are numbered without a gap",
        "sequence check",
        "models/fairness/matching.py",
        "    number = turn.lane.last_number + 1\n",
        "    number = turn.lane.last_number + 2\n",
        ("tests/fairness/test_matching.py", "-k", "fairness_order"),
    ),
    # Kept answers
    Mutant(
        "one answer is kept under a key",
        "primary key",
        "migrations/versions/0002_idempotency_keys.py",
        """        sa.PrimaryKeyConstraint(
            "organization_id", "caller_id", "method", "route", "key", name=op.f("pk_idempotency_keys")
        ),
""",
        "",
        ("tests/idempotency/test_concurrency.py", "-k", "commits_as_the_second_begins"),
    ),
    Mutant(
        "a second request waits for nothing while the first is in flight",
        "advisory lock",
        "models/idempotency/commands.py",
        """        if not row.is_ours:
            raise IdempotencyInProgress()
""",
        "",
        ("tests/idempotency/test_concurrency.py", "-k", "in_flight"),
    ),
    Mutant(
        "a key stands for one request",
        "fingerprint",
        "models/idempotency/commands.py",
        """    if row.fingerprint != request.fingerprint:
        raise IdempotencyKeyReused()
""",
        "",
        ("tests/idempotency/test_replay.py", "-k", "one_request or one_offer"),
    ),
    Mutant(
        "a kept refusal leaves nothing of what was done before it",
        "savepoint",
        "api/idempotency.py",
        """        if refused:
            await self._session.undo()
""",
        "",
        ("tests/idempotency/test_concurrency.py", "-k", "done_before_it"),
    ),
    # The audit chain
    Mutant(
        "a row is sealed once all transactions before its own have ended",
        "snapshot",
        "models/audit/sealing.py",
        "look, start, until = None, state.horizon, state.oldest_running",
        "look, start, until = None, state.horizon, _HIGHEST_TRANSACTION",
        ("tests/audit/test_sealing.py", "-k", "long_transaction or roll_back or two_sealers"),
    ),
    Mutant(
        "a seal is signed",
        "signature",
        "models/audit/verification.py",
        "elif not key.signed(seal.hash, seal.signature):",
        "elif False:",
        ("tests/audit/test_rules.py", "tests/audit/test_tampering.py"),
    ),
    # What the fault runs found
    Mutant(
        "a connection with an unfinished transaction is thrown away",
        "connection check",
        "models/kit/database.py",
        '        event.listen(self.engine.sync_engine, "checkout", refuse_unfinished)\n',
        "",
        ("tests/database",),
    ),
    Mutant(
        "an outage longer than the quick way is waited out",
        "workflow",
        "workflows/offers.py",
        "        except FailureError as error:\n",
        "        except TimeoutError as error:\n",
        ("tests/offers/test_replay.py", "-k", "outage"),
    ),
    Mutant(
        "parked work does not stand in the lane",
        "parking",
        "models/fairness/candidates.py",
        "    AND NOT w.id = ANY(ARRAY(SELECT work_order_id FROM stuck_work WHERE parked_at IS NOT NULL))\n",
        "",
        ("tests/offers/test_poison.py",),
    ),
    Mutant(
        "work that is open again after a restore gets its workflow",
        "reuse policy",
        "workflows/relay.py",
        "                if row.status in ENDED\n",
        "                if row.status\n",
        ("tests/invariants/test_workflows.py",),
    ),
    # Tenants
    Mutant(
        "a scope covers its own organization",
        "tenant filter",
        "models/organizations/scope.py",
        """        if self.reach == "own":
            return column == self.organization_id
""",
        """        if self.reach == "own":
            return true()
""",
        ("tests/work/test_api.py", "-k", "another_tenant"),
    ),
    Mutant(
        "an offer is answered by its own driver",
        "owner filter",
        "models/work/locking.py",
        "FROM offers WHERE id = :offer_id AND driver_id = :driver_id)\n    FOR NO KEY UPDATE",
        "FROM offers WHERE id = :offer_id AND :driver_id::uuid IS NOT NULL)\n    FOR NO KEY UPDATE",
        ("tests/offers/test_api.py", "tests/offers/test_commands.py"),
    ),
)
