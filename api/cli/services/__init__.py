"""Postgres and Temporal as child processes, from wheels: for `make dev`, the tests and the benchmarks.

A child never outlives us, not even when we are SIGKILLed (Linux; elsewhere the next start clears what was left).
"""

from api.cli.services.ports import PortTakenError, check_port, free_port
from api.cli.services.postgres import EmbeddedPostgres
from api.cli.services.processes import Child, DirectoryLock, ServiceError
from api.cli.services.temporal import SEARCH_ATTRIBUTES, EmbeddedTemporal, time_skipping_server

__all__ = [
    "SEARCH_ATTRIBUTES",
    "Child",
    "DirectoryLock",
    "EmbeddedPostgres",
    "EmbeddedTemporal",
    "PortTakenError",
    "ServiceError",
    "check_port",
    "free_port",
    "time_skipping_server",
]
