"""Ending the leases of this machine's dead workers at once, instead of waiting them out.

Called where the embedded stack starts: its workers all run here, so a process that is gone is dead
for certain. Workers elsewhere, or in containers, are left to their leases.
"""

import socket
from datetime import UTC, datetime

import psutil

from worker.store import leases
from worker.store.engine import Database
from worker.store.leases import Leased


def end_dead_leases(database: Database) -> int:
    """End the leases of workers of this host whose process is gone; return how many."""
    with database.write() as connection:
        leased = leases.leased_on(connection, socket.gethostname())
        dead = [one.worker_id for one in leased if not _lives(one)]
        leases.end_leases(connection, dead)
    return len(dead)


def _lives(leased: Leased) -> bool:
    try:
        began = datetime.fromtimestamp(psutil.Process(leased.pid).create_time(), UTC)
    except psutil.NoSuchProcess:
        return False
    # A younger process has only inherited the number.
    return began <= leased.started_at
