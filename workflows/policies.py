"""Named time-outs and retries, each in one place."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from temporalio.common import RetryPolicy

#: A short database transaction, run inside the workflow task: cheap, but it must not sit there during an outage.
QUICK: dict[str, Any] = {
    "start_to_close_timeout": timedelta(seconds=5),
    "schedule_to_close_timeout": timedelta(seconds=15),
    "retry_policy": RetryPolicy(
        initial_interval=timedelta(milliseconds=100), maximum_interval=timedelta(seconds=1), maximum_attempts=3
    ),
}
#: The same transaction when the quick way failed: as a regular activity it waits out any outage.
PATIENT: dict[str, Any] = {
    "start_to_close_timeout": timedelta(seconds=10),
    "retry_policy": RetryPolicy(initial_interval=timedelta(seconds=1), maximum_interval=timedelta(seconds=10)),
}
#: What ops ask by an Update: they wait for the answer, so it gives up in good time.
OPS: dict[str, Any] = {
    "start_to_close_timeout": timedelta(seconds=10),
    "schedule_to_close_timeout": timedelta(seconds=60),
}
#: A sweep runs again soon anyway.
SWEEP: dict[str, Any] = {
    "start_to_close_timeout": timedelta(seconds=60),
    "retry_policy": RetryPolicy(maximum_attempts=3),
}
#: A timer aims a little past the instant, so that the database, asked then, agrees that it has come.
TIMER_MARGIN = timedelta(milliseconds=50)
