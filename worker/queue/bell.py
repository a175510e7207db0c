"""Ringing: publishing the messages that invite workers to claim.

A message that is lost loses nothing, so a broker that is away fails no submission: the sweep of
every worker rings again.
"""

from typing import Any

import structlog
from celery import Celery
from celery.utils.nodenames import worker_direct
from kombu.exceptions import OperationalError

from worker.queue.app import (
    BULK_QUEUE,
    INTERACTIVE_QUEUE,
    RUN_JOB,
    RUN_SHIFT,
    SHIFT_RING_EXPIRES_SECONDS,
)

log = structlog.get_logger(__name__)


class Bell:
    """Publishes to one broker."""

    def __init__(self, app: Celery) -> None:
        self._app = app

    def ring_shift(self) -> bool:
        """Invite any worker to a shift; False if the broker could not be reached."""
        return self._send(RUN_SHIFT, queue=BULK_QUEUE, expires=SHIFT_RING_EXPIRES_SECONDS)

    def ring_shift_at(self, node: str) -> bool:
        """Invite one worker, by its node name, to a shift."""
        return self._send(RUN_SHIFT, queue=worker_direct(node), expires=SHIFT_RING_EXPIRES_SECONDS)

    def ring_job(self, job_id: str) -> bool:
        """Invite any worker to run one job; the task's id is the job's."""
        return self._send(RUN_JOB, args=[job_id], task_id=job_id, queue=INTERACTIVE_QUEUE)

    def _send(self, name: str, **options: Any) -> bool:
        try:
            self._app.send_task(name, retry=False, ignore_result=True, **options)
        except (OperationalError, OSError) as error:
            log.warning("ring_failed", task=name, error=str(error))
            return False
        return True
