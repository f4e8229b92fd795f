"""What holds of the audit chain in every database at every commit, as queries that find the rows which break it. They
are quick and see no content: `fairlead audit verify` does."""

from __future__ import annotations

from typing import Final

AUDIT_INVARIANTS: Final[dict[str, str]] = {
    "the numbers of an audit chain have no gap": """
        SELECT organization_id, min(number), max(number), count(*) FROM audit_leaves
        GROUP BY organization_id HAVING min(number) <> 1 OR max(number) <> count(*)""",
    "audit seals follow each other from 1 without a gap, and each carries the hash before it": """
        SELECT organization_id, first_number FROM (
            SELECT *, lag(last_number, 1, CAST(0 AS bigint)) OVER chain AS ended,
                lag(hash, 1, decode(repeat('00', 32), 'hex')) OVER chain AS before
            FROM audit_seals WINDOW chain AS (PARTITION BY organization_id ORDER BY first_number)) s
        WHERE first_number <> ended + 1 OR last_number < first_number OR previous_hash <> before""",
    "audit seals cover the numbers that were given": """
        SELECT organization_id, s.last, l.last FROM
            (SELECT organization_id, max(last_number) AS last FROM audit_seals GROUP BY 1) s
            FULL JOIN (SELECT organization_id, max(number) AS last FROM audit_leaves GROUP BY 1) l
            USING (organization_id)
        WHERE s.last IS DISTINCT FROM l.last""",
    "each number of an audit chain belongs to a row of its organization": """
        SELECT l.audit_id, l.number FROM audit_leaves l
        LEFT JOIN audit_log a ON a.id = l.audit_id AND a.created_at = l.created_at
        WHERE coalesce(a.organization_id, '00000000-0000-0000-0000-000000000000') <> l.organization_id
            OR a.id IS NULL""",
    # 60 s is BEHIND_AFTER_S of the rules. By the snapshot's time: asking all of these may take longer than that.
    "no audit row waits for its seal for over 60 s": """
        SELECT a.id, a.created_at FROM audit_log a
        LEFT JOIN audit_leaves l ON l.audit_id = a.id AND l.created_at = a.created_at
        WHERE l.audit_id IS NULL AND a.created_at < now() - interval '60 s'""",
    "every audit row of a transaction that the sealer has passed has its place": """
        SELECT a.id, a.created_at FROM audit_log a
        JOIN audit_sealer s ON a.transaction_id < s.horizon
        JOIN pg_control_system() here USING (system_identifier)
        LEFT JOIN audit_leaves l ON l.audit_id = a.id AND l.created_at = a.created_at
        WHERE l.audit_id IS NULL""",
}
