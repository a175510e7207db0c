"""Options of a single job, which no upstream sees: where it may be sent, how often it is asked.

They come with a submission as a whole, or in a line's envelope under the key `chatqueue`; there
each key wins over the submission's. Pure.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from worker.jobs.requests import Finding, shown
from worker.settings import base_url

MAX_REASKS: Final = 10


@dataclass(frozen=True, slots=True)
class JobOptions:
    """How one job is to be run. Raises ValueError.

    `endpoints`: base URLs to use in place of the settings', in order of preference (none: the
    settings'). `reasks`: how often an answer that does not match the schema of the request's
    `response_format` is asked for again, with what was wrong with it.
    """

    endpoints: tuple[str, ...] = ()
    reasks: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "endpoints", tuple(map(base_url, self.endpoints)))
        object.__setattr__(self, "reasks", _reasks(self.reasks))


def check_options(given: Any, rest: JobOptions) -> JobOptions | tuple[Finding, ...]:
    """Check the options of a line, any JSON value: they over `rest`, or all that is wrong."""
    if not isinstance(given, Mapping):
        return (("", f"must be an object of options ({_KNOWN}), is {shown(given)}"),)
    faults: list[Finding] = []
    values: dict[str, Any] = {}
    for key, value in given.items():
        try:
            values[key] = _RULES.get(key, _unknown)(value)
        except ValueError as error:
            faults.append((key, str(error)))
    return tuple(faults) or replace(rest, **values)


def _endpoints(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not value:
        raise ValueError(f"must be a list of at least one base URL, is {shown(value)}")
    if odd := [one for one in value if not isinstance(one, str)]:
        raise ValueError(f"must be a list of base URLs, holds {shown(odd[0])}")
    return tuple(map(base_url, value))


def _reasks(value: Any) -> int:
    if type(value) is int and 0 <= value <= MAX_REASKS:  # true is no number
        return value
    raise ValueError(f"must be a whole number between 0 and {MAX_REASKS}, is {shown(value)}")


def _unknown(_: Any) -> Any:
    raise ValueError(f"is no option of a job; there are {_KNOWN}")


_RULES: Final[Mapping[str, Callable[[Any], Any]]] = {"endpoints": _endpoints, "reasks": _reasks}
_KNOWN: Final = " and ".join(_RULES)

NO_OPTIONS: Final = JobOptions()
