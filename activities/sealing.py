"""The audit sealer: one task in every worker process, of which an advisory lock lets one work at a time."""

from __future__ import annotations

import asyncio
import logging

from sqlalchemy.exc import IntegrityError, SQLAlchemyError

from models.audit.sealing import BATCH, FullLook, seal_batch, something_to_seal
from models.audit.signing import SealingKey
from models.kit.crashes import crash_at
from models.kit.database import Database

log = logging.getLogger(__name__)

EVERY_S = 1.0
LONGEST_DELAY_S = 5.0


class AuditSealer:
    """Run `run()` as a task. What it has not sealed when it ends, the next one seals."""

    def __init__(self, database: Database, key: SealingKey, *, at_most: int = BATCH) -> None:
        self.database = database
        self.key = key
        self.at_most = at_most

    async def run(self) -> None:
        """Until cancelled. An outage is waited out; a batch that fails for another reason is tried again."""
        delay = EVERY_S
        while True:
            try:
                await self.seal_all()
                delay = EVERY_S
                await asyncio.sleep(delay)
                continue
            except IntegrityError:
                # A place or a number is taken that the chain says is free: somebody has changed it.
                log.error("sealer_refused: places in the chain are taken, see `fairlead audit verify`")  # noqa: TRY400 - says it all
            except (SQLAlchemyError, OSError, TimeoutError) as error:
                log.warning("sealer_database_unavailable error=%s", type(error).__name__)
            except Exception as error:
                # Rows that are not sealed stay as they are, and a verification tells of them.
                log.exception("sealer_failed error=%s", type(error).__name__)
            delay = min(delay * 2, LONGEST_DELAY_S)
            await asyncio.sleep(delay)

    async def seal_all(self) -> int:
        """Seal what there is, one bounded transaction after the other; gives the number of rows."""
        async with self.database.reading() as session:
            if not await something_to_seal(session):
                return 0
        rows = 0
        look: FullLook | None = None
        while True:
            async with self.database.transaction() as session:
                sealed = await seal_batch(session, self.key, at_most=self.at_most, look=look)
                crash_at("sealer.sealed")
            crash_at("sealer.committed")
            rows += sealed.rows
            if not sealed.more:
                return rows
            look = sealed.look
