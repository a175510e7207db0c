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

from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import overload


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


class Faults(Sequence[Fault]):
    """Every fault of a file, however many lines are wrong: what lines share is kept once.

    A million lines with the same fault take 16 MB; only words of their own, such as a custom_id
    that is used twice, take more. Faults are made as they are asked for.
    """

    def __init__(self, faults: Iterable[Fault] = ()) -> None:
        self._lines = array("q")
        self._kinds = array("q")
        self._numbers: dict[tuple[str, str], int] = {}
        self._words: list[tuple[str, str]] = []
        self.extend(faults)

    def extend(self, faults: Iterable[Fault]) -> None:
        """Put these behind the others."""
        for one in faults:
            words = (one.field, one.message)
            number = self._numbers.setdefault(words, len(self._words))
            if number == len(self._words):
                self._words.append(words)
            self._lines.append(one.line)
            self._kinds.append(number)

    def __len__(self) -> int:
        return len(self._lines)

    @overload
    def __getitem__(self, index: int) -> Fault: ...

    @overload
    def __getitem__(self, index: slice) -> list[Fault]: ...

    def __getitem__(self, index: int | slice) -> Fault | list[Fault]:
        if isinstance(index, slice):
            return [self[at] for at in range(*index.indices(len(self)))]
        return Fault(self._lines[index], *self._words[self._kinds[index]])


class InvalidRequestsError(ChatqueueError):
    """Requests were refused; nothing of them was stored. `faults` names every one, by line.

    Its text has a line for each; `lines` gives them one by one, where there may be a million.
    """

    def __init__(self, faults: Sequence[Fault], source: str = "") -> None:
        super().__init__(faults, source)
        self.faults = faults if isinstance(faults, Faults) else tuple(faults)
        self.source = source

    def lines(self) -> Iterator[str]:
        """Yield a line for each fault, with the file that it is in."""
        head = f"{self.source}: " if self.source else ""
        return (f"{head}{fault}" for fault in self.faults)

    def __str__(self) -> str:
        return "\n".join(self.lines())


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
