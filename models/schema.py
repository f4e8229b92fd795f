"""Every table of the product, so that migrations and tests see the whole schema by one import."""

from models.audit import tables as audit
from models.drivers import tables as drivers
from models.fairness import tables as fairness
from models.idempotency import tables as idempotency
from models.identity import tables as identity
from models.kit.base import metadata
from models.notifications import tables as notifications
from models.offers import tables as offers
from models.organizations import tables as organizations
from models.policies import tables as policies
from models.work import tables as work

__all__ = [
    "audit",
    "drivers",
    "fairness",
    "idempotency",
    "identity",
    "metadata",
    "notifications",
    "offers",
    "organizations",
    "policies",
    "work",
]

#: Tables split by month on `created_at`; a Schedule makes their partitions ahead.
PARTITIONED = tuple(
    table.name for table in metadata.sorted_tables if table.dialect_options["postgresql"]["partition_by"]
)
