"""The states of a job and of a batch, and the only ways between them.

The drawing in ARCHITECTURE.md shows the same table; a test compares the two. The store guards every
step in SQL by the state it expects to find.
"""

from collections.abc import Mapping
from enum import StrEnum
from typing import Final


class State(StrEnum):
    """Where a job stands. The value is what SQL stores.

    `held`: a call of it may have been billed and brought no answer; a person decides.
    """

    QUEUED = "queued"
    RUNNING = "running"
    WAITING = "waiting"
    HELD = "held"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"


class BatchState(StrEnum):
    """Where a batch stands: the names of OpenAI's Batch API, as far as they can be seen here."""

    VALIDATING = "validating"
    IN_PROGRESS = "in_progress"
    CANCELLING = "cancelling"
    COMPLETED = "completed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"


class AttemptState(StrEnum):
    """What the ledger knows of one call.

    `prepared`: written with the claim; the call is made at once after it. `sent`: seen in flight.
    `answered`: its outcome is recorded. `unknown`: its worker died or cut it off, so the call may
    have been made and may have been billed.
    """

    PREPARED = "prepared"
    SENT = "sent"
    ANSWERED = "answered"
    UNKNOWN = "unknown"


TRANSITIONS: Final[Mapping[State, frozenset[State]]] = {
    State.QUEUED: frozenset({State.RUNNING, State.CANCELLED, State.EXPIRED}),
    State.RUNNING: frozenset(
        {
            State.QUEUED,  # given back unsent, or taken over from a dead worker
            State.WAITING,
            State.HELD,
            State.SUCCEEDED,
            State.FAILED,
            State.CANCELLED,
            State.EXPIRED,
        }
    ),
    State.HELD: frozenset({State.QUEUED, State.FAILED, State.CANCELLED, State.EXPIRED}),
    State.WAITING: frozenset({State.RUNNING, State.CANCELLED, State.EXPIRED}),
    State.SUCCEEDED: frozenset(),
    # A person's `retry` is the only way out of a terminal state.
    State.FAILED: frozenset({State.QUEUED}),
    State.CANCELLED: frozenset({State.QUEUED}),
    State.EXPIRED: frozenset({State.QUEUED}),
}

TERMINAL: Final = frozenset({State.SUCCEEDED, State.FAILED, State.CANCELLED, State.EXPIRED})
OPEN: Final = frozenset(State) - TERMINAL
"""States in which work is still owed."""

BATCH_ENDS: Final = frozenset({BatchState.COMPLETED, BatchState.CANCELLED, BatchState.EXPIRED})
