"""The two queues. Batches go to one, single jobs to the other, and each has slots of its own."""

from typing import Final

BULK: Final = "bulk"
INTERACTIVE: Final = "interactive"

QUEUES: Final = (BULK, INTERACTIVE)
