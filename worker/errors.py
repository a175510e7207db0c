"""The one tree of exceptions a user of chatqueue can meet.

An outcome of a call is a value (`worker.jobs.outcomes`), never an exception; these are for what
stops a command or a worker::

    ChatqueueError
    ├── SettingsError        a setting is missing or wrong; all faults at once
    ├── InvalidRequestsError requests were refused before anything was stored; all faults at once
    ├── NotFoundError        no such batch, job or file
    ├── DatabaseError        the database cannot be used
    │   └── SchemaError      it is not at the schema this version needs
    ├── BrokerError          the broker cannot be reached
    ├── StackError           the embedded stack could not be started or stopped
    └── WaitTimeoutError     a wait ended before the work did

Messages tell the user what was wrong, where, and what to do. They carry no secret.
"""

from collections.abc import Sequence
from dataclasses import dataclass


class ChatqueueError(Exception):
    """Anything that chatqueue raises on purpose."""


class SettingsError(ChatqueueError):
    """One or more settings are wrong. `faults` has one line for each."""

    def __init__(self, faults: Sequence[str]) -> None:
        super().__init__("\n".join(faults))
        self.faults = tuple(faults)


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing wrong with one request.

    `line` counts from 1 (0: the request did not come from a file), `field` is a dotted path into
    the line such as `body.messages.0.role` (empty: the line as a whole).
    """

    line: int
    field: str
    message: str

    def __str__(self) -> str:
        place = f"line {self.line}: " if self.line else ""
        return f"{place}{self.field}: {self.message}" if self.field else f"{place}{self.message}"


class InvalidRequestsError(ChatqueueError):
    """Requests were refused; nothing of them was stored. `faults` names every one, by line."""

    def __init__(self, faults: Sequence[Fault], source: str = "") -> None:
        head = f"{source}: " if source else ""
        super().__init__("\n".join(f"{head}{fault}" for fault in faults))
        self.faults = tuple(faults)
        self.source = source


class NotFoundError(ChatqueueError):
    """There is no batch, job or file of that name."""


class DatabaseError(ChatqueueError):
    """The database cannot be reached or used."""


class SchemaError(DatabaseError):
    """The database is not at the schema this version needs; `chatqueue migrate` mends it."""


class BrokerError(ChatqueueError):
    """The broker cannot be reached."""


class StackError(ChatqueueError):
    """The embedded stack could not be started or stopped."""


class WaitTimeoutError(ChatqueueError):
    """The wait ended before the work did; the work goes on."""
