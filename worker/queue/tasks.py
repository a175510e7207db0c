"""The two tasks a worker consumes. Their return values are what Flower shows in Result."""

from collections.abc import Callable

from celery import Celery

from worker.execution.runtime import Runtime
from worker.jobs.states import State
from worker.queue.app import RUN_JOB, RUN_SHIFT


class JobNotSucceededError(Exception):
    """Makes a single job's row in Flower a failure. Says the state only: never a content."""


def define_tasks(app: Celery, runtime: Runtime, on_ring: Callable[[], None]) -> None:
    """Define the tasks of a worker process on its app; `on_ring` is told of rings for shifts."""

    @app.task(name=RUN_SHIFT)
    def run_shift() -> str:
        """Claim and run jobs until the backlog or the quota ends."""
        on_ring()
        report = runtime.run_shift()
        return "a shift was on already" if report is None else str(report)

    @app.task(name=RUN_JOB, throws=(JobNotSucceededError,))
    def run_job(job_id: str) -> str:
        """Run one job whose id is the task's."""
        state = runtime.run_single(job_id)
        if state in {State.FAILED, State.EXPIRED, State.CANCELLED}:
            raise JobNotSucceededError(state)
        return state or "no such job, or not known"
