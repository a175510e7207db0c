"""chatqueue: a durable job queue for chat completions.

`Client` enqueues (with `JobOptions`) and reads; `Job` and `Batch` are what it returns. Everything
else is inside.
"""

from importlib.metadata import version

from worker.client import Client
from worker.errors import ChatqueueError, Fault, InvalidRequestsError, NotFoundError
from worker.jobs.options import JobOptions
from worker.jobs.states import BatchState, State
from worker.jobs.views import Attempt, Batch, Job
from worker.settings import Settings

__version__ = version("chatqueue")

__all__ = [
    "Attempt",
    "Batch",
    "BatchState",
    "ChatqueueError",
    "Client",
    "Fault",
    "InvalidRequestsError",
    "Job",
    "JobOptions",
    "NotFoundError",
    "Settings",
    "State",
]
