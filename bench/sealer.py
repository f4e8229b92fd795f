"""The audit sealer in a process of its own, as it runs in a worker: `python -m bench.sealer`, until SIGTERM."""

from __future__ import annotations

import asyncio
import contextlib
import signal

from activities.sealing import AuditSealer
from models.audit.signing import SealingKey
from models.kit.database import Database
from models.kit.settings import load_settings


async def main() -> None:
    settings = load_settings()
    database = Database(settings.sqlalchemy_url, pool_size=2, name="fairlead-sealer")
    task = asyncio.create_task(AuditSealer(database, SealingKey(settings.secret_key)).run())
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    with contextlib.suppress(asyncio.CancelledError):
        await task
    await database.close()


if __name__ == "__main__":
    asyncio.run(main())
