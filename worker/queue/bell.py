"""Ringing: publishing the messages that invite workers to claim.

A message that is lost loses nothing, so a broker that is away fails no submission: the sweep of
every worker rings again.
"""

from collections.abc import Callable
from concurrent.futures import Future
from threading import Thread
from typing import Any, Final

from celery import Celery
from celery.utils.nodenames import worker_direct
from kombu.exceptions import OperationalError

from worker.execution.outage import Outage
from worker.queue.app import RUN_JOB, RUN_SHIFT, SHIFT_RING_EXPIRES_SECONDS

PATIENCE_SECONDS: Final = 5.0
"""A ring that takes longer is left behind: a broker that hangs must not hold up a submission, nor
the sweep, which has a lease to renew."""


class Bell:
    """Publishes to one broker; `broker` is told whether it could."""

    def __init__(self, app: Celery, broker: Outage | None = None) -> None:
        self._app = app
        self._broker = broker or Outage("broker")
        self._left_behind: Thread | None = None

    def ring_shift(self) -> bool:
        """Invite any worker to a shift; False if the broker could not be reached."""
        return self._send(RUN_SHIFT, expires=SHIFT_RING_EXPIRES_SECONDS)

    def ring_shift_at(self, node: str) -> bool:
        """Invite one worker, by its node name, to a shift."""
        return self._send(RUN_SHIFT, queue=worker_direct(node), expires=SHIFT_RING_EXPIRES_SECONDS)

    def ring_job(self, job_id: str) -> bool:
        """Invite any worker to run one job; the task's id is the job's."""
        return self._send(RUN_JOB, args=[job_id], task_id=job_id)

    def _send(self, name: str, **options: Any) -> bool:
        """Publish in a thread of its own: no timeout of a transport holds for all it waits for."""
        if self._left_behind is not None and self._left_behind.is_alive():
            return False  # the next ones would only wait in vain as well
        done: Future[bool] = Future()
        # A daemon, so that a program can end though its broker hangs.
        thread = Thread(
            target=_settle, args=(done, self._publish, name, options), name="ring", daemon=True
        )
        thread.start()
        thread.join(PATIENCE_SECONDS)
        if done.done():
            return done.result()
        self._left_behind = thread
        self._broker.note(TimeoutError(f"no answer in {PATIENCE_SECONDS:g} s"))
        return False

    def _publish(self, name: str, options: dict[str, Any]) -> bool:
        try:
            self._app.send_task(name, retry=False, ignore_result=True, **options)
        except (OperationalError, OSError) as error:
            self._broker.note(error)
            return False
        self._broker.over()
        return True


def _settle(
    done: Future[bool],
    publish: Callable[[str, dict[str, Any]], bool],
    name: str,
    options: dict[str, Any],
) -> None:
    """Publish, and hand what comes of it to the thread that waits: a fault of ours included."""
    try:
        done.set_result(publish(name, options))
    except BaseException as error:  # noqa: BLE001  # raised where it is waited for
        done.set_exception(error)
